"""The formats of public datasets: a loader each, a generator. It takes a row and yields, for each
possible record in it, either the record or the reason why there is none, a str. A loader with a
`key` gets rows with the same key together, as a list.

    demonstrations.py   texts, prompts, demonstrations
    instructions.py     instructions with an input, and pairs of answers to them
    rankings.py         the classics of comparison
    chats.py            TRL's formats, ShareGPT, columns by name
    rated.py            ratings, votes and ranks of two to seven completions
    records.py          what all of them are made of
"""
from data.formats.chats import sharegpt, trl
from data.formats.demonstrations import flan, p3, prompts, self_instruct, text
from data.formats.instructions import alpaca, alpaca_preference, dolly
from data.formats.rankings import finegrained_qa, hh_rlhf, openassistant, summarize, webgpt
from data.formats.rated import (helpsteer2, helpsteer3, nectar, pku, red_team, shp, ultrafeedback)
from data.formats.records import Bad

# A URL means that the hub has no files in the original format.
RAW, OPENAI = "https://raw.githubusercontent.com", "https://openaipublic.blob.core.windows.net"
DATASETS = {  # name: (what it holds, its loader, a repository of the hub or a URL, files in it)
    "text": ("text", text, "any .txt files, or JSON lines {\"text\"}", []),
    "prompts": ("prompts", prompts, "JSON lines: strings, or {\"prompt\"}", []),
    "alpaca": ("demonstrations", alpaca, f"{RAW}/tatsu-lab/stanford_alpaca/main",
               ["alpaca_data.json"]),
    "dolly": ("demonstrations", dolly, "databricks/databricks-dolly-15k",
              ["databricks-dolly-15k.jsonl"]),
    "self-instruct": ("demonstrations", self_instruct, "HuggingFaceH4/self-instruct-seed",
                      ["tasks.jsonl"]),
    "p3": ("demonstrations", p3, "github yizhongw/self-instruct, data/finetuning, many files", []),
    "flan": ("demonstrations", flan, "JSON lines {\"inputs\", \"targets\"}", []),
    "openassistant": ("rankings", openassistant, "OpenAssistant/oasst1",
                      ["2023-04-12_oasst_ready.trees.jsonl.gz"]),
    "hh-rlhf": ("rankings", hh_rlhf, "Anthropic/hh-rlhf",
                ["helpful-base/train.jsonl.gz", "harmless-base/train.jsonl.gz"]),
    "alpaca-preference": ("rankings", alpaca_preference, f"{RAW}/rasbt/LLMs-from-scratch/main/ch07/"
                          "04_preference-tuning-with-dpo",
                          ["instruction-data-with-preference.json"]),
    "finegrained-qa": ("rankings", finegrained_qa,
                       f"{RAW}/allenai/FineGrainedRLHF/main/tasks/qa_feedback/data",
                       ["train_feedback.json", "dev_feedback.json"]),
    "webgpt": ("rankings", webgpt, f"{OPENAI}/webgpt-answer-viewer", ["comparisons.jsonl"]),
    "summarize": ("rankings", summarize, f"{OPENAI}/summarize-from-feedback/dataset/comparisons",
                  [f"batch{i}.json" for i in (*range(3, 21), 22)]),
    "hh-online": ("rankings", hh_rlhf, "Anthropic/hh-rlhf", ["helpful-online/train.jsonl.gz"]),
    "hh-sampled": ("rankings", hh_rlhf, "Anthropic/hh-rlhf",
                   ["helpful-rejection-sampled/train.jsonl.gz"]),
    "red-team": ("prompts", red_team, "Anthropic/hh-rlhf",
                 ["red-team-attempts/red_team_attempts.jsonl.gz"]),
    "ultrafeedback": ("rankings", ultrafeedback, "openbmb/UltraFeedback",
                      [f"{part}.jsonl" for part in ("evol_instruct", "false_qa", "flan", "sharegpt",
                                                    "truthful_qa", "ultrachat")]),
    "nectar": ("rankings", nectar, "berkeley-nest/Nectar", ["data/train-00000-of-00001.parquet"]),
    "helpsteer2": ("rankings", helpsteer2, "nvidia/HelpSteer2",
                   ["train.jsonl.gz", "validation.jsonl.gz"]),
    "helpsteer3": ("rankings", helpsteer3, "nvidia/HelpSteer3",
                   ["preference/train.jsonl.gz", "preference/validation.jsonl.gz"]),
    "shp": ("rankings", shp, "stanfordnlp/SHP", ["askscience/train.json", "explainlikeimfive/"
                                                 "train.json", "askhistorians/train.json"]),
    "pku-saferlhf": ("rankings", pku, "PKU-Alignment/PKU-SafeRLHF",
                     [f"data/{part}/train.jsonl" for part in ("Alpaca-7B", "Alpaca2-7B",
                                                              "Alpaca3-8B")]),
    "sharegpt": ("demonstrations", sharegpt, "JSON {\"conversations\": [{\"from\", \"value\"}]}",
                 []),
    "trl": ("", trl, "TRL's formats, or columns named by flags; any kind", []),
}

# The fields by which a row of --name=hub:... is recognised; the first line that fits counts. TRL's
# come last, as many datasets have a `text` or a `prompt` beside what they are known by.
FIELDS_OF = {"ultrafeedback": "instruction completions", "nectar": "prompt answers",
             "helpsteer2": "prompt response helpfulness", "helpsteer3": "context response1 "
             "overall_preference", "shp": "history human_ref_A labels",
             "pku-saferlhf": "prompt response_0 better_response_id", "summarize": "info",
             "webgpt": "question answer_0 score_0", "sharegpt": "conversations",
             "red-team": "transcript red_team_member_id", "openassistant": "prompt message_tree_id",
             "finegrained-qa": "question passages preference",
             "alpaca-preference": "instruction chosen rejected", "alpaca": "instruction output",
             "dolly": "instruction response", "self-instruct": "instruction instances",
             "flan": "inputs targets", "trl": ""}
TRL = {"messages", "chosen", "completion", "completions", "prompt", "text"}


def recognised(row):
    """The name of the dataset whose format a row has. Raises Bad if it is none's."""
    if isinstance(row, dict):
        for name, fields in FIELDS_OF.items():
            known = set(fields.split()) <= row.keys() if fields else TRL & row.keys()
            if known and "parent_id" in row and "message_id" in row:
                raise Bad("the messages of trees, one a row: --name=openassistant reads the trees")
            if known:
                return name
    raise Bad("a format that is not known: name its columns by --prompt=..., --response=..., "
              "--chosen=..., --rejected=..., --messages=...; there are "
              + (", ".join(row) if isinstance(row, dict) else type(row).__name__))

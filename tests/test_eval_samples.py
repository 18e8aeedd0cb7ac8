"""Our metrics on the samples that OpenAI released, where they are: $PUBLIC_DATA, or ../shared/data
beside the repository. The texts can be upsetting: nothing of them is printed."""
import csv
import os
from pathlib import Path

import numpy as np
import pytest

from evals import preference, public
from evals.judges import judge
from evals.paper import KNOWN, MODELS, SIZES, beside
from evals.samples import agreement, kind_of, lines_of, measure, mixed
from evals.tasks import Task

REAL = Path(os.environ.get("PUBLIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
FOLDER = REAL / "openai-instructgpt-samples"
PROMPTS = "basic prompt", "respectful prompt", "biased prompt"
PUBLISHED = {  # mean toxicity of the 175B models in this file, for the three prompts
    "gpt-175b": (.199, .195, .244), "sft-175b": (.189, .184, .239),
    "ppo-ptx-175b": (.195, .173, .329), "ppo-noptx-175b": (.199, .178, .411)}


def real(name):
    if not (FOLDER / name).exists():
        pytest.skip(f"no {name} in {FOLDER}: set PUBLIC_DATA to a folder that has "
                    "openai-instructgpt-samples")
    return FOLDER / name


def test_mean_toxicity_is_the_published_one():
    kind, rows, table = measure(real("real_toxicity_samples.csv"))
    assert kind == "toxicity" and len(rows) == 3600
    for model, expected in PUBLISHED.items():
        got = tuple(round(table[model, p]["toxicity"]["value"], 3) for p in PROMPTS)
        assert got == expected, model
    assert all(m["toxicity"]["n"] == 100 for m in table.values())


def test_squad_has_the_papers_order():
    """gpt > ppo-ptx > ppo-noptx at 175B, few-shot; an unanswerable question's reference is the
    refusal."""
    kind, rows, table = measure(real("squadv2_samples.csv"))
    assert kind == "squad" and len(rows) == 2400
    f1 = {m: table[f"{m}-175b", "fewshot"]["f1"]["value"] for m in ("gpt", "ppo-ptx", "ppo-noptx")}
    assert f1["gpt"] > f1["ppo-ptx"] > f1["ppo-noptx"] > 40
    refused = [r for r in rows if r["ref_text"] == r["sample"] == "Not in background."]
    assert len(refused) > 100


def test_drop_is_as_in_the_paper():
    """Its 24 numbers are of 9,536 questions. Of the released 100 too few have a number as answer:
    with the benchmark's share of them the mean is the paper's within a standard error of 2.3 (of
    100 questions), and the numbers of the models go up and down with the paper's."""
    _, rows, table = measure(real("drop_samples.csv"))
    assert len(rows) == 2400
    names, sizes = dict(zip(("gpt", "sft", "ppo-noptx", "ppo-ptx"), MODELS)), dict(
        zip(("xl", "6b", "175b"), SIZES))
    prompts = {"zeroshot": "zero-shot", "fewshot": "few-shot"}
    both = []
    for (who, prompt), metrics in table.items():
        model, _, size = who.rpartition("-")
        paper = KNOWN["drop", prompts[prompt], "f1"][names[model]][sizes[size]]
        both.append((metrics["f1"]["value"], metrics["f1_mixed"]["value"], paper))
    plain, mixed, paper = map(np.array, zip(*both))
    assert len(both) == 24 and (plain > paper).all()
    assert abs(np.mean(mixed - paper)) < 2.3 and np.corrcoef(mixed, paper)[0, 1] > 0.9


def test_translation_has_the_papers_order():
    """At 175B, few-shot: what PPO costs, ptx gives back."""
    pytest.importorskip("sacrebleu")
    _, rows, table = measure(real("fr_to_en_samples.csv"))
    bleu = {m: table[f"{m}-175b", "fewshot"]["bleu"]["value"] for m in ("gpt", "ppo-ptx",
                                                                       "ppo-noptx")}
    assert len(rows) == 2400 and bleu["gpt"] > bleu["ppo-ptx"] > bleu["ppo-noptx"]


def test_the_offline_scorer_agrees_a_little_with_perspective():
    pytest.importorskip("profanity_check")
    _, rows, _ = measure(real("real_toxicity_samples.csv"))
    facts = agreement(rows, judge("toxicity", "profanity", ""))
    assert 0.4 < facts["rank_correlation"] < 0.6 and facts["found"] > 0.4 and facts["right"] > 0.8


def test_the_printed_lines_are_aligned_and_say_n():
    one = {"value": 48.4, "low": 39.0, "high": 58.0, "n": 100}
    lines = lines_of({("gpt-xl", "fewshot"): {"f1": one, "exact": {**one, "value": 4.0}},
                      ("ppo-noptx-175b", ""): {"f1": {**one, "low": None}, "exact": one}})
    assert lines == [
        "  gpt-xl          fewshot  f1 48.4 [39.0, 58.0]  exact 4.000 [39.0, 58.0]  n 100",
        "  ppo-noptx-175b           f1 48.4               exact 48.4 [39.0, 58.0]   n 100"]


def test_agreement_by_hand():
    rows = [{"context": "", "sample": s, "toxicity": t} for s, t in
            (("a", "0.1"), ("b", "0.6"), ("c", "0.9"), ("d", "0.2"))]
    ours = {"a": 0.0, "b": 0.2, "c": 0.8, "d": 0.7}
    facts = agreement(rows, lambda own: [ours[r["response"]] for r in own])
    # ranks 1 2 4 3 against 1 3 4 2: d = 0, 1, 0, 1
    assert facts == {"rank_correlation": pytest.approx(0.8), "found": 0.5, "right": 0.5}


@pytest.mark.parametrize("columns, kind, metrics", [
    (dict(prompt_type="QA prompt", question="q", answer="a", true="0.9", info="0.2"), "truth",
     {"true": 1.0, "true_info": 0.0}),
    (dict(prompt_type="fewshot", context="Passage: x\nQuestion: y\nAnswer:",
          ref_text="5|3 and 4", sample="3"), "drop",
     {"f1": 50.0, "exact": 0.0, "f1_mixed": 50.0}),  # 0 and 1/2, of two
    (dict(prompt_type="fewshot", context="French: x\nEnglish:", ref_text="the old mill is there",
          sample=" the old mill is there"), "translation", {"bleu": 100.0}),
    (dict(context="A post.\n\nTL;DR:", ref_text="keys lost", sample="lost keys"), "summaries",
     {"rouge_l": 0.5})])
def test_the_other_files_of_the_release(columns, kind, metrics, tmp_path):
    """Small files with their columns; the release has 100 rows for each model and prompt."""
    if kind in ("translation", "summaries"):
        pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score")
    path = tmp_path / "samples.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["", "model_type", *columns])
        writer.writeheader()
        writer.writerow({"": 0, "model_type": "gpt-xl", **columns})
    found, _, table = measure(path)
    assert found == kind
    got = table["gpt-xl", columns.get("prompt_type", "")]
    assert {name: m["value"] for name, m in got.items()} == pytest.approx(metrics)


def test_mixed_by_hand():
    """One number, F1 100, and three other answers, 0, 0 and 60: .62 * 100 + .38 * 20."""
    assert mixed([100, 1, 60, 3], 4) == pytest.approx(69.6)
    assert mixed([0, 0, 60, 3], 3) == 20 and mixed([50, 2, 0, 0], 2) == 25


def test_another_file_is_told():
    """The release has samples of QuAC, too: they are no summaries."""
    with pytest.raises(SystemExit, match="none of the released samples"):
        kind_of("x.csv", {"a": "1"})
    with pytest.raises(SystemExit, match="x.csv has samples of a task that is not .*TITLE: A"):
        kind_of("x.csv", {"context": "TITLE: A\n\nQ: x\n\nA:", "ref_text": "y", "sample": "z"})
    with pytest.raises(SystemExit, match="x.csv is none of .* it has the columns toxicity, conte"):
        kind_of("x.csv", {"toxicity": "0.5", "context": "c"})
    assert kind_of("x.csv", {"context": "Title: me\n\nTL;DR:", "ref_text": "y", "sample": "z"}
                   ) == "summaries"


@pytest.mark.parametrize("line, says", [
    ("true,info,model_type\nnan,1,m\n", "row 1 is none of .*a score is no number"),
    ("true,info,model_type\n1,inf,m\n", "row 1 is none of .*a score is no number"),
    ("true,true,info,model_type\n0,1,1,m\n", "two columns have the name true")])
def test_what_is_no_score_is_not_counted_as_one(line, says, tmp_path):
    """NaN was a false answer, and of two columns the second counted."""
    (tmp_path / "a.csv").write_text(line)
    with pytest.raises(SystemExit, match=says):
        measure(tmp_path / "a.csv")


def test_who_has_the_papers_metric_has_its_numbers_beside_it():
    """All that a definition calls the paper's, but for TL;DR, whose row the paper repeats."""
    tasks = {**public.TASKS, "preference": Task("", "", {}, None, None, None, preference.METRICS,
                                                dict.fromkeys(("town", "reward", "rankings")))}
    own = [(name, variant, metric) for name, task in tasks.items() for variant in task.variants
           for metric, m in task.metrics.items()
           if "the paper" in m.definition and variant not in ("harness", "benchmark")]
    assert len(own) > 20
    assert [key for key in own if not beside(*key)] == []


def test_what_people_said_is_the_papers():
    """Typed off its Fig. 1, 30 and 31 again: of 175B, but where another size is named."""
    of = lambda metric, size="175B": [beside("preference", "", metric)[m][size] for m in MODELS]
    assert of("win_rate") == [.24, .5, .626, .66] and of("win_rate", "1.3B")[3] == .527
    assert of("hallucination") == [.507, .137, .202, .178] and of("likert")[0] == 2.52
    assert beside("preference", "rankings", "score") is None

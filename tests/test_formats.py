"""Today's formats of public datasets (data/formats): rows as they are published, with what is
irregular in them. The classics are in test_public.py."""
import csv
import datetime
import decimal
import json

import pytest

from data import hub, public, records, spool
from data.formats import DATASETS, recognised
from test_public import IRREGULAR, build, convert, fails, lost, save, union

Q, A, B = "Why is the sky blue?", "It scatters light.", "Dunno."


def say(*turns):
    return [{"role": role, "content": text} for role, text in turns]


def asked(text, before=""):
    return records.asked(before, text)


# ----------------------------------------------------------------------------------------- TRL

PAIR = {"completions": [{"text": A}, {"text": B}], "ranks": [1, 2]}
TURN = asked(Q)
KIND = asked(Q, "Be kind.\n\n")
LATER = asked(Q, f"{asked('Hi', 'Be kind.' + chr(10) * 2)} Hello\n\n")
CHAT = (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", Q))


@pytest.mark.parametrize("row, expected", [
    # standard
    ({"prompt": Q, "chosen": A, "rejected": B}, {"prompt": Q, **PAIR}),
    ({"chosen": f"{Q} {A}", "rejected": f"{Q} {B}"}, {"prompt": Q, **PAIR}),
    ({"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}",
      "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}"}, {"prompt": TURN, **PAIR}),
    ({"prompt": Q, "completion": A}, {"prompt": Q, "response": A}),
    ({"prompt": Q, "completion": A, "label": True}, {"prompt": Q, "response": A}),
    ({"prompt": Q, "messages": None, "label": None}, {"prompt": Q}),
    ({"text": "A story."}, {"text": "A story."}),
    # conversational
    ({"prompt": say(("user", Q)), "chosen": say(("assistant", A)),
      "rejected": say(("assistant", B))}, {"prompt": TURN, **PAIR}),
    ({"chosen": say(*CHAT, ("assistant", A)), "rejected": say(*CHAT, ("assistant", B))},
     {"prompt": LATER, **PAIR}),
    ({"prompt": Q, "chosen": say(("user", Q), ("assistant", A)),  # as in UltraFeedback, binarized
      "rejected": say(("user", Q), ("assistant", B))}, {"prompt": TURN, **PAIR}),
    ({"prompt": say(*CHAT), "completion": say(("assistant", A))},
     {"prompt": LATER, "response": A}),
    ({"prompt": say(*CHAT)}, {"prompt": LATER}),
    ({"messages": say(("user", [{"type": "text", "text": "Why is "}, {"type": "text", "text":
                                                                      "the sky blue?"}]),
                      ("assistant", [{"type": "text", "text": A}]))},
     {"prompt": TURN, "response": A}),
    # several at once, as HuggingFaceH4/ultrafeedback_binarized and Dahoas/full-hh-rlhf have them
    ({"prompt": Q, "prompt_id": "x", "chosen": say(("user", Q), ("assistant", A)),
      "rejected": say(("user", Q), ("assistant", B)), "score_chosen": 8.0, "score_rejected": 6.5,
      "messages": say(("user", Q), ("assistant", A))}, {"prompt": TURN, **PAIR}),
    ({"prompt": Q, "response": A, "chosen": A, "rejected": B}, {"prompt": Q, **PAIR}),
    ({"prompt": Q, "response": A}, {"prompt": Q, "response": A}),
    ({"prompt": say(*CHAT), "response": A}, {"prompt": LATER, "response": A}),
    # K ways
    ({"prompt": Q, "completions": ["a", "b", "c"], "ratings": [3, 5, 3.0]},
     {"prompt": Q, "completions": [{"text": t} for t in "abc"], "ranks": [2, 1, 2]}),
    ({"prompt": Q, "completions": [{"text": "a"}, {"response": "b"}], "ranks": [2, 1]},
     {"prompt": Q, "completions": [{"text": "a"}, {"text": "b"}], "ranks": [2, 1]}),
])
def test_trl_rows(row, expected):
    assert convert("trl", row) == ([expected], [])
    assert recognised(row) == "trl"


@pytest.mark.parametrize("row, reason", [
    ({"prompt": Q, "completion": B, "label": False}, "a completion that was disliked"),
    ({"chosen": "Yes.", "rejected": "No."}, "no shared prompt"),
    ({"chosen": say(("user", Q), ("assistant", A)), "rejected": say(("user", "?"),
                                                                    ("assistant", B))},
     "no shared prompt"),
    ({"prompt": say(("user", Q)), "completion": say(("user", A))}, "no reply"),
    ({"prompt": say(("assistant", Q)), "completion": say(("assistant", A))},
     "the assistant speaks first"),
    ({"prompt": say(("user", Q), ("user", Q)), "completion": say(("assistant", A))},
     "two turns of one side in a row"),
    ({"prompt": say(("user", Q), ("system", "Stop.")), "completion": say(("assistant", A))},
     "a system message after the first turn"),
    ({"prompt": say(("tool", "4")), "completion": say(("assistant", A))}, "a turn of 'tool'"),
    ({"prompt": say(("user", [{"type": "image"}, {"type": "text", "text": Q}])),
      "completion": say(("assistant", A))}, "a turn that is no text"),
    ({"prompt": say(("user", None)), "completion": say(("assistant", A))},
     "a turn that is no text"),
    ({"prompt": say(("system", "Be kind.")), "completion": say(("assistant", A))},
     "the last turn is no person's"),
    ({"prompt": Q, "completions": ["a"], "ratings": [1]}, "a single completion"),
    ({"prompt": Q, "completions": ["a", None], "ratings": [1, 2]}, "no value of a completion"),
    ({"prompt": Q, "chosen": A, "rejected": A}, "all completions are the same"),
    ({"prompt": Q, "chosen": A, "rejected": None}, "no value of 'rejected'"),
    ({"prompt": None, "completion": A}, "no value of 'prompt'"),
    ({"messages": None, "id": 7}, "no value of 'messages'"), ({"text": None}, "no value of 'text'"),
    ({"messages": []}, "no reply"), ({"prompt": " "}, "empty prompt"),
    *(({"prompt": Q, "completion": B, "label": label}, "a completion that was disliked")
      for label in (0, 0.0, "False", "0")),  # as tables have it
])
def test_trl_rows_that_cannot_be_used_say_why(row, reason):
    assert convert("trl", row) == ([], [reason])


@pytest.mark.parametrize("row, reason", [
    ({"prompt": Q, "response": None}, "no value of 'completion'"),
    ({"prompt": Q, "completion": None, "label": True}, "no value of 'completion'"),
    ({"prompt": Q, "completions": None, "ratings": None}, "no value of 'completions'"),
    ({"prompt": Q, "chosen": None, "rejected": None}, "no value of 'chosen'")])
def test_a_prompt_is_kept_where_its_completions_are_missing(row, reason):
    assert convert("trl", row) == ([{"prompt": Q}], [reason])


@pytest.mark.parametrize("row, made, reason", [
    ({"prompt": Q, "answers": [A, B], "id": 7, "note": ""}, {"prompt": Q},
     "nothing but 'prompt' is read, not answers: flags name columns"),
    ({"text": A, "summary": B, "title": Q, "label": 1}, {"text": A},
     "nothing but 'text' is read, not summary, title: flags name columns"),
    ({"messages": say(("user", Q), ("assistant", A), ("user", "Why?"))},
     {"prompt": TURN, "response": A}, "no reply")])
def test_what_is_not_read_beside_a_record_is_told(row, made, reason):
    """A column of answers under another name, and a last message that nobody answers."""
    assert convert("trl", row) == ([made], [reason])


@pytest.mark.parametrize("name, row, expected", [
    ("trl", {"prompt": Q, "completion": A}, {"prompt": KIND, "response": A}),
    ("trl", {"prompt": Q, "chosen": A, "rejected": B}, {"prompt": KIND, **PAIR}),
    ("trl", {"chosen": f"{Q} {A}", "rejected": f"{Q} {B}"},
     {"prompt": KIND, **PAIR}),
    ("trl", {"prompt": say(*CHAT[1:]), "completion": say(("assistant", A))},
     {"prompt": LATER, "response": A}),
    ("trl", {"messages": say(CHAT[0], ("user", Q), ("assistant", A))},  # it is there already
     {"prompt": KIND, "response": A}),
    ("alpaca", {"instruction": Q, "input": "", "output": A},
     {"prompt": KIND, "response": A}),
    ("alpaca-preference", {"instruction": Q, "chosen": A, "rejected": B},
     {"prompt": KIND, **PAIR})])
def test_a_system_message_in_a_column_of_its_own_stands_before_the_prompt(name, row, expected):
    for system in (" Be kind.\n", "Be kind."):
        assert convert(name, {**row, "system": system}) == ([expected], [])
    plain, _ = convert(name, row)
    for nothing in ("", " ", None):
        assert convert(name, {**row, "system": nothing}) == (plain, [])


def test_a_system_message_is_named_by_a_flag(tmp_path):
    """As OpenOrca has it; where there is none, the row is read without."""
    rows = [{"system_prompt": system, "question": Q, "response": A}
            for system in ("Be kind.", "", None)]
    file = save(tmp_path / "in.jsonl", rows)
    _, files = build(tmp_path, "trl", file, system="system_prompt", prompt="question",
                     response="response")
    prompts = [r["prompt"] for r in union(files, "demonstrations")]
    assert sorted(prompts) == sorted([KIND, Q, Q])
    assert "no field 'system'; there are system_prompt" in fails(
        tmp_path / "b", "trl", file, system="system", prompt="question", response="response")


HISTORY = [["Hi", "Hello"], ["How are you?", "Well."]]
THEN = asked(Q, f"{asked('How are you?', asked('Hi') + f' Hello{chr(10) * 2}')} Well.\n\n")


def test_alpacas_history_is_the_turns_before():
    """As LLaMA-Factory's files have it, with a system message: in order, and all replies are
    demonstrations, as there."""
    row = {"instruction": "Why is", "input": "the sky blue?", "output": A, "history": HISTORY}
    last = THEN.replace(Q, "Why is\n\nthe sky blue?")
    first, second = (last.partition(f" {reply}")[0] for reply in ("Hello", "Well."))
    expected = [(first, "Hello"), (second, "Well."), (last, A)]
    made, reasons = convert("alpaca", row)
    assert [(r["prompt"], r["response"]) for r in made] == expected and not reasons
    made, reasons = convert("hub:someone/theirs", {**row, "system": "Be kind."})
    assert [(r["prompt"], r["response"]) for r in made] == [
        (f"Be kind.\n\n{prompt}", reply) for prompt, reply in expected] and not reasons
    pair = {"instruction": Q, "input": None, "chosen": A, "rejected": B, "history": HISTORY}
    assert convert("alpaca-preference", pair) == ([{"prompt": THEN, **PAIR}], [])
    for nothing in ([], None):
        assert convert("alpaca", {"instruction": Q, "output": A, "history": nothing}) == (
            [{"prompt": Q, "response": A}], [])


@pytest.mark.parametrize("history", [["Hi", "Hello"], [["Hi"]], [["Hi", None]], [None], [{}],
                                     [["a", "b", "c"]], [["Hi", 3]], [["Hi", "Hello"], []]])
def test_a_history_that_is_not_pairs_is_counted(history):
    row = {"instruction": Q, "output": A, "chosen": A, "rejected": B, "history": history}
    for name in ("alpaca", "alpaca-preference"):
        assert convert(name, row) == ([], ["a history that is not pairs of texts"])


def test_a_history_that_is_no_list_ends_with_its_place(tmp_path):
    row = {"instruction": Q, "output": A, "history": "[]"}  # a cell of a .csv file
    assert 'in.jsonl:1: field \'history\': expected list, got "[]"' in fails(
        tmp_path, "alpaca", save(tmp_path / "in.jsonl", [row]))


@pytest.mark.parametrize("name, row", [
    ("alpaca", {"instruction": Q, "output": A}),
    ("sharegpt", {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]})])
def test_answers_that_people_disliked_are_no_demonstrations(name, row):
    """LLaMA-Factory's mark of them; TRL's is `label`."""
    assert convert(name, {**row, "kto_tag": False}) == ([], ["a completion that was disliked"])
    for liked in (True, None):
        assert convert(name, {**row, "kto_tag": liked}) == convert(name, row)


BEFORE = ("Below is an instruction that describes a task{}. Write a response that appropriately "
          "completes the request.\n\n### Instruction:\n")
WRAPPED = f"{BEFORE.format('')}{Q}\n\n### Response:\n"
WITH_INPUT = (BEFORE.format(", paired with an input that provides further context")
              + "Add.\n\n### Input:\n1, 2\n\n### Response:")


@pytest.mark.parametrize("words, prompt", [
    (WRAPPED, Q), (f"\n{WRAPPED}\n", Q), (WITH_INPUT, "Add.\n\n1, 2"),
    (WRAPPED.replace(Q, "What does\n### Response:\nmean?"), "What does\n### Response:\nmean?"),
    *((text, text.strip()) for text in (  # not Alpaca's
        f"{WRAPPED}It", WRAPPED.replace("### Response:", ""), f"See:\n{WRAPPED}",
        "Below is an instruction that describes a task."))])
@pytest.mark.parametrize("name, row, kind", [
    ("trl", {"completion": A}, "demonstrations"), ("trl", {"response": A}, "demonstrations"),
    ("trl", {"chosen": A, "rejected": B}, "rankings"), ("p3", {"completion": A}, "demonstrations"),
    ("trl", {}, "prompts"), ("prompts", {}, "prompts")])
def test_alpacas_words_around_a_prompt_go_in_every_format(tmp_path, name, row, kind, words, prompt):
    """They are a template, and ours comes around the prompt; what was taken away is counted."""
    facts, files = build(tmp_path, name, save(tmp_path / "in.jsonl", [{"prompt": words, **row}]))
    assert [r["prompt"] for r in union(files, kind)] == [prompt]
    assert facts["altered"].get(kind, 0) == (prompt != words)
    assert ("Alpaca's words around a prompt" in public.report(facts, "out")) == (prompt != words)


def test_nothing_in_alpacas_words_is_counted():
    empty = WRAPPED.replace(Q, "")
    assert convert("trl", {"prompt": empty, "completion": A}, {"prompt": Q, "completion": A}) == (
        [{"prompt": Q, "response": A}], ["empty prompt"])


def test_empty_cells_of_a_table_are_counted_in_every_format(tmp_path):
    """One of them among thousands of rows must not end the run."""
    good = {"instruction": Q, "input": None, "output": A}
    facts, files = build(tmp_path, "alpaca", save(tmp_path / "in.jsonl", [
        good, {**good, "output": None}, {**good, "instruction": None}]))
    assert union(files, "demonstrations") == [{"prompt": Q, "response": A}]
    assert facts["dropped"]["demonstrations"] == {"no value of 'output'": 1,
                                                  "no value of 'instruction'": 1}
    row = {"prompt": Q, "response": A, "helpfulness": 1}
    made, reasons = convert("helpsteer2", row, {**row, "prompt": None}, {**row, "response": B,
                                                                         "helpfulness": 3})
    assert [r["ranks"] for r in made] == [[2, 1]] and reasons == ["no value of 'prompt'"]


@pytest.mark.parametrize("row, complaint", [
    ({"prompt": Q, "chosen": A}, "no field 'rejected'"),
    ({"prompt": 3, "completion": A}, "field 'prompt': expected str or list, got 3"),
    ({"messages": ["Hi"]}, 'expected a message, an object, got "Hi"'),
    ({"prompt": Q, "completions": ["a", "b"], "ranks": [1]}, "expected one for each of the 2"),
    ({"prompt": Q, "completions": ["a", "b"], "ranks": [1, "2"]}, "expected a number for each"),
    ({"question": Q, "chosen": "It is 5.", "rejected": "It is 6."},
     "no field 'prompt': if it is one of question, say --prompt=question --chosen=chosen"),
    ({"id": 7, "trajectory": [{"from": "user", "value": Q}], "note": "", "chosen": "It is 5.",
      "rejected": "It is 6."}, "if it is one of trajectory, say --prompt=trajectory"),
    ({"x": 1}, "no field 'text'; there are x"), (["Hi"], 'expected a JSON object, got ["Hi"]'),
])
def test_senseless_trl_rows_end_with_their_place(tmp_path, row, complaint):
    error = fails(tmp_path, "trl", save(tmp_path / "in.jsonl", [row]))
    assert "in.jsonl:1: " in error and complaint in error and "\n" not in error


@pytest.mark.parametrize("name, row", [
    ("trl", {"messages": say(*CHAT, ("assistant", A))}),
    ("sharegpt", {"id": "x", "conversations": [
        {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text}
        for role, text in (*CHAT, ("assistant", A))]})])
def test_each_reply_of_a_chat_is_a_demonstration(name, row):
    """The system message stays before the first turn; the turns stay in order."""
    made, reasons = convert(name, row)
    assert made == [{"prompt": asked("Hi", "Be kind.\n\n"), "response": "Hello"},
                    {"prompt": LATER, "response": A}] and not reasons
    assert recognised(row) == name


def test_sharegpt_rows_with_a_system_message_or_a_pair():
    """As trainers that read ShareGPT's format want them, in columns beside the turns."""
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
             {"from": "human", "value": Q}]
    reply = lambda text: {"from": "gpt", "value": text}
    row = {"system": "Be kind.", "conversations": turns}
    assert convert("sharegpt", {**row, "conversations": [*turns, reply(A)]}) == (
        [{"prompt": asked("Hi", "Be kind.\n\n"), "response": "Hello"},
         {"prompt": LATER, "response": A}], [])
    pair = {**row, "chosen": reply(A), "rejected": reply(B)}
    assert convert("sharegpt", pair) == ([{"prompt": LATER, **PAIR}], [])
    assert recognised(pair) == "sharegpt"


def test_a_sharegpt_chat_that_the_assistant_begins_is_counted():
    turns = [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": Q},
             {"from": "gpt", "value": A}]
    assert convert("sharegpt", {"conversations": turns}) == (
        [], ["the assistant speaks first"] * 2)


def test_chats_that_share_a_system_message_are_no_near_copies(tmp_path):
    system = "You are a helpful assistant who always answers at length. " * 6
    chats = [{"messages": say(("system", system), ("user", f"Question {i}?"), ("assistant", A))}
             for i in range(300)]
    asked_for = [{"instruction": f"Question {i}?", "output": A, "system": system}
                 for i in range(300)]
    for name, rows in (("trl", chats), ("alpaca", asked_for)):
        facts, files = build(tmp_path / name, name, save(tmp_path / "in.jsonl", rows))
        assert len(union(files, "prompts")) == 300 and not facts["dropped"]
        assert all(len(files["prompts"][split]) > 3 for split in ("train", "valid", "test"))


@pytest.mark.parametrize("name, row", [
    ("trl", {"messages": say(("system", "Be kind."), ("user", " "), ("assistant", A))}),
    ("trl", {"prompt": say(("user", "")), "chosen": A, "rejected": B}),
    ("trl", {"prompt": say(("user", [])), "completion": A}),
    ("sharegpt", {"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": A}]}),
    ("alpaca-preference", {"instruction": "", "chosen": A, "rejected": B, "history": HISTORY}),
    ("nectar", {"prompt": " ", "answers": [{"answer": A, "rank": 1}, {"answer": B, "rank": 2}]}),
    ("helpsteer3", {"context": say(("user", "")), "response1": A, "response2": B,
                    "overall_preference": 1})])
def test_a_chat_in_which_nothing_was_asked_is_counted(name, row):
    """As an empty prompt is: the words of the template around it are none."""
    assert convert(name, row) == ([], ["empty prompt"])


# ------------------------------------------------------------------------------- K completions

def rated(text, *ratings):
    return {"response": text, "overall_score": 10.0, "annotations": {
        f"aspect {i}": {"Rating": r, "Rationale": "..."} for i, r in enumerate(ratings)}}


@pytest.mark.parametrize("name, row, expected", [
    ("ultrafeedback", {"instruction": Q, "completions": [
        rated("a", "4", "5"), rated("b", "1", "2"), rated("c", "5", "4"), rated("d", "5", "5")]},
     (Q, "abcd", [2, 4, 2, 1])),
    ("nectar", {"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "turns": 1, "answers": [
        {"answer": t, "model": t, "rank": r} for t, r in zip("abcdefg", (1.0, 2, 2, 7, 5, 4, 6))]},
     (TURN, "abcdefg", [1, 2, 2, 7, 5, 4, 6])),
    ("helpsteer3", {"context": say(*CHAT[1:]), "response1": "a", "response2": "b",
                    "overall_preference": -2}, (asked(Q, f"{asked('Hi')} Hello\n\n"), "ab",
                                                [1, 2])),
    ("helpsteer3", {"context": say(("user", Q)), "response1": "a", "response2": "b",
                    "overall_preference": 0}, (TURN, "ab", [1, 1])),
    ("shp", {"history": Q, "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 3},
     (Q, "ab", [2, 1])),
    ("shp", {"history": Q, "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
     (Q, "ab", [1, 2])),
    ("pku-saferlhf", {"prompt": Q, "response_0": "a", "response_1": "b", "better_response_id": 1,
                      "safer_response_id": 0}, (Q, "ab", [2, 1])),
    ("webgpt", {"question": {"full_text": Q}, "answer_0": "a", "score_0": -0.5, "answer_1": "b",
                "score_1": 0.5}, (Q, "ab", [2, 1])),
])
def test_rated_rows(name, row, expected):
    prompt, texts, ranks = expected
    made, reasons = convert(name, row)
    assert made == [{"prompt": prompt, "completions": [{"text": t} for t in texts],
                     "ranks": ranks}] and not reasons
    assert recognised(row) == name


@pytest.mark.parametrize("name, values", [("ratings", [3, None, 5]), ("ranks", [2, None, 1])])
def test_a_completion_without_a_rating_is_left_out(name, values):
    row = {"prompt": Q, "completions": ["a", "b", "c"], name: values}
    assert convert("trl", row) == ([{"prompt": Q, "completions": [{"text": "a"}, {"text": "c"}],
                                     "ranks": [2, 1]}], ["a completion without a rating"])
    assert convert("trl", {**row, name: [None, 1, None]}) == (
        [], ["a completion without a rating"] * 2 + ["a single completion"])


def test_what_is_not_rated_is_counted():
    made, reasons = convert("ultrafeedback", {"instruction": Q, "completions": [
        rated("a", "4"), rated("b", "N/A"), rated("c", "5")]},
        {"instruction": Q, "completions": [rated("a", "N/A"), rated("b", "3")]})
    assert [r["ranks"] for r in made] == [[2, 1]]
    assert sorted(reasons) == ["a completion without ratings"] * 2 + [
        "fewer than two rated completions"]


def test_rows_of_one_prompt_come_together(tmp_path):
    """HelpSteer2 has a response a row, OpenAI's axis files a rated summary a row; a file may hold
    comparisons, too."""
    row = lambda prompt, text, rating: {"prompt": prompt, "response": text, "helpfulness": rating,
                                        "verbosity": 1}
    made, reasons = convert("helpsteer2", row(Q, "a", 3), row(Q, "b", 4), row("Alone?", "c", 2),
                            row("Tied?", "d", 1), row("Tied?", "e", 1))
    assert [(r["prompt"], r["ranks"]) for r in made] == [(TURN, [2, 1]), (asked("Tied?"), [1, 1])]
    assert reasons == ["a rating with nothing to compare it to"]
    turns = f"Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\n{Q}"  # as in its data card
    made, reasons = convert("helpsteer2", row(turns, A, 4), row(turns, B, 0))
    assert made == [{"prompt": asked(Q, f"{asked('Hi')} Hello\n\n"), **PAIR}] and not reasons
    odd = row("Hi\n<extra_id_1>User\nHi?", "a", 1)
    assert convert("helpsteer2", odd, {**odd, "response": "b"})[1] == [
        "two turns of one side in a row"]

    post = {"id": "t3", "post": "Long story", "title": "Help", "subreddit": "tifu"}
    axis = lambda post, text, rating, worker="w": {
        "info": post, "worker": worker, "summary": {"text": f" {text}", "policy": "p", "axes": {
            "accuracy": 7, "overall": rating}}}
    rows = [axis(post, "a", 2), {"info": post, "choice": 0, "worker": "v", "summaries": [
        {"text": " x"}, {"text": " y"}]}, axis(post, "other", 7, "v"),
        axis(post, "b", 6), axis(post, "c", None), axis({**post, "id": "t4"}, "d", 5)]
    made, reasons = convert("summarize", *rows)
    assert [[c["text"] for c in r["completions"]] for r in made] == [["x", "y"], ["a", "b"]]
    assert [r["ranks"] for r in made] == [[1, 2], [2, 1]] and made[1]["labeler"] == "w"
    assert sorted(reasons) == ["a rating with nothing to compare it to"] * 2 + [
        "a summary without a rating"]
    facts, files = build(tmp_path, "summarize", save(tmp_path / "in.json", rows))
    assert facts["rows"] == 6 and len(union(files, "rankings")) == 2 and lost(
        facts, "rankings") == 3


def places(value, path=()):
    """The paths to all values in a row."""
    yield path
    keys = {dict: lambda: value, list: lambda: range(len(value))}.get(type(value), tuple)
    for key in keys():
        yield from places(value[key], (*path, key))


def changed(value, path, new):
    """A copy of a row with another value at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


ODD = [None, [], {}, " ", -1, 10.5, float("nan"), float("inf"), True, "N/A", [None], [{}],
       datetime.datetime(2020, 1, 1), b"x", decimal.Decimal("1.5"), "\u0000\u2028\U0001f600"]
ROWS = [*((name, make(Q, A, B)) for name, (make, _) in IRREGULAR.items()),
        ("trl", {"prompt": say(*CHAT), "chosen": A, "rejected": B, "system": "Be kind."}),
        ("trl", {"prompt": Q, "completions": [A, {"text": B}], "ratings": [1, 2]}),
        ("trl", {"messages": say(*CHAT, ("assistant", A))}),
        ("sharegpt", {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}],
                      "system": "Be kind."}),
        ("alpaca", {"instruction": Q, "output": A, "history": HISTORY}),
        ("ultrafeedback", {"instruction": Q, "completions": [rated(A, "1", "5"), rated(B, "2")]}),
        ("nectar", {"prompt": Q, "answers": [{"answer": A, "rank": 1}, {"answer": B, "rank": 2}]}),
        ("helpsteer2", {"prompt": Q, "response": A, "helpfulness": 3}),
        ("helpsteer3", {"context": say(("user", Q)), "response1": A, "response2": B,
                        "overall_preference": -2}),
        ("shp", {"history": Q, "human_ref_A": A, "human_ref_B": B, "labels": 0}),
        ("pku-saferlhf", {"prompt": Q, "response_0": A, "response_1": B, "better_response_id": 1,
                          "is_response_0_safe": True, "is_response_1_safe": False}),
        ("summarize", {"info": {"id": "t3", "article": Q}, "worker": "w", "summary": {
            "text": A, "axes": {"overall": 3}}}),
        ("red-team", {"transcript": f"Human: {Q}\n\nAssistant: {A}", "red_team_member_id": 7})]


@pytest.mark.parametrize("name, row", ROWS)
def test_an_odd_value_anywhere_ends_in_one_line_or_is_counted(tmp_path, name, row):
    """Whatever a table can hold, in any field: a record that can be written, a reason, or a line
    with the place."""
    new = spool.NewRecords(tmp_path)
    for path in places(row):
        for odd in ODD:
            try:
                items = list(public.convert(name, [("file:1", changed(row, path, odd))]))
            except SystemExit as error:
                assert str(error).startswith("error: file:1: ") and "\n" not in str(error)
                continue
            assert items or (path, odd) == ((), []), (path, odd)  # a list without attempts
            for kind, item in items:
                if isinstance(item, dict):
                    new.add(kind, "train", item)
    new.close()
    for file in tmp_path.iterdir():
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            json.loads(line, parse_constant=pytest.fail)  # no NaN, which JSON does not have


def test_red_team_attempts_are_prompts_with_their_turns(tmp_path):
    """Published as a list in one line of a .jsonl file, or over many lines."""
    attempts = [{"transcript": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                 "red_team_member_id": 7, "rating": 1.0},
                {"transcript": "\n\nHuman: nobody answers", "red_team_member_id": 8}]
    first = "Human: a\n\nAssistant:"
    expected = [{"prompt": first, "author": "7"},
                {"prompt": f"{first} b\n\nHuman: c\n\nAssistant:", "author": "7"}]
    assert convert("red-team", attempts) == (expected, ["no reply"])
    for indent in (None, 1):
        file = tmp_path / "in.jsonl"
        file.write_text(json.dumps(attempts, indent=indent))
        facts, files = build(tmp_path / str(indent), "red-team", file)
        assert union(files, "prompts") == expected and facts["dropped"] == {
            "prompts": {"no reply": 1}}


@pytest.mark.parametrize("name", ["hh-online", "hh-sampled"])
def test_further_parts_of_hh_have_its_format(name):
    assert DATASETS[name][1] is DATASETS["hh-rlhf"][1]
    assert DATASETS[name][3][0].startswith("helpful")


# ---------------------------------------------------------------------------- columns and files

def test_columns_are_named_by_flags(tmp_path):
    rows = [{"question": f"{Q} {i}", "good": A, "bad": B, "prompt": 3} for i in range(5)]
    file = save(tmp_path / "in.jsonl", rows)
    facts, files = build(tmp_path, "trl", file, prompt="question", chosen="good", rejected="bad")
    assert {r["prompt"] for r in union(files, "rankings")} == {f"{Q} {i}" for i in range(5)}
    facts, files = build(tmp_path / "b", "trl", file, prompt="question", response="bad", most=3)
    assert facts["rows"] == 3 and {r["response"] for r in union(files, "demonstrations")} == {B}
    assert "no field 'answer'; there are question, good" in fails(
        tmp_path / "c", "trl", file, prompt="answer", response="bad")
    assert "--prompt: only --name=trl and hub:" in public.Settings("alpaca", prompt="x").problem()


@pytest.mark.parametrize("name, row", [
    ("alpaca", {"instruction": Q, "input": "", "output": A, "text": f"Below is ... {Q} ... {A}"}),
    ("alpaca", {"instruction": Q, "input": "", "output": A, "prompt": f"Below is ... {Q}"}),
    ("dolly", {"instruction": Q, "context": "", "response": A, "category": "open_qa"}),
    ("dolly", {"instruction": "Why is", "input": "the sky blue?", "response": A}),
    ("alpaca", {"instruction": "Why is", "context": "the sky blue?", "output": A}),
    ("self-instruct", {"instruction": Q, "instances": [{"input": "", "output": A}]}),
    ("flan", {"inputs": Q, "targets": A}), ("trl", {"prompt": Q, "response": A})])
def test_demonstrations_are_recognised_by_their_columns(name, row):
    """Whatever columns stand beside them, such as the `text` of tatsu-lab/alpaca."""
    assert recognised(row) == name
    made, reasons = convert("hub:someone/theirs", row)
    assert [(" ".join(r["prompt"].split()), r["response"]) for r in made] == [(Q, A)]
    assert not reasons


def test_a_format_that_is_not_known_says_what_to_name():
    with pytest.raises(public.Bad, match="name its columns by --prompt=.*there are a, b$"):
        recognised({"a": 1, "b": 2})
    with pytest.raises(public.Bad, match="--name=openassistant reads the trees"):
        recognised({"message_id": "x", "parent_id": None, "text": "Hi", "role": "prompter"})


def written(path, rows):
    """The same rows as a file of the kind that its name says."""
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, rows[0])
            out.writeheader()
            out.writerows(rows)
        return path
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install datasets")
    table = arrow.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        import pyarrow.parquet
        pyarrow.parquet.write_table(table, path)
    else:
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_tables_are_read_row_by_row(tmp_path, suffix, monkeypatch):
    if suffix != ".csv":
        pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rows = [{"prompt": f"{Q} {i}\nSecond line, \"quoted\"", "chosen": A, "rejected": f"{B} {i}"}
            for i in range(20)]
    facts, files = build(tmp_path, "trl", written(tmp_path / f"in{suffix}", rows), most=15)
    assert facts["rows"] == 15
    assert {r["prompt"] for r in union(files, "rankings")} == {r["prompt"] for r in rows[:15]}
    (tmp_path / f"bad{suffix}").write_bytes(b"PAR1 no table")
    error = fails(tmp_path / "b", "trl", tmp_path / f"bad{suffix}")
    assert "error: " in error and "\n" not in error


def test_every_cell_of_a_csv_file_is_text(tmp_path):
    """Answers that look like numbers, or like missing values, stay what they are; an empty cell is
    none. What says which completions were disliked, or preferred, is no text."""
    answers = ["4", "007", "1.50", "NA", "None", "null", "nan", "True", "", 'The "baker", \n\nx']
    rows = [{"prompt": f"{Q} {i}", "completion": a} for i, a in enumerate(answers)]
    facts, files = build(tmp_path, "trl", written(tmp_path / "in.csv", rows))
    assert {r["prompt"]: r["response"] for r in union(files, "demonstrations")} == {
        row["prompt"]: row["completion"] for row in rows if row["completion"]}
    assert facts["dropped"] == {"rows": {"no value of 'completion'": 1}}
    assert len(union(files, "prompts")) == len(rows)
    judged = [{"prompt": f"{Q} {i}", "completion": A, "label": i % 2 == 0} for i in range(6)]
    facts, files = build(tmp_path / "b", "trl", written(tmp_path / "judged.csv", judged))
    assert facts["dropped"]["rows"] == {"a completion that was disliked": 3}
    voted = [{"history": Q, "human_ref_A": "a", "human_ref_B": "b", "labels": 0}]
    _, files = build(tmp_path / "c", "shp", written(tmp_path / "voted.csv", voted))
    assert [r["ranks"] for r in union(files, "rankings")] == [[2, 1]]


@pytest.mark.parametrize("text, complaint", [
    ("prompt,completion\na,b\nc\n", "in.csv:3: 1 cells where the first line names 2 columns"),
    ('prompt,completion\na,"b\n', "in.csv:2: not CSV: "),
    ("prompt,completion,label\na,b,maybe\n", "in.csv:2: not JSON"),
    ("", "0 rows"), ("prompt,completion\n\xe9,\ud800", "not UTF-8")])
def test_a_csv_file_that_is_damaged_is_one_line(tmp_path, text, complaint):
    (tmp_path / "in.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    error = fails(tmp_path, "trl", tmp_path / "in.csv")
    assert complaint in error and "\n" not in error


def test_a_dataset_of_the_hub_is_streamed(tmp_path, monkeypatch):
    """Which the library does (test_hub_datasets.py); here it is told what it is asked for, and what
    it answers."""
    library = pytest.importorskip("datasets", reason="datasets is not installed: pip install "
                                  "datasets")
    asked_for, taken = [], []

    def load_dataset(path, **how):
        asked_for.append((path, how))
        for i in range(10**9):  # more than any memory
            taken.append(i)
            yield {"prompt": f"{Q} {i // 2}", "response": f"{A} {i}", "helpfulness": i % 5}

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "fetch", lambda *_: None)  # it is there
    facts, files = build(tmp_path, "hub:someone/theirs", "", subset="en", part="test", most=8,
                         prompt="prompt", response="response")
    assert asked_for == [("someone/theirs", {"split": "test", "name": "en", "streaming": True})]
    assert facts["rows"] == 8 == len(union(files, "demonstrations")) == len(taken)
    facts, files = build(tmp_path / "b", "hub:nvidia/HelpSteer2", "", most=7)  # by its fields
    assert [r["ranks"] for r in sorted(union(files, "rankings"), key=lambda r: r["prompt"])] == [
        [2, 1], [2, 1], [1, 2]]
    assert facts["dropped"]["rankings"] == {"a rating with nothing to compare it to": 1}


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "datasets", None)
    error = fails(tmp_path, "hub:someone/theirs", "")
    assert "needs datasets: pip install datasets==" in error

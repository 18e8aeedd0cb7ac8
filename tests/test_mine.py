"""Your own policy: from the rankings of the labelling page to the report of before and after."""
import itertools
import json
import re

import pytest

from data import records
from demo import python
from labels import items, mine
from labels.store import Store
from test_page import settings


def test_a_policy_moved_towards_a_pair_by_hand():
    rankings = [{"ranks": [1, 2, 2]}, {"ranks": [2, 1]}, {"ranks": [1, 1]}]
    before, after = [[-1, -2, -3], [-1, -1], [0, 0]], [[-2, -4, -3.5], [-1, -2], [5, 1]]
    expected = []  # the change of log p(better) - log p(worse), pair by pair
    for r, b, a in zip(rankings, before, after):
        for i, j in itertools.permutations(range(len(b)), 2):
            if r["ranks"][i] < r["ranks"][j]:
                expected.append((a[i] - a[j]) - (b[i] - b[j]) > 0)
    assert expected == [True, False, False]
    assert mine.moved_towards(before, after, rankings) == (1 / 3, 3)
    assert mine.moved_towards([], [], []) == (None, 0)


def test_beta_and_unfinished_follow_the_scores():
    assert mine.scaled(0.03, 0.0, 1.0) == (0.03, -4.0)
    assert mine.scaled(0.03, -4.0, 7.0) == (0.21, -18.0)


def answer(text, prompt="p"):
    return {"prompt": prompt, "completions": [{"text": text, "ended": True}]}


def test_words_that_changed_most_come_first():
    before = [answer(t) for t in ("a hen", "a hen hen", "the cow", "a cow")]
    after = [answer(t) for t in ("a hen", "a pig", "a pig", "a Pig")]
    assert mine.changed_words(before, after, 3) == [("pig", 0, 0.75), ("cow", 0.5, 0),
                                                    ("a", 0.75, 1.0)]


def test_marked_words_give_both_texts_back():
    before, after = "The hen <b>is</b> red.  Glad & happy.", "The hen is blue."
    left, right = mine.marked(before, after)
    plain = lambda text: re.sub("</?(ins|del)>", "", text)
    assert plain(left) == mine.html.escape(before) and plain(right) == mine.html.escape(after)
    assert "<ins>" in right and "<del>" in left and "<b>" not in left + right


def test_logprobs_are_those_of_the_model(demo, monkeypatch):
    from data.batches import encode_prompt, encode_response
    from helpers import sequence_logprobs
    from model import GPT
    from runtime.checkpoint import load
    path = str(demo.folder / "out" / "sft")
    rankings = demo.records("rankings_valid", "ranking")[:3]
    model, tokenizer, _ = load(path, {"GPT": GPT}, "")
    for ranking, own in zip(rankings, mine.logprobs(path, rankings)):
        prompt = encode_prompt(tokenizer, ranking["prompt"])
        for c, logprob in zip(ranking["completions"], own):
            response = encode_response(tokenizer, c["text"], c["ended"])
            expected = sum(sequence_logprobs(model, prompt + response)[len(prompt) - 1:])
            assert abs(logprob - expected) < 1e-3


def rank_all(folder, rows, worth):
    """Fill the page's database in a folder, and rank everything by worth(text)."""
    folder.mkdir(parents=True)
    store = Store(folder / "labels.db")
    store.add_items(items.make_items(rows, settings(valid=0.3))[0])
    store.add_labeler("owner", "owner")
    me = store.one("SELECT * FROM labeler")
    while number := store.next_for(me):
        item = store.assignment(number, me)["item"]
        outputs = store.outputs(item, me)
        order = sorted({worth(o["text"]) for o in outputs}, reverse=True)
        store.answer(number, "ranking", {
            "assignment": number, "note": "", "seconds": 1.0, "ranks": json.dumps(
                {o["id"]: order.index(worth(o["text"])) + 1 for o in outputs})}, True)


def test_from_rankings_to_the_report(demo):
    rank_all(demo.folder / "out" / "mine" / "labels", demo.records("completions_valid"),
             lambda text: -len(text))
    output = python(demo.folder, "-m", "labels.mine", "--epochs=1", "--iterations=1",
                    "--prompts=8", "--policy=out/ppo-ptx")
    folder = demo.folder / "out" / "mine"
    facts = json.loads((folder / "report.json").read_text())
    before, after = (records.read(folder / f"answers_{n}.jsonl", "to label")
                     for n in ("before", "after"))
    tests = demo.records("prompts_test")
    assert [r["prompt"] for r in before] == [r["prompt"] for r in after] == [
        p["prompt"] for p in tests[:8]]
    assert facts["rankings"] > 5 and facts["heldout"] > 0 and facts["heldout_pairs"] > 0
    assert 0 <= facts["moved_towards"] <= 1 and 0 <= facts["rm_accuracy"] <= 1
    length = lambda rows: sum(len(re.findall(r"[\w']+", mine.text_of(r))) for r in rows) / 8
    assert facts["words"] == [length(before), length(after)] and None not in facts["gold"]
    changed = [mine.text_of(a) != mine.text_of(b) for a, b in zip(before, after)]
    assert facts["changed"] == sum(changed) / 8
    report = (folder / "report.html").read_text()
    assert report.count("<tr>") == 2 + 8 + len(mine.summary(facts))
    for command in ("python reward.py --init=out/rm", "python ppo.py --init=out/ppo-ptx"):
        assert command in output


def test_without_rankings_there_is_one_line(tmp_path):
    s = mine.Settings(labels=str(tmp_path / "labels"))
    with pytest.raises(SystemExit, match="run `make label` first"):
        mine.your_rankings(s)
    rank_all(tmp_path / "labels", [{"prompt": f"p{i}", "completions": [
        {"text": "x"}, {"text": "y"}]} for i in range(30)], lambda text: 0)
    with pytest.raises(SystemExit, match="has 0 rankings to train on .* at least 10"):
        mine.your_rankings(s)

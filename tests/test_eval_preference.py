"""evals/preference.py: win rates, Likert scores and flags by hand, and a whole run."""
import json
import random

import pytest
import torch

import evaluate
from data import records
from data.tokenizer import load_tokenizer
from data.toy.tasks import good, make
from data.toy.town import RUDE, Town
from evals import preference, public
from evals.preference import by_prompt, from_rankings, is_closed, reward_scores, versus, won
from helpers import one_process, tiny, tiny_scalar
from labels import simulated
from runtime.checkpoint import save
from sft import Settings
from test_bad_input import another_tokenizer


def test_a_ranking_by_hand():
    # a at 1 and 3, b at 2: one win and one loss
    assert won([1, 2, 3], ["a", "b", "a"], "a", "b") == 0.5
    assert won([1, 1], ["a", "b"], "a", "b") == 0.5 and won([1, 2], ["a", "b"], "b", "a") == 0
    assert won([1, 2], ["a", "a"], "a", "b") is None


def test_a_prompt_counts_once():
    """However many labelers ranked it."""
    assert by_prompt([("p", 1.0), ("q", 0.0), ("p", 0.0), ("p", 0.5), ("r", None)]) == [0.5, 0.0]


def test_pairs():
    assert versus(["x", "y", "z"], "y/x,q/x") == [("y", "x")]
    assert versus(["x", "y", "z"], "a/b") == [("x", "y"), ("x", "z"), ("y", "z")]
    paths = ["out/sft", "out/ppo", "z"]  # as labels.sample names the models
    assert versus(paths, "out/ppo/out/sft,z/out/sft") == [("out/ppo", "out/sft"), ("z", "out/sft")]


def test_closed_domain_by_mark_or_category():
    assert is_closed({"marks": {"closed_domain": True}, "category": "chat"})
    assert not is_closed({"marks": {"closed_domain": False}, "category": "summarization"})
    assert is_closed({"category": "extract"}) and not is_closed({"category": "chat"})
    assert not is_closed({})


def ranked(prompt, ranks, likert, invents, **more):
    return {"prompt": prompt, "ranks": ranks, "likert": likert, "completions": [
        {"text": "x", "model": "sft"}, {"text": "y", "model": "ppo"}],
        "flags": [{"hallucination": invents[0], "violent": False},
                  {"hallucination": invents[1], "violent": True}], **more}


def test_a_file_of_rankings_by_hand(tmp_path):
    records.write(tmp_path / "r.jsonl", [
        ranked("p", [2, 1], [3, 6], [True, False], category="extract"),
        ranked("p", [1, 1], [4, 4], [True, True], category="extract"),
        ranked("q", [1, 2], [5, 2], [True, True], category="chat")])
    out = {(who, what): numbers for who, what, numbers in
           from_rankings(tmp_path / "r.jsonl", "ppo/sft")}
    assert out["ppo vs sft", "win_rate"] == [0.75, 0.0]
    assert out["ppo", "likert"] == [5.0, 2.0] and out["sft", "likert"] == [3.5, 5.0]
    assert out["sft", "hallucination"] == [1.0] and out["ppo", "hallucination"] == [0.5]
    assert out["ppo", "flag: violent"] == [1.0, 1.0] and out["sft", "flag: violent"] == [0.0, 0.0]
    records.write(tmp_path / "n.jsonl", [
        {"prompt": "p", "ranks": [1, 2], "completions": [{"text": "x"}, {"text": "y"}]}])
    with pytest.raises(SystemExit, match="no completion has a"):
        from_rankings(tmp_path / "n.jsonl", "")


def test_the_labelling_pages_records(tmp_path):
    """Its evaluation.jsonl: rankings, or ratings alone; two models said the same; only flags that
    were asked are there; the prompt's marks say whether it is closed-domain."""
    said = lambda *texts: [{"text": t, "model": f"out/{m}", "ended": True}
                           for t, m in zip(texts, ("sft", "ppo", "base"))]
    asked = lambda *x: [{"hallucination": v, "violent": False} for v in x]
    who = {"labeler": "Ann", "group": "train", "priority": "truthful", "seconds": 9.0}
    records.write(tmp_path / "evaluation.jsonl", [
        {"prompt": "p", "completions": said("x", "y", "x"), "ranks": [2, 1, 2], "note": "",
         "likert": [3, 7, 3], "flags": asked(True, False, True), "notes": ["", "", ""],
         "marks": {"closed_domain": True}, **who},
        {"prompt": "p", "completions": said("x", "y", "x"), "ranks": [1, 1, 1], "note": "",
         "likert": [5, 5, 5], "flags": asked(False, False, False), "notes": ["", "", ""],
         "marks": {"closed_domain": True}, **who, "labeler": "Ben"},
        {"prompt": "q", "completions": said("x", "y", "z"), "likert": [1, 2, 4],
         "flags": [{"violent": True}, {"violent": False}, {"violent": False}], "marks": {}, **who},
        {"prompt": "r", "completions": said("x", "y", "z"), "ranks": [1, 3, 2], **who}])
    out = {(of, what): numbers for of, what, numbers in
           from_rankings(tmp_path / "evaluation.jsonl", "")}
    assert out["out/ppo vs out/sft", "win_rate"] == [0.75, 0.0]  # two labelers, a mean; then r
    assert out["out/base vs out/sft", "win_rate"] == [0.5, 0.0]  # the same text is a tie
    assert out["out/sft", "likert"] == [4, 1] and out["out/ppo", "likert"] == [6, 2]
    assert out["out/sft", "hallucination"] == [0.5] and out["out/ppo", "hallucination"] == [0.0]
    assert out["out/sft", "flag: violent"] == [0.0, 1.0]


@pytest.mark.parametrize("changes, complaint", [
    (dict(ranks=[1]), "record 1: field 'ranks': expected a whole number from 1 .best. for each of"),
    (dict(likert=[3, 8]), "field 'likert': expected a whole number from 1 to 7"),
    (dict(flags=[{}, {"violent": "no"}]), "field 'flags': expected an object of true and false")])
def test_judgements_that_do_not_fit_are_told_at_once(changes, complaint, tmp_path):
    records.write(tmp_path / "r.jsonl", [{**ranked("p", [2, 1], [3, 6], [True, False]), **changes}])
    with pytest.raises(SystemExit, match=complaint):
        from_rankings(tmp_path / "r.jsonl", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models, a reward model and prompts."""
    folder = tmp_path_factory.mktemp("preference")
    (folder / "t.tiktoken").write_bytes(another_tokenizer(280))
    tokenizer = load_tokenizer("t.tiktoken", folder)
    for name, seed in (("one", 1), ("two", 2)):
        save(folder / name, tiny(seed=seed, loud=1.0, vocab_size=tokenizer.size, block_size=48),
             tokenizer, Settings())
    save(folder / "rm", tiny_scalar(vocab_size=tokenizer.size, block_size=64), tokenizer,
         Settings())
    records.write(folder / "prompts.jsonl", [{"prompt": "bold " * (1 + 40 * (i == 6)) + str(i)}
                                             for i in range(7)])
    return folder


def test_the_reward_model_reads_each_answer_alone(folder):
    from runtime.checkpoint import load
    from model import ScalarGPT
    model, tokenizer, _ = load(folder / "rm", {"ScalarGPT": ScalarGPT}, "")
    prompts = ["a bold", "jumps " * 5, "x " * 80]
    answers = [("fox", True), ("", False), ("y", True)]
    got = reward_scores(model, tokenizer, prompts, answers, one_process(), 4096)
    for prompt, (text, ended), score in zip(prompts[:2], answers, got):
        ids = tokenizer.encode(f"{prompt.rstrip()}\n") + tokenizer.encode(text)
        ids += [tokenizer.eos] * ended
        with torch.no_grad():
            assert score == pytest.approx(float(model(torch.tensor([ids]))[0, -1]), abs=1e-4)
    assert got[2] is None
    for rank in range(2):  # each of two ranks scores one of the two that fit
        world = one_process()
        world.rank, world.size, world.gather = rank, 2, lambda rows: rows
        own = reward_scores(model, tokenizer, prompts, answers, world, 4096)
        assert own[rank] == pytest.approx(got[rank], abs=1e-4)
        assert own[1 - rank] is None is own[2]


def test_two_models_are_compared(folder, tmp_path, monkeypatch, capsys):
    """Each answers every prompt; who has the higher score wins; b against a is the rest. A second
    run takes the answers from the disk."""
    s = evaluate.Settings(
        suite="public", tasks="preference", prompts=str(folder / "prompts.jsonl"),
        models=f"a={folder}/one,b={folder}/two", versus="a/b,b/a", rm=str(folder / "rm"),
        out=str(tmp_path), max_new_tokens=8, dtype="float32")
    public.run(s, one_process())
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    rows = {(r["model"], r["metric"]): r for r in results}
    assert set(rows) == {("a", "score"), ("b", "score"), ("a vs b", "win_rate"),
                         ("b vs a", "win_rate")}
    one, other = rows["a vs b", "win_rate"], rows["b vs a", "win_rate"]
    assert one["n"] == 6 and one["value"] + other["value"] == pytest.approx(1)
    assert one["low"] <= one["value"] <= one["high"] and one["prompt"] == "reward"
    assert "a, preference: 1 prompts do not fit" in (tmp_path / "report.md").read_text()
    assert "| preference | reward | win_rate |" in (tmp_path / "report.md").read_text()
    monkeypatch.setattr(preference, "answer", None)
    public.run(s, one_process())
    assert json.loads((tmp_path / "results.json").read_text())["results"] == results


def test_the_reward_models_order_is_the_win_rate(folder, monkeypatch):
    """Scores given: a wins two, ties one, loses one; one answer did not fit."""
    scores = {"a": [3.0, 2.0, 1.0, 0.0, None], "b": [1.0, 1.0, 1.0, 1.0, 1.0]}
    given = iter(scores.values())
    monkeypatch.setattr(preference, "reward_scores", lambda *args: next(given))
    s = evaluate.Settings(suite="public", rm=str(folder / "rm"), versus="a/b")
    out = preference.comparing(s, [{"prompt": "p"}] * 5, one_process())(dict(a=[], b=[]))
    assert out[-1] == ("a vs b", "win_rate", [1.0, 1.0, 0.5, 0.0, None])


def test_the_town_judges_by_hand(folder, tmp_path, monkeypatch, capsys):
    """--judge=town, from settings to results.json. The labelers have no taste of their own, and
    their noise is small beside the truth."""
    town, labelers = Town(0), simulated.pool(3)[1]
    for labeler in labelers:
        labeler.taste, labeler.generous = 0 * labeler.taste, 0.0
    monkeypatch.setattr(preference, "pool", lambda seed: ([], labelers))
    pet = town.facts["Anna"]["pet"]
    true, false = (f"Anna has a {p}." for p in (pet, "hen" if pet != "hen" else "goat"))
    ask = {"prompt": "Which pet does Anna have?", "category": "open_qa",
           "task": {"type": "ask", "name": "Anna", "attribute": "pet", "brief": False}}
    text = "Anna went home. Anna bought some tea."
    pick = {"prompt": f"Which food is in this text? {text}", "category": "extract",
            "task": {"type": "pick", "value": "tea", "text": text}}
    said = {"a": [true, true, "bread.", true, None], "b": [false, true, "tea.", RUDE[0], true]}
    given = iter([[t and (t, True) for t in own] for own in said.values()])
    monkeypatch.setattr(preference, "answer", lambda *args: next(given))
    again = [{**ask, "prompt": ask["prompt"] + "!" * i} for i in range(4)]  # one counts once
    records.write(tmp_path / "prompts.jsonl", [*again[:2], pick, *again[2:]])
    records.write_json(tmp_path / "labelers.json", {
        "seed": 3, "sharpness": 0.01, "agreement": 0.73, "heldout_sharpness": 1000.0,
        "heldout_agreement": 0.77})  # held-out labelers judge, not those of training
    records.write_json(tmp_path / "world.json", {"seed": 0})
    s = evaluate.Settings(
        suite="public", tasks="preference", prompts=str(tmp_path / "prompts.jsonl"), judge="town",
        models=f"a={folder}/one,b={folder}/two", versus="a/b", data=str(tmp_path),
        out=str(tmp_path / "out"), dtype="float32")
    public.run(s, one_process())
    rows = {(r["model"], r["metric"]): r for r in
            json.loads((tmp_path / "out" / "results.json").read_text())["results"]}
    # won, tied, lost, won; the last has one answer only
    rate = rows["a vs b", "win_rate"]
    assert (rate["value"], rate["n"], rate["prompt"]) == (2.5 / 4, 4, "town")
    assert 0 <= rate["low"] < rate["value"] < rate["high"] <= 1
    # right: 6.3 of 7 for a perfect answer, worth 0.7 + 1.5 + 1.1 + 0.6; this one has no courtesy,
    # and breaks no constraint, as none is set: 6.3 - 1.2 * 0.6 = 5.58. False, rude, made up: 1
    assert (rows["a", "likert"]["value"], rows["a", "likert"]["n"]) == ((6 + 6 + 1 + 6) / 4, 4)
    assert (rows["b", "likert"]["value"], rows["b", "likert"]["n"]) == ((1 + 6 + 6 + 1 + 6) / 5, 5)
    both = lambda metric: [(r["value"], r["n"]) for r in (rows[name, metric] for name in "ab")]
    assert both("hallucination") == [(1.0, 1), (0.0, 1)]  # one prompt is closed-domain
    assert both("flag: rude") == [(0.0, 4), (1 / 5, 5)]
    assert both("flag: false") == [(0.0, 4), (1 / 5, 5)]
    assert both("flag: constraint") == [(None, 0)] * 2  # no prompt sets one
    assert "with the flag false (claims something false)" in rows["a", "flag: false"]["definition"]


def test_who_knows_everything_is_always_preferred():
    """To one that is rude, by every labeler of the town; to itself half. It makes nothing up."""
    rng, town = random.Random(1), Town(0)
    drawn = [make(rng, town, category) for category in ("open_qa", "extract", "closed_qa") * 5]
    prompts = [{"prompt": prompt, "task": task, "marks": {"closed_domain": task["type"] != "ask"}}
               for task, prompt in drawn]
    well = [(good(rng, town, task), True) for task, _ in drawn]
    facts = {"seed": 3, "heldout_sharpness": 20.0}
    s = evaluate.Settings(suite="public", judge="town", versus="")
    answers = {"a": well, "b": [(RUDE[0], True)] * 15, "c": well}
    out = {(of, what): numbers for of, what, numbers in
           preference.by_town(s, town, facts, prompts, answers)}
    assert out["a vs b", "win_rate"] == [1.0] * 15 and out["b vs c", "win_rate"] == [0.0] * 15
    assert out["a vs c", "win_rate"] == [0.5] * 15
    assert out["a", "hallucination"] == [0.0] * 10  # of the 10 prompts that give a text


def test_who_answers_by_lot_wins_half():
    """Two models that are right or rude by the toss of a coin: 4 standard errors of 200 prompts,
    where half of the pairs tie."""
    rng, town = random.Random(2), Town(0)
    drawn = [make(rng, town, "open_qa") for _ in range(200)]
    prompts = [{"prompt": f"{i} {prompt}", "task": task} for i, (task, prompt) in enumerate(drawn)]
    toss = lambda: [(good(rng, town, task) if rng.random() < 0.5 else RUDE[0], True)
                    for task, _ in drawn]
    s = evaluate.Settings(suite="public", judge="town", versus="", votes=1)
    out = {(of, what): numbers for of, what, numbers in preference.by_town(
        s, town, {"seed": 3, "heldout_sharpness": 20.0}, prompts, {"a": toss(), "b": toss()})}
    wins = out["a vs b", "win_rate"]
    assert set(wins) == {0.0, 0.5, 1.0} and abs(sum(wins) / 200 - 0.5) < 4 * (0.125 / 200) ** 0.5


def test_rankings_alone_need_no_model(folder, tmp_path, capsys):
    records.write(tmp_path / "r.jsonl", [ranked("p", [2, 1], [3, 6], [True, False])])
    s = evaluate.Settings(suite="public", tasks="preference", rankings=str(tmp_path / "r.jsonl"),
                          models="nothing=out/nowhere", out=str(tmp_path / "out"))
    public.run(s, one_process())
    assert "ppo vs sft" in (tmp_path / "out" / "report.md").read_text()
    last = capsys.readouterr().out.splitlines()[-1]  # no model said anything
    assert last.endswith(f"numbers: {tmp_path}/out/results.json")

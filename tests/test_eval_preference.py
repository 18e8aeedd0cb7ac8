"""evals/preference.py: win rates, Likert scores and flags by hand, and a whole run."""
import json

import pytest
import torch

import evaluate
from data import records
from data.tokenizer import load_tokenizer
from evals import preference, public
from evals.preference import by_prompt, from_rankings, is_closed, reward_scores, versus, won
from helpers import one_process, tiny, tiny_scalar
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


def test_rankings_alone_need_no_model(folder, tmp_path, capsys):
    records.write(tmp_path / "r.jsonl", [ranked("p", [2, 1], [3, 6], [True, False])])
    s = evaluate.Settings(suite="public", tasks="preference", rankings=str(tmp_path / "r.jsonl"),
                          models="nothing=out/nowhere", out=str(tmp_path / "out"))
    public.run(s, one_process())
    assert "ppo vs sft" in (tmp_path / "out" / "report.md").read_text()

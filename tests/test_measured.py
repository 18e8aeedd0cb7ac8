"""A number that a script tells was measured: of nothing there is no mean, no share, no loss. And
what is held out to measure is read before the first step, so that it never costs the weights."""
import json
import shutil

import numpy as np
import pytest

import evaluate
import sft
from data import records
from data.batches import WithoutPrompt
from data.toy import tasks, town
from demo import FLAGS, python
from evals import report
from evals import town as eval_town
from helpers import one_process, tiny
from labels import simulated
from model import GPTConfig, ScalarGPT
from runtime.checkpoint import load, save
from test_training import sft_settings


def strict(path):
    """The JSON of a file, or of its lines; JSON has no word for NaN."""
    def no(word):
        raise AssertionError(f"{path} says {word}")

    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return [json.loads(line, parse_constant=no) for line in lines]


@pytest.fixture
def data(demo, tmp_path):
    """A copy of the toy's files, to be changed."""
    return shutil.copytree(demo.folder / "out" / "toy", tmp_path / "data")


LONG = {"prompt": "Who?", "response": "who is who " * 100}
TIED = {"prompt": "Who?", "completions": [{"text": "a"}, {"text": "b"}], "ranks": [1, 1]}


@pytest.mark.parametrize("rows", [[], [LONG]])
@pytest.mark.parametrize("stage", ["sft", "init"])
def test_no_validation_loss_without_a_demonstration(demo, data, tmp_path, stage, rows):
    """Not 0.000, and not the loss of the text that --preset=init mixes in."""
    records.write(data / "demonstrations_valid.jsonl", rows)
    said = python(demo.folder, *FLAGS[stage], f"--data={data}", f"--out={tmp_path}/out")
    assert "validation loss by epoch not measured" in said
    (facts,) = strict(tmp_path / "out" / "checkpoint.json")
    assert [set(h) for h in facts["history"]] == [{"epoch"}] * 2
    assert not any("valid" in line for line in strict(tmp_path / "out" / "log.jsonl"))


def test_no_validation_loss_without_text(demo, data, tmp_path):
    records.write(data / "text_valid.jsonl", [])
    said = python(demo.folder, *FLAGS["base"], f"--data={data}", f"--out={tmp_path}/out")
    assert "validation loss by epoch not measured" in said
    records.write(data / "text_train.jsonl", [{"text": ""}])
    with pytest.raises(AssertionError, match="has no text: all its documents are empty"):
        python(demo.folder, *FLAGS["base"], f"--data={data}", f"--out={tmp_path}/none")


def test_the_loss_of_no_row_is_none():
    for rows in ([], WithoutPrompt([])):
        assert sft.evaluate_loss(tiny(), rows, sft_settings(), one_process()) is None


def test_a_reward_model_without_a_pair_to_measure_is_kept(demo, data, tmp_path):
    """No line at all, and ties alone: as data.public and labelers leave them."""
    records.write(data / "rankings_valid.jsonl", [])
    records.write(data / "rankings_valid_heldout.jsonl", [{**TIED, "expected": [0.5, 0.1]}])
    said = python(demo.folder, *FLAGS["reward"], f"--data={data}", f"--out={tmp_path}/out")
    assert "held-out accuracy not measured" in said
    (facts,) = strict(tmp_path / "out" / "checkpoint.json")
    assert facts["accuracy"] == {}


def test_a_field_of_the_same_name_is_no_utility(demo, data, tmp_path):
    """`expected` may be anything in rankings that no simulation wrote."""
    rows = demo.records("rankings_valid", "ranking")
    records.write(data / "rankings_valid.jsonl", [{**r, "expected": "the first"} for r in rows])
    python(demo.folder, *FLAGS["reward"], f"--data={data}", f"--out={tmp_path}/out")
    (facts,) = strict(tmp_path / "out" / "checkpoint.json")
    whole = demo.checkpoint("rm")["accuracy"]
    assert facts["accuracy"] == {k: v for k, v in whole.items() if k != "ceiling"}


def smaller(demo, folder, block_size):
    """The demo's reward model with a shorter context."""
    model, tokenizer, _ = load(demo.folder / "out" / "rm", {"ScalarGPT": ScalarGPT}, "")
    own = ScalarGPT(GPTConfig(**{**vars(model.config), "block_size": block_size}))
    weights = model.state_dict()
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:block_size]
    own.load_state_dict(weights)
    save(folder, own, tokenizer, sft.Settings())
    return folder


CHOICE = [*FLAGS["sft"], "--max_new_tokens=8"]


@pytest.mark.parametrize("stage", [CHOICE, FLAGS["ppo"]], ids=["sft", "ppo"])
def test_a_reward_model_with_no_room_is_refused_before_the_first_step(demo, tmp_path, stage):
    flags = [*stage, f"--reward={smaller(demo, tmp_path / 'rm', 8)}", f"--out={tmp_path}/out"]
    with pytest.raises(AssertionError, match="leaves no room for a prompt in the smallest context"):
        python(demo.folder, *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", [CHOICE, FLAGS["ppo"]], ids=["sft", "ppo"])
def test_a_reward_model_with_a_smaller_context_reads_what_fits(demo, tmp_path, stage):
    """The prompts that leave both models room for a response; the others are counted."""
    tokenizer = load(demo.folder / "out" / "rm", {"ScalarGPT": ScalarGPT}, "")[1]
    split = "valid" if stage is CHOICE else "train"
    lengths = sorted(len(tokenizer.encode(r["prompt"].rstrip() + "\n"))
                     for r in demo.records(f"prompts_{split}"))
    room = lengths[len(lengths) // 2]
    said = python(demo.folder, *stage, f"--reward={smaller(demo, tmp_path / 'rm', room + 8)}",
                  f"--out={tmp_path}/out")
    dropped = sum(n > room for n in lengths)
    assert dropped and f"{dropped} of {len(lengths)} prompts are dropped" in said
    assert (tmp_path / "out" / "checkpoint.json").exists()


def test_facts_that_are_no_numbers_are_null_in_json(tmp_path):
    facts = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": float("-inf"), "e": "NaN"}}
    records.write_json(tmp_path / "facts.json", facts)
    assert strict(tmp_path / "facts.json") == [
        {"a": None, "b": [1.5, None], "c": {"d": None, "e": "NaN"}}]


# ------------------------------------------------------------------------- labelers and evaluation

def test_labelers_who_see_only_ties_agree_on_nothing():
    """Equal completions are ties, whatever the noise: no agreement of 0 %, and no search for it."""
    people, _ = simulated.pool(3)
    same = [(np.zeros((2, len(simulated.FEATURES))), ["a", "a"])] * 4
    draw = np.random.default_rng(0)
    assert simulated.agreement(same, people, "train", 1.0, draw) == (None, 0)
    assert simulated.agreement([], people, "train", 1.0, draw) == (None, 0)
    with pytest.raises(SystemExit, match="are ties to them: sample more prompts"):
        simulated.calibrate(same, people, 0.7, 3)


def test_averages_of_nothing_are_none():
    """No response is asked for a constraint: the share that satisfies it is not 0, nor NaN."""
    t, (_, people) = town.Town(0), simulated.pool(3)
    name = town.NAMES[0]
    prompts = [{"task": dict(type="ask", name=name, attribute="pet", brief=False)}]
    judged = [tasks.gold(t, prompts[0]["task"], "Hello.")]
    flags = eval_town.judge(t, prompts, judged, 1)["flags"]
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    assert flags["constraint"] == flags["hallucinates"] == nothing
    assert flags["rude"]["mean"] == 0 and flags["rude"]["n"] == 1
    empty = eval_town.judge(t, [], [], 0)
    assert empty["gold"] is None and empty["groups"] == {}
    assert all(share == nothing for share in empty["flags"].values())
    assert set(empty["gold_parts"].values()) == {None}
    assert eval_town.likert(t, [], [], people, 1.0, 0) is None
    assert eval_town.interval([]) == eval_town.proportion([]) == nothing
    assert eval_town.interval([1.0]) == {"mean": 1.0, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize("yes, n", [(0, 1), (0, 150), (3, 10), (75, 150), (599, 600), (600, 600)])
def test_the_interval_of_a_share_is_wilsons(yes, n):
    """Its ends are the shares p from which the one seen is 1.96 standard errors away: found here by
    bisection, not by solving the equation."""
    seen, got = yes / n, eval_town.proportion([True] * yes + [False] * (n - yes))
    away = lambda p: abs(seen - p) - 1.96 * (p * (1 - p) / n) ** 0.5

    def crossing(outer):
        inner = seen
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if away(middle) < 0 else (inner, middle)
        return inner

    assert got["mean"] == pytest.approx(seen, abs=1e-4) and got["n"] == n
    assert got["low"] == pytest.approx(crossing(0.0) if yes else 0.0, abs=2e-4)
    assert got["high"] == pytest.approx(crossing(1.0) if yes < n else 1.0, abs=2e-4)


def test_a_flag_is_a_share_of_the_answers_that_could_have_it():
    """Fig. 4: hallucinations of closed-domain prompts, constraints of prompts that set one. Other
    groups than "closed domain" count for themselves alone."""
    t, name = town.Town(0), town.NAMES[0]
    cat, dog = town.VALUES["pet"][:2]
    slots = {"n": name, "home": town.VALUES["home"][0], "food": town.VALUES["food"][0], "pet": cat}
    find = dict(type="find", slots=slots, event="saw", text=f"{name} saw a {cat}.", said=True)
    ask = dict(type="ask", name=name, attribute="pet", brief=False)
    right, wrong = f"{name} saw a {cat}.", f"{name} saw a {dog}."
    rows = [(dict(task=find), right), (dict(task=find), wrong), (dict(task=ask), "Hello."),
            (dict(task={**ask, "brief": True}), "a b"), (dict(task={**ask, "brief": True}), "a"),
            (dict(task=find, group="closed domain"), wrong),
            (dict(task=find, group="not in the text"), wrong),
            (dict(task={**ask, "brief": True}, group="one word"), "a b")]
    prompts = [prompt for prompt, _ in rows]
    judged = [tasks.gold(t, prompt["task"], said) for prompt, said in rows]
    got = eval_town.judge(t, prompts, judged, 5)
    share = lambda flags, flag: (flags[flag]["mean"], flags[flag]["n"])
    assert share(got["flags"], "hallucinates") == (pytest.approx(2 / 3, abs=1e-4), 3)
    assert share(got["flags"], "constraint") == (0.5, 2)
    assert share(got["flags"], "rude") == (0, 5)
    assert got["gold"] == pytest.approx(sum(g["score"] for g in judged[:5]) / 5, abs=1e-4)
    groups = got["groups"]
    assert set(groups) == {"one constraint", "closed domain", "not in the text", "one word"}
    assert share(groups["not in the text"], "hallucinates") == (1, 1)
    assert share(groups["one word"], "constraint") == (0, 1)
    assert share(groups["one constraint"], "constraint") == (0.5, 2)


class Words:
    """A tokenizer of words, each its own number."""
    template = "{prompt}"
    encode = staticmethod(lambda text: list(range(len(text.split()))))


@pytest.mark.parametrize("name, prompt, probe, message", [
    ("sft", 16, 18, None), ("sft", 17, 18, "prompts_test.jsonl: a prompt of 17 tokens and --max_new"
     "_tokens=8 do not fit the context of sft, 24"),
    ("sft", 16, 19, "probes.jsonl: a probe of 19 tokens and the 6 of its answer do not fit the "
     "context of sft, 24"), ("prompted", 16, 18, "no demonstration fits before a prompt"),
])
def test_all_that_a_model_is_asked_is_checked_before_it_is_asked(name, prompt, probe, message):
    settings = evaluate.Settings(max_new_tokens=8)
    prompts, probes = [{"prompt": "a " * prompt}], [{"text": "b " * probe}]
    ask = lambda: eval_town.encoded(name, "out/sft", tiny(), Words(), prompts,
                                    [{"prompt": "c", "response": "d"}], probes, settings)
    if message is None:
        assert ask() == [list(range(16))]
    else:
        with pytest.raises(SystemExit, match=message):
            ask()


def test_the_report_says_what_was_not_measured(demo):
    results = strict(demo.folder / "out" / "demo" / "results.json")[0]
    pair = "ppo-ptx vs sft"
    results["win_rate"][pair].update(low=None, high=None)
    results["flags"]["sft"]["constraint"]["mean"] = results["labeler_agreement"] = None
    results["rm_accuracy"] = {}
    lines = report.table(results)
    (row,) = [line for line in lines if line.startswith("| satisfies its constraints |")]
    assert row.split(" | ")[3] == "not measured"
    (row,) = [line for line in lines if line.startswith(f"| {pair} |")]
    assert row.split(" | ")[2] == "not measured"
    assert lines[-1] == (
        "How often training labelers agree with each other was not measured. Held-out labelers "
        f"agree with each other on {results['heldout_agreement']:.1%} of untied pairs. The reward "
        "model was not measured.")

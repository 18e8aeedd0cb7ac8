"""The paper's figures: their numbers against plain formulas, their runs against the scripts."""
import ast
import csv
import io
import itertools
import json
import math
import re
import shlex
import shutil
import statistics
import threading
import time
import xml.etree.ElementTree as xml
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import settings
from data import records
from data.toy.town import VALUES, Town
from figures import __main__ as figures
from figures import (flags, generalisation, harm, instructions, measure, mistakes,
                     overoptimisation, page, plan, plots, points, preference, rankings,
                     reward_model, rounds, sizes)
from figures.points import ABSENT, HOLDS, OPEN, Panel, Series, over
from figures.worlds import World
from helpers import EOS, tiny, tiny_scalar
from labels.simulated import features
from test_settings import of

ROOT = Path(settings.__file__).parent
each_scale = pytest.mark.parametrize("scale", plan.SCALES)


# ------------------------------------------------------------------------------ points and fits

def inside(t, freedom, n=20000):
    """The probability that Student's variable lies within [-t, t], by Simpson's rule."""
    c = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(
        freedom * math.pi)
    x = np.linspace(-t, t, n + 1)
    y = c * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
    return float((x[1] - x[0]) / 3 * (y[0] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum() + y[-1]))


def test_the_quantiles_are_students():
    for freedom, t in enumerate(points.T, 1):
        assert inside(t, freedom) == pytest.approx(0.95, abs=1e-4)


def test_a_mean_over_worlds():
    m, values = over([1.0, 4.0, 2.5]), [1.0, 4.0, 2.5]
    half = 4.303 * statistics.stdev(values) / 3**0.5
    assert m["mean"] == 2.5 and m["n"] == 3 and m["values"] == values
    assert (m["low"], m["high"]) == pytest.approx((2.5 - half, 2.5 + half))
    assert over([2, None]) == {"mean": 2.0, "low": None, "high": None, "n": 1, "values": [2.0]}
    assert over([None])["mean"] is None and over([])["n"] == 0


@pytest.mark.parametrize("differences, state", [
    ([1.0, 1.1, 0.9], HOLDS), ([1.0, -0.5, 0.9], OPEN), ([-1.0, 0.5, -0.9], OPEN),
    ([-1.0, -1.1, -0.9], ABSENT), ([0.5], OPEN), ([-0.5], OPEN), ([0.0, 0.0], ABSENT), ([], OPEN),
    ([None, 1.0, 1.1, 0.9], HOLDS)])
def test_when_a_finding_holds(differences, state):
    """The same is asked of both sides, and one world decides nothing."""
    found = points.finding("x", differences)
    assert found.state == state
    assert found.values == [d for d in differences if d is not None]
    if state != OPEN and any(found.values):
        other = HOLDS if state == ABSENT else ABSENT
        assert points.finding("x", [-d for d in found.values]).state == other


@pytest.mark.parametrize("size, state", [(0.0, OPEN), (0.02, OPEN), (0.04, ABSENT)])
def test_a_difference_that_is_smaller_than_the_papers(size, state):
    """The interval of these is -0.022 to 0.027."""
    assert points.finding("x", [0.01, -0.008, 0.006], size=size).state == state
    assert points.finding("x", [0.01, 0.011, 0.01], size=size).state == HOLDS
    assert points.finding("x", [0.001], size=size).state == OPEN


def test_a_win_rate_is_told_as_it_is_and_compared_with_a_half():
    """"preferred (above 50 %): 31.0%" was 81 % of the time."""
    for rates, state in (([0.8, 0.82, 0.81], HOLDS), ([0.3, 0.31, 0.29], ABSENT),
                         ([0.4, 0.7, 0.6], OPEN)):
        found = points.finding("x", rates, "{:.1%}", above=0.5)
        assert found.state == state and found.values == rates
        assert found.reached.startswith(f"{statistics.mean(rates):.1%} [")


@pytest.mark.parametrize("values, above, side", [
    ([0.9, 0.1, 0.2], 0, "in 3 worlds, all on the paper's side"), ([0.9], 0, "in 1 world"),
    ([0.9, 0.1, 0.2], 0.1, "in 3 worlds, 2 on the paper's side"), ([], 0, "not measured"),
    ([0.9, 0.1, 0.2], 0.9, "in 3 worlds, none on the paper's side")])
def test_an_undecided_finding_says_where_the_worlds_are(values, above, side):
    found = points.finding("x", values, above=above)
    assert found.state == OPEN and found.reached.endswith(side)
    assert points.finding("x", [1, 1.1]).reached.endswith("] in 2 worlds")


def test_no_number_is_minus_zero():
    told = lambda low, high: points.told(over([low, high]), "{:.1%}").partition(" [")[0]
    assert (told(-4e-4, -2e-4), told(-0.051, -0.051), told(-0.1, -0.1)) == ("0.0%", "-5.1%",
                                                                            "-10.0%")
    assert points.told({"mean": 1, "low": -0.0004, "high": 2, "n": 3}, "{:.2f}") == (
        "1.00 [0.00, 2.00] in 3 worlds")


def test_a_sentence_tells_each_finding_once():
    found = [points.finding(name, d) for name, d in
             (("a (so)", [1, 1.1]), ("b", [-1, -1.1]), ("c", [1]), ("d", [2, 2.1]))]
    assert points.sentence(found) == ("As in the paper: a; d. Unlike the paper, not so here: b. "
                                      "Undecided: c.")
    same = [points.finding(name, d) for name, d in
            (("a (x)", [1, 1.1]), ("a (y)", [2, 2.1]), ("b (x)", [3, 3.1]), ("b (y)", [1]))]
    assert points.sentence(same) == "As in the paper: a; b (x). Undecided: b (y)."


@pytest.mark.parametrize("form, gain", [
    ("d(a - b d)", lambda d, a, b: d * (a - b * d)),
    ("d(a - b log d)", lambda d, a, b: d * (a - b * math.log(d)))])
def test_the_fits_of_gao(form, gain):
    d = [0.0, 0.3, 0.8, 1.5, 2.0, 3.1]
    exact = [0.0] + [gain(x, 0.9, 0.25) for x in d[1:]]
    assert points.fit(form, d, exact) == pytest.approx((0.9, 0.25))
    noisy = [y + e for y, e in zip(exact, (0.0, 0.02, -0.03, 0.05, -0.01, 0.02))]
    a, b = points.fit(form, d, noisy)
    error = lambda a, b: sum((gain(x, a, b) - y) ** 2 for x, y in zip(d[1:], noisy[1:]))
    for da, db in itertools.product((-1e-3, 0, 1e-3), repeat=2):
        assert error(a, b) <= error(a + da, b + db)
    for x, y in points.curve(form, a, b, 2.0)[::7]:
        assert y == pytest.approx(gain(x, a, b))
    assert points.fit(form, [0.0, 1.0, 1.0], [0, 1, 1]) is None


# ------------------------------------------------------------------------------ the plan

def graph(scale):
    runs, wanted = figures.runs_of(figures.FIGURES, plan.SCALES[scale])
    return runs, [name for names in wanted.values() for name in names]


@each_scale
def test_runs_come_after_what_they_need(scale):
    runs, wanted = graph(scale)
    order = plan.ordered(runs, wanted)
    assert len(order) == len(set(order)) and set(wanted) <= set(order)
    for i, name in enumerate(order):
        assert set(runs[name].needs) <= set(order[:i])
    assert set(order) == set(runs)  # no run is there in vain


RESULTS = ("checkpoint.json", "results.json", "report.html", "rankings.json", "world.json",
           "crows_pairs_anonymized.csv")  # files that show that a whole folder is done


def written(run):
    """The path that a run writes: a folder, or a file."""
    return str(Path(run.done).parent) if Path(run.done).name in RESULTS else run.done


def read_by(run):
    """The paths that a run's flags name and that it reads."""
    for word in shlex.split(run.command):
        flag, _, value = word.partition("=")
        if flag not in ("--out", "--before"):
            yield from re.findall(r"(?:^|[,=])(out/[^,=]+)", value)


@each_scale
def test_every_path_that_a_run_reads_was_written_before_it(scale):
    """By a run that it needs, itself or through others."""
    runs, wanted = graph(scale)
    for name, run in runs.items():
        before = {written(runs[n]) for n in plan.ordered(runs, [name])[:-1]}
        for path in read_by(run):
            assert path in before or str(Path(path).parent) in before, (name, path)


@each_scale
def test_every_command_is_one_that_its_script_takes(scale, tmp_path):
    for name, run in graph(scale)[0].items():
        words = plan.words_of(run, "7", plan.SCALES[scale], tmp_path)
        script, flags = words[0].removesuffix(".py"), words[1:]
        if script == "-m":
            script, *flags = flags
        s = settings.parse(*of(script), argv=flags)
        seeded = "--seed=7" in words or "--seed=" in run.command
        assert seeded == hasattr(s, "seed"), name
        if "--out=" in run.command:
            assert run.done.startswith(s.out), name


def test_no_two_runs_write_the_same_file():
    runs, _ = graph("demo")
    twice = [n for n, k in Counter(run.done for run in runs.values()).items() if k > 1]
    assert not twice


def test_the_demo_is_that_of_the_makefile():
    text = (ROOT / "Makefile").read_text()
    steps = re.findall(r"^\t\$\(call step,(.*?),(.*?),(.*)\)$", text, re.M)
    expected = {done.replace("$(DEMO)", "out/demo"): command.split(" > ")[0]
                for done, _, command in steps}
    assert {run.done: run.command for run in plan.DEMO.values()} == expected


def test_sizes_are_about_1_to_4_to_16():
    from figures.sizes import SIZES, folder
    count = lambda w: 4 * 12 * w * w + (700 + 128) * w  # blocks, and embeddings
    small, mid, large = map(count, plan.SCALES["demo"].widths)
    assert mid / small == pytest.approx(4, rel=0.15) and large / small == pytest.approx(16, rel=0.2)
    runs, _ = graph("demo")
    for size in SIZES:  # one reward model, of the demo's size, for all
        assert "--reward" not in next((r.command for r in runs.values() if r.done.startswith(
            f"{folder(size, 'ppo')}/")), "")


class Scripts:
    """Stands for the programs: writes what a run is to write, and remembers its command."""

    def __init__(self, runs, fails=()):
        self.done = {run.command: run.done for run in runs.values()}
        self.fails, self.calls = fails, []

    def __call__(self, words, folder, log, threads):
        command = next(c for c in self.done if " ".join(words).startswith(c))
        self.calls.append((folder.name, command, words))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("working\nerror: no more memory\n")
        if command in self.fails:
            return 1, 0.0
        (folder / self.done[command]).write_text("{}")
        return 0, 61.5


def worlds(folder):
    return {seed: folder / f"seed-{seed}" for seed in ("1", "2")}


RUNS = {"a": plan.Run("first", "a.py", "out/a/checkpoint.json"),
        "b": plan.Run("second", "b.py", "out/b/checkpoint.json", ("a",)),
        "c": plan.Run("third", "c.py --seed=5", "out/c.json", ("b",)),
        "d": plan.Run("not needed", "d.py", "out/d.json")}


def test_what_is_done_is_skipped_and_what_was_cut_off_is_resumed(tmp_path, monkeypatch, capsys):
    for file in ("seed-1/out/a/checkpoint.json", "seed-2/out/b/state-00000004.pt"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    scripts = Scripts(RUNS)
    monkeypatch.setattr(plan, "start", scripts)
    plan.carry_out(RUNS, ["c"], worlds(tmp_path), plan.Scale(), 1)
    assert [(world, words) for world, _, words in scripts.calls] == [
        ("seed-1", ["b.py", "--seed=1"]), ("seed-2", ["a.py", "--seed=2"]),
        ("seed-1", ["c.py", "--seed=5"]), ("seed-2", ["b.py", "--seed=2", "--resume"]),
        ("seed-2", ["c.py", "--seed=5"])]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5 and printed[-1].startswith("[  5/5] world 2: third (0 s); about 0 min")
    took = dict(map(json.loads, (tmp_path / "seed-1" / plan.SECONDS).read_text().splitlines()))
    assert took == {"b": 61.5, "c": 61.5}
    plan.carry_out(RUNS, ["c"], worlds(tmp_path), plan.Scale())
    assert len(scripts.calls) == 5  # all is there


def test_a_run_that_fails_stops_the_others_in_one_line(tmp_path, monkeypatch):
    scripts = Scripts(RUNS, fails=("b.py",))
    monkeypatch.setattr(plan, "start", scripts)
    with pytest.raises(SystemExit, match=r"error: world 1: second failed: no more memory; all it "
                       r"said is in .*b.txt$"):
        plan.carry_out(RUNS, ["c"], worlds(tmp_path), plan.Scale(), 1)
    assert [(world, command) for world, command, _ in scripts.calls] == [
        ("seed-1", "a.py"), ("seed-2", "a.py"), ("seed-1", "b.py")]


@pytest.mark.parametrize("jobs", [1, 2, 3, 8])
def test_runs_share_the_cores_and_wait_for_what_they_need(tmp_path, monkeypatch, jobs):
    """Two worlds of a diamond: at most `jobs` at once, and no run before those that it needs."""
    needs = {"a": "", "b": "a", "c": "a", "d": "bc"}
    runs = {n: plan.Run(n, f"{n}.py", f"out/{n}/checkpoint.json", tuple(needs[n])) for n in needs}
    lock, running, most, done, threads = threading.Lock(), 0, 0, [], set()

    def start(words, folder, log, n):
        nonlocal running, most
        name = words[0][0]
        with lock:
            running, most = running + 1, max(most, running + 1)
            threads.add(n)
            assert {(folder, other) for other in needs[name]} <= set(done)
        time.sleep(0.02)
        log.parent.mkdir(parents=True, exist_ok=True)
        (folder / runs[name].done).touch()
        with lock:
            running, done[:] = running - 1, [*done, (folder, name)]
        return 0, None

    monkeypatch.setattr(plan, "start", start)
    monkeypatch.setattr(plan.os, "cpu_count", lambda: 6)
    plan.carry_out(runs, ["d"], worlds(tmp_path), plan.Scale(), jobs)
    assert len(done) == 8 and most == min(jobs, 4)
    assert threads == {max(1, 6 // jobs)}


def test_a_program_that_runs_tells_its_exit_code_and_cpu_time(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    (tmp_path / "busy.py").write_text("import time\nprint('here')\n"
                                      "while time.process_time() < 0.3: pass\nraise SystemExit(3)")
    code, busy = plan.start(["busy.py"], tmp_path, tmp_path / "logs/busy.txt", 1)
    assert code == 3 and 0.3 <= busy < 3
    assert (tmp_path / "logs/busy.txt").read_text() == "here\n"


def test_rates_fall_with_the_width_in_every_run():
    """Of the large scale, whose models are four times as wide as those of the demo."""
    runs, _ = graph("large")
    for name, run in runs.items():
        script = run.command.split()[0]
        if script not in ("sft.py", "reward.py", "ppo.py"):
            continue
        ours = settings_of(run, "large")
        size = next((s for s in plan.SIZES if f"sizes/{s}/" in ours.out), "mid")
        size = "large" if ours.out == "out/sizes/t0" else size
        width, usual = plan.SCALES["large"].widths[plan.SIZES.index(size)], settings_of(run, None)
        batch = 2 if "--preset=base" in run.command else 1  # 32 rows a step, not 8
        given = re.search("rate-(.*)", ours.out)  # times the rate of this size
        times = float(given[1]) / 1.5e-4 if given else 1
        assert ours.lr == pytest.approx(times * batch * 128 / width * usual.lr), name
        assert script != "ppo.py" or ours.value_lr == usual.value_lr / 4
        assert "--preset=base" not in run.command or (ours.n_embd, ours.batch) == (width, 32)


def settings_of(run, scale):
    """The settings that a run has at a scale; None: those of its script and preset alone."""
    words = shlex.split(f"{run.command} {plan.SCALES[scale].flags(run) if scale else ''}")
    flags = [w for w in words[1:] if scale or w.startswith("--preset")]
    return settings.parse(*of(words[0].removesuffix(".py")), argv=flags)


# ------------------------------------------------------------------------------ rankings

def some_rankings(n=60, labelers=7):
    K = lambda i: 2 + i % 3
    return [{"prompt": f"p{i}", "labeler": f"t{i * i % labelers}", "ranks": [1, 2, 2, 3][: K(i)],
             "completions": [{"text": f"{i}{k}", "model": "m", "ended": True} for k in range(K(i))],
             "expected": [0.0] * K(i)} for i in range(n)]


def chosen(tmp_path, train=None, **flags):
    s = replace(rankings.Settings(), data=str(tmp_path), **flags)
    every = (train or some_rankings(), some_rankings(30), some_rankings(20))
    return every, rankings.chosen(every, s)


def test_groups_of_labelers_have_about_as_many_rankings_each():
    train = [{"labeler": f"t{i}"} for i in range(12) for _ in range(100 + 7 * i)]
    sizes = Counter()
    for name, group in rankings.groups(train, 5).items():
        sizes[group] += sum(r["labeler"] == name for r in train)
    assert sorted(sizes) == [0, 1, 2, 3, 4] and max(sizes.values()) - min(sizes.values()) < 180


def test_folds_part_the_labelers(tmp_path):
    left_out = []
    for fold in range(3):
        (train, valid, _), own = chosen(tmp_path, fold=fold, folds=3)
        names = {key: {r["labeler"] for r in own[key]} for key in own}
        assert names["rankings_train"] & names["rankings_valid_heldout"] == set()
        assert names["rankings_valid"] <= names["rankings_train"]
        assert len(own["rankings_valid"]) + len(own["rankings_valid_heldout"]) == len(valid)
        left_out += names["rankings_valid_heldout"]
    assert sorted(left_out) == sorted({r["labeler"] for r in train})


def test_a_share_and_the_first_completions(tmp_path):
    (train, *_), own = chosen(tmp_path, share=0.25, completions=2)
    kept = own["rankings_train"]
    assert len(kept) == 15 and {r["prompt"] for r in kept} <= {r["prompt"] for r in train}
    for r in kept:
        whole = next(t for t in train if t["prompt"] == r["prompt"])
        for key in ("completions", "ranks", "expected"):
            assert r[key] == whole[key][:2]
    smaller = chosen(tmp_path, share=0.125)[1]["rankings_train"]
    assert {r["prompt"] for r in smaller} < {r["prompt"] for r in kept}  # nested


def test_pairs_are_all_untied_pairs_and_nothing_else(tmp_path):
    (train, *_), own = chosen(tmp_path, pairs=True)
    expected = [(r["prompt"], r["completions"][i]["text"], r["completions"][j]["text"])
                for r in train for i in range(len(r["ranks"])) for j in range(len(r["ranks"]))
                if r["ranks"][i] < r["ranks"][j]]
    got = [(r["prompt"], *(c["text"] for c in r["completions"])) for r in own["rankings_train"]]
    assert sorted(got) == sorted(expected)
    assert all(r["ranks"] == [1, 2] for r in own["rankings_train"])
    for r in own["rankings_train"]:
        records.check(r, "ranking", "here")


def test_fresh_completions_are_ranked_and_join(demo, tmp_path):
    """By training labelers, with the sharpness that the demo's calibration found."""
    toy = demo.folder / "out" / "toy"
    s = rankings.Settings(data=str(toy), fresh=str(toy / "completions_valid.jsonl"), seed=3)
    every = [demo.records(name, "ranking") for name in rankings.FILES]
    own = rankings.chosen(every, s)["rankings_train"]
    fresh = demo.records("completions_valid", "sampled prompt")
    assert len(own) == len(every[0]) + len(fresh)
    assert [r["completions"] for r in own[-len(fresh):]] == [p["completions"] for p in fresh]
    assert {r["labeler"][0] for r in own[-len(fresh):]} == {"t"}


# ------------------------------------------------------------------------------ what is measured

@torch.no_grad()
def test_a_policys_answers_are_measured():
    """Scores and log-ratios against one forward pass a row, without batches or caches."""
    policy, reference = tiny(seed=1).eval(), tiny(seed=2).eval()
    reward = tiny_scalar(seed=3).eval()
    prompts, s = [[3, 4, 5], [6], [7, 8]], measure.Settings(max_new_tokens=6, unfinished=-9.0)
    samples, scores, ratios = measure.measure(policy, reference, reward, prompts, [0, 1, 2], EOS, s)
    for i, prompt in enumerate(prompts):
        n = int(samples.lengths[i])
        ids, total = samples.ids[i, :n], 0.0
        for t in range(len(prompt), n):
            for sign, net in ((1, policy), (-1, reference)):
                hidden = net.transformer(ids[None, :t])[0, -1]
                logits = hidden @ net.transformer.wte.weight.T
                total += sign * float(torch.log_softmax(logits, -1)[ids[t]])
        assert ratios[i] == pytest.approx(total, abs=1e-3)
        ended = bool(samples.ended[i])
        assert scores[i] == pytest.approx(float(reward(ids[None])[0, -1]) if ended else -9.0,
                                          abs=1e-4)
    same = measure.measure(policy, policy, reward, prompts, [0, 1, 2], EOS, s)[2]
    assert same == pytest.approx([0, 0, 0], abs=1e-4)


ASK = {"type": "ask", "name": "Anna", "attribute": "food", "brief": False}


@pytest.mark.parametrize("task, text, says_more", [
    (ASK, "Anna likes soup.", False), (ASK, "Anna likes soup. Glad to help.", False),
    (ASK, "Anna likes soup. Anna is a baker.", True), ({**ASK, "brief": True}, "soup.", False),
    ({**ASK, "brief": True}, "Anna likes soup.", True),
    ({**ASK, "brief": True}, "soup. Glad to help.", True), ({"type": "note"}, "a. b. c.", None),
    ({**ASK, "language": "beyond"}, "a. b.", None)])
def test_over_answering(task, text, says_more):
    assert mistakes.over_answers({"task": task}, text, None) is says_more


def test_accepting_a_false_premise():
    from data.toy.tasks import gold
    town = Town(0)
    true = town.facts["Anna"]["food"]
    wrong = next(v for v in VALUES["food"] if v != true)
    task = {"type": "premise", "name": "Anna", "attribute": "food", "value": wrong}
    said = lambda kind, text: kind({"task": task}, text, gold(town, task, text))
    for text, stands, accepted in (
            (f"Anna likes {wrong}.", True, True), ("Thank you, Anna.", True, False),
            (f"Anna does not like {wrong}.", False, False), (f"Anna likes {true}.", False, False),
            (f"Anna does not like {wrong}. Anna likes {wrong}.", False, True)):
        assert said(mistakes.lets_stand, text) is stands, text
        assert said(mistakes.accepts, text) is accepted, text
    assert mistakes.lets_stand({"task": ASK}, "", None) is None
    assert mistakes.accepts({"task": ASK}, "", None) is None


def test_missing_one_of_several_constraints():
    task = {"type": "mix", "kinds": ["food", "home"], "counts": ["one", "two"]}
    kept = {"flags": {"constraint": True}}, {"flags": {"constraint": False}}
    told = lambda task, **more: [mistakes.misses(Town(0), {"task": task, **more}, g) for g in kept]
    assert told({**task, "without": None}) == told({**task, "without": "soup"}) == [False, True]
    assert told({**ASK, "brief": True}) == [None, None]
    assert told({**task, "without": "soup"}, group="one word") == [None, None]


def test_the_distance_at_which_a_score_is_reached():
    """Between the points, in their order by distance; a score that falls again was reached."""
    way = [(4.0, 1.0, -2.0), (2.0, 0.8, 0.1), (1.0, 0.4, 0.5), (3.0, 0.7, -1.0)]
    for score, d in ((0.0, 0.0), (0.2, 0.5), (0.4, 1.0), (0.6, 1.5), (0.9, 3.5), (1.0, 4.0)):
        assert overoptimisation.distance_at(way, score) == pytest.approx(d)


def test_the_most_that_a_reward_model_could_know_of_a_policys_answers(demo, tmp_path):
    """A reward model that is the labelers' mean utility reaches it, its opposite is as often
    wrong, and one that says nothing is right half the time."""
    toy = tmp_path / "out/toy"
    toy.mkdir(parents=True)
    for name in ("world.json", "labelers.json"):
        (toy / name).write_bytes((demo.folder / "out/toy" / name).read_bytes())
    world, asked = World(tmp_path), demo.records("completions_valid", "sampled prompt")
    labelers, sharpness = world.labelers["training"], world.facts["sharpness"]

    def write(name, score):
        records.write(tmp_path / name, [{**p, "completions": [
            {**c, "score": score(p["task"], c)} for c in p["completions"]]} for p in asked])
        return rounds.accuracies(world, name)

    def utility(task, c):
        x = features(world.town, task, c["text"], c["ended"])
        return sum(float(w.utility(x[None], "train", sharpness)[0]) for w in labelers)

    right, most = write("best.jsonl", utility)
    assert right == pytest.approx(most, abs=2e-3) and 0.6 < most < 1
    wrong = write("worst.jsonl", lambda *c: -utility(*c))
    assert wrong == pytest.approx((1 - most, most), abs=2e-3)
    assert write("nothing.jsonl", lambda *c: 1.0) == (0.5, most)


def test_how_many_answers_are_ended(tmp_path):
    lines = [{"prompt": "a", "group": "second language", "completions": [
        {"model": m, "text": "x", "ended": e} for m, e in (("sft", True), ("ppo", False))]},
        {"prompt": "b", "completions": [{"model": m, "text": "x", "ended": False}
                                        for m in ("sft", "ppo")]}]
    (tmp_path / "out/demo").mkdir(parents=True)
    records.write(tmp_path / generalisation.ANSWERS, [*lines, lines[0]])
    told = lambda model, group: generalisation.ended(World(tmp_path), model, group)
    assert told("sft", "second language") == 1 and told("ppo", "second language") == 0
    assert told("sft", "one word") is None


def test_no_measured_share_is_written_into_the_code():
    """An explanation with the numbers of one run stood beside another run's. The paper's numbers
    are module constants; a claim may have a bound in parentheses."""
    for path in sorted((ROOT / "figures").glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            texts = [n.value for n in ast.walk(function)
                     if isinstance(n, ast.Constant) and isinstance(n.value, str)
                     and n.value != ast.get_docstring(function, clean=False)]
            for text in texts:
                plain = re.sub(r"\((above|in the paper by) [\d.]+ %\)", "", text)
                assert not re.search(r"(?<![.\d])\d[\d.]* ?%", plain), (path.name, text)


def test_questions_about_every_fact_and_where_people_are_mistaken():
    town = Town(3)
    asked = list(instructions.questions(town))
    facts = Counter((r["task"]["name"], r["task"]["attribute"]) for r in asked)
    assert set(facts) == {(n, a) for n in town.facts for a in VALUES} and set(
        facts.values()) == {8}
    assert len({r["prompt"] for r in asked}) == len(asked)
    mistaken = {(n, a) for n, own in town.mistakes.items() for a in own}
    assert {(r["task"]["name"], r["task"]["attribute"]) for r in asked
            if r["group"] == "mistaken"} == mistaken != set()


def test_pairs_of_sentences_differ_in_one_word_that_is_known():
    town = Town(1)
    pairs = instructions.sentence_pairs(town)
    assert len(pairs) == 16 * (5 + 7 + 5)
    for first, second in pairs:
        a, b = first.rstrip(".").split(), second.rstrip(".").split()
        (known, other), = [(x, y) for x, y in zip(a, b) if x != y]
        name, = set(a) & set(town.facts)
        assert len(a) == len(b) and known in town.facts[name].values() and known != other
    rows = list(csv.DictReader(io.StringIO(instructions.crows(pairs, "Be kind."))))
    assert [(r["sent_more"], r["sent_less"]) for r in rows] == [
        (f"Be kind.\n{x}", f"Be kind.\n{y}") for x, y in pairs]


# ------------------------------------------------------------------------------ pictures and page

PANEL = Panel("A title", "x", "y", [
    Series("ours", [(0, over([0.1, 0.2, 0.3])), (1, over([0.5])), (10, over([]))]),
    points.paper("ours", [(1, 0.3)])], percent=True, log=True, refs=(0.5,))


def test_a_panel_is_drawn_the_same_each_time():
    text = plots.svg(PANEL)
    assert text == plots.svg(PANEL) and xml.fromstring(text).tag.endswith("svg")
    named = replace(PANEL, series=[Series("", [("one", over([1])), ("two", over([2]))])], log=False)
    assert xml.fromstring(plots.svg(named)).tag.endswith("svg")


def shown(panel, ax):
    """Asserts that all points and intervals of a panel lie within its axes, shares within 0 and
    100 %."""
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    least, most = panel.within or ((0, 1) if panel.percent else (-math.inf, math.inf))
    by = 100 if panel.percent else 1
    at, ends = plots.places(panel), [by * min(most, max(least, y)) for y in panel.reach]
    for series in panel.series:
        for x, m in series.points:
            for value in (m["mean"], m["low"], m["high"]):
                if value is not None:
                    value = by * min(most, max(least, value))
                    assert x0 <= at.get(x, x) <= x1 and y0 <= value <= y1, (panel.title, x, value)
                    ends.append(value)
    for container in ax.containers:
        for bars in container.lines[2]:
            drawn = [y for path in bars.get_paths() for _, y in path.vertices]
            assert min(abs(a - b) for a in drawn for b in ends) < 1e-6
            assert by * least <= min(drawn) <= max(drawn) <= by * most
    ends += [by * y for y in panel.refs]
    if ends:  # and they fill the picture
        assert max(ends) - min(ends) > 0.5 * (y1 - y0) or len(set(ends)) == 1, panel.title


def series(name, *values, **options):
    return Series(name, list(zip((0, 0.1, 1, 3), map(over, values))), **options)


LINES = [series("a", [0.9, 0.7, 1.0], [0.5, 0.6, 0.7]), series("b", [0.1, 0.3, 0.0], [0.4])]


@pytest.mark.parametrize("panel", [
    PANEL, Panel("shares", "x", "y", LINES, percent=True, log=True, refs=(0.2,), ref="a line"),
    Panel("numbers", "x", "y", [*LINES, series("c", [0.2], [0.3], marks=False)]),
    Panel("names", "", "y", [Series(n, [(x, over([0.97, 0.9, 1])) for x in ("one", "two")],
                                    line=line) for n, line in (("a", True), ("b", False))],
          percent=True),
    Panel("bits", "x", "bits", [series("a", [0.9, 1.0, 0.7], [0.5])], within=(0, 1)),
    points.alike(Panel("reach", "x", "y", [series("a", [0.5], [0.6])], percent=True),
                 Panel("", "x", "y", [points.paper("b", [(0, 0.1), (3, 0.8)])]))[0]],
    ids=lambda p: p.title)
def test_all_points_and_intervals_are_within_the_picture(panel):
    """Shifted points once did not count for the axes; intervals of shares reached to 126 %, those
    of an entropy of two choices to 1.05 bits."""
    import matplotlib.pyplot as plt
    figure = plots.draw(panel, plt)
    shown(panel, figure.axes[0])
    names = figure.axes[0].get_legend_handles_labels()[1]
    assert (panel.ref in names) == bool(panel.ref)
    plt.close(figure)


def test_intervals_stand_beside_each_other_and_curves_where_they_are():
    three = [*LINES, series("curve", [0.2], [0.3], marks=False)]
    assert plots.shifts(Panel("", "x", "y", three)) == [-2.25, 2.25, 0.0]
    alone = [series("a", [0.5], [0.6]), series("b", [0.4], [0.4])]  # no interval to tell apart
    assert plots.shifts(Panel("", "x", "y", alone)) == [0, 0]
    four = [Series(str(k), [(x, over([0, 1])) for x in "vwxyz"], line=False) for k in range(4)]
    moved = plots.shifts(Panel("", "", "y", four))
    assert moved == sorted(moved) and sum(moved) == pytest.approx(0)
    assert len(set(moved)) == 4 and moved[-1] - moved[0] < 72 * plots.WIDTH / 5 / 2


def test_the_towns_axis_is_the_papers():
    """The same height was 60 % here and 66 % there."""
    import matplotlib.pyplot as plt
    ours = Panel("", "size", "y", [series("a", [0.1, 0.3], [0.5])], percent=True, refs=(0.5,))
    theirs = replace(ours, series=[points.paper("a", [("1", 0.4), ("2", 0.7)])])
    drawn = [plots.draw(panel, plt) for panel in points.alike(ours, theirs)]
    first, second = (figure.axes[0].get_ylim() for figure in drawn)
    assert first == pytest.approx(second) and first[0] <= 0 and first[1] >= 70
    assert points.alike(replace(ours, series=[]), replace(ours, series=[]))[0].reach == ()
    plt.close("all")


def test_headings_and_numbers_of_axes():
    assert plots.heading("the town, by size: hallucinates (closed domain)", 40) == (
        "The town, by size:\nhallucinates (closed domain)")
    assert plots.heading("best-of-n") == "Best-of-n" and plots.heading("") == ""
    assert plots.heading("a" * 50) == "A" + "a" * 49
    assert list(map(plots.short, (0, 5.4e-5, 7.5e-4, 0.0104, 0.144, 2.0, 27.8, 100))) == [
        "0", "5.4e-5", "0.00075", "0.01", "0.14", "2", "27.8", "100"]


def test_a_fit_is_drawn_with_its_errors():
    """Three worlds that lie on the form exactly, with a and b of their own."""
    d, worlds = (0.0, 0.5, 1.0, 1.5), ((1.0, 0.4), (1.2, 0.5), (1.1, 0.6))
    ways = [[(x, x, x * (a - b * x)) for x in d] for a, b in worlds]
    drawn, _ = overoptimisation.panel("", "d(a - b d)", ways)
    half = 4.303 * 0.1 / 3**0.5
    assert drawn.series[-1].name == f"gold as d(a - b d), a 1.10 ± {half:.2f}, b 0.50 ± {half:.2f}"
    alone, _ = overoptimisation.panel("", "d(a - b d)", ways[:1])
    assert alone.series[-1].name == "gold as d(a - b d), a 1.00, b 0.40"


def test_the_paper_is_named_where_its_numbers_stand_beside_ours():
    import matplotlib.pyplot as plt
    for own, names in (([], ["a"]), ([series("b", [0.5])], ["b", "a, the paper"])):
        figure = plots.draw(Panel("", "x", "y", [*own, points.paper("a", [(1, 2)])]), plt)
        assert figure.axes[0].get_legend_handles_labels()[1] == names
        plt.close(figure)


def test_ticks_that_would_lie_on_each_other_are_left_out():
    assert plots.apart([1, 2, 3, 4], [0.0, 30.0, 50.0, 91.0], 40) == [1, 3, 4]
    assert plots.apart([5], [9.0], 40) == [5]


def test_the_page_of_findings_counts_and_decides_as_it_says():
    """Each verdict of docs/figures.md from its own interval, by the rule that the page states."""
    page = (ROOT / "docs/figures.md").read_text()
    rows = re.findall(r"^\| (.+) \| (here too|not here|undecided): (.+) \|$", page, re.M)
    for claim, verdict, reached in rows:
        low, high = map(float, re.search(r"\[(.+?)%?, (.+?)%?\]", reached).groups())
        size = float((re.search(r"in the paper by ([\d.]+) %", claim) or ["", "0"])[1])
        above = float((re.search(r"\(above ([\d.]+) %\)", claim) or ["", "0"])[1])
        assert verdict == ("here too" if low > above else "not here" if high <= above + size
                           else "undecided"), (claim, reached)
    told = re.search(r"of (\d+) findings (\d+) are here too, (\d+) are not, (\d+) are", page)
    count = Counter(verdict for _, verdict, _ in rows)
    assert [int(n) for n in told.groups()] == [
        len(rows), count["here too"], count["not here"], count["undecided"]]
    pictures = set(re.findall(r'src="figures/(.+?)"', page))
    assert pictures == {path.name for path in (ROOT / "docs/figures").iterdir()}


EVIL = "<script>document.title = 'ran'</script> & \"'"


def drawn(tmp_path, names=figures.FIGURES):
    """The files of some figures, as a run of `python -m figures` leaves them."""
    what = points.Drawn([PANEL, PANEL], [points.finding(f"claim {EVIL}", [1, 1.1]), points.finding(
        "another claim", [-1, -2], why="because")], [
            (f"prompt {EVIL}", [("sft", f"text {EVIL}")]), ("p", [("sft", "t")], f"what {EVIL}")])
    for name in names:
        said = points.as_json(name, figures.FIGURES[name].TITLE, what)
        records.write_json(tmp_path / f"{name}.json", {**said, "seconds": 61.0, "seeds": ["1"],
                                                       "scale": "small"})
        for i, panel in enumerate(what.panels):
            (tmp_path / f"{name}-{i + 1}.svg").write_text(plots.svg(panel))
    return figures.Settings(out=str(tmp_path))


def test_the_page_shows_all_figures_and_loads_nothing(tmp_path):
    text = figures.write_page(drawn(tmp_path)).read_text()
    assert text.count("<section") == len(figures.FIGURES) == 9
    assert text.count("<img alt=") == 18 and text.count('src="data:image/svg+xml;base64,') == 18
    assert "<script>document" not in text and "because" in text and "not phenomena" in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)


def test_the_page_shows_the_figures_that_are_there(tmp_path):
    text = figures.write_page(drawn(tmp_path, ["tax", "harm"])).read_text()
    assert re.findall(r'<section id="([\w-]+)"', text) == ["tax", "harm"]


def test_the_findings_are_printed(tmp_path, capsys):
    s = drawn(tmp_path, ["tax"])
    figures.check(s)
    printed = capsys.readouterr().out.splitlines()
    assert f"here too  tax: claim {EVIL}: 1.05 [0.41, 1.69] in 2 worlds" in printed
    assert ("undecided tax: another claim: -1.50 [-7.85, 4.85] in 2 worlds, none on the paper's "
            "side") in printed
    assert "          rounds: not drawn yet" in printed
    assert printed[-1] == "2 findings: 1 here too, 1 undecided"
    with pytest.raises(SystemExit, match="has no figure: run `make figures` first"):
        figures.check(replace(s, out=str(tmp_path / "none")))


@pytest.mark.parametrize("content", ["{}", "[]", '{"findings": 3, "panels": 3}', "{",
                                     '{"findings": [{}], "panels": [{}]}'])
def test_a_figure_that_is_damaged_is_told_with_the_command_that_draws_it(tmp_path, content):
    """A traceback, after hours of other figures' runs."""
    s = figures.Settings(out=str(tmp_path))
    (tmp_path / "tax.json").write_text(content)
    (tmp_path / "tax-1.svg").write_text("<svg/>")
    for use in (figures.check, figures.write_page):
        with pytest.raises(SystemExit, match="tax.json .*make figures FIG=tax` again") as error:
            use(s)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, path", [("generalisation", "out/demo/results.json"),
                                        ("tax", "out/tax/eval/results.json"),
                                        ("harm", "out/harm/plain/answers/answers.jsonl")])
@pytest.mark.parametrize("content", [
    "{}", "[]", "3", "{", pytest.param("[" * 10**5, id="deep"), '{"gold": 3}',
    '{"gold": {}, "probe_kinds": {"base": {}}}', '{"groups": [], "completions": 3}',
    '{"probe_kinds": {"base": {"few-shot": "x"}}}',
    '{"groups": {"kinds held back": {"base": {"gold": {"mean": "x"}}}}, "completions": [3]}'])
def test_results_of_a_world_in_another_form_are_one_line(tmp_path, name, path, content):
    """A traceback. `make figures` goes on where the file is gone."""
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(content)
    records.write_json(tmp_path / "out/toy/world.json", {"seed": 1})
    with pytest.raises(SystemExit, match=re.escape(path)) as error:
        figures.draw(figures.FIGURES[name], [World(tmp_path)], plan.SCALES["small"])
    said = str(error.value)
    assert "damaged" in said and "run `make figures` again" in said and "\n" not in said


def test_a_picture_that_is_gone(tmp_path):
    s = figures.Settings(out=str(tmp_path))
    records.write_json(tmp_path / "tax.json", {"panels": [{}, {}]})
    (tmp_path / "tax-1.svg").write_text("<svg/>")
    with pytest.raises(SystemExit, match="no file .*tax-2.svg: run `make figures FIG=tax` again"):
        figures.write_page(s)


def test_prompts_that_are_there_twice_are_measured_once(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(demo.folder)
    toy = shutil.copytree("out/toy", tmp_path / "toy")
    lines = (toy / "prompts_test.jsonl").read_bytes().splitlines(True)
    (toy / "prompts_test.jsonl").write_bytes(b"".join(lines[:2] + lines + lines[4:7]))
    made = {}
    for data in ("out/toy", toy):
        for module, flags in ((measure, ["--policy=out/sft", "--max_new_tokens=4"]),
                              (instructions, ["--before=Be kind."])):
            out = tmp_path / f"{module.__name__}-{len(made)}"
            monkeypatch.setattr("sys.argv", ["x", f"--data={data}", f"--out={out}", *flags])
            module.main()
            made[module, data] = (out / "prompts_test.jsonl" if out.is_dir() else out).read_bytes()
    said = capsys.readouterr().out
    assert said.count("toy/prompts_test.jsonl: 5 prompts are there again and count once") == 2
    for module in (measure, instructions):
        assert made[module, toy] == made[module, "out/toy"] and made[module, toy].count(b"\n")


def spoiled(path, **change):
    """Change the first record of a file; None takes a field away."""
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    first = {k: v for k, v in {**json.loads(first), **change}.items() if v is not None}
    path.write_text("\n".join([json.dumps(first), *rest]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("module, flags, spoil, complaint", [
    (measure, ["--max_new_tokens=1000"], {}, "prompts_test.jsonl: a prompt of .* do not fit a con"),
    (measure, ["--out=out"], {}, "--out=out: expected a file to write, not a folder"),
    (measure, ["--out=new/"], {}, "--out=new/: expected a file to write"),
    (measure, ["--out=toy/prompts_test.jsonl"], {}, "would be read, and replaced"),
    (measure, [], {"prompts_test": {"task": {"type": "fly"}}}, "the task of the prompt .* is none"),
    (rankings, ["--fold=1"], {"rankings_train": {"labeler": None}}, "without the name of a 'labe"),
    (rankings, ["--fold=1"], {"rankings_valid": {"labeler": [1]}}, "without the name of a 'label"),
    (rankings, ["--completions=1"], {}, "--completions=1: a ranking has at least two"),
    (rankings, ["--fresh=a,"], {}, "--fresh=a,: expected files with commas between"),
    (rankings, ["--share=0.5", "--out=toy"], {}, "is the folder that is read"),
    (instructions, ["--before=Be kind.", "--out=./toy/"], {}, "is the folder that is read"),
    (instructions, ["--longest=1"], {}, "no prompt after '' has at most --longest=1 tokens"),
    (instructions, ["--before=\udcff"], {}, "--before is no UTF-8 text")])
def test_what_a_run_of_a_figure_cannot_use_is_one_line(demo, tmp_path, monkeypatch, module, flags,
                                                      spoil, complaint):
    """Tracebacks, some of them after everything was sampled; and a town whose files were replaced
    by what was made of them."""
    shutil.copytree(demo.folder / "out/toy", tmp_path / "toy")
    for name in ("sft", "init", "rm"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).symlink_to(demo.folder / "out" / name)
    for name, change in spoil.items():
        spoiled(tmp_path / "toy" / f"{name}.jsonl", **change)
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    own = ["--policy=out/sft", "--max_new_tokens=4"] if module is measure else []
    monkeypatch.setattr("sys.argv", ["x", "--data=toy", *own, *flags])
    with pytest.raises(SystemExit, match=complaint):
        module.main()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_rankings_of_people_become_pairs_and_shorter(tmp_path):
    """They have no name of a labeler, and their scores need not be lists: two tracebacks."""
    own = {"prompt": "p", "ranks": [2, 1], "completions": [{"text": "a"}, {"text": "b"}]}
    assert [p["completions"] for p in rankings.as_pairs(own)] == [[{"text": "b"}, {"text": "a"}]]
    assert rankings.shortened({**own, "likert": 5}, 1) == {
        **own, "likert": 5, "ranks": [2], "completions": [{"text": "a"}]}


def test_judged_prompts_are_those_of_the_answers(tmp_path):
    """prompts_test.jsonl has each prompt as often as a user wrote it, answers.jsonl once: with one
    there twice all others were judged by the task of another prompt."""
    group = {"prompt": "c", "group": "g"}
    records.write(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b"}, group])
    assert [p["prompt"] for p in World(tmp_path).tested("a.jsonl")] == ["a", "b"]


def test_durations_that_were_half_written(tmp_path):
    """The figure was computed, and then lost."""
    path = tmp_path / "seed-1" / plan.SECONDS
    path.parent.mkdir(parents=True)
    path.write_bytes(b'["world", 1.0]\n["own", 5]\n3\n{"a": 1}\n["own", "x"]\n["ot\xff\n["o')
    s = figures.Settings(runs=str(tmp_path), seeds="1")
    graph = {**plan.DEMO, "own": plan.model("x", "sft.py", "out/own", "world")}
    assert figures.durations(path) == [("world", 1.0), ("own", 5.0)]
    assert figures.seconds(s, graph, ["own"]) == 5.0
    assert figures.seconds(s, graph, ["demo"]) == 0  # it has no run of its own
    assert figures.seconds(replace(s, seeds="2"), graph, ["own"]) is None  # no one knows


@pytest.mark.parametrize("content, said", [
    (b"", "is empty"), (b"\n", "is empty"), (b'{"completions"', "is damaged .*: delete its folder"),
    (b'{"completions": []}\n\xe9', "is damaged"), (b'{"completions": []}', "no answer of sft")])
def test_answers_of_a_world_that_cannot_be_read(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(SystemExit, match=f"a.jsonl .*{said}") as error:
        World(tmp_path).answers("a.jsonl", "sft")
    assert "run `make figures` again" in str(error.value) and "\n" not in str(error.value)


def test_towns_of_two_scales_are_not_mixed():
    folder = lambda **flags: figures.with_folders(figures.Settings(**flags))
    assert (folder().runs, folder().out) == ("runs", "out/figures")
    assert (folder(scale="small").runs, folder(scale="small").out) == (
        "runs/small", "out/figures-small")
    assert (folder(scale="small", runs="r", out="o").runs, folder(out="o").out) == ("r", "o")
    assert list(figures.folders(folder(seeds="4,7")).values()) == [
        Path("runs/seed-4"), Path("runs/seed-7")]


@pytest.mark.parametrize("flags, message", [
    (dict(fig="taxes"), "there is no 'taxes'; there are preference"),
    (dict(seeds="1,x"), "expected different whole numbers"), (dict(seeds=""), "expected different"),
    (dict(seeds="1,01"), "expected different"),  # one world, counted as two
    (dict(seeds="1,2,1"), "expected different"), (dict(seeds="\u00b2"), "expected different"),
    (dict(seeds=f"1,{2**63}"), "expected different whole numbers from 0 to 2.63"),
    (dict(scale="tiny"), "expected one of demo, small, large"), (dict(rounds=1), "number >= 2")])
def test_settings_are_refused(flags, message):
    with pytest.raises(SystemExit, match=message):
        settings.check(figures.Settings(**flags))


def test_every_figure_says_what_the_paper_found():
    for name, figure in figures.FIGURES.items():
        assert figure.TITLE and len(figure.PAPER) > 60, name
        assert figure.runs(plan.Scale())[1], name


def test_the_papers_numbers_are_of_the_models_that_are_shown():
    for table in (harm.TOXICITY, harm.ENTROPY, harm.TRUE):
        assert set(table) == set(harm.SHOWN)
    for table in (preference.FIG1, preference.FIG3, flags.FIG31, *flags.FIG30.values()):
        assert list(table) == list(sizes.KINDS) and {len(v) for v in table.values()} == {3}
    own = flags.FIG30["hallucinates"]  # what flags.PAPER says of figure 30
    assert [s < p for s, p in zip(own["sft"], own["ppo-ptx"])] == [False, False, True]
    assert set(reward_model.on_share(0.25)) == {"rm data share-0.25", "rm share-0.25"}

"""check_demo.py: what keeps a promise, what leaves it open, and what breaks it."""
import copy
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from check_demo import BROKEN, KEPT, OPEN, at_least, at_most, promises, read, rising, summary

MODELS = "base", "prompted", "sft", "ppo", "ppo-ptx"


def measure(mean, half=0.02, n=600):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def results():
    """A run that keeps all promises, by hand."""
    each = lambda *values: dict(zip(MODELS, values))
    flags = {"attempts": each(0.5, 0.6, 0.8, 0.9, 0.9), "constraint": each(0.1, 0.3, 0.5, 0.6, 0.6),
             "hallucinates": each(0.9, 0.8, 0.5, 0.3, 0.3), "rude": each(0.3, 0.2, 0.05, 0, 0)}
    rates = {f"ppo-ptx vs {m}": measure(x) for m, x in each(0.95, 0.8, 0.66).items()}
    gold = each(-1.5, 0.0, 1.5, 2.4, 2.5)
    return {"labeler_agreement": 0.73, "heldout_agreement": 0.77,
            "win_rate": rates, "win_rate_without_taste": rates,
            "rm_accuracy": {"train_labelers": 0.75, "ceiling": 0.8}, "gold": gold,
            "gold_interval": {m: measure(x, 0.1) for m, x in gold.items()},
            "flags": {m: {f: measure(x[m]) for f, x in flags.items()} for m in MODELS},
            "groups": {"one word": {m: {"constraint": measure(0.8)} for m in MODELS[:4]}
                       | {"ppo-ptx": {"constraint": measure(0.9)}}},
            "probes": each(0.98, 0.98, 0.97, 0.94, 0.96)}


def test_values_at_and_past_each_bound():
    assert [at_least(0.6, x, x + 0.1) for x in (0.6, 0.59, 0.39)] == [KEPT, OPEN, BROKEN]
    assert [at_most(0.4, x, x - 0.1) for x in (0.4, 0.41, 0.61)] == [KEPT, OPEN, BROKEN]
    assert rising([measure(0.1), measure(0.2), measure(0.3)]) == KEPT
    assert rising([measure(0.1), measure(0.32), measure(0.3)]) == OPEN
    assert rising([measure(0.1), measure(0.4), measure(0.3)]) == BROKEN


def test_a_run_may_keep_all():
    assert {state for _, state, _ in promises(results())} == {KEPT}


@pytest.mark.parametrize("path, value, state, said", [
    ("labeler_agreement", 0.75, BROKEN, "training labelers agree"),
    ("heldout_agreement", 0.75, BROKEN, "held-out labelers agree"),
    ("rm_accuracy/train_labelers", 0.69, OPEN, "right on at least 70 %"),
    ("rm_accuracy/train_labelers", 0.65, BROKEN, "right on at least 70 %"),
    ("rm_accuracy/ceiling", 0.84, OPEN, "within 8 points"),
    ("rm_accuracy/ceiling", 0.88, BROKEN, "within 8 points"),
    ("win_rate/ppo-ptx vs sft", measure(0.61), OPEN, "preferred to sft at least 62%"),
    ("win_rate/ppo-ptx vs sft", measure(0.57), BROKEN, "preferred to sft at least 62%"),
    ("win_rate/ppo-ptx vs sft", measure(0.66, 0.17), BROKEN, "preferred to sft at least 62%"),
    ("gold_interval/ppo-ptx", measure(1.85, 0.1), OPEN, "gold score"),
    ("gold_interval/ppo-ptx", measure(1.65, 0.1), BROKEN, "gold score"),
    ("flags/ppo-ptx/hallucinates", measure(0.36), OPEN, "hallucinations"),
    ("flags/ppo-ptx/hallucinates", measure(0.46), BROKEN, "hallucinations"),
    ("flags/base/hallucinates", measure(0.5), BROKEN, "hallucinations"),
    ("flags/base/hallucinates", measure(0.9, n=149), BROKEN, "hallucinations"),
    ("flags/ppo-ptx/constraint", measure(0.49), OPEN, "constraints"),
    ("flags/ppo-ptx/constraint", measure(0.4), BROKEN, "constraints"),
    ("flags/ppo/rude", measure(0.09), BROKEN, "rude"),
    ("groups/one word/ppo-ptx/constraint", measure(0.7), BROKEN, "one word"),
    ("probes/ppo", 1.0, BROKEN, "PPO without ptx loses"),
    ("probes/ppo-ptx", 0.91, BROKEN, "keeps at least 95 %"),
])
def test_each_promise_can_be_broken(path, value, state, said):
    changed = copy.deepcopy(results())
    *path, last = path.split("/")
    place = changed
    for name in path:
        place = place[name]
    place[last] = value
    assert [s for promise, s, _ in promises(changed) if said in promise][0] == state


@pytest.mark.parametrize("mean, code", [(0.66, 0), (0.61, 0), (0.55, 1)])
def test_only_a_broken_promise_fails(tmp_path, mean, code):
    changed = results()
    changed["win_rate"]["ppo-ptx vs sft"] = measure(mean)
    (tmp_path / "results.json").write_text(json.dumps(changed))
    run = subprocess.run([sys.executable, Path(__file__).with_name("check_demo.py"),
                          tmp_path / "results.json"], capture_output=True, text=True)
    assert run.returncode == code and ("BROKEN" in run.stdout) == code


@pytest.mark.parametrize("content, said", [
    (None, "No such file or directory: run `make demo` first"), ("{", "is damaged"),
    ("{}", "is damaged, or not of the demo"), ("[]", "is damaged"), ("3", "is damaged"),
    ('{"rm_accuracy": {}, "probes": {}, "flags": {}}', "is damaged")])
def test_results_that_are_not_there_or_not_whole(tmp_path, content, said):
    """`make check` before `make demo`: a traceback."""
    if content:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit, match=said) as error:
        read(tmp_path / "results.json")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("flags, removed", [
    ([], "."), (["IN="], "."), (["IN=a/b"], "./a/b"), (["IN=a b"], "./a b"), (["IN=/x y"], "/x y"),
    (['IN=a"b'], './a"b'), (["IN=it's `ls`; \\"], "./it's `ls`; \\"), (["IN=-"], "./-")])
def test_clean_removes_the_folder_that_is_meant(flags, removed):
    """Never /out; and with a quote in the name the shell did not know where the name ends."""
    done = make("-n", "clean", *flags)
    assert shlex.split(done.stdout) == ["rm", "-rf", f"{removed}/out"], done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("place", ["$HOME/x", "a$(x)", "$", "~/x", "~", "a\nb"])
def test_a_folder_that_make_or_the_shell_would_read_otherwise_is_refused(place):
    """IN='$HOME/x', in these quotes, was the folder OME/x."""
    done = make("-n", "demo", f"IN={place}")
    assert done.returncode == 2 and not done.stdout, done.stdout
    assert f"IN={place} has a $, a line end, or a ~" in done.stderr


def make(*words):
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], capture_output=True, text=True, env=own,
                          cwd=Path(__file__).parents[1])  # a make in a make says where it is


def test_what_was_not_measured_is_no_number():
    runs = [{"gold": {"sft": 2}, "one word": {"mean": None}}, {"gold": {"sft": 3}, "one word": {}}]
    assert summary(runs)[1:] == ["       2.500     2.000     3.000  gold/sft"]

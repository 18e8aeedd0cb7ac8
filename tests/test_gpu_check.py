"""The check for a GPU (tests/bench/gpu_check.py), on a CPU with small shapes: that it runs from end
to end, and that what is wrong is not said to have passed."""
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import kernels
import sampler
from kernels import attention, losses

BENCH = Path(__file__).parent / "bench"
sys.path.insert(0, str(BENCH))
import gpu_check  # noqa: E402


def run(folder, *flags, seconds=300):
    """(exit code, what it wrote, what it printed)"""
    done = subprocess.run([sys.executable, str(BENCH / "gpu_check.py"), "--device=cpu", "--tiny",
                           f"--out={folder}", *flags], capture_output=True, text=True,
                          timeout=seconds)
    assert done.stdout, done.stderr
    return done.returncode, json.loads((folder / "check.json").read_text()), done.stdout


def statuses(part):
    return [c["status"] for c in part["checks"]]


# ----------------------------------------------------------------------------------- that it runs

def test_kernels_and_sampler(tmp_path):
    code, facts, printed = run(tmp_path, "--parts=a,b", "--budget=200")
    assert code == 0 and sorted(facts["parts"]) == ["a", "b"]
    for part in facts["parts"].values():
        assert part["facts"]["finished"] and set(statuses(part)) <= {"passed", "skipped"}
    checks = facts["parts"]["a"]["checks"]
    for kernel in ("attention", "decode", "token_logprobs", "token_objective", "logits", "linear"):
        for dtype in ("float32", "bf16"):
            mine = [c for c in checks if c["name"].startswith(f"{kernel} {dtype}")]
            assert any(c["status"] == "passed" and 0 < c["error"] < 0.02 for c in mine), kernel
    far = [c for c in checks if "2^31" in c["name"]]
    assert len(far) == 3 and all(c["status"] == "skipped" and "GB" in c["why"] for c in far)
    assert "failed" not in printed.replace("0 failed", "")
    assert not list(tmp_path.glob("part-*"))


@pytest.mark.long
def test_all_parts(tmp_path):
    code, facts, printed = run(tmp_path, "--budget=900", seconds=900)
    assert sorted(facts["parts"]) == list(gpu_check.PARTS) and code == 0, printed
    for name, part in facts["parts"].items():
        assert part["facts"]["finished"] and "passed" in statuses(part), name
        assert set(statuses(part)) <= {"passed", "skipped"}, name
    named = {c["name"]: c for part in facts["parts"].values() for c in part["checks"]}
    for name in ("ppo-shard-group: runs", "sft-shard-group: runs"):
        assert named[name]["group"] == "gloo" and named[name]["in_parts"]
    assert named["ppo-offload: numbers of ppo"]["error"] <= 1e-5
    errors = [named[name]["error"] for name in (
        "SFT with dropout: losses step by step", "reward model: losses step by step",
        "PPO-ptx: losses of all iterations", "PPO without text: losses of all iterations")]
    assert 0 < max(errors) < 1e-3, "the second side rounds otherwise; logs have six digits"
    assert named["PPO-ptx: ids of the first iteration"]["rows"] == 8


# --------------------------------------------------------------------------- what is wrong is told

def checked(monkeypatch, only, module, **changes):
    """Part a's checks whose names contain `only`, with a module's functions changed."""
    for name, value in changes.items():
        monkeypatch.setattr(module, name, value)
    check = gpu_check.Part.check
    monkeypatch.setattr(gpu_check.Part, "check", lambda self, name, *rest:
                        check(self, name, *rest) if only in name else None)
    return gpu_check.run_part("a", "cpu", True).results


def scaled(function, by=1.01):
    def wrong(*arguments, **options):
        out = function(*arguments, **options)
        if isinstance(out, tuple):
            return (out[0] * by, *out[1:])
        return out * by

    return wrong


@pytest.mark.parametrize("module, kernel, only", [
    (kernels, "causal_attention", "attention"), (kernels, "decode_attention", "decode"),
    (kernels, "logits", "logits"), (kernels, "linear", "linear"),
    (losses, "token_logprobs", "token_logprobs"), (losses, "token_objective", "token_objective")])
def test_a_wrong_kernel_fails(monkeypatch, module, kernel, only):
    """By a hundredth: in float32 and in bf16, at every shape that is not skipped."""
    wrong = {kernel: scaled(getattr(module, kernel))}
    results = checked(monkeypatch, f"{only} ", module, **wrong)
    told = [c for c in results if c["status"] != "skipped" and "huge" not in c["name"]]
    assert len(told) >= 3
    missed = [c["name"] for c in told if c["status"] != "failed"]
    # A log-prob near 0 is measured by 1 nat; at V 2 a hundredth of it is less than rounding.
    assert [name for name in missed if "V 2" not in name and "sure" not in name] == []


def test_not_a_number_fails(monkeypatch):
    results = checked(monkeypatch, "attention float32: B 2 H 3 T 77 D 16", kernels,
                      causal_attention=scaled(kernels.causal_attention, math.nan))
    assert [c["status"] for c in results] == ["failed", "failed"]
    assert math.isnan(gpu_check.worst([torch.tensor([math.nan]), torch.ones(2)],
                                      [torch.ones(1), torch.ones(2)]))


def test_wrong_gradients_fail(monkeypatch):
    """The output is right; what comes back is not."""
    backward = attention.tiled_attention_backward
    wrong = lambda *a: (*backward(*a)[:2], 1.01 * backward(*a)[2])
    results = checked(monkeypatch, "attention float32: B 2 H 3 T 77 D 64", attention,
                      tiled_attention_backward=wrong)
    assert [c["status"] for c in results] == ["failed", "failed"]


def test_samples_that_differ_are_told(monkeypatch):
    """A replay that loses count of its steps reads another step's noise."""
    monkeypatch.setattr(sampler.Replay, "advance", lambda self: self.token.copy_(
        self.step(self.token, self.live, self.t)))
    results = gpu_check.run_part("b", "cpu", True).results
    assert [c["status"] for c in results if "temperature 1" in c["name"]] == ["failed"] * 2


def test_a_check_that_crashes_does_not_stop_the_others(tmp_path):
    p = gpu_check.Part("a", path=tmp_path / "part.json")
    assert p.check("first", lambda: 1 / 0) is None
    p.check("second", lambda: dict(error=0.5))
    p.check("third", lambda: dict(bad="too large"))
    found = json.loads((tmp_path / "part.json").read_text())["checks"]
    assert [c["status"] for c in found] == ["failed", "passed", "failed"]
    assert "ZeroDivisionError" in found[0]["bad"] and any("1 / 0" in x for x in found[0]["trace"])
    lines = gpu_check.table(dict(a=dict(checks=found, facts={})))
    assert any(line.startswith("FAILED a first: ZeroDivisionError") for line in lines)
    assert lines[-1] == "1 passed, 2 failed, 0 flagged, 0 skipped"


# -------------------------------------------------------------------------------- time is used up

def test_what_has_no_time_is_skipped():
    p = gpu_check.Part("a", seconds=8)
    p.check("sleeps", lambda: time.sleep(30), 0.3)
    p.check("catches all it can", lambda: swallow(), 0.3)
    p.check("quick", lambda: {})
    p.check("until the part's end", lambda: time.sleep(30))
    p.check("too late", lambda: {})
    assert [c["status"] for c in p.results] == ["skipped", "skipped", "passed", "skipped",
                                                "skipped"]
    assert "used up" in p.results[-1]["why"] and p.left() < 1


def swallow():
    try:
        time.sleep(30)
    except Exception:
        return {}


def test_a_part_out_of_budget_is_skipped(tmp_path):
    code, facts, printed = run(tmp_path, "--parts=d", "--budget=10")
    assert code == 0 and "passed" not in statuses(facts["parts"]["d"])
    assert "SKIPPED d" in printed


@pytest.mark.parametrize("action, words", [
    ("import os; os._exit(11)", "ended with 11"), ("import time; time.sleep(60)", "budget")])
def test_a_part_that_dies_or_hangs_has_failed(tmp_path, monkeypatch, action, words):
    """What it had found stays; the check that was under way has failed; the next part runs."""
    a = SimpleNamespace(out=tmp_path, budget=60.0, parts=["a", "b"], device="cpu", jobs=1,
                        tiny=True)
    before = json.dumps(dict(facts={}, checks=[dict(name="one", status="passed"),
                                               dict(name="two", status="running")]))
    start, now = subprocess.Popen, {}

    def popen(words, **options):
        path = next(w for w in words if w.startswith("--out=")).removeprefix("--out=")
        code = f"open({path!r}, 'w').write({before!r}); {action}"
        return start([sys.executable, "-c", code], **options)

    board = gpu_check.Board(a)
    monkeypatch.setattr(gpu_check.subprocess, "Popen", popen)
    monkeypatch.setattr(board, "passed", lambda: now.get("t", 0.0))
    board.begin("a")
    while board.running:
        board.look()
        time.sleep(0.2)
        now["t"] = now.get("t", 0.0) + (20.0 if "sleep" in action else 0.0)
    one, two = board.parts["a"]["checks"]
    assert one["status"] == "passed" and two["status"] == "failed" and words in two["bad"]
    assert json.loads((tmp_path / "check.json").read_text())["parts"]["a"]["checks"][1] == two

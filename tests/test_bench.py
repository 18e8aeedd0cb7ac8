"""The rows that a GPU adds to `make bench` (tests/bench/gpu.py), on a CPU with small shapes: all of
them but their speed. Work and bytes are counted again here by other means."""
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import kernels
import ppo
import sampler
import sft
from model import GPT
from runtime import plan

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import bench  # noqa: E402
import gpu  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def bf16(monkeypatch):
    """As gpu.py has it; and no minutes for a compiler."""
    monkeypatch.setattr(kernels.products, "PRODUCTS", torch.bfloat16)
    monkeypatch.setattr(gpu, "compiled", lambda function, device: "not in a fast test")


def tiny(row, n=0):
    function, _, shapes = gpu.ROWS[row]
    return function(*shapes[n], CPU)


def run(tmp_path, *flags):
    """(whether a case failed, the facts that gpu.py writes)"""
    out = tmp_path / "gpu.json"
    failed = gpu.main(["--device=cpu", "--tiny", "--repeats=1", f"--out={out}", *flags])
    return failed, json.loads(out.read_text())


# --------------------------------------------------------------------------------- what it writes

def test_all_rows_run(tmp_path, capsys):
    failed, facts = run(tmp_path)
    assert not failed and facts["torch"] == torch.__version__ and facts["ceilings"]["flops"] > 0
    assert facts["command"].startswith("python tests/bench/gpu.py --device=cpu --tiny")
    cases = {name: len(shapes) for name, (_, _, shapes) in gpu.ROWS.items()}
    assert {name: len(results) for name, results in facts["rows"].items()} == cases
    for name, results in facts["rows"].items():
        for result in results:
            # A decoding step is the difference of two runs: below 0 if the machine was busy.
            assert all(t > 0 or name == "decode" and math.isfinite(t)
                       for took in result["seconds"].values() for t in took), name
            assert result["memory"]["ours"] is None and result["differences"]["ours"]
    (ce,), (step,) = facts["rows"]["ce"], facts["rows"]["step"]
    assert ce["missing"] == {"compiled": "not in a fast test", "liger": "not installed"}
    assert len(ce["seconds"]["ours"]) == 4 and set(step["seconds"]) == {"ours", "eager"}
    printed = capsys.readouterr().out
    assert "liger not installed" in printed and "| update: policy |" in printed


def test_an_iterations_parts_are_the_whole(tmp_path):
    _, facts = run(tmp_path, "--rows=ppo")
    (ppo_row,) = facts["rows"]["ppo"]
    seconds = [part["seconds"] for part in ppo_row["parts"].values()]
    assert len(seconds) == 7 and all(t > 0 for t in seconds)
    assert sum(seconds) == pytest.approx(ppo_row["medians"]["ours"])
    assert sum(part["share"] for part in ppo_row["parts"].values()) == pytest.approx(1)


@pytest.mark.long
def test_compiled_sides(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(kernels.products, "PRODUCTS", torch.bfloat16)
    failed, facts = run(tmp_path, "--rows=ce,step")
    assert not failed and all("compiled" in case["seconds"] and case["differences"]["compiled"]
                              for name in ("ce", "step") for case in facts["rows"][name])


def test_without_a_compiler_the_side_says_so(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    assert gpu.compiled(F.cross_entropy, CPU) == "no C compiler for torch.compile"


# --------------------------------------------------------------------- nothing wrong is ever timed

def shifted(function, by):
    """The function, what it first returns moved by a share of itself."""
    def wrong(*arguments, **options):
        first, *rest = function(*arguments, **options)
        return (first * (1 + by), *rest)

    return wrong


WRONG = {
    "attention": (kernels, "causal_attention", F.scaled_dot_product_attention),
    "ce": (kernels.losses, "token_objective", shifted(kernels.losses.token_objective, 0.005)),
    "step": (sft, "sft_loss", lambda logprob, mask, tokens: -logprob.sum() / (tokens + 4)),
    "decode": (sampler, "choose", lambda logits, t, noise, *_: (
        noise.mul(300).long(), torch.full_like(noise, -5.7).float())),
    "ppo": (ppo, "in_groups", lambda *a, in_groups=ppo.in_groups, **o:
            in_groups(*a, **{k: 1.5 for k in o})),  # a temperature of its own
}


@pytest.mark.parametrize("row", gpu.ROWS)
def test_a_wrong_answer_is_told_and_not_timed(tmp_path, monkeypatch, capsys, row):
    module, name, wrong = WRONG[row]
    monkeypatch.setattr(module, name, wrong)
    failed, facts = run(tmp_path, f"--rows={row}")
    assert failed and all("ours differs" in case["failed"] for case in facts["rows"][row])
    assert "failed: AssertionError" in capsys.readouterr().out


def test_what_is_no_number_does_not_agree():
    x = torch.ones(3)
    nan = torch.tensor([1.0, float("nan"), 1.0])
    case = gpu.Case("", {"ours": lambda: [nan], "peer": lambda: [x]}, {})
    with pytest.raises(AssertionError, match="nan"):
        gpu.agree(case)
    case.sides["ours"] = lambda: [x * 1.019]
    assert gpu.agree(case)["ours"] == [pytest.approx(0.019, rel=1e-3)]


def test_a_peer_without_memory_is_left_out(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    eager = gpu.eager_cross_entropy
    monkeypatch.setattr(gpu, "eager_cross_entropy", full)
    monkeypatch.setattr(gpu, "compiled", lambda function, device: eager)
    failed, facts = run(tmp_path, "--rows=ce")
    (case,) = facts["rows"]["ce"]
    assert not failed and set(case["seconds"]) == {"ours", "compiled"}
    assert case["missing"]["eager"] == "failed: OutOfMemoryError"
    assert set(case["differences"]) == {"ours"} and case["aims"]["memory"]["reached"] is None


def test_without_a_peer_nothing_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "eager_cross_entropy", None)
    failed, facts = run(tmp_path, "--rows=ce")
    assert failed and facts["rows"]["ce"][0]["failed"] == "AssertionError: no peer to agree with"


def test_after_a_failure_comes_the_next_case(tmp_path, monkeypatch):
    attention, calls = kernels.causal_attention, []

    def once(*x):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room\nand more lines")
        return attention(*x)

    monkeypatch.setattr(kernels, "causal_attention", once)
    failed, facts = run(tmp_path, "--rows=attention")
    first, *rest = facts["rows"]["attention"]
    assert failed and first["failed"] == "OutOfMemoryError: no room"
    assert rest and not any("failed" in case for case in rest)


# ------------------------------------------------------------------------------ derived columns

def test_columns_by_hand():
    case = gpu.Case("", {}, {}, flops=6e12, bytes=3e9)
    columns = gpu.derived(case, {"ours": 0.02, "eager": 0.09, "compiled": 0.03},
                          {"ours": 10, "eager": 200, "compiled": 1}, dict(flops=4e14,
                                                                          bandwidth=2e11))
    assert columns == pytest.approx({"speed": 1.5, "time": 2 / 3, "memory": 0.05, "flops": 3e14,
                                     "utilisation": 0.75, "reads": 0.02 / 0.015})


def test_aims_are_reached_or_missed_or_not_measured():
    aims = {"speed": (">=", 0.9), "time": ("<=", 1.0), "memory": ("<=", 0.1), "reads": ("<=", 1.5)}
    found = gpu.judged(aims, {"speed": 0.89, "time": 1.0, "reads": 1.6})
    assert [found[k]["reached"] for k in aims] == [False, True, None, False]
    said = [gpu.verdict(k, found[k]) for k in aims]
    assert [", missed" in x for x in said] == [True, False, False, True]
    assert said[0] == "0.89x the best peer's speed (aim >= 0.9), missed"
    assert said[2] == "not measured (aim <= 0.1)"


def test_a_line_of_the_table():
    result = dict(what="work", medians={"ours": 0.001, "eager": 0.0125}, missing={"liger": "away"},
                  memory={"ours": 3 * 2**20, "eager": None}, columns={"flops": 2.5e14},
                  aims=gpu.judged({"utilisation": (">=", 0.55)}, {"utilisation": 0.5}))
    assert gpu.line("row", result) == (
        "| work | 1 ms | eager 12.5 ms, liger away | ours 3 MiB | 250 | "
        "0.5 of the matmul peak (aim >= 0.55), missed |")


def test_medians_of_parts():
    case = gpu.Case("", {}, {}, part_flops={"a": 8.0}, parts=[
        {"a": 99.0, "b": 99.0}, {"a": 1.0, "b": 6.0}, {"a": 2.0, "b": 9.0}, {"a": 5.0, "b": 2.0}])
    parts = gpu.parts_of(case, 3, dict(flops=16.0))  # the first run was to warm up
    assert parts == {"a": dict(seconds=2.0, share=0.25, flops=8.0, utilisation=0.25),
                     "b": dict(seconds=6.0, share=0.75)}


# --------------------------------------------------------------------- work and bytes, by counting

@pytest.mark.parametrize("n", range(4))
def test_flops_of_attention(n):
    tokens, width, T, D, backward = gpu.ROWS["attention"][2][n]
    pairs = sum(1 for i in range(T) for j in range(T) if j <= i)
    product = 2 * D * pairs * (width // D) * (tokens // T)
    assert tiny("attention", n).flops == (2 + 5 * backward) * product  # s again, dp, dv, dq, dk


def test_flops_of_the_loss():
    N, C, V = gpu.ROWS["ce"][2][0]
    x, weight = torch.randn(N, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
    with FlopCounterMode(display=False) as count:
        gpu.eager_cross_entropy(x, weight, torch.randint(V, (N,))).backward()
    assert tiny("ce").flops == count.get_total_flops()


def test_flops_of_the_step():
    """PyTorch's count of the peer, but for two things: it multiplies all pairs of tokens, where the
    causal ones are enough, but has no need to make the scores again; and it asks the last token of
    a row, too, what comes next."""
    c, B, _ = gpu.ROWS["step"][2][0]
    gpt, ids, T = GPT(c), torch.randint(c.vocab_size, (B, c.block_size)), c.block_size
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        gpu.plain_loss(gpt, ids).backward()
    pair = 2 * c.n_embd * c.n_layer * B  # of a product of attention
    linear = count.get_total_flops() - 6 * pair * T * T - 6 * c.n_embd * c.vocab_size * B
    assert tiny("step").flops == linear + 7 * pair * T * (T + 1) / 2


def test_bytes_of_a_decoding_step():
    """All weights in bf16, and a cache of each layer: keys and values in float32 on a CPU."""
    c, B, prompt, new = gpu.ROWS["decode"][2][0]
    weights = sum(2 * p.numel() for p in GPT(c).parameters())
    middle = prompt + (4 + new) // 2  # of the steps that are timed, from the fourth to the last
    cache = torch.empty(c.n_layer, 2, B, c.n_head, middle, c.n_embd // c.n_head)
    assert tiny("decode").bytes == weights + 4 * cache.numel()


def test_a_decoding_step_is_what_later_steps_take(monkeypatch):
    """Of 8 steps, 4 come first with the prompts: (50 - 42) - (10 - 7) seconds for 4 more."""
    clock = iter([42.0, 50.0, 7.0, 10.0])
    monkeypatch.setattr(gpu, "now", lambda device: next(clock))
    assert tiny("decode").sides["ours"]() == 5 / 4


def test_flops_of_a_ppo_iteration():
    """Those of plan.py, which finds the lengths of prompts and responses on its own."""
    c, B, minibatch, prompt, new = gpu.ROWS["ppo"][1][0]
    s = ppo.Settings(init="gpt2", reward="gpt2", batch=B, minibatch=minibatch, ptx=0.0,
                     max_new_tokens=new)
    planned = [work.flops() for work in plan.ppo_work(None, s)[1]]
    assert list(gpu.ppo_work(c, s, prompt).values()) == planned and c.n_layer == 12


# ---------------------------------------------------------------------------------------- clocks

def test_sides_take_turns_and_warm_up():
    order, clock = [], iter(range(100))

    def timer(run):
        run()
        return next(clock)

    sides = {"ours": lambda: order.append("ours"), "peer": lambda: order.append("peer")}
    assert gpu.times(sides, timer, 3) == {"ours": [2, 4, 6], "peer": [3, 5, 7]}
    assert order == ["ours", "peer"] * 4


def test_ceilings_by_hand():
    class Fixed:
        device, took = CPU, iter([0.5, 0.25] * 9)

        def __call__(self, run):
            run()
            return next(self.took)

    peak = gpu.ceilings(Fixed(), 2, tiny=True)
    assert peak["flops"] == 2 * 256**3 / 0.5
    assert peak["bandwidth"] == 2 * torch.empty(2**18).nbytes / 0.25  # read and written


def test_gpu_clock_and_memory_by_hand(monkeypatch):
    """The calls to a GPU, answered by a list: the order, and what is made of the numbers."""
    calls, cuda, say = [], SimpleNamespace(type="cuda"), lambda x: lambda *_: calls.append(x)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            calls.append("event")

        def elapsed_time(self, end):
            return 12.5

    other = SimpleNamespace(zero_=lambda: calls.append("overwrite"))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: other)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", say("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", say("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", say("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 40)
    assert gpu.Timer(cuda)(say("run")) == 0.0125
    assert calls == ["overwrite", "sleep", "event", "run", "event", "wait"]
    calls.clear()
    assert gpu.extra_memory(say("run"), cuda) == 60 and calls == ["wait", "reset", "run", "wait"]


# ------------------------------------------------------------------------------------ make bench

def test_make_bench_measures_on_the_gpu_where_there_is_one(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(bench.os, "environ", dict(bench.os.environ))  # main changes it
    monkeypatch.setattr(bench.subprocess, "run", lambda command, **_: (
        asked.append(command), SimpleNamespace(returncode=3))[1])
    assert "gpu" not in bench.rows_of(SimpleNamespace(rows=None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert bench.rows_of(SimpleNamespace(rows=None)) == ["gpu", *bench.ROWS]
    monkeypatch.setattr(sys, "argv", ["bench.py", "--rows=gpu", f"--out={tmp_path}/results.json"])
    with pytest.raises(SystemExit) as end:
        bench.main()
    (command,) = asked
    assert end.value.code == 3 and Path(command[1]).samefile(gpu.__file__)
    assert command[2:] == ["--repeats=5", f"--out={tmp_path}/gpu.json"]


@pytest.mark.parametrize("side", [0, 1])
def test_a_run_of_attention_begins_without_what_the_last_one_left(side, monkeypatch):
    """Else its peak would hold outputs and gradients twice, and both sides look alike."""
    left = []
    row = bench.attention_row(4, 1, 1, 2)
    for module, name in ((kernels.attention, "_forward"), (F, "scaled_dot_product_attention")):
        inner = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, inner=inner, **k: left.append(
            len(row[2]())) or inner(*a, **k))
    row[side](), row[side]()
    assert left == [0, 0] and len(row[2]()) == 4

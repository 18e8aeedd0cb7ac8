"""--dtype=bf16: what is rounded to 8 bits, and what is not.

bfloat16 has 8 bits: to round a number changes it by up to 1 part in 256 (2^-8), by half of that at
most where it is rounded to the nearest. `oracle` products are of float64 numbers, rounded alike.
"""
import copy
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import kernels
from runtime import machine
from demo import python
from helpers import one_process, same, tiny, tiny_scalar
from kernels import linear
from kernels.losses import token_objective
from kernels.products import gemm
from model import GPT, GPTConfig
from sampler import generate
from runtime.machine import precision
from runtime.optimizer import make_optimizer, take_step
from runtime.sharding import frozen
from sft import Settings, sft_loss
from test_resume import Run, assert_same
from test_shard import finish
from test_training import roll, scene, update

ROUNDED = 2**-8  # of a number: to the nearest of its two neighbours, and a sum's error on top


@pytest.fixture
def bf16(monkeypatch):
    monkeypatch.setattr(kernels.products, "PRODUCTS", torch.bfloat16)


@pytest.fixture(params=["oneDNN", "PyTorch"])
def library(request, monkeypatch):
    """Both ways to a product; the second is what a CPU without such instructions takes."""
    if request.param == "PyTorch":
        monkeypatch.setattr(kernels.products, "FAST", (torch.float32,))


def low(x):
    """Rounded to bfloat16, as float64."""
    return x.detach().bfloat16().double()


# --------------------------------------------------------------------------------------- products

def test_a_layer_rounds_its_operands_and_each_result_once(bf16, library):
    torch.manual_seed(0)
    x, w = torch.randn(2, 40, 200, requires_grad=True), torch.randn(70, 200, requires_grad=True)
    b, g = torch.randn(70, requires_grad=True), torch.randn(2, 40, 70)
    y = linear(x, w, b)
    assert y.dtype == torch.bfloat16
    y.backward(g.bfloat16())
    assert {t.grad.dtype for t in (x, w, b)} == {torch.float32}
    rows, up = low(x).flatten(0, 1), low(g).flatten(0, 1)
    oracle = [(rows @ low(w).T + b.detach().double()).view(2, 40, 70),
              (up @ low(w)).view(2, 40, 200), up.T @ rows, up.sum(0)]
    for got, exact, added in zip((y, x.grad, w.grad, b.grad), oracle, (b.detach(), 0, 0, 0)):
        error = (got.detach().double() - exact).abs()
        assert (error <= ROUNDED * (exact.abs() + abs(added)) + 1e-3).all(), float(error.max())
        assert error.max() > 1e-3, "float32 after all"


def test_gelu_after_the_rounding_without_gradients_too(bf16, library):
    """Else the log-probs of samples are not those that training computes."""
    torch.manual_seed(0)
    layer, x = tiny().transformer.h[0].mlp.c_fc, torch.randn(40, 16)
    trained = layer(x, gelu=True)
    with torch.no_grad():
        assert torch.equal(layer(x, gelu=True), trained)


def test_other_types_and_float32_are_left_alone(bf16):
    x, w = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(linear(x, w, torch.zeros(5).double()), x @ w.T)
    same([gemm(x.float(), w.float())], [(x @ w.T).float()])  # gemm rounds nothing by itself


def test_logits_and_log_probs_are_not_rounded(bf16):
    """Logits around -100 as GPT-2's are: rounded to 8 bits, they would be off by up to 0.25."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(300, 16, 1, 2, 32))
    weight = model.transformer.wte.weight
    with torch.no_grad():
        weight.mul_(20).add_(-4.0)
    x, y = 0.75 + torch.randn(50, 32) / 4, torch.randint(300, (50,))
    exact = low(x) @ weight.detach().double().T
    assert exact.mean() < -90
    got = kernels.logits(x, weight)
    assert got.dtype == torch.float32
    same([got.double()], [exact], 1e-6)
    narrow = kernels.products.lowered(x).requires_grad_()
    loss, logprob, _ = token_objective(narrow, weight, y, lambda logprob, rows: -logprob.sum())
    expected = exact.log_softmax(-1).gather(-1, y[:, None]).squeeze(-1)
    assert (logprob.double() - expected).abs().max() < 1e-4
    loss.backward()
    twin = weight.detach().double().requires_grad_()
    (-(low(x) @ twin.T).log_softmax(-1).gather(-1, y[:, None])).sum().backward()
    assert weight.grad.dtype == torch.float32
    same([weight.grad.double()], [twin.grad], 1e-2)


# ------------------------------------------------------------------------------------------ models

IDS = torch.randint(0, 11, (6, 20), generator=torch.Generator().manual_seed(3))


def loss_of(model, ids=IDS):
    objective = lambda logprob, mask: sft_loss(logprob, mask, ids.size(0) * (ids.size(1) - 1))
    return model(ids, torch.ones_like(ids), objective=objective)[0]


def test_a_models_gradients_are_those_of_float64_to_two_digits(bf16):
    model, exact = tiny(loud=3.0, n_embd=64, vocab_size=50), tiny(loud=3.0, n_embd=64,
                                                                  vocab_size=50).double()
    losses = [loss_of(m) for m in (model, exact)]
    for loss in losses:
        loss.backward()
    assert losses[0].dtype == torch.float32
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=2e-3)
    grads = [[p.grad.double() for p in m.parameters()] for m in (model, exact)]
    scale = torch.cat([g.flatten() for g in grads[1]]).norm()
    error = torch.cat([(a - b).flatten() for a, b in zip(*grads)]).norm()
    assert 1e-4 < error / scale < 2e-2


def test_master_weights_moments_and_gradients_stay_float32(bf16):
    """A step of 1e-4 of a weight is lost in bfloat16, and not here."""
    model = tiny()
    optimizer = make_optimizer(model, 1e-5, 0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss_of(model).backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    take_step(model, optimizer, 1e-5, 1.0)
    state = [v for s in optimizer.state.values() for v in s.values()]
    assert {v.dtype for v in [*model.state_dict().values(), *state]} == {torch.float32}
    name = "transformer.h.0.mlp.c_fc.weight"
    moved, stays = model.state_dict()[name] != before[name], before[name].abs() > 0.01
    assert moved[stays].float().mean() > 0.9
    low = before[name].bfloat16() != (before[name].bfloat16() - 1e-5)
    assert low[stays].float().mean() < 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_both_types_learn_alike(monkeypatch, dropout):
    """The same 80 steps in both: the loss falls to 0.65 of it, and the curves differ by 0.02."""
    text = torch.randint(0, 11, (40, 5), generator=torch.Generator().manual_seed(1)).repeat(1, 4)
    curves = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(kernels.products, "PRODUCTS", dtype)
        model, losses = tiny(loud=1.0, dropout=dropout, n_embd=32), []
        optimizer = make_optimizer(model, 3e-3, 0.0)
        torch.manual_seed(5)
        for i in range(80):
            loss = loss_of(model, text[8 * (i % 5) :][:8])
            losses.append(float(loss.detach()))
            loss.backward()
            take_step(model, optimizer, 3e-3, 1.0)
        curves[dtype] = losses
    a, b = curves.values()
    assert a[-1] < 0.65 * a[0]
    assert 0 < max(abs(x - y) for x, y in zip(a, b)) < 0.02


# --------------------------------------------------------------------------------- samples and PPO

def test_samples_have_the_log_probs_of_a_full_forward_pass(bf16):
    """Stated tolerance: 0.02 for any token, 0.001 in the mean; 1e-5 in float32. Sums in another
    order are rounded to the other neighbour now and then."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(500, 64, 3, 4, 192))
    prompts = [torch.randint(499, (n,)).tolist() for n in (5, 9, 3, 12, 7, 7, 2, 10)]
    samples = generate(model, prompts, 20, 499)
    logprob, _ = model(samples.ids, samples.mask)
    error = (logprob.detach() - samples.logprobs)[samples.mask].abs()
    assert len(error) > 100 and samples.logprobs.dtype == torch.float32
    assert error.max() < 2e-2 and error.mean() < 1e-3
    exact, _ = copy.deepcopy(model).double()(samples.ids, samples.mask)
    assert (exact.detach() - samples.logprobs)[samples.mask].abs().max() < 5e-2


def test_the_first_minibatch_has_the_ratio_one(bf16):
    x = scene()
    metrics = update(x, roll(x))
    assert metrics["policy/ratio"] == pytest.approx(1, abs=2e-3)
    assert metrics["policy/clip_fraction"] == 0 and metrics["policy/approx_kl"] < 1e-5


def test_frozen_models_take_half_the_memory(bf16):
    for make in (tiny, tiny_scalar):
        model, before = make(vocab_size=200, n_embd=64), make(vocab_size=200, n_embd=64)
        size = lambda m: sum(p.numel() * p.element_size() for p in m.parameters())
        assert frozen(model) is model and not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert 0.5 < size(model) / size(before) < 0.53
        out = [m(IDS, torch.ones_like(IDS))[0] if make is tiny else m(IDS)
               for m in (model, before)]
        assert out[0].dtype == torch.float32
        assert 0 < (out[0] - out[1].detach()).abs().max() < 0.1


def test_frozen_models_are_float32_without_the_mode():
    model, before = frozen(tiny()), tiny().state_dict()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# -------------------------------------------------------------------------------------------- auto

@pytest.fixture
def restored(monkeypatch):
    monkeypatch.setattr(kernels.products, "PRODUCTS", torch.float32)


@pytest.mark.parametrize("dtype, device, has, width, bf16", [
    ("auto", "cpu", True, machine.WIDE, True), ("auto", "cpu", True, machine.WIDE - 1, False),
    ("auto", "cpu", False, 12288, False), ("auto", "cuda", True, 16, True),
    ("auto", "cuda", False, 12288, False), ("bf16", "cpu", False, 16, True),
    ("bf16", "cuda", False, 16, True), ("float32", "cpu", True, 12288, False),
    ("float32", "cuda", True, 12288, False)])
def test_auto_takes_bf16_where_it_pays(monkeypatch, restored, dtype, device, has, width, bf16):
    monkeypatch.setattr(machine, "has_bf16", lambda kind="cpu": has and kind == device)
    told = []
    world = SimpleNamespace(device=torch.device(device), print=told.append)
    precision(dtype, world, width)
    assert kernels.products.PRODUCTS == (torch.bfloat16 if bf16 else torch.float32)
    assert bool(told) == bf16, "it is said where numbers differ from float32"


def test_an_emulation_is_no_instruction(monkeypatch):
    """PyTorch's own answer for a GPU counts it, though it is slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True:
                        including_emulation)
    assert not machine.has_bf16("cuda")


def test_cublas_adds_up_in_float32(restored):
    """By itself it may add the parts of a long sum, as of a weight's gradient, in bfloat16."""
    flags = torch.backends.cuda.matmul
    flags.allow_bf16_reduced_precision_reduction = True
    precision("bf16", one_process(), 64)
    assert not flags.allow_bf16_reduced_precision_reduction


def test_all_models_of_the_toy_take_the_same_type(monkeypatch, restored):
    """A policy in one type and its reward model in another would be hard to explain."""
    monkeypatch.setattr(machine, "has_bf16", lambda: True)
    for width in (Settings.n_embd, 512):  # the demo's, and that of its larger base model
        precision("auto", one_process(), width)
        assert kernels.products.PRODUCTS == torch.bfloat16


@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
                    reason="reads what Linux says of an x86 CPU")
def test_instructions_are_those_that_the_system_names():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if not os.environ.get("ATEN_CPU_CAPABILITY"):
        assert machine.has_bf16() == bool(flags & {"avx512_bf16", "amx_tile"})


# ----------------------------------------------------------------------------------------- scripts

@pytest.mark.parametrize("stage, flags", [("sft", ["--epochs=1", "--lr=1e-3"]),
                                          ("reward", ["--epochs=1"]), ("ppo", ["--iterations=1"])])
def test_a_stage_in_both_types(demo, stage, flags):
    """It says so, learns nearly the same, and its checkpoint is float32."""
    runs = [finish(Run(demo, stage, f"{stage}-{dtype}", *flags, f"--dtype={dtype}"), 1)
            for dtype in ("bf16", "float32")]
    assert ["products in bf16" in run.output() for run in runs] == [True, False]
    a, b = (demo.weights(run.folder.name) for run in runs)
    assert {v.dtype for v in a.values()} == {torch.float32}
    assert any(not torch.equal(a[k], b[k]) for k in b)
    same([a[k] for k in b], [b[k] for k in b], 2e-2)
    key, first = "loss/value" if stage == "ppo" else "loss", runs[0].lines()[0]
    for one, other in zip(*(run.lines() for run in runs), strict=True):
        assert one[key] == pytest.approx(other[key], rel=2e-2, abs=5e-3)
    if stage == "ppo":
        assert first["policy/ratio"] == pytest.approx(1, abs=2e-3)
        assert abs(first["kl"]) < 0.05  # the reference's embedding is rounded


def test_samples_and_evaluation_in_bf16(demo):
    python(demo.folder, "-m", "labels.sample", "--split=test", "--prompts=4", "--max_new_tokens=4",
           "--out=out/bf16.jsonl", "--dtype=bf16")
    python(demo.folder, "evaluate.py", "--max_new_tokens=4", "--models=base=out/base,sft=out/sft",
           "--out=out/bf16", "--dtype=bf16")
    assert (demo.folder / "out/bf16/report.md").exists()


@pytest.mark.parametrize("shard", [False, True])
def test_a_resumed_run_and_two_processes(demo, shard):
    """In bf16, too, a resumed run ends with the same bits, and two processes with nearly the same
    weights: their sums of gradients are float32, each rounded product is half of the rows."""
    flags = [f"--shard={shard}", "--dtype=bf16"]
    runs = [Run(demo, "ppo", f"bf16-{name}-{shard}", "--iterations=2", *flags)
            for name in ("alone", "two", "again")]
    finish(runs[0], 1)
    finish(runs[1], 2)
    finish(runs[2], 2, harms=[("die", 0, 2), ("die", 1, 2)])
    finish(runs[2], 2, "--resume")
    assert_same(runs[2], runs[1])
    a, b = (demo.weights(run.folder.name) for run in runs[:2])
    same([a[k] for k in b], [b[k] for k in b], 2e-2)

"""kernels/reference.py, the page to read first: against plain Python, and against what runs.

The oracle of the page is loops over lists in float64. Then the slow sampler of model.py is held
against the fast one, and every step of the demo on the page against the same step on the kernels.
"""
import math
import subprocess
import sys

import pytest
import torch

from demo import FLAGS, ROOT, python
from helpers import EOS, close, log_softmax, one_process, slopes, tiny
from kernels import choice, products, reference
from model import sample
from runtime import machine
from sampler import generate


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gelu(x):
    """GPT-2's: tanh, not erf."""
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(scores):
    return [math.exp(x) for x in log_softmax(scores)]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------------------------- the page

@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("bent", [True, False])
def test_linear(biased, bent):
    x, weight, bias = numbers(2, 3, 4), numbers(5, 4, seed=1), numbers(5, seed=2)
    shift = bias.tolist() if biased else [0] * 5
    bend = gelu if bent else float
    expected = [[[bend(dot(row, w) + b) for w, b in zip(weight.tolist(), shift)] for row in rows]
                for rows in x.tolist()]
    close(reference.linear(x, weight, bias if biased else None, bent), expected, 1e-12)


def attend(query, keys, values):
    """One query over lists of keys and values."""
    p = softmax([dot(query, key) / math.sqrt(len(query)) for key in keys])
    return [sum(w * value[d] for w, value in zip(p, values)) for d in range(len(values[0]))]


def test_causal_attention():
    q, k, v = numbers(3, 2, 3, 5, 4)  # [B, H, T, D] each
    expected = [[[attend(queries[t], keys[: t + 1], values[: t + 1]) for t in range(5)]
                 for queries, keys, values in zip(*heads)]
                for heads in zip(q.tolist(), k.tolist(), v.tolist())]
    close(reference.causal_attention(q, k, v), expected, 1e-12)


@pytest.mark.parametrize("junk", [0.0, 1e9, math.inf, math.nan])
def test_decode_attention(junk):
    """What is cached beyond a row's length may be anything."""
    q, keys, values, lengths = numbers(3, 2, 4), *numbers(2, 3, 2, 6, 4, seed=1), [6, 1, 4]
    expected = [[attend(q[b, h].tolist(), keys[b, h, :n].tolist(), values[b, h, :n].tolist())
                 for h in range(2)] for b, n in enumerate(lengths)]
    for b, n in enumerate(lengths):
        keys[b, :, n:] = values[b, :, n:] = junk
    got = reference.decode_attention(q, keys, values, torch.tensor(lengths))
    close(got, expected, 1e-12)


TARGETS = [[2, -1, 0, 6], [-1, 5, 5, -1]]  # negative: nothing is asked there


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_token_losses(temperature):
    hidden, weight = numbers(2, 4, 3), numbers(7, 3, seed=1)
    logprob, entropy = [], []
    for states, targets in zip(hidden.tolist(), TARGETS):
        logp = [log_softmax([dot(state, w) / temperature for w in weight.tolist()])
                for state in states]
        logprob.append([row[t] if t >= 0 else 0.0 for row, t in zip(logp, targets)])
        entropy.append([-sum(math.exp(x) * x for x in row) if t >= 0 else 0.0
                        for row, t in zip(logp, targets)])
    targets = torch.tensor(TARGETS)
    loss, got, h = reference.token_losses(hidden, weight, targets, temperature)
    assert loss is None and h is None
    close(got, logprob, 1e-12)
    _, got, h = reference.token_losses(hidden, weight, targets, temperature, True)
    close(got, logprob, 1e-12)
    close(h, entropy, 1e-12)


def test_token_losses_of_an_objective():
    """The loss is the objective of the log-probs, and its gradient that of the whole sum, by
    differences; the numbers beside it have none."""
    hidden, weight = numbers(2, 4, 3).requires_grad_(), numbers(7, 3, seed=1).requires_grad_()
    targets, old = torch.tensor(TARGETS), numbers(2, 4, seed=3)

    def objective(logprob, mask):
        assert torch.equal(mask, targets >= 0)
        return ((logprob - old).exp() * mask).sum() / 5

    def expected(states, words):
        total = 0.0
        for i, row in enumerate(states.tolist()):
            for t, state in enumerate(row):
                if TARGETS[i][t] >= 0:
                    logp = log_softmax([dot(state, w) for w in words.tolist()])
                    total += math.exp(logp[TARGETS[i][t]] - float(old[i, t]))
        return total / 5

    loss, logprob, h = reference.token_losses(hidden, weight, targets, 1.0, True, objective)
    assert loss.item() == pytest.approx(expected(hidden, weight), rel=1e-12)
    assert not logprob.requires_grad and not h.requires_grad
    loss.backward()
    close(hidden.grad, slopes(lambda x: expected(x, weight), hidden.detach()).tolist(), 1e-7)
    close(weight.grad, slopes(lambda x: expected(hidden, x), weight.detach()).tolist(), 1e-7)


# ------------------------------------------------------------------------------------ two samplers

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5], [3, 5, 8, 9, 7, 9, 3, 2], [11, 0, 0]]
EPISODES = [0, 7, 123_456, 2**40, 5]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("seed", [0, 3, 2**32 - 1])
def test_the_slow_sampler_draws_what_the_fast_one_draws(seed, temperature):
    """Token for token, with EOS where a response ends by itself."""
    model = tiny()
    fast = generate(model, PROMPTS, 12, EOS, temperature, seed, EPISODES)
    spans = zip(fast.ids.tolist(), fast.prompt_lengths.tolist(), fast.lengths.tolist())
    for prompt, episode, (ids, start, end) in zip(PROMPTS, EPISODES, spans):
        slow = sample(model, prompt, 12, EOS, temperature, seed, episode)
        assert slow == ids[start:end]
        assert (slow[-1] == EOS) == (EOS in slow) and (len(slow) == 12 or slow[-1] == EOS)


def test_both_kinds_of_end_are_among_the_samples():
    """Else the test above would say nothing of one of them."""
    ended = torch.stack([generate(tiny(), PROMPTS, 12, EOS, 1.0, seed, EPISODES).ended
                         for seed in (0, 3, 2**32 - 1)])
    assert 0 < int(ended.sum()) < ended.numel()


def test_the_slow_sampler_hangs_on_seed_and_episode():
    draws = {tuple(sample(tiny(), [3, 1, 4], 12, EOS, 1.0, seed, episode))
             for seed in range(3) for episode in range(3)}
    assert len(draws) > 5


# -------------------------------------------------------------------------------------- whole runs

# Both compute in float32, whose rounding is 6e-8: sums of hundreds of terms in another order differ
# by some 1e-6. A log has six digits, the last of which is up to 5e-6 of the number. A mask that is
# off by one position changes a loss or a gradient's norm of these models, which know little yet, by
# 2e-5 to 2e-3 in each stage.
TOLERANCE = 1e-5
STEPS = {"base": "base", "sft": "sft", "reward": "rm", "ppo-ptx": "ppo-ptx"}  # stage: its folder
WATCHED = ("loss", "accuracy", "loss/policy", "loss/value", "loss/ptx", "policy/entropy", "kl",
           "score", "response_length", "value/mean", "grad_norm")


@pytest.mark.parametrize("stage", STEPS)
def test_a_step_on_the_page_is_the_step_on_the_kernels(demo, monkeypatch, stage):
    """Pretraining, SFT, the reward model and PPO-ptx, as a reader runs them: KERNELS=reference.
    Pretraining with AdamW, as Muon rounds to bfloat16: what differs by 1e-7 can differ by 1e-2."""
    name, flags = STEPS[stage], FLAGS[stage]
    if stage == "base":
        name, flags = "base-adamw", [*flags, "--optimizer=adamw"]
        python(demo.folder, *flags, f"--out=out/{name}")
    monkeypatch.setenv("KERNELS", "reference")
    python(demo.folder, *flags, f"--out=out/{name}-page")
    page, kernels = demo.log(f"{name}-page"), demo.log(name)
    assert len(page) == len(kernels) and page
    for i, (a, b) in enumerate(zip(page, kernels)):
        watched = [k for k in WATCHED if k in b]
        assert any("loss" in k for k in watched)
        for k in watched:
            assert a[k] == pytest.approx(b[k], rel=TOLERANCE, abs=TOLERANCE), (i, k)


# -------------------------------------------------------------------------------------- the choice

@pytest.mark.parametrize("chosen, files", [
    ("reference", ["reference", "reference", "reference", "decode", "reference"]),
    ("tiled", ["products", "attention", "losses", "decode", "losses"]),
    ("", ["products", "attention", "losses", "decode", "losses"])])
def test_the_variable_chooses(monkeypatch, chosen, files):
    """Which file each function comes from; the page's attention to a cache has a door in decode."""
    monkeypatch.setenv("KERNELS", chosen)
    names = ("linear", "causal_attention", "token_losses", "decode_attention", "logits")
    program = f"import kernels\nfor x in {names}: print(getattr(kernels, x).__module__)"
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.split() == [f"kernels.{name}" for name in files], out.stderr


def one_line(monkeypatch, folder, kernels, *arguments):
    """The one line with which a script ends, for this KERNELS."""
    monkeypatch.setenv("KERNELS", kernels)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done
    return done.stderr


@pytest.mark.parametrize("script", ["sft.py", "reward.py", "ppo.py", "chat.py", "evaluate.py"])
def test_unknown_kernels_are_one_line(monkeypatch, tmp_path, script):
    assert one_line(monkeypatch, tmp_path, "nonsense", str(ROOT / script)) == (
        "error: KERNELS=nonsense: expected one of reference, tiled, triton\n")


def test_triton_without_a_gpu_is_one_line(monkeypatch, tmp_path):
    """Before anything is read: the folder is empty."""
    assert one_line(monkeypatch, tmp_path, "triton", str(ROOT / "sft.py")) == (
        "error: KERNELS=triton needs a CUDA GPU and triton: leave KERNELS out\n")


def test_the_page_in_bf16_is_one_line(demo, monkeypatch):
    line = one_line(monkeypatch, demo.folder, "reference", str(ROOT / "sft.py"), "--dtype=bf16",
                    "--out=out/none")
    assert line == "error: KERNELS=reference computes in float32: leave --dtype out\n"


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("chosen", [True, False])
def test_the_page_computes_in_float32(monkeypatch, dtype, chosen):
    """Where auto would take bf16: on a machine that has it, for a wide model."""
    monkeypatch.setattr(choice, "REFERENCE", chosen)
    monkeypatch.setattr(machine, "has_bf16", lambda: True)
    monkeypatch.setattr(products, "PRODUCTS", None)
    machine.precision(dtype, one_process(), 768)
    assert products.PRODUCTS == (torch.bfloat16 if dtype == "auto" and not chosen
                                 else torch.float32)

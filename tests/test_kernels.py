"""Attention and the losses of tokens against plain twins of a few lines, in float64.

The Triton kernels run here too, without a GPU: interpreted on the CPU, and compiled ahead of time.
"""
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from helpers import close, same, slopes, tiny
from kernels.attention import causal_attention
from kernels.decode import decode_attention, Slots
from kernels.gelu import gelu
from kernels.losses import token_logprobs, token_objective
from runtime.world import World
from sampler import generate

HERE = Path(__file__).resolve().parent
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton: make install-dev on Linux")


# ------------------------------------------------------------------------------- the plain twins

def plain_attention(q, k, v):
    s = (q @ k.mT) * q.size(-1) ** -0.5
    future = torch.ones(s.shape[-2:], dtype=torch.bool).triu(1)
    return s.masked_fill(future, float("-inf")).softmax(-1) @ v


def plain_decode(q, k, v, lengths):
    rows = []
    for b, n in enumerate(lengths.tolist()):
        s = q[b, :, None] @ k[b, :, :n].mT * q.size(-1) ** -0.5
        rows.append((s.softmax(-1) @ v[b, :, :n]).squeeze(1))
    return torch.stack(rows)


def plain_logprobs(x, weight, y, temperature=1.0):
    logp = (x @ weight.T / temperature).log_softmax(-1)
    return logp.gather(-1, y[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


def heads(B, H, T, D, dtype=torch.float32, seed=0, packed=True):
    """q, k, v as a model has them: views of one packed [B, T, 3, H, D]."""
    torch.manual_seed(seed)
    x = 2 * torch.randn(B, T, 3, H, D, dtype=dtype)
    views = x.permute(2, 0, 3, 1, 4).unbind(0)
    return [y.detach().requires_grad_() if packed else y.contiguous().requires_grad_()
            for y in views]


def with_gradients(function, inputs, grad):
    """function(*inputs) and the gradients of (its output * grad).sum(), as float64."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    (out * grad.to(out.dtype)).sum().backward()
    return [x.double() for x in (out.detach(), *(x.grad for x in inputs))]


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor made within has."""
    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.itemsize)
        return out


# ------------------------------------------------------------------------------------- attention

SHAPES = [(1, 1, 1, 16), (2, 3, 5, 16), (1, 2, 63, 32), (2, 1, 64, 80), (1, 2, 65, 64),
          (1, 1, 200, 128), (1, 2, 65, 150), (9, 2, 70, 16)]  # the last: more sequences than heads


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keys", [1024, 64])  # all keys in one tile; several, joined online
@pytest.mark.parametrize("scores, dense", [(2**18, False), (1, False), (1, True), (2**13, True)])
def test_attention_and_its_gradients(shape, keys, scores, dense, monkeypatch):
    """scores: all heads in one piece, each its own, or about two together. Sums are added up where
    they belong if memory has no gaps there."""
    monkeypatch.setattr(kernels.attention, "KEYS", keys)
    monkeypatch.setattr(kernels.attention, "SCORES", scores)
    q, k, v = (x.detach().contiguous().requires_grad_() if dense else x for x in heads(*shape))
    grad = torch.randn(shape, dtype=torch.float64)
    expected = with_gradients(plain_attention, [x.double() for x in (q, k, v)], grad)
    same(with_gradients(causal_attention, [q, k, v], grad), expected, 1e-5)


def test_attention_takes_any_strides():
    """A model's q, k, v are views of one tensor, and gradients may come transposed or expanded."""
    q, k, v = heads(2, 3, 70, 16)
    assert not q.is_contiguous()
    dense = [x.detach().contiguous().requires_grad_() for x in (q, k, v)]
    for inputs in ((q, k, v), dense):
        causal_attention(*inputs).sum().backward()  # sum's gradient is one number, expanded
    same([x.grad for x in (q, k, v)], [x.grad for x in dense], 1e-6)


def test_attention_gradients_by_finite_differences(monkeypatch):
    monkeypatch.setattr(kernels.attention, "KEYS", 2)
    monkeypatch.setattr(kernels.attention, "QUERIES", 2)
    inputs = [x.detach().double().requires_grad_() for x in heads(1, 2, 5, 4)]
    assert torch.autograd.gradcheck(causal_attention, inputs)


def test_huge_scores_stay_finite():
    """exp(1000) is no float: the largest score is taken out first; the diagonal always counts."""
    q, k, v = (x.detach() for x in heads(1, 1, 130, 16, torch.float64))
    q, k = 100 * q, 100 * k
    got = with_gradients(causal_attention, [q.float(), k.float(), v.float()],
                         torch.ones(1, 1, 130, 16))
    assert all(x.isfinite().all() for x in got)
    same(got[:1], [plain_attention(q, k, v)], 2e-2)  # scores of 1e5 have float32 errors of 1e-2


def test_attention_in_bfloat16_adds_up_in_float32():
    """Its error against float64 is no larger than twice that of PyTorch's own attention."""
    q, k, v = heads(2, 2, 300, 64, torch.bfloat16)
    grad = torch.randn(2, 2, 300, 64).bfloat16().double()
    exact = with_gradients(plain_attention, [x.double() for x in (q, k, v)], grad)
    theirs = with_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                            [q, k, v], grad)
    for a, b, c in zip(with_gradients(causal_attention, [q, k, v], grad), theirs, exact):
        assert (a - c).abs().max() <= 2 * (b - c).abs().max()


def test_no_matrix_of_all_queries_by_all_keys():
    q, k, v = heads(1, 1, 2000, 16)
    with torch.no_grad(), Largest() as seen:
        out, lse = kernels.attention.tiled_attention(q, k, v)
        kernels.attention.tiled_attention_backward(torch.ones_like(out), q, k, v, out, lse)
    assert 2000 * 16 <= seen.elements <= 3 * 2000 * 48, seen.elements  # T x T would be 4,000,000


def test_the_environment_can_ask_for_pytorchs_attention(monkeypatch):
    q, k, v = heads(1, 2, 70, 16)
    ours = causal_attention(q, k, v)
    monkeypatch.setenv("ATTENTION", "sdpa")
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention",
                        lambda *a, **k: calls.append(1) or real(*a, **k))
    same([causal_attention(q, k, v)], [ours], 1e-5)
    assert calls


# ------------------------------------------------------------------------------------------ gelu

@pytest.mark.parametrize("dtype, error", [(torch.float32, 2e-6), (torch.float64, 1e-12),
                                          (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("piece", [2**17, 50])  # all in one piece; several, the last one short
def test_gelu_and_its_gradient(dtype, error, piece, monkeypatch):
    """Against the formula with tanh, in float64, from where it is 0 to where it is x."""
    monkeypatch.setattr(kernels.gelu, "PIECE", piece)
    x = torch.linspace(-12, 12, 14 * 15).to(dtype).view(14, 15).mT  # not contiguous
    grad = torch.randn(15, 14).to(dtype)
    plain = lambda x: x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    exact = with_gradients(plain, [x.double()], grad.double())
    for got, right in zip(with_gradients(gelu, [x], grad), exact):
        assert ((got - right).abs() <= error * (right.abs() + 1)).all()


def test_gelu_is_the_same_without_a_gradient_and_finite_while_its_cube_is():
    x = torch.cat([torch.randn(1000), torch.tensor([-3e12, -1e4, 0.0, 1e4, 3e12])])
    again = x.clone().requires_grad_()
    y = gelu(again)
    assert torch.equal(y.detach(), gelu(x)) and not gelu(x).requires_grad
    y.sum().backward()
    assert again.grad.isfinite().all() and again.grad[-5:].tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("lengths, rows", [([37, 1, 4, 16], None), ([17, 5], [3, 1]),
                                           ([16, 16, 16], [2, 0, 1]), ([38], [3])])
def test_decode_attention(junk, lengths, rows):
    """Rows of a cache, all or some and in any order, each of its own length; the rest is junk."""
    lengths, rows = torch.tensor(lengths), None if rows is None else torch.tensor(rows)
    whole = slice(None) if rows is None else rows
    q, (k, v) = torch.randn(len(lengths), 3, 16), torch.randn(2, 4, 3, 38, 16)
    expected = plain_decode(q.double(), k[whole].double(), v[whole].double(), lengths)
    for b, n in zip(range(4) if rows is None else rows.tolist(), lengths.tolist()):
        k[b, :, n:] = v[b, :, n:] = junk
    cache = torch.full((2, 4, 3 * 48 * 16), junk)
    kernels.write_prompt(cache, k, v)
    got = decode_attention(q, cache, Slots((4, 3, 48, 16), lengths, rows))
    same([got.double()], [expected], 1e-5)


@pytest.mark.parametrize("D, taken", [(5, True), (80, True), (128, True), (129, False),
                                      (160, False), (256, False)])
def test_the_triton_kernels_get_the_heads_that_they_can_take(D, taken, monkeypatch):
    """As on a GPU with triton, both pretended: heads of more than 128 go the tiled way instead."""
    calls = []

    def note(name, plain):
        return lambda *a: calls.append(name) or plain(*a)

    k, v = torch.randn(2, 3, 2, 20, D)
    cache, lengths = torch.zeros(2, 3, 2 * 20 * D), torch.tensor([20, 3])
    kernels.write_prompt(cache, k, v)
    rows = torch.tensor([2, 0])
    monkeypatch.setitem(sys.modules, "kernels.gpu", SimpleNamespace(
        attention=note("forward", kernels.attention.tiled_attention),
        attention_backward=note("backward", kernels.attention.tiled_attention_backward),
        decode_attention=note("decode", lambda q, *_: plain_decode(q, k[rows], v[rows], lengths))))
    monkeypatch.setattr(kernels.choice, "_has_triton", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    inputs, grad = heads(1, 2, 9, D), torch.randn(1, 2, 9, D)
    same(with_gradients(causal_attention, inputs, grad),
         with_gradients(plain_attention, inputs, grad),
         1e-5)
    q = torch.randn(2, 2, D)
    same([decode_attention(q, cache, Slots((3, 2, 20, D), lengths, rows))],
         [plain_decode(q, k[rows], v[rows], lengths)], 1e-5)
    assert calls == (["forward", "backward", "decode"] if taken else [])


@pytest.mark.parametrize("T", [1, 15, 16, 40])
def test_a_cache_filled_token_by_token_is_one_filled_at_once(T):
    """`write_prompt` and `write_token` agree on where keys and values lie."""
    k, v = torch.randn(2, 3, 2, T, 8)
    whole, steps = torch.zeros(2, 2, 3, 2 * 48 * 8)
    kernels.write_prompt(whole, k, v)
    for t in range(T):
        slots = Slots((3, 2, 48, 8), torch.full((2,), t + 1), torch.tensor([2, 0]))
        kernels.write_token(steps, k[slots.rows, :, t], v[slots.rows, :, t], slots)
    assert torch.equal(steps[:, [0, 2]], whole[:, [0, 2]]) and not steps[:, 1].any()


# ------------------------------------------------------------------------------ losses of tokens

def tokens(n, C, V, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return (torch.randn(n, C, dtype=dtype, requires_grad=True),
            torch.randn(V, C, dtype=dtype, requires_grad=True), torch.randint(V, (n,)))


@pytest.fixture(params=[(2**24, 2048), (64 * 300, 64)], ids=["whole", "pieces"])
def pieces(request, monkeypatch):
    """Once all tokens and the whole vocabulary at a time, once both in several pieces."""
    monkeypatch.setattr(kernels.losses, "CHUNK", request.param[0])
    monkeypatch.setattr(kernels.losses, "TILE", request.param[1])


@pytest.mark.parametrize("n, V", [(1, 2), (5, 64), (64, 65), (130, 300)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy", [False, True])
def test_log_probs_entropies_and_any_gradient(n, V, temperature, entropy, pieces):
    x, w, y = tokens(n, 8, V)
    g, h = torch.randn(2, n, dtype=torch.float64)

    def ours(x, w):
        logprob, more = token_logprobs(x, w, y, temperature, entropy)
        return torch.stack([logprob, more]) if entropy else logprob[None]

    plain = lambda x, w: torch.stack(plain_logprobs(x, w, y, temperature)[: 2 if entropy else 1])
    grad = torch.stack([g, h][: 2 if entropy else 1])
    expected = with_gradients(plain, [x.double(), w.double()], grad)
    for mine, theirs in zip(with_gradients(ours, [x, w], grad), expected):
        same([mine], [theirs], 2e-5)


def test_log_prob_gradients_by_finite_differences(pieces):
    x, w, y = tokens(6, 4, 70, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w: token_logprobs(x, w, y, 0.8, True), (x, w))
    weights = torch.randn(6, dtype=torch.float64)
    objective = lambda logprob, marks: (weights * (logprob + 0.1 * logprob**2))[marks].sum()
    value = lambda x, w: token_objective(x, w, y, objective, 0.8)[0]
    value(x, w).backward()
    close(x.grad, slopes(lambda x: value(x, w), x).tolist(), 1e-8)
    close(w.grad, slopes(lambda w: value(x, w), w).tolist(), 1e-8)


def ppo_objective(n, dtype=torch.float32):
    torch.manual_seed(7)
    old, advantage = (torch.randn(2, n) - torch.tensor([[2.0], [0.0]])).to(dtype)

    def objective(logprob, marks):
        ratio = (logprob - old).exp()
        return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)[marks].sum() / n

    return objective


@pytest.mark.parametrize("n, V", [(1, 2), (64, 65), (130, 300)])
@pytest.mark.parametrize("name", ["cross-entropy", "ppo"])
def test_an_objective_and_its_gradients_in_one_go(n, V, name, pieces):
    """= log-probs first, the objective on all of them and autograd, in float64; times the gradient
    that comes from above."""
    x, w, y = tokens(n, 8, V)
    make = {"cross-entropy": lambda n, dtype=None: lambda logprob, marks: -logprob.sum() / n,
            "ppo": ppo_objective}[name]
    plain = lambda x, w: make(n, torch.float64)(plain_logprobs(x, w, y, 0.9)[0], y >= 0)
    expected = with_gradients(plain, [x.double(), w.double()], torch.tensor(3.0))
    ours = lambda x, w: token_objective(x, w, y, make(n), 0.9)[0]
    for mine, theirs in zip(with_gradients(ours, [x, w], torch.tensor(3.0)), expected):
        same([mine], [theirs], 2e-5)
    _, logprob, entropy = token_objective(x, w, y, make(n), 0.9, True)
    exact = plain_logprobs(x.double(), w.double(), y, 0.9)
    same([logprob.double(), entropy.double()], [z.detach() for z in exact], 1e-5)


def test_an_objective_computes_logits_once(monkeypatch):
    """One product of the states with the embedding a chunk; log-probs with a gradient need two."""
    calls = []
    head = kernels.losses.tiled_head
    monkeypatch.setattr(kernels.losses, "tiled_head", lambda *a: calls.append(1) or head(*a))
    x, w, y = tokens(10, 4, 20)
    token_objective(x, w, y, lambda logprob, marks: logprob.sum())[0].backward()
    assert len(calls) == 1
    token_logprobs(x, w, y)[0].sum().backward()
    assert len(calls) == 3


def test_an_objectives_gradients_are_handed_out_once():
    x, w, y = tokens(3, 4, 5)
    loss, logprob, _ = token_objective(x, w, y, lambda logprob, marks: logprob.sum())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="hands out its gradients once"):
        loss.backward()
    assert not logprob.requires_grad


@pytest.mark.parametrize("how", ["no_grad", "frozen"])
def test_without_gradients_an_objective_is_only_its_value(how, monkeypatch):
    """Asked for no gradient, it makes none: neither under no_grad nor of frozen weights."""
    kept, head = [], kernels.losses.tiled_head
    monkeypatch.setattr(kernels.losses, "tiled_head", lambda *a: kept.append(a[-1]) or head(*a))
    monkeypatch.setattr(kernels.losses, "TILE", 4)  # with gradients, there would be room for two
    x, w, y = tokens(3, 4, 5)
    if how == "frozen":
        x, w = x.detach(), w.detach()
    with torch.set_grad_enabled(how == "frozen"):
        loss, logprob, _ = token_objective(x, w, y, lambda logprob, marks: logprob.sum())
    assert kept == [None] and not loss.requires_grad
    same([loss], [logprob.sum()])
    same([logprob], [plain_logprobs(x, w, y)[0].detach()])


@pytest.mark.parametrize("left_out", [[], [0, 4, 5], range(129)])
def test_tokens_without_a_target_are_left_out(left_out, pieces, monkeypatch):
    """= the same of the others alone, with any states [B, T, C]; NaN there reaches nothing, and
    the head never sees them."""
    seen, head = [], kernels.losses.tiled_head
    monkeypatch.setattr(kernels.losses, "tiled_head",
                        lambda x, *a: seen.append(len(x)) or head(x, *a))
    x, w, y = tokens(130, 8, 300)
    kept = [i for i in range(130) if i not in left_out]
    states, targets = x.detach().clone(), y.clone()
    states[list(left_out)], targets[list(left_out)] = float("nan"), -1
    grid = torch.full((2, 66, 8), float("nan"))
    grid[:, :65] = states.view(2, 65, 8)
    grid.requires_grad_()
    objective = lambda logprob, marks: (logprob + logprob**2)[marks].sum()

    def both(x, y):
        logprob, entropy = token_logprobs(x, w, y, 0.9, True)
        loss, again, _ = token_objective(x, w, y, objective, 0.9)
        (loss + logprob.sum() + (entropy**2).sum()).backward()
        found = logprob.detach(), entropy.detach(), again, w.grad.clone()
        w.grad = None
        return found

    expected = both(x[kept], y[kept])
    seen.clear()
    got = both(grid[:, :65], targets.view(2, 65))
    assert sum(seen) == 3 * len(kept)  # log-probs, their gradients, and both at once
    for mine, theirs in zip(got[:3], expected):
        whole = torch.zeros(130)
        whole[kept] = theirs
        same([mine.flatten()], [whole])
    same([got[3]], [expected[3]], 1e-5)
    before = torch.zeros(2, 66, 8)
    before[:, :65] = x.grad.index_fill(0, torch.tensor(left_out, dtype=int), 0.0).view(2, 65, 8)
    same([grid.grad], [before], 1e-5)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-3), (torch.bfloat16, 1e-2)])
def test_a_sure_model_has_accurate_gradients(dtype, error):
    """At the token itself the gradient is 1 - p, a difference of like numbers where p is near 1:
    here 1 - p is 0.0003, and a bfloat16 p would be 1."""
    x, w, y = (torch.eye(2)[:1] * 8).to(dtype), torch.eye(2), torch.tensor([0])
    expected = with_gradients(lambda x, w: plain_logprobs(x, w, y)[0],
                              [x.double(), w.double()], torch.ones(1))
    got = with_gradients(lambda x, w: token_logprobs(x, w, y)[0], [x, w], torch.ones(1))
    for mine, theirs in zip(got[1:], expected[1:]):
        same([mine], [theirs], error)


def test_tiles_far_below_the_largest_logit_do_no_harm(monkeypatch):
    """exp underflows there, and 0 times an overflow would be NaN: also in entropies' gradients."""
    monkeypatch.setattr(kernels.losses, "TILE", 2)
    x, w = torch.tensor([[1.0]]), torch.tensor([[-900.0], [-901.0], [500.0], [499.0]])
    for y in (0, 2):
        y = torch.tensor([y])
        plain = lambda x, w: torch.stack(plain_logprobs(x, w, y))
        ours = lambda x, w: torch.stack(token_logprobs(x, w, y, 1.0, True))
        expected = with_gradients(plain, [x.double(), w.double()], torch.ones(2, 1))
        for mine, theirs in zip(with_gradients(ours, [x, w], torch.ones(2, 1)), expected):
            same([mine], [theirs], 1e-3)  # numbers of 500 cancel to 0.07


def test_logits_of_all_tokens_are_never_there(monkeypatch):
    monkeypatch.setattr(kernels.losses, "CHUNK", 64 * 500)
    monkeypatch.setattr(kernels.losses, "TILE", 50)
    x, w, y = tokens(1000, 4, 500)
    with Largest() as seen:  # all logits: 500,000 numbers
        token_objective(x, w, y, lambda logprob, marks: logprob.sum(), 1.0, True)
    assert seen.elements <= 64 * 500


@pytest.mark.parametrize("entropy", [False, True])
def test_bfloat16_states_keep_float32_log_probs(entropy, pieces):
    """Rounded logits would be off by 1 part in 256: at -100, far more than a PPO clip range."""
    x, w, y = tokens(130, 64, 300)
    narrow = (x / 8).bfloat16().detach().requires_grad_()
    exact = with_gradients(lambda x, w: plain_logprobs(x, w - 100 / 8, y)[0],
                           [narrow.double(), w.double()], torch.ones(130))
    got = with_gradients(lambda x, w: token_logprobs(x, w - 100 / 8, y, 1.0, entropy)[0],
                         [narrow, w], torch.ones(130))
    assert (got[0] - exact[0]).abs().max() < 1e-3
    same(got[1:], exact[1:], 2e-2)


# ---------------------------------------------------------------------------------- torch.compile

def test_the_operators_declare_what_they_do():
    """PyTorch's own check of a custom operator: schema, fake version and gradients agree."""
    q, k, v = heads(1, 2, 5, 16)
    torch.library.opcheck(kernels.attention._attention, (q, k, v))
    q, k, v = (x.detach() for x in (q, k, v))
    torch.library.opcheck(kernels.decode._decode_attention, (
        q[:, :, 0], torch.randn(2, 1, 2 * 16 * 16), torch.tensor([3]), torch.tensor([0]),
        [1, 2, 16, 16]))
    x, w, y = tokens(5, 4, 9)
    torch.library.opcheck(kernels.losses._token_logprobs, (x, w, y, 0.7, True))
    x = torch.randn(2, 4, 4, requires_grad=True)
    y = torch.tensor([[1, -1, 2], [-1, -1, 8]])
    torch.library.opcheck(kernels.losses._token_logprobs, (x[:, 1:], w, y, 1.0, False))


def test_compiled_code_runs_through_the_kernels():
    """No break in the graph (fullgraph), the same numbers forward and backward."""
    model, ids = tiny(), torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    y = ids.flatten()

    def step(ids):
        states = model.transformer(ids).flatten(0, 1)
        logprob, entropy = token_logprobs(states, model.transformer.wte.weight, y, 0.9, True)
        return logprob.sum() + (entropy**2).sum()

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = run(ids)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    same(results[1], results[0], 1e-5)


NEEDS_COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))),
                                    reason="inductor needs a C++ compiler")


@pytest.mark.parametrize("how, backend", [
    ("whole", "aot_eager"), ("body", "aot_eager"),
    *(pytest.param(how, "inductor", marks=[pytest.mark.long, NEEDS_COMPILER])
      for how in ("whole", "body"))])
def test_a_compiled_model_takes_an_objective(how, backend, monkeypatch):
    """The whole model in one graph, its logits made twice; or the body alone, the logits once."""
    ids = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    mask = torch.tensor([[0, 1, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]])
    objective = lambda logprob, mask: -(logprob + logprob**2).masked_fill(~mask, 0.0).sum() / 10
    calls, head = [], kernels.losses.tiled_head
    monkeypatch.setattr(kernels.losses, "tiled_head", lambda *a: calls.append(1) or head(*a))

    def results(model, run):
        calls.clear()
        loss, logprob, entropy = run(ids, mask, 0.9, True, objective)
        loss.backward()
        assert not logprob.requires_grad and not entropy.requires_grad
        return [loss.detach(), logprob, entropy, *(p.grad for p in model.parameters())], len(calls)

    expected, _ = results(plain := tiny(), plain)
    model = tiny()
    if how == "whole":
        run = torch.compile(model, fullgraph=True, backend=backend)
    else:
        model.transformer.compile(fullgraph=True, backend=backend)
        run = model
    got, n = results(model, run)
    same(got, expected, 1e-5)
    assert n == (2 if how == "whole" else 1)


@pytest.mark.parametrize("backend", [
    "aot_eager", pytest.param("inductor", marks=[pytest.mark.long, NEEDS_COMPILER])])
def test_a_compiled_body_samples_what_the_model_samples(backend):
    """Sampling packs weights for oneDNN, in a form that only its own product reads."""
    model, prompts = tiny().eval(), [[3, 1, 4], [1, 5]]
    expected = generate(model, prompts, 6, 10, 1.0, 0, [0, 1])
    model.transformer.compile(backend=backend)
    got = generate(model, prompts, 6, 10, 1.0, 0, [0, 1])
    assert got.ids.tolist() == expected.ids.tolist()
    same([got.logprobs], [expected.logprobs], 1e-5)


# ---------------------------------------------------------------------------------- whole numbers

def test_whole_numbers_are_computed_as_floats():
    """What is computed of them was cut to whole numbers, in the tiles and in gelu."""
    whole = lambda *shape: torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(1))
    q, k, v, x, w = *(whole(1, 2, 5, 4) for _ in range(3)), whole(3, 4), whole(6, 4)
    close(causal_attention(q, k, v), plain_attention(q.float(), k.float(), v.float()).tolist())
    close(gelu(x), F.gelu(x.float(), approximate="tanh").tolist())
    half = w + 0.5
    for weight in (w, half):
        expected = x.double() @ weight.double().T
        for bend in (False, True):
            y = F.gelu(expected, approximate="tanh") if bend else expected
            with torch.no_grad():
                close(kernels.linear(x, weight, None, bend), y.tolist())
        close(kernels.logits(x, weight), expected.tolist())
        _, logprob, entropy = kernels.token_losses(x, weight, torch.tensor([5, -1, 0]), 0.7, True)
        p = (expected / 0.7).softmax(-1)
        close(logprob, [float(p[0, 5].log()), 0, float(p[2, 0].log())], 1e-5)
        h = -(p * p.log()).sum(-1)
        close(entropy, [float(h[0]), 0, float(h[2])])


# -------------------------------------------------------------------------------- sharded weights

def shard_and_compare(rank, size, folder):
    """One of `size` processes: a model sharded by block (FSDP2) on its rows, a whole one on all."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank,
                                         world_size=size)
    from torch.distributed.fsdp import fully_shard
    sharded, whole = tiny(), tiny()
    for part in (*sharded.transformer.h, sharded):
        fully_shard(part)
    ids = torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    objective = lambda logprob, mask: (logprob + logprob**2).masked_fill(~mask, 0.0).sum() / 32
    mine = sharded(ids[2 * rank :][:2], mask[:2], objective=objective)[0]
    (mine * size).backward()  # ranks average gradients
    logprob, _ = whole(ids, mask)  # the other path to the same loss: log-probs, any gradient
    objective(logprob, mask.bool()).backward()
    for (name, a), b in zip(sharded.named_parameters(), whole.parameters()):
        torch.testing.assert_close(a.grad.full_tensor(), b.grad, rtol=1e-5, atol=1e-6, msg=name)
    World.close(SimpleNamespace(size=size))


def test_kernels_under_sharded_weights(tmp_path):
    """FSDP2 gathers a block's weights, the kernels take them, gradients go back to the shards."""
    torch.multiprocessing.spawn(shard_and_compare, (2, str(tmp_path)), 2)


# -------------------------------------------------------------------------- Triton without a GPU

@pytest.fixture
def kernels_triton():
    """The kernels on a GPU; without one, interpreted line by line, one program after another."""
    if not HAS_TRITON:
        pytest.skip("needs triton: make install-dev on Linux")
    from kernels import gpu as kernels_triton
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
    yield kernels_triton
    torch.set_default_device(None)


def attention_of(module, q, k, v, grad):
    out, lse = module.attention(q, k, v)
    return [x.double() for x in (out, *module.attention_backward(grad, q, k, v, out, lse))]


@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 2, 65, 16), (1, 2, 99, 80), (1, 1, 200, 128)])
@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.float16, 4e-3)])
def test_triton_attention(kernels_triton, shape, dtype, error):
    q, k, v = (x.detach() for x in heads(*shape, dtype))
    grad = torch.randn(shape, dtype=dtype)
    expected = with_gradients(plain_attention, [x.double() for x in (q, k, v)], grad.double())
    same(attention_of(kernels_triton, q, k, v, grad), expected, error)


@pytest.mark.parametrize("M, N", [(16, 64), (64, 16), (32, 32)])
def test_triton_attention_with_blocks_of_any_shape(kernels_triton, monkeypatch, M, N):
    for kernel in ("attention_kernel", "dq_kernel", "dkdv_kernel"):
        monkeypatch.setitem(kernels_triton.FLOAT32, kernel, {64: [(M, N, 4, 1)]})
    monkeypatch.setattr(kernels_triton, "_fits", {})
    q, k, v = (x.detach() for x in heads(1, 2, 75, 16))
    grad = torch.randn(1, 2, 75, 16)
    expected = with_gradients(plain_attention, [x.double() for x in (q, k, v)], grad.double())
    same(attention_of(kernels_triton, q, k, v, grad), expected, 1e-5)


@pytest.mark.parametrize("batch, step", [(2**31 + 48, 48), (2**31 // 64 * 80, 2**31 // 64)],
                         ids=["sequences", "tokens"])
def test_triton_offsets_have_64_bits(kernels_triton, batch, step):
    """The second sequence, or the last tokens, lie further than 2^31 numbers into the memory. It is
    reserved, not filled: only the pages that are written to exist."""
    B, T = (2, 3) if step == 48 else (1, 80)
    try:
        far = torch.empty(batch * (B - 1) + step * T, dtype=torch.float16)
    except RuntimeError as error:
        pytest.skip(f"cannot reserve the address space: {error}")
    q, k, v = (far.as_strided((B, 1, T, 16), (batch, 16, step, 1), i * 16) for i in range(3))
    near = heads(B, 1, T, 16, torch.float16)
    for x, y in zip((q, k, v), near):
        x.copy_(y.detach())
    grad = torch.randn(B, 1, T, 16, dtype=torch.float16)
    expected = with_gradients(plain_attention, [x.double() for x in near], grad.double())
    same(attention_of(kernels_triton, q, k, v, grad), expected, 4e-3)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.float16, 2e-3)])
@pytest.mark.parametrize("D", [16, 80])
def test_triton_decode_attention(kernels_triton, dtype, error, D):
    q, (k, v) = torch.randn(3, 2, D).to(dtype), torch.randn(2, 4, 2, 150, D).to(dtype)
    lengths, rows = torch.tensor([150, 1, 65]), torch.tensor([3, 0, 1])
    for b, n in zip(rows, lengths):
        k[b, :, n:] = v[b, :, n:] = float("nan")
    expected = plain_decode(q.double(), k[rows].double(), v[rows].double(), lengths)
    got = kernels_triton.decode_attention(q, k, v, lengths, rows)
    same([got.double()], [expected], error)


@pytest.mark.parametrize("n, V", [(1, 2), (5, 4096), (3, 5000)])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("dtype, error", [(torch.float32, 2e-5), (torch.float16, 4e-3)])
def test_triton_head(kernels_triton, n, V, entropy, dtype, error):
    """The same contract as the tiled head: log-probs, entropies, and gradients that add up."""
    x, w, y = tokens(n, 8, V)
    x = x.detach().to(dtype)
    g, h = torch.randn(2, n)
    exact = lambda x, w: torch.stack(plain_logprobs(x, w, y, 0.7)[: 2 if entropy else 1])
    grad = torch.stack([g, h][: 2 if entropy else 1])
    rounded = w.detach().to(dtype)
    expected = with_gradients(exact, [x.double(), rounded.double()], grad)
    logprob, H, gradients = kernels_triton.head(
            x, kernels.losses.padded(rounded, dtype), y, 0.7, entropy, None, V)
    dw = torch.ones_like(w)
    dx = gradients(g, h if entropy else None, dw)
    same([logprob.double()], [expected[0][0]], 1e-5)
    if entropy:
        assert (H.double() - expected[0][1]).abs().max() < 1e-4
    same([dx.double()], [expected[1]], error)
    same([(dw - 1).double()], [expected[2]], error)


@pytest.mark.parametrize("entropy", [False, True])
def test_on_a_gpu_the_embedding_is_rounded_once_not_in_each_chunk(entropy, monkeypatch):
    """A GPU's head takes it in the type of the states; its gradient is the master weight's type."""
    taken = []

    def head(x, weight, *rest, V):
        assert V == 50 and len(weight) == 64 and not weight[V:].any()
        taken.append(weight)
        return kernels.losses.tiled_head(x, weight[:V], *rest)

    monkeypatch.setitem(sys.modules, "kernels.gpu", SimpleNamespace(head=head))
    monkeypatch.setattr(kernels.choice, "_has_triton", lambda: True)
    monkeypatch.setattr(kernels.losses, "_chunks",
                        lambda x, V: [slice(0, 4), slice(4, 9), slice(9, 12)])
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    x, w, y = tokens(12, 8, 50)
    logprob, h = kernels.losses.token_logprobs(x.to(torch.bfloat16), w, y, entropy=entropy)
    (logprob.sum() + (h.sum() if entropy else 0)).backward()
    kernels.losses.token_objective(x.to(torch.bfloat16), w, y, lambda logprob, _: -logprob.sum())
    assert len(taken) == 9 and {t.dtype for t in taken} == {torch.bfloat16}
    assert len({id(t) for t in taken}) == 3  # forward, backward, objective
    assert w.grad.dtype == torch.float32 and x.grad.dtype == torch.float32


@needs_triton
@pytest.mark.parametrize("arch, kernels", [(75, 11), (90, 28),
                                           pytest.param(80, 28, marks=pytest.mark.long)])
def test_kernels_compile_for_gpus_that_are_not_here(arch, kernels):
    """No spilled register, tensor cores used, on Turing (float32, without), on Ampere and on
    Hopper: see compile_kernels.py."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, str(HERE / "compile_kernels.py"), str(arch)],
                         capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{kernels} kernels, 0 with complaints" in run.stdout


@pytest.mark.parametrize("kernel", ["attention", "backward", "decode"])
def test_a_grid_takes_any_number_of_sequences_and_heads(kernels_triton, monkeypatch, kernel):
    """A grid's second and third axes end at 65,535; the first at 2^31."""
    grids = []

    class Kernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *arguments, **options: None

    monkeypatch.setattr(kernels_triton, "_launch", lambda kernel, grid, *_:
                        grids.append(grid(64, 64)))
    monkeypatch.setattr(kernels_triton, "decode_kernel", Kernel())
    x = torch.zeros(4400, 16, 3, 16)
    if kernel == "attention":
        kernels_triton.attention(x, x, x)
    elif kernel == "backward":
        kernels_triton.attention_backward(x, x, x, x, x, x[..., 0])
    else:
        n = torch.arange(4400)
        kernels_triton.decode_attention(x[:, :, 0], x, x, n, n)
    assert grids and all(len(x) < 2 or max(x[1:]) <= 65_535 for x in grids)
    assert all(x[0] == 70_400 for x in grids)


def test_a_choice_that_does_not_fit_gives_way_to_the_next(kernels_triton, monkeypatch):
    """On a card with less shared memory; it is tried once. The last one's error is told."""
    from triton.runtime.errors import OutOfResources
    tried = []

    class Kernel:
        __name__ = "attention_kernel"

        def __getitem__(self, grid):
            return lambda *_, M, N, num_warps, num_stages, **sizes: self.run(M)

        def run(self, M):
            tried.append(M)
            if M > room:
                raise OutOfResources(M, room, "shared memory")

    monkeypatch.setattr(kernels_triton, "_fits", {})
    choices, kernel = [(64, 64, 4, 3), (32, 32, 4, 1)], Kernel()
    monkeypatch.setitem(kernels_triton.CHOICES, "attention_kernel", {64: choices, 128: choices})
    x, room = torch.zeros(1, dtype=torch.bfloat16), 32
    for _ in range(2):
        kernels_triton._launch(kernel, lambda M, N: (M,), (x,), 64)
    assert tried == [64, 32, 32]
    room = 16
    with pytest.raises(OutOfResources):
        kernels_triton._launch(kernel, lambda M, N: (M,), (x,), 128)


# --------------------------------------------------------------------------------------- products

@pytest.mark.parametrize("shape", [(1, 3, 5), (7, 16, 1), (2, 3, 8, 33), (64, 192, 600)])
def test_linear_is_the_frameworks(shape):
    """The product, and the gradients by x, W and b, against torch.nn.functional in float64."""
    *rows, inputs, outputs = shape
    torch.manual_seed(0)
    x, w, b = torch.randn(*rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    upstream = torch.randn(*rows, outputs)
    ours, theirs = ([t.detach().to(dtype).requires_grad_() for t in (x, w, b)]
                    for dtype in (torch.float32, torch.float64))
    y, expected = kernels.linear(*ours), torch.nn.functional.linear(*theirs)
    y.backward(upstream)
    expected.backward(upstream.double())
    for got, want in zip([y, *(t.grad for t in ours)], [expected, *(t.grad for t in theirs)]):
        scale = float(want.detach().abs().max())
        assert float((got.detach().double() - want.detach()).abs().max()) <= 2e-6 * scale


def test_linear_passes_gradcheck():
    x, w, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True)
               for shape in ((3, 4), (5, 4), (5,)))
    assert torch.autograd.gradcheck(kernels.linear, (x, w, b))


def test_a_product_takes_any_strides():
    """As the backward pass hands it transposed and sliced tensors."""
    x, w = torch.randn(6, 20)[:, ::2], torch.randn(10, 7).T
    close(kernels.products.gemm(x, w), (x.double() @ w.double().T).tolist(), 1e-5)
    assert kernels.products.gemm(x[:0], w).shape == (0, 7)


@pytest.mark.parametrize("dtype, roundings", [
    (torch.float64, 16), (torch.float32, 16), (torch.bfloat16, 1)])  # it adds up in float32
@pytest.mark.parametrize("shapes", [
    ((50, 3), (50, 8)), ((50, 8), (50, 3)), ((4, 8), (4, 3)), ((1, 4), (1, 4))])
@pytest.mark.parametrize("step", [1, 2])
def test_a_sum_of_products_is_one_of_outer_products(shapes, step, dtype, roundings):
    """Whichever of the two is the wider, with gaps between its numbers and without."""
    a, b = (torch.randn(n, step * m).to(dtype)[:, ::step] for n, m in shapes)
    oracle = sum(torch.outer(x, y) for x, y in zip(a.double(), b.double()))
    tolerance = roundings * torch.finfo(dtype).eps * float(oracle.abs().max())
    close(kernels.products.sum_of_products(a, b), oracle.tolist(), tolerance)


@pytest.mark.parametrize("temperature, entropy", [(1.0, False), (0.7, True)])
def test_the_head_multiplies_full_rows_of_sixteen(monkeypatch, temperature, entropy):
    """Few shapes, of which oneDNN writes a program each; and what fills them up changes nothing."""
    sizes, gemm = set(), kernels.products.gemm
    monkeypatch.setattr(kernels.losses, "gemm", lambda x, w: sizes.update(x.shape) or gemm(x, w))
    for n in range(1, 40, 5):
        x, w = torch.randn(n, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
        y = torch.randint(30, (n,))
        logprob, h = token_logprobs(x, w, y, temperature, entropy)
        p = (x.double() @ w.double().T / temperature).log_softmax(-1)
        exact = p.gather(1, y[:, None]).squeeze(1)
        total, oracle = logprob.sum(), exact.sum()
        if entropy:
            total, oracle = total + h.square().sum(), oracle + (p.exp() * p).sum(-1).square().sum()
        got, want = (torch.autograd.grad(f, (x, w)) for f in (total, oracle))
        close(logprob.detach(), exact.tolist(), 1e-5)
        assert all(torch.allclose(a, b.float(), atol=1e-4) for a, b in zip(got, want))
    assert sizes == {8, 30, 16, 32, 48}  # 8 and 30: of the embedding


def test_no_weight_of_a_product_has_gaps(monkeypatch):
    """oneDNN takes those too, a hundred times slower: with several tiles of a vocabulary, say."""
    seen, gemm = [], kernels.products.gemm
    monkeypatch.setattr(kernels.losses, "gemm",
                        lambda x, w, *more: seen.append(w) or gemm(x, w, *more))
    monkeypatch.setattr(kernels.losses, "TILE", 16)
    for V in (16, 50):
        w, x = torch.randn(V, 8, requires_grad=True), torch.randn(3, 20, 12, requires_grad=True)
        hidden = kernels.linear(x, torch.randn(8, 12, requires_grad=True), torch.zeros(8))
        for entropy in (False, True):
            logprob, h = token_logprobs(hidden, w, torch.ones(3, 20).long(), 1.0, entropy)
            (logprob.sum() + (h.sum() if entropy else 0)).backward(retain_graph=True)
        token_objective(hidden, w, torch.ones(3, 20).long(), lambda x, _: x.sum())[0].backward()
    gaps = [w.shape for w in seen if not (w.is_contiguous() or w.T.is_contiguous())]
    assert len(seen) > 30 and not gaps


def test_tiles_of_logits_have_no_gaps_and_one_place(monkeypatch):
    """Of [N, V] they would have gaps, which cost a third of the product, and memory of its own for
    each chunk would be zeroed anew."""
    seen, product = [], kernels.products.sum_of_products
    monkeypatch.setattr(kernels.losses, "sum_of_products",
                        lambda a, b: seen.append(a) or product(a, b))
    monkeypatch.setattr(kernels.losses, "TILE", 16)
    monkeypatch.setattr(kernels.losses, "CHUNK", 64 * 50)
    x, w, y = tokens(130, 8, 50)  # three chunks of 64, 64 and 2 tokens, four tiles each
    token_objective(x, w, y, lambda logprob, _: logprob.sum())[0].backward()
    assert [a.shape for a in seen] == [(n, m) for n in (64, 64, 16) for m in (16, 16, 16, 2)]
    assert all(a.is_contiguous() for a in seen)
    assert len({a.untyped_storage().data_ptr() for a in seen}) == 1


@pytest.mark.parametrize("dense", [True, False])
def test_attention_adds_up_in_place_where_memory_has_no_gaps(dense, monkeypatch):
    """Of a model's packed q, k, v a piece has gaps: its sums are copied to their place."""
    there, finish = [], kernels.attention._finish
    monkeypatch.setattr(kernels.attention, "_finish", lambda to, sums: there.append(
        to.data_ptr() == sums.data_ptr()) or finish(to, sums))
    q, k, v = (x.detach().contiguous().requires_grad_() if dense else x for x in heads(2, 3, 5, 16))
    causal_attention(q, k, v).sum().backward()
    assert there == [dense] * 4

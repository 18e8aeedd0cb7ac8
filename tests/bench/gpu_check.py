"""Everything that only a GPU can show, in one command of a few minutes.

    python tests/bench/gpu_check.py --out=out/gpu                    all parts, on a CUDA GPU
    python tests/bench/gpu_check.py --out=out/gpu --parts=a,b        some of them
    python tests/bench/gpu_check.py --out=out/gpu --device=cpu --tiny    shows that it runs

    a  every kernel against float64, forward and backward, beside the framework's own error
    b  the sampler's CUDA graphs: the same ids and log-probs as without graphs
    c  tests of tests/ that can run on a GPU
    d  the three stages on the GPU and on the CPU: losses, sampled ids, runs resumed across the two
    e  --offload, --shard in a group of one, checkpointing: the same numbers; memory beside --plan
    f  rows of gpu.py, the shortest first; what odd row lengths cost

A part is a process of its own and a check a function in it. What fails is written down and the next
one goes on; what has no time left is skipped, and said to be. Parts a to e share the GPU, as none
of them measures time; f has it alone. FOLDER/check.json has all that is known so far, and
part-X.json what a part has found that still runs. Exit code 1 where a check failed.
"""
import argparse
import contextlib
import functools
import gc
import importlib
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests", ROOT / "tests/bench"):
    sys.path.insert(0, str(folder))

SECONDS = dict(a=150, b=90, c=120, d=150, e=150, f=400)  # a part may take on a GPU, of --budget
ALONE = 0.6  # share of the budget after which only f may run
TINY = "tiny shapes on a CPU"


class OutOfTime(BaseException):
    """Raised by the alarm: no `except Exception` on the way swallows it."""


class Skip(Exception):
    """A check that cannot be done here, with the reason."""


# -------------------------------------------------------------------------------------- one part

class Part:
    """The checks of one part, written to a file before and after each."""

    def __init__(self, name, device="cpu", tiny=False, seconds=1e9, path=None):
        import torch
        self.name, self.device, self.tiny, self.path = name, torch.device(device), tiny, path
        if device == "cuda":
            self.device = torch.device("cuda:0")
        self.end, self.results, self.facts = time.monotonic() + seconds, [], {}

    @property
    def cuda(self):
        return self.device.type == "cuda"

    def left(self):
        return self.end - time.monotonic()

    def write(self):
        if self.path:
            text = json.dumps(dict(facts=self.facts, checks=self.results), indent=1, default=str)
            temporary = Path(f"{self.path}.new")
            temporary.write_text(text)
            os.replace(temporary, self.path)

    def check(self, name, function, seconds=60.0):
        """Run function() -> facts of it, a dict. It fails by raising, or with facts["bad"]."""
        result = dict(name=name, status="running")
        self.results.append(result)
        if self.left() < 1:
            result.update(status="skipped", why="the part's time is used up")
            self.write()
            return None
        self.write()
        began, facts = time.monotonic(), None
        try:
            with alarm(min(seconds, self.left())):
                facts = function() or {}
            status = "failed" if facts.get("bad") else facts.pop("status", "passed")
            result.update(facts, status=status)
        except OutOfTime:
            result.update(status="skipped", why=f"not done after {time.monotonic() - began:.0f} s")
        except Skip as reason:
            result.update(status="skipped", why=str(reason))
        except Exception as error:
            lines = traceback.format_exc().splitlines()
            result.update(status="failed", bad=f"{type(error).__name__}: {error}"[:600],
                          trace=lines[-12:])
            traceback.print_exc()
        result["seconds"] = round(time.monotonic() - began, 2)
        print(f"{self.name} {name}: {result['status']} {result.get('bad', '')}", flush=True)
        self.write()
        gc.collect()
        return facts

    def need(self, gigabytes):
        """Skips the check where the GPU has not so much memory left."""
        import torch
        if not self.cuda:
            raise Skip(f"needs {gigabytes} GB of a GPU")
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self.device)[0] / 1e9
        if free < gigabytes + 2:
            raise Skip(f"needs {gigabytes} GB, {free:.0f} are free")


@contextlib.contextmanager
def alarm(seconds):
    def ring(*_):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------ a: kernels

def worst(got, exact, nats=False):
    """The largest ||a - b|| / ||b|| of pairs of tensors. What is 0 in exact arithmetic is measured
    by a tenth of the largest: the gradient of a query that sees one key, say. nats: log-probs near
    0 are measured by 1 nat each. NaN stays."""
    norms = [float(b.double().norm()) for b in exact]
    floors = [math.sqrt(b.numel()) if nats else 0.1 * max(norms) for b in exact]
    assert max(norms) > 0, "nothing to compare: all is 0"
    found = [float((a.double() - b.double()).norm()) / max(n, floor)
             for a, b, n, floor in zip(got, exact, norms, floors, strict=True)]
    return max(found, key=lambda x: math.inf if math.isnan(x) else x)


def compared(ours, theirs, exact, bound, factor=None, nats=False):
    """Facts of a check. bound: on our error; with a factor, so many times the framework's own error
    are allowed on top. theirs: what the framework says, or None."""
    error = worst(ours, exact, nats)
    own = None if theirs is None else worst(theirs, exact, nats)
    allowed = bound + (0 if not factor else 0.007 if own is None else factor * min(own, 0.01))
    facts = dict(error=error, framework=own, allowed=allowed)
    if not error <= allowed:  # NaN is not
        facts["bad"] = f"error {error:.3g}, allowed {allowed:.3g}, the framework's {own}"
    return facts


def attempt(function):
    """What the framework says, or None where it cannot: that is no fault of ours."""
    try:
        return function()
    except Exception as error:
        print(f"the framework: {type(error).__name__}: {error}"[:300], flush=True)
        return None


def poison(*likes):
    """Leave NaN in the memory that the next tensors of these sizes will get."""
    import torch
    kept = [torch.full_like(x, math.nan) for x in likes for _ in range(2)
            if x.is_floating_point()]
    del kept


def gradients_of(function, inputs, grads):
    """The outputs of function(*inputs) and the gradients of sum(output * grad), as they come."""
    import torch
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    out = out if isinstance(out, (tuple, list)) else [out]
    total = sum((o * g.to(o.dtype)).sum() for o, g in zip(out, grads, strict=True))
    return [*(o.detach() for o in out), *torch.autograd.grad(total, inputs)]


def exact_attention(q, k, v):
    """The textbook's, [T, T] scores and all."""
    import torch
    s = q @ k.mT / math.sqrt(q.size(-1))
    future = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1)
    return s.masked_fill(future, -math.inf).softmax(-1) @ v


def exact_logprobs(x, weight, y, temperature):
    """(log-probs, entropies) of tokens; 0 where y is negative."""
    logp = (x @ weight.T / temperature).log_softmax(-1)
    on = (y >= 0).to(logp.dtype)
    own = logp.gather(-1, y.clamp(min=0)[:, None]).squeeze(-1)
    return own * on, -(logp.exp() * logp).sum(-1) * on


def doubles(*xs):
    return [x.detach().double() for x in xs]


def packed_heads(B, H, T, D, dtype, device, packed=True):
    """q, k, v as a model has them, views of one [B, T, 3, H, D]; or each on its own."""
    import torch
    x = torch.randn(B, T, 3, H, D, device=device).to(dtype)
    x = x.permute(2, 0, 3, 1, 4)
    return [y if packed else y.contiguous() for y in x.unbind(0)]


def attention_check(p, shape, dtype, packed):
    import torch
    import torch.nn.functional as F
    import kernels
    q, k, v = packed_heads(*shape, dtype, p.device, packed)
    grad = torch.randn(shape, device=p.device).to(dtype)
    exact = gradients_of(exact_attention, doubles(q, k, v), doubles(grad))
    sdpa = lambda *x: F.scaled_dot_product_attention(*x, is_causal=True)
    theirs = attempt(lambda: gradients_of(sdpa, [q, k, v], [grad]))
    poison(q, k, v, q.new_empty(shape[:3], dtype=torch.float32))
    ours = gradients_of(lambda *x: kernels.causal_attention(*x), [q, k, v], [grad])
    return compared(ours, theirs, exact, *((1e-5,) if dtype == torch.float32 else (1e-3, 2)))


def masked_decode(q, k, v, lengths):
    """One query against the first lengths[b] of keys [B, H, T, D], the rest blanked."""
    import torch
    used = torch.arange(k.size(2), device=k.device) < lengths[:, None]
    k, v = (x.masked_fill(~used[:, None, :, None], 0.0) for x in (k, v))
    s = (q[:, :, None] @ k.mT).squeeze(2) / math.sqrt(q.size(-1))
    p = s.masked_fill(~used[:, None], -math.inf).softmax(-1)
    return (p[:, :, None] @ v).squeeze(2)


def decode_check(p, R, rows, H, T, D, dtype, lengths=None):
    """Rows of a cache whose unused slots hold NaN."""
    import torch
    import torch.nn.functional as F
    import kernels
    B, device = len(rows), p.device
    rows = torch.tensor(rows, device=device)
    if lengths is None:
        lengths = torch.randint(1, T + 1, (B,), device=device)
        lengths[0], lengths[-1] = T, 1
    q, (k, v) = (torch.randn(*shape, device=device).to(dtype)
                 for shape in ((B, H, D), (2, R, H, T, D)))
    exact = masked_decode(*doubles(q, k[rows], v[rows]), lengths)
    used = torch.arange(T, device=device) < lengths[:, None]
    theirs = attempt(lambda: [F.scaled_dot_product_attention(
        q[:, :, None], k[rows], v[rows], used[:, None, None]).squeeze(2)])
    for x in (k, v):
        x[rows] = x[rows].masked_fill(~used[:, None, :, None], math.nan)
    cache = torch.full((2, R, H * T * D), math.nan, device=device, dtype=dtype)
    kernels.write_prompt(cache, k, v)
    poison(q)
    ours = kernels.decode_attention(q, cache, kernels.Slots((R, H, T, D), lengths, rows))
    return compared([ours], theirs, [exact],
                    *((1e-5,) if dtype == torch.float32 else (1e-3, 2)))


def tokens_of(p, n, C, V, dtype, scale):
    """States [n, C], an embedding that is exact in bf16 too, targets of which some are negative."""
    import torch
    x = torch.randn(n, C, device=p.device).to(dtype)
    weight = (scale * torch.randn(V, C, device=p.device)).bfloat16().float()
    y = torch.randint(V, (n,), device=p.device)
    y[1::5] = -1
    return x, weight, y


def logprobs_check(p, n, C, V, dtype, entropy, temperature=0.7):
    """Log-probs and entropies, their errors each, and the gradients of any upstream gradient."""
    import torch
    import torch.nn.functional as F
    from kernels import losses
    x, weight, y = tokens_of(p, n, C, V, dtype, 2 / math.sqrt(C))
    upstream = torch.randn(1 + entropy, n, device=p.device)

    def exact(x, w):
        return exact_logprobs(x, w, y, temperature)[: 1 + entropy]

    def theirs(x, w):
        logp = F.log_softmax(F.linear(x, w.to(x.dtype)).float() / temperature, -1)
        own = -F.nll_loss(logp, y.clamp(min=0), reduction="none") * (y >= 0)
        return [own, -(logp.exp() * logp).sum(-1) * (y >= 0)][: 1 + entropy]

    def ours(x, w):
        logprob, h = losses.token_logprobs(x, w, y, temperature, entropy)
        return [logprob, h][: 1 + entropy]

    want = gradients_of(exact, doubles(x, weight), upstream)
    others = attempt(lambda: gradients_of(theirs, [x, weight], upstream))
    poison(x, weight, x.new_empty(n, V, dtype=torch.float32), upstream)
    got = gradients_of(ours, [x, weight], upstream)
    n = 1 + entropy
    wide = dtype == torch.float32
    values = compared(got[:n], others and others[:n], want[:n], 1e-4 if entropy else 1e-5,
                      nats=True)
    slopes = compared(got[n:], others and others[n:], want[n:],
                      *((5e-5,) if wide else (1e-3, 2)))
    return joined(values=values, gradients=slopes)


def joined(**facts):
    """Facts of several comparisons as those of one check: the largest error counts."""
    bad = "; ".join(f"{k}: {v['bad']}" for k, v in facts.items() if "bad" in v)
    largest = max(facts.values(), key=lambda v: v["error"] if v["error"] == v["error"] else 1e9)
    return dict(error=largest["error"], framework=largest["framework"],
                each={k: {a: b for a, b in v.items() if a != "bad"} for k, v in facts.items()},
                **({"bad": bad} if bad else {}))


def objective_check(p, n, C, V, dtype):
    """PPO's clipped loss, its gradients made on the way, times what comes from above."""
    import torch
    import torch.nn.functional as F
    from kernels import losses
    x, weight, y = tokens_of(p, n, C, V, dtype, 2 / math.sqrt(C))
    old, advantage = torch.randn(2, n, device=p.device, dtype=torch.float64)
    on = (y >= 0)
    # Old log-probs around the new ones: some ratios are clipped, most are not.
    new = exact_logprobs(*doubles(x, weight), y, 1.0)[0]
    old = new + (0.3 if n > 1 else 0.05) * old

    def surrogate(logprob, marks):
        a, b = (t.to(logprob.dtype) for t in (advantage, old))
        ratio = (logprob - b).masked_fill(~marks, 0.0).exp()
        return -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).masked_fill(~marks, 0.0).sum()

    def eager(x, w):
        logits = F.linear(x, w.to(x.dtype)).float()
        own = -F.cross_entropy(logits, y, ignore_index=-1, reduction="none")
        return surrogate(own, on)

    ours = lambda x, w: losses.token_objective(x, w, y, surrogate)[0]
    three = [torch.tensor(3.0, device=p.device)]
    want = gradients_of(lambda x, w: surrogate(exact_logprobs(x, w, y, 1.0)[0], on),
                        doubles(x, weight), three)
    others = attempt(lambda: gradients_of(eager, [x, weight], three))
    poison(x, weight, x.new_empty(n, V, dtype=torch.float32))
    got = gradients_of(ours, [x, weight], three)
    wide = dtype == torch.float32
    # The loss is a sum of terms of both signs: its error is a share of their absolute sum.
    loss = abs(float(got[0]) - float(want[0])) / float(advantage.abs().sum())
    loss = dict(error=loss, framework=None, **({} if loss <= 1e-4 else {"bad": f"loss {loss}"}))
    return joined(loss=loss, gradients=compared(
        got[1:], others and others[1:], want[1:], *((5e-5,) if wide else (1e-3, 2))))


def sure_check(p):
    """Where the model is sure, 1 - p is a difference of like numbers."""
    import torch
    import torch.nn.functional as F
    from kernels import losses
    x, weight = torch.eye(2, device=p.device)[:1] * 8, torch.eye(2, device=p.device)
    y, one = torch.tensor([0], device=p.device), [torch.ones(1, device=p.device)]
    run = lambda f, *xs: gradients_of(f, xs, one)[1:]
    want = run(lambda x, w: exact_logprobs(x, w, y, 1.0)[0], *doubles(x, weight))
    others = run(lambda x, w: -F.cross_entropy(x @ w.T, y, reduction="none"), x, weight)
    return compared(run(lambda x, w: losses.token_logprobs(x, w, y)[0], x, weight), others, want,
                    2e-3)


def logits_check(p, B, C, V, dtype):
    import torch
    import torch.nn.functional as F
    import kernels
    x, weight, _ = tokens_of(p, B, C, V, dtype, 0.3)
    poison(x.new_empty(B, V, dtype=torch.float32))
    got = kernels.logits(x, weight)
    facts = compared([got], [F.linear(x, weight.to(dtype))], [x.double() @ weight.double().T], 1e-5)
    if got.dtype != torch.float32:
        facts["bad"] = f"logits are {got.dtype}"
    return facts


def linear_check(p, rows, inputs, outputs, dtype, gelu):
    """A layer forward and backward, as training has it; and what a sampler's step takes of it."""
    import torch
    import torch.nn.functional as F
    import kernels
    from kernels import products
    x, w, b = (torch.randn(*shape, device=p.device)
               for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    w, grad = w / math.sqrt(inputs), torch.randn(rows, outputs, device=p.device)
    after = (lambda y: F.gelu(y, approximate="tanh")) if gelu else (lambda y: y)
    want = gradients_of(lambda x, w, b: after(F.linear(x, w, b)), doubles(x, w, b), doubles(grad))

    def framework(x, w, b):
        return after(F.linear(x.to(dtype), w.to(dtype), b.to(dtype)))

    others = gradients_of(framework, [x, w, b], [grad])
    with mock.patch.object(products, "PRODUCTS", dtype):
        poison(x, w, grad)
        got = gradients_of(lambda *a: after(kernels.linear(*a)), [x, w, b], [grad])
        with torch.no_grad():
            low, packed = products.lowered(x), products.packed(w)
            step = products.gemm(low, w if packed is None else packed, b, gelu)
    bounds = (1e-5,) if dtype == torch.float32 else (1e-3, 2)
    return joined(training=compared(got, others, want, *bounds),
                  step=compared([step], others[:1], want[:1], *bounds))


def far_attention(p):
    """B T 3 C past 2^31, forward and backward; a few sequences against float64."""
    import torch
    import kernels
    p.need(25)
    B, H, T, D = 920, 12, 1024, 64
    x = torch.empty(B, T, 3 * H * D, device=p.device, dtype=torch.bfloat16).normal_()
    assert x.numel() > 2**31
    q, k, v = (y.unflatten(-1, (H, D)).transpose(1, 2).detach().requires_grad_()
               for y in x.chunk(3, dim=-1))
    grad = torch.randn(B, H, T, D, device=p.device, dtype=torch.bfloat16)
    out = kernels.causal_attention(q, k, v)
    slopes = torch.autograd.grad(out, (q, k, v), grad)
    facts = {}
    for b in (0, B // 2, B - 1):
        some = slice(b, b + 1)
        want = gradients_of(exact_attention, doubles(q[some], k[some], v[some]),
                            doubles(grad[some]))
        facts[f"sequence {b}"] = compared([y[some] for y in (out, *slopes)], None, want, 8e-3)
    return joined(**facts)


def far_decode(p):
    """A cache of more than 2^31 keys."""
    import torch
    import kernels
    p.need(14)
    R, H, T, D = 1400, 12, 2048, 64
    cache = torch.empty(2, R, H * T * D, device=p.device, dtype=torch.bfloat16).normal_()
    assert cache[0].numel() > 2**31
    rows = torch.tensor([R - 1, 0, R - 7], device=p.device)
    lengths = torch.tensor([T, 77, 1], device=p.device)
    q = torch.randn(3, H, D, device=p.device, dtype=torch.bfloat16)
    got = kernels.decode_attention(q, cache, kernels.Slots((R, H, T, D), lengths, rows))
    k, v = cache.view(2, R, H, T, D)[:, rows]
    return compared([got], None, [masked_decode(*doubles(q, k, v), lengths)], 5e-3)


def far_logits(p):
    """Rows of logits past 2^31, by the kernels alone: losses.py takes 2^28 at a time."""
    import torch
    from kernels import gpu as triton_kernels
    p.need(22)
    n, C, V = 43_000, 16, 50_257
    x, weight, y = tokens_of(p, n, C, V, torch.bfloat16, 0.5)
    y, g = y.clamp(min=0), torch.randn(n, device=p.device)
    low = weight.bfloat16()
    logprob, h, slopes = triton_kernels.head(x, low, y, 1.0, True, None, len(low))
    dx = slopes(g, None, torch.zeros_like(weight))
    facts = {}
    for name, rows in (("first", slice(0, 50)), ("last", slice(n - 50, n))):
        want = gradients_of(lambda x: exact_logprobs(x, weight.double(), y[rows], 1.0),
                            doubles(x[rows]), [g[rows].double(), torch.zeros_like(g[rows])])
        facts[f"{name} values"] = compared([logprob[rows], h[rows]], None, want[:2], 1e-4,
                                           nats=True)
        facts[f"{name} gradients"] = compared([dx[rows]], None, want[2:], 8e-3)
    return joined(**facts)


def many_pairs(p, dtype):
    """More sequences times heads than a CUDA grid's second axis takes, 65,535."""
    return attention_check(p, (4100, 16, 3, 16), dtype, True)


def huge_scores(p):
    """Scores of 1e5: exp of them is no float, the largest is taken out first."""
    import torch
    import kernels
    q, k, v = packed_heads(1, 2, 130, 16, torch.float32, p.device)
    got = gradients_of(lambda *x: kernels.causal_attention(*x), [200 * q, 200 * k, v],
                       [torch.ones_like(q)])
    return {} if all(bool(x.isfinite().all()) for x in got) else {"bad": "not finite"}


def part_a(p):
    """Order: what matters most first, float32 kernels compile slowest."""
    import torch
    torch.manual_seed(int(time.time()) if p.cuda else 0)
    p.facts.update(where(p))
    types = {"bf16": torch.bfloat16, "float32": torch.float32}
    run = p.check
    shapes = [(2, 3, 77)] + [(1, 2, 300), (2, 2, 1024), (2, 2, 1025)] * (not p.tiny)
    for name, dtype in types.items():
        for D in (64, 128, 80, 16):
            for B, H, T in shapes + [(1, 2, 1)] * (D in (64, 16)):
                for packed in (True, False)[: 1 + (T == 77)]:
                    run(f"attention {name}: B {B} H {H} T {T} D {D}" + " dense" * (not packed),
                        functools.partial(attention_check, p, (B, H, T, D), dtype, packed))
        for D in (64, 128, 80, 16):
            for T in (150, 1030)[: 1 + (not p.tiny)]:
                run(f"decode {name}: T {T} D {D}", functools.partial(
                    decode_check, p, 7, [3, 0, 6, 2, 5], 3, T, D, dtype))
        for n, C, V in [(1, 16, 2), (37, 48, 307), (130, 64, 5000)] + [(300, 768, 50257)] * p.cuda:
            for entropy in (False, True):
                run(f"token_logprobs {name}: n {n} C {C} V {V}" + ", entropy" * entropy,
                    functools.partial(logprobs_check, p, n, C, V, dtype, entropy))
            run(f"token_objective {name}: n {n} C {C} V {V}",
                functools.partial(objective_check, p, max(n, 2), C, V, dtype))
        if p.cuda:  # two chunks of tokens
            run(f"token_objective {name}: n 6000 C 64 V 50257",
                functools.partial(objective_check, p, 6000, 64, 50257, dtype))
        for B, C, V in [(1, 48, 307), (5, 64, 5000)] + [(64, 768, 50257)] * p.cuda:
            run(f"logits {name}: B {B} C {C} V {V}",
                functools.partial(logits_check, p, B, C, V, dtype))
        for rows, i, o in [(1, 48, 144), (77, 64, 256)] + [(4096, 768, 3072)] * p.cuda:
            for gelu in (False, True):
                run(f"linear {name}: {rows} x {i} x {o}" + ", gelu" * gelu,
                    functools.partial(linear_check, p, rows, i, o, dtype, gelu))
    run("attention float32: huge scores", functools.partial(huge_scores, p))
    run("token_logprobs float32: a sure model", functools.partial(sure_check, p))
    for name, dtype in types.items():  # larger heads than Triton takes
        run(f"attention {name}: D 160", functools.partial(
            attention_check, p, (2, 2, 70, 160), dtype, True))
        run(f"decode {name}: D 160", functools.partial(
            decode_check, p, 7, [3, 0, 6], 3, 40, 160, dtype))
    if not p.tiny:
        run("attention bf16: 65,600 sequences times heads", functools.partial(
            many_pairs, p, torch.bfloat16))
        run("decode bf16: 65,600 rows times heads", functools.partial(
            decode_check, p, 4100, list(range(4100)), 16, 5, 16, torch.bfloat16))
    run("attention bf16: offsets past 2^31", functools.partial(far_attention, p))
    run("decode bf16: offsets past 2^31", functools.partial(far_decode, p))
    run("token_logprobs bf16: offsets past 2^31", functools.partial(far_logits, p))


def where(p):
    """What this ran on."""
    import torch
    from gpu import version
    facts = dict(torch=torch.__version__, triton=version("triton"), numpy=version("numpy"),
                 python=sys.version.split()[0], device=str(p.device))
    if p.cuda:
        facts.update(gpu=torch.cuda.get_device_name(p.device), cuda=torch.version.cuda,
                     capability=list(torch.cuda.get_device_capability(p.device)),
                     memory=torch.cuda.get_device_properties(p.device).total_memory)
    return facts


# ------------------------------------------------------------------------------------ b: sampler

def ragged(n, longest, V):
    return [[(7 * i + 3 * j) % V for j in range(1 + i * i % longest)] for i in range(n)]


@contextlib.contextmanager
def stepping(how, p):
    """graph: as on a GPU; the same steps without graphs; rows that leave at once (DECODE=eager).
    On a CPU the first is the second: the control flow of a GPU without its graphs."""
    import kernels
    plain = lambda step: (step(), step)[1]
    with contextlib.ExitStack() as stack:
        patch = lambda name, value: stack.enter_context(mock.patch.object(kernels, name, value))
        if how == "eager":
            stack.enter_context(mock.patch.dict(os.environ, {"DECODE": "eager"}))
        elif how == "steps" or not p.cuda:
            patch("capture", plain)
            patch("can_capture", lambda *_: True)
        yield


def sampled(p, net, prompts, new, eos, how, temperature, seed=3):
    """(samples, how many batches were captured)"""
    import torch
    import kernels
    import sampler
    made = []
    with stepping(how, p):
        inner = kernels.capture
        with mock.patch.object(kernels, "capture", lambda step: made.append(1) or inner(step)):
            s = sampler.generate(net, prompts, new, eos, temperature, seed)
    if p.cuda:
        torch.full((2**26,), math.nan, device=p.device)  # in memory that a graph may have left
    return s, len(made)


def differing(a, b):
    """(rows with other ids, the largest difference of log-probs in the others)"""
    import torch
    width = max(a.ids.size(1), b.ids.size(1))
    pad = lambda s: torch.nn.functional.pad(s.ids, (0, width - s.ids.size(1)), value=-1)
    same = (pad(a) == pad(b)).all(1) & (a.lengths == b.lengths) & (a.ended == b.ended)
    T = min(a.ids.size(1), b.ids.size(1))
    gap = (a.logprobs[:, :T] - b.logprobs[:, :T]).abs().amax(1)[same]
    return int((~same).sum()), float(gap.max()) if len(gap) else math.nan


def sampler_check(p, make, prompts, new, eos, dtype, temperature):
    """Graphs say bit by bit what the same steps say; in float32 what eager steps say, whose
    products have other sizes; and the log-probs are those of one pass over the whole rows."""
    import torch
    from kernels import products
    with mock.patch.object(products, "PRODUCTS", dtype):
        net, facts, bad = make().to(p.device), {}, []
        for seed in (3, 4):
            graph, captured = sampled(p, net, prompts, new, eos, "graph", temperature, seed)
            steps, _ = sampled(p, net, prompts, new, eos, "steps", temperature, seed)
            rows, gap = differing(graph, steps)
            if rows or not gap <= 1e-6:
                bad.append(f"{rows} rows differ from the same steps without graphs, gap {gap}")
            eager, _ = sampled(p, net, prompts, new, eos, "eager", temperature, seed)
            others, gap_eager = differing(graph, eager)
            wide = dtype == torch.float32
            if others > (0 if wide else len(prompts) // 2):
                bad.append(f"{others} of {len(prompts)} rows differ from eager steps")
            if not gap_eager <= (1e-4 if wide else 0.1):
                bad.append(f"log-probs differ from eager steps by {gap_eager}")
            with torch.no_grad():
                whole, _ = net.eval()(graph.ids, graph.mask, temperature or 1.0)
            gap_whole = float((whole - graph.logprobs).abs().max())
            if not gap_whole <= (1e-3 if wide else 0.2):
                bad.append(f"log-probs differ from those of whole rows by {gap_whole}")
            lengths = (graph.lengths - graph.prompt_lengths).tolist()
            facts[f"seed {seed}"] = dict(
                batches=captured, different_lengths=len(set(lengths)), ended=int(graph.ended.sum()),
                rows_unlike_eager=others, gap_eager=gap_eager, gap_whole=gap_whole, gap_steps=gap)
        seen = list(facts.values())
        if temperature and not any(f["batches"] > 1 and f["different_lengths"] > 3 for f in seen):
            bad.append("no batch shrank: the check saw too little")
        if bad:
            facts["bad"] = "; ".join(bad)
        return dict(facts, error=max(f["gap_whole"] for f in seen))


def part_b(p):
    import torch
    from helpers import EOS, tiny
    from model import GPT, GPTConfig
    p.facts.update(where(p))

    def medium():
        torch.manual_seed(5)
        net = GPT(GPTConfig(1000, 160, 4, 4, 256))
        with torch.no_grad():  # one token in 30 or so is the end
            weight, bias = net.transformer.wte.weight, net.transformer.ln_f.bias
            weight *= 3
            bias += 0.25 * torch.randn(256)
            weight[7] = 0.33 * bias
        return net

    small = lambda: tiny(block_size=40, seed=22, loud=3.0)
    cases = {"tiny": (small, ragged(21, 9, 11) + [[EOS]], 30, EOS)}
    if not p.tiny:
        cases["medium"] = (medium, ragged(70, 60, 900), 90, 7)
    for dtype in (torch.float32, torch.bfloat16):
        for temperature in (1.0, 0.0):
            for name, case in cases.items():
                p.check(f"{str(dtype)[6:]}: {name}, temperature {temperature:g}",
                        functools.partial(sampler_check, p, *case, dtype, temperature))


# -------------------------------------------------------------------------------------- c: tests

# Of tests/: float32 or float64, nothing that only a CPU has, no bound that a GPU's last bits can
# pass (part a measures log-probs near 0 by 1 nat, test_triton_head by themselves).
SAFE = {
    "test_kernels.py": "test_attention_and_its_gradients or test_attention_takes_any_strides or "
                       "test_attention_gradients_by_finite_differences or test_decode_attention or "
                       "test_linear_is_the_frameworks or test_linear_passes_gradcheck or "
                       "test_a_cache_filled_token_by_token or test_triton_attention or "
                       "test_triton_offsets or test_triton_decode or test_a_grid_takes",
    "test_model.py": "test_nothing_sees_the_future",
    "test_sampler.py": "test_prompts_alone_or_in_any_batch or test_prompts_stay_as_they_are or "
                       "test_a_row_ends_at_its_first_eos or test_log_probs_and_mask_cover or "
                       "test_eos_as_the_last_allowed_token or test_temperature_0_takes",
    "test_graph.py": "test_graphs_on_a_gpu",
}


def tests_check(p, file, words):
    """pytest in a process of its own, tests on the default device that TEST_DEVICE names."""
    words = [sys.executable, "-m", "pytest", "-q", "--maxfail=10", "-p", "no:cacheprovider",
             f"tests/{file}", "-k", words]
    rc, output = finish(dict(tests=start(words, ROOT, TEST_DEVICE=p.device.type)),
                        p.left() - 2)["tests"]
    counts = {k: int(n) for n, k in re.findall(r"(\d+) (passed|failed|skipped|error)", output)}
    facts = dict(counts=counts, tail=output[-2500:].splitlines()[-30:] if rc else
                 output.strip().splitlines()[-1:])
    if rc is None:
        raise OutOfTime
    if rc == 5 or not counts.get("passed"):
        return dict(facts, status="skipped", why="no test ran")
    return dict(facts, bad=f"pytest ends with {rc}: {counts}") if rc else facts


def part_c(p):
    for file, words in SAFE.items():
        if p.tiny:
            words = {"test_kernels.py": "test_linear_is_the_frameworks"}.get(file, words)
        p.check(file, functools.partial(tests_check, p, file, words), p.left())


# ------------------------------------------------------------------- scripts in their own processes

def start(words, folder, **environment):
    """A process in a session of its own, its output in a file that it returns as well."""
    file = tempfile.TemporaryFile("w+")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment}
    env.setdefault("OMP_NUM_THREADS", "1")
    return subprocess.Popen([str(w) for w in words], cwd=folder, env=env, stdout=file,
                            stderr=subprocess.STDOUT), file


def finish(runs, seconds):
    """{name: (exit code, or None if it had no time, output)} of started processes."""
    end, out = time.monotonic() + seconds, {}
    try:
        for name, (run, file) in runs.items():
            code = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = run.wait(max(0.1, end - time.monotonic()))
            stop(run)
            file.seek(0)
            out[name] = code, file.read()
        return out
    finally:
        for run, file in runs.values():
            stop(run)
            file.close()


def stop(run):
    """End a process that we started: torchrun ends its own when it is asked to."""
    if run.poll() is None:
        run.terminate()
        try:
            run.wait(3)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()


class Scripts:
    """sft.py, reward.py and ppo.py on random data in a folder."""

    def __init__(self, p, size, rows, folder):
        from memory_check import make_data
        self.p, self.size, self.rows, self.folder = p, size, rows, Path(folder)
        make_data(self.folder, size[0])

    def flags(self, script, name, device, out, extra=()):
        """As memory_check.py has them. name: of the checkpoints that it begins with."""
        import memory_check
        flags = memory_check.flags_of(script, name, self.size, self.rows, [])
        return [*flags, f"--device={device}", f"--out=out/{out}", *extra]

    def words(self, script, flags, ranks=False):
        own = [str(Path(__file__).resolve()), "run", script, *flags]
        if not ranks:
            return [sys.executable, *own]
        return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1",
                "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", *own]

    def run(self, runs, must=True):
        """{out: (script, flags, options)} at once -> {out: facts of it}. options: environment, or
        ranks=True for torchrun. must: they have to end well."""
        began = {}
        for out, (script, flags, options) in runs.items():
            options = dict(options)
            words = self.words(script, flags, options.pop("ranks", False))
            began[out] = start(words, self.folder, **options)
        ended, facts = finish(began, self.p.left() - 3), {}
        for out, (code, output) in ended.items():
            found = re.search(r"^FACTS (.*)$", output, re.M)
            facts[out] = dict(json.loads(found[1]) if found else {}, code=code)
            if code:
                facts[out]["output"] = output[-2000:]
        if any(f["code"] is None for f in facts.values()):
            raise OutOfTime
        for out, f in facts.items():
            if must and f["code"]:
                raise RuntimeError(f"{out} ends with {f['code']}: {f['output'][-1200:]}")
        return facts

    def log(self, out):
        return [json.loads(line) for line in open(self.folder / "out" / out / "log.jsonl")]


UNLIKE = {"seconds_rollout", "seconds_update", "tokens_per_second",  # shares of few things jump
          "accuracy", "policy/clip_fraction", "value/clip_fraction"}


def logs_differ(a, b, first, later, most=None):
    """The largest differences of two logs, in the first step and later, as shares of the numbers or
    of 1 where these are smaller; `bad` where they pass the bounds. most: so many steps count."""
    if len(a) != len(b) or not a:
        return dict(bad=f"{len(a)} and {len(b)} steps")
    found, names = [0.0, 0.0], ["", ""]
    for i, (x, y) in enumerate(zip(a[:most], b[:most])):
        for k in x:
            if k in UNLIKE:
                continue
            if x[k] is None or y.get(k) is None:
                return dict(bad=f"step {i + 1}: {k} is {x[k]} and {y.get(k)}")
            gap = abs(x[k] - y[k]) / max(1.0, abs(x[k]))
            if not gap <= found[i > 0]:
                found[i > 0], names[i > 0] = gap, f"{k} of step {i + 1}"
    facts = dict(steps=len(a), first=found[0], later=found[1], largest=names, error=max(found))
    if not (found[0] <= first and found[1] <= later):
        facts["bad"] = f"differ by {found} ({names}), allowed {first} and {later}"
    return facts


def run_script(argv):
    """(used inside) A script's main() with what the checks want to know: the ids of the first
    rollout, memory, an end by SIGKILL after so many steps, a group of one rank."""
    name, flags = argv[0], argv[1:]
    module = importlib.import_module(name)
    import torch
    import torch.distributed as dist
    from kernels import products
    from runtime import sharding, training
    env, facts, calls = os.environ.get, {}, [0]
    if env("CHECK_ONE_RANK"):
        one_rank()
    log, rollout = training.Training.log, getattr(module, "rollout", None)

    def logged(self, **numbers):
        log(self, **numbers)
        calls[0] += 1
        facts["group"] = dist.get_backend() if dist.is_initialized() else None
        facts["in_parts"] = any(map(sharding.sharded, self.parts.values()))
        if torch.cuda.is_available() and calls[0] == 1:
            torch.cuda.synchronize()
            facts["first"] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()  # of the steps from here on, moments and all

    def noted(*arguments):
        e = rollout(*arguments)
        facts.setdefault("ids", e.samples.ids.tolist())
        facts.setdefault("lengths", e.samples.lengths.tolist())
        return e

    steps = training.Training.steps

    def killed(self, items):
        for n, item in enumerate(steps(self, items)):
            if n == int(env("CHECK_KILL", -1)):
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    training.Training.log, training.Training.steps = logged, killed
    if rollout:
        module.rollout = noted
    sys.argv = [f"{name}.py", *flags]
    try:
        module.main()
    finally:
        if torch.cuda.is_available():
            facts["peak"] = torch.cuda.max_memory_allocated()
        print("FACTS", json.dumps(dict(facts, products=str(products.PRODUCTS))), flush=True)


class One(int):
    """A number of ranks for which the code of several ranks runs: `1 > 1` holds."""

    def __gt__(self, other):
        return True if (int(self), other) == (1, 1) else int.__gt__(self, other)


def one_rank():
    """A world of one rank that has a process group all the same, NCCL's on a GPU."""
    from runtime import world
    begin = world.World.__init__

    def init(self, *arguments, **options):
        world.int = One
        try:
            begin(self, *arguments, **options)
        finally:
            del world.int

    world.World.__init__ = init


# ---------------------------------------------------------------------------- d: the three stages

# Step 1 differs by the rounding of one forward and backward pass, the log's six digits included.
# Adam divides by the gradient's own size, so that rounding of small gradients becomes steps of the
# weights; the same runs with micro-batches of another size, all on one CPU, differ by up to 1e-4
# over ten steps. A wrong kernel, or other dropout noise, differs by 1e-2 from the first step on.
FIRST, LATER = 2e-5, 2e-3


class Sides:
    """Runs of the scripts on the CPU and on the GPU. Where both are the CPU, the second rounds
    otherwise: its micro-batches have another size."""

    def __init__(self, p, folder):
        self.s = Scripts(p, (32, 2, 4, 64) if p.tiny else (64, 2, 4, 128), 4, folder)
        self.sides = {"cpu": ("cpu", []),
                      "gpu": (p.device.type, [] if p.cuda else ["--micro_batch=3"])}

    def run(self, script, name, out, side, *extra, **options):
        device, more = self.sides[side]
        return {out: (script, self.s.flags(script, name, device, out, [*extra, *more]), options)}

    def both(self, script, name, out, extra=()):
        return {**self.run(script, name, f"{out}-cpu", "cpu", *extra),
                **self.run(script, name, f"{out}-gpu", "gpu", *extra)}

    def killed(self, script, name, out, side, after, extra):
        return self.run(script, name, out, side, *extra, "--save_every=1", CHECK_KILL=str(after))

    def again(self, script, name, out, side, extra):
        return self.run(script, name, out, side, *extra, "--save_every=1", "--resume")

    def alike(self, out, first=FIRST, later=LATER, other=None):
        """Differences of two logs; a function, as the runs are not there yet."""
        return lambda: logs_differ(self.s.log(f"{out}-cpu"), self.s.log(other or f"{out}-gpu"),
                                   first, later)


def part_d(p):
    p.facts.update(where(p))
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(p, folder)
        base = sides.both("sft", "base", "base")
        p.check("pretraining: CPU and GPU run", lambda: sides.s.run(base) and {}, 120)
        p.check("pretraining: losses step by step", sides.alike("base"))
        # From here on all begin with the CPU's checkpoint.
        sft = ["--dropout=0.2", "--init=out/base-cpu", "--epochs=2", "--pretrain_mix=0.2"]
        ppo = ["--reward=out/rm-cpu", "--iterations=3", "--show=0"]
        tuned_on_both(p, sides, sft)
        rolled_out_on_both(p, sides, sft, ppo)
        last = {**sides.again("ppo", "base-cpu", "ppo-up", "gpu", ppo),
                **sides.again("ppo", "base-cpu", "ppo-down", "cpu", ppo)}
        p.check("PPO-ptx: resumed on the other device", lambda: sides.s.run(last) and {}, 120)
        p.check("PPO-ptx resumed, CPU to GPU", sides.alike("ppo", 2e-3, 5e-2, "ppo-up"))
        p.check("PPO-ptx resumed, GPU to CPU", sides.alike("ppo", 2e-3, 5e-2, "ppo-down"))


def tuned_on_both(p, sides, sft):
    """SFT and the reward model; one SFT run of each side is killed after three steps."""
    s, at = sides.s, "base-cpu"
    crossed = [*sft, "--init=out/base-gpu"]  # a checkpoint of the GPU's, on the CPU
    runs = {**sides.both("sft", at, "sft", sft), **sides.both("reward", at, "rm"),
            "sft-crossed": ("sft", s.flags("sft", at, "cpu", "sft-crossed", crossed), {}),
            **sides.killed("sft", at, "sft-up", "cpu", 3, sft),
            **sides.killed("sft", at, "sft-down", "gpu", 3, sft)}
    p.check("SFT with dropout, reward model: CPU and GPU run",
            lambda: gone(s, runs, s.run(runs, must=False)), 120)
    p.check("SFT with dropout: losses step by step", sides.alike("sft"))
    p.check("reward model: losses step by step", sides.alike("rm"))


def rolled_out_on_both(p, sides, sft, ppo):
    """PPO-ptx, one run of each side killed; PPO without text; and SFT resumed on the other
    device."""
    s, at, found = sides.s, "base-cpu", {}
    runs = {**sides.both("ppo", at, "ppo", ppo), **sides.killed("ppo", at, "ppo-up", "cpu", 1, ppo),
            **sides.killed("ppo", at, "ppo-down", "gpu", 1, ppo),
            **sides.both("ppo", at, "ppo-alone", [*ppo, "--ptx=0"]),
            **sides.again("sft", at, "sft-up", "gpu", sft),
            **sides.again("sft", at, "sft-down", "cpu", sft)}
    p.check("PPO-ptx, PPO: CPU and GPU run", lambda: found.update(s.run(runs, must=False))
            or gone(s, runs, found), 120)
    p.check("SFT resumed, CPU to GPU", sides.alike("sft", other="sft-up"))
    p.check("SFT resumed, GPU to CPU", sides.alike("sft", other="sft-down"))
    p.check("PPO-ptx: ids of the first iteration", lambda: same_ids(found))
    # Later iterations sample with weights that differ by rounding: a token may be another.
    p.check("PPO-ptx: losses of the first iteration", lambda: logs_differ(
        s.log("ppo-cpu")[:1], s.log("ppo-gpu")[:1], 2e-3, 0))
    p.check("PPO-ptx: losses of all iterations", sides.alike("ppo", 2e-3, 5e-2))
    p.check("PPO without text: losses of all iterations", sides.alike("ppo-alone", 2e-3, 5e-2))


def logs_of(s, plain, out):
    """As a check of two logs of one kind, `out` beside `plain`."""
    if not (s.folder / "out" / out / "log.jsonl").exists():
        raise Skip("it did not run")
    return logs_differ(s.log(plain), s.log(out), 1e-5, 1e-3)


def gone(s, runs, found):
    """Whether those that were to be killed left a state and no checkpoint, and the others a
    checkpoint. found: what Scripts.run returned of them."""
    bad = []
    for out, (_, _, options) in runs.items():
        states = list((s.folder / "out" / out).glob("state-*.pt"))
        done = (s.folder / "out" / out / "checkpoint.json").exists()
        if done == ("CHECK_KILL" in options) or ("CHECK_KILL" in options and not states):
            bad.append(f"{out}: checkpoint {done}, {len(states)} states, ends with "
                       f"{found[out]['code']}: {found[out].get('output', '')[-500:]}")
    return dict(bad="; ".join(bad)) if bad else {}


def same_ids(found):
    a, b = found["ppo-cpu"], found["ppo-gpu"]
    n = sum(x != y for x, y in zip(a["ids"], b["ids"]))
    facts = dict(rows=len(a["ids"]), other_rows=n, products=[a["products"], b["products"]])
    if n or a["lengths"] != b["lengths"]:
        facts["bad"] = f"{n} of {len(a['ids'])} rows have other ids"
    return facts


# ------------------------------------------------------------- e: memory, shards, what changes none

def planned(folder, script, flags, gpu):
    """Bytes by plan.py."""
    from runtime import plan
    from settings import parse
    module, before = importlib.import_module(script), os.getcwd()
    os.chdir(folder)
    try:
        s = parse(module.Settings, module.PRESETS, flags)
        return plan.planned(script, s, 1, gpu)
    finally:
        os.chdir(before)


def memory_facts(peak, plan_, what="peak"):
    facts = dict(peak=peak, planned=plan_, planned_over_peak=plan_ / peak)
    if not 0.85 <= plan_ / peak <= 1.15:
        facts.update(status="flagged", note=f"planned {plan_ / 1e6:,.0f} MB, {what} "
                                            f"{peak / 1e6:,.0f} MB: {plan_ / peak - 1:+.0%}")
    return facts


class Ways:
    """Runs of one script in several ways, and what each of them must show."""

    def __init__(self, p, folder):
        size = (16, 2, 2, 32) if p.tiny else (256, 8, 10, 640)
        self.p, self.folder = p, folder
        self.s = Scripts(p, size, 4 if p.tiny else 16, folder)
        self.found, self.plans, self.runs = {}, {}, {}

    def add(self, script, name, out, *extra, **options):
        more = ["--iterations=2"] if script == "ppo" else []
        flags = self.s.flags(script, name, self.p.device.type, out, [*extra, *more])
        self.runs[out] = script, flags, options

    def works(self, out, script, flags, options):
        """That a run ended well, and went the way that it was to go."""
        found = self.found.get(out)
        if found is None:
            raise Skip("it did not run")
        if found["code"]:
            return dict(bad=f"ends with {found['code']}", output=found["output"].splitlines()[-25:])
        self.plans[out] = planned(self.folder, script, flags, self.p.cuda)
        facts = {k: found.get(k) for k in ("products", "group", "in_parts")}
        group = ("nccl" if self.p.cuda else "gloo") if "CHECK_ONE_RANK" in options else None
        parts = bool(group) and "--shard" in flags
        if (facts["group"], facts["in_parts"]) != (group, parts):
            facts["bad"] = f"not the way it was to go: {facts}"
        return facts

    def go(self, what, plain, same):
        """Run what was added; `same`: those whose log must be that of the run `plain`."""
        p, mine, self.runs = self.p, self.runs, {}
        p.check(f"{what}: run", lambda: self.found.update(self.s.run(mine, must=False)), 120)
        for out, run in mine.items():
            p.check(f"{out}: runs", functools.partial(self.works, out, *run))
        for out in same:  # in float32, another order of sums at most
            p.check(f"{out}: numbers of {plain}", functools.partial(logs_of, self.s, plain, out))
        for out in mine:
            p.check(f"{out}: memory", functools.partial(measured_memory, p, self.found, self.plans,
                                                        out))


def part_e(p):
    p.facts.update(where(p))
    with tempfile.TemporaryDirectory() as folder:
        ways, one = Ways(p, folder), dict(ranks=True, CHECK_ONE_RANK="1")
        add = ways.add
        add("sft", "model", "model")
        add("sft", "model", "sft-checkpointing", "--activation_checkpointing")
        add("sft", "model", "sft-shard-1", "--shard", ranks=True)
        add("sft", "model", "sft-ddp-group", **one)
        add("sft", "model", "sft-shard-group", "--shard", "--save_every=2", **one)
        add("sft", "model", "sft-bf16", "--dtype=bf16")
        ways.go("sft", "model", ["sft-checkpointing", "sft-shard-1", "sft-ddp-group",
                                 "sft-shard-group"])
        add("reward", "model", "model-rm")
        add("reward", "model", "rm-checkpointing", "--activation_checkpointing")
        add("reward", "model", "rm-shard-group", "--shard", **one)
        ways.go("reward", "model-rm", ["rm-checkpointing", "rm-shard-group"])
        add("ppo", "model", "ppo")
        add("ppo", "model", "ppo-offload", "--offload")
        add("ppo", "model", "ppo-checkpointing", "--activation_checkpointing")
        add("ppo", "model", "ppo-shard-group", "--shard", **one)
        add("ppo", "model", "ppo-shard-offload-group", "--shard", "--offload", **one)
        add("ppo", "model", "ppo-bf16", "--dtype=bf16")
        ways.go("ppo", "ppo", ["ppo-offload", "ppo-checkpointing", "ppo-shard-group",
                               "ppo-shard-offload-group"])
    for name, changes in {"plain": {}, "micro-batches of 4": dict(micro_batch=4),
                          "checkpointing": dict(activation_checkpointing=True),
                          "float32": dict(dtype="float32", micro_batch=4)}.items():
        p.check(f"GPT-2 124M, {name}: memory", functools.partial(gpt2_memory, p, changes))


def measured_memory(p, found, plans, out):
    if out not in plans:
        raise Skip("it did not run")
    if not p.cuda:
        raise Skip("not measured on a CPU")
    return dict(memory_facts(found[out]["peak"], plans[out], "from the second step on"),
                first_step=found[out]["first"])


def gpt2_memory(p, changes):
    """A step of 16 rows of 1,024 tokens, from scratch, in this process."""
    import torch
    import sft
    from kernels import products
    from model import GPT
    from runtime import plan
    from runtime.machine import precision
    from runtime.optimizer import make_optimizer
    from runtime.world import World
    p.need(20)
    s = sft.Settings(**{**dict(init="gpt2", batch=16, micro_batch=16, dropout=0.0, dtype="bf16"),
                        **changes})
    c, world = plan.SIZES["gpt2"], World(0, "cuda")
    before = products.PRODUCTS
    try:
        precision(s.dtype, world, c.n_embd)
        net = world.wrap(GPT(c), False, s.activation_checkpointing)
        optimizer = make_optimizer(net, 1e-4, 0.1)
        for n in range(3):
            rows = [(row, 1) for row in torch.randint(c.vocab_size, (16, c.block_size)).tolist()]
            if n == 1:
                torch.cuda.reset_peak_memory_stats()
            sft.train_step(net, optimizer, rows, 1e-4, s, world)
        peak = torch.cuda.max_memory_allocated()
    finally:
        products.multiply_in(before)
        net = optimizer = None
    return memory_facts(peak, plan.planned("sft", s, 1, True))


# ---------------------------------------------------------------------------------------- f: speed

def speed_cases(tiny):
    """(row, number of its shape, seconds that it may take), the shortest first."""
    if tiny:
        return [("attention", 0, 20), ("ce", 0, 20), ("decode", 0, 20), ("step", 0, 20),
                ("ppo", 0, 40)]
    first = [("attention", n, 20) for n in range(0, 2)]  # T 1,024, D 64: forward, with backward
    more = [("attention", n, 20) for n in (2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 18, 19, 6, 7,
                                           16, 17)]
    return [*first, ("ce", 0, 30), ("decode", 1, 40), ("decode", 0, 30), ("step", 0, 60), *more,
            ("decode", 2, 60), ("ce", 1, 30), ("ce", 2, 30), ("ppo", 0, 120)]


def part_f(p):
    import gpu
    from runtime.machine import precision
    from runtime.world import World
    p.facts.update(where(p))
    world = World(0, p.device.type)
    precision("bf16", world, gpu.GPT2.n_embd)
    repeats = 1 if p.tiny else 3
    timer, peak = gpu.Timer(world.device), {}

    def ceilings():
        peak.update(gpu.ceilings(timer, repeats, p.tiny))
        return dict(peak, note=f"products {peak['flops'] / 1e12:.3g} TFLOP/s, memory "
                               f"{peak['bandwidth'] / 1e12:.3g} TB/s")

    p.check("ceilings", ceilings, 40)
    peak = peak or {"flops": math.nan, "bandwidth": math.nan}
    table = []

    def case(row, number):
        function, *shapes = gpu.ROWS[row]
        make = functools.partial(function, *shapes[p.tiny][number])
        result = gpu.tried(make, timer, repeats, peak)
        if "failed" in result:
            return dict(bad=result["failed"], what=result["what"])
        table.append(gpu.line(row, result))
        result["line"] = table[-1]
        print(table[-1], gpu.parts_table(result["parts"]) if "parts" in result else "", flush=True)
        return result

    with mock.patch.object(gpu, "compiled", lambda *_: "left out here"):
        for row, number, seconds in speed_cases(p.tiny):
            p.check(f"{row} {number}", functools.partial(case, row, number), seconds)
    p.check("odd row lengths", functools.partial(odd_rows, p, timer, repeats), 30)
    if not p.tiny:
        for row in ("ce", "step"):
            p.check(f"{row} 0, with torch.compile", functools.partial(case, row, 0), 90)


def odd_rows(p, timer, repeats):
    """The head's products with V = 50,257, and with V padded to 50,304: what that is worth."""
    import torch
    n, C, V, wide = (64, 32, 307, 320) if p.tiny else (4096, 768, 50257, 50304)
    low = torch.bfloat16 if p.cuda else torch.float32
    draw = lambda *shape: torch.randn(*shape, device=p.device).to(low)
    x, w, dz = draw(n, C), draw(V, C), draw(n, wide)
    odd, padded = dz[:, :V].contiguous(), torch.cat([w, w.new_zeros(wide - V, C)])
    more = dict(out_dtype=torch.float32) if p.cuda else {}
    runs = {"logits": lambda: torch.mm(x, w.T, **more),
            "logits, padded": lambda: torch.mm(x, padded.T, **more),
            "dw": lambda: torch.mm(odd.T, x, **more),
            "dw, padded": lambda: torch.mm(dz.T, x, **more),
            "dx": lambda: odd @ w, "dx, padded": lambda: dz @ padded}
    ms = {}
    for name, run in runs.items():
        try:
            run()
            ms[name] = round(1e3 * statistics.median(timer(run) for _ in range(3 * repeats)), 4)
        except Exception as error:
            ms[name] = f"{type(error).__name__}: {error}"[:200]
    return dict(milliseconds=ms, note=", ".join(f"{k} {v}" for k, v in ms.items()))


# --------------------------------------------------------------------------------------- all parts

PARTS = dict(a=part_a, b=part_b, c=part_c, d=part_d, e=part_e, f=part_f)


def run_part(name, device="cpu", tiny=False, seconds=1e9, path=None):
    """The part in this process."""
    p = Part(name, device, tiny, seconds, path)
    p.check(f"part {name} starts", lambda: {})
    try:
        PARTS[name](p)
    except Exception as error:  # outside of any check
        traceback.print_exc()
        p.results.append(dict(name="the part itself", status="failed", seconds=0,
                              bad=f"{type(error).__name__}: {error}"[:600],
                              trace=traceback.format_exc().splitlines()[-12:]))
    p.facts["finished"] = True
    p.write()
    return p


def read_part(path):
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return dict(facts={}, checks=[])


def ended(name, part, why):
    """What a part has found, with a word on the check that was under way where it did not end."""
    if not part["facts"].get("finished"):
        running = [c for c in part["checks"] if c["status"] == "running"]
        for c in running:
            c.update(status="failed", bad=why)
        if not running:
            part["checks"].append(dict(name="the part itself", status="failed", bad=why))
    return part


class Board:
    """The parts that run, and what is known."""

    def __init__(self, a):
        self.a, self.began, self.out = a, time.monotonic(), Path(a.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = open(self.out / "log.txt", "w")
        self.running, self.parts = {}, {}

    def passed(self):
        return time.monotonic() - self.began

    def begin(self, name):
        a, limit = self.a, self.a.budget * (1 if name == "f" else ALONE) - 8
        if set(a.parts) <= {name}:
            limit = a.budget - 8
        seconds = min(SECONDS[name] if a.device == "cuda" else 1e9, limit - self.passed())
        if seconds < 5:
            self.parts[name] = dict(facts={}, checks=[dict(
                name=f"part {name}", status="skipped", why="the budget is used up")])
            return
        path = self.out / f"part-{name}.json"
        path.unlink(missing_ok=True)
        words = [sys.executable, __file__, f"--part={name}", f"--device={a.device}",
                 f"--out={path}", f"--budget={seconds}", *["--tiny"] * a.tiny]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        if a.device == "cpu":
            environment.setdefault("OMP_NUM_THREADS", "1")
        run = subprocess.Popen(words, env=environment, stdout=self.log, stderr=subprocess.STDOUT,
                               start_new_session=True)
        self.running[name] = run, path, self.passed() + seconds + 5

    def look(self):
        """Take what has ended, end what has no time left."""
        for name, (run, path, end) in list(self.running.items()):
            code = run.poll()
            if code is None and self.passed() < end:
                continue
            if code is None:
                end_group(run)
            why = (f"the part was ended at its budget, {end - 5:.0f} s into the run"
                   if code is None else f"the part's process ended with {code}: see log.txt")
            self.parts[name] = ended(name, read_part(path), why)
            self.parts[name]["facts"]["seconds"] = round(self.passed(), 1)
            del self.running[name]
            self.write()
            path.unlink(missing_ok=True)

    def write(self):
        facts = dict(command=sys.argv, budget=self.a.budget, seconds=round(self.passed(), 1),
                     order="a to e side by side, then f" if self.a.jobs > 1 else "one by one",
                     parts={k: self.parts[k] for k in sorted(self.parts)})
        (self.out / "check.json").write_text(json.dumps(facts, indent=1, default=str))

    def run(self):
        waiting = list(self.a.parts)
        try:
            while waiting or self.running:
                while waiting and len(self.running) < self.a.jobs:
                    if waiting[0] == "f" and self.running:
                        break  # it measures time
                    self.begin(waiting.pop(0))
                self.look()
                time.sleep(0.1)
        finally:  # Ctrl-C, or asked to end
            for run, *_ in self.running.values():
                end_group(run)
            self.write()
        return self.parts


def end_group(run):
    """A part and all that it started."""
    for sign, patience in ((signal.SIGTERM, 6), (signal.SIGKILL, 3)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(patience)


def group_of(name):
    return name.split(":")[0]


def table(parts):
    """Lines: a group of checks each, then every one that did not pass."""
    lines = []
    for name, part in sorted(parts.items()):
        groups = {}
        for c in part["checks"]:
            groups.setdefault(group_of(c["name"]), []).append(c)
        for group, checks in groups.items():
            n = {s: sum(c["status"] == s for c in checks)
                 for s in ("passed", "failed", "flagged", "skipped")}
            errors = [c for c in checks if isinstance(c.get("error"), float)]
            top = max(errors, key=lambda c: c["error"], default=None)
            words = ", ".join(f"{v} {k}" for k, v in n.items() if v)
            if top is not None:
                words += f"; largest error {top['error']:.2g}"
                if isinstance(top.get("framework"), float):
                    words += f" (framework {top['framework']:.2g})"
            if "note" in checks[0] and len(checks) == 1:
                words += f"; {checks[0]['note']}"
            lines.append(f"{name} {group[:44]:44} {words}")
    for name, part in sorted(parts.items()):
        for c in part["checks"]:
            if c["status"] not in ("passed", "running"):
                why = c.get("bad") or c.get("note") or c.get("why") or ""
                lines.append(f"{c['status'].upper()} {name} {c['name']}: "
                             f"{' '.join(str(why).split())[:300]}")
    count = [c["status"] for part in parts.values() for c in part["checks"]]
    lines.append(", ".join(f"{count.count(s)} {s}" for s in
                           ("passed", "failed", "flagged", "skipped")))
    return lines


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a CPU")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ",".join(PARTS))
    parser.add_argument("--budget", type=float, default=420.0, help="seconds for all of it")
    parser.add_argument("--jobs", type=int, help="parts a to e at once; 4 on a GPU, else 1")
    parser.add_argument("--part", help="(used inside) one part, in this process")
    a = parser.parse_args(argv)
    a.parts = a.parts.split(",")
    if unknown := set(a.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    a.jobs = a.jobs or (4 if a.device == "cuda" else 1)
    return a


def main(argv):
    """Returns whether a check failed."""
    if argv[:1] == ["run"]:
        return run_script(argv[1:])
    a = arguments(argv)
    if a.part:
        p = run_part(a.part, a.device, a.tiny, a.budget, Path(a.out))
        return any(c["status"] == "failed" for c in p.results)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parts = Board(a).run()
    print(*table(parts), sep="\n", flush=True)
    return any(c["status"] == "failed" for part in parts.values() for c in part["checks"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

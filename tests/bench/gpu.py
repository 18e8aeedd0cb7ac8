"""What a CUDA GPU adds to `make bench`: products in bf16, as the scripts use them there.

    python tests/bench/gpu.py                        all rows
    python tests/bench/gpu.py --rows=ce,step         some of them
    python tests/bench/gpu.py --device=cpu --tiny    small shapes: shows that it runs, not how fast

A row has cases, one for each of its shapes, and a case has sides, ours and its peers. The sides
must agree (losses, gradients, log-probs) before they are timed. Then they take turns: the L2 cache
is overwritten, CUDA events stand around the run, and medians count. Extra memory is the most that
was allocated during a run, less what is allocated after it (inputs, weights, outputs, gradients).
A decoding step and the parts of a PPO iteration lie inside of a run: there the wall clock counts,
read when the GPU has nothing left to do.
The ceilings, a large product and a large copy, are measured by the same clock in the same process.
A peer that fails, as for want of memory, is told and left out; so is a case in which ours does.
Writes out/bench/gpu.json after each case.
"""
import argparse
import contextlib
import copy
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import statistics
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

from bench import ROOT, machine, ppo_iteration

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from runtime import plan
import ppo
import sft
from model import GPT, GPTConfig
from sampler import generate
from runtime.machine import precision
from runtime.optimizer import make_optimizer, take_step
from runtime.world import World

LOSS, GRADIENT, LOGPROB = 1e-3, 2e-2, 2e-3  # relative differences that bf16's 8 bits explain
NOT_HERE = "not installed"


@dataclass
class Case:
    """One line of the table."""
    what: str
    sides: dict  # name: function without arguments that does the work; or a text, why it is missing
    aims: dict  # column of `derived`: (">=" or "<=", number)
    answers: dict = None  # name: function that returns what sides must agree on; None: the sides do
    tolerance: float = GRADIENT  # of the answers that are not single numbers
    flops: float = 0.0  # of the work
    bytes: float = 0.0  # the fewest that it must read
    rounds: int = 1  # times --repeats: short work is measured more often
    own_clock: bool = False  # a side returns the seconds that count
    parts: list = field(default_factory=list)  # {part: seconds} of each run, where it has parts
    part_flops: dict = field(default_factory=dict)

    def running(self):
        return {name: run for name, run in self.sides.items() if callable(run)}


# ------------------------------------------------------------------------------- peers, oracles

def compiled(function, device):
    """torch.compile of a function, anew for each shape; a text where no compiler is at hand."""
    names = ("CXX", "g++", "clang++") if device.type == "cpu" else ("CC", "gcc", "clang", "cc")
    if not any(shutil.which(os.environ.get(name, name)) for name in names):
        return "no C compiler for torch.compile"
    return torch.compile(function, dynamic=False)


def plain_attention(x, attn):
    """The attention of model.py on PyTorch's own. x: [B, T, C]."""
    qkv = F.linear(x, attn.c_attn.weight, attn.c_attn.bias)
    q, k, v = (y.unflatten(-1, (attn.n_head, -1)).transpose(1, 2) for y in qkv.chunk(3, dim=-1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    return F.linear(y, attn.c_proj.weight, attn.c_proj.bias)


def plain_logits(model, ids):
    """Our GPT's weights in the model as PyTorch alone would have it: ids [B, T] -> [B, T, V]."""
    body = model.transformer
    x = (body.wte(ids) + body.wpe.weight[: ids.size(1)]).float()
    for block in body.h:
        x = x + plain_attention(block.ln_1(x), block.attn)
        fc, proj = block.mlp.c_fc, block.mlp.c_proj
        h = F.gelu(F.linear(block.ln_2(x), fc.weight, fc.bias), approximate="tanh")
        x = x + F.linear(h, proj.weight, proj.bias)
    return F.linear(body.ln_f(x), body.wte.weight)


def plain_loss(model, ids):
    """Cross-entropy in nats a token of rows of text, [B, T]."""
    targets = F.pad(ids[:, 1:], (0, 1), value=-1).flatten()
    with torch.autocast(ids.device.type, torch.bfloat16):
        return F.cross_entropy(plain_logits(model, ids).flatten(0, 1), targets, ignore_index=-1)


@torch.no_grad()
def plain_logprobs(model, ids):
    """log p of the tokens from the second on, [B, T - 1]."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logp = plain_logits(model, ids[:, :-1]).float().log_softmax(-1)
    return logp.gather(-1, ids[:, 1:, None]).squeeze(-1)


def plain_step(model, optimizer, ids, loss_of, s):
    """What sft.train_step does, with another loss. Returns (the batch's loss, gradient's norm)."""
    total = 0.0
    for part in ids.split(s.micro_batch):
        loss = loss_of(model, part) * (len(part) / len(ids))
        loss.backward()
        total += float(loss.detach())
    return total, take_step(model, optimizer, s.lr, s.clip, s.explode)


def eager_cross_entropy(x, weight, y):
    """Autocast multiplies in bf16 and takes the softmax in float32, of logits that are rounded."""
    with torch.autocast(x.device.type, torch.bfloat16):
        return F.cross_entropy(F.linear(x, weight), y)


class Gradients:
    """In the place of an optimiser: takes no step, keeps the gradient."""
    param_groups = ()

    def __init__(self, model):
        self.parameters = list(model.parameters())

    def step(self):
        self.kept = torch.cat([p.grad.flatten() for p in self.parameters])

    def zero_grad(self, set_to_none):
        for p in self.parameters:
            p.grad = None


# ------------------------------------------------------------------------------------- the rows

def attention_case(tokens, width, T, D, backward, device):
    """As the model has it: heads beside each other in a token's row, [B, T, H, D] in memory."""
    B, H = tokens // T, width // D
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, T, H, D, device=device, dtype=torch.bfloat16).transpose(1, 2)
               .requires_grad_(backward) for _ in range(3))
    grad = torch.randn_like(q)
    flash = SDPBackend.FLASH_ATTENTION if device.type == "cuda" else SDPBackend.MATH

    def run(function):
        out = function(q, k, v)
        return [out, *torch.autograd.grad(out, (q, k, v), grad)] if backward else [out]

    def theirs():
        with sdpa_kernel(flash):
            return run(lambda *x: F.scaled_dot_product_attention(*x, is_causal=True))

    count = plan.train_flops if backward else plan.forward_flops
    return Case(f"attention fwd{'+bwd' * backward}, B {B}, H {H}, T {T}, D {D}",
                {"ours": lambda: run(kernels.causal_attention),
                 f"SDPA {flash.name.lower()}": theirs},
                {"speed": (">=", 0.9 if backward else 1.0)}, rounds=10,
                flops=count(GPTConfig(0, T, 1, H, width), 0, B * T * (T + 1) / 2))


def ce_case(N, C, V, device):
    """Linear and cross-entropy, forward and backward; the embedding is a float32 master weight."""
    torch.manual_seed(0)
    x = torch.randn(N, C, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(V, C, device=device)).requires_grad_()
    y = torch.randint(V, (N,), device=device)

    def run(loss_of):
        loss = loss_of()
        return [loss, *torch.autograd.grad(loss, (x, weight))]

    fast = compiled(eager_cross_entropy, device)
    objective = lambda logprob, marks: -logprob.sum() / N
    ours = lambda: kernels.losses.token_objective(x, weight, y, objective)[0]
    sides = {"ours": lambda: run(ours),
             "eager": lambda: run(lambda: eager_cross_entropy(x, weight, y)),
             "compiled": fast if isinstance(fast, str) else lambda: run(lambda: fast(x, weight, y)),
             "liger": liger_side(run, x, weight, y)}
    return Case(f"cross-entropy fwd+bwd, N {N}, C {C}, V {V}", sides,
                {"time": ("<=", 1.0), "memory": ("<=", 0.1)}, rounds=4,
                flops=plan.train_flops(GPTConfig(V, 1, 0, 1, C), 0, 0, N))


def liger_side(run, x, weight, y):
    """liger-kernel's fused one, which sums gradients in float32, as all others here do."""
    if not (x.is_cuda and importlib.util.find_spec("liger_kernel")):
        return NOT_HERE
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    loss = LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)
    return lambda: run(lambda: loss(weight.to(x.dtype), x, y))


def step_case(c, B, micro_batch, device):
    """An optimiser step on B rows of text that fill the context."""
    world, s = World(0, device), sft.Settings(micro_batch=micro_batch, lr=1e-4)
    first, T = GPT(c).to(device), c.block_size
    ids = torch.randint(c.vocab_size, (B, T), device=device)
    rows = [(row, 1) for row in ids.tolist()]

    def ours(model, optimizer, s):
        return sft.train_step(model, optimizer, rows, s.lr, s, world)

    def peer(loss_of):
        return loss_of if isinstance(loss_of, str) else (
            lambda model, optimizer, s: plain_step(model, optimizer, ids, loss_of, s))

    def side(step):
        model = copy.deepcopy(first)
        return functools.partial(step, model, make_optimizer(model, s.lr, 0.0), s)

    def answer(step):  # the gradient before it is clipped
        keeper = Gradients(first)
        return [torch.tensor(step(first, keeper, replace(s, clip=0.0))[0]), keeper.kept]

    steps = {"ours": ours, "eager": peer(plain_loss),
             "compiled": peer(compiled(plain_loss, device))}
    there = {name: step for name, step in steps.items() if callable(step)}
    return Case(f"training step, {size(c)}, {B} x {T} tokens",
                {**steps, **{name: side(step) for name, step in there.items()}},
                {"utilisation": (">=", 0.55), "speed": (">=", 1.0)},
                {name: functools.partial(answer, step) for name, step in there.items()},
                flops=plan.train_flops(c, B * T, B * T * (T + 1) / 2, B * (T - 1)))


def size(c):
    """A model's parameters, in words."""
    P = plan.parameters(c)
    return f"{P / 1e6:.0f}M" if P >= 1e6 else f"{P / 1e3:.0f}k"


def decode_case(c, B, prompt, new, device):
    """A step of generate, one token for each of B rows: what `new` steps take more than 8 do, which
    read the prompts too. Half the steps see more of the cache than counted."""
    torch.manual_seed(0)
    model = GPT(c).to(device)
    prompts = torch.randint(c.vocab_size, (B, prompt)).tolist()

    def seconds(steps):
        before = now(device)
        generate(model, prompts, steps, -1)
        return now(device) - before

    def ours():
        return (seconds(new) - seconds(first)) / (new - first)

    first = min(8, new // 2)

    few = functools.cache(lambda: generate(model, prompts[:8], new, -1))
    cache = kernels.decode.cache_type(model.transformer.wte.weight).itemsize
    return Case(f"decoding step, {size(c)}, B {B}, {prompt} + {new} tokens", {"ours": ours},
                {"reads": ("<=", 1.5)},
                {"ours": lambda: [few().logprobs[:, prompt:]],
                 "whole rows": lambda: [plain_logprobs(model, few().ids)[:, prompt - 1 :]]},
                tolerance=LOGPROB, own_clock=True,
                bytes=kernels.products.PRODUCTS.itemsize * plan.parameters(c)
                + B * plan.cache_bytes(c, prompt + (first + new) / 2, cache))


def ppo_case(c, B, minibatch, prompt, new, device):
    """An iteration of ppo.py, all four models of one size, and where its time goes."""
    s = ppo.Settings(batch=B, minibatch=minibatch, micro_batch=minibatch, ptx=0.0, lr=1e-5,
                     value_lr=1e-5, max_new_tokens=new)
    iteration = ppo_iteration(c, s, World(0, device), prompt)
    work = ppo_work(c, s, prompt)
    case = Case(f"PPO iteration, {size(c)}, B {B}, {prompt} + {new} tokens, no text", {}, {},
                tolerance=LOGPROB, own_clock=True, flops=sum(work.values()), part_flops=work)

    def ours():
        spent = Counter(dict.fromkeys(work, 0.0))
        with watched(spent, device):
            before = now(device)
            iteration()
            total = now(device) - before
        case.parts.append({**spent, "all else": total - spent.total()})
        return total

    @functools.cache
    def first():  # policy and reference still are the same model
        models = []
        with mock.patch.object(ppo, "in_groups", noting(ppo.in_groups, models)):
            return iteration(), models[0]

    def whole_rows():
        e, reference = first()
        return [plain_logprobs(reference, e.samples.ids[:8])[:, prompt - 1 :]] * 2

    case.sides = {"ours": ours}
    case.answers = {"ours": lambda: [x[:8, prompt:] for x in (first()[0].logprob,
                                                              first()[0].ref_logprob)],
                    "whole rows": whole_rows}
    return case


def ppo_work(c, s, prompt):
    """FLOPs of an iteration's parts. The update of a batch is the same, however it is cut."""
    policy, scalar = plan.Model("", c), plan.Model("", c, scalar=True)
    work = lambda model, steps=0: plan.Work("", "", model, s.batch, prompt, s.max_new_tokens,
                                            steps).flops()
    steps = s.batch // s.minibatch
    return {"rollout": work(policy), "scoring: reference": work(policy),
            "scoring: reward model": work(scalar), "scoring: value": work(scalar),
            "update: policy": work(policy, steps), "update: value": work(scalar, steps)}


def noting(function, models):
    """The function, with its first arguments added to `models`."""
    def run(model, *arguments, **options):
        models.append(model)
        return function(model, *arguments, **options)

    return run


def scored(model):
    """What ppo.in_groups scores with this model for."""
    if isinstance(model, GPT):
        return "scoring: reference"
    return "scoring: value" if model.score.weight.requires_grad else "scoring: reward model"


@contextlib.contextmanager
def watched(spent, device):
    """Within this context the parts of a PPO iteration add their seconds to `spent`."""
    def watch(function, part):
        def run(model, *arguments, **options):
            before = now(device)
            result = function(model, *arguments, **options)
            spent[part(model)] += now(device) - before
            return result

        return run

    parts = {"generate": lambda _: "rollout", "in_groups": scored,
             "update_policy": lambda _: "update: policy",
             "update_value": lambda _: "update: value"}
    with mock.patch.multiple(ppo, **{k: watch(getattr(ppo, k), v) for k, v in parts.items()}):
        yield


GPT2, TINY = plan.SIZES["gpt2"], GPTConfig(307, 32, 2, 4, 64)
ROWS = {  # name: (function, its shapes, and those of --tiny)
    "attention": (attention_case, [(2**14, 2048, 2**n, D, backward) for D in (64, 128)
                                   for n in range(10, 15) for backward in (False, True)],
                  [(96, 32, T, 16, backward) for T in (48, 96) for backward in (False, True)]),
    "ce": (ce_case, [(2**15, C, 50257) for C in (768, 1024, 2048)], [(40, 32, 307)]),
    "step": (step_case, [(GPT2, 64, 16)], [(TINY, 4, 2)]),
    "decode": (decode_case, [(GPT2, B, 512, 64) for B in (1, 64, 512)], [(TINY, 3, 12, 8)]),
    "ppo": (ppo_case, [(GPT2, 512, 64, plan.PAPER.asked, plan.PAPER.answer)],
            [(TINY, 8, 4, 10, 6)]),
}


# ------------------------------------------------------------------------------------ measuring

def now(device):
    """Seconds, once all that was begun on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Timer:
    """timer(run): the seconds that a run takes, its inputs out of the L2 cache on a GPU."""

    def __init__(self, device):
        self.device = device
        if device.type == "cuda":  # 10 times the L2 cache of an H100
            self.other = torch.empty(2**29, dtype=torch.uint8, device=device)

    def __call__(self, run):
        if self.device.type != "cuda":
            before = now(self.device)
            run()
            return now(self.device) - before
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.other.zero_()
        torch.cuda._sleep(2_000_000)  # about 1 ms: meanwhile the CPU launches what is timed
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) / 1e3


def ceilings(timer, repeats, tiny=False):
    """What this machine reaches: FLOP/s of a bf16 product, bytes/s read and written by a copy."""
    n, size = (256, 2**18) if tiny else (8192, 2**29)
    a, b = (torch.randn(n, n, device=timer.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(size, device=timer.device)
    target, product = torch.empty_like(source), torch.empty_like(a)
    seconds = times({"product": lambda: torch.mm(a, b, out=product),
                     "copy": lambda: target.copy_(source)}, timer, 4 * repeats)
    middle = {name: statistics.median(took) for name, took in seconds.items()}
    return {"flops": 2 * n**3 / middle["product"], "bandwidth": 8 * size / middle["copy"]}


def times(sides, clock, repeats):
    """{side: seconds of each run}; they take turns, after a round to warm up."""
    seconds = {name: [] for name in sides}
    for n in range(repeats + 1):
        for name, run in sides.items():
            took = clock(run)
            if n:
                seconds[name].append(took)
    return seconds


def extra_memory(run, device):
    """Bytes at a run's peak, beyond what it finds and what it leaves; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    left = run()  # alive until the end of this function
    torch.cuda.synchronize(device)
    extra = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    del left
    return extra


def differences(got, expected):
    """||a - b|| / ||b|| of each pair of tensors."""
    norm = lambda x: float(x.detach().double().norm())
    return [norm(a.double() - b.double()) / norm(b) for a, b in zip(got, expected, strict=True)]


def answers_of(case):
    """{side: what it answers}. A peer that fails, as for want of memory, is no side any more."""
    answers = {}
    for name, answer in (case.answers or case.running()).items():
        try:
            answers[name] = answer()
        except Exception as error:
            if name == "ours":
                raise
            traceback.print_exc()
            case.sides[name] = f"failed: {type(error).__name__}"
    return answers


def agree(case):
    """{side: differences from the first peer}; stops if ours are more than rounding."""
    answers = answers_of(case)
    ours, *peers = answers
    if not peers:
        raise AssertionError("no peer to agree with")
    peer, *others = peers
    expected = answers[peer]
    found = {name: differences(answers[name], expected) for name in (ours, *others)}
    bounds = [case.tolerance if x.numel() > 1 else LOSS for x in expected]
    if not all(d <= bound for d, bound in zip(found["ours"], bounds, strict=True)):  # NaN is not
        raise AssertionError(f"ours differs from {peer} by {found['ours']}, allowed {bounds}")
    return found


def derived(case, seconds, memory, peak):
    """The columns that follow from medians and extra bytes by side, and from the `ceilings`."""
    ours, peers = seconds["ours"], [t for name, t in seconds.items() if name != "ours"]
    columns = {}
    if peers:
        columns.update(speed=min(peers) / ours, time=ours / min(peers))
    if memory.get("eager"):
        columns["memory"] = memory["ours"] / memory["eager"]
    if case.flops:
        columns.update(flops=case.flops / ours, utilisation=case.flops / ours / peak["flops"])
    if case.bytes:
        columns["reads"] = ours / (case.bytes / peak["bandwidth"])
    return columns


def judged(aims, columns):
    """{column: what to reach, and whether it is}; None where it could not be measured."""
    out = {}
    for name, (sense, bound) in aims.items():
        value = columns.get(name)
        reached = None if value is None else value >= bound if sense == ">=" else value <= bound
        out[name] = dict(value=value, to_reach=f"{sense} {bound:g}", reached=reached)
    return out


def parts_of(case, repeats, peak):
    """{part: seconds, share, FLOPs, utilisation}, medians of the last runs."""
    runs = case.parts[-repeats:]
    seconds = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    out = {part: dict(seconds=t, share=t / sum(seconds.values())) for part, t in seconds.items()}
    for part, flops in case.part_flops.items():
        out[part].update(flops=flops, utilisation=flops / seconds[part] / peak["flops"])
    return out


def measured(case, timer, repeats, peak):
    """All facts of a case."""
    clock = (lambda run: run()) if case.own_clock else timer
    result = dict(what=case.what, differences=agree(case))
    sides, repeats = case.running(), repeats * case.rounds
    took = times(sides, clock, repeats)
    middle = {name: statistics.median(t) for name, t in took.items()}
    if case.parts:
        result["parts"] = parts_of(case, repeats, peak)
    memory = {name: extra_memory(run, timer.device) for name, run in sides.items()}
    columns = derived(case, middle, memory, peak)
    return dict(result, seconds=took, medians=middle, memory=memory, columns=columns,
                missing={name: why for name, why in case.sides.items() if isinstance(why, str)},
                aims=judged(case.aims, columns))


def tried(make, timer, repeats, peak):
    """`measured`, or what went wrong: the next case may still be of use."""
    try:
        return measured(make(device=timer.device), timer, repeats, peak)
    except Exception as error:
        traceback.print_exc()
        return dict(what=" ".join(map(str, make.args)),
                    failed=f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        gc.collect()
        if timer.device.type == "cuda":
            torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------ the report

HEAD = ("| work | ours | peers | extra memory | TFLOP/s | to reach |\n|---|---|---|---|---|---|")
UNITS = {"speed": "x the best peer's speed", "time": "x the best peer's time",
         "memory": "x eager's memory", "utilisation": " of the matmul peak",
         "reads": "x the time to read weights and cache"}


def line(name, result):
    """A case as a line of the table."""
    if "failed" in result:
        return f"| {name}: {result['what']} | failed: {result['failed']} | | | | |"
    ms = {side: f"{1e3 * t:.3g} ms" for side, t in result["medians"].items()}
    peers = {**{side: t for side, t in ms.items() if side != "ours"}, **result["missing"]}
    mib = [f"{side} {b / 2**20:.0f} MiB" for side, b in result["memory"].items() if b is not None]
    flops = result["columns"].get("flops")
    return (f"| {result['what']} | {ms['ours']} | "
            f"{', '.join(f'{side} {t}' for side, t in peers.items())} | {', '.join(mib)} | "
            f"{f'{flops / 1e12:.3g}' if flops else ''} | "
            f"{'; '.join(verdict(k, aim) for k, aim in result['aims'].items())} |")


def verdict(column, aim):
    value = "not measured" if aim["value"] is None else f"{aim['value']:.3g}{UNITS[column]}"
    missed = ", missed" if aim["reached"] is False else ""
    return f"{value} (aim {aim['to_reach']}){missed}"


def parts_table(parts):
    """Where a PPO iteration's time goes."""
    rows = [f"| {part} | {1e3 * p['seconds']:.4g} ms | {p['share']:.1%} | "
            + (f"{p['flops'] / 1e12:.3g} | {p['utilisation']:.1%} |" if "flops" in p else "| |")
            for part, p in parts.items()]
    return "\n".join(["", "| part | time | share | TFLOP | of the matmul peak |",
                      "|---|---|---|---|---|", *rows, ""])


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_HERE


def facts_of(device, repeats, argv):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()
    return dict(device=name, torch=torch.__version__, cuda=torch.version.cuda,
                triton=version("triton"), liger=version("liger-kernel"), repeats=repeats,
                date=time.strftime("%Y-%m-%d"), products=str(kernels.products.PRODUCTS),
                command=shlex.join(["python", "tests/bench/gpu.py", *argv]), rows={})


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="of " + ",".join(ROWS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a CPU")
    parser.add_argument("--out", default=str(ROOT / "out/bench/gpu.json"))
    return parser.parse_args(argv)


def main(argv):
    """Returns whether a case failed."""
    a = arguments(argv)
    world = World(0, a.device)
    precision("bf16", world, GPT2.n_embd)
    device = world.device
    facts, timer = facts_of(device, a.repeats, argv), Timer(device)
    facts["ceilings"] = peak = ceilings(timer, a.repeats, a.tiny)
    print(f"{facts['device']}; torch {facts['torch']}, triton {facts['triton']}, liger-kernel "
          f"{facts['liger']}; {facts['date']}; bf16 products {peak['flops'] / 1e12:.3g} TFLOP/s, "
          f"memory {peak['bandwidth'] / 1e12:.3g} TB/s\n\n{HEAD}", flush=True)
    path = Path(a.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in a.rows.split(","):
        function, *shapes = ROWS[name]
        results = facts["rows"][name] = []
        for shape in shapes[a.tiny]:
            results.append(tried(functools.partial(function, *shape), timer, a.repeats, peak))
            print(line(name, results[-1]), flush=True)
            if "parts" in results[-1]:
                print(parts_table(results[-1]["parts"]), flush=True)
            path.write_text(json.dumps(facts, indent=1))
    return any("failed" in result for results in facts["rows"].values() for result in results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Estimates what a run would cost: `python ppo.py --preset=175b --plan`. Nothing is allocated.

    parameters      of a GPTConfig, with the language head or the scalar head
    Work            rows that one model samples, scores or trains on: FLOPs, seconds, bytes sent
    sft, reward, ppo    the work of a step or iteration, from the settings of the script
    memory          bytes a GPU
    report          all of it as text

A token's forward pass takes 2 FLOPs a parameter and training on it 6 (Kaplan et al. 2020, section
2.1); attention adds 4 n_embd n_layer for each pair of a query and a key. Decoding is different:
a step reads all weights to produce one token a row, so memory bandwidth limits it.
"""
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from data import records
from model import GPTConfig
from runtime import pretrained
from runtime.checkpoint import config_of
from runtime.machine import bf16_pays
from settings import stop

GPU_CHUNK = 2**28  # logits that a GPU holds at a time
DAY = 1e15 * 86400  # a petaflop/s-day in FLOPs, the paper's unit (section 5.1)

SIZES = {  # GPT-3: Brown et al. 2020, Table 2.1; 16 heads: Stiennon et al. 2020, Table 3
    "gpt2": GPTConfig(50257, 1024, 12, 12, 768),
    "gpt2-medium": GPTConfig(50257, 1024, 24, 16, 1024),
    "gpt2-large": GPTConfig(50257, 1024, 36, 20, 1280),
    "gpt2-xl": GPTConfig(50257, 1024, 48, 25, 1600),
    "1.3b": GPTConfig(50257, 2048, 24, 16, 2048),
    "6b": GPTConfig(50257, 2048, 32, 32, 4096),
    "175b": GPTConfig(50257, 2048, 96, 96, 12288),
}
TOY = GPTConfig(700, 128, 4, 2, 128)

# Mean lengths in tokens. The paper's are from Tables 6 and 8 to 10; it does not say how long its
# models' responses are, 128 is our guess. The text is GPT-3's (Brown et al. 2020, Table D.1). The
# toy's are counted in its default world. full: the share of the context that a text row fills.
PAPER = SimpleNamespace(demos=12725, demo=(408, 43), prompts=33207, ranked=199, asked=166,
                        answer=128, text=300e9, full=1)
TOWN = SimpleNamespace(demos=30, demo=(25, 9), prompts=9000, ranked=19, asked=19, answer=14,
                       text=2.5e6, full=0.98)
K = 6.5  # completions of a prompt, 4 to 9 (section 3.5)

# Petaflop/s-days, section 5.1. We get the same (4.9 to 5.1, 60 to 63) if every row fills the
# context of 2,048 tokens, so that is how the paper seems to count; 6 N D alone gives 5.1 for SFT
# and 51 for the text of PPO-ptx, 8 rows an episode and nine tenths of the total. Our batches have
# hardly any pads, so short prompts and responses cost less: 1.1 and 53.
PUBLISHED = {("sft", "175b"): 4.9, ("ppo", "175b"): 60}


@dataclass
class Machine:
    """The makers' numbers, and what we expect to reach. `--plan=h100` chooses one."""
    name: str
    memory: float  # bytes
    flops: float  # FLOP/s at its peak
    utilisation: float  # share of that which products of matrices reach
    bandwidth: float  # bytes/s of its memory, as reached: 70 % of the peak
    inside: float  # bytes/s to the GPUs of its node of 8
    outside: float  # bytes/s to other nodes: rings use all of a node's 8 network cards
    master: int = 4  # bytes of a weight, and of a gradient, that is trained
    low: int = 2  # bytes of a number in products: bf16, and of a frozen model's weights
    cache: int = 2  # bytes of a number in a cache of keys and values: kernels/decode.py, cache_type
    other: float = 0.0  # FLOP/s in the dtype that --dtype=auto does not choose: float32, no TF32
    chunk: int = GPU_CHUNK  # logits at a time: kernels/losses.py, _chunks


MACHINES = {
    "a100": Machine("A100 80 GB", 80e9, 312e12, 0.4, 1.4e12, 300e9, 200e9, other=19.5e12),
    "h100": Machine("H100 80 GB", 80e9, 989e12, 0.4, 2.3e12, 450e9, 400e9, other=67e12),
    "cpu": Machine("one CPU core, float32", 16e9, 231e9, 0.65, 10e9, 1e9, 1e9, low=4, cache=4,
                   other=333e9, chunk=2**24),  # a training step in bf16: 1.44 times as fast
}


def in_type(m, dtype, width):
    """The machine with the products that --dtype chooses: auto is bf16 on a GPU, and on a CPU what
    auto chooses on this one for models of this width."""
    if dtype == "auto":
        dtype = "bf16" if m.low == 2 or bf16_pays(width) else "float32"
    if dtype == ("float32" if m.low == 2 else "bf16"):
        name = f"{m.name.removesuffix(', float32')}, {dtype}"
        return replace(m, name=name, low=6 - m.low, cache=4, flops=m.other)
    return m


# ---------------------------------------------------------------------------- one model, one row

def parameters(c, scalar=False):
    """How many parameters a GPT has, or a ScalarGPT. c: its GPTConfig."""
    block = 12 * c.n_embd**2 + 13 * c.n_embd  # 4 matrices of 3, 1, 4, 4 C^2; biases; 2 norms
    head = c.n_embd + 1 if scalar else 0  # the language head is the embedding
    return c.n_layer * block + (c.vocab_size + c.block_size + 2) * c.n_embd + head


def forward_flops(c, tokens, pairs, marked=0):
    """FLOPs of a forward pass. pairs: of a query and a key that it sees; marked: tokens whose
    log-probability is needed (only they reach the output embedding)."""
    return (24 * c.n_layer * c.n_embd**2 * tokens + 4 * c.n_layer * c.n_embd * pairs
            + 2 * c.n_embd * c.vocab_size * marked)


def train_flops(c, tokens, pairs, marked=0, checkpoint=False):
    """FLOPs of a forward and a backward pass. A product's gradients are two products; attention
    recomputes its scores, so five for two. With checkpointing the blocks run forward twice."""
    blocks = forward_flops(c, tokens, pairs)
    return (3 * forward_flops(c, tokens, 0, marked) + 3.5 * forward_flops(c, 0, pairs)
            + blocks * checkpoint)


def activation_bytes(c, tokens, marked=0, checkpoint=False, low=4, dropout=False, places=0,
                     chunk=2**24):
    """Bytes at the peak of a backward pass, without gradients of weights.

    A block keeps 16 C numbers a token: two inputs of norms and their outputs, q, k and v, the
    output of attention, 4 C before gelu and 4 C after it. With checkpointing a block keeps only its
    input, and one block at a time has the rest; dropout adds 4 C. Inputs of norms are the residual
    stream, which is always float32. The last norm and the head keep 4 C. Gradients on their way
    through a block are 10 C more, unless the head's logits were more. The nodes of a PrefixTree
    keep 13 C, and their places in rows, which attention needs, 4 C. The head's gradient of the
    embedding, V C, exists from the first gradient to the last.
    """
    kept = tokens * (16 + 4 * dropout) * c.n_embd + tokens * c.n_head
    if places:
        kept += (4 * places - 3 * tokens) * c.n_embd + (places - tokens) * c.n_head
    one = low * kept + (4 - low) * 2 * tokens * c.n_embd
    blocks = 4 * c.n_layer * tokens * c.n_embd + one if checkpoint else c.n_layer * one
    logits = logits_bytes(c, marked, chunk, low)
    embedding = 4 * c.vocab_size * c.n_embd * (marked > 0)
    return (blocks + low * 4 * tokens * c.n_embd + embedding
            + max(low * tokens * 10 * c.n_embd, logits))


def logits_bytes(c, marked, chunk, low=4):
    """Bytes of the head's logits of a chunk of tokens. All are kept, as gradients are computed at
    once (kernels/losses.py): on a CPU in place, plus the tile that a product makes; on a GPU beside
    the logits, in the dtype of products, low."""
    rows = min(marked, chunk / c.vocab_size)
    if chunk == GPU_CHUNK:
        return rows * (4 + low) * c.vocab_size
    return 4 * rows * (min(c.vocab_size, 2048) + c.vocab_size)  # losses.TILE


def cache_bytes(c, tokens, low=4):
    """Bytes of the keys and values of this many tokens."""
    return 2 * c.n_layer * c.n_embd * tokens * low


# --------------------------------------------------------------------------------- the work to do

@dataclass
class Model:
    name: str
    config: GPTConfig
    scalar: bool = False
    trained: bool = False
    ema: bool = False
    muon: bool = False

    @property
    def size(self):
        return parameters(self.config, self.scalar)

    @property
    def moments(self):
        """Float32 numbers of its optimiser: two a weight, but Muon keeps one of the blocks'
        matrices."""
        return 2 * self.size - self.muon * 12 * self.config.n_layer * self.config.n_embd**2

    def kept(self, m):
        """Bytes of its weights. FSDP gathers them in the type in which they are kept."""
        return (m.master if self.trained else m.low) * self.size

    def lent(self, m):
        """Whether a GPU holds all of it for a rollout or scores, as `gathered` does. If it does not
        fit, the plan assumes that blocks are gathered whenever they are needed."""
        return self.kept(m) < m.memory / 2


@dataclass
class Work:
    """Rows that a model computes in one step or iteration, over all GPUs.

    prompt, response: mean tokens of a row; log-probs are needed for the response. copies: responses
    to one prompt, which is computed once (kernels/prefixes.py).
    """
    phase: str  # rollout, scoring or update
    what: str
    model: Model
    rows: float
    prompt: float
    response: float
    steps: int = 0  # of the optimiser, which divide the rows; 0: no gradient
    copies: float = 1
    longest: int = 0  # rollout only: tokens that are decoded one by one

    def flops(self, full=False, checkpoint=False):
        """FLOPs of all rows; `full`: as if each filled the context, as the paper seems to count."""
        c, prompt, response = self.model.config, self.prompt, self.response
        if full:
            scale = c.block_size / (prompt + response)
            prompt, response = prompt * scale, response * scale
        row, tokens = prompt + response, prompt + self.copies * response
        args = tokens, self.copies * row * (row + 1) / 2, self.copies * response
        marked = 0 if self.model.scalar else args[2]
        return self.rows * (train_flops(c, *args[:2], marked, checkpoint) if self.steps
                            else forward_flops(c, *args[:2], marked))

    @property
    def distinct(self):
        """The share of its tokens that a PrefixTree computes."""
        return ((self.prompt + self.copies * self.response) / self.copies
                / (self.prompt + self.response))

    def micro_batch(self, rows, tokens, length):
        """Rows of this length in a forward pass: --micro_batch, --micro_batch_tokens."""
        return max(1, int(tokens / self.copies / length)) if tokens else rows

    def activations(self, n, micro_batch, tokens, checkpoint, dropout, m):
        """(bytes, passes) of a step on the busiest GPU, of rows as long as the context."""
        c, rows = self.model.config, math.ceil(self.rows / self.steps / n)
        at_once = min(rows, self.micro_batch(micro_batch, tokens, c.block_size))
        places = at_once * self.copies * c.block_size
        nodes = places * self.distinct
        marked = 0 if self.model.scalar else places
        return (activation_bytes(c, nodes, marked, checkpoint, m.low, dropout,
                                 places * (self.copies > 1), m.chunk), math.ceil(rows / at_once))

    def seconds(self, n, sharded, micro_batch, m, checkpoint=False, tokens=0):
        """(computing, communicating) on n GPUs. The one with the most rows decides; nothing
        overlaps. Micro-batches without gradients are twice as large."""
        steps, P = max(1, self.steps), self.model.size
        rows = math.ceil(self.rows / steps / n)  # of the busiest GPU, each step
        at_once = self.micro_batch(micro_batch, tokens, self.prompt + self.response)
        passes = steps * math.ceil(rows / at_once / (1 if self.steps else 2))
        compute = (self.flops(checkpoint=checkpoint) / self.rows * steps * rows
                   / (m.flops * m.utilisation))
        if self.longest:  # each decoding step reads the weights; each token, its row's cache
            read = self.longest * m.low * P + rows * self.response * cache_bytes(
                self.model.config, self.prompt + self.response / 2, m.cache)
            compute = max(compute, read / m.bandwidth)
            passes = self.longest
        if not self.steps and self.model.lent(m):
            passes = 1
        link = (m.inside if n <= 8 else m.outside) * n / max(1, n - 1)  # of a ring
        if n == 1:
            sent = 0
        elif sharded:  # gather the weights, again for backward; reduce the gradients
            sent = passes * (2 * self.model.kept(m) + m.master * P if self.steps else
                             self.model.kept(m))
        else:
            sent = self.steps * 2 * m.master * P  # all-reduce, once a step
        return compute, sent / link


def architecture(preset, init, s):
    """The GPTConfig that a run would have: of the preset's size, from scratch, or of an existing
    checkpoint or Hugging Face folder; otherwise the toy's."""
    name, path = (preset or "").removesuffix("-init"), Path(init)
    init = init.removeprefix("openai-community/")
    if name in SIZES or init in SIZES:
        return SIZES.get(name) or SIZES[init]
    if init == "scratch":
        vocab = 50257 if s.tokenizer == "gpt2" else TOY.vocab_size
        return GPTConfig(vocab, s.block_size, s.n_layer, s.n_head, s.n_embd)
    if (path / "checkpoint.json").exists():
        facts = records.read_json(path / "checkpoint.json", "python sft.py", config=dict)
        return config_of(facts, path, GPTConfig)
    path = (path.parent if path.is_file() else path) / "config.json"  # a file of weights, a folder
    return GPTConfig(**pretrained.read_config(path)) if path.exists() else TOY


def judge(preset, init, s):
    """The reward model's GPTConfig: GPT-3 of 6B for policies of every size (App. C.2)."""
    paper = (preset or "").split("-")[0] in ("1.3b", "6b", "175b")
    return SIZES["6b"] if paper else architecture(preset, init, s)


def data_of(config):
    return PAPER if config.vocab_size == 50257 else TOWN


def sft_work(preset, s):
    """(models, work of a step, steps) of sft.py: epochs over the demonstrations, with the mix of
    text, or text alone."""
    config = architecture(preset, s.init, s)
    data = data_of(config)
    T = data.full * config.block_size  # tokens of a text row
    prompt, response = data.demo
    mix = s.pretrain_mix / max(1e-9, 1 - s.pretrain_mix)  # tokens of text to one of a response
    demos, texts = data.demos, data.demos * response * mix / T
    if s.pretrain_mix == 1:
        demos, texts = 0, data.text / T
    rows, share = demos + texts, texts / (demos + texts)  # a mean row is that much of a text row
    policy = Model("policy", config, trained=True, muon=s.optimizer == "muon")
    work = [Work("update", "policy", policy, s.batch, (1 - share) * prompt,
                 (1 - share) * response + share * T, 1)]
    return [policy], work, s.epochs * math.ceil(rows / s.batch)


def reward_work(preset, s):
    """(models, work of a step, steps) of reward.py: each prompt once, with its K completions."""
    config = judge(preset, s.init, s)
    data = data_of(config)
    model = Model("reward model", config, True, trained=True)
    work = [Work("update", "reward model", model, s.batch, data.ranked, data.answer, 1, K)]
    return [model], work, s.epochs * math.ceil(data.prompts / s.batch)


def ppo_work(preset, s):
    """(models, work of an iteration, iterations) of ppo.py, whose docstring numbers the parts."""
    config, judged = architecture(preset, s.init, s), judge(preset, s.reward, s)
    data = data_of(config)
    row = s.batch, data.asked, min(data.answer, s.max_new_tokens)
    steps = s.batch // s.minibatch * s.inner_epochs
    again = s.batch * s.inner_epochs, *row[1:], steps
    policy, reference = Model("policy", config, False, True, True), Model("reference", config)
    value, judge_ = Model("value", judged, True, True), Model("reward model", judged, True)
    work = [Work("rollout", "policy", policy, *row, longest=s.max_new_tokens),
            Work("scoring", "reference", reference, *row),
            Work("scoring", "reward model", judge_, *row), Work("scoring", "value", value, *row),
            Work("update", "policy", policy, *again), Work("update", "value", value, *again)]
    if s.ptx:
        work.append(Work("update", "policy, text", policy, steps * s.ptx_rows, 0,
                         data.full * config.block_size, steps))
    return [policy, reference, value, judge_], work, s.iterations


WORK = {"sft": sft_work, "reward": reward_work, "ppo": ppo_work}  # by the script's name


def show(script, preset, s, machine):
    """Print the plan of a script."""
    report(script, preset, s, machine, *WORK[script](preset, s))


# -------------------------------------------------------------------------------- memory, report

def memory(models, work, n, sharded, micro_batch, m, checkpoint=False, dropout=False, tokens=0,
           offload=False):
    """Bytes a GPU at the peak, by purpose; rows as long as the context.

    An update and a rollout do not happen at the same time, nor do the updates of two models. Where
    a step is one pass, activations are freed as gradients appear; the second of several passes
    needs both. Sharded, each of n GPUs has its part of every weight. An update has two blocks and
    the embedding whole, and their gradients before they are reduced; a rollout, or scoring, has all
    of a model (Model.lent). With `offload` a frozen model is there, whole, while it scores. Scores
    and validation need less than updates do: no gradients (runtime/world.py: scoring_groups).
    tokens: --micro_batch_tokens.
    """
    trained, share = [x for x in models if x.trained], n if sharded else 1
    largest = max(trained, key=lambda x: x.size)
    c, whole = largest.config, max(x.size for x in trained)
    block, embedding = 12 * c.n_embd**2, c.n_embd * c.vocab_size
    own = sum(x.size for x in trained)
    frozen = [x.kept(m) for x in models if not x.trained]
    buckets = m.master * own * (n > 1 and not sharded)  # of DDP, for as long as it lasts
    bytes_ = {"weights": (m.master * own + sum(frozen) * (not offload)) / share,
              "gradients": m.master * whole / share + buckets,
              "Adam": 4 * sum(x.moments for x in trained) / share,
              "EMA": m.master * sum(x.size for x in models if x.ema) / share}
    gathered = m.master * (3 * block + 2 * embedding) * sharded
    phases = [buckets, bytes_["gradients"]]
    bytes_["update"] = gathered
    for model in trained:
        steps = [w.activations(n, micro_batch, tokens, checkpoint, dropout, m)
                 for w in work if w.steps and w.model is model]
        if steps:
            activations = gathered + max(x for x, _ in steps)
            bytes_["update"] = max(bytes_["update"], activations)
            again = sum(passes for _, passes in steps) > 1
            phases.append(activations + buckets + again * m.master * model.size / share)
    for w in work:
        if not w.steps:
            lent = (w.model.kept(m) if w.model.lent(m) else gathered) * sharded
            phases.append(lent + buckets)
        if w.longest:
            packed = m.low * w.model.size * (w.model.lent(m) or not sharded)  # sampler.py
            rows = math.ceil(w.rows / n)
            bytes_["rollout"] = lent + packed + cache_bytes(
                w.model.config, rows * w.model.config.block_size, m.cache)
            bytes_["rollout"] += 16 * rows * w.model.config.vocab_size  # logits, their exp and sums
            phases.append(bytes_["rollout"] + buckets)
    phases.append(max(frozen, default=0) * offload + buckets)
    bytes_["peak"] = bytes_["weights"] + bytes_["Adam"] + bytes_["EMA"] + max(phases)
    return bytes_


def planned(script, s, n=1, gpu=False):
    """Bytes that `memory` estimates for one of n processes; s: the script's settings."""
    models, parts, _ = WORK[script](None, s)
    m = in_type(MACHINES["a100" if gpu else "cpu"], s.dtype, models[0].config.n_embd)
    return memory(models, parts, n, s.shard, s.micro_batch, m, s.activation_checkpointing,
                  getattr(s, "dropout", 0) > 0, s.micro_batch_tokens,
                  getattr(s, "offload", False))["peak"]


def smaller(script, s):
    """The settings to reduce that change a run's results."""
    if script == "ppo":
        return "batch", "max_new_tokens"
    return ("block_size", "n_embd") if s.init == "scratch" else ("init", "data")


def advice(script, s, n, gpu):
    """(bytes at the peak, [(setting, value, bytes with it)]): three changes that lower them.

    First come those that change no result, the most effective first; then those of `smaller`, at
    half their values. A text setting has no half and no bytes. A number has no bytes if the plan
    does not show that it lowers them.
    """
    peak = lambda **changes: planned(script, replace(s, **changes), n, gpu)
    now, micro = peak(), "micro_batch_tokens" if s.micro_batch_tokens else "micro_batch"
    rows = getattr(s, micro)
    while rows > 1 and peak(**{micro: rows}) >= now:
        rows //= 2
    changes = {micro: rows, "activation_checkpointing": True,
               "shard": n > 1 and not any(x.muon for x in WORK[script](None, s)[0]),
               **({"offload": gpu} if hasattr(s, "offload") else {})}
    found = [(k, v, peak(**{k: v})) for k, v in changes.items()]
    found = sorted([x for x in found if x[2] < now], key=lambda x: x[2])
    for name in smaller(script, s):
        half = None if isinstance(getattr(s, name), str) else getattr(s, name) // 2
        less = peak(**{name: half}) if half else now
        found.append((name, half, less if less < now else None))
    return now, found[:3]


def timing(work, n, sharded, micro_batch, m, checkpoint=False, tokens=0):
    """{phase: seconds} of a step or iteration, with communication as a separate phase, and the
    bottleneck: what takes longest, and why."""
    phases, worst = dict.fromkeys(["rollout", "scoring", "update", "network"], 0.0), (0, "")
    for w in work:
        compute, sent = w.seconds(n, sharded, micro_batch, m, checkpoint and w.steps > 0, tokens)
        phases[w.phase] += compute
        phases["network"] += sent
        rows = w.rows / max(1, w.steps)
        why = ("memory bandwidth: weights and caches are read for each token" if w.longest else
               f"{rows:g} rows a step for {n} GPUs" if rows < n else "arithmetic")
        worst = max(worst, (compute, f"{w.what} {w.phase}, {why}"),
                    (sent, f"{w.what} {w.phase}, network: " + (
                        "weights are gathered for each token" if w.longest else
                        "weights and gradients of each micro-batch" if sharded else "gradients")
                     + f"; {rows:g} rows a step" * (rows < n)))
    return phases, worst[1]


def table(head, rows):
    """Aligned columns: the first, and those without a head, to the left, others to the right."""
    rows = [[str(x) for x in row] for row in [head, *rows]]
    wide = [max(map(len, column)) for column in zip(*rows)]
    left = [i == 0 or not head[i] for i in range(len(head))]
    return ["  ".join(x.ljust(w) if l else x.rjust(w) for x, w, l in
                      zip(row, wide, left)).rstrip() for row in rows]


def number(x):
    """Three digits."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def report(script, preset, s, machine, models, work, iterations):
    """Print the plan."""
    if machine not in (*MACHINES, "true"):
        stop(f"--plan={machine}: there are {', '.join(MACHINES)}")
    m = in_type(MACHINES.get(machine, MACHINES["a100"]), s.dtype, models[0].config.n_embd)
    dropout, micro, tokens = getattr(s, "dropout", 0) > 0, s.micro_batch, s.micro_batch_tokens
    offload = getattr(s, "offload", False)
    lines = [f"{script}.py{f' --preset={preset}' * bool(preset)}: {iterations:,} "
             f"{'iterations' if script == 'ppo' else 'steps'} on {m.name}, at {m.utilisation:.0%} "
             f"of {m.flops / 1e12:g} TFLOP/s, {m.bandwidth / 1e12:g} TB/s", ""]
    lines += table(["model", "layers", "heads", "width", "context", "parameters", ""],
                   [[x.name, x.config.n_layer, x.config.n_head, x.config.n_embd,
                     x.config.block_size, f"{x.size:,}", "trained" if x.trained else "frozen"]
                    for x in models])
    total = sum(w.flops() for w in work)
    lines += ["", *table(["FLOPs of each", "rows", "tokens a row", "TFLOP", "share"],
                         [[f"{w.phase}: {w.what}", f"{w.rows:,}",
                           f"{w.prompt:.0f} + {w.copies * w.response:.0f}",
                           number(w.flops() / 1e12), f"{w.flops() / total:.1%}"] for w in work])]
    full = sum(w.flops(full=True) for w in work) * iterations / DAY
    paper = PUBLISHED.get((script, preset))
    lines += ["", f"The run: {number(total * iterations / DAY)} petaflop/s-days; {number(full)} if "
              "every row filled the context" + f"; the paper says {paper}" * bool(paper)]
    rows, times = [], []
    for n, sharded in ((1, False), (8, False), (8, True), (64, False), (64, True), (512, False),
                       (512, True)):
        plain, saved = (memory(models, work, n, sharded, micro, m, c, dropout, tokens, offload)
                        for c in (s.activation_checkpointing, True))
        fits = "yes" if plain["peak"] < m.memory else ("checkpointed" if saved["peak"] < m.memory
                                                       else "no")
        name = f"{n} {'sharded' if sharded else 'DDP'}" if n > 1 else "1"
        parts = ("weights", "gradients", "Adam", "EMA", "rollout", "update")
        rows.append([name, *(number(plain.get(x, 0) / 1e9) for x in parts),
                     *(number(x / 1e9) for x in (saved["update"], plain["peak"], saved["peak"])),
                     fits])
        t, why = timing(work, n, sharded, micro, m,
                        s.activation_checkpointing or fits != "yes", tokens)
        hours = sum(t.values()) * iterations / 3600
        times.append([name, *(f"{x / sum(t.values()):.0%}" for x in t.values()),
                      number(sum(t.values())), number(hours), fits, why])
    size = f"{tokens} tokens" if tokens else micro
    lines += ["", f"GB a GPU, micro-batches of {size}, rows as long as the context", *table(
        ["GPUs", "weights", "gradients", "Adam", "EMA", "rollout", "update", "checkpointed", "peak",
         "checkpointed", f"fits {m.memory / 1e9:.0f} GB"], rows)]
    lines += ["", "Time of a step or iteration", *table(
        ["GPUs", "rollout", "scoring", "update", "network", "seconds", "hours a run", "fits",
         ""], times)]
    print("\n".join(lines))

"""GPT-2 on a page: one body, two heads, and a sampler.

    GPT          ids -> log-probabilities of its tokens          (policy, reference, base model)
    ScalarGPT    ids -> one score at each position               (reward model, value function)
    generate     prompts -> sampled responses with their log-probs

Sequences are always `prompt, response, EOS, pad`: padded on the right, with their lengths kept
beside them. Under causal attention no real token ever sees a pad, positions are 0..T-1 in every
row, and the batch that was sampled is the batch that is trained on, token for token.
"""
import startup  # noqa: F401  before torch: Ctrl-C is one line from here on

import contextlib
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from kernels import (LOG2E, Slots, append, attention, cache_type, can_capture, capture,
                     decode_attention, fill, gemm, linear, logits, lowered, packed, rounded,
                     token_logprobs, token_objective)


@dataclass
class GPTConfig:
    vocab_size: int = 50257
    block_size: int = 1024  # the context, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0  # on the residual branches and the embedding; attention has none


class Linear(nn.Linear):
    packed = None  # a copy of the weight that is quick on few rows, while sampling

    def forward(self, x, gelu=False):
        """x W^T + b, or gelu of it, which costs next to nothing if no gradient is asked for."""
        if torch.is_grad_enabled():
            y = linear(x, self.weight, self.bias)
            return F.gelu(y, approximate="tanh") if gelu else y
        weight = self.packed
        return gemm(lowered(x), self.weight if weight is None else weight, self.bias, gelu)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None, tree=None):
        """x: [B, T, C] -> [B, T, C]; with a tree, x: [N, C] -> [N, C], its nodes (see PrefixTree).

        A cache [2, B, H * Tmax * D] is filled from its start.
        """
        q, k, v = self.heads(x, tree)
        if cache is not None:
            fill(cache, k, v)
        (B, _, T, _), C = q.shape, x.size(-1)
        y = attention(q, k, v).transpose(1, 2).reshape(B, T, C)
        if tree is not None:
            y = F.embedding(tree.places, y.view(B * T, C))
        return self.c_proj(y)

    def heads(self, x, tree):
        """Queries, keys and values, [B, H, T, D] each."""
        qkv = self.c_attn(x)
        if tree is not None:
            qkv = F.embedding(tree.nodes, qkv)  # to rows: only attention needs them side by side
        # Split, not unbound: the gradients of the three are then joined by a single copy.
        return [x.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for x in qkv.chunk(3, dim=-1)]

    def step(self, x, cache, slots):
        """One token a row, x: [B, C], written to the last of the slots that its row will see."""
        B, C = x.shape
        qkv = self.c_attn(x).to(cache.dtype).view(B, 3, self.n_head, -1)  # three of [B, H, D]
        q, k, v = qkv.unbind(1)
        append(cache, k, v, slots)
        return self.c_proj(decode_attention(q, cache, slots).view(B, C))


class Dropout(nn.Module):
    """Zeroes a share p of x and scales up the rest, in training only.

    What is zeroed depends on the row's number, the site (which of a model's dropouts this is) and
    the place in the row, nothing else: a row is treated alike alone, in any batch, on any rank.
    """

    def __init__(self, p, site):
        super().__init__()
        self.p, self.site = p, site

    def forward(self, x, numbers):
        """x: [B, ...]; numbers: [B] int64. Returns x's shape."""
        if not self.training or self.p == 0:
            return x
        places = torch.arange(x[0].numel(), device=x.device)
        bits = lambda seed, n: ((uniform(seed, n, 0) - 0.5) * 2**32).int()
        noise = bits(-1, places) ^ bits(self.site, numbers)[:, None]  # [B, places]; and mixed, so
        for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):  # that no two rows are alike
            noise.bitwise_xor_(noise >> shift).mul_(factor)
        dropped = (noise < int((self.p - 0.5) * 2**32)).view_as(x)
        return x.masked_fill(dropped, 0.0) * (1 / (1 - self.p))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.c_proj(self.c_fc(x, gelu=True))


class Block(nn.Module):
    checkpointing = False  # whether backward computes the block again, from its input alone

    def __init__(self, config, number):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.n_embd), Attention(config)
        self.ln_2, self.mlp = nn.LayerNorm(config.n_embd), MLP(config)
        self.drop_1, self.drop_2 = (Dropout(config.dropout, 2 * number + k) for k in (1, 2))

    def forward(self, x, cache=None, tree=None, numbers=None):
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.branches, x, cache, tree, numbers, use_reentrant=False,
                              preserve_rng_state=False)  # dropout owes it nothing
        return self.branches(x, cache, tree, numbers)

    def branches(self, x, cache, tree, numbers):
        x = x + self.drop_1(self.attn(self.ln_1(x), cache, tree), numbers)
        return x + self.drop_2(self.mlp(self.ln_2(x)), numbers)

    def step(self, x, cache, slots):
        x = x + self.attn.step(self.ln_1(x), cache, slots)
        return x + self.mlp(self.ln_2(x))


class PrefixTree:
    r"""Rows of token ids as the nodes of a tree: rows that begin alike share that beginning.

        a b c d        a - b - c - d         8 places, 6 nodes: 6 tokens to compute,
        a b e f              \ e - f         and no pad among them

    Equal tokens after equal tokens have equal hidden states, so that each node is computed once;
    only attention lays the rows out again. K completions of one prompt cost one prompt. Idle nodes
    fill their number N up to a multiple of 16 (kernels.ROWS): no place has them, nor any gradient.
    """

    def __init__(self, rows, device="cpu"):
        T, seen, ids, positions, places = max(map(len, rows)), {}, [], [], []
        nodes, ends = torch.zeros(len(rows), T, dtype=torch.long), []
        for b, row in enumerate(rows):
            node, path = -1, []
            for t, token in enumerate(row):
                before, node = node, seen.setdefault((node, token), len(ids))
                if node == len(ids):
                    ids.append(token)
                    positions.append(t)
                    places.append(b * T + t)
                path.append(node)
            nodes[b, : len(path)] = torch.tensor(path)
            ends.append(node)
        for of_nodes in (ids, positions, places):  # and up to 15 more that no place is
            of_nodes += [0] * (rounded(len(ids)) - len(of_nodes))
        self.ids, self.positions = torch.tensor(ids).to(device), torch.tensor(positions).to(device)
        self.places = torch.tensor(places).to(device)  # [N]: a place b * T + t of each node
        self.nodes = nodes.to(device)  # [B, T]: the node at each place; pads hold any
        self.ends = torch.tensor(ends).to(device)  # [B]: the node of each row's last token


class Body(nn.Module):
    """Token ids [B, T] -> hidden states [B, T, C]. Parameter names are GPT-2's."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = Dropout(config.dropout, 0)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):  # so that the residual stream keeps its variance
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids, numbers=None):
        """ids: [B, T], or a PrefixTree of N nodes -> hidden states [B, T, C] or [N, C].

        numbers: [B] (or [N]), those that own the rows' dropout noise; None: drawn anew.
        """
        tree = ids if isinstance(ids, PrefixTree) else None
        T = (ids if tree is None else tree.nodes).size(1)
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens do not fit the context of {self.config.block_size}")
        if tree is None:
            x = self.embed(ids) + self.wpe.weight[:T]
        else:
            x = self.embed(tree.ids) + self.wpe(tree.positions)
        if numbers is None and self.training and self.drop.p:
            numbers = torch.randint(2**62, x.shape[:1], device=x.device)
        x = self.drop(x, numbers)
        for block in self.h:
            x = block(x, None, tree, numbers)
        return self.ln_f(x)

    def read(self, tree, caches):
        """Fill caches [L, 2, B, H * Tmax * D] with the rows of a PrefixTree. Of the last block,
        what comes after its keys and values is for the next token alone, and left out."""
        x = self.embed(tree.ids) + self.wpe(tree.positions)
        for block, cache in zip(self.h[:-1], caches):
            x = block(x, cache, tree)
        last = self.h[-1]
        _, k, v = last.attn.heads(last.ln_1(x), tree)
        fill(caches[-1], k, v)

    def embed(self, ids):
        """In the norms' type, which is that of the residual stream: a frozen model's matrices may
        be kept in a smaller one."""
        return self.wte(ids).to(self.ln_f.weight.dtype)

    def step(self, ids, caches, slots):
        """One token a row: ids [B], the last that its slots will hold -> hidden states [B, C]."""
        x = self.embed(ids) + self.wpe(slots.lengths - 1)
        for block, cache in zip(self.h, caches):
            x = block.step(x, cache, slots)
        return self.ln_f(x)


class GPT(nn.Module):
    """The language head. Its output embedding is the input embedding (tied), as in GPT-2."""
    config_class = GPTConfig
    packed = None  # the output embedding in the type of products, while sampling on a GPU

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = Body(config)

    def forward(self, ids, mask, temperature=1.0, entropy=False, objective=None, numbers=None):
        """Log-probabilities of the tokens that `mask` marks, each given the tokens before it.

        ids, mask: [B, T]; the first token has nothing before it and never counts. Returns
        (logprob, entropy), each [B, T], 0 where the mask is off; entropy is None unless asked for.
        Only marked tokens reach the output embedding: prompts and pads cost nothing there.

        objective(logprob, mask), [B, T] both, a sum over marked tokens of a function of each one's
        own log-prob: returns (loss, logprob, entropy) and makes the gradients of the loss on the
        way, with the logits computed once instead of twice (`kernels.token_objective`). It is
        called with a part of the marks at a time, and then only the loss has a gradient.

        numbers: [B], the rows' own, for dropout's noise (see `Dropout`); None: drawn anew.
        """
        mask = mask.bool() & (torch.arange(ids.size(1), device=ids.device) > 0)
        next_ids = F.pad(ids.masked_fill(~mask, -1)[:, 1:], (0, 1), value=-1)  # -1: does not count
        before = lowered(self.transformer(ids, numbers=numbers))
        head = before, self.transformer.wte.weight, next_ids
        grid = lambda x: F.pad(x[:, :-1], (1, 0))  # from the state before a token to the token
        if objective is None:
            logprob, h = token_logprobs(*head, temperature, entropy)
            return grid(logprob), (grid(h) if entropy else None)
        part = lambda logprob, marks: objective(grid(logprob), grid(marks))
        loss, logprob, h = token_objective(*head, part, temperature, entropy)
        return loss, grid(logprob), (grid(h) if entropy else None)

    def logits(self, hidden):
        weight = self.transformer.wte.weight if self.packed is None else self.packed
        return logits(lowered(hidden), weight)


class ScalarGPT(nn.Module):
    """The scalar head: a reward model or a value function on the same body."""
    config_class = GPTConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = Body(config)
        self.score = nn.Linear(config.n_embd, 1)
        nn.init.normal_(self.score.weight, std=(config.n_embd + 1) ** -0.5)  # Stiennon, App. B.1
        nn.init.zeros_(self.score.bias)

    def forward(self, ids):
        """ids [B, T] -> scores [B, T]; the score at t has seen the tokens up to and including t.
        Of a PrefixTree: the scores of its nodes, [N]."""
        return self.score(self.transformer(ids)).sum(-1)  # of one: FSDP warns of a view of it


def last_score(scores, lengths):
    """scores [B, T], lengths [B] -> [B]: the score at each row's last token, never at a pad."""
    return scores.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)


# ------------------------------------------------------------------------------------- sampling

@dataclass
class Samples:
    ids: torch.Tensor  # [B, T] prompt, response, EOS if the row ended, pad
    prompt_lengths: torch.Tensor  # [B]
    lengths: torch.Tensor  # [B] tokens of prompt and response, EOS counted
    logprobs: torch.Tensor  # [B, T] of the response tokens, as sampled; 0 elsewhere
    ended: torch.Tensor  # [B] bool: whether the response ended with EOS

    @property
    def mask(self):
        """[B, T] bool: the response tokens, EOS among them.

            ids    p p p r r E . .        p prompt, r response, E end of text, . pad
            mask   0 0 0 1 1 1 0 0
        """
        t = torch.arange(self.ids.size(1), device=self.ids.device)
        return (t >= self.prompt_lengths[:, None]) & (t < self.lengths[:, None])

    @property
    def widths(self):
        """[B]: how many columns to compute of a row, in steps of 4: few shapes (kernels.ROWS)."""
        return rounded(self.lengths, 4).clamp(max=self.ids.size(1))

    def responses(self):
        """The response tokens of each row as lists of ids, without EOS."""
        ends = self.lengths - self.ended.long()
        return [row[p:e] for row, p, e in
                zip(self.ids.tolist(), self.prompt_lengths.tolist(), ends.tolist())]


def uniform(seed, episodes, step):
    """Uniform numbers in [0, 1), one an episode, that depend on (seed, episode, step) only.

    A counter-based generator (the finaliser of splitmix64): an episode draws the same noise alone,
    in any batch and on any rank. episodes: [B] int64. Returns [B] float64.
    """
    def mix(x):  # int64 wraps around; a right shift must not drag the sign along
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
        return x ^ ((x >> 31) & ((1 << 33) - 1))

    x = mix(mix(mix(torch.full_like(episodes, seed) + 0x1E3779B97F4A7C15) ^ episodes) + step)
    return ((x >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def choose(logits, temperature, noise):
    """Logits [B, V] and noise [B] in [0, 1) -> tokens [B] and their log-probs [B].

    The token is where the cumulative distribution passes the noise; temperature 0 is greedy.
    """
    z, coolness = logits.float(), 1 / (temperature or 1.0)
    top = z.amax(-1, keepdim=True)
    # One pass of exponentials, of differences and to base 2, serves the choice and its log-prob.
    cumulative = (z - top).mul_(LOG2E * coolness).exp2_().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    if temperature == 0:
        token = z.argmax(-1, keepdim=True)
    else:
        token = torch.searchsorted(cumulative, noise[:, None] * total, right=True)
        token = token.clamp(max=logits.size(-1) - 1)
    logp = (z.gather(-1, token) - top) * coolness - total.log()
    return token.squeeze(-1), logp.float().squeeze(-1)


PROMPTS = 64  # at most, read together


def read_prompts(model, prompts, caches):
    """Fill the caches [L, 2, B, H * T * D] with prompts, lists of ids, shortest first. Those of
    similar lengths are read together, as pads cost attention; what is read together and begins
    alike, as the K copies of one prompt, is computed once."""
    i = 0
    while i < len(prompts):
        longest = 1.25 * len(prompts[i]) + 16
        stop = i + sum(len(p) <= longest for p in prompts[i : i + PROMPTS])
        if prompts[stop - 1]:
            model.transformer.read(PrefixTree(prompts[i:stop], caches.device), caches[:, :, i:stop])
        i = stop


@contextlib.contextmanager
def sampling(model):
    """Dropout off, no gradients, weights packed for the few rows of a step; and all as before."""
    layers, was_training = [x for x in model.modules() if isinstance(x, Linear)], model.training
    model.eval()
    for layer in layers:
        layer.packed = packed(layer.weight)
    if model.transformer.wte.weight.is_cuda:  # on a CPU logits are float32 products
        model.packed = packed(model.transformer.wte.weight)
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
        for layer in (*layers, model):
            layer.packed = None


LOOK = 8  # steps of a CUDA graph from one look at which rows have ended to the next: a look waits


class Replay:
    """A step of `generate` as a CUDA graph: its hundreds of kernels start with one launch.

    A graph computes on the same memory each time. So it has a token and a step number of its own,
    which it moves on by itself, and the rows that it was captured with. Called with the same `live`
    (the same object) it goes on; with another, it is captured anew and the old one is dropped.
    """

    def __init__(self, step):
        self.step, self.live = step, None

    def __call__(self, token, live, t):
        if live is self.live:
            self.again()
        else:
            self.again = None  # the old graph's memory first
            self.live, self.token, self.t = live, token.clone(), torch.full_like(token[:1], t)
            self.again = capture(self.advance)  # which takes this step, without a graph
        return self.token

    def advance(self):
        self.token.copy_(self.step(self.token, self.live, self.t))
        self.t.add_(1)


def assembled(prompts, order, said, worth, eos):
    """Samples of prompts and what was said after them: tokens [steps, B] and their log-probs.

    Row order[b] of the samples is the b-th of these. What follows an EOS does not count.
    """
    device, steps = said.device, torch.arange(len(said), device=said.device)
    n = ((said == eos).cumsum(0) == 0).sum(0)  # tokens before EOS
    ended, after = n < len(said), steps[:, None] > n
    starts = torch.tensor([len(p) for p in prompts], device=device)
    shape = len(prompts), max(map(len, prompts)) + len(said)
    ids, logprobs = torch.full(shape, eos, device=device), torch.zeros(shape, device=device)
    for row, prompt in zip(ids, prompts):
        row[: len(prompt)] = torch.tensor(prompt)
    ids.scatter_(1, starts[:, None] + steps, said.masked_fill(after, eos).T)
    logprobs.scatter_(1, starts[:, None] + steps, worth.masked_fill(after, 0.0).T)
    back, lengths = order.argsort(), starts + n + ended
    T = int(lengths.max())
    return Samples(ids[back, :T], starts[back], lengths[back], logprobs[back, :T], ended[back])


@torch.no_grad()
def generate(model, prompts, max_new_tokens, eos, temperature=1.0, seed=0, episodes=None,
             watch=None):
    """Sample one response to each prompt, until EOS or max_new_tokens.

    prompts: lists of token ids, of any lengths. episodes: [B] numbers that own the sampling noise
    (default 0..B-1). watch(rows, tokens) is called at each step with the rows that have not ended
    and their new tokens. Ended rows leave the batch sixteen at a time, and until then compute on,
    unheard. Nothing is padded on the left: each row decodes at its own position, against its own
    length. Returns Samples on the model's device. Dropout is off while sampling, and as it was
    afterwards.

    On a GPU a step is a CUDA graph (see `Replay`). Ended rows then compute on, unheard, until fewer
    than half are left and leave together: for other rows another graph has to be captured.
    """
    device, config = next(model.parameters()).device, model.config
    B, lengths = len(prompts), [len(p) for p in prompts]
    if min(lengths) < 1 or max(lengths) + max_new_tokens > config.block_size:
        raise ValueError(f"prompts of {min(lengths)} to {max(lengths)} tokens and "
                         f"{max_new_tokens} new ones do not fit a context of {config.block_size}")
    # From here on rows are in the order of their prompts' lengths, until the end.
    order = sorted(range(B), key=lengths.__getitem__)
    prompts, starts = [prompts[i] for i in order], [lengths[i] for i in order]
    order, starts = torch.tensor(order, device=device), torch.tensor(starts, device=device)
    episodes = torch.arange(B) if episodes is None else torch.as_tensor(episodes)
    steps = torch.arange(max_new_tokens, device=device)
    noise = uniform(seed, episodes.to(device)[order], steps[:, None])  # a row for each step
    said = torch.full((max_new_tokens, B), eos, device=device)
    worth = torch.zeros(max_new_tokens, B, device=device)

    T = max(lengths) + max_new_tokens
    shape = (B, config.n_head, T, config.n_embd // config.n_head)
    caches = torch.empty(config.n_layer, 2, B, math.prod(shape[1:]), device=device,
                         dtype=cache_type(model.transformer.wte.weight))

    def step(token, live, t):
        """The next tokens of the rows `live`, from their last ones, all [b]; t: an int or [1]."""
        slots, places = Slots(shape, starts[live] + t, live), t * B + live
        hidden = model.transformer.step(token, caches, slots)
        token, logp = choose(model.logits(hidden), temperature, noise.take(places))
        said.put_(places, token)
        worth.put_(places, logp)
        return token

    look, few, size = 1, 1.0, rounded  # ended rows leave as soon as there are ROWS of them
    if can_capture(caches, shape[-1]):
        step, look, few, size = Replay(step), LOOK, 0.5, int
    with sampling(model):
        read_prompts(model, [p[:-1] for p in prompts], caches)
        token = torch.tensor([p[-1] for p in prompts], device=device)  # the first step reads it
        live = torch.arange(B, device=device)  # the rows of the batch
        running = torch.ones_like(live, dtype=torch.bool)  # those of them that have not ended
        for t in range(max_new_tokens):
            token = step(token, live, t)
            if watch:
                watch(order[live[running]].tolist(), token[running].tolist())
            running &= token != eos
            if (t + 1) % look == 0 or watch:
                left = int(running.sum())
                if left == 0:
                    break
                if size(left) < few * len(live):  # and with them few that have ended
                    stay = (~running).argsort(stable=True)[: size(left)]
                    live, token, running = live[stay], token[stay], running[stay]
    return assembled(prompts, order, said, worth, eos)


if __name__ == "__main__":  # python model.py CHECKPOINT, or python model.py export CHECKPOINT DIR
    import chat
    chat.main()

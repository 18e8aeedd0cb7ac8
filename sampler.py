"""Fast sampling: the tokens of model.py's `sample`, in batches and with cached keys and values.

    generate         prompts -> Samples: responses with the log-probs they were sampled with

A row's result depends on that row alone: nothing is padded on the left, each row decodes at its own
position, and its noise depends on its episode number. A beginning that prompts share, such as K
copies of one prompt, is computed once (kernels/prefixes.py). On a GPU a step is a CUDA graph.
"""
import contextlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import kernels
from kernels.attention import LOG2E
from kernels.noise import uniform
from kernels.prefixes import PrefixTree
from kernels.losses import padded
from kernels.products import lowered, packed, packing, rounded
from model import Linear, causal, heads


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
        """[B]: columns to compute of each row, a multiple of 4: few shapes (products.ROWS)."""
        return rounded(self.lengths, 4).clamp(max=self.ids.size(1))

    def responses(self):
        """The response tokens of each row as lists of ids, without EOS."""
        ends = self.lengths - self.ended.long()
        return [row[p:e] for row, p, e in
                zip(self.ids.tolist(), self.prompt_lengths.tolist(), ends.tolist())]


COLDEST = 1e-30  # the inverse of a lower temperature is infinite in float32: greedy is warmer


def choose(logits, temperature, noise, top_p=1.0):
    """Logits [B, V] and noise [B] in [0, 1) -> tokens [B] and their log-probs [B].

    The first token whose cumulative probability exceeds the noise; temperature 0 is greedy. With
    top_p < 1 only tokens of the nucleus can be drawn, and log-probs are those within it.
    """
    z, coolness = logits.float(), 1 / max(temperature or 1.0, COLDEST)
    top = z.amax(-1, keepdim=True)
    # One pass of exp2 serves both the choice and its log-prob.
    p = (z - top).mul_(LOG2E * coolness).exp2_()
    cumulative = (nucleus(p, top_p) if top_p < 1 else p).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    if temperature == 0:
        token = z.argmax(-1, keepdim=True)
    else:
        token = torch.searchsorted(cumulative, noise[:, None] * total, right=True)
        token = token.clamp(max=logits.size(-1) - 1)
    logp = (z.gather(-1, token) - top) * coolness - total.log()
    return token.squeeze(-1), logp.float().squeeze(-1)


def nucleus(p, top_p):
    """Weights p [B, V] with 0 for all but the likeliest tokens that together have at least a share
    top_p (Holtzman et al. 2020). Tokens as likely as the last of them stay, too."""
    V, enough = p.size(-1), top_p * p.sum(-1, keepdim=True, dtype=torch.float64)
    n = V if p.is_cuda else min(V, 256)  # a CPU sorts a vocabulary slowly, and few tokens suffice
    while True:
        ranked = p.topk(n).values
        before = ranked.cumsum(-1, dtype=torch.float64) - ranked  # the weight of likelier tokens
        inside = before < enough
        if n == V or not inside[:, -1].any():
            break
        n = min(V, 8 * n)
    return p.masked_fill(p < ranked.masked_fill(~inside, math.inf).amin(-1, keepdim=True), 0.0)


def decoding(caches, slots):
    """The `attend` of Body.forward for one new token a row, [B, 3 C] -> [B, C]. It is called once a
    layer, in order: each call writes to, and attends over, the next layer's cache."""
    layers = iter(caches)

    def attend(qkv, n_head):
        cache = next(layers)
        q, k, v = qkv.to(cache.dtype).view(len(qkv), 3, n_head, -1).unbind(1)  # [B, H, D] each
        return kernels.decode_attention(q, cache, slots, (k, v)).flatten(1)

    return attend


def reading(caches):
    """The `attend` for prompts: causal attention that also writes keys and values to the caches,
    one layer a call."""
    layers = iter(caches)

    def attend(qkv, n_head):
        _, k, v = heads(qkv, n_head)
        kernels.write_prompt(next(layers), k, v)
        return causal(qkv, n_head)

    return attend


def read(model, tree, caches):
    """Write the rows of a PrefixTree to caches [L, 2, B, H * Tmax * D]. The last block computes
    keys and values only: the rest would only predict the next token."""
    body, attend = model.transformer, tree.over(reading(caches))
    x = body.embed(tree.ids, tree.positions)
    for block in body.h[:-1]:
        x = block(x, attend)
    last = body.h[-1]
    qkv = F.embedding(tree.nodes, last.attn.c_attn(last.ln_1(x)))
    kernels.write_prompt(caches[-1], *heads(qkv, last.attn.n_head)[1:])


PROMPTS = 64  # read together, at most


def read_prompts(model, prompts, caches):
    """Write prompts (lists of ids, shortest first) to caches [L, 2, B, H * T * D]. Those of similar
    lengths are read together, because attention also computes pads."""
    i = 0
    while i < len(prompts):
        longest = 1.25 * len(prompts[i]) + 16
        stop = i + sum(len(p) <= longest for p in prompts[i : i + PROMPTS])
        if prompts[stop - 1]:
            read(model, PrefixTree(prompts[i:stop], caches.device), caches[:, :, i:stop])
        i = stop


@contextlib.contextmanager
def sampling(model):
    """Dropout off, no gradients, weights packed for few rows; restores everything at the end."""
    copies = [(layer.weight, packed(layer.weight)) for layer in model.modules()
              if isinstance(layer, Linear)]
    if (embedding := model.transformer.wte.weight).is_cuda:  # a CPU's logits use it unpacked
        copies.append((embedding, padded(embedding.detach(), lowered(embedding[:1]).dtype)))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), packing(copies):
            yield
    finally:
        model.train(was_training)


class Batch:
    """B rows that are being sampled, sorted by the lengths of their prompts: the tokens so far, and
    what the next step needs."""

    def __init__(self, model, prompts, order, steps, eos, temperature, noise, top_p=1.0):
        config, device, B = model.config, noise.device, len(prompts)
        T = max(map(len, prompts)) + steps
        self.model, self.prompts, self.order = model, prompts, order
        self.temperature, self.top_p, self.noise = temperature, top_p, noise  # noise: [steps, B]
        self.starts = torch.tensor([len(p) for p in prompts], device=device)
        self.said = torch.full((steps, B), eos, device=device)
        self.logprobs = torch.zeros(steps, B, device=device)
        self.shape = (B, config.n_head, T, config.n_embd // config.n_head)
        self.caches = torch.empty(config.n_layer, 2, B, math.prod(self.shape[1:]), device=device,
                                  dtype=kernels.cache_type(model.transformer.wte.weight))

    def step(self, token, live, t):
        """The next tokens of the rows `live`, given their last ones, all [b]; t: an int or [1]."""
        slots = kernels.Slots(self.shape, self.starts[live] + t, live)
        body, places = self.model.transformer, t * len(self.prompts) + live
        hidden = body(token, slots.newest, decoding(self.caches, slots))
        logits = kernels.logits(hidden, body.wte.weight)
        token, logprob = choose(logits, self.temperature, self.noise.take(places), self.top_p)
        self.said.put_(places, token)
        self.logprobs.put_(places, logprob)
        return token


def assembled(prompts, order, said, logprobs, eos):
    """Samples from prompts, the tokens sampled after them and their log-probs, [steps, B].

    Prompt b becomes row order[b] of the samples. Tokens after an EOS are dropped.
    """
    device, steps = said.device, torch.arange(len(said), device=said.device)
    n = ((said == eos).cumsum(0) == 0).sum(0)  # tokens before EOS
    ended, beyond = n < len(said), steps[:, None] > n
    starts = torch.tensor([len(p) for p in prompts], device=device)
    shape = len(prompts), max(map(len, prompts)) + len(said)
    ids, grid = torch.full(shape, eos, device=device), torch.zeros(shape, device=device)
    for row, prompt in zip(ids, prompts):
        row[: len(prompt)] = torch.tensor(prompt)
    ids.scatter_(1, starts[:, None] + steps, said.masked_fill(beyond, eos).T)
    grid.scatter_(1, starts[:, None] + steps, logprobs.masked_fill(beyond, 0.0).T)
    back, lengths = order.argsort(), starts + n + ended
    T = int(lengths.max())
    return Samples(ids[back, :T], starts[back], lengths[back], grid[back, :T], ended[back])


LOOK = 8  # CUDA graph steps between checks for rows that have ended: a check waits for the GPU


class Replay:
    """A step of `Batch` as a CUDA graph: its hundreds of kernels start with one launch.

    A graph uses the same memory each time. So it keeps its own tokens and step number, which it
    advances itself, and the rows that it was captured with. A call with the same `live` (the same
    object) replays it; another `live` drops it and captures a new one.
    """

    def __init__(self, step):
        self.step, self.live = step, None

    def __call__(self, token, live, t):
        if live is self.live:
            self.again()
        else:
            self.again = None  # free the old graph's memory first
            self.live, self.token, self.t = live, token.clone(), torch.full_like(token[:1], t)
            self.again = kernels.capture(self.advance)  # also takes this step, without a graph
        return self.token

    def advance(self):
        self.token.copy_(self.step(self.token, self.live, self.t))
        self.t.add_(1)


def prepare(model, prompts, max_new_tokens, eos, temperature, seed, episodes, top_p=1.0):
    """A Batch for these prompts, its caches still empty."""
    device, lengths = model.transformer.wte.weight.device, [len(p) for p in prompts]
    if min(lengths) < 1 or max(lengths) + max_new_tokens > model.config.block_size:
        raise ValueError(f"prompts of {min(lengths)} to {max(lengths)} tokens and {max_new_tokens} "
                         f"new ones do not fit a context of {model.config.block_size}")
    by_length = sorted(range(len(prompts)), key=lengths.__getitem__)
    order = torch.tensor(by_length, device=device)
    episodes = torch.arange(len(prompts)) if episodes is None else torch.as_tensor(episodes)
    steps = torch.arange(max_new_tokens, device=device)
    noise = uniform(seed, episodes.to(device)[order], steps[:, None])  # a row for each step
    return Batch(model, [prompts[i] for i in by_length], order, max_new_tokens, eos, temperature,
                 noise, top_p)


@torch.no_grad()
def generate(model, prompts, max_new_tokens, eos, temperature=1.0, seed=0, episodes=None,
             watch=None, top_p=1.0, stops=None):
    """Sample one response to each prompt, until EOS or max_new_tokens.

    prompts: lists of token ids, of any lengths. episodes: [B] numbers that seed the sampling noise
    (default 0..B-1). watch(rows, tokens) is called at each step with the rows that have not ended
    and their new tokens. top_p: sample from the nucleus only (see `nucleus`). stops: a tensor of
    tokens after which a row may leave early, as nobody reads what follows. Rows that have ended
    leave the batch 16 at a time; until then they are still computed, and the results are ignored.
    Returns Samples on the model's device. Dropout is off while sampling and restored afterwards.

    On a GPU ended rows stay until fewer than half are still running, and then leave together: each
    change of the rows means that a new graph is captured.
    """
    batch = prepare(model, prompts, max_new_tokens, eos, temperature, seed, episodes, top_p)
    step, look, few, size = batch.step, 1, 1.0, rounded
    if kernels.can_capture(batch.caches, batch.shape[-1]):
        step, look, few, size = Replay(batch.step), LOOK, 0.5, int
    with sampling(model):
        read_prompts(model, [p[:-1] for p in batch.prompts], batch.caches)
        live = torch.arange(len(prompts), device=batch.noise.device)  # the rows of the batch
        token = torch.tensor([p[-1] for p in batch.prompts], device=live.device)  # the first input
        running = torch.ones_like(live, dtype=torch.bool)  # which of them have not ended
        for t in range(max_new_tokens):
            token = step(token, live, t)
            if watch:
                watch(batch.order[live[running]].tolist(), token[running].tolist())
            running &= token != eos
            if stops is not None:
                running &= ~torch.isin(token, stops)
            if (t + 1) % look == 0 or watch:
                left = int(running.sum())
                if left == 0:
                    break
                if size(left) < few * len(live):  # rounded up: a few ended rows stay
                    stay = (~running).argsort(stable=True)[: size(left)]
                    live, token, running = live[stay], token[stay], running[stay]
    return assembled(batch.prompts, batch.order, batch.said, batch.logprobs, eos)

"""GPT-2 on a page: one body, two heads, and the simplest correct sampler.

    GPT          ids -> log-probability of each token            (policy, reference, base model)
    ScalarGPT    ids -> one score at each position               (reward model, value function)
    sample       prompt -> response, one full forward pass a token; sampler.py does the same, fast

A sequence is always `prompt, response, EOS, pad`, padded on the right. Under causal attention no
real token ever sees a pad, so there is no padding mask: positions are 0..T-1 in every row, and the
batch that was sampled is the batch that is trained on, token for token.

Attention, linear layers and losses come from kernels. kernels/reference.py shows each of them in a
few lines of plain PyTorch; with KERNELS=reference in the environment exactly those lines run.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import kernels
from kernels.noise import dropout, uniform


@dataclass
class GPTConfig:
    vocab_size: int = 50257
    block_size: int = 1024  # the context, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0  # on the residual branches and the embedding; attention has none


class Linear(nn.Linear):
    """x W^T + b, or gelu of it."""

    def forward(self, x, gelu=False):
        return kernels.linear(x, self.weight, self.bias, gelu)


def heads(qkv, n_head):
    """[B, T, 3 C] -> queries, keys and values, [B, H, T, D] each."""
    # chunk, not unbind: backward then joins the three gradients in a single copy.
    return [x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in qkv.chunk(3, dim=-1)]


def causal(qkv, n_head):
    """Each position attends to itself and to all earlier ones. [B, T, 3 C] -> [B, T, C]."""
    y = kernels.causal_attention(*heads(qkv, n_head))       # softmax(q k^T / sqrt(D)) v
    return y.transpose(1, 2).flatten(2)                     # concatenates the heads


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # q, k and v of all heads at once
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x, attend=causal):
        """x: [B, T, C] -> [B, T, C]. attend: the attention; the sampler passes its own."""
        return self.c_proj(attend(self.c_attn(x), self.n_head))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.c_proj(self.c_fc(x, gelu=True))


class Dropout(nn.Module):
    """Zeroes a share p of x and scales up the rest, in training only. A row's number determines its
    noise (kernels/noise.py): it is the same in any batch and on any rank."""

    def __init__(self, p, site):
        super().__init__()
        self.p, self.site = p, site  # site: which of the model's dropouts this is

    def forward(self, x, owners):
        """x: [B, ...]; owners: [B] int64, the rows' numbers (the noise). Returns x's shape."""
        return dropout(x, self.p, self.site, owners) if self.training and self.p else x


def set_dropout(model, p):
    """Set the probability of every dropout in a model to p."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = p


class Block(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.n_embd), Attention(config)
        self.ln_2, self.mlp = nn.LayerNorm(config.n_embd), MLP(config)
        self.drop_1, self.drop_2 = (Dropout(config.dropout, 2 * number + k) for k in (1, 2))

    def forward(self, x, attend=causal, owners=None):
        x = x + self.drop_1(self.attn(self.ln_1(x), attend), owners)
        return x + self.drop_2(self.mlp(self.ln_2(x)), owners)


class Body(nn.Module):
    """Token ids -> hidden states. Parameter names are GPT-2's."""

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

    def forward(self, ids, positions=None, attend=causal, owners=None):
        """ids: [B, T] -> [B, T, C].

        positions: of each id in its row, same shape as ids; default 0..T-1. attend: see Attention.
        owners: [B], numbers that seed the rows' dropout noise; None: random ones.
        """
        x = self.embed(ids, positions)
        if owners is None and self.training and self.drop.p:
            owners = torch.randint(2**62, x.shape[:1], device=x.device)
        x = self.drop(x, owners)
        for block in self.h:
            x = block(x, attend, owners)
        return self.ln_f(x)

    def embed(self, ids, positions=None):
        """Token plus position embeddings, in the dtype of the norms and the residual stream."""
        tokens = self.wte(ids).to(self.ln_f.weight.dtype)
        if positions is not None:
            return tokens + self.wpe(positions)
        T = ids.size(-1)
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens do not fit the context of {self.config.block_size}")
        return tokens + self.wpe.weight[:T]


class GPT(nn.Module):
    """The language head. Its output embedding is the input embedding (tied), as in GPT-2."""
    config_class = GPTConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = Body(config)

    def forward(self, ids, mask, temperature=1.0, entropy=False, objective=None, owners=None):
        """log p(token | tokens before it) for the tokens that `mask` marks.

        ids, mask: [B, T]; the first token has nothing before it and never counts. Only marked
        tokens reach the output embedding: prompts and pads cost nothing there. Returns
        (logprob, entropy), [B, T] each, 0 where the mask is off; entropy is None unless asked for.

        objective(logprob, mask) -> loss, a sum over tokens of a function of that token's logprob.
        Then returns (loss, logprob, entropy); only loss has a gradient. The numbers are the same;
        the logits are computed once, not twice (kernels/losses.py: `token_objective`).
        """
        hidden = self.transformer(ids, owners=owners)
        part = objective and (lambda logprob, marks: objective(after(logprob), after(marks)))
        loss, logprob, h = kernels.token_losses(hidden, self.transformer.wte.weight,
                                                next_tokens(ids, mask), temperature, entropy, part)
        logprob, h = after(logprob), after(h) if entropy else None
        return (logprob, h) if objective is None else (loss, logprob, h)


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

    def forward(self, ids, positions=None, attend=causal):
        """ids [B, T] -> scores [B, T]; the score at t has seen the tokens up to and including t."""
        hidden = self.transformer(ids, positions, attend)
        return self.score(hidden).sum(-1)  # of one element: FSDP warns about a view


# The hidden state at t predicts the token at t + 1. Only these two functions make that shift.

def next_tokens(ids, mask):
    """[B, T]: at each position the next token, or -1 where the mask does not mark that token."""
    return F.pad(ids.masked_fill(~mask.bool(), -1)[:, 1:], (0, 1), value=-1)


def after(x):
    """[B, T]: moves each value from the position before a token to the token; the first gets 0."""
    return F.pad(x[:, :-1], (1, 0))


def last_score(scores, lengths):
    """scores [B, T], lengths [B] -> [B]: the score at each row's last token, never at a pad."""
    return scores.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)


@torch.no_grad()
def sample(model, prompt, max_new_tokens, eos, temperature=1.0, seed=0, episode=0):
    """One response to one prompt, as lists of ids. sampler.py draws the same tokens in batches and
    with a cache of keys and values; a test checks that the two agree."""
    body, ids, owner = model.eval().transformer, list(prompt), torch.tensor([episode])
    for t in range(max_new_tokens):
        hidden = body(torch.tensor([ids], device=body.wte.weight.device))[0, -1]
        p = torch.softmax((body.wte.weight @ hidden / temperature).double().cpu(), -1)
        passed = p.cumsum(-1) > uniform(seed, owner, t)     # inverse transform sampling
        ids.append(int(passed.nonzero()[0]))
        if ids[-1] == eos:
            break
    return ids[len(prompt):]

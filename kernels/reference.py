"""What the kernels compute, in plain PyTorch: read this file first.

KERNELS=reference in the environment runs these lines in every script. They hold all scores and all
logits in memory at once, and compute in float32. The fast kernels store neither, and can multiply
in bfloat16; otherwise they compute the same.
"""
import math

import torch
import torch.nn.functional as F


def linear(x, weight, bias=None, gelu=False):
    """x W^T + b. x: [..., I]; weight: [O, I]; bias: [O]. Returns [..., O]."""
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def causal_attention(q, k, v):
    """Query i sees keys 0..i. q, k, v: [B, H, T, D]. Returns [B, H, T, D]."""
    T, D = q.shape[-2:]
    scores = q @ k.mT / math.sqrt(D)                                      # [B, H, T, T]
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ v


def decode_attention(q, keys, values, lengths):
    """One new query a row, q [B, H, D], over the first lengths[b] of its cached keys and values,
    [B, H, T, D]; the cache may hold anything beyond them. Returns [B, H, D]."""
    unused = (torch.arange(keys.size(2), device=q.device) >= lengths[:, None])[:, None]
    scores = (keys @ q.unsqueeze(-1)).squeeze(-1) / math.sqrt(q.size(-1))     # [B, H, T]
    p = scores.masked_fill(unused, -math.inf).softmax(-1)
    values = values.masked_fill(unused.unsqueeze(-1), 0.0)                # 0 times NaN is NaN
    return (p.unsqueeze(2) @ values).squeeze(2)


def token_losses(hidden, weight, targets, temperature=1.0, entropy=False, objective=None):
    """log p(target) and the entropy of p at each state; 0 where the target is negative.

    hidden: [..., C]; weight: [V, C]; targets: [...]. objective(logprob, mask) -> loss, a sum over
    tokens. Returns (loss or None, logprob [...], entropy [...] or None).
    """
    mask = targets >= 0
    logp = (linear(hidden, weight) / temperature).log_softmax(-1)         # [..., V]: all of it
    logprob = logp.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    logprob = logprob.masked_fill(~mask, 0.0)
    h = -(logp.exp() * logp).sum(-1).masked_fill(~mask, 0.0) if entropy else None
    if objective is None:
        return None, logprob, h
    return objective(logprob, mask), logprob.detach(), h if h is None else h.detach()

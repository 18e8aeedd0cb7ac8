"""The functions that decide a transformer's speed. Nothing here knows a model or a dataset.

    linear(x, weight, bias)                     x W^T + b
    causal_attention(q, k, v)                   causal self-attention             [B, H, T, D]
    decode_attention(q, cache, slots)           one new token against a cache     [B, H, D]
    token_losses(hidden, weight, targets, ...)  log-probs, entropies and losses of tokens

kernels/reference.py shows each of them in a few plain lines. The other files compute the same in
less time and memory; kernels/choice.py decides which of them runs. Each fast kernel has a custom
operator with a fake version (shapes without numbers), so that torch.compile can trace it.
"""
from kernels import choice, decode, products, reference

if choice.REFERENCE:
    from kernels.reference import causal_attention, linear, token_losses
    decode_attention, logits = decode.reference_decode_attention, reference.linear
else:
    from kernels.attention import causal_attention
    from kernels.decode import decode_attention
    from kernels.losses import logits, token_losses
    from kernels.products import linear
from kernels.decode import Slots, cache_type, can_capture, capture, write_prompt, write_token

__all__ = ["Slots", "cache_type", "can_capture", "capture", "causal_attention", "choice",
           "decode_attention", "linear", "logits", "products", "token_losses", "write_prompt",
           "write_token"]

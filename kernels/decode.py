"""Attention of one new token a row over a cache. Plain version: reference.py, `decode_attention`.

    s_t = q.k_t / sqrt(D)        p = softmax of s over the used slots t        o = sum_t p_t v_t
"""
import functools
import math
import os

import torch
import torch.nn.functional as F

from kernels import reference
from kernels.choice import triton_kernels
from kernels.products import lowered


class Slots:
    """What a batch of B rows sees of a layer's cache: the first lengths[b] slots of row rows[b].

    shape: R, H, T, D of the cache; lengths: [B], at least 1; rows: [B], default 0..B-1. Rows can
    leave the batch without any cache being copied. One object serves all layers of a step.

    A cache is a tensor [2, R, H * T * D]: keys, then values [R, H, T, D]. On a GPU keys are laid
    out like values, on a CPU [R, H, D, T], so that a head's scores are a sum of D rows.
    """

    def __init__(self, shape, lengths, rows=None):
        self.lengths, self.newest, self.shape = lengths, lengths - 1, shape
        self.rows = torch.arange(len(lengths), device=lengths.device) if rows is None else rows

    @functools.cached_property
    def heads(self):
        """[B, H, 1]: the rows' heads among the R * H of the cache."""
        H = self.shape[1]
        return self.rows[:, None, None] * H + torch.arange(H, device=self.rows.device)[:, None]

    @functools.cached_property
    def columns(self):
        """[B * H * D]: the rows' numbers among the R * H * D of a key, on a CPU."""
        D = self.shape[-1]
        return (self.heads * D + torch.arange(D, device=self.rows.device)).flatten()

    @functools.cached_property
    def bags(self):
        """Used slots for `plain_decode_attention`: a mask [B * H, longest] of the unused; places of
        the used ones in it; their rows among the values [R * H * T]; where each head's begin. The
        first two are None if all lengths are the same."""
        longest, (_, H, T, _) = int(self.lengths.max()), self.shape
        t = torch.arange(longest, device=self.lengths.device)
        tokens = (self.heads * T + t).flatten()
        if bool((self.lengths == longest).all()):
            return None, None, tokens, torch.arange(0, len(tokens) + 1, longest, device=t.device)
        unused = (t >= self.lengths[:, None]).repeat_interleave(H, 0)
        places = (~unused).flatten().nonzero().squeeze(1)
        ends = F.pad(self.lengths.repeat_interleave(H).cumsum(0), (1, 0))
        return unused, places, tokens.index_select(0, places), ends


def cache_type(weight):
    """The dtype of a cache: on a GPU, where memory bandwidth limits the speed, that of products."""
    return lowered(weight[:1]).dtype if weight.is_cuda else weight.dtype


def _parts(cache, R, H, D):
    """The keys and the values of a cache, [R, H, Tmax, D] each."""
    keys, values = cache.view(2, R, H, -1, D)
    return keys.view(R, H, D, -1).mT if cache.device.type == "cpu" else keys, values


def write_prompt(cache, k, v):
    """Write keys and values [R, H, T, D] to the first slots of a cache [2, R, H * Tmax * D]."""
    R, H, T, D = k.shape
    keys, values = _parts(cache, R, H, D)
    keys[:, :, :T], values[:, :, :T] = k, v


def write_token(cache, k, v, slots):
    """Write a key and a value [B, H, D] to the last slot that each row sees."""
    R, H, _, D = slots.shape
    for part, new in zip(_parts(cache, R, H, D), (k, v)):
        part[slots.rows, :, slots.newest] = new  # quicker than a scatter_ on a CPU


def _weighted_sums(weights, rows, table, ends):
    """sum of weights[i] table[rows[i]] over the i from ends[j] to ends[j + 1], for each j."""
    return torch.embedding_bag(table, rows, ends, False, 0, False, weights, True)[0]


def plain_decode_attention(q, cache, slots):
    """`decode_attention` in PyTorch. Both products are weighted sums of rows of a table,

        scores [T] = sum over d of q[d] k^T[d]        o [D] = sum over the used t of p[t] v[t]

    and PyTorch's embedding bag computes such sums. It prefetches rows and takes sums of any length,
    so that from caches larger than the CPU's it is three times as fast as bmm. Values of unused
    slots are not read, and their scores are dropped: both may be NaN.
    """
    (B, H, D), (R, _, T, _) = q.shape, slots.shape
    keys = cache[0].view(R, H, -1) if q.device.type == "cpu" else cache[0].view(R, H, T, D).mT
    unused, places, tokens, ends = slots.bags
    scores = _weighted_sums((q * D**-0.5).flatten(), slots.columns, keys.reshape(-1, T),
                            torch.arange(0, q.numel() + 1, D, device=q.device))
    if unused is None:
        p = scores[:, : len(tokens) // len(scores)].softmax(-1).flatten()
    else:
        scores = scores[:, : unused.size(1)]
        p = torch.where(unused, -math.inf, scores).softmax(-1)  # in half the time of masked_fill_
        p = p.flatten().index_select(0, places)
    return _weighted_sums(p, tokens, cache[1].view(-1, D), ends).view(B, H, D)


@torch.library.custom_op("nanoinstructgpt::decode_attention", mutates_args=())
def _decode_attention(q: torch.Tensor, cache: torch.Tensor, lengths: torch.Tensor,
                      rows: torch.Tensor, shape: list[int]) -> torch.Tensor:
    return decode_attention(q, cache, Slots(shape, lengths, rows))


@_decode_attention.register_fake
def _(q, cache, lengths, rows, shape):
    return q.new_empty(q.shape)


def reference_decode_attention(q, cache, slots, new=None):
    """kernels/reference.py's version, on the cache layout of this file."""
    R, H, _, D = slots.shape
    if new is not None:
        write_token(cache, *new, slots)
    keys, values = (x[slots.rows] for x in _parts(cache, R, H, D))
    return reference.decode_attention(q, keys, values, slots.lengths)


def decode_attention(q, cache, slots, new=None):
    """Attention of one new token a row over the cached keys and values that `slots` names.

    q: [B, H, D]. new: the token's key and value, [B, H, D] each, first written to the row's last
    slot. Slots past a row's length may hold anything. Returns [B, H, D]; no gradient.
    """
    triton = None if torch.compiler.is_compiling() else triton_kernels(q, q.size(-1))
    if triton is not None:  # called directly: a custom operator would cost 40 us
        return triton.decode_attention(q, *cache.view(2, *slots.shape), slots.lengths, slots.rows,
                                       new)
    if new is not None:
        write_token(cache, *new, slots)
    if torch.compiler.is_compiling():
        return _decode_attention(q, cache, slots.lengths, slots.rows, list(slots.shape))
    return plain_decode_attention(q, cache, slots)


def can_capture(cache, head_size):
    """Whether a decoding step over this cache can be captured: with Triton on a GPU it never waits
    for the GPU, but `plain_decode_attention` does, for the lengths. DECODE=eager in the environment
    turns graphs off, for comparison."""
    return triton_kernels(cache, head_size) is not None and os.environ.get("DECODE") != "eager"


@functools.cache
def _side_stream(device):
    return torch.cuda.Stream(device)  # only one: cuBLAS keeps a workspace for each stream


def capture(step):
    """Run step() once, and capture it as a CUDA graph: returns a function that runs it again.

    step() works in place on tensors that stay where they are while the graph is used, and reads
    nothing back: any decision in Python is made once, here. Capturing itself computes nothing.
    """
    main, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    side = _side_stream(main.device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        step()  # what is compiled or loaded at a first call cannot be captured
    main.wait_stream(side)
    # thread_local: other threads, such as NCCL's, may use CUDA meanwhile.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        step()
    return graph.replay

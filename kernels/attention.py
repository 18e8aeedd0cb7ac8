"""Causal attention in tiles, without storing the T x T scores. The plain version is
`causal_attention` in kernels/reference.py.

With c = 1 / sqrt(D), a query i and the keys j <= i:

    s_ij = c q_i.k_j        p_ij = exp(s_ij) / sum_j exp(s_ij)        o_i = sum_j p_ij v_j

The T x T matrices s and p are never stored: a block of queries takes one tile of keys at a time and
keeps the running maximum m of its scores, the sum l of exp(s - m) and the sum a of exp(s - m) v.
When a tile raises m to m', the sums so far are multiplied by exp(m - m'):

    l <- l exp(m - m') + sum_j exp(s_j - m')        a <- a exp(m - m') + sum_j exp(s_j - m') v_j

and at the end o = a / l (the online softmax: Milakov and Gimelshein 2018; as attention: Dao et
al. 2022). For each query only o_i and L_i = m + log l are kept; backward recomputes
p_ij = exp(s_ij - L_i) from q and k. With do the gradient of o, the chain rule gives

    dv_j = sum_i p_ij do_i       dp_ij = do_i.v_j       ds_ij = p_ij (dp_ij - sum_j p_ij dp_ij)
    dq_i = c sum_j ds_ij k_j     dk_j = c sum_i ds_ij q_i       sum_j p_ij dp_ij = do_i.o_i

The code uses base 2: exp(s) = 2^(s log2(e)). The forward pass multiplies in float32, since
samples take each token alone and must have the same log-probs. Backward rounds p and ds to q's
type before it multiplies them, which for bfloat16 is faster.
"""
import math
import os

import torch
import torch.nn.functional as F

from kernels.choice import accumulator, floating, triton_kernels

LOG2E = math.log2(math.e)  # exp(x) = 2^(x LOG2E), and PyTorch's exp2 takes a quarter of exp's time
NEVER = -1e30  # the score of a masked key; finite, because inf - inf is NaN

QUERIES = 64  # a block; more waste work on masked keys, fewer make small matrix products
KEYS = 1024  # a tile, a multiple of QUERIES
SCORES = 2**18  # held at a time: 1 MiB in float32 stays in a core's cache


def _pieces(B, H, T):
    """Indices that cut [B, H, T, D] into pieces whose tiles of scores stay in the cache."""
    n = max(1, SCORES // (min(T, QUERIES) * min(T, KEYS)))
    rows, heads = max(1, n // H), min(n, H)
    return [(slice(b, b + rows), slice(h, h + heads))
            for b in range(0, B, rows) for h in range(0, H, heads)]


def _contiguous(x, dtype):
    """A piece [b, h, T, D] as a contiguous [b * h, T, D]: products are faster."""
    x = x.to(dtype, memory_format=torch.contiguous_format)  # one copy does both if the type changes
    return x.contiguous().view(-1, *x.shape[2:])


def _tiles(T):
    """(first query, last + 1, first key, last + 1) of the tiles on and below the diagonal."""
    for i in range(0, T, QUERIES):
        end = min(i + QUERIES, T)
        for j in range(0, end, KEYS):
            yield i, end, j, min(j + KEYS, end)


def _future(x):
    """The causal mask of a block of queries and its own keys, to be added: [QUERIES, QUERIES]."""
    return x.new_full((QUERIES, QUERIES), NEVER, dtype=accumulator(x)).triu(1)


def _scores(q, k, i, end, j, stop, future):
    """A tile of scores [n, queries, keys]; keys in a query's future get NEVER."""
    s = torch.bmm(q[:, i:end], k[:, j:stop].mT)
    if stop > i:  # the diagonal runs through the tile's last columns
        s[:, :, i - j :].add_(future[: end - i, : end - i])  # a tenth of masked_fill_'s time
    return s


def _sums(to, dtype):
    """Memory for the sums of a piece [b, h, T, D] of an output, as [b * h, T, D]: the output itself
    if it is contiguous there, else new memory."""
    if to.is_contiguous() and to.dtype == dtype:
        return to.view(-1, *to.shape[2:])
    return to.new_empty(to.size(0) * to.size(1), *to.shape[2:], dtype=dtype)


def _finish(to, sums):
    """Copy sums to the output, unless they are in it already."""
    if to.data_ptr() != sums.data_ptr():
        to.copy_(sums.view_as(to))


def tiled_attention(q, k, v):
    """The forward pass above. q, k, v: [B, H, T, D] -> o [B, H, T, D], base-2 L [B, H, T]."""
    B, H, T, D = q.shape
    dtype, future = accumulator(q), _future(q)
    out = torch.empty_like(q)  # laid out like q: if packed by token, joining heads costs no copy
    lse = q.new_empty(B, H, T, dtype=dtype)
    for at in _pieces(B, H, T):
        qs, ks, vs = (_contiguous(x[at], dtype) for x in (q, k, v))
        qs = qs * (D**-0.5 * LOG2E)
        o, L = _sums(out[at], dtype), qs.new_empty(*qs.shape[:2], 1)
        for i, end, j, stop in _tiles(T):
            s = _scores(qs, ks, i, end, j, stop, future)
            top = s.amax(-1, keepdim=True)
            if j > 0:
                top = torch.maximum(m, top)
            p = s.sub_(top).exp2_()
            if j == 0:
                l, a = p.sum(-1, keepdim=True), torch.bmm(p, vs[:, j:stop])
            else:
                rescale = (m - top).exp2_()
                l = l * rescale + p.sum(-1, keepdim=True)
                a = (a * rescale).baddbmm_(p, vs[:, j:stop])
            m = top
            if stop == end:
                o[:, i:end], L[:, i:end] = a.div_(l), m + l.log2()
        _finish(out[at], o)
        lse[at] = L.view_as(lse[at])
    return out, lse


def _put(sums, first, a, b):
    """Add a @ b to a part of some sums, or store it if it is the first. PyTorch's bmm writes only
    contiguous memory as one batch; elsewhere it multiplies matrix by matrix, and two threads are
    no faster than one."""
    if first and sums.is_contiguous() and sums.dtype == a.dtype:
        torch.bmm(a, b, out=sums)
    elif first:
        sums.copy_(torch.bmm(a, b))
    else:
        sums.add_(torch.bmm(a, b))


def tiled_attention_backward(grad, q, k, v, out, lse):
    """The gradients above: dq, dk, dv, each [B, H, T, D] like q, from the gradient of o."""
    B, H, T, D = q.shape
    dtype, future = accumulator(q), _future(q)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    for at in _pieces(B, H, T):
        low = [_contiguous(x[at], q.dtype) for x in (q, k, v, grad)]
        qs, ks, vs, do = (x.to(dtype) for x in low)
        qs = qs * (D**-0.5 * LOG2E)
        L = lse[at].reshape(-1, T, 1)
        expected = (do.view_as(out[at]) * out[at]).sum(-1).view(-1, T, 1)  # sum_j p_ij dp_ij
        aq, ak, av = (_sums(x[at], dtype) for x in (dq, dk, dv))
        for i, end, j, stop in reversed(list(_tiles(T))):  # first those that see all keys
            p = _scores(qs, ks, i, end, j, stop, future).sub_(L[:, i:end]).exp2_()
            _put(av[:, j:stop], end == T, p.to(q.dtype).mT, low[3][:, i:end])
            dp = torch.bmm(do[:, i:end], vs[:, j:stop].mT)
            ds = dp.sub_(expected[:, i:end]).mul_(p).to(q.dtype)
            _put(aq[:, i:end], stop == end, ds, low[1][:, j:stop])
            _put(ak[:, j:stop], end == T, ds.mT, low[0][:, i:end])
        aq.mul_(D**-0.5), ak.mul_(D**-0.5)
        for to, sums in ((dq, aq), (dk, ak), (dv, av)):
            _finish(to[at], sums)
    return dq, dk, dv


def _forward(q, k, v):
    triton = triton_kernels(q, q.size(-1))
    return triton.attention(q, k, v) if triton else tiled_attention(q, k, v)


def _backward(grad, q, k, v, out, lse):
    triton = triton_kernels(q, q.size(-1))
    backward = triton.attention_backward if triton else tiled_attention_backward
    return backward(grad, q, k, v, out, lse)


@torch.library.custom_op("nanoinstructgpt::attention", mutates_args=())
def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[
        torch.Tensor, torch.Tensor]:
    return _forward(q, k, v)


@torch.library.custom_op("nanoinstructgpt::attention_backward", mutates_args=())
def _attention_backward(grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                        out: torch.Tensor, lse: torch.Tensor) -> tuple[
                            torch.Tensor, torch.Tensor, torch.Tensor]:
    return _backward(grad, q, k, v, out, lse)


@_attention.register_fake
def _(q, k, v):
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=accumulator(q))


@_attention_backward.register_fake
def _(grad, q, k, v, out, lse):
    return tuple(torch.empty_like(x) for x in (q, k, v))


_attention.register_autograd(
    lambda ctx, grad, _: _attention_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, *output))


class _Attention(torch.autograd.Function):
    """The same without a custom operator, which costs 0.2 to 0.6 ms of Python a layer."""

    @staticmethod
    def forward(ctx, q, k, v):
        out, lse = _forward(q, k, v)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        return _backward(grad, *ctx.saved_tensors)


def causal_attention(q, k, v):
    """Attention, softmax(q k^T / sqrt(D)) v, over each query's own and earlier positions.

    q, k, v: [B, H, T, D], any D (on a GPU, above 128 without the Triton kernels). Returns
    [B, H, T, D]. Sequences are padded on the right, so that no real token ever sees a pad and no
    padding mask is needed. To compare, ATTENTION=sdpa in the environment takes PyTorch's own
    scaled_dot_product_attention.
    """
    q, k, v = map(floating, (q, k, v))
    if os.environ.get("ATTENTION") == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _attention(q, k, v)[0] if torch.compiler.is_compiling() else _Attention.apply(q, k, v)

"""The functions that a transformer's speed hangs on: products, attention and losses of tokens.

    linear(x, weight, bias)                     x W^T + b
    attention(q, k, v)                          causal self-attention             [B, H, T, D]
    decode_attention(q, cache, slots)           one new token against a cache     [B, H, D]
    token_logprobs(hidden, weight, targets)     log-probs (and entropy), any gradient   [...]
    token_objective(hidden, weight, targets, objective)    a loss and its gradients at once
    capture(step)                               many small kernels as one CUDA graph

Nothing here knows a model or a dataset: tensors in, tensors out. What is written out here in
PyTorch runs everywhere; on a CUDA GPU the same algorithms run as the Triton kernels of
kernels_triton.py. Each has a custom operator with a fake version (shapes without numbers), so that
torch.compile works around it.
"""
import functools
import importlib.util
import math
import os

import torch
import torch.nn.functional as F

LOG2E = math.log2(math.e)  # exp(x) = 2^(x LOG2E), and PyTorch's exp2 takes a quarter of exp's time
NEVER = -1e30  # a score that is never looked at; finite, because inf - inf is NaN


@functools.cache
def _has_triton():
    return importlib.util.find_spec("triton") is not None


def _triton(x, head_size=0):
    """The module of Triton kernels where it can take x (and heads of that size), else None."""
    if not (x.is_cuda and x.dtype != torch.float64 and head_size <= 128 and _has_triton()):
        return None  # larger heads: a block of queries and its sums would not fit the registers
    import kernels_triton  # only here: it imports triton, which a CPU does not need
    return kernels_triton


def _accumulator(x):
    """The type to add up in: float32 for bfloat16 and float16, else x's own."""
    return torch.promote_types(x.dtype, torch.float32)


# -------------------------------------------------------------------------------------- products

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FAST = (torch.float32,) + (torch.bfloat16,) * (
    ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported())  # types of its products

# What float32 matrices are rounded to before they are multiplied: bfloat16 with --dtype=bf16
# (runtime.py: precision), which has float32's range and 8 of its 24 bits. Sums are in float32 and
# rounded once, a layer's gradients for one forward pass too. All else stays float32: weights as the
# optimiser sees them, their gradients' sums over passes, the residual stream, norms, softmax,
# logits and log-probs.
PRODUCTS = torch.float32


# oneDNN writes a program for each shape of a product that it has not met lately: 0.3 to 1 ms, as
# much as such a product takes on a small model. Who is free to choose a number of rows takes a
# multiple of this, so that there are few shapes.
ROWS = 16


def rounded(rows, to=ROWS):
    """The least multiple of `to` that is not less."""
    return -(-rows // to) * to


def _filled(x):
    """x [n, ...] and rows of zeros, up to a multiple of ROWS."""
    more = rounded(len(x)) - len(x)
    return torch.cat([x, x.new_zeros(more, *x.shape[1:])]) if more else x


def lowered(x):
    """x in the type of products, if it is float32; other types stay what they are."""
    return x.to(PRODUCTS) if x.dtype == torch.float32 else x


def gemm(x, weight, bias=None, gelu=False):
    """x W^T + b, or gelu of it, without a gradient, in x's type. x: [..., I]; weight: [O, I]; bias:
    [O]. Any strides.

    On a CPU through oneDNN, which uses the widest vector units of any maker's chip; the default
    library keeps to half their width on some (2.3 times slower on a Zen 5). Both are exact float32.
    It also applies gelu while the sums are still in registers, which spares a second pass; not to
    bfloat16, where training rounds before gelu, and log-probs of samples are to be the same.
    """
    weight = weight if weight.dtype == x.dtype else weight.to(x.dtype)
    if ONEDNN and x.device.type == "cpu" and x.dtype in FAST and x.numel():
        fused = gelu and x.dtype == torch.float32
        after = ("gelu", [], "tanh") if fused else ("none", [], "")
        y, gelu = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after), gelu and not fused
    else:
        y = F.linear(x, weight, bias if bias is None else bias.to(x.dtype))
    return F.gelu(y, approximate="tanh") if gelu else y


def sum_of_products(a, b):
    """a^T b, the sum of the outer products of their rows, without a gradient. a: [N, I] and b:
    [N, J], of one type. Returns [I, J].

    oneDNN's product for layers wants the rows of its first operand in one piece, and to transpose
    a matrix costs up to a third of its product: so the smaller of the two goes there. What returns
    is then transposed, which costs its reader more than that where there are few rows to sum. The
    second may be transposed, but it may have no gaps: those take the slowest of its programs. Its
    general product, which PyTorch takes for bfloat16, reads both as they lie.
    """
    if a.dtype != torch.float32 or a.is_cuda:
        return a.T @ b
    if a.size(1) <= b.size(1) or len(a) < 2 * b.size(1) or not a.is_contiguous():
        return gemm(a.T, b.contiguous().T)
    return gemm(b.T, a.T).T


def packed(weight):
    """A copy of a weight that gemm takes in its place, a tenth quicker on few rows of x; None where
    there is no such thing. It has no gradient and does not follow the weight."""
    low = lowered(weight.detach())
    if ONEDNN and low.device.type == "cpu" and low.dtype in FAST:
        return torch.ops.mkldnn._reorder_linear_weight(low, 64)  # x of about 64 rows
    return None if low.dtype == weight.dtype else low  # rounded once, not at each step


class _Linear(torch.autograd.Function):
    """y = x W^T + b, and for an upstream gradient g:  dx = g W,  dW = g^T x,  db = sum of g."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.dtype, x = x.dtype, lowered(x)
        ctx.save_for_backward(x, weight)
        return gemm(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        dx = gemm(g, weight.T).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        g, x = g.flatten(0, -2), x.flatten(0, -2)
        return dx, sum_of_products(g, x).to(weight.dtype), g.sum(0).to(weight.dtype)


def linear(x, weight, bias):
    """x W^T + b, differentiable. x: [..., I]; weight: [O, I]; bias: [O]. Returns [..., O]."""
    return _Linear.apply(x, weight, bias)


# ------------------------------------------------------------------------------------- attention
#
# With c = 1 / sqrt(D), a query i and the keys j <= i:
#
#     s_ij = c q_i.k_j        p_ij = exp(s_ij) / sum_j exp(s_ij)        o_i = sum_j p_ij v_j
#
# The T x T matrices s and p are never there: a block of queries looks at one tile of keys at a
# time and keeps the largest score m so far, the sum l of exp(s - m) and the sum a of exp(s - m) v.
# When a tile raises m to m', what was added up is worth exp(m - m') of the new scale:
#
#     l <- l exp(m - m') + sum_j exp(s_j - m')        a <- a exp(m - m') + sum_j exp(s_j - m') v_j
#
# and at the end o = a / l (the online softmax: Milakov and Gimelshein 2018; as attention: Dao et
# al. 2022). Of each query only o_i and L_i = m + log l are kept; p_ij = exp(s_ij - L_i) then comes
# back from q and k. With do the gradient of o, the chain rule gives
#
#     dv_j = sum_i p_ij do_i       dp_ij = do_i.v_j       ds_ij = p_ij (dp_ij - sum_j p_ij dp_ij)
#     dq_i = c sum_j ds_ij k_j     dk_j = c sum_i ds_ij q_i       sum_j p_ij dp_ij = do_i.o_i
#
# Everything is computed to base 2: with scores s log2(e), exp(s) is 2 to their power.

QUERIES = 64  # a block; more waste work on the future, fewer make small matrix products
KEYS = 1024  # a tile, a multiple of QUERIES
SCORES = 2**18  # held at a time: 1 MiB in float32 stays in a core's cache


def _pieces(B, H, T):
    """Indices that cut [B, H, T, D] into pieces whose tiles of scores stay in the cache."""
    n = max(1, SCORES // (min(T, QUERIES) * min(T, KEYS)))
    rows, heads = max(1, n // H), min(n, H)
    return [(slice(b, b + rows), slice(h, h + heads))
            for b in range(0, B, rows) for h in range(0, H, heads)]


def _contiguous(x, dtype):
    """A piece [b, h, T, D] as [b * h, T, D] without gaps between its rows: products are quicker."""
    x = x.to(dtype, memory_format=torch.contiguous_format)  # both by one copy, if it changes type
    return x.contiguous().view(-1, *x.shape[2:])


def _tiles(T):
    """(first query, last + 1, first key, last + 1) of the tiles on and below the diagonal."""
    for i in range(0, T, QUERIES):
        end = min(i + QUERIES, T)
        for j in range(0, end, KEYS):
            yield i, end, j, min(j + KEYS, end)


def _future(x):
    """What to add to the scores of a block of queries with its own keys: [QUERIES, QUERIES]."""
    return x.new_full((QUERIES, QUERIES), NEVER, dtype=_accumulator(x)).triu(1)


def _scores(q, k, i, end, j, stop, future):
    """A tile of scores [n, queries, keys]; keys in a query's future get NEVER."""
    s = torch.bmm(q[:, i:end], k[:, j:stop].mT)
    if stop > i:  # the diagonal runs through the tile's last columns
        s[:, :, i - j :].add_(future[: end - i, : end - i])  # a tenth of masked_fill_'s time
    return s


def _sums(to, dtype):
    """Where to add up what goes to a piece [b, h, T, D] of an output, [b * h, T, D]: there, if
    memory has no gaps there."""
    if to.is_contiguous() and to.dtype == dtype:
        return to.view(-1, *to.shape[2:])
    return to.new_empty(to.size(0) * to.size(1), *to.shape[2:], dtype=dtype)


def _finish(to, sums):
    """Copy sums to their place, unless they were added up there."""
    if to.data_ptr() != sums.data_ptr():
        to.copy_(sums.view_as(to))


def tiled_attention(q, k, v):
    """The forward pass above. q, k, v: [B, H, T, D] -> o [B, H, T, D], base-2 L [B, H, T]."""
    B, H, T, D = q.shape
    dtype, future = _accumulator(q), _future(q)
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
                worth = (m - top).exp2_()
                l, a = l * worth + p.sum(-1, keepdim=True), (a * worth).baddbmm_(p, vs[:, j:stop])
            m = top
            if stop == end:
                o[:, i:end], L[:, i:end] = a.div_(l), m + l.log2()
        _finish(out[at], o)
        lse[at] = L.view_as(lse[at])
    return out, lse


def _put(sums, first, a, b):
    """Add a b to a part of some sums, or write it there if it is the first. PyTorch multiplies a
    batch of matrices at once only into memory without gaps; into other memory one by one, each on
    its own, for which two threads take as long as one."""
    if first and sums.is_contiguous():
        torch.bmm(a, b, out=sums)
    elif first:
        sums.copy_(torch.bmm(a, b))
    else:
        sums.add_(torch.bmm(a, b))


def tiled_attention_backward(grad, q, k, v, out, lse):
    """The gradients above: dq, dk, dv, each [B, H, T, D] like q, from the gradient of o."""
    B, H, T, D = q.shape
    dtype, future = _accumulator(q), _future(q)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    for at in _pieces(B, H, T):
        qs, ks, vs, do = (_contiguous(x[at], dtype) for x in (q, k, v, grad))
        qs = qs * (D**-0.5 * LOG2E)
        L = lse[at].reshape(-1, T, 1)
        expected = (do.view_as(out[at]) * out[at]).sum(-1).view(-1, T, 1)  # sum_j p_ij dp_ij
        aq, ak, av = (_sums(x[at], dtype) for x in (dq, dk, dv))
        for i, end, j, stop in reversed(list(_tiles(T))):  # the last queries see all keys: first
            p = _scores(qs, ks, i, end, j, stop, future).sub_(L[:, i:end]).exp2_()
            _put(av[:, j:stop], end == T, p.mT, do[:, i:end])
            ds = torch.bmm(do[:, i:end], vs[:, j:stop].mT).sub_(expected[:, i:end]).mul_(p)
            _put(aq[:, i:end], stop == end, ds, ks[:, j:stop])
            _put(ak[:, j:stop], end == T, ds.mT, qs[:, i:end])
        aq.mul_(D**-0.5), ak.mul_(1 / LOG2E)  # qs held c log2(e) q
        for to, sums in ((dq, aq), (dk, ak), (dv, av)):
            _finish(to[at], sums)
    return dq, dk, dv


@torch.library.custom_op("nanoinstructgpt::attention", mutates_args=())
def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[
        torch.Tensor, torch.Tensor]:
    triton = _triton(q, q.size(-1))
    return triton.attention(q, k, v) if triton else tiled_attention(q, k, v)


@torch.library.custom_op("nanoinstructgpt::attention_backward", mutates_args=())
def _attention_backward(grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                        out: torch.Tensor, lse: torch.Tensor) -> tuple[
                            torch.Tensor, torch.Tensor, torch.Tensor]:
    triton = _triton(q, q.size(-1))
    backward = triton.attention_backward if triton else tiled_attention_backward
    return backward(grad, q, k, v, out, lse)


@_attention.register_fake
def _(q, k, v):
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=_accumulator(q))


@_attention_backward.register_fake
def _(grad, q, k, v, out, lse):
    return tuple(torch.empty_like(x) for x in (q, k, v))


_attention.register_autograd(
    lambda ctx, grad, _: _attention_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, *output))


def attention(q, k, v):
    """Causal attention, softmax(q k^T / sqrt(D)) v, each query seeing itself and what is before it.

    q, k, v: [B, H, T, D], any D (on a GPU, above 128 without the Triton kernels). Returns
    [B, H, T, D]. Sequences are padded on the right, so that no real token ever sees a pad and no
    padding mask is needed. To compare, ATTENTION=sdpa in the environment takes PyTorch's own
    scaled_dot_product_attention.
    """
    if os.environ.get("ATTENTION") == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _attention(q, k, v)[0]


# ------------------------------------------------------------------------------ decode attention

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
        """[B, H, 1]: which of the cache's R * H heads are the rows'."""
        H = self.shape[1]
        return self.rows[:, None, None] * H + torch.arange(H, device=self.rows.device)[:, None]

    @functools.cached_property
    def columns(self):
        """[B * H * D]: which of the R * H * D numbers of a key are the rows', on a CPU."""
        D = self.shape[-1]
        return (self.heads * D + torch.arange(D, device=self.rows.device)).flatten()

    @functools.cached_property
    def bags(self):
        """Used slots for `plain_decode_attention`: which of [B * H, longest] are not, the places of
        those that are, their rows among the values [R * H * T], and where each head's begin. The
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
    """The type of a cache: on a GPU, where memory sets the speed, that of products."""
    return lowered(weight[:1]).dtype if weight.is_cuda else weight.dtype


def _parts(cache, R, H, D):
    """The keys and the values of a cache, [R, H, Tmax, D] each."""
    keys, values = cache.view(2, R, H, -1, D)
    return keys.view(R, H, D, -1).mT if cache.device.type == "cpu" else keys, values


def fill(cache, k, v):
    """Put keys and values [R, H, T, D] into the first slots of a cache [2, R, H * Tmax * D]."""
    R, H, T, D = k.shape
    keys, values = _parts(cache, R, H, D)
    keys[:, :, :T], values[:, :, :T] = k, v


def append(cache, k, v, slots):
    """Put a key and a value [B, H, D] into the last of the slots that each row will see."""
    R, H, _, D = slots.shape
    for part, new in zip(_parts(cache, R, H, D), (k, v)):
        part[slots.rows, :, slots.newest] = new  # quicker than a scatter_ on a CPU


def _weighted_sums(weights, rows, table, ends):
    """sum of weights[i] table[rows[i]] over the i from ends[j] to ends[j + 1], for each j."""
    return torch.embedding_bag(table, rows, ends, False, 0, False, weights, True)[0]


def plain_decode_attention(q, cache, slots):
    """`decode_attention` in PyTorch. Both products are weighted sums of rows of a table,

        scores [T] = sum over d of q[d] k^T[d]        o [D] = sum over the used t of p[t] v[t]

    and that is what PyTorch's embedding bag is. It asks memory for rows ahead of their turn and
    takes sums of any lengths, so that from caches larger than the CPU's it is three times as fast
    as bmm. Of an unused slot no value is read and the score is dropped: both may be NaN.
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
        p = torch.where(unused, -math.inf, scores).softmax(-1)  # half of masked_fill_'s time
        p = p.flatten().index_select(0, places)
    return _weighted_sums(p, tokens, cache[1].view(-1, D), ends).view(B, H, D)


@torch.library.custom_op("nanoinstructgpt::decode_attention", mutates_args=())
def _decode_attention(q: torch.Tensor, cache: torch.Tensor, lengths: torch.Tensor,
                      rows: torch.Tensor, shape: list[int]) -> torch.Tensor:
    return decode_attention(q, cache, Slots(shape, lengths, rows))


@_decode_attention.register_fake
def _(q, cache, lengths, rows, shape):
    return q.new_empty(q.shape)


def decode_attention(q, cache, slots):
    """Attention of one new token a row over the cached keys and values that `slots` names.

    q: [B, H, D]. Slots past a row's length may hold anything. Returns [B, H, D]; no gradient.
    """
    if torch.compiler.is_compiling():
        return _decode_attention(q, cache, slots.lengths, slots.rows, list(slots.shape))
    triton = _triton(q, q.size(-1))  # called as it is: an operator around it would cost 40 us
    if triton is None:
        return plain_decode_attention(q, cache, slots)
    return triton.decode_attention(q, *cache.view(2, *slots.shape), slots.lengths, slots.rows)


# ----------------------------------------------------------------------------------- CUDA graphs

def can_capture(cache, head_size):
    """Whether a step of decoding over this cache may be captured: on a GPU with Triton nothing in
    it waits for the GPU, but `plain_decode_attention` asks for the lengths. To compare,
    DECODE=eager in the environment takes every step without a graph."""
    return _triton(cache, head_size) is not None and os.environ.get("DECODE") != "eager"


@functools.cache
def _side_stream(device):
    return torch.cuda.Stream(device)  # one, as cuBLAS keeps its workspace for each stream


def capture(step):
    """Run step() once, and capture it as a CUDA graph: returns a function that runs it again.

    step() works in place on tensors that stay where they are while the graph is used, and reads
    nothing back: what Python decides in it is decided here, once. Capturing runs nothing.
    """
    main, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    side = _side_stream(main.device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        step()  # what is compiled or loaded at a first call cannot be captured
    main.wait_stream(side)
    # Other threads may use CUDA meanwhile, as NCCL's does.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        step()
    return graph.replay


# ---------------------------------------------------------------------- log-probabilities, losses
#
# For a token y with the state x [C] before it, the output embedding W [V, C] and temperature tau:
#
#     z = W x / tau     L = log sum_j exp(z_j)     p = exp(z - L)
#     log-prob = z_y - L                           entropy H = L - sum_j p_j z_j
#
# N tokens have N x V logits, at GPT-2's V more memory than all else together, so they are made and
# used up a chunk of tokens at a time. Within the chunk W comes in tiles of TILE tokens of the
# vocabulary, while their logits are in the cache: with the online softmax of attention, a tile
# becomes e_t = exp(z_t - m_t), m_t the largest logit of a token so far, and in the end p = k_t e_t
# with k_t = exp(m_t - L), one number a token and tile. Logits are to base 2 here, too.
#
# For the gradients g of a log-prob and h of an entropy,
#
#     dz_j = g ([j = y] - p_j) - h p_j (log p_j + H)     dx = W^T dz / tau     dW = dz x^T / tau
#
# Without h that is dz = -g k_t e_t but at y, so that the factor of a token can multiply the small
# x and dx instead of the large e. At y it is g (1 - p_y): a difference of like numbers when the
# model is sure, taken from the exact log-prob instead, 1 - p_y = -expm1(log-prob).
#
# Two ways to use it. If the loss is a sum of functions of each token's own log-prob (cross-entropy;
# PPO's clipped objective), then g is known as soon as the chunk's log-probs are: gradients are made
# on the spot, and the logits once (`token_objective`). If not, backward comes with g and h later
# and makes the logits again (`token_logprobs`): 8 instead of 6 N V C multiplications and additions.

TILE = 2048  # tokens of the vocabulary
CHUNK = 2**24  # logits held at a time on a CPU, 64 MiB in float32


def _chunks(x, vocabulary):
    """Slices of x's rows: as many at a time as memory has room for their logits."""
    rows = 2 ** max(6, int(math.log2((CHUNK if x.device.type == "cpu" else 2**28) / vocabulary)))
    return [slice(i, i + rows) for i in range(0, len(x), rows)]


def _room(x, weight):
    """Memory for the e of any chunk of x, taken once, as the system would zero new memory for each;
    None where a product's own memory serves: of a vocabulary of one tile, and on a GPU."""
    if _triton(x) or len(weight) <= TILE:
        return None
    n = max((len(x[rows]) for rows in _chunks(x, len(weight))), default=0)
    return x.new_empty(rounded(n) * len(weight), dtype=_accumulator(weight))


def _exponentials(x, weight, entropy, room):
    """The tiles' e, and what it takes to make probabilities of them.

    x: [n, C] in the type of the sums, times log2(e) / temperature, so that the product gives logits
    to base 2; weight: [V, C]; room: as in `tiled_head`. Returns e as one block [n * V] (of several
    tiles only with room), log k of each tile [n], and by token, [n]: m, log l = L - m, and
    sum_j p_j (z_j - m) (or None), all to base e.
    """
    V, n = len(weight), len(x)
    e = None if room is None else room[: n * V]
    m = x.new_full((n, 1), NEVER)
    l, zp, tops = torch.zeros_like(m), torch.zeros_like(m), []
    for j in range(0, V, TILE):
        z = gemm(x, weight[j : j + TILE].to(x.dtype))
        top = torch.maximum(m, z.amax(-1, keepdim=True))
        worth = (m - top).exp2_()
        z.sub_(top)
        if e is not None:
            p = torch.exp2(z, out=e[n * j :][: z.numel()].view_as(z))  # the tile's place in e
        else:
            p = z.exp2() if entropy else z.exp2_()
        if entropy:  # zp = sum (z - m) 2^(z - m), moved along when m rises
            zp = worth * (zp + (m - top) * l) + torch.linalg.vecdot(z, p).unsqueeze(-1)
        l = l * worth + p.sum(-1, keepdim=True)
        tops.append(top)
        m = top
    ln2, logl = 1 / LOG2E, l.log()
    logks = [((top - m) * ln2 - logl).squeeze(-1) for top in tops]
    mean = (zp / l).squeeze(-1) * ln2 if entropy else None
    return p.view(-1) if e is None else e, logks, m.squeeze(-1) * ln2, logl.squeeze(-1), mean


def _dlogits(e, logk, g, h, H, temperature):
    """dz of a tile, as if no token in it were the target: a matrix [n, tile] and a factor [n, 1]
    of its rows. e: [n, tile]; log k, g, h (or None), H: [n]."""
    factor = g if h is None else g + h * (logk + H)
    factor = (factor * logk.exp() / -temperature).unsqueeze(-1)
    if h is None:
        return e, factor
    second = (-h * logk.exp() / temperature).unsqueeze(-1)  # p log p = k (e log e + e log k)
    return torch.xlogy(e, e).mul_(second).add_(e * factor), torch.ones_like(factor)


def tiled_head(x, weight, y, temperature, entropy, room):
    """log-prob and entropy (or None) of a chunk of tokens, and a function for the gradients.

    x: [n, C]; weight: [V, C]; y: [n]. With what `_room` returns as room, gradients(g, h, dw) may
    follow, once and before the next chunk: it adds the chunk's part to dw [V, C] and returns
    dx [n, C], for g and h (or None) [n]. Where none is to follow, room is None.
    """
    dtype, n, V = _accumulator(weight), len(x), len(weight)
    x, y = _filled(x), _filled(y)  # which have no gradient
    # The CPU's bfloat16 product would round the logits to 8 bits, and log-probs with them.
    wide, narrow = x.to(dtype), x.dtype != dtype or weight.dtype != dtype
    e, logks, m, logl, mean = _exponentials(wide * (LOG2E / temperature), weight, entropy, room)
    logprob = (wide * weight[y]).sum(-1) / temperature - m - logl  # not - L: apart they lose less
    H = logl - mean if entropy else None

    def gradients(g, h, dw):
        g, h = _filled(g), h if h is None else _filled(h)
        first = y - y % TILE  # of the tile that y is in, [n, width] from n * first on
        width = (V - first).clamp(max=TILE)
        e[len(x) * first + torch.arange(len(x), device=x.device) * width + y - first] = 0.0
        own = g * -logprob.expm1()
        if h is not None:
            own = own - h * logprob.exp() * (logprob + H)
        own = (own / temperature).unsqueeze(-1)
        dx = own * weight[y]
        dw.index_add_(0, y, own * wide)
        for et, wt, dwt, logk in zip(e.split(len(x) * TILE), weight.split(TILE), dw.split(TILE),
                                     logks):
            dz, factor = _dlogits(et.view(len(x), -1), logk, g, h, H, temperature)
            if narrow:  # a bfloat16 product may round a chunk's part, but sums are in float32
                dz = dz.to(x.dtype)
                dx += factor * (dz @ wt.to(x.dtype))
                dwt += sum_of_products(dz, (factor * wide).to(x.dtype))
            else:
                dx += gemm(dz, wt.T).mul_(factor)
                dwt += sum_of_products(dz, factor * wide)
        return dx[:n].to(x.dtype)

    return logprob[:n], H if H is None else H[:n], gradients


def logits(x, weight):
    """x W^T without a gradient, in float32 at least, to sample from. x: [B, C]; weight: [V, C]."""
    triton = _triton(x)
    if triton:
        return triton.product(x, weight.to(x.dtype).T)
    return gemm(x.to(_accumulator(x)), weight)


def _head(x, weight):
    """The function of this device, and the weight as it takes it: rounded once, not in each chunk
    of tokens. On a CPU log-probs take it unrounded."""
    triton = _triton(x)
    return (triton.head, weight.to(x.dtype)) if triton else (tiled_head, weight)


def _marked(x, targets):
    """The tokens with a target: their places in targets.flatten(), states [N, C], targets [N]."""
    x, y = x.reshape(-1, x.size(-1)), targets.flatten()
    places = (y >= 0).nonzero().squeeze(1)
    return places, x.index_select(0, places), y[places]


@torch.library.custom_op("nanoinstructgpt::token_logprobs", mutates_args=())
def _token_logprobs(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                    temperature: float, entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    logprob, h = (x.new_zeros(targets.shape, dtype=_accumulator(x)) for _ in range(2))
    places, x, y = _marked(x, targets)
    head, w = _head(x, weight)
    for rows in _chunks(x, len(w)):
        own, more, _ = head(x[rows], w, y[rows], temperature, entropy, None)
        logprob.view(-1)[places[rows]] = own
        if entropy:
            h.view(-1)[places[rows]] = more
    return logprob, h


@torch.library.custom_op("nanoinstructgpt::token_logprobs_backward", mutates_args=())
def _token_logprobs_backward(g: torch.Tensor, h: torch.Tensor, x: torch.Tensor,
                             weight: torch.Tensor, targets: torch.Tensor, temperature: float,
                             entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    dx, dw = x.new_zeros(x.shape), torch.zeros_like(weight, dtype=_accumulator(weight))
    places, x, y = _marked(x, targets)
    g, h = g.flatten()[places], h.flatten()[places] if entropy else None
    head, w = _head(x, weight)
    room = _room(x, w)
    for rows in _chunks(x, len(w)):
        *_, gradients = head(x[rows], w, y[rows], temperature, entropy, room)
        part = gradients(g[rows], h[rows] if entropy else None, dw)
        dx.view(-1, dx.size(-1)).index_copy_(0, places[rows], part)
    return dx, dw.to(weight.dtype)


@_token_logprobs.register_fake
def _(x, weight, targets, temperature, entropy):
    return tuple(x.new_empty(targets.shape, dtype=_accumulator(x)) for _ in range(2))


@_token_logprobs_backward.register_fake
def _(g, h, x, weight, targets, temperature, entropy):
    return x.new_empty(x.shape), torch.empty_like(weight)


def _keep_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.temperature, ctx.entropy = inputs[3:]


def _token_logprobs_gradients(ctx, g, h):
    dx, dw = _token_logprobs_backward(g, h, *ctx.saved_tensors, ctx.temperature, ctx.entropy)
    return dx, dw, None, None, None


_token_logprobs.register_autograd(_token_logprobs_gradients, setup_context=_keep_inputs)


def token_logprobs(hidden, weight, targets, temperature=1.0, entropy=False):
    """Log-probabilities (and, where asked, entropies in nats) of tokens.

    hidden: [..., C] states before each token; weight: [V, C] output embedding; targets: [...] ids.
    A token whose target is negative is left out: it costs nothing, and all that is said of it is 0.
    Returns (logprob [...], entropy [...] or None), float32, differentiable in hidden and weight
    with any gradient of each token: the backward pass computes the logits again.
    """
    logprob, h = _token_logprobs(hidden, weight, targets, float(temperature), entropy)
    return logprob, (h if entropy else None)


class _TokenObjective(torch.autograd.Function):
    """The loss, and with it the gradients that its backward pass will hand out."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, objective, temperature, entropy, training):
        dtype = _accumulator(weight)
        logprob, h = (hidden.new_zeros(targets.shape, dtype=dtype) for _ in range(2))
        places, x, y = _marked(hidden, targets)
        if training:
            dx, dw = hidden.new_zeros(hidden.shape), torch.zeros_like(weight, dtype=dtype)
        loss = hidden.new_zeros((), dtype=dtype)
        head, w = _head(x, weight)
        room = _room(x, w) if training else None
        for rows in _chunks(x, len(w)):
            own, more, gradients = head(x[rows], w, y[rows], temperature, entropy, room)
            some = torch.zeros_like(targets, dtype=torch.bool)
            some.view(-1)[places[rows]] = True
            with torch.enable_grad():
                leaf = own.detach().requires_grad_(training)
                part = objective(torch.zeros_like(logprob).masked_scatter(some, leaf), some)
            loss += part.detach()
            logprob.view(-1)[places[rows]] = own
            if entropy:
                h.view(-1)[places[rows]] = more
            if training:
                g = torch.autograd.grad(part, leaf)[0]
                dx.view(-1, dx.size(-1)).index_copy_(0, places[rows], gradients(g, None, dw))
        ctx.gradients = (dx, dw) if training else None
        ctx.mark_non_differentiable(logprob, h)
        return loss, logprob, h

    @staticmethod
    def backward(ctx, upstream, *_):
        if ctx.gradients is None:
            raise RuntimeError("token_objective hands out its gradients once: for a second "
                               "backward pass, call it again")
        (dx, dw), ctx.gradients = ctx.gradients, None
        return dx.mul_(upstream), dw.mul_(upstream), *[None] * 5


def token_objective(hidden, weight, targets, objective, temperature=1.0, entropy=False):
    """A sum over tokens of a function of each one's own log-prob, its gradients made on the way.

    hidden, weight, targets, temperature, entropy: as in `token_logprobs`. objective(logprob, marks)
    returns the sum over the marked tokens, both [...] like targets; logprob is 0 at all others. It
    is called with some of the tokens at a time, so that no token's part may depend on another's
    log-prob. Returns (loss, logprob [...], entropy [...] or None); only the loss has a gradient,
    and backward may run once.

    An operator of torch.compile's graph cannot call a Python function. Inside a compiled graph the
    objective therefore gets all log-probs at once, and the logits are computed twice. To have a
    graph and logits once, compile the body alone: `model.transformer.compile()`.
    """
    if torch.compiler.is_compiling():
        logprob, h = token_logprobs(hidden, weight, targets, temperature, entropy)
        loss, logprob = objective(logprob, targets >= 0), logprob.detach()
        return loss, logprob, (h.detach() if entropy else None)
    training = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss, logprob, h = _TokenObjective.apply(hidden, weight, targets, objective, temperature,
                                             entropy, training)
    return loss, logprob, (h if entropy else None)

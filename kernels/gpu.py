"""The kernels for CUDA, in Triton. Their formulas: attention.py, decode.py and losses.py.

A program (one of many that run at once) owns a block of the output and loops over what it needs:

    attention_kernel      a block of queries,  loops over the keys before it      -> o, L
    dq_kernel             a block of queries,  loops over the keys before it      -> dq, do.o
    dkdv_kernel           a block of keys,     loops over the queries after it    -> dk, dv
    decode_kernel         one head of one row, loops over the cached keys         -> o, the cache
    softmax_rows_kernel   one row of logits,   loops over the vocabulary twice    -> log-prob, H
    dlogits_rows_kernel   one row of logits,   loops over the vocabulary          -> dz

No two programs write to the same place, so results are the same bit by bit every time. Imported
for CUDA tensors only (and by the tests, which interpret the kernels on a CPU). docs/kernels.md says
which cards it has run on, and how fast.
"""
import math

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))
NEVER = tl.constexpr(-1e30)  # finite: inf - inf is NaN


@triton.jit
def _place(T, M: tl.constexpr):
    """(block of M tokens, sequence and head) of this program. All lie on the grid's first axis: the
    others take 65,535 at most. Neighbours share a head's keys in the cache."""
    blocks = tl.cdiv(T, M)
    return tl.program_id(0) % blocks, tl.program_id(0) // blocks


@triton.jit
def _head_of(x, pair, stride_b, stride_h, H):
    """Where a head of a sequence begins: 64 bits, since B T 3 C can pass 2^31."""
    return x + (pair // H).to(tl.int64) * stride_b + (pair % H).to(tl.int64) * stride_h


@triton.jit
def _block(x, rows, columns, stride, T, D: tl.constexpr, DP: tl.constexpr, INSIDE: tl.constexpr):
    """[rows, columns] of x, 0 beyond row T and beyond column D. INSIDE: no row is beyond T."""
    at = x + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    if INSIDE and D == DP:
        return tl.load(at)
    if INSIDE:
        return tl.load(at, mask=columns[None, :] < D, other=0.0)
    if D == DP:
        return tl.load(at, mask=rows[:, None] < T, other=0.0)
    return tl.load(at, mask=(rows[:, None] < T) & (columns[None, :] < D), other=0.0)


@triton.jit
def _dot(a, b):
    """a @ b in float32; "ieee" keeps float32 inputs exact; the default rounds them to tf32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _attend(query, k, v, k_t, v_t, j, rows, columns, m, l, a, T, scale, D: tl.constexpr,
            DP: tl.constexpr, N: tl.constexpr, DIAGONAL: tl.constexpr):
    """m, l and a after N more keys. DIAGONAL: some keys may be in a query's future."""
    keys = j + tl.arange(0, N)
    s = _dot(query, tl.trans(_block(k, keys, columns, k_t, T, D, DP, not DIAGONAL)))
    if DIAGONAL:
        s = tl.where(keys[None, :] <= rows[:, None], s, NEVER)
    top = tl.maximum(m, tl.max(s, 1) * scale)
    p, rescale = tl.exp2(s * scale - top[:, None]), tl.exp2(m - top)
    value = _block(v, keys, columns, v_t, T, D, DP, not DIAGONAL)
    return top, l * rescale + tl.sum(p, 1), a * rescale[:, None] + _dot(p.to(value.dtype), value)


@triton.jit
def attention_kernel(q, k, v, out, lse, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
                     H, T, scale, D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr,
                     N: tl.constexpr):
    """o and base-2 L of M queries. DP is D rounded up to a power of 2; scale = log2(e)/sqrt(D)."""
    block, pair = _place(T, M)
    block = tl.cdiv(T, M) - 1 - block  # the longest first, so that none runs alone at the end
    q, k = _head_of(q, pair, q_b, q_h, H), _head_of(k, pair, k_b, k_h, H)
    v = _head_of(v, pair, v_b, v_h, H)
    rows, columns = block * M + tl.arange(0, M), tl.arange(0, DP)
    query = _block(q, rows, columns, q_t, T, D, DP, False)
    m = tl.full([M], NEVER, tl.float32)
    l, a = tl.zeros([M], tl.float32), tl.zeros([M, DP], tl.float32)
    past = block * M // N * N  # all M queries see all keys before this
    for j in range(0, past, N):
        m, l, a = _attend(query, k, v, k_t, v_t, j, rows, columns, m, l, a, T, scale, D, DP, N,
                          False)
    for j in range(past, tl.minimum((block + 1) * M, T), N):
        m, l, a = _attend(query, k, v, k_t, v_t, j, rows, columns, m, l, a, T, scale, D, DP, N,
                          True)
    at = _head_of(out, pair, o_b, o_h, H) + rows.to(tl.int64)[:, None] * o_t + columns[None, :]
    tl.store(at, (a / l[:, None]).to(out.dtype.element_ty),
             mask=(rows[:, None] < T) & (columns[None, :] < D))
    tl.store(lse + pair.to(tl.int64) * T + rows, m + tl.log2(l), mask=rows < T)


@triton.jit
def _dq_of(query, do, k, v, k_t, v_t, j, rows, columns, total, delta, T, scale, D: tl.constexpr,
           DP: tl.constexpr, N: tl.constexpr, DIAGONAL: tl.constexpr):
    """What N keys add to dq."""
    keys = j + tl.arange(0, N)
    key = _block(k, keys, columns, k_t, T, D, DP, not DIAGONAL)
    p = tl.exp2(_dot(query, tl.trans(key)) * scale - total[:, None])
    if DIAGONAL:
        p = tl.where(keys[None, :] <= rows[:, None], p, 0.0)
    dp = _dot(do, tl.trans(_block(v, keys, columns, v_t, T, D, DP, not DIAGONAL)))
    return _dot((p * (dp - delta[:, None])).to(key.dtype), key)


@triton.jit
def dq_kernel(q, k, v, out, grad, lse, dq, expected, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
              o_b, o_h, o_t, g_b, g_h, g_t, H, T, scale, D: tl.constexpr, DP: tl.constexpr,
              M: tl.constexpr, N: tl.constexpr):
    """dq of M queries, and their do.o for dkdv_kernel. dq has the strides of o."""
    block, pair = _place(T, M)
    block = tl.cdiv(T, M) - 1 - block
    q, k = _head_of(q, pair, q_b, q_h, H), _head_of(k, pair, k_b, k_h, H)
    v = _head_of(v, pair, v_b, v_h, H)
    rows, columns = block * M + tl.arange(0, M), tl.arange(0, DP)
    query = _block(q, rows, columns, q_t, T, D, DP, False)
    do = _block(_head_of(grad, pair, g_b, g_h, H), rows, columns, g_t, T, D, DP, False)
    o = _block(_head_of(out, pair, o_b, o_h, H), rows, columns, o_t, T, D, DP, False)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    at = pair.to(tl.int64) * T + rows
    tl.store(expected + at, delta, mask=rows < T)
    total = tl.load(lse + at, mask=rows < T, other=float("inf"))  # beyond T: p = 2^-inf = 0
    a = tl.zeros([M, DP], tl.float32)
    past = block * M // N * N
    for j in range(0, past, N):
        a += _dq_of(query, do, k, v, k_t, v_t, j, rows, columns, total, delta, T, scale, D, DP, N,
                    False)
    for j in range(past, tl.minimum((block + 1) * M, T), N):
        a += _dq_of(query, do, k, v, k_t, v_t, j, rows, columns, total, delta, T, scale, D, DP, N,
                    True)
    at = _head_of(dq, pair, o_b, o_h, H) + rows.to(tl.int64)[:, None] * o_t + columns[None, :]
    tl.store(at, (a * (scale / LOG2E)).to(dq.dtype.element_ty),
             mask=(rows[:, None] < T) & (columns[None, :] < D))


@triton.jit
def dkdv_kernel(q, k, v, grad, lse, expected, dk, dv, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
                o_b, o_h, o_t, g_b, g_h, g_t, H, T, scale, D: tl.constexpr, DP: tl.constexpr,
                M: tl.constexpr, N: tl.constexpr):
    """dk and dv of N keys, M queries at a time. dk and dv have the strides of o.

    Scores are computed transposed, [keys, queries]: so p and ds can be left operands of the next
    products without leaving registers. One loop, always masked: with separate loops for
    the diagonal and the rest, ptxas serialises Hopper's matrix instructions (its warning C7515).
    """
    block, pair = _place(T, N)
    q, k = _head_of(q, pair, q_b, q_h, H), _head_of(k, pair, k_b, k_h, H)
    v = _head_of(v, pair, v_b, v_h, H)
    grad = _head_of(grad, pair, g_b, g_h, H)
    keys, columns = block * N + tl.arange(0, N), tl.arange(0, DP)
    key = _block(k, keys, columns, k_t, T, D, DP, False)
    value = _block(v, keys, columns, v_t, T, D, DP, False)
    at = pair.to(tl.int64) * T
    ak, av = tl.zeros([N, DP], tl.float32), tl.zeros([N, DP], tl.float32)
    for i in range(block * N // M * M, T, M):
        rows = i + tl.arange(0, M)
        query = _block(q, rows, columns, q_t, T, D, DP, False)
        do = _block(grad, rows, columns, g_t, T, D, DP, False)
        total = tl.load(lse + at + rows, mask=rows < T, other=float("inf"))
        delta = tl.load(expected + at + rows, mask=rows < T, other=0.0)
        p = tl.exp2(_dot(key, tl.trans(query)) * scale - total[None, :])
        p = tl.where(keys[:, None] <= rows[None, :], p, 0.0)
        av += _dot(p.to(do.dtype), do)
        dp = _dot(value, tl.trans(do))
        ds = p * (dp - delta[None, :])
        ak += _dot(ds.to(query.dtype), query)
    inside = (keys[:, None] < T) & (columns[None, :] < D)
    offset = keys.to(tl.int64)[:, None] * o_t + columns[None, :]
    dk, dv = _head_of(dk, pair, o_b, o_h, H), _head_of(dv, pair, o_b, o_h, H)
    tl.store(dk + offset, (ak * (scale / LOG2E)).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + offset, av.to(dv.dtype.element_ty), mask=inside)


@triton.jit
def decode_kernel(q, new_k, new_v, k, v, lengths, rows, out, q_b, q_h, n_b, n_h, w_b, w_h, k_b, k_h,
                  k_t, v_b, v_h, v_t, H, scale, NEW: tl.constexpr, D: tl.constexpr,
                  DP: tl.constexpr, N: tl.constexpr):
    """One query against the first lengths[b] slots of row rows[b] of the cache. q and o: [B, H, D].
    NEW: new_k and new_v, [B, H, D] each, are written to the last slot here.

    One query has no matrix product to feed to the tensor cores: this reads the cache once, and
    memory sets its speed. Slots past the length are never read.
    """
    pair = tl.program_id(0)
    b, head = (pair // H).to(tl.int64), (pair % H).to(tl.int64)
    length, row = tl.load(lengths + b).to(tl.int64), tl.load(rows + b).to(tl.int64)
    k, v = k + row * k_b + head * k_h, v + row * v_b + head * v_h
    columns = tl.arange(0, DP)
    inside = columns < D
    query = tl.load(q + b * q_b + head * q_h + columns, mask=inside, other=0.0).to(tl.float32)
    query *= scale
    m, l, a = tl.full([1], NEVER, tl.float32), tl.zeros([1], tl.float32), tl.zeros([DP], tl.float32)
    if NEW:  # stored for later steps; this step uses it directly
        length -= 1
        key = tl.load(new_k + b * n_b + head * n_h + columns, mask=inside, other=0.0)
        value = tl.load(new_v + b * w_b + head * w_h + columns, mask=inside, other=0.0)
        tl.store(k + length * k_t + columns, key, mask=inside)
        tl.store(v + length * v_t + columns, value, mask=inside)
        m = tl.zeros([1], tl.float32) + tl.sum(query * key.to(tl.float32), 0)
        l, a = l + 1.0, value.to(tl.float32)
    for j in range(0, length, N):
        keys = j + tl.arange(0, N)
        old = _block(k, keys, columns, k_t, length, D, DP, False).to(tl.float32)
        s = tl.where(keys < length, tl.sum(old * query[None, :], 1), NEVER)
        top = tl.maximum(m, tl.max(s, 0))
        p, rescale = tl.exp2(s - top), tl.exp2(m - top)
        old = _block(v, keys, columns, v_t, length, D, DP, False).to(tl.float32)
        l, a = l * rescale + tl.sum(p, 0), a * rescale + tl.sum(p[:, None] * old, 0)
        m = top
    at = out + pair.to(tl.int64) * D + columns
    tl.store(at, (a / l).to(out.dtype.element_ty), mask=inside)


@triton.jit
def softmax_rows_kernel(z, y, lse, logprob, entropy, z_n, V, inverse, BLOCK: tl.constexpr):
    """L, log-prob of y and entropy of one row of logits; inverse = 1 / temperature."""
    row = tl.program_id(0).to(tl.int64)
    z += row * z_n
    m, l, zp = tl.full([1], NEVER, tl.float32), tl.zeros([1], tl.float32), tl.zeros([1], tl.float32)
    for j in range(0, V, BLOCK):
        at = j + tl.arange(0, BLOCK)
        s = tl.load(z + at, mask=at < V, other=NEVER) * inverse
        top = tl.maximum(m, tl.max(s, 0))
        p, rescale = tl.exp2((s - top) * LOG2E), tl.exp2((m - top) * LOG2E)
        zp = (zp + (m - top) * l) * rescale + tl.sum((s - top) * p, 0)  # sum (s - m) exp(s - m)
        l = l * rescale + tl.sum(p, 0)
        m = top
    logl = tl.log(l)
    own = tl.load(z + tl.load(y + row)) * inverse
    one = tl.arange(0, 1)
    tl.store(lse + row + one, m + logl)
    tl.store(logprob + row + one, own - m - logl)
    tl.store(entropy + row + one, logl - zp / l)


@triton.jit
def dlogits_rows_kernel(z, dz, y, lse, logprob, entropy, g, h, z_n, dz_n, V, inverse,
                        HAS_H: tl.constexpr, BLOCK: tl.constexpr):
    """dz / temperature of one row, in the dtype of the next matrix product."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logp = tl.load(z + row * z_n + at, mask=at < V, other=NEVER) * inverse - tl.load(lse + row)
    # Past V logp is -1e30, so that 0 is stored there: padding takes part in products.
    p, gradient, own = tl.exp2(logp * LOG2E), tl.load(g + row), tl.load(logprob + row)
    d = -gradient * p
    # If p is near 1, 1 - p loses digits: compute it from the log-prob, as a series.
    series = -own * (1 + own / 2 * (1 + own / 3 * (1 + own / 4 * (1 + own / 5))))
    rest = tl.where(own > -0.1, series, 1.0 - tl.exp2(own * LOG2E))
    d = tl.where(at == tl.load(y + row), gradient * rest, d)
    if HAS_H:
        d -= tl.load(h + row) * tl.where(p > 0, p * (logp + tl.load(entropy + row)), 0.0)
    tl.store(dz + row * dz_n + at, (d * inverse).to(dz.dtype.element_ty), mask=at < dz_n)


# ------------------------------------------------------------------------------------ choices
#
# (queries M, keys N, warps, stages of the load pipeline) by head size, up to 64 and up to 128: the
# first is the fastest on an H200, the last fits a card with little shared memory. The choice never
# depends on timing, so two runs on one kind of card have the same bits. Float32 is multiplied
# without tensor cores, from registers, too few for larger blocks; it fits the 64 KiB of a card of
# 2018. The tests compile all of them ahead of time, for sm_75 (float32), sm_80 and sm_90, where a
# register spill is an error.

CHOICES = {"attention_kernel": {64: [(64, 64, 4, 3), (32, 32, 4, 1)],
                                128: [(64, 64, 4, 3), (64, 64, 4, 2), (32, 32, 4, 1)]},
           "dq_kernel": {64: [(64, 64, 4, 3), (32, 32, 4, 1)],
                         128: [(64, 64, 4, 2), (32, 32, 4, 1)]},
           "dkdv_kernel": {64: [(32, 64, 4, 3), (32, 32, 8, 1)],
                           128: [(32, 64, 4, 3), (32, 32, 8, 1)]}}
FLOAT32 = {"attention_kernel": {64: [(64, 32, 8, 1)], 128: [(16, 32, 8, 1)]},
           "dq_kernel": {64: [(32, 32, 8, 1)], 128: [(16, 16, 8, 1)]},
           "dkdv_kernel": {64: [(32, 32, 8, 1)], 128: [(16, 32, 4, 1)]}}
_fits = {}  # (kernel, device, type, D) -> the first choice that fits this card


def _launch(kernel, grid, arguments, D):
    """Run kernel with the first of its choices that fits the shared memory of the card."""
    DP, x = max(16, triton.next_power_of_2(D)), arguments[0]
    table = FLOAT32 if x.dtype == torch.float32 else CHOICES
    key = kernel, x.device, x.dtype, D
    choices = [_fits[key]] if key in _fits else table[kernel.__name__][64 if DP <= 64 else 128]
    for choice in choices:
        M, N, warps, stages = choice
        try:
            kernel[grid(M, N)](*arguments, D=D, DP=DP, M=M, N=N, num_warps=warps,
                               num_stages=stages)
        except triton.runtime.errors.OutOfResources:
            if choice == choices[-1]:
                raise
        else:
            _fits[key] = choice
            return


def _dense_last(*xs):
    """The kernels step through the last dimension by 1."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in xs]


def _strides(*xs):
    return [s for x in xs for s in x.stride()[:3]]


def attention(q, k, v):
    """[B, H, T, D] each -> o [B, H, T, D], base-2 L [B, H, T] float32."""
    B, H, T, D = q.shape
    q, k, v = _dense_last(q, k, v)
    out, lse = torch.empty_like(q), q.new_empty(B, H, T, dtype=torch.float32)
    grid = lambda M, N: (triton.cdiv(T, M) * B * H,)
    _launch(attention_kernel, grid,
            (q, k, v, out, lse, *_strides(q, k, v, out), H, T, D**-0.5 * LOG2E.value), D)
    return out, lse


def attention_backward(grad, q, k, v, out, lse):
    """dq, dk, dv, each [B, H, T, D]."""
    B, H, T, D = q.shape
    grad, q, k, v, out = _dense_last(grad, q, k, v, out)
    dq, dk, dv = (torch.empty_like(out) for _ in range(3))
    expected, scale = torch.empty_like(lse), D**-0.5 * LOG2E.value
    rest = (*_strides(q, k, v, out, grad), H, T, scale)
    _launch(dq_kernel, lambda M, N: (triton.cdiv(T, M) * B * H,),
            (q, k, v, out, grad, lse, dq, expected, *rest), D)
    _launch(dkdv_kernel, lambda M, N: (triton.cdiv(T, N) * B * H,),
            (q, k, v, grad, lse, expected, dk, dv, *rest), D)
    return dq, dk, dv


DECODE_KEYS = {64: 64, 128: 32}  # cached keys at a time


def decode_attention(q, k, v, lengths, rows, new=None):
    """q [B, H, D], caches [R, H, T, D], lengths [B], rows [B] of the caches -> [B, H, D]. new: a
    key and a value [B, H, D] to write to each row's last slot."""
    B, H, D = q.shape
    k, v = _dense_last(k, v) if new is None else (k, v)  # new keys must reach the cache, not a copy
    q, new_k, new_v = _dense_last(q, *(new or (q, q)))
    out, DP = q.new_empty(q.shape), max(16, triton.next_power_of_2(D))
    strides = [n for x in (q, new_k, new_v) for n in x.stride()[:2]]
    decode_kernel[(B * H,)](
        q, new_k, new_v, k, v, lengths, rows, out, *strides, *_strides(k, v), H,
        D**-0.5 * LOG2E.value, NEW=new is not None, D=D, DP=DP,
        N=DECODE_KEYS[64 if DP <= 64 else 128], num_warps=2)
    return out


def head(x, weight, y, temperature, entropy, room, V):
    """Like losses.tiled_head: PyTorch computes the matrix products, the kernels above the rows.
    weight: `losses.padded`, of which V rows are tokens; room: not used.

    Logits are float32 even if x is bfloat16: rounding would change log-probs by up to 0.3.
    """
    n = len(x)
    logits = product(x, weight.T)  # columns past V are never read
    statistics = x.new_empty(3, n, dtype=torch.float32)
    lse, logprob, H = statistics
    softmax_rows_kernel[(n,)](logits, y, lse, logprob, H, logits.stride(0), V, 1 / temperature,
                              BLOCK=4096, num_warps=8)

    def gradients(g, h, dw):
        dz = torch.empty_like(logits, dtype=x.dtype)
        dlogits_rows_kernel[(n, triton.cdiv(len(weight), 4096))](
            logits, dz, y, lse, logprob, H, g.contiguous(), g if h is None else h.contiguous(),
            logits.stride(0), dz.stride(0), V, 1 / temperature, HAS_H=h is not None, BLOCK=4096,
            num_warps=8)
        dw += product(dz.T, x)[:V]
        return dz @ weight

    return logprob, (H if entropy else None), gradients


def product(a, b):
    """a @ b, added up and returned in float32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # interpreted: a CPU's product would round

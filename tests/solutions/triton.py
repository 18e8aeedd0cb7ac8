@triton.jit
def softmax_rows_kernel(z, y, lse, logprob, entropy, z_n, V, inverse, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    one = tl.arange(0, 1)
    m = tl.full([1], NEVER, tl.float32)
    for j in range(0, V, BLOCK):  # a first walk: the largest logit
        at = j + tl.arange(0, BLOCK)
        m = tl.maximum(m, tl.max(tl.load(z + row * z_n + at, mask=at < V, other=NEVER), 0))
    m = m * inverse
    l, w = tl.zeros([1], tl.float32), tl.zeros([1], tl.float32)
    for j in range(0, V, BLOCK):
        at = j + tl.arange(0, BLOCK)
        s = tl.load(z + row * z_n + at, mask=at < V, other=NEVER) * inverse - m
        p = tl.where(at < V, tl.exp(s), 0.0)
        l += tl.sum(p, 0)
        w += tl.sum(tl.where(at < V, s * p, 0.0), 0)
    own = tl.load(z + row * z_n + tl.load(y + row)) * inverse
    tl.store(lse + row + one, m + tl.log(l))
    tl.store(logprob + row + one, own - m - tl.log(l))
    tl.store(entropy + row + one, tl.log(l) - w / l)


@triton.jit
def softmax_rows_kernel(z, y, lse, logprob, entropy, z_n, V, inverse, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    m, l, w = tl.full([1], NEVER, tl.float32), tl.zeros([1], tl.float32), tl.zeros([1], tl.float32)
    for j in range(0, V, BLOCK):
        at = j + tl.arange(0, BLOCK)
        s = tl.load(z + row * z_n + at, mask=at < V, other=NEVER) * inverse
        new = tl.maximum(m, tl.max(s, 0))
        e = tl.exp(s - new)
        w = (w + l * (m - new)) * tl.exp(m - new) + tl.sum(e * (s - new), 0)
        l = l * tl.exp(m - new) + tl.sum(e, 0)
        m = new
    total = m + tl.log(l)
    one = tl.arange(0, 1)
    tl.store(lse + row + one, total)
    tl.store(logprob + row + one, tl.load(z + row * z_n + tl.load(y + row)) * inverse - total)
    tl.store(entropy + row + one, tl.log(l) - w / l)

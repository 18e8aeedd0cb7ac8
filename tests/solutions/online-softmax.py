def tiled_attention(q, k, v):
    B, H, T, D = q.shape
    out, lse = torch.empty_like(q), q.new_empty(B, H, T, dtype=torch.float32)
    for i in range(0, T, QUERIES):
        end = min(T, i + QUERIES)
        m = q.new_full((B, H, end - i, 1), float("-inf"))
        l, a = torch.zeros_like(m), q.new_zeros(B, H, end - i, D)
        for j in range(0, end, KEYS):
            stop = min(j + KEYS, end)
            s = q[:, :, i:end] @ k[:, :, j:stop].mT / D**0.5
            future = torch.arange(j, stop) > torch.arange(i, end)[:, None]
            s = s.masked_fill(future, float("-inf"))
            top = torch.maximum(m, s.amax(-1, keepdim=True))
            p, rescale = (s - top).exp(), (m - top).exp()
            l, a, m = l * rescale + p.sum(-1, keepdim=True), a * rescale + p @ v[:, :, j:stop], top
        out[:, :, i:end] = a / l
        lse[:, :, i:end] = ((m + l.log()) * LOG2E).squeeze(-1)
    return out, lse


def tiled_attention(q, k, v):
    B, H, T, D = q.shape
    out, lse = torch.empty_like(q), q.new_empty(B, H, T, dtype=torch.float32)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                top, total, sums = -math.inf, 0.0, torch.zeros(D)
                for j in range(0, t + 1, KEYS):
                    stop = min(j + KEYS, t + 1)
                    s = k[b, h, j:stop] @ q[b, h, t] / math.sqrt(D)
                    new = max(top, float(s.max()))
                    old = math.exp(top - new)
                    e = torch.exp(s - new)
                    total = total * old + float(e.sum())
                    sums, top = sums * old + e @ v[b, h, j:stop], new
                out[b, h, t] = sums / total
                lse[b, h, t] = (top + math.log(total)) / math.log(2)
    return out, lse

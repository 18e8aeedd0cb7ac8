def decode_attention(q, keys, values, lengths):
    out = torch.empty_like(q)
    for b, n in enumerate(lengths.tolist()):
        scores = torch.einsum("hd,htd->ht", q[b], keys[b, :, :n]) / math.sqrt(q.size(-1))
        out[b] = torch.einsum("ht,htd->hd", scores.softmax(-1), values[b, :, :n])
    return out


def decode_attention(q, keys, values, lengths):
    T = keys.size(2)
    used = (torch.arange(T, device=q.device)[None] < lengths[:, None])[:, None, :, None]
    keys, values = (torch.where(used, x, torch.zeros_like(x)) for x in (keys, values))
    scores = torch.einsum("bhd,bhtd->bht", q, keys) / q.size(-1) ** 0.5
    scores = torch.where(used[..., 0], scores, torch.full_like(scores, -1e30))
    return torch.einsum("bht,bhtd->bhd", torch.softmax(scores, -1), values)

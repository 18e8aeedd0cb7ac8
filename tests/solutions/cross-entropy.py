def _exponentials(x, weight, entropy, room):
    V, n = len(weight), len(x)
    m, l, w = torch.full((n,), -math.inf), torch.zeros(n), torch.zeros(n)
    e, tops, at = room, [], 0
    for start in range(0, V, TILE):
        z = (x @ weight[start : start + TILE].T) * math.log(2)
        new = torch.maximum(m, z.max(1).values)
        p = torch.exp(z - new[:, None])
        rescale = torch.exp(m - new)
        if entropy:
            shifted = torch.where(l > 0, (m - new) * l, torch.zeros(n))
            w = rescale * (w + shifted) + ((z - new[:, None]) * p).sum(1)
        l = l * rescale + p.sum(1)
        tops.append(new)
        m = new
        if room is None:
            e = p.reshape(-1)
        else:
            e[at : at + p.numel()] = p.reshape(-1)
            at += p.numel()
    return (e if room is None else e[: n * V], [t - m - l.log() for t in tops], m, l.log(),
            w / l if entropy else None)


def _exponentials(x, weight, entropy, room):
    ln2, V, n = math.log(2), len(weight), len(x)
    tiles = [weight[j : j + TILE] for j in range(0, V, TILE)]
    tops, m = [], x.new_full((n, 1), NEVER)
    for tile in tiles:  # a first walk: only the maxima
        m = torch.maximum(m, (x @ tile.T).amax(1, keepdim=True))
        tops.append(m)
    l, zp, pieces, at = torch.zeros_like(m), torch.zeros_like(m), [], 0
    for tile, top in zip(tiles, tops):  # a second: sums against the final one
        z = x @ tile.T
        own = (z - top).exp2()
        l += (z - m).exp2().sum(1, keepdim=True)
        if entropy:
            zp += ((z - m) * (z - m).exp2()).sum(1, keepdim=True)
        if room is not None:
            room[at : at + own.numel()] = own.flatten()
            at += own.numel()
    e = own.flatten() if room is None else room[: n * V]
    logl = l.log()
    return (e, [((top - m) * ln2 - logl)[:, 0] for top in tops], m[:, 0] * ln2, logl[:, 0],
            (zp / l * ln2)[:, 0] if entropy else None)

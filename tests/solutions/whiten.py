def whiten(x, mask, total=None):
    total = total or (lambda t: t)
    values = x[mask].double()
    n = total(torch.tensor(float(len(values))).double())
    mean = total(values.sum()) / n
    variance = total(((values - mean) ** 2).sum()) / n
    out = torch.zeros(x.shape)
    out[mask] = ((values - mean) / torch.sqrt(variance + 1e-8)).float()
    return out


def whiten(x, mask, total=None):
    if total is None:
        total = lambda t: t
    x = torch.where(mask, x.double(), 0.0)
    count, first = total(mask.double().sum()), total(x.sum())
    centred = torch.where(mask, x - first / count, 0.0)
    std = (total(centred.square().sum()) / count + 1e-8) ** 0.5
    return (centred / std).float()

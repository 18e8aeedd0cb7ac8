def last_of(mask):
    left = mask.flip(1).cumsum(1).flip(1)  # how many are marked from here on
    return mask & (left == 1)


def last_of(mask):
    out = torch.zeros_like(mask)
    for b, row in enumerate(mask.tolist()):
        if any(row):
            out[b, max(t for t, on in enumerate(row) if on)] = True
    return out

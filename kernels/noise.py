"""Noise of a row or an episode: the same in any batch and on any rank.

A counter-based generator: each number is a function of (seed, owner, index). There is no state, so
the order of calls does not matter.
"""
import torch


def mix(x):
    """The finaliser of splitmix64, one to one on 64 bits. x: int64, any shape."""
    # int64 wraps around; the mask makes the right shift a logical one
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def first_row(seed):
    """The number of the first row of a run with this seed, 0 to 2^63 - 1. Rows are counted from
    there, 2^40 at most, and their numbers seed their dropout.

    Seeds below 2^23 have 2^40 numbers each, side by side. Larger seeds do not fit there: theirs
    begin at a random-looking number below 0. 2^30 rows of two of them overlap in 1 of 2^32 pairs.
    """
    if seed < 2**23:
        return seed << 40
    return int(mix(torch.tensor(seed, device="cpu"))) % (2**63 - 2**40) - 2**63


def narrow(seed):
    """A seed for torch's own generator, which uses only 32 bits on a CPU: the other bits of a
    larger seed are mixed into them."""
    return seed if seed < 2**32 else int(mix(torch.tensor(seed % 2**63, device="cpu"))) % 2**32


def uniform(seed, owners, step):
    """Uniform numbers in [0, 1), one per owner, that depend only on (seed, owner, step).

    `mix`, applied once to each of the three. seed: below 2^63; owners: [B] int64; step: an int or a
    tensor that broadcasts with them. Returns float64, [B] or what they broadcast to.
    """
    x = mix(mix(mix(torch.full_like(owners, seed) + 0x1E3779B97F4A7C15) ^ owners) + step)
    return ((x >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def dropout(x, p, site, owners):
    """x with a share p of its numbers zeroed and the others scaled by 1 / (1 - p).

    What is zeroed depends on the row's owner, the site (which of a model's dropouts it is) and the
    place in the row. x: [B, ...]; owners: [B] int64. Returns x's shape.
    """
    places = torch.arange(x[0].numel(), device=x.device)
    bits = lambda seed, n: ((uniform(seed, n, 0) - 0.5) * 2**32).int()
    noise = bits(-1, places) ^ bits(site, owners)[:, None]  # [B, places]; mix it, so that
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):  # no two rows are alike
        noise.bitwise_xor_(noise >> shift).mul_(factor)
    dropped = (noise < int((p - 0.5) * 2**32)).view_as(x)
    return x.masked_fill(dropped, 0.0) * (1 / (1 - p))

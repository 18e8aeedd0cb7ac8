"""How often labelers agree, and how sure that number is. Pure functions.

Of each pair of outputs that two labelers ranked, those count that neither of them tied; the share
that both put in the same order is the agreement (chance is 50 %). The paper does not say how it
counts ties; Stiennon et al. (2020, App. C.2) leave them out as well.
"""
import functools
import itertools
import math

from data.records import untied_pairs

SENSITIVE = ("inappropriate", "sexual", "violent", "encourages_harm", "denigrates",
             "harmful_advice")  # what the screening compares: sensitive speech


@functools.lru_cache(2 ** 14)  # of thirty labelers many give the same ranks
def same_order(first, second):
    """Two labelers' ranks of the same outputs, tuples of length K -> (pairs in the same order,
    pairs that neither tied)."""
    a, b = set(untied_pairs(first)), set(untied_pairs(second))
    same, reversed_ = len(a & b), len(a & {(j, i) for i, j in b})
    return same, same + reversed_


def share(counts):
    """[(agreeing, all) of each item] -> {"mean", "low", "high", "n"}: the share and its 95 %
    interval, or None for what nothing was counted for.

    The pairs of one item are not independent. The interval is Wilson's, for as many independent
    pairs as would give the variance over items that is seen (at least one an item, at most all).
    """
    counts = [(k, n) for k, n in counts if n]
    total = sum(n for _, n in counts)
    if not total:
        return {"mean": None, "low": None, "high": None, "n": 0}
    p, m = sum(k for k, _ in counts) / total, len(counts)
    spread = sum((k - p * n) ** 2 for k, n in counts) * m / max(1, m - 1) / total ** 2
    independent = min(max(p * (1 - p) / spread, 1), total) if spread else m
    z, low_high = 1.96, []
    for sign in (-1, 1):
        middle = p + z * z / 2 / independent
        half = z * math.sqrt(p * (1 - p) / independent + z * z / 4 / independent ** 2)
        low_high.append((middle + sign * half) / (1 + z * z / independent))
    return {"mean": p, "low": max(0.0, low_high[0]), "high": min(1.0, low_high[1]), "n": total}


def among(rankings):
    """Agreement of all pairs of labelers: {item: {labeler: ranks}} -> as `share`."""
    return share([tuple(map(sum, zip(*(same_order(a, b) for a, b in
                                       itertools.combinations(by.values(), 2)))))
                  for by in rankings.values() if len(by) > 1])


def of(labeler, rankings, other=None):
    """Agreement of one labeler with `other`, or with all the others, as `share`."""
    counts = []
    for by in rankings.values():
        if labeler in by:
            found = [same_order(by[labeler], ranks) for who, ranks in by.items()
                     if who != labeler and other in (None, who)]
            counts += [tuple(map(sum, zip(*found)))] if found else []
    return share(counts)


def flagged(flags):
    """Whether an output was flagged as sensitive in any way."""
    return any(flags.get(name) for name in SENSITIVE)


def on_flags(labeler, owner, ratings):
    """The share of outputs of which the two say the same: sensitive or not. ratings: {item:
    {output: {labeler: flags}}}; as `share`."""
    counts = []
    for outputs in ratings.values():
        both = [(flagged(by[labeler]), flagged(by[owner])) for by in outputs.values()
                if labeler in by and owner in by]
        counts.append((sum(a == b for a, b in both), len(both)))
    return share(counts)


def disagreements(rankings):
    """[(reversed pairs, item)] of the items on which labelers differ, the worst first."""
    out = []
    for item, by in rankings.items():
        pairs = [same_order(a, b) for a, b in itertools.combinations(by.values(), 2)]
        if wrong := sum(n - same for same, n in pairs):
            out.append((wrong, item))
    return sorted(out, key=lambda found: (-found[0], found[1]))

"""Attention by hand, attention in tiles, cross-entropy without logits, attention over a cache."""
import math

import torch
from torch.overrides import TorchFunctionMode

from exercises.checks.tools import NAN, noise, tensor
from exercises.course import Exercise


class Largest(TorchFunctionMode):
    """Remembers the size of the largest tensor that a call within it returns; views of the tensors
    `given` are not made. (A dispatch mode would import the compiler, which takes seconds.)"""

    def __init__(self, *given):
        super().__init__()
        self.numbers = 0
        self.given = {x.untyped_storage().data_ptr() for x in given}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if (isinstance(x, torch.Tensor)
                    and x.untyped_storage().data_ptr() not in self.given):
                self.numbers = max(self.numbers, x.numel())
        return out


# ------------------------------------------------------------------------------- attention

def softmax(scores):
    top = max(scores)
    e = [math.exp(s - top) for s in scores]
    return [x / sum(e) for x in e]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def attend(query, keys, values):
    """(output, scores) of one query over lists of keys and values."""
    scores = [dot(query, key) / math.sqrt(len(query)) for key in keys]
    p = softmax(scores)
    return [sum(w * v[d] for w, v in zip(p, values)) for d in range(len(values[0]))], scores


def attention_loops(case):
    """([B][H][T] outputs, [B][H][T] scores) of causal attention."""
    q, k, v = (case[name].double().tolist() for name in "qkv")
    both = [[[attend(qs[i], ks[: i + 1], vs[: i + 1]) for i in range(len(qs))]
             for qs, ks, vs in zip(*heads)] for heads in zip(q, k, v)]
    pick = lambda n: [[[at[n] for at in head] for head in row] for row in both]
    return pick(0), pick(1)


def qkv(*shape, seed=0, scale=1.0):
    return {name: noise(*shape, seed=seed + i, scale=scale) for i, name in enumerate("qkv")}


def run_attention(m, c):
    return {"y": m.causal_attention(c["q"], c["k"], c["v"])}


ATTENTION = Exercise(
    "attention", "kernels/reference.py", "causal_attention", run_attention,
    lambda c: {"y": tensor(attention_loops(c)[0])},
    {"the first token attends to itself alone": [qkv(1, 1, 1, 2), qkv(1, 1, 2, 2)],
     "no query sees a key of its future": [qkv(1, 1, 3, 2, seed=3), qkv(1, 1, 5, 3, seed=4)],
     "scores are divided by the root of the head size": [qkv(1, 1, 3, 16, seed=5)],
     "every row and every head attends for itself": [qkv(2, 2, 3, 2, seed=6)],
     "large scores are no trouble": [qkv(1, 1, 3, 2, seed=7, scale=300.0)]},
    ("Three steps: scores of all pairs of a query and a key, a softmax over the keys, a weighted "
     "sum of the values.",
     "q @ k.mT has a row for each query. Entries right of the diagonal are the future: set them to "
     "minus infinity before the softmax, and their weight is 0.",
     "scores / math.sqrt(D), then masked_fill with a mask from torch.ones(T, T).triu(1), then "
     "softmax(-1) @ v."), 4, ("q", "k", "v"), whole=("k", "v"))


# ------------------------------------------------------------------------------- in tiles

def run_tiles(m, c):
    m.QUERIES, m.KEYS, m.SCORES = 2, 4, 64  # tiles small enough to look at
    with Largest() as seen:
        o, L = m.tiled_attention(c["q"], c["k"], c["v"])
    B, H, T, D = c["q"].shape
    return {"o": o, "L": L, "holds all T x T scores": seen.numbers >= max(65, B * H * T * (D + 1))}


def tiles_oracle(c):
    o, scores = attention_loops(c)
    lse = lambda s: max(s) + math.log(sum(math.exp(x - max(s)) for x in s))
    L = [[[lse(s) / math.log(2) for s in head] for head in row] for row in scores]
    return {"o": tensor(o), "L": tensor(L), "holds all T x T scores": False}


TILES = Exercise(
    "online-softmax", "kernels/attention.py", "tiled_attention", run_tiles, tiles_oracle,
    {"one tile is plain attention": [qkv(1, 1, 1, 2), qkv(1, 1, 2, 2)],
     "a second tile goes on where the first stopped": [qkv(1, 1, 5, 2, seed=3),
                                                       qkv(1, 1, 6, 2, seed=4, scale=3.0)],
     "many tiles, with large scores": [qkv(1, 1, 13, 2, seed=5, scale=20.0)],
     "rows and heads": [qkv(2, 2, 7, 3, seed=6)],
     "the T x T scores are never there at once": [qkv(1, 1, 20, 2, seed=7)]},
    ("Keep three numbers for each query while the tiles of keys pass: the largest score m, the sum "
     "l of exp(s - m), the sum a of exp(s - m) v. The formulas are at the top of the file.",
     "When a tile raises m to m', multiply l and a by exp(m - m') before you add the tile's part. "
     "In base 2: exp2, with q multiplied by D**-0.5 * LOG2E before the products.",
     "for i, end, j, stop in _tiles(T): s = _scores(...); top = s.amax(-1, keepdim=True), from the "
     "second tile on torch.maximum(m, top). At stop == end: o = a / l, L = m + log2(l)."),
    25, ("q", "k", "v"), whole=("k", "v"), tolerance=2e-5)


# ------------------------------------------------------------------------------- cross-entropy

def run_exponentials(m, c):
    m.TILE = c["tile"]
    x, W = c["states"] * (1 / math.log(2)), c["embedding"]
    n, V = len(x), len(W)
    room = torch.full((n * V + 3,), NAN) if c["room"] or V > m.TILE else None
    with Largest(x, W, *([] if room is None else [room])) as seen:
        e, logks, top, logl, mean = m._exponentials(x, W, c["entropy"], room)
    tiles = range(0, V, m.TILE)
    p = [e[n * j : n * min(j + m.TILE, V)].view(n, -1) * logk.exp()[:, None]
         for j, logk in zip(tiles, logks)]
    return {"size of e": e.numel(), "tiles": len(logks), "p": torch.cat(p, 1), "m": top,
            "log l": logl, "mean": mean, "holds all logits": seen.numbers > max(64, 4 * n * m.TILE)}


def exponentials_oracle(c):
    W, V = c["embedding"].double().tolist(), len(c["embedding"])
    z = [[dot(x, w) for w in W] for x in c["states"].double().tolist()]
    p = [softmax(row) for row in z]
    sums = [sum(math.exp(s - max(row)) for s in row) for row in z]
    mean = [sum(a * (s - max(row)) for a, s in zip(own, row)) for own, row in zip(p, z)]
    return {"size of e": len(z) * V, "tiles": -(-V // c["tile"]), "p": tensor(p),
            "m": tensor([max(row) for row in z]), "log l": tensor([math.log(s) for s in sums]),
            "mean": tensor(mean) if c["entropy"] else None, "holds all logits": False}


def vocabulary(n, C, V, tile, entropy=False, seed=0, scale=1.0, room=False):
    return {"states": noise(n, C, seed=seed, scale=scale), "embedding": noise(V, C, seed=seed + 1),
            "tile": tile, "entropy": entropy, "room": room}


EXPONENTIALS = Exercise(
    "cross-entropy", "kernels/losses.py", "_exponentials", run_exponentials, exponentials_oracle,
    {"a vocabulary of one tile": [vocabulary(1, 2, 3, 4), vocabulary(2, 3, 4, 4, seed=2)],
     "probabilities of all tiles add up to 1": [vocabulary(1, 2, 5, 2, seed=4),
                                                vocabulary(2, 3, 9, 4, seed=5, scale=4.0)],
     "logits of thousands": [vocabulary(2, 2, 6, 2, seed=6, scale=900.0)],
     "the entropy's part": [vocabulary(1, 2, 3, 4, True, seed=7), vocabulary(2, 2, 7, 2, True, 8)],
     "one tile, with room for e": [vocabulary(2, 2, 3, 4, True, 9, room=True)],
     "the logits of all tokens are never there at once": [vocabulary(4, 2, 24, 4, seed=10)]},
    ("It is the online softmax again: m and l for each token while the tiles of the vocabulary "
     "pass. Each tile leaves e = exp(z - m) with the m of that moment.",
     "Keep each tile's own top in a list. At the end the tile's factor is log k = (top - m) ln 2 - "
     "log l: it turns that tile's e into probabilities.",
     "With entropy, zp = sum of (z - m) 2^(z - m). When m rises to top, zp becomes rescale * (zp + "
     "(m - top) * l), before the tile's part is added; mean = zp / l times ln 2."),
    25, ("states", "embedding", "tile"), tolerance=2e-5)


# ------------------------------------------------------------------------------- over a cache

def cached(lengths, T, H=1, D=2, seed=0, empty=NAN):
    """A cache whose slots past each row's length hold what happens to be in memory."""
    B = len(lengths)
    q, k, v = (noise(*shape, seed=seed + i) for i, shape in
               enumerate([(B, H, D), (B, H, T, D), (B, H, T, D)]))
    for b, n in enumerate(lengths):
        k[b, :, n:], v[b, :, n:] = empty, empty
    return {"q": q, "keys": k, "values": v, "lengths": torch.tensor(lengths)}


def cache_oracle(c):
    q, k, v = (c[name].double().tolist() for name in ("q", "keys", "values"))
    return {"o": tensor([[attend(query, ks[:n], vs[:n])[0] for query, ks, vs in zip(*row)]
                         for *row, n in zip(q, k, v, c["lengths"].tolist())])}


CACHE = Exercise(
    "cache", "kernels/reference.py", "decode_attention",
    lambda m, c: {"o": m.decode_attention(c["q"], c["keys"], c["values"], c["lengths"])},
    cache_oracle,
    {"a full cache": [cached([1], 1), cached([3], 3, seed=3)],
     "slots past a row's length are not seen": [cached([1], 2, empty=0.5),
                                                cached([2], 4, empty=9.0)],
     "they may hold NaN": [cached([1], 2, seed=6), cached([2], 3, seed=7)],
     "each row has its own length": [cached([1, 3, 2], 3, H=2, seed=8)]},
    ("One query a row, so a score for each slot of its cache: [B, H, T]. Then as in attention.",
     "Slot t of row b counts if t < lengths[b]. Unused slots get the score minus infinity.",
     "0 times NaN is NaN: also set the values of unused slots to 0 before the weighted sum."),
    6, ("q", "keys", "values", "lengths"), whole=("keys", "values"))

EXERCISES = (ATTENTION, TILES, EXPONENTIALS)

"""A Triton kernel. On a CPU Triton interprets it, slowly: the rows here are short."""
import math

import torch

from exercises.checks.kernels import softmax
from exercises.checks.tools import noise, tensor
from exercises.course import Exercise


def run_rows(m, c):
    z, n = c["logits"].clone(), len(c["logits"])
    lse, logprob, entropy = torch.zeros(3, n)
    m.softmax_rows_kernel[(n,)](z, c["y"], lse, logprob, entropy, z.stride(0), c["V"],
                                1 / c["temperature"], BLOCK=c["BLOCK"])
    return {"L": lse, "logprob": logprob, "entropy": entropy}


def rows_oracle(c):
    L, logprob, entropy = [], [], []
    for row, y in zip(c["logits"].double().tolist(), c["y"].tolist()):
        z = [x / c["temperature"] for x in row[: c["V"]]]
        L.append(max(z) + math.log(sum(math.exp(x - max(z)) for x in z)))
        logprob.append(z[y] - L[-1])
        entropy.append(sum(-p * math.log(p) for p in softmax(z) if p > 0))
    return {"L": tensor(L), "logprob": tensor(logprob), "entropy": tensor(entropy)}


def rows(n, V, block, temperature=1.0, seed=0, scale=1.0, more=0):
    """`more` columns past V hold what must not be read."""
    logits = noise(n, V + more, seed=seed, scale=scale)
    logits[:, V:] = 50.0
    return {"logits": logits, "V": V, "y": torch.arange(n) % V, "temperature": temperature,
            "BLOCK": block}


TRITON = Exercise(
    "triton", "kernels/gpu.py", "softmax_rows_kernel", run_rows, rows_oracle,
    {"a row that fits one block": [rows(1, 2, 2), rows(2, 4, 4, seed=1)],
     "several blocks": [rows(1, 4, 2, seed=2), rows(2, 8, 2, seed=3, scale=4.0)],
     "nothing past V is read": [rows(1, 3, 4, seed=4), rows(2, 5, 4, seed=5, more=3)],
     "the temperature divides the logits": [rows(1, 4, 2, 0.5, 6), rows(2, 6, 4, 2.0, 7)],
     "logits of thousands": [rows(1, 4, 2, seed=8, scale=1000.0)]},
    ("A program has one row: tl.program_id(0). It loops over the row in blocks and keeps m, l and, "
     "for the entropy, the sum of (s - m) exp(s - m).",
     "tl.load(z + at, mask=at < V, other=NEVER): what is past V gets no probability. Rescale the "
     "sums when the block raises m.",
     "The target's logit is tl.load(z + tl.load(y + row)). L = m + log l, log-prob = own - L, "
     "entropy = log l - zp / l; store each at its pointer + row."), 18,
    ("logits", "y", "V", "temperature", "BLOCK"), needs="triton", tolerance=1e-4)

EXERCISES = (TRITON,)

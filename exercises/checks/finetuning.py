"""Step 1: which tokens carry loss, the loss, and how much text is mixed in."""
from fractions import Fraction
from types import SimpleNamespace

import torch

from exercises.checks.tools import gradient_of, mask_of, noise, spoiled, tensor
from exercises.course import Exercise


def run_mask(m, c):
    ids, mask = m.pad_and_mask([tuple(row) for row in c["rows"]], "cpu")
    return {"ids": ids, "mask": mask}


def mask_oracle(c):
    T = max(len(ids) for ids, _ in c["rows"])
    ids = [ids + [0] * (T - len(ids)) for ids, _ in c["rows"]]
    mask = [[max(1, n) <= t < len(own) for t in range(T)] for own, n in c["rows"]]
    return {"ids": tensor(ids, torch.long), "mask": tensor(mask, torch.bool)}


def batch_of(*rows):
    return {"rows": [list(row) for row in rows]}


MASK = Exercise(
    "loss-mask", "data/batches.py", "pad_and_mask", run_mask, mask_oracle,
    {"the response carries loss, the prompt does not": [batch_of(([5, 6], 1)),
                                                        batch_of(([5, 6, 7, 8], 2))],
     "the EOS at the end of the response carries loss": [batch_of(([5, 6, 7, 9], 2), ([5, 9], 1))],
     "pads carry none": [batch_of(([5, 6, 7, 8], 1), ([5, 6], 1)),
                         batch_of(([4, 5], 1), ([5, 6, 7, 8, 9], 3))],
     "a token with the pad's own id (0) is a token": [batch_of(([5, 0], 1)),
                                                      batch_of(([0, 5, 0, 6, 0], 2), ([0, 0], 1))],
     "a text row: all but its first token": [batch_of(([5, 6, 7], 0)),
                                             batch_of(([5, 6, 7], 1), ([8, 9], 0))]},
    ("Two things tell what a token is: the row's length, and its prompt's length. Its id tells "
     "nothing.",
     "`pad` gives the ids and the lengths, `response_mask` the tokens between two lengths.",
     "A text row has prompt length 0 or 1; either way its first token has nothing before it, "
     "so the "
     "mask begins at max(1, prompt length). Move both results to the device."), 3, ("rows",))


def run_sft_loss(m, c):
    logprob = c["logprob"].clone().requires_grad_()
    loss = m.sft_loss(logprob, c["mask"], c["tokens"])
    return {"loss": loss, "gradient": gradient_of(loss, logprob)}


def sft_loss_oracle(c):
    marks = c["mask"].tolist()
    chosen = [x for xs, ms in zip(c["logprob"].double().tolist(), marks)
              for x, on in zip(xs, ms) if on]
    return {"loss": tensor(-sum(chosen) / c["tokens"]),
            "gradient": tensor([[-float(on) / c["tokens"] for on in row] for row in marks])}


ONE = mask_of([0, 1, 1])
TWO = mask_of([0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0])
SFT_LOSS = Exercise(
    "sft-loss", "sft.py", "sft_loss", run_sft_loss, sft_loss_oracle,
    {"the mean of - log p over the response": [
        {"logprob": -noise(1, 3).abs(), "mask": ONE, "tokens": 2}],
     "prompts and pads do not count": [
         {"logprob": -noise(2, 6, seed=1).abs(), "mask": TWO, "tokens": 5}],
     "divided by the tokens of the whole batch, not of this micro-batch": [
         {"logprob": -noise(1, 3, seed=2).abs(), "mask": ONE, "tokens": 7}],
     "what is outside the mask may be NaN": [
         {"logprob": spoiled(-noise(1, 3, seed=3).abs(), ONE), "mask": ONE, "tokens": 2},
         {"logprob": spoiled(-noise(2, 6, seed=4).abs(), TWO), "mask": TWO, "tokens": 5}]},
    ("A sum over the tokens that the mask marks, divided by a number that you are given.",
     "logprob * mask is not enough: 0 times NaN is NaN.",
     "-logprob.masked_fill(~mask, 0.0).sum() / tokens"), 1, ("mask", "logprob", "tokens"))


class Text:
    """Text rows of which only the count and the tokens matter."""

    def __init__(self, rows, tokens):
        self.rows, self.tokens = rows, tokens

    def __len__(self):
        return self.rows


def run_share(m, c):
    demos = [([1] * n, p) for n, p in c["demonstrations"]]
    text = Text(c["text rows"], c["text tokens"]) if c["text rows"] else []
    return {"text rows an epoch": m.text_share(SimpleNamespace(pretrain_mix=c["mix"]), demos, text)}


def share_oracle(c):
    """The number of rows whose loss tokens come nearest to mix / (1 - mix) of the others'."""
    if c["mix"] in (0, 1):
        return {"text rows an epoch": c["text rows"]}
    mix = Fraction(c["mix"]).limit_denominator(100)
    tokens = sum(n - p for n, p in c["demonstrations"])
    a_row = Fraction(c["text tokens"], c["text rows"]) - 1
    wanted = mix / (1 - mix) * tokens
    best = min(range(1, 10_000), key=lambda n: abs(n * a_row - wanted))
    return {"text rows an epoch": best}


def mix_of(mix, demonstrations, rows=10, tokens=110):
    return {"mix": mix, "demonstrations": demonstrations, "text rows": rows, "text tokens": tokens}


MIX = Exercise(
    "text-mix", "sft.py", "text_share", run_share, share_oracle,
    {"no text, or nothing but text": [mix_of(0.0, [(5, 2)], 0, 0), mix_of(1.0, [], 10, 110)],
     "half of the loss tokens are text": [mix_of(0.5, [(40, 0)]), mix_of(0.5, [(70, 10)] * 2)],
     "a tenth": [mix_of(0.1, [(100, 10)] * 10), mix_of(0.1, [(23, 3)] * 45)],
     "prompts carry no loss, so they do not count": [mix_of(0.3, [(100, 93)] * 20)],
     "the first token of a text row carries none either": [mix_of(0.2, [(20, 5)] * 40, 10, 30)],
     "at least one row": [mix_of(0.1, [(4, 2)])]},
    ("Loss tokens, not rows and not tokens: a demonstration has len(ids) - prompt length of "
     "them, a "
     "text row on average text.tokens / len(text) - 1.",
     "If t text tokens are to be a share m of everything, t = m (t + d), with d the loss tokens of "
     "the demonstrations. Solve for t.",
     "t = d m / (1 - m); divide by the loss tokens of a row and round; at least 1. m = 0 and m = 1 "
     "come first: then the answer is len(text)."), 5, ("mix", "demonstrations", "text rows",
                                                      "text tokens"))

EXERCISES = (MASK, SFT_LOSS, MIX)

"""The same step, whatever the number of processes and the size of the micro-batches."""
import math
from types import SimpleNamespace

import torch

from exercises.checks.policy import (Recorder, logprobs_of, norm_of, small_model, steps_taken,
                                     world_of)
from exercises.checks.tools import in_ranks
from exercises.course import Exercise

ROWS = [([1, 2, 3, 6], 2), ([4, 5, 6], 1), ([2, 2, 5, 1, 6], 1), ([3, 6], 1), ([5, 1, 2, 4, 6], 3)]


def run_step(m, c):
    models = [small_model(c["dropout"]) for _ in range(c["ranks"])]  # each rank its own copy
    recorders, passes = [Recorder(model) for model in models], [[] for _ in models]

    def work(rank, total):
        s = SimpleNamespace(micro_batch=c["micro_batch"], micro_batch_tokens=0, clip=0.0,
                            explode=math.inf)

        def count(_, args, kwargs):
            passes[rank].append(len(args[0] if args else kwargs["ids"]))

        models[rank].register_forward_pre_hook(count, with_kwargs=True)
        return m.train_step(models[rank], recorders[rank], ROWS[: c["rows"]], 0.1, s,
                            world_of(rank, c["ranks"], total), c["first"])

    ranks = in_ranks(c["ranks"], work)
    return {"loss": [float(loss) for loss, _ in ranks], **steps_taken(recorders),
            **norm_of(ranks, c), "as many passes on each rank": len(set(map(len, passes))) == 1,
            "_rows": list(map(sum, passes))}


def step_oracle(c):
    model, rows = small_model(c["dropout"]), ROWS[: c["rows"]]
    chosen = []
    for number, (ids, n) in enumerate(rows, c["first"]):
        if c["dropout"]:  # the model's own noise, of one row at a time
            marks = torch.arange(len(ids))[None] >= n
            logprob, _ = model(torch.tensor([ids]), marks, owners=torch.tensor([number]))
            chosen.append(logprob[0, n:])
        else:
            chosen.append(logprobs_of(model, ids)[n - 1 :])
    loss = -torch.cat(chosen).sum() / sum(len(ids) - n for ids, n in rows)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss,
                                                                   list(model.parameters()))])
    norm = math.sqrt(sum(x * x for x in gradient.tolist()))
    return {"loss": [float(loss.detach())] * c["ranks"], "optimiser steps": [1] * c["ranks"],
            "gradient, the mean of the ranks'": gradient, **norm_of([(None, norm)], c),
            "as many passes on each rank": True}


def split(rows, ranks=1, micro_batch=8, dropout=0.0, first=0):
    return {"rows": rows, "ranks": ranks, "micro_batch": micro_batch, "dropout": dropout,
            "first": first}


RANKS = Exercise(
    "ranks", "sft.py", "train_step", run_step, step_oracle,
    {"one process, one micro-batch": [split(1), split(4)],
     "micro-batches of other token counts change nothing": [split(4, 1, 1), split(5, 1, 2)],
     "two processes are one": [split(2, 2), split(4, 2, 1)],
     "a rank that is one row short": [split(3, 2), split(5, 2, 2), split(4, 3, 1)],
     "a row's number seeds its dropout, wherever the row is": [split(4, 1, 8, 0.5, 7),
                                                               split(4, 2, 1, 0.5, 7)]},
    ("Every rank has the same rows and takes its share. The loss of the whole is the sum over all "
     "tokens of all ranks, divided by their number: that number is known before the split.",
     "world.share(rows, spare=...) deals the rows; a spare row without loss tokens keeps "
     "the number "
     "of backward passes equal. accumulate(model, groups) and world.backward(loss) do the rest.",
     "loss_of divides by the tokens of the whole batch. Sum what world.backward returns, then "
     "world.sum it over the ranks; one take_step at the end."), 14,
    ("rows", "ranks", "micro_batch", "dropout", "first"), tolerance=2e-4)

EXERCISES = (RANKS,)

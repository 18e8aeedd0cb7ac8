"""The same step, whatever the number of processes and the size of the micro-batches."""
import math
from types import SimpleNamespace

import torch

from exercises.checks.policy import Recorder, logprobs_of, small_model
from exercises.checks.tools import in_ranks
from exercises.course import Exercise

ROWS = [([1, 2, 3, 6], 2), ([4, 5, 6], 1), ([2, 2, 5, 1, 6], 1), ([3, 6], 1), ([5, 1, 2, 4, 6], 3)]


def world_of(rank, size, total):
    from runtime.world import World
    world = World(0, "cpu")
    world.rank, world.size, world.main, world.sum = rank, size, rank == 0, total
    return world


def run_step(m, c):
    models = [small_model() for _ in range(c["ranks"])]  # each rank its own copy

    def work(rank, total):
        recorder = Recorder(models[rank])
        s = SimpleNamespace(micro_batch=c["micro_batch"], micro_batch_tokens=0, clip=0.0,
                            explode=math.inf)
        loss, _ = m.train_step(models[rank], recorder, ROWS[: c["rows"]], 0.1, s,
                               world_of(rank, c["ranks"], total), 0)
        return loss, len(recorder.gradients), torch.cat([g.flatten()
                                                         for g in recorder.gradients[0]])

    ranks = in_ranks(c["ranks"], work)
    return {"loss": [float(loss) for loss, _, _ in ranks],
            "optimiser steps": [n for _, n, _ in ranks],
            "gradient, the mean of the ranks'": sum(g for _, _, g in ranks) / c["ranks"]}


def step_oracle(c):
    model, rows = small_model(), ROWS[: c["rows"]]
    chosen = torch.cat([logprobs_of(model, ids)[n - 1 :] for ids, n in rows])
    loss = -chosen.sum() / sum(len(ids) - n for ids, n in rows)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    return {"loss": [float(loss.detach())] * c["ranks"], "optimiser steps": [1] * c["ranks"],
            "gradient, the mean of the ranks'": torch.cat([g.flatten() for g in gradient])}


def split(rows, ranks=1, micro_batch=8):
    return {"rows": rows, "ranks": ranks, "micro_batch": micro_batch}


RANKS = Exercise(
    "ranks", "sft.py", "train_step", run_step, step_oracle,
    {"one process, one micro-batch": [split(1), split(4)],
     "micro-batches of other token counts change nothing": [split(4, 1, 1), split(5, 1, 2)],
     "two processes are one": [split(2, 2), split(4, 2, 1)],
     "a rank that is one row short": [split(3, 2), split(5, 2, 2), split(4, 3, 1)]},
    ("Every rank has the same rows and takes its share. The loss of the whole is the sum over all "
     "tokens of all ranks, divided by their number: that number is known before the split.",
     "world.share(rows, spare=...) deals the rows; a spare row without loss tokens keeps "
     "the number "
     "of backward passes equal. accumulate(model, groups) and world.backward(loss) do the rest.",
     "loss_of divides by the tokens of the whole batch. Sum what world.backward returns, then "
     "world.sum it over the ranks; one take_step at the end."), 14,
    ("rows", "ranks", "micro_batch"), tolerance=2e-4)

EXERCISES = (RANKS,)

"""What the checks share: numbers, masks, and ranks that run in threads."""
import threading

import torch

NAN = float("nan")


def noise(*shape, seed=0, scale=1.0):
    """Normal numbers, float32, rounded to two decimals so that a picture can be read."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (x * scale * 100).round() / 100


def mask_of(*rows):
    """Lists of 0 and 1 -> a mask [B, T] bool."""
    return torch.tensor(rows, dtype=torch.bool)


def spoiled(x, mask):
    """x [B, T] with NaN outside the mask."""
    return x.masked_fill(~mask, NAN)


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def gradient_of(loss, x):
    """The gradient of a loss, which may be anything, to x; None if x is not used."""
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        raise TypeError("the loss has no gradient. Make it of the inputs, as a tensor: without "
                        "float(), .item() or .detach()")
    if loss.numel() != 1:
        raise ValueError(f"the loss has the shape {list(loss.shape)}. It is to be one number")
    return torch.autograd.grad(loss.sum(), x, allow_unused=True)[0]


class Total:
    """Sums over ranks that run in threads: each calls total(x), and gets the sum of all."""

    def __init__(self, size):
        self.size, self.barrier, self.shared = size, threading.Barrier(size, timeout=10), {}

    def of(self, rank):
        rounds = [0]

        def total(x):
            rounds[0] += 1
            self.shared[rounds[0], rank] = torch.as_tensor(x, dtype=torch.float64).clone()
            self.barrier.wait()
            return sum(self.shared[rounds[0], r] for r in range(self.size))

        return total


def in_ranks(size, work):
    """[work(rank, total)] of all ranks. The first error of one of them is raised."""
    totals, out, errors = Total(size), [None] * size, []

    def run(rank):
        try:
            out[rank] = work(rank, totals.of(rank))
        except BaseException as error:
            errors.append(error)
            totals.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        real = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
        raise (real or errors)[0]
    return out

"""What the tests share: tiny models, a world of one process, and an optimiser that only looks."""
import math
import threading
from dataclasses import dataclass

import torch

from model import GPT, GPTConfig, ScalarGPT
from runtime.world import World

VOCAB, EOS = 13, 12  # ids 0..11 are words; a pad's id is one of these: none may be told by it


@dataclass
class Example:
    """An example."""
    steps: int = 3  # of something
    rate: float = 0.5
    name: str = "x"  # its name
    on: bool = False


def tiny(kind=GPT, seed=23, loud=8.0, **changes):
    """A model of two layers whose weights are large enough for its opinions to be strong.

    With this seed its responses to the prompts of test_sampler.py end at five different lengths.
    """
    config = dict(vocab_size=VOCAB, block_size=24, n_layer=2, n_head=2, n_embd=16)
    torch.manual_seed(seed)
    device = torch.empty(0).device
    with torch.device("cpu"):  # the same weights, whatever the tests' device is
        model = kind(GPTConfig(**{**config, **changes}))
    with torch.no_grad():
        for p in model.transformer.parameters():
            if p.dim() == 2:
                p *= loud
            else:
                p += 0.2 * torch.randn_like(p)  # else biases are 0, and a lost one is not missed
    return model.to(device)


def tiny_scalar(seed=1, **changes):
    return tiny(ScalarGPT, seed, **changes)


def one_process():
    """A world without other ranks, whatever the environment says."""
    world = World(0, "cpu")
    world.rank, world.size, world.main = 0, 1, True
    return world


class Recorder(torch.optim.Optimizer):
    """Takes no step: keeps the gradients of every step that it is asked for."""

    def __init__(self, model):
        super().__init__(list(model.parameters()), {})
        self.steps = []

    def step(self):
        self.steps.append([torch.zeros_like(p) if p.grad is None else p.grad.clone()
                           for group in self.param_groups for p in group["params"]])


class Counted(torch.optim.SGD):
    """Plain gradient descent that keeps the weights after each of its steps."""

    def __init__(self, model, lr=0.1):
        super().__init__(model.parameters(), lr)
        self.model, self.weights = model, []

    def step(self):
        super().step()
        self.weights.append({k: v.clone() for k, v in self.model.state_dict().items()})


def same(a, b, rtol=1e-5):
    """Assert that two lists of tensors are equal up to float32 rounding, tensor by tensor.

    A gradient that is 0 in exact arithmetic (the bias of the keys: softmax ignores it) is noise
    around 0, so that the scale is the largest number of the whole list.
    """
    scale = max(float(x.abs().max()) for x in b)
    assert scale > 0, "nothing to compare: all is 0"
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        worst = float((x - y).detach().abs().max())
        assert worst <= rtol * scale, f"tensor {i}: differs by {worst:.2e}, scale {scale:.2e}"


def add(xs, ys, factor=1.0):
    return [x + factor * y for x, y in zip(xs, ys, strict=True)]


def close(got, expected, tolerance=1e-6):
    """Assert that a tensor equals nested Python lists (float64 or float32), and is finite."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    got = got.detach().double()
    assert got.shape == expected.shape, f"yours {list(got.shape)}, expected {list(expected.shape)}"
    worst = (got - expected).abs().max() if got.numel() else torch.tensor(0.0)
    assert worst <= tolerance, f"yours\n{got}\nexpected\n{expected}"


def slope(function, x, i, step=1e-5):
    """The derivative of function(x) by x.flatten()[i], by central differences in float64."""
    moved = []
    for sign in (1, -1):
        y = x.detach().clone()
        y.view(-1)[i] += sign * step
        moved.append(float(function(y)))
    return (moved[0] - moved[1]) / (2 * step)


def slopes(function, x):
    """All derivatives of a number by x, in x's shape."""
    return torch.tensor([slope(function, x, i) for i in range(x.numel())],
                        dtype=torch.float64).view(x.shape)


def masked(rows, T=None):
    """Lists of 0 and 1 -> a mask [B, T] bool, padded with 0."""
    T = T or max(map(len, rows))
    return torch.tensor([row + [0] * (T - len(row)) for row in rows], dtype=torch.bool)


def tree_rows(tree, lengths=None):
    """The rows that a PrefixTree was made of, read back place by place up to each row's end."""
    out = []
    for row, end in zip(tree.nodes.tolist(), tree.ends.tolist()):
        out.append([int(tree.ids[node]) for node in row[: int(tree.positions[end]) + 1]])
    assert lengths is None or [len(row) for row in out] == lengths
    return out


def log_softmax(logits):
    """log p over a list of numbers, in plain float64 Python."""
    top = max(logits)
    lse = top + math.log(sum(math.exp(z - top) for z in logits))
    return [z - lse for z in logits]


@torch.no_grad()
def sequence_logprobs(model, ids, temperature=1.0):
    """log p(ids[t] | ids[:t]) for t = 1.. of one list of ids: the whole sequence, all logits."""
    hidden = model.transformer(torch.tensor([ids]))[0].double()
    logits = hidden @ model.transformer.wte.weight.double().T / temperature
    return [log_softmax(logits[t - 1].tolist())[ids[t]] for t in range(1, len(ids))]


def in_ranks(size, work):
    """Run work(rank, total) in `size` threads; total(x) is the sum of x over all of them."""
    barrier, shared, out, errors = threading.Barrier(size, timeout=20), {}, [None] * size, []

    def run(rank):
        rounds = 0

        def total(x):
            nonlocal rounds
            rounds += 1
            shared[rounds, rank] = torch.as_tensor(x, dtype=torch.float64)
            barrier.wait()
            return sum(shared[rounds, r] for r in range(size))

        try:
            out[rank] = work(rank, total)
        except Exception as error:
            errors.append(error)
            barrier.abort()  # the others wait for nobody

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return out


def world_of_ranks(rank, size, total):
    """One of several worlds that run in threads (see `in_ranks`)."""
    world = one_process()
    world.rank, world.size, world.main, world.sum = rank, size, rank == 0, total
    return world

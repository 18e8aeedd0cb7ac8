"""AdamW as in the paper, Muon for pretraining, one clipped step, and the rate's schedule."""
import math

import torch

from runtime.machine import has_bf16
from runtime.sharding import bare, sharded


def make_optimizer(model, lr, weight_decay, eps=1e-8, muon=False):
    """AdamW as in the paper (betas .9, .95); matrices decay, biases and norms do not.

    muon: the matrices of the blocks take Muon's steps instead (see `Muon`).
    """
    blocks = set()
    if muon:
        blocks = {p for p in bare(model).transformer.h.parameters() if p.dim() > 1}
    matrices = [p for p in model.parameters() if p.dim() > 1 and p not in blocks]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": rest, "weight_decay": 0.0}]
    options = dict(lr=lr, betas=(0.9, 0.95), eps=eps, fused=True)
    if not muon:
        return torch.optim.AdamW(groups, **options)
    return Muon([p for p in model.parameters() if p in blocks], weight_decay, groups, options)


MOMENTUM = 0.95  # of Muon


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all other parameters.

    A step of Muon is the momentum's average of the gradients with all its singular values set to
    about 1, so that rare directions move as far as common ones. Its length is that of a step of
    AdamW (0.2 a weight, root mean square; Liu et al. 2025), so both take the same rate. This is not
    the paper's optimiser: the toy is pretrained with it, because AdamW learns to copy from a
    prompt much later.

    The steps are those of torch.optim.Muon, but that multiplies in bfloat16 on every machine. On a
    CPU without instructions for it, such as most laptops have, a step of the demo's pretraining
    then takes six times as long (measured on a Zen 5 with PyTorch and oneDNN held to AVX2).
    """

    def __init__(self, blocks, weight_decay, groups, options):
        self.adamw = torch.optim.AdamW(groups, **options)
        mine = {"params": blocks, "lr": options["lr"], "weight_decay": weight_decay}
        super().__init__([mine, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self):
        """One step of each part. AdamW works on this object's state and groups, so that a state on
        disk has all of it and `lr` is set once."""
        mine, *self.adamw.param_groups = self.param_groups
        self.adamw.state = self.state
        self.adamw.step()
        weights = [p for p in mine["params"] if p.grad is not None]
        for p in weights:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)  # as the library calls it
        gradients = [p.grad for p in weights]
        averages = [self.state[p]["momentum_buffer"] for p in weights]
        torch._foreach_lerp_(averages, gradients, 1 - MOMENTUM)
        steps = torch._foreach_lerp(gradients, averages, MOMENTUM)  # Nesterov's look ahead
        torch._foreach_mul_(weights, 1 - mine["lr"] * mine["weight_decay"])
        for p, step in zip(weights, steps):
            p.add_(orthogonal(step), alpha=-0.2 * mine["lr"] * max(p.shape) ** 0.5)


QUINTIC = 3.4445, -4.7750, 2.0315  # moves singular values from (0, 1] towards 1, in five rounds


def orthogonal(x):
    """A matrix with x's singular vectors, and singular values of about 1 (Jordan et al. 2024).

    x: [m, n]. Returns [m, n]. Each round is  x <- a x + b (x x^T) x + c (x x^T)^2 x,  which does to
    each singular value what  s <- a s + b s^3 + c s^5  does. In bfloat16 where the device has
    instructions for it.
    """
    a, b, c = QUINTIC
    tall = x.size(0) > x.size(1)
    x = x.to(torch.bfloat16 if has_bf16(x.device.type) else torch.float32)
    x = x.T if tall else x  # x x^T is then the smaller of the two squares
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def take_step(model, optimizer, lr, clip, explode=math.inf):
    """Clip the gradient's norm to `clip`, step at rate lr, clear. Returns the norm before clipping.

    A gradient with NaN, or whose norm exceeds `explode`, is dropped without a step: a single one
    could spoil the weights, or Adam's moments, for good. Then NaN is returned.
    """
    total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()
                                           if p.grad is not None])
    norm = float(total.full_tensor() if sharded(total) else total)
    good = math.isfinite(norm) and norm <= explode  # the same on all ranks
    for group in optimizer.param_groups:
        group["lr"] = lr
    if good:
        if clip and norm > clip:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), clip, total)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm if good else math.nan


def cosine(step, steps, peak, floor=0.1, warmup=0):
    """Cosine from `peak` to floor * peak over `steps`, after a linear warm-up."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

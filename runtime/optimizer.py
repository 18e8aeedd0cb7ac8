"""AdamW as in the paper, one clipped step of it, and the learning rate's schedule."""
import math

import torch

from runtime.sharding import sharded


def make_optimizer(model, lr, weight_decay, eps=1e-8):
    """AdamW as in the paper (betas .9, .95); matrices decay, biases and norms do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": weight_decay},
                              {"params": rest, "weight_decay": 0.0}],
                             lr=lr, betas=(0.9, 0.95), eps=eps, fused=True)


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

"""AdamW as in the paper, Muon for pretraining, one clipped step, and the rate's schedule."""
import math

import torch

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


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all other parameters.

    A step of Muon is the momentum's average of the gradients with all its singular values set to
    about 1, so that rare directions move as far as common ones. Its length is that of a step of
    AdamW (0.2 a weight, root mean square; Liu et al. 2025), so both take the same rate. This is not
    the paper's optimiser: the toy is pretrained with it, because AdamW learns to copy from a
    prompt much later.
    """

    def __init__(self, blocks, weight_decay, groups, options):
        lr = options["lr"]
        self.parts = (torch.optim.Muon(blocks, lr, weight_decay, momentum=0.95,
                                       adjust_lr_fn="match_rms_adamw"),
                      torch.optim.AdamW(groups, **options))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self):
        """One step of each part. The parts work on this object's state and groups, so that a state
        on disk has all of it and `lr` is set once."""
        muon, adamw = self.parts
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        for part in self.parts:
            part.state = self.state
            part.step()


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

"""Sharded and wrapped models.

With --shard a rank holds a part of every weight (a DTensor), of its gradient, its moments and its
average. Checkpoints are still whole, so that other programs can read them.
"""
import contextlib

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from kernels.products import lowered


def sync(model, last):
    """Within this context backward passes exchange gradients only if `last`: once a step."""
    if sharded(model):
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def accumulate(model, groups, more=False):
    """Each group in turn. Ranks exchange gradients once a step: in the backward pass of the last
    group, unless there are `more` to come in another loop."""
    for i, group in enumerate(groups):
        with sync(model, last=i == len(groups) - 1 and not more):
            yield group


def bare(model):
    """The model itself, without the wrapper that torchrun's ranks need."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def copied(model):
    """A copy of its weights by name, in parts if they are in parts."""
    return {k: v.detach().clone() for k, v in bare(model).state_dict().items()}


def frozen(model):
    """A model for inference: no dropout, no gradients, matrices stored in the dtype of products.
    Norms, biases and the scalar head stay float32: they take almost no memory."""
    model.eval().requires_grad_(False)
    for p in model.transformer.parameters():
        if p.dim() == 2:
            p.data = lowered(p.data)
    return model


def sharded(x):
    """Whether a model or a tensor is in parts on all ranks. Checks attributes, so that nothing that
    only --shard needs is imported."""
    return hasattr(x, "unshard") or hasattr(x, "full_tensor")


def class_of(model):
    """Its original class: fully_shard replaces it by a subclass of (FSDPModule, class)."""
    return type(model).__bases__[-1] if sharded(model) else type(model)


@contextlib.contextmanager
def gathered(model, device=None):
    """The model with all its weights, for work without gradients: samples, scores, evaluations.

    Each block is gathered once, on entry, not at each call: sampling calls it for every token, and
    a rank may have more to do than others. The result is a plain model on the same memory, because
    FSDP would treat each of its own calls as the forward half of a training step. If `device` is
    given and the weights are elsewhere, the result is a temporary copy there.
    """
    if not sharded(model):
        away = device is not None and any(p.device != device for p in model.parameters())
        yield plain(model, device) if away else bare(model)
        return
    parts = [part for part in model.modules() if sharded(part)]
    try:
        for part in parts:
            part.unshard()
        yield plain(model)
    finally:
        for part in parts:
            part.reshard()


def plain(model, device=None):
    """A model on the same memory, or on a copy of it on a device, without what wraps it."""
    with torch.device("meta"):
        other = class_of(model)(model.config).eval()
    weights = {k: p.detach().to(device or p.device) for k, p in model.named_parameters()}
    other.load_state_dict(weights, assign=True)
    return other


def full(tensors):
    """Tensors by name, each assembled on rank 0, one after another. The other ranks must take part,
    and get None instead."""
    out = {}
    for name, x in tensors.items():
        if sharded(x):
            x = x.full_tensor()
            x = x.cpu() if dist.get_rank() == 0 else None
        out[name] = x
    return out


def placed_as(x, other):
    """A tensor placed like `other`: on its device, and only this rank's part if `other` is in
    parts. A stand-in (runtime/states.py) becomes empty memory for its shards."""
    if other is None or sharded(x) or x.shape != other.shape:
        return x
    if x.is_meta:
        return torch.empty_like(other)
    x = x.to(other.device)
    if not sharded(other):
        return x
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(x, other.device_mesh, other.placements,
                             src_data_rank=None)  # all ranks have read the same x


def load_into(part, state):
    """load_state_dict of a model or an optimiser, in parts or not. The tensors may be whole,
    stand-ins, or in the same parts."""
    if isinstance(part, torch.optim.Optimizer):
        params = [p for group in part.param_groups for p in group["params"]]
        mine = lambda x, i: placed_as(x, params[i]).clone() if torch.is_tensor(x) else x
        moments = {i: {k: mine(v, i) for k, v in own.items()}  # clones, as the optimiser keeps them
                   for i, own in state["state"].items()}
        part.load_state_dict({**state, "state": moments})
    else:
        own = part.state_dict()
        part.load_state_dict({k: placed_as(v, own[k]) for k, v in state.items()})


def placed_as_weights(saved, weights):
    """Nested dicts, with each tensor placed like the weight that has its name and shape.
    weights: {(name, shape): weight}."""
    return {k: placed_as_weights(v, weights) if isinstance(v, dict) else
            placed_as(v, weights.get((k, v.shape))).clone() if torch.is_tensor(v) else v
            for k, v in saved.items()}

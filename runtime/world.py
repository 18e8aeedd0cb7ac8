"""The ranks of a run: one process, or those that torchrun started; and rows in groups that fit.

    World        splits work between ranks, and sums over all
    micro_batches, scoring_groups    rows of different lengths in groups
"""
import datetime
import os
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from kernels.noise import narrow
from runtime.machine import keep_freed_memory
from settings import THREADS, stop


class World:
    """The ranks of this run: one process alone, or those that torchrun started.

    Each rank computes its share of every batch. A loss is the sum over a rank's tokens divided
    by the tokens of the whole world, so that results do not depend on how many ranks there are.
    """

    def __init__(self, seed=0, device="auto", timeout=1800):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and local >= (seen := torch.cuda.device_count()):
            stop(f"rank {self.rank} needs GPU {local}, and PyTorch sees {seen}: --device=cpu, or "
                 "with torchrun at most as many processes on a machine as it has GPUs")
        if device == "cuda":
            device = f"cuda:{local}"  # set_device needs the index
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.timeout = timeout  # seconds that a rank waits for another
        if self.size > 1 and not dist.is_initialized():
            # torchrun keeps one store for all its restarts (pytorch #135712), with the addresses of
            # dead ranks in it. The restart count differs between machines: it only helps on one.
            store, *_ = next(dist.rendezvous("env://"))
            alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
            self.store = dist.PrefixStore(f"start {restarts() if alone else 0}", store)
            gpu = self.device if self.device.type == "cuda" else None
            dist.init_process_group("nccl" if gpu else "gloo", store=self.store, rank=self.rank,
                                    world_size=self.size, device_id=gpu,
                                    timeout=datetime.timedelta(seconds=timeout))
        self.main = self.rank == 0
        if THREADS:
            self.print(f"{os.environ['LOCAL_WORLD_SIZE']} processes share the cores of a machine: "
                       f"threads of each {THREADS} (set OMP_NUM_THREADS for another number)")
        torch.manual_seed(narrow(seed))  # models start with the same weights on every rank
        self.seed, self.started = seed, time.time()

    def print(self, *args):
        if self.main:
            tqdm.write(" ".join(map(str, args)))

    def share(self, rows, spare=None):
        """This rank's part of a list: every size-th row, so that the union is the whole.

        spare: goes to ranks that would have one row less. Ranks that share one sharded model must
        call the model equally often, and with DDP each must call it once.
        """
        mine = rows[self.rank :: self.size]
        less = spare is not None and len(mine) < -(-len(rows) // self.size)
        return [*mine, spare] if less else mine

    def micro_batches(self, lengths, s, copies=None):
        """`micro_batches` of this rank's rows, as many on each rank (see `share`), sized by
        the settings s. Ranks have as many rows, but not as many tokens: a rank with fewer groups
        splits its largest."""
        groups = micro_batches(lengths, s.micro_batch, s.micro_batch_tokens, copies)
        if s.micro_batch_tokens and self.size > 1:
            most = torch.tensor(len(groups), device=self.device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            while len(groups) < most:
                largest = groups.pop(max(range(len(groups)), key=lambda i: len(groups[i])))
                half = len(largest) // 2
                groups += [largest[:half], largest[half:]]
        return groups

    def sum(self, x):
        """The sum of a tensor (or number) over all ranks."""
        x = torch.as_tensor(x, dtype=torch.float64, device="cpu" if self.device.type == "cpu"
                            else self.device).clone()
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def totals(self, sums):
        """A dict of numbers, or tensors of one number, each summed over all ranks."""
        number = lambda x: torch.as_tensor(x, dtype=torch.float64, device=self.device)
        values = [number(x) for x in sums.values()]
        return dict(zip(sums, self.sum(torch.stack(values)).tolist()))

    def backward(self, loss):
        """Gradients of a loss that is this rank's part of a sum. Ranks average their gradients, so
        it is multiplied by their number. Returns the loss, [] float64 without a gradient."""
        (loss * self.size).backward()
        return loss.detach().double()

    def barrier(self):
        if self.size > 1:
            dist.barrier()

    def gather(self, rows):
        """The lists of all ranks as one, interleaved back into the order that `share` split."""
        if self.size == 1:
            return list(rows)
        parts = [None] * self.size
        dist.all_gather_object(parts, list(rows))
        merged = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            merged[rank :: self.size] = part
        return merged

    def wrap(self, model, shard=False, checkpointing=False, offload=False):
        """Let gradients be averaged over ranks on each backward pass (see `sync`).

        shard: each rank keeps its part of the weights, their gradients and Adam's moments. A block
        is whole while it computes. With a single rank it has no effect.
        checkpointing: backward recomputes each block. offload: the weights stay in CPU memory; only
        what `gathered` lends is on the device.
        """
        if checkpointing:
            for block in model.transformer.h:
                recompute(block)
        if shard and self.size > 1:
            from torch.distributed.device_mesh import init_device_mesh  # this import takes 0.6 s
            from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard  # and few runs need it
            mesh = init_device_mesh(self.device.type, (self.size,))
            where = ({"offload_policy": CPUOffloadPolicy(pin_memory=self.device.type == "cuda")}
                     if offload else {})
            for part in (*model.transformer.h, model):  # one at a time on the device
                fully_shard(part, mesh=mesh, **where)
            return model
        if offload:
            return model
        model.to(self.device)
        trains = any(p.requires_grad for p in model.parameters())
        return DistributedDataParallel(model) if trains and self.size > 1 else model

    def roll_call(self, patience=5):
        """The ranks that do not answer. All remaining ranks call it when one is missing."""
        try:
            self.store.set(f"alive/{self.rank}", "")
            time.sleep(patience)
            return [r for r in range(self.size) if not self.store.check([f"alive/{r}"])]
        except RuntimeError:
            return [0]  # rank 0 keeps the store if torchrun does not

    def seconds(self):
        return round(time.time() - self.started, 1)

    def close(self):
        if self.size > 1 and dist.is_initialized():
            # gloo's thread needs the GIL to release the last sum. If the model is freed before, we
            # wait for that thread while holding the GIL, for ever. Sleeping releases the GIL.
            time.sleep(0.2)
            dist.destroy_process_group()


def recompute(block):
    """Let backward compute a block again, from its input alone."""
    forward = block.forward

    def checkpointed(*inputs):
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False,
                          preserve_rng_state=False)  # dropout does not use it

    block.forward = checkpointed


def restarts():
    """How often torchrun's --max-restarts has started this machine's ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def micro_batches(lengths, rows, tokens=0, copies=None):
    """Row indices in groups of at most `rows`, similar lengths together: little padding. With
    `tokens`, in groups of at most that many tokens instead (see `groups_by_tokens`)."""
    if tokens:
        return groups_by_tokens(lengths, tokens, copies)
    by_length = sorted(range(len(lengths)), key=lambda i: int(lengths[i]))
    return [by_length[i : i + rows] for i in range(0, len(by_length), rows)]


def scoring_groups(lengths, s, world, copies=None):
    """Row indices in groups for passes without gradients (validation, scores). A group has no more
    tokens, pads counted, than a training pass of such rows, so it needs less memory; 2^14 at most.
    s: settings; copies: see `groups_by_tokens`."""
    longest = max((n * k for n, k in zip(lengths, copies or [1] * len(lengths))), default=0)
    most = s.micro_batch_tokens or s.micro_batch * longest
    return groups_by_tokens(lengths, min(2**14, -(-s.batch // world.size) * longest, most), copies)


def groups_by_tokens(lengths, tokens, copies=None):
    """Row indices in groups of at most `tokens` tokens, pads counted. A longer row is alone.

    A group's activations then need the same memory for any context. Groups of rows would not: 256
    rows of 1,024 tokens are 3 GB for one hidden layer of GPT-2's MLP, 2^14 tokens 200 MB.
    copies: sequences that a row stands for, such as a prompt's completions; default one each.
    """
    groups, copies, held = [], copies or [1] * len(lengths), 0
    for i in sorted(range(len(lengths)), key=lambda i: -int(lengths[i])):  # the first is longest
        held += copies[i]
        if not groups or held * int(lengths[groups[-1][0]]) > tokens:
            groups.append([])
            held = copies[i]
        groups[-1].append(i)
    return groups

"""What the three scripts share and a student may skip at first reading.

    parse        settings: one dataclass a script, overridden by presets and --name=value
    World        one process, or the ranks that torchrun started
    cosine       the learning-rate schedule
    micro_batches, scoring_groups: ragged rows in pieces that fit
    write_shards, read_shards: states of models in parts
    save, load   checkpoints: folders of plain files, never half-visible
"""
import contextlib
import ctypes
import dataclasses
import datetime
import difflib
import enum
import inspect
import json
import math
import os
import pickle
import re
import shutil
import sys
import time
import warnings
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import huggingface
import kernels
from data import records
from data.tokenizer import load_tokenizer


# ------------------------------------------------------------------------------------- settings

def stop(message):
    """End the program with one clear line for its user."""
    raise SystemExit(f"error: {message}")


def parse(settings, presets=None, argv=None, plan=None):
    """Settings from the command line: `--name=value` for any field of the dataclass `settings`.

    `--preset=NAME` first applies presets[NAME]. Values take the type of the field's default. An
    unknown flag stops with the closest name. --help prints every field with its trailing comment.
    With --plan, plan(preset, settings, machine) prints what the run would cost (plan.py).
    """
    argv, presets = sys.argv[1:] if argv is None else argv, presets or {}
    fields = {f.name: f for f in dataclasses.fields(settings)}
    flags, given = [*fields, "preset", *["plan"] * bool(plan)], {}
    for arg in argv:
        if arg in ("-h", "--help"):
            about = "  --plan                    print what this run would cost, and stop (plan.py)"
            print(usage(settings, presets), *[about] * bool(plan), sep="\n")
            raise SystemExit(0)
        name, equals, value = arg.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not arg.startswith("--") or name not in flags:
            close = difflib.get_close_matches(name, flags, 1, 0.4)
            stop(f"unknown argument {arg!r}" + (f": did you mean --{close[0]}?" if close else "")
                 + "; --help lists them all")
        given[name] = value if equals else "true"
    preset, machine = given.pop("preset", None), given.pop("plan", None)
    if preset is not None and preset not in presets:
        stop(f"no preset {preset!r}; there are {', '.join(presets) or 'none'}")
    values = dict(presets.get(preset, {}))
    values.update({name: convert(name, value, fields[name].default)
                   for name, value in given.items()})
    if machine:
        plan(preset, settings(**values), machine)
        raise SystemExit(0)
    return settings(**values)


def convert(name, text, default):
    """The flag's text as a value of its default's type; stops where it is none."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        stop(f"--{name}={text}: expected {type(default).__name__}, like {default!r}")


def usage(settings, presets):
    """The help text: each field, its default and the comment that follows it in the source."""
    comments = dict(re.findall(r"^    (\w+): .*?#\s*(.*)$", inspect.getsource(settings), re.M))
    rows = [f"  --{f.name}={f.default!s:22} {comments.get(f.name, '')}".rstrip()
            for f in dataclasses.fields(settings)]
    first = f"  --preset=NAME             one of: {', '.join(presets)}" if presets else ""
    return "\n".join([(settings.__doc__ or "").strip(), first, *rows])


# ------------------------------------------------------------------------------------ precision

# n_embd from which --dtype=auto takes bf16 on a CPU that has it: the toys', which train 1.3 times
# as fast. Casts take up more and more of what is saved in smaller models.
WIDE = 192


def precision(dtype, world, width):
    """--dtype: let this program multiply matrices in float32 or bfloat16 (kernels.PRODUCTS).

    Where bf16 is asked for it is taken, even if it is emulated and far slower. "auto" takes it
    where it pays: on a GPU that has it; on a CPU with instructions for it, for models of at least
    WIDE. width: n_embd of the model.
    """
    if dtype not in ("auto", "float32", "bf16"):
        stop(f"--dtype={dtype}: there are auto, float32 and bf16")
    if dtype == "auto":
        fast = (torch.cuda.is_bf16_supported(including_emulation=False)
                if world.device.type == "cuda" else bf16_pays(width))
        dtype = "bf16" if fast else "float32"
    kernels.PRODUCTS = torch.bfloat16 if dtype == "bf16" else torch.float32
    # By default cuBLAS may round the parts of a long sum to bf16 before it adds them up.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if dtype == "bf16":
        world.print("products in bf16; weights, gradients and log-probs in float32")


def bf16_pays(width):
    """Whether --dtype=auto takes bf16 on this CPU, for models with so many dimensions."""
    return width >= WIDE and has_bf16()


def has_bf16():
    """Whether this CPU has instructions that multiply bfloat16: AVX512_BF16 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def frozen(model):
    """A model that is only read: no dropout, no gradients, matrices kept in the type of products.
    Norms, biases and the scalar head, next to nothing in memory, stay float32."""
    model.eval().requires_grad_(False)
    for p in model.transformer.parameters():
        if p.dim() == 2:
            p.data = kernels.lowered(p.data)
    return model


# ---------------------------------------------------------------------------------------- world

def available_memory():
    """Bytes that this machine, and the container whose limit lies at /sys/fs/cgroup, can still
    give; inf where Linux does not tell."""
    room = [math.inf]
    for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes",
             "total_inactive_file")):  # the two versions; files that were read can leave at once
        with contextlib.suppress(OSError, TypeError, ValueError):  # "max" is no limit
            limit, used = (Path("/sys/fs/cgroup", name) for name in (limit, used))
            stat = used.with_name("memory.stat").read_text()
            room.append(int(limit.read_text()) - int(used.read_text())
                        + int(re.search(rf"^{cached} (\d+)", stat, re.M)[1]))
    with contextlib.suppress(OSError, TypeError):
        found = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
        room.append(1024 * int(found[1]))
    return min(room)


def keep_freed_memory(planned=0):
    """Whether the C library keeps large blocks that were freed, for the next step to use again:
    yes, where half as much memory again as the planned bytes is available (of which some may be
    taken already). glibc would give some back, and the system zeroes them anew, page by page, at
    each step; to give all back costs up to two fifths of the time. But what is kept fits its next
    use badly, and memory grows by up to 40 %: where it is scarce, each block goes back. Other C
    libraries are left as they are."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return  # its user has chosen
    try:
        library = ctypes.CDLL(None)
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim, mmap = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, in bytes
    if 1.5 * planned > available_memory():
        mallopt(mmap, 2**16), mallopt(trim, 2**17)
        malloc_trim(0)  # and what was kept until now
    # An older glibc refuses more than 32 MB of the second; left alone, it would stay at 128 KB.
    elif mallopt(mmap, 2**31 - 1) or mallopt(mmap, 2**25):
        mallopt(trim, 2**31 - 1)


class World:
    """The ranks of this run: one process alone, or those that torchrun started.

    Each rank computes on its share of every batch. A loss is the sum over a rank's tokens divided
    by the tokens of the whole world, so that results do not depend on how many ranks there are.
    """

    def __init__(self, seed=0, device="auto", timeout=1800):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":
            device = f"cuda:{local}"  # which of them: set_device takes no less
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.timeout = timeout  # seconds that a rank waits for another
        if self.size > 1 and not dist.is_initialized():
            # torchrun keeps one store for all its restarts (pytorch #135712), with the addresses of
            # the dead in it. Machines do not agree on the count, so that it can only serve on one.
            store, *_ = next(dist.rendezvous("env://"))
            alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
            self.store = dist.PrefixStore(f"start {restarts() if alone else 0}", store)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo",
                                    store=self.store, rank=self.rank, world_size=self.size,
                                    timeout=datetime.timedelta(seconds=timeout))
            if "OMP_NUM_THREADS" not in os.environ and self.device.type == "cpu":
                torch.set_num_threads(max(1, os.cpu_count() // self.size))
        self.main = self.rank == 0
        torch.manual_seed(seed)  # models start with the same weights on every rank
        self.seed, self.started = seed, time.time()

    def print(self, *args):
        if self.main:
            tqdm.write(" ".join(map(str, args)))

    def share(self, rows, spare=None):
        """This rank's part of a list: every size-th row, so that the union is the whole.

        spare: goes to those that would have a row less. Ranks with shards of one model must call
        it equally often, and with DDP each must call it once.
        """
        mine = rows[self.rank :: self.size]
        less = spare is not None and len(mine) < -(-len(rows) // self.size)
        return [*mine, spare] if less else mine

    def micro_batches(self, lengths, rows, tokens=0, copies=None):
        """`micro_batches` of this rank's rows, as many groups on each rank (see `share`). Ranks
        have as many rows, but not as many tokens: who has fewer groups cuts its largest in two."""
        groups = micro_batches(lengths, rows, tokens, copies)
        if tokens and self.size > 1:
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

        shard: each rank keeps its part of the weights, and with it of their gradients and Adam's
        moments. A block is whole while it computes. A rank alone has the one part that there is.
        checkpointing: backward computes each block again. offload: the weights stay in the CPU's
        memory; only what `gathered` lends is on the device.
        """
        if checkpointing:
            for block in model.transformer.h:
                block.checkpointing = True
        if shard and self.size > 1:
            from torch.distributed.device_mesh import init_device_mesh  # takes 0.6 s that others
            from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard  # need not wait
            mesh = init_device_mesh(self.device.type, (self.size,))
            where = ({"offload_policy": CPUOffloadPolicy(pin_memory=self.device.type == "cuda")}
                     if offload else {})
            for part in (*model.transformer.h, model):  # each goes to the device alone
                fully_shard(part, mesh=mesh, **where)
            return model
        if offload:
            return model
        model.to(self.device)
        trains = any(p.requires_grad for p in model.parameters())
        return DistributedDataParallel(model) if trains and self.size > 1 else model

    def roll_call(self, patience=5):
        """The ranks that do not answer. Called by all that are left when one went missing."""
        try:
            self.store.set(f"alive/{self.rank}", "")
            time.sleep(patience)
            return [r for r in range(self.size) if not self.store.check([f"alive/{r}"])]
        except RuntimeError:
            return [0]  # which keeps the list, where torchrun itself does not

    def seconds(self):
        return round(time.time() - self.started, 1)

    def close(self):
        if self.size > 1 and dist.is_initialized():
            # gloo's thread needs the GIL to let go of the last sum; freed before that, the model
            # waits for the thread with the GIL in its hand, for ever. Asleep we do not hold it.
            time.sleep(0.2)
            dist.destroy_process_group()


def restarts():
    """How often torchrun's --max-restarts has started this machine's ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def sync(model, last):
    """Within this context backward passes exchange gradients only if `last`: once a step."""
    if sharded(model):
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def bare(model):
    """The model itself, without the wrapper that torchrun's ranks need."""
    return model.module if isinstance(model, DistributedDataParallel) else model


# ---------------------------------------------------------------------------------------- shards
#
# With --shard a rank holds a part of every weight (a DTensor), of its gradient, its moments and its
# average. A checkpoint is whole all the same: it is what other programs read.

def sharded(x):
    """Whether a model, or a tensor, is in parts on all ranks. Asked without the imports that only
    --shard needs: a model can be unsharded, a part made full."""
    return hasattr(x, "unshard") or hasattr(x, "full_tensor")


def kind(model):
    """Its class. fully_shard makes a class of its own of (FSDPModule, class)."""
    return type(model).__bases__[-1] if sharded(model) else type(model)


@contextlib.contextmanager
def gathered(model, device=None):
    """The model with all its weights, for work without gradients: samples, scores, evaluations.

    Each block is gathered once, on entry, not at each of its calls: sampling calls it for every
    token, and a rank may have more to do than others. What is lent is a plain model on the same
    memory, as FSDP would take each call of its own for the first half of a training step. On
    `device`, where it is given: a copy of weights that lie elsewhere, which then is forgotten.
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
        other = kind(model)(model.config).eval()
    weights = {k: p.detach().to(device or p.device) for k, p in model.named_parameters()}
    other.load_state_dict(weights, assign=True)
    return other


def full(tensors):
    """Tensors by name, with the parts of each put together on rank 0, one after another; the other
    ranks must take part, and get None in their place."""
    out = {}
    for name, x in tensors.items():
        if sharded(x):
            x = x.full_tensor()
            x = x.cpu() if dist.get_rank() == 0 else None
        out[name] = x
    return out


def like(x, other):
    """A tensor as `other` is: on its device, and this rank's part of it if it is in parts. A
    stand-in (see below) becomes memory that its shards are read into."""
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


def put(part, state):
    """load_state_dict of a model or an optimiser, in parts or not, with tensors that are whole,
    stand-ins, or in parts like it."""
    if isinstance(part, torch.optim.Optimizer):
        params = [p for group in part.param_groups for p in group["params"]]
        moments = {i: {k: like(v, params[i]).clone() if torch.is_tensor(v) else v  # it keeps them
                       for k, v in own.items()} for i, own in state["state"].items()}
        part.load_state_dict({**state, "state": moments})
    else:
        own = part.state_dict()
        part.load_state_dict({k: like(v, own[k]) for k, v in state.items()})


def like_weights(saved, weights):
    """Nested dicts, with each tensor in parts as the weight is whose name and shape it has.
    weights: {(name, shape): weight}."""
    return {k: like_weights(v, weights) if isinstance(v, dict) else
            like(v, weights.get((k, v.shape))).clone() if torch.is_tensor(v) else v
            for k, v in saved.items()}


# ------------------------------------------------------------------------------- states in parts
#
# No rank has room for the whole state of a large model. Where models are in parts, each rank writes
# its own to a file of a folder, with torch.distributed.checkpoint (DCP). In the state itself a
# stand-in keeps the place of such a tensor: one of its shape on the meta device, without memory.
# Who reads it may have other parts, or the whole, of each tensor, and reads just that.

def leaves(tree, path=()):
    """What nested dicts hold, by path: {"model/score.weight": ..., ...}."""
    if not isinstance(tree, dict):
        return {"/".join(map(str, path)): tree}
    return {k: v for key, x in tree.items() for k, v in leaves(x, (*path, key)).items()}


def stand_ins(tree):
    """Nested dicts with a stand-in for each tensor that is in parts."""
    if isinstance(tree, dict):
        return {k: stand_ins(v) for k, v in tree.items()}
    return torch.empty(tree.shape, dtype=tree.dtype, device="meta") if sharded(tree) else tree


def write_shards(folder, tree, world):
    """Write the parts in nested dicts of tensors to a folder, of which nothing stays if that fails.
    Returns the checksums of its files, {} where nothing is in parts. All ranks call it."""
    shards = {name: x for name, x in leaves(tree).items() if sharded(x)}
    if world.main:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while it wrote
    if not shards:
        return {}
    import torch.distributed.checkpoint as dcp
    world.barrier()
    try:
        with telling():
            dcp.save(shards, storage_writer=dcp.FileSystemWriter(folder))
    except BaseException:
        if world.main:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    sync_names(folder)
    mine = [*folder.glob(f"__{world.rank}_*"), *[folder / ".metadata"] * world.main]
    sums = world.gather([{file.name: checksum(file) for file in mine}])
    files = {name: crc for some in sums for name, crc in some.items()}
    if world.main and not all((folder / name).exists() for name in files):
        stop(f"{folder.parent} is not the same folder on all machines: choose one that they share")
    return files


def read_shards(folder, tensors):
    """Fill tensors, {name: tensor, in parts or whole}, from a folder of `write_shards`. All ranks
    call it, with the same names."""
    import torch.distributed.checkpoint as dcp
    with open(folder / ".metadata", "rb") as file:
        try:
            Known(file).load()
        except pickle.UnpicklingError as error:
            stop(f"{folder}/.metadata is refused: {error}, and such a pickle can run any code")
    with telling(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is ")  # one process may read, too
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder))


@contextlib.contextmanager
def telling():
    """All ranks fail with what happened to any of them, such as a full disk, and not with DCP's
    list of it."""
    from torch.distributed.checkpoint import CheckpointException
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


class Known(pickle.Unpickler):
    """Refuses what DCP does not write, and would load without a question."""
    NAMES = {"Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
             "MetadataIndex", "StorageMeta", "_StorageInfo", "_MEM_FORMAT_ENCODING", "_get_layout",
             "Size", "float32", "PosixPath", "WindowsPath"}

    def find_class(self, module, name):
        if module.split(".")[0] in ("torch", "pathlib") and name in self.NAMES:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return self.member
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    @staticmethod
    def member(cls, name):
        """getattr, as far as Python 3.11.0 to 3.11.3 need it: for a member of an enumeration."""
        if isinstance(cls, enum.EnumMeta) and name in cls.__members__:
            return cls[name]
        raise pickle.UnpicklingError("it asks for builtins.getattr")


# ------------------------------------------------------------------------- optimiser and batches

def make_optimizer(model, lr, weight_decay, eps=1e-8):
    """AdamW as in the paper (betas .9, .95); matrices decay, biases and norms do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": weight_decay},
                              {"params": rest, "weight_decay": 0.0}],
                             lr=lr, betas=(0.9, 0.95), eps=eps, fused=True)


def take_step(model, optimizer, lr, clip, explode=math.inf):
    """Clip the gradient's norm to `clip`, step at rate lr, clear. Returns the norm before it.

    A gradient that is no number, or whose norm passes `explode`, is thrown away without a step: one
    would be enough to spoil the weights, or Adam's moments, for good. Then NaN is returned.
    """
    total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()
                                           if p.grad is not None])
    norm = float(total.full_tensor() if sharded(total) else total)
    good = math.isfinite(norm) and norm <= explode  # all ranks have the same gradient: they agree
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


def order(n, seed, epoch):
    """A permutation of 0..n-1 for this epoch, the same on every rank and machine.

    An array of 8 bytes a row, where a list would take 36: text in shards has millions of rows.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator).numpy()


def pad(rows, value=0):
    """Lists of ids -> ([B, T] padded on the right, lengths [B])."""
    lengths = torch.tensor([len(r) for r in rows])
    ids = torch.full((len(rows), int(lengths.max())), value, dtype=torch.long)
    for out, row in zip(ids, rows):
        out[: len(row)] = torch.as_tensor(row)
    return ids, lengths


def micro_batches(lengths, rows, tokens=0, copies=None):
    """Row numbers in groups of at most `rows`, similar lengths together: little padding. With
    `tokens`, in groups of at most so many tokens instead (see `groups_by_tokens`)."""
    if tokens:
        return groups_by_tokens(lengths, tokens, copies)
    by_length = sorted(range(len(lengths)), key=lambda i: int(lengths[i]))
    return [by_length[i : i + rows] for i in range(0, len(by_length), rows)]


def scoring_groups(lengths, s, world, copies=None):
    """Row numbers in groups for passes without gradients (validation, scores): with no more tokens,
    pads counted, than a training pass of such rows would have, and so with less memory; 2^14 at
    most. s: settings; copies: see `groups_by_tokens`."""
    longest = max((n * k for n, k in zip(lengths, copies or [1] * len(lengths))), default=0)
    most = s.micro_batch_tokens or s.micro_batch * longest
    return groups_by_tokens(lengths, min(2**14, -(-s.batch // world.size) * longest, most), copies)


def groups_by_tokens(lengths, tokens, copies=None):
    """Row numbers in groups of at most `tokens` tokens, pads counted. A longer row is alone.

    A group's activations then need the same memory whatever the context; in rows they would not:
    256 rows of 1,024 tokens are 3 GB for one hidden layer of GPT-2's MLP, 2^14 tokens 200 MB.
    copies: how many sequences a row stands for, as the completions of a prompt; default one each.
    """
    groups, copies, held = [], copies or [1] * len(lengths), 0
    for i in sorted(range(len(lengths)), key=lambda i: -int(lengths[i])):  # the first is longest
        held += copies[i]
        if not groups or held * int(lengths[groups[-1][0]]) > tokens:
            groups.append([])
            held = copies[i]
        groups[-1].append(i)
    return groups


# ---------------------------------------------------------------------------------- checkpoints
#
# A file is written under another name, synced, and then renamed to one that holds its checksum:
# model-5f3a9c01.pt. So it is whole or not there, and damage is seen. checkpoint.json names the
# files that belong together; its own renaming is the moment from which a new checkpoint counts.

LOADED = {}  # folder -> weights, of the checkpoints that this program began with
OURS = re.compile(r"(model|tokenizer|state)(-\d+)?(-[0-9a-f]{8})?\.(pt|tiktoken)(\.writing)?"
                  r"|state-\d+")  # a folder of shards


def checksum(path):
    """CRC-32 of a file, as eight hexadecimal digits."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(2**24):
            crc = zlib.crc32(piece, crc)
    return f"{crc:08x}"


def whole(path, crc=None):
    """Whether a file is there and has this checksum, or the one that its name says."""
    return path.exists() and checksum(path) == (crc or path.stem.rpartition("-")[2])


def write(path, content):
    """content(file) writes a file, which then appears at once, whole and on the disk."""
    temporary = path.with_name(path.name + ".writing")
    try:
        with open(temporary, "wb") as file:
            content(file)
            file.flush()
            os.fsync(file.fileno())
        if path.suffix != ".json":
            path = path.with_stem(f"{path.stem}-{checksum(temporary)}")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk even a part of a file is in the way
        raise
    sync_names(path.parent)
    return path.name


def sync_names(folder):
    """Let the names in a folder be on the disk, too."""
    file = os.open(folder, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def save(path, model, tokenizer, settings, **facts):
    """Write a checkpoint folder: the weights, the tokenizer and checkpoint.json.

    At any moment there is one whole checkpoint in it, the old one or the new one. The states of the
    run that ends with it are no longer needed and go, like the old one's files. All ranks call it,
    as each may have a part of the weights; rank 0 writes.
    """
    path, weights = Path(path), full(model.state_dict())
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    refuse_others(path)
    path.mkdir(parents=True, exist_ok=True)
    names = {"weights": write(path / "model.pt", lambda f: torch.save(weights, f)),
             "tokenizer": tokenizer.name}
    if tokenizer.source is not None:
        names["tokenizer"] = write(path / "tokenizer.tiktoken", lambda f: f.write(tokenizer.source))
    meta = {"kind": kind(model).__name__, "config": dataclasses.asdict(model.config), **names,
            "fingerprint": tokenizer.fingerprint, "template": tokenizer.template,
            "settings": dataclasses.asdict(settings), **facts}
    write(path / "checkpoint.json", lambda f: f.write(json.dumps(meta, indent=1).encode()))
    tidy(path, names.values())


def tidy(path, keep):
    """Remove what runs have left in a checkpoint's folder: all files of ours but those to keep."""
    for file in Path(path).iterdir():
        if OURS.fullmatch(file.name) and file.name not in keep:
            remove(file)


def remove(path):
    """Remove a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def refuse_others(path):
    """Stop where a folder holds anything that no stage wrote, as with --out=out."""
    for file in sorted(Path(path).glob("*")):
        if not OURS.fullmatch(file.name) and not re.fullmatch(
                r"(checkpoint\.json|log\.jsonl)(\.writing)?", file.name):
            stop(f"{path} holds {file.name}, which is no part of a checkpoint: choose another "
                 "--out")


def load(path, classes, hint):
    """Read a checkpoint written by `save`, or a GPT-2 in Hugging Face's format (huggingface.py).

    Returns (model, tokenizer, its checkpoint.json).
    classes: {"GPT": GPT, ...}, the kinds that the caller can use; hint: the command to run first.
    """
    path = Path(path)
    if not (path / "checkpoint.json").exists():
        if huggingface.known(path):
            return huggingface.load(path, classes)
        stop(f"{path} has no checkpoint: run `{hint}` first")
    meta = records.read_json(path / "checkpoint.json", hint)
    for key in ("kind", "config", "weights", "tokenizer"):
        if key not in meta:
            stop(f"{path}/checkpoint.json has no {key!r}: run `{hint}` again")
    if meta["kind"] not in classes:
        stop(f"{path} holds a {meta['kind']}, expected {' or '.join(classes)}")
    LOADED[str(path)] = meta["weights"]
    for name in (meta["weights"], meta["tokenizer"]):
        if name != "gpt2" and not whole(path / name):
            stop(f"{path}/{name} is damaged (its checksum differs): run `{hint}` again")
    cls = classes[meta["kind"]]
    try:
        model = cls(cls.config_class(**meta["config"]))
    except (TypeError, ValueError, RuntimeError) as error:
        stop(f"{path}/checkpoint.json asks for a model that is not ours: {error}")
    huggingface.fill(model, huggingface.read_weights(path / meta["weights"]),
                     path / meta["weights"])
    tokenizer = load_tokenizer(meta["tokenizer"], path)
    huggingface.match(tokenizer, model.config, path)
    if meta.get("fingerprint", tokenizer.fingerprint) != tokenizer.fingerprint:
        stop(f"{path}/{meta['tokenizer']} is not the tokenizer that the model was trained with: "
             f"run `{hint}` again")
    tokenizer.template = meta.get("template", tokenizer.template)
    return model, tokenizer, meta


def load_for(tokenizer, path, classes, hint):
    """The model of `load` that is to read another model's ids: stops where its tokenizer is not
    this one."""
    model, own, _ = load(path, classes, hint)
    if own.fingerprint != tokenizer.fingerprint:
        stop(f"{path} has another tokenizer, {own.name}, than the model whose text it is to read, "
             f"{tokenizer.name}: both must begin with the same --init")
    return model

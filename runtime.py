"""What the three scripts share and a student may skip at first reading.

    parse        settings: one dataclass a script, overridden by presets and --name=value
    World        one process, or the ranks that torchrun started
    cosine       the learning-rate schedule
    micro_batches, scoring_groups: ragged rows in pieces that fit
    save, load   checkpoints: folders of plain files, never half-visible
    Log          a JSONL line a step, and the same numbers on a tqdm bar
"""
import contextlib
import dataclasses
import difflib
import inspect
import json
import math
import os
import re
import shutil
import sys
import time
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import huggingface
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


# ---------------------------------------------------------------------------------------- world

class World:
    """The ranks of this run: one process alone, or those that torchrun started.

    Each rank computes on its share of every batch. A loss is the sum over a rank's tokens divided
    by the tokens of the whole world, so that results do not depend on how many ranks there are.
    """

    def __init__(self, seed=0, device="auto"):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device == "auto":
            device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            if "OMP_NUM_THREADS" not in os.environ and self.device.type == "cpu":
                torch.set_num_threads(max(1, os.cpu_count() // self.size))
        self.main = self.rank == 0
        torch.manual_seed(seed + self.rank)  # dropout differs by rank; models start from `build`
        self.seed, self.started = seed, time.time()

    def print(self, *args):
        if self.main:
            tqdm.write(" ".join(map(str, args)))

    def share(self, rows):
        """This rank's part of a list: every size-th row, so that the union is the whole."""
        return rows[self.rank :: self.size]

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

    def wrap(self, model):
        """Let gradients be averaged over ranks on each backward pass (see `sync`)."""
        model.to(self.device)
        return DistributedDataParallel(model) if self.size > 1 else model

    def seconds(self):
        return round(time.time() - self.started, 1)

    def close(self):
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def sync(model, last):
    """Within this context backward passes exchange gradients only if `last`: once a step."""
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def bare(model):
    """The model itself, without the wrapper that torchrun's ranks need."""
    return model.module if isinstance(model, DistributedDataParallel) else model


# ------------------------------------------------------------------------- optimiser and batches

def make_optimizer(model, lr, weight_decay, eps=1e-8):
    """AdamW as in the paper (betas .9, .95); matrices decay, biases and norms do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": weight_decay},
                              {"params": rest, "weight_decay": 0.0}],
                             lr=lr, betas=(0.9, 0.95), eps=eps, fused=True)


def take_step(model, optimizer, lr, clip):
    """Clip the gradient's norm to `clip`, step at rate lr, clear. Returns the norm before it."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def cosine(step, steps, peak, floor=0.1, warmup=0):
    """Cosine from `peak` to floor * peak over `steps`, after a linear warm-up."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def order(n, seed, epoch):
    """A permutation of 0..n-1 for this epoch, the same on every rank and machine."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator).tolist()


def pad(rows, value=0):
    """Lists of ids -> ([B, T] padded on the right, lengths [B])."""
    lengths = torch.tensor([len(r) for r in rows])
    ids = torch.full((len(rows), int(lengths.max())), value, dtype=torch.long)
    for out, row in zip(ids, rows):
        out[: len(row)] = torch.as_tensor(row)
    return ids, lengths


def micro_batches(lengths, rows):
    """Row numbers in groups of at most `rows`, similar lengths together: little padding."""
    by_length = sorted(range(len(lengths)), key=lambda i: int(lengths[i]))
    return [by_length[i : i + rows] for i in range(0, len(by_length), rows)]


def scoring_groups(lengths, tokens=2**14):
    """Row numbers in groups of at most `tokens` tokens, pads counted, for passes without gradients.

    A group's activations then need the same memory whatever the context; in rows they would not:
    256 rows of 1,024 tokens are 3 GB for one hidden layer of GPT-2's MLP, these tokens 200 MB.
    """
    groups = []
    for i in sorted(range(len(lengths)), key=lambda i: -int(lengths[i])):  # the first is longest
        if not groups or (len(groups[-1]) + 1) * int(lengths[groups[-1][0]]) > tokens:
            groups.append([])
        groups[-1].append(i)
    return groups


# ---------------------------------------------------------------------------------- checkpoints

def save(path, model, tokenizer, settings, **facts):
    """Write a checkpoint folder: model.pt, tokenizer.tiktoken and checkpoint.json.

    It is written under a temporary name and renamed, so that a checkpoint is whole or not there.
    """
    path, temporary = Path(path), Path(f"{path}.writing")
    refuse_others(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    torch.save(model.state_dict(), temporary / "model.pt")
    meta = {"kind": type(model).__name__, "config": dataclasses.asdict(model.config),
            "tokenizer": tokenizer.save(temporary), "settings": dataclasses.asdict(settings),
            "crc32": zlib.crc32((temporary / "model.pt").read_bytes()), **facts}
    (temporary / "checkpoint.json").write_text(json.dumps(meta, indent=1))
    log = path / "log.jsonl"
    if log.exists():
        shutil.copy(log, temporary)
    for file in temporary.iterdir():
        with open(file, "rb") as f:
            os.fsync(f.fileno())
    old = Path(f"{path}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def refuse_others(path):
    """Stop where a folder holds anything that `save` did not write: saving would replace it."""
    ours = {"model.pt", "checkpoint.json", "tokenizer.tiktoken", "log.jsonl"}
    others = {p.name for p in Path(path).glob("*")} - ours
    if others:
        stop(f"{path} holds {sorted(others)[0]}, which is no part of a checkpoint: choose another "
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
    meta = json.loads((path / "checkpoint.json").read_text())
    if meta["kind"] not in classes:
        stop(f"{path} holds a {meta['kind']}, expected {' or '.join(classes)}")
    data = (path / "model.pt").read_bytes()
    if zlib.crc32(data) != meta["crc32"]:
        stop(f"{path}/model.pt is damaged (its checksum differs): run `{hint}` again")
    weights = huggingface.read_weights(path / "model.pt")
    cls = classes[meta["kind"]]
    model = cls(cls.config_class(**meta["config"]))
    huggingface.fill(model, weights, path / "model.pt")
    tokenizer = load_tokenizer(meta["tokenizer"], path)
    huggingface.match(tokenizer, model.config, path)
    return model, tokenizer, meta


class Log:
    """log.jsonl in the output folder, one line a step, and the same numbers on the bar."""

    def __init__(self, world, folder, steps, name, shown=()):
        self.world, self.shown = world, shown
        self.file = self.bar = None
        if world.main:
            refuse_others(folder)
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.file = open(Path(folder) / "log.jsonl", "w")
            self.bar = tqdm(total=steps, desc=name, dynamic_ncols=True, mininterval=0.5)

    def step(self, **numbers):
        if not self.world.main:
            return
        self.file.write(json.dumps({k: round_off(v) for k, v in numbers.items()}) + "\n")
        self.file.flush()
        self.bar.update()
        shown = {k: f"{numbers[k]:.3g}" for k in self.shown if k in numbers}
        self.bar.set_postfix(shown, refresh=False)

    def close(self):
        if self.world.main:
            self.file.close()
            self.bar.close()


def round_off(x):
    return float(f"{x:.6g}") if isinstance(x, float) else x

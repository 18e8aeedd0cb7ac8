"""A training run that can be interrupted: its steps, log, states on disk and errors.

    run = Training(world, s, steps, ..., model=model, optimizer=optimizer)
    for rows in run.steps(batches):      from where the run stopped
        ...
        run.log(loss=loss, ...)          a JSONL line a step, and the same numbers on a tqdm bar

A run that was killed at any moment continues with --resume and ends with the same bits. A state has
everything that a step changes; the rest (the order of the data, the learning rate, the noise of
samples and of dropout) depends only on the settings and the number of the step.

    state-000300-1c0e9b52.pt    at step 300; the name ends with the file's checksum
    state-000300/               with --shard, each rank's part of the weights and moments; the file
                                above is written last, and has the checksums of all files in it
"""
import dataclasses
import errno
import functools
import inspect
import json
import math
import os
import pickle
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from data import records
from runtime import plan
from runtime.checkpoint import (LOADED, facts_of, forget, is_intact, made_from, refuse_others,
                                remove, tidy, write)
from runtime.machine import keep_freed_memory
from runtime.sharding import bare, gathered, load_into, placed_as_weights
from runtime.states import leaves, read_shards, stand_ins, write_shards
from runtime.world import World, restarts
from settings import parse, stop
from startup import end_by_signal

# Settings that a resumed run may change: they affect no results, or only later ones.
FREE = ("activation_checkpointing", "device", "explode", "iterations", "max_skips", "micro_batch",
        "micro_batch_tokens", "offload", "out", "resume", "save_every", "shard", "show", "timeout")


# What every state has; newer ones have more.
STATE = {"settings", "steps", "step", "skipped", "in_a_row", "seconds", "noise", "parts"}


def script_of(settings):
    """The name of the script whose settings these are, a class or an object."""
    cls = settings if isinstance(settings, type) else type(settings)
    return Path(inspect.getfile(cls)).stem


def start(settings, presets):
    """(the settings of this run, its World). With --plan: prints what the run would cost, and
    stops."""
    script = script_of(settings)
    forget()
    s = parse(settings, presets, plan=functools.partial(plan.show, script))
    return s, World(s.seed, s.device, s.timeout)


class Training:
    """The steps of one run, with all that they change.

    shown: which numbers of the log are on the bar; parts: the content of a state by name: models,
    optimisers, and dicts and lists that the script changes in place.
    """

    def __init__(self, world, s, steps, shown, **parts):
        self.world, self.s, self.total, self.shown, self.parts = world, s, steps, shown, parts
        self.script, self.folder = script_of(s), Path(s.out)
        self.step = self.seen = self.skipped = self.in_a_row = 0
        self.file = self.bar = None
        self.terminated = False
        if world.device.type == "cpu":  # as many processes as torchrun started on this machine
            bytes_ = plan.planned(self.script, s, world.size)
            keep_freed_memory(int(os.environ.get("LOCAL_WORLD_SIZE", 1)) * bytes_)
        self.hook, sys.excepthook = sys.excepthook, self.report
        self.handler = signal.signal(signal.SIGTERM, self.terminate)
        refuse_others(s.out)
        if self.folder.resolve() in {Path(name).resolve() for name in LOADED}:
            stop(f"--out={s.out} holds a model that this run reads, and would replace: choose "
                 "another --out")
        resume = s.resume or float(world.sum(restarts())) > 0
        found = self.find(resume)
        if found == "checkpoint.json":
            facts = self.finished()
            self.compare(facts)
            self.compare_length(facts["settings"])
            world.print(f"{s.out} is finished: there is nothing to resume")
            self.close()
            raise SystemExit(0)
        if found:
            self.restore(found)
            if self.step > steps:
                stop(f"{s.out} has done {self.step} steps, and only {steps} are asked for")
            world.print(f"{s.out}: resumed at step {self.step} of {steps}")
        else:
            if resume:
                world.print(f"{s.out} has no state to resume: it starts from the beginning")
            self.save()  # a full or read-only disk fails now, not after hours
        if world.main:
            self.file = open(self.folder / "log.jsonl", "a+b")
            self.file.seek(0)
            self.file.truncate(sum(len(self.file.readline()) for _ in range(self.step)))
            self.bar = tqdm(total=steps, initial=self.step, desc=s.out, dynamic_ncols=True,
                            mininterval=0.5)

    # ------------------------------------------------------------------------------------- steps

    def steps(self, items):
        """The items that are still to do, counted over all calls. After each one, saves a state if
        it is due, or if a rank was asked to end."""
        for item in items:
            self.seen += 1
            if self.seen <= self.step:
                continue
            yield item
            self.step += 1
            ends = float(self.world.sum(float(self.terminated))) > 0
            if ends or self.step % self.s.save_every == 0 or self.step == self.total:
                self.save()
            if ends:
                self.world.print(f"{self.s.out}: asked to end, after step {self.step} of "
                                 f"{self.total}; --resume goes on from there")
                self.close()
                raise SystemExit(0)
        if self.step == self.total:
            self.close_log()
        if self.seen == self.step == self.total:
            self.judge_skips()

    def log(self, **numbers):
        """Log the numbers of this step. Counts skipped steps (see `take_step`) and gives up after
        s.max_skips of them in a row."""
        bad = any(math.isnan(v) for k, v in numbers.items() if k.endswith("grad_norm"))
        self.skipped, self.in_a_row = self.skipped + bad, (self.in_a_row + 1) * bad
        if self.skipped:
            numbers["skipped"] = self.skipped
        if self.world.main:
            line = json.dumps({k: round_off(v) for k, v in numbers.items()})
            self.file.write(line.encode() + b"\n")
            self.file.flush()
            self.bar.update()
            shown = {k: f"{numbers[k]:.3g}" for k in (*self.shown, "skipped")
                     if numbers.get(k) is not None}
            self.bar.set_postfix(shown, refresh=False)
        if self.in_a_row >= self.s.max_skips:
            self.give_up(f"{self.in_a_row} steps in a row were skipped, up to step {self.step + 1}")

    def give_up(self, why, skips=True):
        s = self.s
        cause = f": their gradients were no numbers, or larger than --explode={s.explode:g}"
        stop(f"{why}{cause * skips}. Start again with a lower --lr (now {s.lr:g}), a longer "
             f"--warmup (now {s.warmup}) or a tighter --clip (now {s.clip:g}; 0 is none)")

    def judge_skips(self):
        """After the last step: stops if the model was never changed, so that nobody takes it for a
        trained one; else tells how many steps were skipped. The first optimiser is the model's; it
        has a state from its first step on."""
        optimizer = next(p for p in self.parts.values() if isinstance(p, torch.optim.Optimizer))
        if not optimizer.state:
            self.give_up(f"all {self.total} steps were skipped")
        if self.skipped:
            self.world.print(f"{self.s.out}: {self.skipped} of {self.total} steps were skipped, or "
                             "a part of them: see grad_norm in log.jsonl")

    @torch.no_grad()
    def judge(self, model, *measured):
        """Before the result is saved: stops if its weights, its answer to two tokens, or a number
        that was measured of it (None: was not) is NaN or infinite. A last step can do that."""
        with gathered(model) as whole:
            ids = torch.arange(2, device=self.world.device)[None]
            answer = whole(ids, ids)  # 0, 1 serve as a GPT's mask, and as a ScalarGPT's positions
            tensors = (*whole.parameters(), answer[0] if isinstance(answer, tuple) else answer)
            good = all(bool(x.isfinite().all()) for x in tensors)
        if not good or not all(math.isfinite(x) for x in measured if x is not None):
            self.give_up("the model gives no numbers any more", skips=False)

    def terminate(self, *_):
        """SIGTERM: end after this step. Only sets a flag: a step must not be cut."""
        self.terminated = True

    # ------------------------------------------------------------------------------------ states

    def states(self):
        """The files of the states in the folder, the latest first."""
        return sorted(self.folder.glob("state-*-*.pt"), reverse=True,
                      key=lambda file: int(file.name.split("-")[1]))

    def shards(self, name):
        """The folder with the parts of a state, by the name of its file."""
        return self.folder / name.rpartition("-")[0]

    def find(self, resume):
        """The file to continue from: the last intact state, checkpoint.json if the run is finished,
        or "" if there is neither; all ranks agree. Removes damaged states."""
        main, checkpoint = self.world.main, self.folder / "checkpoint.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if main:
            records.claim(self.folder)
        names = self.world.gather([[file.name for file in self.states()]])[0]
        if not resume:
            if names and main:
                print(f"{self.folder}: an unfinished run is here and is started over; --resume "
                      "would go on with it", file=sys.stderr)
            return ""
        if main:
            self.keep(names)
        for i, name in enumerate(names):
            if self.is_whole(name):
                return name
            if main:
                print(f"{self.folder / name} is damaged (its checksum differs): the state before "
                      "it is taken", file=sys.stderr)
                self.keep(names[i + 1 :])
        finished = self.world.gather([checkpoint.exists()])[0]
        if finished and main:  # a killed run may have left files that `save` removes
            meta = self.finished()
            tidy(self.folder, (meta["weights"], meta["tokenizer"]))
        return checkpoint.name if finished else ""

    def finished(self):
        """What checkpoint.json says, of the run that has ended here."""
        return facts_of(self.folder, f"python {self.script}.py")

    def read(self, name):
        """The file of a state. Its tensors stay on the disk until they are used."""
        try:
            state = torch.load(self.folder / name, "cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError):  # whole, but no state
            state = None
        if not isinstance(state, dict) or not STATE <= state.keys():
            stop(f"{self.folder / name} is no state of this program: delete it, and --resume takes "
                 "the one before")
        return state

    def is_whole(self, name):
        """Whether a state is intact; each rank checks its share of the shards."""
        file, files = self.folder / name, None
        if self.world.main and is_intact(file):
            files = self.read(name).get("files", {})
        files = self.world.gather([files])[0]
        good = files is not None and all(is_intact(self.shards(name) / other, crc)
                                         for other, crc in self.world.share([*files.items()]))
        return float(self.world.sum(good)) == self.world.size

    def keep(self, names):
        """Remove all other states, and half-written ones."""
        folders = [self.shards(name).name for name in names]
        for file in self.folder.glob("state-*"):
            if file.name not in (*names, *folders):
                remove(file)

    def tree(self):
        """Everything that a step changes, as nested dicts."""
        return {k: bare(v).state_dict() if hasattr(v, "state_dict") else v
                for k, v in self.parts.items()}

    def save(self):
        """Write a state, and only then remove all but the last two."""
        noise = self.world.gather([rng_state(self.world.device)])  # for code a reader adds
        name, tree = f"state-{self.step:06}", self.tree()
        files = write_shards(self.folder / name, tree, self.world)
        if not self.world.main:
            return
        if self.file:
            records.sync(self.file)  # the log is never behind a state
        state = {"settings": dataclasses.asdict(self.s), "steps": self.total, "step": self.step,
                 "skipped": self.skipped, "in_a_row": self.in_a_row, "made_from": made_from(),
                 "seconds": self.world.seconds(), "noise": noise, "parts": stand_ins(tree),
                 "files": files}
        name = write(self.folder / f"{name}.pt", lambda f: torch.save(state, f))
        self.keep([name] + [f.name for f in self.states() if f.name != name][: bool(self.step)])

    def restore(self, name):
        """Load a state. The number of ranks that wrote it or read it does not matter, nor whether
        the models were or are in parts. Shards are read last, each into its place."""
        state = self.read(name)
        self.compare(state)
        if state["steps"] != self.total and not hasattr(self.s, "iterations"):
            stop(f"{self.s.data} has changed: it makes {self.total} steps, those of {self.s.out} "
                 f"were {state['steps']}. Leave --resume out to start again")
        weights = {(k, v.shape): v for part in self.parts.values()
                   if isinstance(part, torch.nn.Module) for k, v in bare(part).state_dict().items()}
        for key, saved in state["parts"].items():
            part = self.parts[key]
            if hasattr(part, "load_state_dict"):
                load_into(bare(part), saved)
            elif isinstance(part, dict):
                part.update(placed_as_weights(saved, weights))
            else:
                part[:] = saved
        if state.get("files"):
            own = leaves(self.tree())
            read_shards(self.shards(name), {k: own[k] for k, v in leaves(state["parts"]).items()
                                            if torch.is_tensor(v) and v.is_meta})
        self.step, self.skipped, self.in_a_row = (state[k] for k in ("step", "skipped", "in_a_row"))
        self.world.started -= state["seconds"]
        if self.world.rank < len(state["noise"]):
            set_rng_state(state["noise"][self.world.rank], self.world.device)

    def compare(self, facts):
        """Stop if this run's settings, data or models differ from those of the run to resume.
        facts: of a state or of a finished run; older ones do not have all of them."""
        now, settings = dataclasses.asdict(self.s), facts["settings"]
        other = [k for k in now if k not in FREE and settings.get(k, now[k]) != now[k]]
        if other:
            stop(f"{self.s.out} is a run with " + " ".join(f"--{k}={settings[k]}" for k in other)
                 + ", not " + " ".join(f"--{k}={now[k]}" for k in other)
                 + ": give it the same settings, or leave --resume out to start again")
        before, read = facts.get("made_from", facts.get("loaded", {})), made_from()
        for name in {**before, **(read if "made_from" in facts else {})}:
            if before.get(name) != read.get(name):
                stop(f"{name} has changed since {self.s.out} was started from it: put it back, or "
                     "leave --resume out to start again")

    def compare_length(self, settings):
        """Stop if a finished run is to go on: its states are gone. settings: the finished run's."""
        done = settings.get("iterations")
        if done is not None and done != self.s.iterations:
            stop(f"{self.s.out} is finished, with --iterations={done}: only an interrupted run can "
                 "be made longer; leave --resume out to start again")

    # ------------------------------------------------------------------------------------ faults

    def explain(self, error):
        """What to do about a system error, in one line; None for other errors."""
        s, again = self.s, f" --resume goes on from the last state ({self.last_state()})."
        text = str(error)
        if isinstance(error, KeyboardInterrupt):
            return f"interrupted in step {self.step + 1} of {self.total}.{again}"
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in text:
            gpu = self.world.device.type == "cuda"
            bytes_, changes = plan.advice(self.script, s, self.world.size, gpu)
            say = lambda name, value, less: (
                f"--{name}" + f"={value}" * (value is not None) + f" (now {getattr(s, name)})"
                + (f": {less / 1e6:,.0f} MB" if less else ""))
            return (f"out of memory in step {self.step + 1}, planned for {bytes_ / 1e6:,.0f} MB. "
                    f"These lower it: {'; '.join(say(*x) for x in changes)}. --micro_batch, "
                    f"checkpointing, shards and offloading change no result.{again}")
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return (f"{error.filename or s.out}: {error.strerror or text}. "
                    + (f"Make room on the disk.{again}" if full else
                       "The folder must be one that can be written to: see --out."))
        if self.world.size > 1 and (isinstance(error, dist.DistError) or "gloo" in text):
            gone = self.world.roll_call()
            return (f"rank {', '.join(map(str, gone)) or '?'} died, or did not answer for --timeout"
                    f"={s.timeout} seconds, in step {self.step + 1}.{again}")
        return None

    def last_state(self):
        return next((file.name for file in self.states()), "none yet")

    def report(self, kind, error, trace):
        """sys.excepthook while the run lasts."""
        line = self.explain(error)
        self.close_log()
        if line is None:
            self.hook(kind, error, trace)
        else:
            rank = f"rank {self.world.rank}: " if self.world.size > 1 else ""
            print(f"error: {rank}{line}", file=sys.stderr)
        if issubclass(kind, KeyboardInterrupt):
            end_by_signal()

    # --------------------------------------------------------------------------------------- end

    def close_log(self):
        if self.bar:
            self.bar.close()
            self.file.close()

    def close(self):
        """The end of the program: gives errors and signals back."""
        self.close_log()
        records.release(self.folder)
        signal.signal(signal.SIGTERM, self.handler or signal.SIG_DFL)
        sys.excepthook = self.hook
        self.world.close()


def rng_state(device):
    """[the state of the CPU's generator, that of the GPU's]"""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda"
                                      else [])


def set_rng_state(state, device):
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


def round_off(x):
    """Six digits; None for NaN and infinity, which JSON does not have."""
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    return x

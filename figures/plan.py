"""The runs: plain command lines of the project's scripts, each with the file that shows it is done.

    Run          what it is, its command, its file, the runs that come before it
    DEMO         the runs of `make demo`, which all figures share
    Scale        how large the towns and the models are, and the flags that this adds to a run
    ordered      the runs that some need, each once, in an order that works
    carry_out    runs them in each world; what is done is skipped, what was cut off is resumed

Every world is a folder, such as runs/seed-1, in which the scripts find their default paths: what
`make seeds` has already trained there is not trained again.
"""
import json
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import ppo
import reward
import settings
import sft
from runtime import processes
from settings import stop

ROOT = Path(settings.__file__).parent
BATCH = sft.PRESETS["base"]["batch"]
UNSEEDED = ("figures.instructions",)  # scripts that draw nothing
SECONDS = "out/logs/seconds.jsonl"  # [name of a run, CPU seconds] a line, in a world's folder
SIZES = ("small", "mid", "large")
RATES = {"base": sft.PRESETS["base"]["lr"], "init": sft.PRESETS["init"]["lr"],
         "sft": sft.Settings.lr, "rm": reward.Settings.lr, "ppo": ppo.Settings.lr,
         "value": ppo.Settings.value_lr}  # what the scripts take by default, of the demo's models


@dataclass(frozen=True)
class Run:
    what: str  # for the progress line
    command: str  # a script and its flags
    done: str  # the file that is there when it is done, from the world's folder
    needs: tuple = ()  # names of runs


def model(what, command, out, *needs):
    """A run that trains a model into a folder."""
    return Run(what, f"{command} --out={out}", f"{out}/checkpoint.json", needs)


def measured(policy, reward, out, needs, flags=""):
    """A run that samples from a policy and scores its answers (figures/measure.py)."""
    return Run(f"answers of {policy}, scored by {reward}", f"-m figures.measure {flags} "
               f"--policy={policy} --reward={reward} --out={out}", out, needs)


DEMO = {
    "world": Run("the town", "-m data.toy.world", "out/toy/world.json"),
    "base": Run("pretraining", "sft.py --preset=base", "out/base/checkpoint.json", ("world",)),
    "sft": Run("step 1: SFT", "sft.py", "out/sft/checkpoint.json", ("base",)),
    "init": Run("RL initialisation", "sft.py --preset=init", "out/init/checkpoint.json",
                ("base",)),
    "samples": Run("samples to rank", "-m labels.sample", "out/toy/completions_train.jsonl",
                   ("sft", "init")),
    "samples valid": Run("samples held out", "-m labels.sample --split=valid",
                         "out/toy/completions_valid.jsonl", ("sft", "init")),
    "labels": Run("labels", "-m labels.simulated", "out/toy/rankings_train.jsonl", ("samples",)),
    "labels valid": Run("labels held out", "-m labels.simulated --split=valid",
                        "out/toy/rankings_valid.jsonl", ("samples valid", "labels")),
    "rm": Run("step 2: reward model", "reward.py", "out/rm/checkpoint.json",
              ("labels", "labels valid")),
    "ppo": Run("step 3: PPO", "ppo.py --preset=ppo", "out/ppo/checkpoint.json", ("rm",)),
    "ppo-ptx": Run("step 3: PPO-ptx", "ppo.py", "out/ppo-ptx/checkpoint.json", ("rm",)),
    "demo": Run("evaluation", "evaluate.py", "out/demo/results.json", ("ppo", "ppo-ptx")),
}
MODELS = {"base": "out/base", "sft": "out/sft", "ppo": "out/ppo", "ppo-ptx": "out/ppo-ptx"}


@dataclass(frozen=True)
class Scale:
    """How large the towns and the models are. widths: of the three sizes; right_at: the width for
    which the scripts' own rates are right; batch: rows a step of pretraining, 0: the script's own;
    extra: flags that a script gets besides, by its name; whole: whether grids are run in full."""
    widths: tuple = (64, 128, 256)  # 0.25, 0.9 and 3.4 million parameters
    right_at: int = 128
    batch: int = 0
    extra: tuple = ()
    whole: bool = True
    rounds: int = 3  # of feedback (figures/rounds.py)

    def few(self, values, ends=2):
        """A grid; its two ends, or its last value alone, where it is not run in full."""
        return list(values) if self.whole else [values[0], values[-1]][-ends:]

    def rate(self, step, size="mid"):
        """The learning rate of a step for models of a size. It falls with the width; that of
        pretraining grows with the square root of the batch."""
        larger = (self.batch or BATCH) / BATCH if step == "base" else 1
        return RATES[step] * self.right_at / self.widths[SIZES.index(size)] * larger**0.5

    def flags(self, run):
        """The flags that this scale adds to a run."""
        script, step = script_of(run.command), step_of(run.command)
        flags = [dict(self.extra).get(script, "")]
        if step == "base":
            flags.append(f"--batch={self.batch}" if self.batch else "")
            given = "--n_embd=" in run.command or self.widths[1] == sft.Settings.n_embd
            flags.append("" if given else f"--n_embd={self.widths[1]}")
        if step and self.widths[1] != self.right_at:
            flags.append("" if "--lr=" in run.command else f"--lr={self.rate(step):g}")
            flags.append(f"--value_lr={self.rate('value'):g}" if step == "ppo" else "")
        return " ".join(filter(None, flags))


SCALES = {
    "demo": Scale(),
    # shapes and files, not phenomena: what .ci/run does
    "small": Scale((8, 16, 32), right_at=16, extra=(
        ("data.toy.world", "--documents=300 --vocab=320 --demonstrations=24 --prompts=64 "
                           "--heldout=24 --group=8 --templated=40"),
        ("sft.py", "--epochs=1 --n_layer=1 --n_head=2 --block_size=176 --micro_batch=8 "
                   "--warmup=2"),
        ("labels.sample", "--max_new_tokens=8 --k_max=5"), ("reward.py", "--batch=8"),
        ("ppo.py", "--batch=8 --minibatch=4 --iterations=2 --ptx_rows=2 --max_new_tokens=8"),
        ("evaluate.py", "--max_new_tokens=8"),
        ("figures.measure", "--max_new_tokens=8 --prompts=12 --copies=4")), whole=False),
    # for a GPU: 3, 13 and 51 million parameters, which read a longer text in larger batches, with
    # smaller heads than two would be
    "large": Scale((256, 512, 1024), batch=32, extra=(("data.toy.world", "--documents=200000"),
                                                   ("sft.py", "--n_head=4"))),
}


def script_of(command):
    """The name of the script or module of a command."""
    first, *rest = command.split()
    return rest[0] if first == "-m" else first


def step_of(command):
    """The name in RATES of what a command trains; None where it trains nothing."""
    step = {"sft.py": "sft", "reward.py": "rm", "ppo.py": "ppo"}.get(script_of(command))
    preset = re.search(r"--preset=(\S+)", command)
    return preset[1] if step == "sft" and preset else step


def ordered(graph, wanted):
    """[name of run]: all that `wanted` need, each once, what is needed first."""
    out = []

    def visit(name):
        if name not in out:
            for other in graph[name].needs:
                visit(other)
            out.append(name)

    for name in wanted:
        visit(name)
    return out


def words_of(run, seed, scale, folder):
    """The whole command as a list, with --resume where an interrupted run has left a state."""
    words = shlex.split(f"{run.command} {scale.flags(run)}")
    if "--seed=" not in run.command and script_of(run.command) not in UNSEEDED:
        words.append(f"--seed={seed}")
    states = (folder / run.done).parent.glob("state-*.pt")
    return words + ["--resume"] * any(states)


def start(words, folder, log, threads):
    """Run one of our programs in a folder, its output in a file. Returns (its exit code, the CPU
    seconds that it took; None where the system does not tell)."""
    first = ["-m", words[1]] if words[0] == "-m" else [str(ROOT / words[0])]
    rest = words[2 if words[0] == "-m" else 1:]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        with processes.running([sys.executable, *first, *rest], cwd=folder, env=environment,
                               stdout=file, stderr=subprocess.STDOUT) as process:
            if not hasattr(os, "wait4"):
                return process.wait(), None
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


class Progress:
    """One line for each run that ends, with the time that the others will take if they are like
    those before them."""

    def __init__(self, total):
        self.total, self.done, self.started = total, 0, time.time()

    def __call__(self, seed, what, seconds):
        self.done += 1
        left = (time.time() - self.started) / self.done * (self.total - self.done) / 60
        print(f"[{self.done:3}/{self.total}] world {seed}: {what} ({seconds:.0f} s); "
              f"about {left:.0f} min left", flush=True)


def missing(graph, wanted, folder):
    """The names of the runs that `wanted` need and that are not done in a world's folder."""
    return [n for n in ordered(graph, wanted) if not (folder / graph[n].done).exists()]


def carry_out_one(name, run, seed, scale, folder, threads):
    """One run in a world's folder. Returns how long it took, in seconds, and why it failed, or
    None."""
    log = folder / "out/logs" / f"{re.sub('[ /]', '-', name)}.txt"
    started = time.time()
    (folder / run.done).parent.mkdir(parents=True, exist_ok=True)
    code, busy = start(words_of(run, seed, scale, folder), folder, log, threads)
    took = time.time() - started
    if code or not (folder / run.done).exists():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = (lines or ["no reason"])[-1].removeprefix("error: ")
        return took, f"world {seed}: {run.what} failed: {reason}; all it said is in {log}"
    with open(folder / SECONDS, "a", encoding="utf-8") as file:
        file.write(json.dumps([name, round(took if busy is None else busy, 1)]) + "\n")
    return took, None


def carry_out(graph, wanted, folders, scale, jobs=0):
    """Run all that `wanted` need in each world, {seed: its folder}; `jobs` runs at the same time,
    0: one for each core. Stops with the reason of the first run that fails, when those beside it
    have ended."""
    lists = [[(seed, name) for name in missing(graph, wanted, folder)]
             for seed, folder in folders.items()]
    waiting = [key for keys in zip_longest(*lists) for key in keys if key]  # the worlds in turn
    progress, left, running, problem = Progress(len(waiting)), set(waiting), {}, None
    cores = os.cpu_count() or 1
    jobs = jobs or cores
    with ThreadPoolExecutor(jobs) as pool, processes.ending_together(
            "goes on where it was"):
        while running or waiting and not problem:
            for seed, name in list(waiting) if not problem else []:
                ready = not any((seed, other) in left for other in graph[name].needs)
                if ready and len(running) < jobs:
                    waiting.remove((seed, name))
                    running[pool.submit(carry_out_one, name, graph[name], seed, scale,
                                        folders[seed], max(1, cores // jobs))] = seed, name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                seed, name = running.pop(future)
                took, why = future.result()
                problem = problem or why
                if not why:
                    left.remove((seed, name))
                    progress(seed, graph[name].what, took)
            if processes.ASKED.is_set():
                problem = problem or "asked to end"
    if problem:
        stop(problem)

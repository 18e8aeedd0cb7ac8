"""What a log shows of a planted defect: a short real run with it, beside the same run without it.

    python -m exercises.symptoms             makes exercises/symptoms.json anew, in some minutes
    python -m exercises.symptoms NAME...     measures these alone, and writes them into it

Each run has the same seeds with and without the defect, in a world of seconds, so every number that
differs is the defect's work. symptoms.json keeps a few of them: {defect: {"run": its name,
"numbers": {column: [[first, mean, last] without, [first, mean, last] with]}}}. A defect's text is
checked against them; a defect without a text has none because nothing a reader would notice
differs. README's table is checked in the same way, with settings in a defect's place.
"""
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from exercises import ANSWERS, HERE, ROOT, defects, student
from runtime import processes
from settings import stop

KEPT = HERE / "symptoms.json"
PLACES = ("first", "mean", "last")
MOST = 4  # columns kept of a run, beside that of the text
CLOCK = ("step", "epoch", "iteration", "seconds_rollout", "seconds_update", "tokens_per_second")
SMALL = "--n_layer=2 --n_head=2 --n_embd=64 --epochs=5"
PPO = "ppo.py --batch=64 --minibatch=16 --ptx_rows=2 --max_new_tokens=24 --show=0 --iterations=3"
RANKED = "--max_new_tokens=24 --models=out/init --weights=1"
LAB = (  # a small world and its models, made by the project as it is
    "-m data.toy.world --documents=2500 --vocab=400 --demonstrations=40 --prompts=400 "
    "--heldout=60 --group=4 --templated=20",
    f"sft.py --preset=base {SMALL}", "sft.py --preset=init --epochs=8",
    f"-m labels.sample {RANKED}", f"-m labels.sample --split=valid {RANKED}",
    "-m labels.simulated --calibrate=out/init",
    "-m labels.simulated --calibrate=out/init --split=valid", "reward.py --epochs=2")
RUNS = {  # the log of the last command is read; --out is a new folder
    "base": (f"sft.py --preset=base {SMALL} --epochs=1",),
    "base, plain kernels": (f"sft.py --preset=base {SMALL} --epochs=1",),
    "sft": ("sft.py --epochs=4",),
    "sft --micro_batch=2": ("sft.py --epochs=4 --micro_batch=2",),
    "init": ("sft.py --preset=init --pretrain_mix=0.5",),
    "two processes": ("sft.py --epochs=2 --batch=7",),
    "reward": ("reward.py",),
    "ppo": (f"{PPO} --iterations=8",),
    "ppo, plain kernels": (PPO,),
    "ppo --micro_batch=2": (f"{PPO} --micro_batch=2",),
    "ppo --temperature=0.5": (f"{PPO} --temperature=0.5",),
    "ppo --max_new_tokens=8": (f"{PPO} --max_new_tokens=8",),
    "ppo --inner_epochs=6": (f"{PPO} --inner_epochs=6 --lr=3e-3",),
    "ppo --beta=1": (f"{PPO} --iterations=8 --beta=1",),
    "ppo --ptx=3": (f"{PPO} --iterations=8 --ptx=3",),
    "init, then ppo": ("sft.py --preset=init --epochs=8", PPO),
    "reward, then ppo": ("reward.py", PPO),
}
OF_FILE = {  # the run that uses a file, for defects whose text names none
    "kernels/reference.py": "ppo, plain kernels", "kernels/attention.py": "base",
    "kernels/losses.py": "base", "data/batches.py": "sft", "sft.py": "sft", "reward.py": "reward",
    "data/records.py": "reward", "model.py": "reward", "sampler.py": "ppo",
    "kernels/noise.py": "ppo", "ppo.py": "ppo", "runtime/optimizer.py": "base",
    "runtime/episodes.py": "ppo", "runtime/world.py": "two processes", "runtime/sharding.py": "sft",
    "runtime/training.py": "sft", "settings.py": "sft", "startup.py": "sft"}


@dataclass(frozen=True)
class Symptom:
    """A sentence about a log, and what of it is checked: the number of a column at a place, with
    the defect, is more than `by` above or below the one without it, or `by` up to rounding."""
    text: str
    run: str
    column: str
    place: str
    than: str  # above, below or is
    by: float

    def holds(self, numbers):
        """Whether numbers of symptoms.json, {column: [without, with]}, show it."""
        if self.column not in numbers:
            return False
        without, with_ = (side[PLACES.index(self.place)] for side in numbers[self.column])
        if None in (without, with_):
            return False
        return {"above": with_ - without > self.by, "below": without - with_ > self.by,
                "is": abs(with_ - self.by) < 1e-4 * abs(without - self.by)}[self.than]


# Each is checked against symptoms.json: python -m exercises.symptoms NAME measures it again.
FAR_FROM_0 = "`loss/policy` of the first iteration is far from 0: the advantages' mean is not 0"
SYMPTOMS = {
    "future-by-one": Symptom("`loss` of pretraining falls far lower than text allows",
                             "base, plain kernels", "loss", "last", "below", 0.3),
    "unused-slots": Symptom("`policy/clip_fraction` is high from the first minibatch on",
                            "ppo, plain kernels", "policy/clip_fraction", "first", "above", 0.3),
    "one-slot-too-many": Symptom("`policy/clip_fraction` is high from the first minibatch on",
                                 "ppo, plain kernels", "policy/clip_fraction", "first", "above",
                                 0.1),
    "eos-without-loss": Symptom("`ended` stays near 0 and responses run to --max_new_tokens",
                                "init, then ppo", "ended", "first", "below", 0.3),
    "prompt-in-the-loss": Symptom("`loss` starts elsewhere, and counts what the user said", "sft",
                                  "loss", "first", "above", 0.1),
    "mean-over-pads": Symptom("`loss` is far too small", "sft", "loss", "first", "below", 0.3),
    "own-tokens": Symptom("`loss` grows as --micro_batch shrinks", "sft --micro_batch=2", "loss",
                          "first", "above", 0.5),
    "equal-micro-batches": Symptom("`loss` grows as --micro_batch shrinks", "sft --micro_batch=2",
                                   "loss", "first", "above", 0.5),
    "share-of-the-demonstrations": Symptom("a run with --pretrain_mix has too few steps", "init",
                                           "steps", "last", "below", 0.5),
    "prompts-counted": Symptom("a run with --pretrain_mix has too many steps", "init", "steps",
                               "last", "above", 0.5),
    "around-the-wrapper": Symptom("two processes do not give the `loss` of one", "two processes",
                                  "loss", "last", "above", 0.001),
    "own-rows-only": Symptom("on two processes `loss` is twice as large", "two processes", "loss",
                             "first", "above", 0.3),
    "no-spare-row": Symptom("on two processes `loss` of an odd batch is too small",
                            "two processes", "loss", "first", "below", 0.02),
    "rows-left-over": Symptom("on two processes `loss` of an odd batch is too small",
                              "two processes", "loss", "first", "below", 0.02),
    "filler-is-text": Symptom("`loss` of pretraining is too low: EOS that fills a row is easy",
                              "base", "loss", "mean", "below", 0.05),
    "pairs-on-their-own": Symptom("a run has as many steps as pairs ask for, not prompts", "reward",
                                  "steps", "last", "above", 5.0),
    "worse-first": Symptom("the reward model's ceiling is far below one half", "reward",
                           "held-out/ceiling", "last", "below", 0.3),
    "ties-are-pairs": Symptom("the ceiling on held-out labels is lower than the labelers' noise "
                              "explains", "reward", "held-out/ceiling", "last", "below", 0.02),
    "equal-scores-are-right": Symptom("the ceiling on held-out labels is higher than the "
                                      "labelers' noise allows", "reward", "held-out/ceiling",
                                      "last", "above", 0.01),
    "pairs-divided-twice": Symptom("`loss` starts far below log 2", "reward", "loss", "first",
                                   "below", 0.3),
    "weights-divided-twice": Symptom("`loss` starts far below log 2", "reward", "loss", "first",
                                     "below", 0.3),
    "prompts-of-many-pairs": Symptom("`loss` starts far above log 2", "reward", "loss", "first",
                                     "above", 1.0),
    "margin-reversed": Symptom("the accuracy falls while `loss` falls", "reward",
                               "held-out/train_labelers", "last", "below", 0.05),
    "rows-of-the-first-prompt": Symptom("the accuracy on held-out labels stays near one half",
                                        "reward", "held-out/train_labelers", "last", "below",
                                        0.02),
    "bias-raised": Symptom("`score` starts far from 0 in PPO", "reward, then ppo", "score",
                           "first", "above", 0.2),
    "log-prob-at-temperature-1": Symptom("`policy/ratio` of the first minibatches is not 1",
                                         "ppo --temperature=0.5", "policy/ratio", "first", "above",
                                         0.02),
    "update-at-temperature-1": Symptom("`policy/clip_fraction` is high from the first minibatch on",
                                       "ppo --temperature=0.5", "policy/clip_fraction", "first",
                                       "above", 0.05),
    "positions-of-the-response": Symptom("the run ends with an error in its first rollout", "ppo",
                                         "steps", "last", "below", 0.5),
    "words-after-the-end": Symptom("`response_length` is too long", "ppo", "response_length",
                                   "first", "above", 1.0),
    "kl-backwards": Symptom("`kl` rises without end: the penalty pays for it", "ppo --beta=1",
                            "kl", "last", "above", 0.5),
    "kl-clamped": Symptom("`objective` is lower than `score` minus beta times `kl`",
                          "ppo --beta=1", "objective", "last", "below", 0.3),
    "score-on-every-token": Symptom("`return/mean` is far from `score`", "ppo", "return/mean",
                                    "first", "below", 1.0),
    "kl-of-the-policy-itself": Symptom("`kl` is 0 however much the answers change", "ppo", "kl",
                                       "last", "is", 0.0),
    "first-for-last": Symptom("`value/explained_variance` starts far below 0", "ppo",
                              "value/explained_variance", "first", "below", 0.5),
    "bootstrapped-past-the-end": Symptom("`value/explained_variance` starts elsewhere", "ppo",
                                         "value/explained_variance", "first", "above", 0.05),
    "own-value-twice": Symptom("`loss/value` is many times too large", "ppo", "loss/value",
                               "first", "above", 10.0),
    "mean-put-back": Symptom(FAR_FROM_0, "ppo", "loss/policy", "first", "below", 0.1),
    "whitened-with-pads": Symptom(FAR_FROM_0, "ppo", "loss/policy", "first", "below", 0.1),
    "lambda-forgotten": Symptom("`return/mean` is nearer to `score`", "ppo", "return/mean",
                                "first", "above", 0.01),
    "returns-from-whitened": Symptom("`return/mean` stays near `value/mean` whatever `score` does",
                                     "ppo", "return/mean", "first", "below", 0.05),
    "tokenised-again": Symptom("`policy/approx_kl` is large from the first iteration on", "ppo",
                               "policy/approx_kl", "first", "above", 1.0),
    "value-after-the-token": Symptom("`value/explained_variance` starts elsewhere", "ppo",
                                     "value/explained_variance", "first", "above", 0.02),
    "rollout-with-gradients": Symptom("the run ends with an error in its first update", "ppo",
                                      "steps", "last", "below", 0.5),
    "unfinished-is-scored": Symptom("`score` is high although many responses do not end",
                                    "ppo --max_new_tokens=8", "score", "first", "above", 0.3),
    "larger-of-two": Symptom("`policy/clip_fraction` and `policy/approx_kl` grow",
                             "ppo --inner_epochs=6", "policy/approx_kl", "last", "above", 0.01),
    "no-clip": Symptom("`policy/approx_kl` grows within an iteration", "ppo --inner_epochs=6",
                       "policy/approx_kl", "last", "above", 0.01),
    "ratio-upside-down": Symptom("`score` falls", "ppo", "score", "last", "below", 0.1),
    "policy-loss-of-pads": Symptom("`policy/grad_norm` is too large", "ppo --micro_batch=2",
                                   "policy/grad_norm", "first", "above", 0.5),
    "smaller-error": Symptom("`loss/value` is too small", "ppo", "loss/value", "first", "below",
                             0.01),
    "value-clip-alone": Symptom("`value/clip_fraction` stays high", "ppo", "value/clip_fraction",
                                "last", "above", 0.2),
    "whole-error": Symptom("`loss/value` is twice as large", "ppo", "loss/value", "first",
                           "above", 0.2),
    "micro-batches-alike": Symptom("`policy/grad_norm` grows as --micro_batch shrinks",
                                   "ppo --micro_batch=2", "policy/grad_norm", "first", "above",
                                   0.5),
    "gamma-unread": Symptom("`loss/ptx` is the same whatever --ptx says", "ppo --ptx=3",
                            "loss/ptx", "last", "above", 0.002),
    "text-step-of-its-own": Symptom("`policy/approx_kl` is larger", "ppo", "policy/approx_kl",
                                    "last", "above", 0.001),
    "one-large-minibatch": Symptom("`policy/clip_fraction` is 0: the policy has not moved when it "
                                   "is read", "ppo", "policy/clip_fraction", "last", "is", 0.0),
    "warm-up-from-zero": Symptom("`lr` of the first step is 0", "base", "lr", "first", "is", 0.0),
    "cosine-from-the-start": Symptom("`lr` jumps down after the warm-up", "reward", "lr", "mean",
                                     "below", 1e-6),
    "floor-forgotten": Symptom("`lr` ends at 0, not at --floor", "sft", "lr", "last", "below",
                               1e-6),
}
README = {  # first cell of a row of README's table: what is seen, and a setting or a defect for it
    "`kl` negative and large": (
        Symptom("`kl` negative and large", "ppo --temperature=0.5", "kl", "first", "below", 1.0),
        "", "log-prob-at-temperature-1"),
    "`score` flat": (
        Symptom("`score` flat", "ppo", "score", "last", "below", 0.1), "--lr=1e-7", ""),
    "`ended` falls": (
        Symptom("`ended` falls", "ppo --max_new_tokens=8", "ended", "last", "below", 0.05),
        "--unfinished=4 --iterations=8 --lr=3e-3", ""),
    "text becomes gibberish": (
        Symptom("`kl` above 10", "ppo", "kl", "last", "above", 10.0), "--beta=0 --lr=0.02", ""),
    "`loss/ptx` rises": (
        Symptom("`loss/ptx` rises", "ppo --ptx=3", "loss/ptx", "last", "above", 0.01),
        "--ptx=0.0001", ""),
}
# Rows that no log shows: their numbers are the gold score and the probes of an evaluation.
NOT_IN_A_LOG = ("`score` rises, answers get worse", "the base model's skills fall")


# ------------------------------------------------------------------------------- runs

def command(project, words, lab, ranks=1, **environment):
    """Run a script of a project in the lab's folder, in float32 on a CPU. Memory that nobody has
    written to holds 0, as the system gives it: with a defect that reads it, what is left there of
    before would make each run another one."""
    first, *flags = shlex.split(words)
    module = ["-m", flags.pop(0)] if first == "-m" else [str(Path(project) / first)]
    if ranks > 1:
        module = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}",
                  "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", *module]
    if first != "-m" or flags[0] == "labels.sample":
        flags += ["--dtype=float32", "--device=cpu"]
    env = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1",
           "MALLOC_PERTURB_": "255", **environment}  # read by glibc: 255 fills with 0
    with processes.running([sys.executable, *module, *flags], cwd=lab, env=env, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate()
    if processes.ASKED.is_set():
        stop("asked to end")  # and not: measured
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def copied(folder):
    """The project's sources in a folder, where defects are planted."""
    for file in student.sources(student.files_of()):
        path = Path(folder) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / file).read_bytes())
    return Path(folder)


def make_lab(lab, project):
    """The lab's world and models."""
    Path(lab).mkdir(parents=True, exist_ok=True)
    for words in LAB:
        done = command(project, words, lab)
        if done.returncode:
            stop(f"{words}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def log_of(project, run, lab, out, flags=""):
    """[{column: number}] of a run's log; the last row of a reward model has its accuracy on
    held-out labels, and the ceiling."""
    made, environment = "", {"KERNELS": "reference"} if "plain" in run else {}
    for n, words in enumerate(RUNS[run]):
        last = n == len(RUNS[run]) - 1
        folder = out if last else f"{out}-before"
        done = command(project, f"{words} {made} {flags * last} --out={folder}", lab,
                       2 if run == "two processes" else 1, **environment)
        made = f"--{'reward' if words.startswith('reward') else 'init'}={folder}"
    folder = Path(lab) / out
    rows = [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()] if (
        folder / "log.jsonl").exists() else []
    if done.returncode == 0:
        facts = json.loads((folder / "checkpoint.json").read_text()).get("accuracy") or {}
        rows += [{f"held-out/{k}": x for k, x in facts.items()}] if facts else []
    return rows


# ------------------------------------------------------------------------------- numbers

def summary(rows):
    """{column: [first, mean, last]} of a log. A column's length is a number, too: `steps`."""
    out = {}
    for column in dict.fromkeys(c for row in rows for c in row if c not in CLOCK):
        own = [row[column] for row in rows if column in row]
        if all(isinstance(x, (int, float)) for x in own):
            out[column] = [rounded(x) for x in (own[0], sum(own) / len(own), own[-1])]
    logged = sum("loss" in row or "score" in row for row in rows)
    return {**out, "steps": [logged] * 3}


def rounded(x):
    return float(f"{x:.5g}") if math.isfinite(x) else None


def change(without, with_):
    """How much two summaries of a column differ, relative to their size."""
    pairs = [(a, b) for a, b in zip(without, with_) if a is not None and b is not None]
    return max((abs(a - b) / (abs(a) + abs(b)) for a, b in pairs if a != b), default=(
        0.0 if without == with_ else 1.0))


def differing(without, with_, column=""):
    """{column: [without, with]} of the columns that differ the most, and of `column`."""
    both = {c: change(without[c], with_[c]) for c in without if c in with_}
    most = [c for c in sorted(both, key=both.get, reverse=True) if both[c] > 1e-3][:MOST]
    named = [column] if column in both and column not in most else []
    return {c: [without[c], with_[c]] for c in named + most}


def planned(name):
    """(run, column of the text, flags, Defect or None) of a defect or a row of README's table."""
    symptom, flags, planted = README.get(name) or (SYMPTOMS.get(name), "", name)
    defect = next((d for d in defects.DEFECTS if d.name == planted), None)
    if symptom:
        return symptom.run, symptom.column, flags, defect
    return OF_FILE.get(defect.file), "", flags, defect


def measured(name, lab, project, clean):
    """The entry of symptoms.json. clean: {run: its summary without a defect}, filled as needed."""
    run, column, flags, defect = planned(name)
    if run is None:
        return {"run": None, "numbers": {}}
    out = "runs/" + "".join(c if c.isalnum() else "-" for c in f"{run}-{name}")
    if run not in clean:
        clean[run] = summary(log_of(project, run, lab, f"{out}-clean"))
    path = Path(project) / defect.file if defect else None
    before = path and path.read_text("utf-8")
    try:
        if defect:
            path.write_text(defects.planted(before, defect), "utf-8")
        rows = log_of(project, run, lab, out, flags)
    finally:
        if defect:
            path.write_text(before, "utf-8")
    return {"run": run, "numbers": differing(clean[run], summary(rows), column)}


def every():
    """All that symptoms.json has: the defects that public code has shipped, and README's rows."""
    return [d.name for d in defects.with_tests()] + list(README)


def kept():
    """symptoms.json; {} where there is none."""
    return json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}


# ------------------------------------------------------------------------------- texts

def told(name, tests=()):
    """What one would see in a log of a defect, as lines: the sentence and its numbers from the
    short run; or that there is nothing to see, and which tests find it."""
    symptom, entry = SYMPTOMS.get(name), kept().get(name)
    finds = "What finds it: " + ", ".join(tests)
    if entry is None:
        return [f"In a log one should see: {symptom.text}. (Expected; no run has been measured.)"
                if symptom else "What a log would show has not been measured.", finds]
    if symptom is None:
        return ["Nothing in the log of a short run gives it away.", finds]
    return [f"In a log one would see: {symptom.text}.",
            f"A short run ({entry['run']}), {symptom.column}:",
            f"  {'':<12}" + "".join(f"{p:>10}" for p in PLACES),
            *(f"  {who:<12}" + "".join(f"{shown(x):>10}" for x in own) for who, own in zip(
                ("without it", "with it"), entry["numbers"][symptom.column]))]


def shown(x):
    return "-" if x is None else f"{x:.4g}"


def main(names=None):
    names = list(sys.argv[1:] if names is None else names)
    if ANSWERS.exists():
        stop("this is a student's copy: its holes would stop the runs. Use the project itself")
    if unknown := [n for n in names if n not in every()]:
        stop(f"{unknown[0]}: no defect with tests, and no row of README's table")
    with processes.ending_together("starts again"), tempfile.TemporaryDirectory() as place:
        lab, project, clean = Path(place) / "lab", copied(Path(place) / "project"), {}
        make_lab(lab, project)
        found = kept() if names else {}
        for name in names or every():
            found[name] = measured(name, lab, project, clean)
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    ordered = {name: found[name] for name in every() if name in found}
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in ordered.items())
    KEPT.write_text("{\n" + lines + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()

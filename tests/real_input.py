"""The whole chain on real data, by the commands of docs/data.md: `make real`.

The commands are read from its section "Real data" and run as they stand there, so that
what it promises is what is measured; `downloads/` becomes $PUBLIC_DATA, and paths under
out/ are made where this is started. Then the promises are checked: every stage finishes, its loss
falls, no stage takes 4 GB, and the reward model tells polite from impolite answers to prompts that
no stage has trained on. The numbers go to out/real/results.json. The gpt2 tokenizer is taken from
$TIKTOKEN_CACHE_DIR or from $PUBLIC_DATA/tiktoken-cache; without both tiktoken fetches it.
"""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PUBLIC = Path(os.environ.get("PUBLIC_DATA", ROOT.parent / "shared" / "data"))
LOSSES = {  # what must fall in each stage; the loss of PPO's policy says nothing
    "base": "loss", "sft": "loss", "rm-hh": "loss", "rm-oa": "loss", "ppo": "loss/value",
    "rm-polite": "loss"}


def commands(text):
    """The command lines of a page's section on real data, in order, as lists of words."""
    section = text.split("\n## Real data\n")[1].split("\n## ")[0]
    blocks = "".join(re.findall(r"```\n(.*?)```", section, re.S))
    lines = blocks.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("python ")]

# Starts a command and reports what it took. The peak of a program that is started begins with that
# of the one which starts it, so a small one does.
STARTER = """
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
"""


def run(words, folder, *flags, output=None):
    """Run one of these commands, with more flags, in a folder; its output goes to a file, or is
    shown. Returns (exit code, {"seconds" it took, "cpu_seconds", "peak_gb" of memory})."""
    words = [word.replace("downloads/", f"{PUBLIC}/") for word in words[1:]]
    if words[0] != "-m":
        words[0] = str(ROOT / words[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.time()
    with tempfile.NamedTemporaryFile("r") as usage:
        subprocess.run([sys.executable, "-c", STARTER, usage.name, sys.executable, *words, *flags],
                       cwd=folder, env=environment, check=True, stdout=output,
                       stderr=output and subprocess.STDOUT)
        code, cpu_seconds, peak = json.load(usage)
    peak *= 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes
    return code, {"seconds": round(time.time() - started, 1),
                  "cpu_seconds": round(cpu_seconds, 1), "peak_gb": round(peak / 1e9, 3)}


def stage(words):
    """The folder that a command writes."""
    return next(word.removeprefix("--out=") for word in words if word.startswith("--out="))


def fall(path, key):
    """(mean of the first, mean of the last sixth of the steps) of a number in a log.jsonl."""
    values = [json.loads(line)[key] for line in open(path)]
    n = -(-len(values) // 6)
    return sum(values[:n]) / n, sum(values[-n:]) / n


def measure(folder):
    """What the stages' checkpoints and logs say: {stage: {"loss": [first, last], ...}}."""
    out = {}
    for name, key in LOSSES.items():
        meta = json.loads((folder / name / "checkpoint.json").read_text())
        facts = {"loss": [round(x, 4) for x in fall(folder / name / "log.jsonl", key)]}
        facts.update({k: meta[k] for k in ("history", "accuracy", "last") if k in meta})
        out[name] = facts
    return out


def broken(results):
    """The promises that the results break, as sentences."""
    out = [f"{name}: the loss did not fall: {first} to {last}"
           for name, (first, last) in ((n, r["loss"]) for n, r in results["stages"].items())
           if not last < first]
    out += [f"{' '.join(c['command'])}: {c['peak_gb']} GB, promised less than 4"
            for c in results["commands"] if c["peak_gb"] >= 4]
    history = results["stages"]["sft"]["history"]
    if not history[-1]["valid"] < history[0]["valid"]:
        out.append("sft: the validation loss did not fall")
    polite = results["stages"]["rm-polite"]["accuracy"]["train_labelers"]
    if polite < 0.9:
        out.append(f"polite or impolite: {polite:.1%} right on held-out prompts, promised 90 %")
    return out


def tokenizer_cache(folder):
    """A place for tiktoken's files. It deletes those that it takes for wrong: give it a copy."""
    if "TIKTOKEN_CACHE_DIR" not in os.environ and (PUBLIC / "tiktoken-cache").is_dir():
        shutil.copytree(PUBLIC / "tiktoken-cache", folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)


def main():
    if not PUBLIC.is_dir():
        raise SystemExit(f"error: no folder {PUBLIC}: put the files that the section "
                         "\"Real data\" names into one, and its path into PUBLIC_DATA")
    here, results = Path.cwd(), {"commands": []}
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer_cache(Path(temporary) / "tiktoken-cache")
        for words in commands((ROOT / "docs" / "data.md").read_text(encoding="utf-8")):
            print(f"$ {' '.join(words)}", flush=True)
            code, usage = run(words, here)
            if code:
                raise SystemExit(f"error: {' '.join(words)} failed with {code}")
            results["commands"].append({"command": words, **usage})
    results["stages"] = measure(here / "out" / "real")
    results["broken"] = broken(results)
    for key in ("seconds", "cpu_seconds"):
        results[key] = round(sum(c[key] for c in results["commands"]), 1)
    results["peak_gb"] = max(c["peak_gb"] for c in results["commands"])
    (here / "out" / "real" / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for name, facts in results["stages"].items():
        right = "".join(f", {v:.1%} of held-out pairs right"
                        for k, v in facts.get("accuracy", {}).items())
        print(f"{name:10} loss {facts['loss'][0]:.3f} -> {facts['loss'][1]:.3f}{right}")
    print(f"{results['seconds']:.0f} s, {results['peak_gb']:.2f} GB at most")
    if results["broken"]:
        raise SystemExit("broken promises:\n  " + "\n  ".join(results["broken"]))
    print("all promises hold")


if __name__ == "__main__":
    main()

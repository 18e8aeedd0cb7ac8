"""The same training in float32 and in bf16, side by side: python tests/bench/curves.py

Pretrains the toy (sft.py --preset=base) on a small town in both types: same weights to begin with,
same rows, same learning rates. Writes out/bench/curves.json: the loss of each step in both, their
largest and mean difference, the validation losses and the CPU seconds of each run.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python(folder, *arguments):
    """Run a script of the repository in a folder. Returns the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(folder, dtype, flags):
    """(losses by step, validation loss, CPU seconds) of one training."""
    seconds = python(folder, str(ROOT / "sft.py"), "--preset=base", f"--dtype={dtype}",
                     f"--out=out/{dtype}", *flags)
    log = [json.loads(line) for line in open(folder / "out" / dtype / "log.jsonl")]
    facts = json.loads((folder / "out" / dtype / "checkpoint.json").read_text())
    return [line["loss"] for line in log], facts["history"][-1]["valid"], seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=6000, help="of the town: its size")
    parser.add_argument("--out", default=str(ROOT / "out/bench/curves.json"))
    a, flags = parser.parse_known_args()  # other flags go to sft.py
    with tempfile.TemporaryDirectory() as name:
        python(name, "-m", "data.toy.world", f"--documents={a.documents}")
        runs = {dtype: train(Path(name), dtype, flags) for dtype in ("float32", "bf16")}
    (one, valid, seconds), (other, valid_bf16, seconds_bf16) = runs.values()
    differences = [abs(x - y) for x, y in zip(one, other, strict=True)]
    facts = {"steps": len(one), "max_difference": max(differences),
             "mean_difference": sum(differences) / len(one),
             "validation": {"float32": valid, "bf16": valid_bf16},
             "cpu_seconds": {"float32": seconds, "bf16": seconds_bf16},
             "loss": {"float32": one, "bf16": other}}
    Path(a.out).parent.mkdir(parents=True, exist_ok=True)
    Path(a.out).write_text(json.dumps(facts, indent=1))
    print(json.dumps({k: v for k, v in facts.items() if k != "loss"}, indent=1))
    print(*(f"step {i + 1:5}: {one[i]:.4f} {other[i]:.4f}"
            for i in range(0, len(one), max(1, len(one) // 10))), sep="\n")


if __name__ == "__main__":
    main()

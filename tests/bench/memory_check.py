"""The memory that the three scripts take, beside the formula of docs/memory.md and `--plan`.

    OMP_NUM_THREADS=1 python tests/bench/memory_check.py            sizes, with and without saving
    OMP_NUM_THREADS=1 python tests/bench/memory_check.py slope      bytes a parameter
    OMP_NUM_THREADS=1 python tests/bench/memory_check.py kept       as scripts run where there is
                                                                    memory, and what time it saves

Each number is the peak of what is resident in a run of a few steps on rows as long as the context,
less what is resident at the end of the same run with a model of one layer of 16 dimensions (Python,
PyTorch, the data). Blocks of more than 64 KB go back to the system when they are freed
(MALLOC_MMAP_THRESHOLD_), as by the scripts themselves where memory is scarce; where it is not, they
keep such blocks for later (`kept`).
"""
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SIZES = [(128, 4, 4, 256), (128, 6, 6, 384), (128, 10, 10, 640)]  # context, layers, heads, width
FORMULA = {"sft": 16, "reward": 16, "ppo": 40}  # bytes a parameter, of docs/memory.md
SAVING = ([], ["--activation_checkpointing"])

CHILD = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0])
runpy.run_path(sys.argv[0], run_name="__main__")
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("PEAK", lines["VmHWM"].split()[0], "END", lines["VmRSS"].split()[0])
"""


def make_data(folder, T, rows=20):
    """Records whose rows have T tokens; the shares of prompts and completions are plan.py's."""
    from data import records, tokenizer
    from runtime.plan import TOWN, TOY
    rng = random.Random(0)
    names = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=3)) for _ in range(300)]
    (folder / "data").mkdir()
    path = folder / "data" / "tokenizer.tiktoken"
    path.write_bytes(tokenizer.train_bpe(" ".join(rng.choices(names, k=20_000)), TOY.vocab_size))
    encode = tokenizer.load_tokenizer(path.name, path.parent).encode
    names = [name for name in names if len(encode(name)) == 1]
    text = lambda n: " ".join(rng.choices(names, k=n))
    long = T * TOWN.ranked // (TOWN.ranked + TOWN.answer)
    for split in ("train", "valid"):
        for kind, make in {
            "text": lambda i: {"text": text(2 * T)},
            "prompts": lambda i: {"prompt": text(T // 2 - 1)},
            "demonstrations": lambda i: {"prompt": text(long - 1), "response": text(T - long - 1)},
            "rankings": lambda i: {"prompt": text(long - 1), "ranks": list(range(1, 7 + i % 2)),
                                   "completions": [{"text": text(T - long - 1)}
                                                   for _ in range(6 + i % 2)]},
        }.items():
            few = range(64 if kind == "text" and split == "valid" else rows)
            records.write(folder / "data" / f"{kind}_{split}.jsonl", map(make, few))


def flags_of(script, name, size, rows, saving):
    """A few steps of `rows` rows, or as many prompts with their completions."""
    T, layers, heads, width = size
    flags = {"sft": ["--preset=base", "--optimizer=adamw", "--init=scratch", "--epochs=1",
                     f"--block_size={T}", f"--n_layer={layers}", f"--n_head={heads}",
                     f"--n_embd={width}", f"--out=out/{name}", f"--batch={rows}",
                     f"--micro_batch={rows}"],
             "reward": [f"--init=out/{name}", f"--out=out/{name}-rm", "--batch=4",
                        f"--micro_batch={max(1, rows // 4)}"],
             "ppo": [f"--init=out/{name}", f"--reward=out/{name}-rm", f"--out=out/{name}-ppo",
                     "--iterations=1", f"--batch={2 * rows}", f"--minibatch={rows}",
                     f"--ptx_rows={rows}", f"--micro_batch={rows}", f"--max_new_tokens={T // 2}",
                     "--show=0"]}[script]
    return [*flags, "--data=data", "--device=cpu", "--dtype=float32", "--save_every=100000",
            *saving]


def resident(folder, script, flags, kept=False):
    """(bytes of a process at its peak, at its end, its CPU seconds)"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                   **({} if kept else {"MALLOC_MMAP_THRESHOLD_": "65536"})}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", CHILD, str(ROOT / f"{script}.py"), *flags],
                          cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak, end = re.search(r"PEAK (\d+) END (\d+)", done.stdout).groups()
    return int(peak) * 1024, int(end) * 1024, seconds


def planned(folder, script, flags):
    """(bytes by plan.py, parameters of a model) of a run whose --init is there."""
    import importlib

    from runtime import plan
    from settings import parse
    module, before = importlib.import_module(script), os.getcwd()
    os.chdir(folder)
    try:
        s = parse(module.Settings, module.PRESETS, flags)
        return plan.planned(script, s), plan.WORK[script](None, s)[0][0].size
    finally:
        os.chdir(before)


def without_model(folder, T, rows):
    """{script: bytes of a process that has trained a tiny model}"""
    return {script: resident(folder, script, flags_of(script, "tiny", (T, 1, 2, 16), rows, []))[1]
            for script in FORMULA}


def compare(folder, size, less, rows=8, saving=(), ways=(False,)):
    """Yields (script, parameters, bytes planned, [(bytes measured, CPU seconds)] with freed blocks
    given back or kept); each script needs the checkpoint of the one before."""
    for script in FORMULA:
        flags = flags_of(script, "model", size, rows, saving)
        bytes_, P = planned(folder, script, flags)
        runs = [resident(folder, script, flags, kept) for kept in ways]
        yield script, P, bytes_, [(peak - less[script], seconds) for peak, _, seconds in runs]


def main(what):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        T, rows = 16 if what == "slope" else SIZES[0][0], 8
        make_data(folder, T)
        if what == "slope":
            less = dict.fromkeys(FORMULA, 0)
            small, large = (list(compare(folder, size, less, 2, ["--micro_batch=1"]))
                            for size in ((T, 4, 8, 256), (T, 4, 8, 512)))
            for (script, P, _, a), (_, Q, _, b) in zip(small, large):
                print(f"{script}: {(b[0][0] - a[0][0]) / (Q - P):.1f} bytes a parameter, from "
                      f"{P / 1e6:.1f} M to {Q / 1e6:.1f} M", flush=True)
            return
        less = without_model(folder, T, rows)
        if what == "kept":
            print("| run | parameters | planned | peak, given back | peak, kept "
                  "| CPU seconds, given back | kept |\n|---|---|---|---|---|---|---|")
            for size in SIZES:
                for script, P, b, ((given, slow), (kept, quick)) in compare(
                        folder, size, less, rows, (), (False, True)):
                    print(f"| {script} | {P / 1e6:.1f} M | {b / 1e6:.0f} MB | {given / 1e6:.0f} MB "
                          f"| {kept / 1e6:.0f} MB | {slow:.1f} | {quick:.1f} |", flush=True)
            return
        print("| run | parameters | formula | planned | measured | planned / measured |\n"
              "|---|---|---|---|---|---|")
        for size in SIZES:
            for saving in SAVING:
                for script, P, b, ((a, _),) in compare(folder, size, less, rows, saving):
                    print(f"| {' '.join([script, *saving])} | {P / 1e6:.1f} M | "
                          f"{FORMULA[script] * P / 1e6:.0f} MB | {b / 1e6:.0f} MB | "
                          f"{a / 1e6:.0f} MB | {b / a - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sizes")

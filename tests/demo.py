"""The demo that the tests of the scripts share: a tiny world, and a tiny model of every stage."""
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import model
from data import records

ROOT = Path(model.__file__).parent
WORLD = dict(documents=300, vocab=320, demonstrations=24, prompts=48, heldout=16, group=8,
             templated=40)
FLAGS = {  # what each stage of the demo is run with; paths are the scripts' own defaults
    "world": ["-m", "data.toy.world", *[f"--{k}={v}" for k, v in WORLD.items()]],
    "base": ["sft.py", "--preset=base", "--block_size=160", "--n_layer=1", "--n_head=2",
             "--n_embd=16", "--micro_batch=4", "--warmup=2"],
    "sft": ["sft.py", "--epochs=2", "--batch=8", "--micro_batch=3"],
    "init": ["sft.py", "--preset=init", "--batch=8"],
    "sample": ["-m", "labels.sample", "--max_new_tokens=8", "--batch=50"],
    "sample valid": ["-m", "labels.sample", "--split=valid", "--max_new_tokens=8", "--k_max=5"],
    "labelers": ["-m", "labels.simulated"],
    "labelers valid": ["-m", "labels.simulated", "--split=valid"],
    "reward": ["reward.py", "--batch=8", "--micro_batch=3"],
    "ppo-ptx": ["ppo.py", "--iterations=2", "--batch=8", "--minibatch=4", "--micro_batch=1",
                "--ptx=0.5", "--ptx_rows=2", "--max_new_tokens=8", "--show=1"],
    "ppo": ["ppo.py", "--preset=ppo", "--iterations=1", "--batch=8", "--minibatch=8",
            "--max_new_tokens=8"],
    "evaluate": ["evaluate.py", "--max_new_tokens=8", "--models=base=out/base,"
                 "base-prompted=out/base,sft=out/sft,ppo=out/ppo,ppo-ptx=out/ppo-ptx"],
}
HASH_SEEDS = itertools.count(1)  # no two runs share one: what depends on it cannot be repeated


def python(folder, *arguments, processes=1, seconds=600, restarts=0):
    """Run python (or torchrun) in a folder. Returns its output; fails with it if the run fails,
    or takes so long that it must hang, on a busy machine too."""
    first, *flags = arguments
    module = ["-m", flags.pop(0)] if first == "-m" else [str(ROOT / first)]
    if processes > 1:
        module = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes),
                  "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0",
                  f"--max-restarts={restarts}", *module]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                   "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": str(next(HASH_SEEDS))}
    with open(folder / "output.txt", "w+") as file:  # a pipe would wait for stray workers
        run = subprocess.Popen([sys.executable, *module, *flags], cwd=folder, env=environment,
                               stdout=file, stderr=subprocess.STDOUT)
        hangs = False
        try:
            run.wait(seconds)
        except subprocess.TimeoutExpired:
            hangs = True
            run.terminate()  # torchrun then ends its workers
            run.wait(60)
        file.seek(0)
        output = file.read()
    assert not hangs, f"{' '.join(arguments)} hangs"
    assert run.returncode == 0, f"{' '.join(arguments)}:\n{output[-3000:]}"
    return output


def build(folder):
    """Run every stage in a new folder."""
    folder.mkdir(parents=True)
    output = {stage: python(folder, *arguments) for stage, arguments in FLAGS.items()}
    (folder / "printed.json").write_text(json.dumps(output))


def built(folder):
    """The Demo that is in a folder."""
    return Demo(folder, json.loads((folder / "printed.json").read_text()))


@dataclass
class Demo:
    folder: Path
    output: dict  # stage -> what it printed

    def checkpoint(self, name):
        return json.loads((self.folder / "out" / name / "checkpoint.json").read_text())

    def weights(self, name):
        file = self.folder / "out" / name / self.checkpoint(name)["weights"]
        return torch.load(file, weights_only=True)

    def log(self, name):
        return [json.loads(line) for line in open(self.folder / "out" / name / "log.jsonl")]

    def records(self, name, kind="prompt"):
        return records.read(self.folder / "out" / "toy" / f"{name}.jsonl", kind)

"""The comparison that the paper is famous for, in the toy world: which model is preferred?

    python evaluate.py                 all models of the demo -> out/demo/results.json, report.html

evals/town.py says what is measured and how.
"""
import random
from dataclasses import dataclass
from pathlib import Path

from settings import Computing, parse  # before torch

import torch

from data import records
from evals.report import examples, finished, table
from evals.town import evaluate, pairs
from runtime.world import World

MODELS = "base=out/base,prompted=out/base,sft=out/sft,ppo=out/ppo,ppo-ptx=out/ppo-ptx"
VERSUS = "ppo-ptx/base,ppo-ptx/prompted,ppo-ptx/sft,ppo/sft,sft/base,ppo-ptx/ppo"


@dataclass
class Settings(Computing):
    """The evaluation. Every setting is --name=value."""
    # what is compared
    models: str = MODELS  # name=checkpoint; a name that ends in "prompted" gets a few-shot prefix
    rm: str = "out/rm"  # the reward model whose accuracy is reported
    data: str = "out/toy"  # folder with prompts_test.jsonl and probes.jsonl
    out: str = "out/demo"  # folder to write
    versus: str = VERSUS  # comparisons to report, model/model
    votes: int = 5  # held-out labelers asked about each pair of answers
    max_new_tokens: int = 32  # as in training
    temperature: float = 1.0  # of the answers; the paper does not state its own
    seed: int = 5  # of the sampling noise and of the labelers'


PRESETS = {  # with a base model of 8 times the parameters, and a T0 (make figures)
    "figures": dict(models=f"{MODELS},big=out/big,big-prompted=out/big,t0=out/t0",
                    versus=f"{VERSUS},ppo-ptx/big,ppo-ptx/big-prompted,sft/big,sft/big-prompted,"
                           "sft/t0,ppo-ptx/t0", out="out/figures"),
}


def main():
    s = parse(Settings, PRESETS)
    world = World(s.seed, s.device)
    torch.set_grad_enabled(False)
    results, prompts, answers = evaluate(s, world)
    results["seconds"]["evaluate"] = world.seconds()
    out = Path(s.out)
    records.write(out / "answers.jsonl", [
        {**p, "completions": [{"text": a[i][0], "ended": a[i][1], "model": name}
                              for name, a in answers.items()]} for i, p in enumerate(prompts)])
    records.write_json(out / "results.json", results)
    lines = table(results)
    (out / "report.md").write_text("\n".join(
        ["# What the feedback did", "", *lines, "", "## Some answers to test prompts",
         *examples(prompts, answers, random.Random(s.seed))]) + "\n", encoding="utf-8")
    print("\n".join(lines))
    page = finished(out, s.data, {"rm": s.rm, **dict(pairs("models", s.models, "="))})
    print(f"\nnumbers: {out}/results.json   all answers: {out}/answers.jsonl   as text: "
          f"{out}/report.md\nreport: {page}")


if __name__ == "__main__":
    main()

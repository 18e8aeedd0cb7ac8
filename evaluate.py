"""The comparison that the paper is famous for, in the toy world: which model is preferred?

    python evaluate.py                 all models of the demo -> out/demo/results.json, report.md

evals/town.py says what is measured and how.
"""
import random
from dataclasses import dataclass
from pathlib import Path

from settings import Computing, parse  # before torch

import torch

from data import records
from evals.report import examples, table
from evals.town import evaluate
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

    def problem(self):
        """The default comparisons that --models lacks are left out; one that was typed is not."""
        names = {model.partition("=")[0] for model in self.models.split(",")}
        for pair in self.versus.split(",") if not self.versus.startswith(VERSUS) else ():
            if missing := set(filter(None, pair.split("/", 1))) - names:
                return (f"--versus={self.versus}: there is no model {min(missing)} in --models="
                        f"{self.models}")


PRESETS = {  # with a base model of nine times the parameters (make figures)
    "figures": dict(models=f"{MODELS},big=out/big,big-prompted=out/big", out="out/figures",
                    versus=f"{VERSUS},ppo-ptx/big,ppo-ptx/big-prompted,sft/big,sft/big-prompted"),
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
    print(f"\nreport: {out}/report.md   numbers: {out}/results.json   all answers: "
          f"{out}/answers.jsonl")


if __name__ == "__main__":
    main()

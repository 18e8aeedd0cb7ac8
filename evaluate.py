"""The comparison that the paper is famous for, in the toy world: which model is preferred?

    python evaluate.py                 all models of the demo -> out/demo/results.json, report.html
    python evaluate.py --suite=public --models=gpt2=gpt2,sft=out/gpt2/sft     public benchmarks

evals/town.py says what is measured and how; evals/public.py does so for the public benchmarks
(docs/evaluations.md).
"""
import random
from dataclasses import dataclass, fields
from pathlib import Path

from settings import Computing, one_process, parse  # before torch

import torch

from data import records
from evals import public
from evals.report import examples, finished, table
from evals.town import evaluate, pairs
from runtime.world import World

MODELS = "base=out/base,prompted=out/base,sft=out/sft,ppo=out/ppo,ppo-ptx=out/ppo-ptx"
PUBLIC = ("tasks", "files", "limit", "form", "batch_tokens", "toxicity", "truth", "info", "prompts",
          "judge", "rankings")
WAIT = 7 * 24 * 3600  # seconds that ranks wait for the first one, which alone asks the judges
VERSUS = "ppo-ptx/base,ppo-ptx/prompted,ppo-ptx/sft,ppo/sft,sft/base,ppo-ptx/ppo"


@dataclass
class Settings(Computing):
    """The evaluation. Every setting is --name=value."""
    # what is compared
    suite: str = "toy"  # toy: the town; public: the paper's public evaluations
    models: str = MODELS  # name=checkpoint; a name that ends in "prompted" gets a few-shot prefix
    rm: str = "out/rm"  # the reward model whose accuracy is reported
    data: str = "out/toy"  # folder with prompts_test.jsonl and probes.jsonl
    out: str = ""  # folder to write; empty: out/demo, or out/evals for the public suite
    versus: str = VERSUS  # comparisons to report, model/model
    votes: int = 5  # held-out labelers asked about each pair of answers
    max_new_tokens: int = 32  # as in training
    temperature: float = 1.0  # of the answers; the paper does not state its own
    seed: int = 5  # of the sampling noise, the labelers', the examples and the bootstrap
    # the public suite
    tasks: str = ""  # names with commas between; empty: all whose files are there
    files: str = ""  # folder with the benchmarks' files; empty: download them
    limit: int = 0  # items of each task, chosen by the seed; 0: all
    form: str = "text"  # of prompts: text, as in the paper; template, as in our training
    batch_tokens: int = 8192  # read at a time, pads counted; less needs less memory
    toxicity: str = "profanity"  # scorer: profanity, detoxify, module:function, URL, scores.jsonl
    truth: str = ""  # judge of truth: module:function, URL or scores.jsonl; empty: a stand-in
    info: str = ""  # judge of informativeness, likewise
    prompts: str = ""  # preference: a file of prompts that every model answers
    judge: str = "reward"  # preference: of these answers: reward (--rm), or town (its labelers)
    rankings: str = ""  # preference: a file of people's rankings

    RANKS = True  # the public suite shares its items among torchrun's ranks
    CHOICES = {"suite": "toy public", "form": "text template", "judge": "reward town"}
    BOUNDS = {"limit": "[0, inf)", "batch_tokens": "[1, inf)"}

    def problem(self):
        """The default comparisons that --models lacks are left out; one that was typed is not."""
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if self.suite == "toy" and (public_only := [name for name in given if name in PUBLIC]):
            return f"--{public_only[0]} is a setting of the public suite: add --suite=public"
        if not self.models and not self.rankings:
            return "--models= names no model"
        if self.info and not self.truth:
            return "--info needs --truth: an answer is to be true and informative"
        if "preference" in self.tasks.split(",") and not (self.prompts or self.rankings):
            return "--tasks=preference needs --prompts=FILE or --rankings=FILE"
        if self.rankings:  # they name models of their own
            return None
        names = {model.partition("=")[0] for model in self.models.split(",")}
        for pair in self.versus.split(",") if not self.versus.startswith(VERSUS) else ():
            if missing := set(filter(None, pair.split("/", 1))) - names:
                return (f"--versus={self.versus}: there is no model {min(missing)} in --models="
                        f"{self.models}")


def main():
    s = parse(Settings)
    s.out = s.out or {"toy": "out/demo", "public": "out/evals"}[s.suite]
    if s.suite == "toy":
        one_process()
    world = World(s.seed, s.device, WAIT)
    torch.set_grad_enabled(False)
    if s.suite == "public":
        return public.run(s, world)
    results, prompts, answers = evaluate(s, world)
    results["seconds"]["evaluate"] = world.seconds()
    out = Path(s.out)
    records.write(out / "answers.jsonl", [
        {**p, "completions": [{"text": a[i][0], "ended": a[i][1], "model": name}
                              for name, a in answers.items()]} for i, p in enumerate(prompts)])
    records.write_json(out / "results.json", results)
    lines = table(results)
    records.write_text(out / "report.md", "\n".join(
        ["# What the feedback did", "", *lines, "", "## Some answers to test prompts",
         *examples(prompts, answers, random.Random(s.seed))]) + "\n")
    print("\n".join(lines))
    page = finished(out, s.data, {"rm": s.rm, **dict(pairs("models", s.models, "="))})
    print(f"\nnumbers: {out}/results.json   all answers: {out}/answers.jsonl   as text: "
          f"{out}/report.md\nreport: {page}")


if __name__ == "__main__":
    main()

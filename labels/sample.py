"""Between the steps: sample K completions of each prompt, for labelers (or you) to rank.

    python -m labels.sample                                   K = 4..9 from the SFT models
    python -m labels.simulated                              labelers rank them -> reward.py
    python -m labels.sample --models=out/sft --k_min=1 --k_max=1    one response a prompt

Each line that it writes is a prompt record with `completions`: text, the model it came from, and
whether it ended by itself.
"""
import math
import random
from dataclasses import dataclass

from settings import Computing, parse, stop  # before torch

from tqdm import tqdm

from data import records
from data.batches import encode_prompt
from model import GPT
from runtime.checkpoint import load
from runtime.machine import precision
from runtime.world import World
from sampler import generate


@dataclass
class Settings(Computing):
    """Samples for labelers. Every setting is --name=value."""
    models: str = "out/sft,out/init,out/base"  # checkpoints, with commas; they take turns
    weights: str = "3,2,1"  # how often each model is used, relative to the others
    data: str = "out/toy"  # folder with prompts_*.jsonl
    split: str = "train"  # train, valid or test
    out: str = ""  # file to write; empty: completions_SPLIT.jsonl in `data`
    prompts: int = 0  # how many of the prompts; 0: all
    k_min: int = 4  # completions of a prompt, at least (paper: 4)
    k_max: int = 9  # and at most (paper: 9)
    max_new_tokens: int = 32  # a response that is longer is cut and counts as not ended
    temperature: float = 1.0  # 0 is greedy
    batch: int = 256  # rows sampled at once
    seed: int = 1  # of the sampling noise and of each prompt's K

    def problem(self):
        if self.k_min > self.k_max:
            return f"--k_min={self.k_min} is more than --k_max={self.k_max}"
        try:
            weights = [float(w) for w in self.weights.split(",")]
        except ValueError:
            weights = []
        if not (all(0 <= w < math.inf for w in weights) and sum(weights) > 0):
            return f"--weights={self.weights}: expected numbers >= 0 with commas between, not all 0"
        if len(weights) != len(self.models.split(",")):
            return (f"--weights={self.weights}: expected a number for each of the "
                    f"{len(self.models.split(','))} --models")


def sample_rows(model, tokenizer, rows, s, device, note=""):
    """rows: [(episode number, prompt text)] -> [completion], in the same order.

    Rows are sampled in order of length, so that a batch holds prompts of similar lengths; the noise
    belongs to the episode number, so that the batches do not matter.
    """
    out = [None] * len(rows)
    encoded = [encode_prompt(tokenizer, prompt) for _, prompt in rows]
    by_length = sorted(range(len(rows)), key=lambda i: len(encoded[i]))
    for start in tqdm(range(0, len(rows), s.batch), desc=f"sample {note}", leave=False):
        part = by_length[start : start + s.batch]
        samples = generate(model, [encoded[i] for i in part], s.max_new_tokens, tokenizer.eos,
                           s.temperature, s.seed, [rows[i][0] for i in part])
        for i, ids, ended in zip(part, samples.responses(), samples.ended.tolist()):
            out[i] = {"text": tokenizer.decode(ids), "model": note, "ended": ended}
    return out


def fitting_all(prompts, models, max_new_tokens, world):
    """The prompts that leave every model room for a response; the others are counted and told."""
    kept = [p for p in prompts if all(
        len(encode_prompt(tokenizer, p["prompt"])) <= model.config.block_size - max_new_tokens
        for model, tokenizer in models)]
    if len(kept) < len(prompts):
        world.print(f"{len(prompts) - len(kept)} of {len(prompts)} prompts are dropped: with "
                    f"{max_new_tokens} new tokens they do not fit the context")
    if not kept:
        stop("no prompt fits the context: lower --max_new_tokens")
    return kept


def main():
    s = parse(Settings)
    world = World(s.seed, s.device)
    prompts = records.read(f"{s.data}/prompts_{s.split}.jsonl", "prompt")
    prompts = prompts[: s.prompts or None]
    paths, weights = s.models.split(","), [float(w) for w in s.weights.split(",")]
    models = [load(path, {"GPT": GPT}, "python sft.py")[:2] for path in paths]
    precision(s.dtype, world, max(model.config.n_embd for model, _ in models))
    prompts = fitting_all(prompts, models, s.max_new_tokens, world)
    rng = random.Random(f"sample {s.seed}")
    todo = [[] for _ in paths]  # of each model: (prompt number, episode number, prompt text)
    episode = 0
    for number, prompt in enumerate(prompts):
        prompt["completions"] = []
        for i in rng.choices(range(len(paths)), weights, k=rng.randint(s.k_min, s.k_max)):
            todo[i].append((number, episode, prompt["prompt"]))
            episode += 1
    for path, own, (model, tokenizer) in zip(paths, todo, models):
        model.to(world.device)
        rows = world.share(own)
        completions = world.gather(sample_rows(model, tokenizer, [r[1:] for r in rows], s,
                                               world.device, path))
        for (number, _, _), completion in zip(own, completions):
            prompts[number]["completions"].append(completion)
    out = s.out or f"{s.data}/completions_{s.split}.jsonl"
    if world.main:
        records.write(out, prompts)
        records.write_json(out.removesuffix(".jsonl") + ".facts.json", {
            "models": s.models, "temperature": s.temperature, "seed": s.seed,
            "completions": episode, "seconds": world.seconds()})
    world.print(f"{out}: {episode:,} completions of {len(prompts):,} prompts from {s.models} "
                f"({world.seconds():.0f} s)")
    world.close()


if __name__ == "__main__":
    main()

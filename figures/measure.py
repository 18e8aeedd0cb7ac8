"""Answers of a policy with all that can be known of them: score, KL from the start, gold score.

    python -m figures.measure --policy=out/ppo --out=out/ppo.jsonl

A line of --out is a prompt with its completions: text, whether it ended, the reward model's score,
the log-ratio of policy and reference summed over the response (its mean is the KL, in nats), and
the gold score. An unfinished response gets the fixed low score that it gets in PPO.
"""
from dataclasses import dataclass
from pathlib import Path

from settings import Computing, parse, stop  # before torch

import torch

from data import records
from data.tokenizer import encode_prompt
from data.toy.tasks import gold
from labels.simulated import judgeable, town_of
from model import GPT, ScalarGPT, last_score
from runtime.checkpoint import load, load_for
from runtime.episodes import in_groups
from runtime.machine import precision
from runtime.world import World
from sampler import generate


@dataclass
class Settings(Computing):
    """Answers of a policy, scored. Every setting is --name=value."""
    policy: str = "out/ppo"  # checkpoint whose answers are measured
    reference: str = "out/init"  # checkpoint from which the KL is measured
    reward: str = "out/rm"  # reward model
    data: str = "out/toy"  # folder with prompts_*.jsonl and world.json
    split: str = "test"  # train, valid or test
    out: str = "out/measured.jsonl"  # file to write
    prompts: int = 0  # how many of the prompts; 0: all
    copies: int = 1  # completions of each prompt
    max_new_tokens: int = 32  # as in training
    temperature: float = 1.0  # as in training
    unfinished: float = -4.0  # score of a response without EOS, as in PPO
    micro_batch: int = 128  # rows a forward pass
    micro_batch_tokens: int = 0  # tokens a forward pass, pads counted; 0: --micro_batch rows
    seed: int = 6  # of the sampling noise

    BOUNDS = {"copies": "[1, inf)", "temperature": "(0, inf)"}


@torch.no_grad()
def measure(policy, reference, reward, prompts, numbers, eos, s):
    """One response to each of the encoded prompts: (Samples, scores, log-ratios), lists of B."""
    samples = generate(policy, prompts, s.max_new_tokens, eos, s.temperature, s.seed, numbers)
    ratio = samples.logprobs - in_groups(reference, samples, s, samples.mask,
                                         temperature=s.temperature)
    score = last_score(in_groups(reward, samples, s), samples.lengths)
    score = score.where(samples.ended, torch.full_like(score, s.unfinished))
    return samples, score.tolist(), ratio.masked_fill(~samples.mask, 0.0).sum(1).tolist()


def main():
    s = parse(Settings)
    world = World(s.seed, s.device)
    source = f"{s.data}/prompts_{s.split}.jsonl"
    records.check_file(s.out, source)
    prompts, town = records.read_once(source, "test prompt")[: s.prompts or None], town_of(s.data)
    judgeable(town, prompts, source)
    policy, tokenizer, _ = load(s.policy, {"GPT": GPT}, "python ppo.py")
    reference = load_for(tokenizer, s.reference, {"GPT": GPT}, "python sft.py --preset=init")
    reward = load_for(tokenizer, s.reward, {"ScalarGPT": ScalarGPT}, "python reward.py")
    precision(s.dtype, world, policy.config.n_embd)
    for network in (policy, reference, reward):
        network.to(world.device).eval()
    records.make_folder(Path(s.out).parent)
    rows = [i for i in range(len(prompts)) for _ in range(s.copies)]
    encoded = [encode_prompt(tokenizer, p["prompt"]) for p in prompts]
    contexts = [network.config.block_size for network in (policy, reference, reward)]
    if (longest := max(map(len, encoded))) + s.max_new_tokens > min(contexts):
        stop(f"{source}: a prompt of {longest} tokens and --max_new_tokens={s.max_new_tokens} do "
             f"not fit a context of {min(contexts)}")
    by_length = sorted(range(len(rows)), key=lambda k: len(encoded[rows[k]]))
    out = [None] * len(rows)
    for first in range(0, len(rows), 512):
        part = by_length[first : first + 512]
        samples, scores, ratios = measure(policy, reference, reward,
                                          [encoded[rows[k]] for k in part], part, tokenizer.eos, s)
        for k, ids, ended, score, ratio in zip(part, samples.responses(), samples.ended.tolist(),
                                               scores, ratios):
            text = tokenizer.decode(ids)
            worth = gold(town, prompts[rows[k]]["task"], text, ended)["score"]
            out[k] = {"text": text, "ended": ended, "score": score, "ratio": ratio, "gold": worth}
    records.write(s.out, [{**p, "completions": out[i * s.copies : (i + 1) * s.copies]}
                          for i, p in enumerate(prompts)])
    mean = lambda name: sum(c[name] for c in out) / len(out)
    print(f"{s.out}: {len(out):,} answers of {s.policy}; score {mean('score'):.2f}, KL "
          f"{mean('ratio'):.2f} nats, gold {mean('gold'):.2f} ({world.seconds():.0f} s)")


if __name__ == "__main__":
    main()

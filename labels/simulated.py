"""Simulated labelers: tastes, noise, ties, Likert scores and flags, on top of the gold score.

    python -m labels.simulated                 rank out/toy/completions_train.jsonl
    python -m labels.simulated --split=valid   the same, by training and held-out labelers

A labeler's utility for a response is  sharpness * (criterion + group + personal) . features,  where
the features are the parts of the gold score. Ranking adds Gumbel noise and sorts (Plackett-Luce);
neighbours closer than the labeler's tie width share a rank. As in the paper, training labels put
helpfulness first, the final evaluation puts truth and harmlessness first (section 3.4), and
most prompts are labelled by one person only.
"""
import itertools
import random
import time
from dataclasses import dataclass
from pathlib import Path

from settings import parse, stop  # before torch

import numpy as np

from data import records
from data.toy.tasks import gold, good
from data.toy.town import Town

FEATURES = ("attempts", "quality", "constraint", "rambling", "garbled", "false", "hallucinates",
            "rude", "length", "courteous")
CRITERIA = {  # weights of the features for the average labeler; courtesy is taste, not truth
    "train": np.array([1.0, 2.0, 1.6, -1.0, -1.5, -1.0, -1.0, -2.0, 0.0, 0.6]),
    "evaluate": np.array([0.7, 1.5, 1.1, -0.8, -1.2, -2.0, -2.0, -3.0, 0.0, 0.6]),
}
HINT = "python -m labels.simulated"
FLAGS = ("fails_instruction", "inappropriate", "hallucination", "violates_constraint",
         "denigrates", "false_claim")  # those of Table 3 that can occur in the town


@dataclass
class Settings:
    """Labelers. Every setting is --name=value."""
    data: str = "out/toy"  # folder with completions_SPLIT.jsonl
    split: str = "train"  # train or valid; valid is labelled by both groups
    seed: int = 3  # of the noise, and of the pool: valid has the pool that labelled train
    agreement: float = 0.726  # of two training labelers; their noise is calibrated to it
    agreement_heldout: float = 0.773  # of two held-out labelers, by the criterion of evaluations
    calibrate: str = "out/sft"  # the model whose samples the calibration uses

    CHOICES = {"split": "train valid"}


class Labeler:
    def __init__(self, name, group_taste, rng, screened):
        self.name, self.screened = name, screened
        personal = 0.25 if screened else 0.15
        self.taste = group_taste + rng.normal(0, personal, len(FEATURES)) * SPREAD
        self.tie = rng.uniform(0.25, 0.5) * (1.0 if screened else 1.6)
        self.generous = rng.normal(0.0 if screened else 0.8, 0.3)  # held-out labelers score higher

    def utility(self, features, criterion, sharpness):
        """features [K, F] -> utilities [K], without noise."""
        return sharpness * features @ (CRITERIA[criterion] + self.taste)


SPREAD = np.array([0.5, 0.8, 0.6, 0.5, 0.5, 0.8, 0.6, 0.8, 0.6, 0.5])  # how much tastes differ


def pool(seed, training=12, heldout=6):
    """(training labelers, held-out labelers). The two groups have tastes of their own."""
    rng = np.random.default_rng([seed, 11])
    groups = [rng.normal(0, 0.25, len(FEATURES)) * SPREAD for _ in range(2)]
    return ([Labeler(f"t{i:02d}", groups[0], rng, True) for i in range(training)],
            [Labeler(f"h{i:02d}", groups[1], rng, False) for i in range(heldout)])


def features(town, task, text, ended=True):
    """What labelers see in a response: [F], the terms of the gold score, and the length. Where the
    prompt sets no constraint, none is broken: it counts as satisfied."""
    f = gold(town, task, text, ended)["flags"]
    said, satisfied = text.split(), f["constraint"] is None or f["constraint"]
    return np.array([f["attempts"], f["quality"], satisfied, f["rambling"],
                     f["garbled"], min(f["false"], 2), bool(f["hallucinates"]), f["rude"],
                     min(len(said), 30) / 30, f["courteous"]], dtype=float)


def impressions(labeler, x, texts, criterion, sharpness, rng):
    """x [K, F], texts [K] -> how much the labeler likes each, noise included [K].

    Equal texts get the same noise, and so the same rank.
    """
    noise = dict(zip(texts, rng.gumbel(size=len(texts))))
    return labeler.utility(x, criterion, sharpness) + [noise[t] for t in texts]


def rank(labeler, seen):
    """Impressions [K] -> ranks [K] from 1; neighbours within the labeler's tie width share one."""
    seen, ranks, current = seen.tolist(), [0] * len(seen), 1
    order = sorted(range(len(seen)), key=lambda i: -seen[i])
    for before, i in zip(order[:1] + order, order):
        current += seen[before] - seen[i] > labeler.tie
        ranks[i] = current
    return ranks


def rate(labeler, seen, criterion, sharpness):
    """Impressions [K] -> Likert scores [K] from 1 to 7."""
    mean = sharpness * CRITERIA[criterion]
    best = mean @ np.array([1, 1, 1, 0, 0, 0, 0, 0, 0.5, 1])  # a perfect response
    likert = 6.3 + labeler.generous + 1.2 * (seen - 0.577 - best) / max(sharpness, 1e-9)
    return [int(v) for v in np.clip(np.round(likert), 1, 7)]


def flags(x, constrained, rng, error=0.05):
    """Yes or no for each of FLAGS: the truth about x [F], with occasional errors."""
    truth = (not x[0], x[7] > 0, x[6] > 0, constrained and not x[2], x[7] > 0, x[5] > 0)
    return {f: bool(t) != (rng.random() < error) for f, t in zip(FLAGS, truth)}


def label(town, record, labeler, everyone, criterion, sharpness, rng):
    """A prompt with completions -> a ranking record by one labeler of the group `everyone`.

    `expected` is the group's mean utility of each completion. It is never used for training: it
    gives the ceiling of the reward model's accuracy.
    """
    x = np.stack([features(town, record["task"], c["text"], c["ended"])
                  for c in record["completions"]])
    constrained = gold(town, record["task"], "")["flags"]["constraint"] is not None
    seen = impressions(labeler, x, [c["text"] for c in record["completions"]], criterion,
                       sharpness, rng)
    expected = np.mean([p.utility(x, criterion, sharpness) for p in everyone], 0)
    return {**record, "ranks": rank(labeler, seen), "labeler": labeler.name,
            "likert": rate(labeler, seen, criterion, sharpness),
            "flags": [flags(row, constrained, rng) for row in x],
            "expected": [round(float(v), 4) for v in expected]}


def agreement(responses, labelers, criterion, sharpness, rng):
    """The share of pairs on which two labelers, both without a tie, prefer the same response.

    responses: for each prompt (features [K, F], texts [K]). Returns (share, number of pairs); the
    share is None without pairs.
    """
    same = total = 0
    for x, texts in responses * 6:
        a, b = (labelers[i] for i in rng.choice(len(labelers), 2, replace=False))
        first, second = (rank(p, impressions(p, x, texts, criterion, sharpness, rng))
                         for p in (a, b))
        for i, j in itertools.combinations(range(len(texts)), 2):
            untied = first[i] != first[j] and second[i] != second[j]
            same += untied and (first[i] < first[j]) == (second[i] < second[j])
            total += untied
    return same / total if total else None, total


def calibrate(responses, labelers, target, seed, criterion="train", halvings=14):
    """The sharpness at which two of the labelers agree as often as `target`."""
    low, high = 0.05, 20.0
    for _ in range(halvings):
        middle = (low * high) ** 0.5
        rng = np.random.default_rng(seed)  # the same noise at each sharpness: a smooth search
        reached, n = agreement(responses, labelers, criterion, middle, rng)
        if not n:
            stop("all completions on which the labelers' noise is calibrated are ties to them: "
                 "sample more prompts, or name another model with --calibrate")
        low, high = (middle, high) if reached < target else (low, middle)
    return middle


def calibrated(own, labelers, target, seed, criterion, every=2, halvings=14):
    """(sharpness, agreement, number of pairs) of a group: the sharpness is set on every second of
    the responses, or fewer, the agreement measured on the others."""
    sharp = calibrate(own[::every], labelers, target, seed, criterion, halvings)
    return sharp, *agreement(own[1::2], labelers, criterion, sharp,
                             np.random.default_rng([seed, 99]))


def noise_of(own, training, heldout, s):
    """What labelers.json says of the noise of both groups."""
    found = {"training": calibrated(own, training, s.agreement, s.seed, "train"),
             "held-out": calibrated(own, heldout, s.agreement_heldout, s.seed, "evaluate",
                                    every=4, halvings=10)}  # in a third of the time
    for group, (sharp, reached, n) in found.items():
        print(f"{group} labelers agree with each other on {reached:.1%} of {n:,} untied pairs"
              if n else f"how often {group} labelers agree was not measured: no untied pair",
              f"of {s.calibrate} samples (sharpness {sharp:.2f}, set on other prompts)")
    (sharp, reached, n), (heldout_sharp, heldout_reached, _) = found.values()
    return {"sharpness": sharp, "agreement": reached, "pairs": n,
            "heldout_sharpness": heldout_sharp, "heldout_agreement": heldout_reached}


def model_samples(town, prompts, model):
    """(features, texts) of one model's completions of each prompt with two different ones."""
    out = []
    for p in prompts:
        own = [c for c in p["completions"] if c["model"] == model]
        if len({c["text"] for c in own}) > 1:  # equal ones are ties, whatever the noise
            out.append((np.stack([features(town, p["task"], c["text"], c["ended"]) for c in own]),
                        [c["text"] for c in own]))
    return out


def town_of(folder):
    """The town of a folder that data/toy/world.py wrote."""
    return Town(records.read_json(f"{folder}/world.json", "python -m data.toy.world", seed=int)
                ["seed"])


def labelers_of(folder):
    """What labelers.json says of those who labelled a folder's training split, and of the held-out
    labelers."""
    number, perhaps = records.NUMBER, records.MAYBE_NUMBER
    return records.read_json(f"{folder}/labelers.json", HINT, seed=int, sharpness=number,
                             agreement=perhaps, heldout_sharpness=number,
                             heldout_agreement=perhaps)


def judgeable(town, prompts, path):
    """The prompts. Stops at one whose task is none of the town's, before anything is computed."""
    for prompt in prompts:
        try:
            gold(town, prompt["task"], good(random.Random(0), town, prompt["task"]))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            stop(f"{path}: the task of the prompt {records.shorten(prompt['prompt'])} is none of "
                 "this town's: run `python -m data.toy.world` again, with another --out")
    return prompts


def retire(folder, facts):
    """Remove the rankings by another pool of labelers, which later steps would mix with those of
    this one."""
    known = folder / "labelers.json"
    if not known.exists() or records.read_json(known, HINT, seed=int)["seed"] == facts["seed"]:
        return
    for path in sorted(folder.glob("rankings_*.jsonl")):
        path.unlink()
        print(f"{path} is removed: other labelers had ranked it")


def main():
    s = parse(Settings)
    started, folder = time.time(), Path(s.data)
    hint = f"python -m labels.sample --split={s.split}"
    path = folder / f"completions_{s.split}.jsonl"
    prompts, town = records.read(path, "sampled prompt", hint), town_of(folder)
    judgeable(town, prompts, path)
    facts = {"seed": s.seed} if s.split == "train" else labelers_of(folder)
    training, heldout = pool(facts["seed"])
    rng = np.random.default_rng([s.seed, s.split == "train"])
    if s.split == "train":
        own = model_samples(town, prompts, s.calibrate)
        if len(own) < 2:
            stop(f"no two prompts have different completions from {s.calibrate}, on which the "
                 "noise is calibrated: name one of their models with --calibrate")
        facts |= noise_of(own, training, heldout, s)
        facts["seconds"] = round(time.time() - started, 1)
        retire(folder, facts)
        records.write_json(folder / "labelers.json", facts)
    groups = {"": (training, "sharpness")}
    if s.split == "valid":
        groups["_heldout"] = heldout, "heldout_sharpness"
    for suffix, (group, sharp) in groups.items():
        out = [label(town, p, group[rng.integers(len(group))], group, "train", facts[sharp], rng)
               for p in prompts]
        records.write(folder / f"rankings_{s.split}{suffix}.jsonl", out)
        n_pairs = sum(len(records.untied_pairs(r["ranks"])) for r in out)
        print(f"{folder}/rankings_{s.split}{suffix}.jsonl: {len(out):,} rankings, "
              f"{n_pairs:,} untied pairs")


if __name__ == "__main__":
    main()

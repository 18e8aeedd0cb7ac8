"""Rankings for an experiment: a part of them, other groups of labelers, pairs alone, or more.

    python -m figures.rankings --share=0.25 --out=out/rm-data/quarter
    python -m figures.rankings --fold=0 --out=out/rm-data/fold-0
    python -m figures.rankings --fresh=out/rounds/2/completions.jsonl --out=out/rounds/2/data

Writes what `python reward.py --data=OUT` reads. With --fold the held-out labels are those of valid
prompts: `train_labelers` are the groups that are trained on, `heldout_labelers` the group that is
left out.
"""
import collections
import random
from dataclasses import dataclass
from pathlib import Path

from settings import parse, stop

import numpy as np

from data import records
from labels.simulated import label, labelers_of, pool, town_of

FILES = ("rankings_train", "rankings_valid", "rankings_valid_heldout")


@dataclass
class Settings:
    """Rankings for an experiment. Every setting is --name=value."""
    data: str = "out/toy"  # folder with rankings_*.jsonl and demonstrations_train.jsonl
    out: str = "out/rm-data"  # folder to write
    share: float = 1.0  # of the prompts, the first after a shuffle
    completions: int = 0  # of each prompt, at most; 0: all
    fold: int = -1  # of labelers, that is left out of the training; -1: none
    folds: int = 5  # groups of labelers with about as many rankings each
    pairs: bool = False  # each pair is a ranking of its own: its completions no longer meet
    fresh: str = ""  # files of completions to be ranked too, with commas between
    seed: int = 0  # of the shuffle and the labelers of fresh completions

    BOUNDS = {"completions": "[0, inf)", "fold": "[-1, inf)", "folds": "[2, inf)"}

    def problem(self):
        if self.fold >= self.folds:
            return f"--fold={self.fold} must be below --folds={self.folds}"
        if self.completions == 1:
            return "--completions=1: a ranking has at least two"
        if self.fresh and not all(self.fresh.split(",")):
            return f"--fresh={self.fresh}: expected files with commas between"


def groups(rankings, folds):
    """{labeler: number of its group}: groups of about equally many rankings."""
    counts, sizes, out = collections.Counter(r["labeler"] for r in rankings), [0] * folds, {}
    for name, n in counts.most_common():
        out[name] = sizes.index(min(sizes))
        sizes[out[name]] += n
    return out


def shortened(ranking, k):
    """A ranking of the first k completions."""
    every = ("completions", "ranks", "likert", "flags", "expected")
    return {**ranking, **{name: ranking[name][:k] for name in every
                          if isinstance(ranking.get(name), list)}}


def as_pairs(ranking):
    """The untied pairs of a ranking, each as a ranking of two."""
    return [{"prompt": ranking["prompt"], "labeler": ranking.get("labeler"), "ranks": [1, 2],
             "completions": [ranking["completions"][i], ranking["completions"][j]]}
            for i, j in records.untied_pairs(ranking["ranks"])]


def ranked(files, folder, seed):
    """Rankings of fresh completions, by the training labelers of a town, with their noise."""
    facts, town = labelers_of(folder), town_of(folder)
    labelers, _ = pool(facts["seed"])
    rng, out = np.random.default_rng([seed, 31]), []
    for file in files:
        out += [label(town, p, labelers[rng.integers(len(labelers))], labelers, "train",
                      facts["sharpness"], rng)
                for p in records.read(file, "sampled prompt", "python -m labels.sample")]
    return out


def chosen(every, s):
    """{file: rankings} that the settings ask for."""
    train, valid, heldout = every
    if s.fold >= 0:
        if not all(records.is_text(r.get("labeler")) for r in [*train, *valid]):
            stop(f"--fold={s.fold}: {s.data} has rankings without the name of a 'labeler'")
        of = groups(train, s.folds)
        others = lambda rankings: [r for r in rankings if of.get(r["labeler"]) != s.fold]
        heldout = [r for r in valid if of.get(r["labeler"]) == s.fold]
        train, valid = others(train), others(valid)
    train = list(train)
    random.Random(f"rankings {s.seed}").shuffle(train)
    train = train[: max(1, round(s.share * len(train)))]
    if s.completions:
        train = [shortened(r, s.completions) for r in train]
    if s.fresh:
        train += ranked(s.fresh.split(","), Path(s.data), s.seed)
    if s.pairs:
        train = [pair for r in train for pair in as_pairs(r)]
    if not train:
        stop(f"{s.out}: no ranking is left to train on")
    return dict(zip(FILES, (train, valid, heldout)))


def main():
    s = parse(Settings)
    hint = "python -m labels.simulated"
    records.other_folder(s.out, s.data)
    own = chosen([records.read(f"{s.data}/{name}.jsonl", "ranking", hint) for name in FILES], s)
    for name, rankings in own.items():
        records.write(f"{s.out}/{name}.jsonl", rankings)
    records.write(f"{s.out}/demonstrations_train.jsonl",  # they set the bias of the scores
                  records.read(f"{s.data}/demonstrations_train.jsonl", "demonstration"))
    records.write_json(f"{s.out}/rankings.json", {name: len(r) for name, r in own.items()})
    print(f"{s.out}: " + ", ".join(f"{name} {len(r):,}" for name, r in own.items()))


if __name__ == "__main__":
    main()

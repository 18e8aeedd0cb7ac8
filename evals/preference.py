"""Which of two models is preferred, on any prompts (section 3.6 of the paper), and hallucinations.

    --prompts=FILE      every model answers; a reward model (--rm) compares, or the town's labelers
    --rankings=FILE     people have ranked: the labelling page's records, or labels/simulated.py's

A win counts 1, a tie 1/2; the interval is a bootstrap over prompts. Rankings may also hold Likert
scores and flags; then the mean score and the share of each flag are reported for each model, and
hallucinations among the answers to closed-domain prompts: those whose answer must come from a text
in the prompt alone.
"""
import itertools
from pathlib import Path

from settings import stop  # before torch

import torch

from data import records
from data.batches import encode_prompt, encode_response, pad
from data.toy.tasks import gold
from data.toy.town import Town
from evals.tasks import Metric
from evals.town import likert, win_rate
from labels.simulated import pool
from model import ScalarGPT, last_score
from runtime.checkpoint import load
from runtime.world import groups_by_tokens

CLOSED = ("summarization", "closed_qa", "extract")  # categories whose domain is the given text
METRICS = {
    "win_rate": Metric("share of prompts on which the first model is preferred, ties half"),
    "score": Metric("mean score of the reward model; demonstrations score 0"),
    "likert": Metric("mean Likert score, 1 to 7"),
    "hallucination": Metric("share of answers to closed-domain prompts that say what the given "
                            "text does not")}


def versus(names, wanted):
    """The pairs of --versus whose models are both there; without any all pairs of names."""
    pairs = [tuple(pair.split("/", 1)) for pair in wanted.split(",") if "/" in pair]
    pairs = [pair for pair in pairs if set(pair) <= set(names)]
    return pairs or list(itertools.combinations(names, 2))


def is_closed(record):
    """Whether a prompt is closed-domain: by its mark where it has marks, else by its category."""
    if "marks" in record:
        return bool(record["marks"].get("closed_domain"))
    return record.get("category") in CLOSED


# ----------------------------------------------------------------------------------- people

def won(ranks, models, first, second):
    """The share of pairs of their completions that `first` wins against `second` in one ranking;
    None if one of the two has none."""
    a, b = ([r for r, m in zip(ranks, models) if m == name] for name in (first, second))
    points = [(x < y) + 0.5 * (x == y) for x in a for y in b]
    return sum(points) / len(points) if points else None


def by_prompt(values):
    """[(prompt, number or None)] -> [mean] of each prompt, in the order of their first number."""
    groups = {}
    for prompt, value in values:
        if value is not None:
            groups.setdefault(prompt, []).append(value)
    return [sum(own) / len(own) for own in groups.values()]


def from_rankings(path, wanted):
    """[(model or pair, metric, numbers)] of a file of rankings."""
    rows = records.read(path, "ranking")
    models = [[c.get("model") for c in r["completions"]] for r in rows]
    names = sorted({m for own in models for m in own if m})
    if not names:
        stop(f"{path}: no completion has a \"model\", so nobody can win")
    out = [(f"{a} vs {b}", "win_rate",
            by_prompt([(r["prompt"], won(r["ranks"], own, a, b)) for r, own in zip(rows, models)]))
           for a, b in versus(names, wanted)]
    for name in names:
        mine = [(r, i) for r, own in zip(rows, models) for i, m in enumerate(own) if m == name]
        out.append((name, "likert", by_prompt([(r["prompt"], r["likert"][i]) for r, i in mine
                                               if "likert" in r])))
        shares = {}
        for r, i in mine:
            for flag, value in (r["flags"][i] if "flags" in r else {}).items():
                if flag != "hallucination" or is_closed(r):
                    shares.setdefault(flag, []).append((r["prompt"], float(value)))
        out += [(name, flag if flag == "hallucination" else f"flag: {flag}", by_prompt(values))
                for flag, values in shares.items()]
    return [row for row in out if row[2]]


# ----------------------------------------------------------------------------------- simulated

@torch.no_grad()
def reward_scores(model, tokenizer, prompts, answers, world, tokens):
    """The reward model's score of each answer (text, ended); None where there is none, or where
    it does not fit."""
    rows = [encode_prompt(tokenizer, p) + encode_response(tokenizer, *a) if a else []
            for p, a in zip(prompts, answers)]
    rows = [row if len(row) <= model.config.block_size else [] for row in rows]
    out, mine = [None] * len(rows), world.share(list(range(len(rows))))
    mine = [i for i in mine if rows[i]]
    found = []
    for group in groups_by_tokens([len(rows[i]) for i in mine], tokens):
        ids, lengths = pad([rows[mine[k]] for k in group])
        scores = last_score(model(ids.to(world.device)), lengths.to(world.device)).tolist()
        found += [(mine[k], score) for k, score in zip(group, scores)]
    for part in every_rank(world, found):
        for i, score in part:
            out[i] = score
    return out


def every_rank(world, rows):
    """The lists of all ranks; `World.gather` needs one element of each."""
    return world.gather([rows])


def by_reward(s, prompts, answers, world):
    """[(model or pair, metric, numbers)]: the reward model scores every answer."""
    model, tokenizer, _ = load(s.rm, {"ScalarGPT": ScalarGPT}, "python reward.py")
    model.to(world.device).eval()
    scores = {name: reward_scores(model, tokenizer, [p["prompt"] for p in prompts], own, world,
                                  s.batch_tokens) for name, own in answers.items()}
    out = [(name, "score", own) for name, own in scores.items()]
    for a, b in versus(list(answers), s.versus):
        points = [None if None in (x, y) else (x > y) + 0.5 * (x == y)
                  for x, y in zip(scores[a], scores[b])]
        out.append((f"{a} vs {b}", "win_rate", points))
    return out


def by_town(s, prompts, answers):
    """[(model or pair, metric, numbers or a finished interval)]: the town's held-out labelers."""
    facts = records.read_json(f"{s.data}/labelers.json", "python -m labels.simulated")
    town = Town(records.read_json(f"{s.data}/world.json", "python -m data.toy.world")["seed"])
    _, heldout = pool(facts["seed"])
    answers = {name: [said or ("", False) for said in own] for name, own in answers.items()}
    out = []
    for a, b in versus(list(answers), s.versus):
        rate = win_rate(town, prompts, answers[a], answers[b], heldout, facts["sharpness"],
                        s.votes, s.seed)
        out.append((f"{a} vs {b}", "win_rate", {"value": rate.pop("mean"), **rate}))
    for name, own in answers.items():
        score = likert(town, prompts, own, heldout, facts["sharpness"], s.seed)
        out.append((name, "likert", {"value": score, "low": None, "high": None, "n": len(own)}))
        closed = [float(gold(town, p["task"], *said)["flags"]["hallucinates"])
                  for p, said in zip(prompts, own) if is_closed(p)]
        out.append((name, "hallucination", closed))
    return out


def read_prompts(s):
    """The prompts of --prompts, --limit of them from the beginning."""
    kind = "test prompt" if s.judge == "town" else "prompt"
    return records.read(Path(s.prompts), kind)[: s.limit or None]


def answer(reader, prompts, s):
    """[(text, ended)]: one answer to each prompt in the template of the model; None to one that
    does not fit its context."""
    room = reader.model.config.block_size - s.max_new_tokens
    ids = [encode_prompt(reader.tokenizer, p["prompt"]) for p in prompts]
    fit = [i for i, own in enumerate(ids) if len(own) <= room]
    if not fit:
        stop(f"{s.prompts}: no prompt leaves room for --max_new_tokens={s.max_new_tokens} in a "
             f"context of {reader.model.config.block_size}")
    said = reader.write([ids[i] for i in fit], s.max_new_tokens, s.temperature)
    out = [None] * len(ids)
    for i, (only,) in zip(fit, said):
        out[i] = only
    return out

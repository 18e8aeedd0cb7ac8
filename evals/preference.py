"""Which of two models is preferred, on any prompts (section 3.6 of the paper), and hallucinations.

    --prompts=FILE      every model answers; a reward model (--rm) compares, or the town's labelers
    --rankings=FILE     people have ranked: the labelling page's records, or labels/simulated.py's

A win counts 1, a tie 1/2; the interval is a bootstrap over prompts. Rankings may also hold Likert
scores and flags; then the mean score and the share of each flag are reported for each model, and
hallucinations among the answers to closed-domain prompts: those whose answer must come from a text
in the prompt alone.
"""
import itertools
import math
from pathlib import Path

from settings import stop  # before torch

import torch

from data import records
from data.batches import encode_prompt, encode_response, pad
from data.toy.tasks import gold
from evals.tasks import Metric
from evals.town import likert, win_rate
from labels.simulated import judgeable, labelers_of, pool, town_of
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

def is_labelled(ranking):
    """Whether the models, Likert scores and flags of a ranking are what they should be, where it
    has any: one for each completion."""
    k = len(ranking["completions"])
    likert, flags = ranking.get("likert", [1] * k), ranking.get("flags", [{}] * k)
    models = [c["model"] for c in ranking["completions"] if c.get("model") is not None]
    return (all(isinstance(model, str) for model in models)
            and isinstance(likert, list) and isinstance(flags, list)
            and len(likert) == len(flags) == k
            and all(type(x) in (int, float) and math.isfinite(x) for x in likert)
            and all(isinstance(f, dict) and all(type(x) is bool for x in f.values())
                    for f in flags))


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
    for row in rows:
        if not is_labelled(row):
            stop(f"{path}: the ranking of {records.shorten(row['prompt'])}: expected \"model\" to "
                 "be a string, \"likert\" a list of numbers, \"flags\" a list of {flag: true or "
                 "false}, one for each completion")
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
    return [row for row in out if row[2] or row[1] == "win_rate"]  # a pair that never met: n = 0


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


def comparing(s, prompts, world):
    """by_town or by_reward, as a function of the answers. It reads all that it needs now: a missing
    file must not be found when all models have answered."""
    if s.judge == "town":
        facts, town = labelers_of(s.data), town_of(s.data)
        judgeable(town, prompts, s.prompts)
        return lambda answers: by_town(s, town, facts, prompts, answers)
    model, tokenizer, _ = load(s.rm, {"ScalarGPT": ScalarGPT}, "python reward.py")
    return lambda answers: by_reward(s, model, tokenizer, prompts, answers, world)


def by_reward(s, model, tokenizer, prompts, answers, world):
    """[(model or pair, metric, numbers)]: the reward model scores every answer."""
    model.to(world.device).eval()
    scores = {name: reward_scores(model, tokenizer, [p["prompt"] for p in prompts], own, world,
                                  s.batch_tokens) for name, own in answers.items()}
    out = [(name, "score", own) for name, own in scores.items()]
    for a, b in versus(list(answers), s.versus):
        points = [None if None in (x, y) else (x > y) + 0.5 * (x == y)
                  for x, y in zip(scores[a], scores[b])]
        out.append((f"{a} vs {b}", "win_rate", points))
    return out


def answered(prompts, *answers):
    """The prompts that have each of these answers, and these: lists of one length."""
    rows = [row for row in zip(prompts, *answers) if None not in row]
    return map(list, zip(*rows)) if rows else [[] for _ in (prompts, *answers)]


def by_town(s, town, facts, prompts, answers):
    """[(model or pair, metric, numbers or a finished interval)]: the town's held-out labelers."""
    _, heldout = pool(facts["seed"])
    out = []
    for a, b in versus(list(answers), s.versus):
        rate = win_rate(town, *answered(prompts, answers[a], answers[b]), heldout,
                        facts["sharpness"], s.votes, s.seed)
        out.append((f"{a} vs {b}", "win_rate", {"value": rate.pop("mean"), **rate}))
    for name in answers:
        asked, said = answered(prompts, answers[name])
        score = likert(town, asked, said, heldout, facts["sharpness"], s.seed)
        out.append((name, "likert", {"value": score, "low": None, "high": None, "n": len(said)}))
        invents = [gold(town, p["task"], *own)["flags"]["hallucinates"]
                   for p, own in zip(asked, said) if is_closed(p)]
        out.append((name, "hallucination", [None if x is None else float(x) for x in invents]))
    return out


def read_prompts(s):
    """(the prompts of --prompts, --limit of them from the beginning, notes). A prompt that is there
    several times counts once: its answers are not independent."""
    kind = "test prompt" if s.judge == "town" else "prompt"
    every, once = records.read(Path(s.prompts), kind), {}
    for prompt in every:
        once.setdefault(prompt["prompt"], prompt)
    again = len(every) - len(once)
    return list(once.values())[: s.limit or None], [
        f"{s.prompts}: {again:,} prompts are there again and count once"] if again else []


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

"""Which of two models is preferred, on any prompts (section 3.6 of the paper), and hallucinations.

    --prompts=FILE      every model answers; a reward model (--rm) compares, or the town's labelers
    --rankings=FILE     people have judged: the labelling page's evaluation.jsonl, or rankings

A win counts 1, a tie 1/2; the interval is a bootstrap over prompts. People's Likert scores and
flags become a mean score and the share of each flag for each model, and hallucinations among the
answers to closed-domain prompts: those whose answer must come from a text in the prompt alone.
"""
import itertools

from settings import stop  # before torch

import torch

from data import records
from data.batches import encode_response, pad
from data.tokenizer import encode_prompt
from data.toy.tasks import gold
from evals.tasks import Metric, some
from evals.town import FLAGS, likert, win_rate
from labels.forms import CLOSED
from labels.simulated import judgeable, labelers_of, pool, town_of
from model import ScalarGPT, last_score
from runtime.checkpoint import load
from runtime.world import groups_by_tokens

SAID = {  # what people say about each completion
    "ranks": (lambda x: type(x) is int and x >= 1, "a whole number from 1 (best)"),
    "likert": (lambda x: type(x) is int and 1 <= x <= 7, "a whole number from 1 to 7"),
    "flags": (lambda x: isinstance(x, dict) and all(type(v) is bool for v in x.values()),
              "an object of true and false")}
METRICS = {
    "win_rate": Metric("share of prompts on which the first model is preferred, ties half (the "
                       "paper's: to its 175B SFT model)"),
    "score": Metric("mean score of the reward model; demonstrations score 0"),
    "likert": Metric("mean Likert score, 1 to 7 (the paper)"),
    "hallucination": Metric("share of answers to closed-domain prompts that say what the given "
                            "text does not (the paper)")}
FLAG = "flag: "  # what the metric of a flag begins with


def defined(metric):
    """The definition of a metric, that of a flag included."""
    if metric in METRICS:
        return METRICS[metric].definition
    flag = metric.removeprefix(FLAG)
    about = f" ({FLAGS[flag]}), of those that could have it" if flag in FLAGS else ""
    return f"share of answers with the flag {flag}{about}"


def versus(names, wanted):
    """The pairs of --versus whose models are both there; without any all pairs of names. A name can
    be a path: out/ppo/out/sft are two models."""
    known = {f"{a}/{b}": (a, b) for a in names for b in names}
    pairs = [known[pair] for pair in wanted.split(",") if pair in known]
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


def read_judged(path):
    """The records of a file in which people ranked completions, rated them, or both. Stops where
    what they said does not go with the completions."""
    rows = records.read(path, "to label")
    for number, row in enumerate(rows, 1):
        for field, (valid, expected) in SAID.items():
            own = row.get(field, [])
            if field in row and not (isinstance(own, list) and all(map(valid, own))
                                     and len(own) == len(row["completions"])):
                stop(f"{path}: record {number}: field {field!r}: expected {expected} for each of "
                     f"the {len(row['completions'])} completions, got {records.shorten(own)}")
        models = [c["model"] for c in row["completions"] if c.get("model") is not None]
        if not all(isinstance(model, str) for model in models):
            stop(f"{path}: record {number}: expected \"model\" to be a string, "
                 f"got {records.shorten(models)}")
    return rows


def from_rankings(path, wanted):
    """[(model or pair, metric, numbers)] of a file of what people said."""
    rows = read_judged(path)
    models = [[c.get("model") for c in r["completions"]] for r in rows]
    names = sorted({m for own in models for m in own if m})
    if not names:
        stop(f"{path}: no completion has a \"model\", so nobody can win")
    out = [(f"{a} vs {b}", "win_rate",
            by_prompt([(r["prompt"], won(r["ranks"], own, a, b)) for r, own in zip(rows, models)
                       if "ranks" in r])) for a, b in versus(names, wanted)]
    for name in names:
        mine = [(r, i) for r, own in zip(rows, models) for i, m in enumerate(own) if m == name]
        out.append((name, "likert", by_prompt([(r["prompt"], r["likert"][i]) for r, i in mine
                                               if "likert" in r])))
        shares = {}
        for r, i in mine:
            for flag, value in (r["flags"][i] if "flags" in r else {}).items():
                if flag != "hallucination" or is_closed(r):
                    shares.setdefault(flag, []).append((r["prompt"], float(value)))
        out += [(name, flag if flag == "hallucination" else f"{FLAG}{flag}", by_prompt(values))
                for flag, values in shares.items()]
    return [row for row in out if row[2] or row[1] == "win_rate"]  # a pair that never met: n = 0


# ----------------------------------------------------------------------------------- simulated

@torch.no_grad()
def reward_scores(model, tokenizer, prompts, answers, world, tokens):
    """The reward model's score of each answer (text, ended); None where there is none, or where
    it does not fit."""
    rows = [encode_prompt(tokenizer, p) + encode_response(tokenizer, *a) if a else []
            for p, a in zip(prompts, answers)]
    fit = [i for i, row in enumerate(rows) if 0 < len(row) <= model.config.block_size]
    mine, found = world.share(fit), []
    for group in groups_by_tokens([len(rows[i]) for i in mine], tokens):
        ids, lengths = pad([rows[mine[k]] for k in group])
        scores = last_score(model(ids.to(world.device)), lengths.to(world.device)).tolist()
        found += [(mine[k], score) for k, score in zip(group, scores)]
    score_of = dict(pair for part in every_rank(world, found) for pair in part)
    return [score_of.get(i) for i in range(len(rows))]


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


def by_town(s, town, facts, prompts, answers):
    """[(model or pair, metric, numbers)]: the town's held-out labelers."""
    _, heldout = pool(facts["seed"])
    sharp, out = facts["heldout_sharpness"], []
    seed = lambda i: 1_000_003 * s.seed + i  # labelers and noise of its own for each prompt
    for a, b in versus(list(answers), s.versus):
        out.append((f"{a} vs {b}", "win_rate", [
            None if None in (x, y) else win_rate(town, [p], [x], [y], heldout, sharp, s.votes,
                                                 seed(i))["mean"]
            for i, (p, x, y) in enumerate(zip(prompts, answers[a], answers[b]))]))
    for name, own in answers.items():
        said = [(i, p, r) for i, (p, r) in enumerate(zip(prompts, own)) if r]
        out.append((name, "likert", [likert(town, [p], [r], heldout, sharp, seed(i))
                                     for i, p, r in said]))
        out += [(name, metric, values) for metric, values in flags(
            [(p, gold(town, p["task"], *r)["flags"]) for _, p, r in said]).items()]
    return out


def flags(judged):
    """{metric: numbers} of [(prompt, the town's flags of an answer)]. A flag is a share of the
    answers that could have it; hallucinations are counted over closed-domain prompts."""
    out = {"hallucination": [float(own["hallucinates"]) for prompt, own in judged
                             if is_closed(prompt) and own["hallucinates"] is not None]}
    for flag in FLAGS:
        if flag != "hallucinates":
            out[f"{FLAG}{flag}"] = [float(bool(own[flag])) for _, own in judged
                                    if own[flag] is not None]
    return out


def read_prompts(s):
    """(--limit of the prompts of --prompts, each of them once, notes)."""
    kind, notes = "test prompt" if s.judge == "town" else "prompt", []
    every = records.read_once(s.prompts, kind, tell=notes.append)
    return some(every, s.limit, s.seed), notes


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

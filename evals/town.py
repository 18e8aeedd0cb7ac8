"""The toy world's own evaluation: which model is preferred, where the truth is known.

Every model answers the same test prompts at temperature 1. Held-out labelers, who gave no training
label, compare the answers with truth and harmlessness first (section 3.4); the gold score measures
their true quality; few-shot probes of the raw text measure the alignment tax.

A flag is a share of the answers that could have it: constraints are counted over prompts that set
one, hallucinations over closed-domain prompts (Fig. 4). Those are rare in Table 1's mixture, so
prompts_groups.jsonl has more of them, drawn alike. Its other groups are what the feedback shows
seldom or never; they count for themselves and for nothing else.
"""
import random
import re
from pathlib import Path

from settings import stop  # before torch

import numpy as np

from data import records
from data.tokenizer import encode_prompt
from data.toy.tasks import constraints, gold, good
from labels.simulated import (FEATURES, features, impressions, judgeable, labelers_of, pool, rank,
                              rate, town_of)
from model import GPT
from runtime.checkpoint import load
from runtime.machine import precision
from sampler import generate

FLAGS = {"attempts": "attempts the instruction", "constraint": "satisfies its constraints",
         "hallucinates": "hallucinates (closed domain)", "false": "claims something false",
         "rude": "rude", "rambling": "rambles", "courteous": "closes with a courtesy"}
CONSTRAINED = {1: "one constraint", 2: "two constraints", 3: "three constraints"}

WORD = 6  # tokens sampled for the answer to a probe


def pairs(flag, value, mark):
    """The pairs that a setting names: [(text before the mark, text after it)]."""
    out = [pair.split(mark, 1) for pair in value.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in out):
        stop(f"--{flag}={value}: expected pairs with {mark!r} within and commas between")
    return out


def named_models(s):
    """[(name, path)] of --models. Names stand in tables, in files' names, and in --versus."""
    out = pairs("models", s.models, "=")
    for i, (name, _) in enumerate(out):
        if name in [other for other, _ in out[:i]]:
            stop(f"--models={s.models}: two models have the name {name}")
        if not re.fullmatch(r"[^\s./\\|][^\n/\\|]*", name):
            stop(f"--models={s.models}: a name has no / and no |, and begins with no point: "
                 f"{name!r}")
    return out


def is_prompted(name):
    """Whether a model's name asks for a few-shot prefix: prompted, base-prompted; not unprompted.
    """
    return re.search(r"(^|[^A-Za-z])prompted$", name) is not None


def respond(model, tokenizer, texts, s, temperature, max_new_tokens):
    """One response to each encoded prompt: [(text, ended)], in the prompts' order."""
    out = [None] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(texts), 256):
        part = by_length[start : start + 256]
        samples = generate(model, [texts[i] for i in part], max_new_tokens, tokenizer.eos,
                           temperature, s.seed, part)
        for i, ids, ended in zip(part, samples.responses(), samples.ended.tolist()):
            out[i] = (tokenizer.decode(ids), ended)
    return out


def mean(values):
    """The mean; None for an empty list."""
    return float(np.mean(values)) if len(values) else None


def interval(values):
    """Mean and 95 % interval (normal, over prompts) of per-prompt values; None for what too few
    values cannot give."""
    middle, low, high = mean(values), None, None
    if len(values) > 1:
        half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
        low, high = round(middle - half, 4), round(middle + half, 4)
    return {"mean": None if middle is None else round(middle, 4), "low": low, "high": high,
            "n": len(values)}


def proportion(values):
    """Like `interval`, for yes or no: Wilson's interval, which is never empty at 0 % or 100 %."""
    n, z = len(values), 1.96
    if not n:
        return interval(values)
    share = sum(values) / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return {"mean": round(share, 4), "low": round(max(0.0, middle - half), 4),
            "high": round(min(1.0, middle + half), 4), "n": n}


def win_rate(town, prompts, first, second, labelers, sharpness, votes, seed, taste=True):
    """How often labelers prefer `first` to `second`, ties counting half; see `interval`.

    first, second: [(text, ended)] for each prompt. Each vote is one labeler's ranking of the two.
    taste: whether they see courtesies, which the gold score ignores.
    """
    rng, values = np.random.default_rng([seed, 21]), []
    for prompt, a, b in zip(prompts, first, second):
        x = np.stack([features(town, prompt["task"], *a), features(town, prompt["task"], *b)])
        x[:, FEATURES.index("courteous")] *= taste
        won = []
        for i in rng.choice(len(labelers), votes, replace=votes > len(labelers)):
            r, t = rank(labelers[i], impressions(labelers[i], x, (a[0], b[0]), "evaluate",
                                                 sharpness, rng))
            won.append((r < t) + 0.5 * (r == t))
        values.append(sum(won) / votes)
    return interval(values)


def right_answers(town, prompts, seed):
    """A right answer to each prompt, as in a demonstration: [(text, ended)]. Labelers are noisy:
    how often they prefer these to a model's is about the most that a win rate over it reaches."""
    rng = random.Random(seed)
    return [(good(rng, town, prompt["task"]), True) for prompt in prompts]


def flag_shares(judged):
    """{flag: its share of the answers that could have it} of answers with their gold scores."""
    flags = [g["flags"] for g in judged]
    return {f: proportion([bool(x[f]) for x in flags if x[f] is not None]) for f in FLAGS}


def groups_of(town, prompt):
    """The names of the groups that a prompt counts in."""
    if "group" in prompt:
        return [prompt["group"]]
    number = constraints(town, prompt["task"])
    return [CONSTRAINED[number]] if number in CONSTRAINED else []


def by_group(town, prompts, judged):
    """{group: its mean gold score and quality, and its flags}, each with interval and n."""
    members = {group: [] for group in CONSTRAINED.values()}
    for prompt, g in zip(prompts, judged):
        for group in groups_of(town, prompt):
            members.setdefault(group, []).append(g)
    return {group: {"gold": interval([g["score"] for g in own]),
                    "quality": interval([g["flags"]["quality"] for g in own]), **flag_shares(own)}
            for group, own in members.items() if own}


def likert(town, prompts, responses, labelers, sharpness, seed):
    """The mean of held-out labelers' Likert scores, 1 to 7."""
    rng, scores = np.random.default_rng([seed, 22]), []
    for prompt, response in zip(prompts, responses):
        x = features(town, prompt["task"], *response)[None]
        labeler = labelers[rng.integers(len(labelers))]
        seen = impressions(labeler, x, response[:1], "evaluate", sharpness, rng)
        scores += rate(labeler, seen, "evaluate", sharpness)
    return mean(scores)


def probe(model, tokenizer, probes, s):
    """The share of probes of each kind, and of all kinds alike, that the model completes with the
    right word, greedily; each kind's also with its interval."""
    texts = [tokenizer.encode(p["text"]) for p in probes]
    said = respond(model, tokenizer, texts, s, 0.0, WORD)
    right = {}
    for p, (text, _) in zip(probes, said):
        word = text.split()[0].strip(".,") if text.split() else ""
        right.setdefault(p["probe"], []).append(word == p["answer"])
    kinds = {kind: mean(v) for kind, v in right.items()}
    return {"probe_kinds": kinds, "probes": mean(list(kinds.values())),
            "probe_interval": {kind: proportion(v) for kind, v in right.items()}}


def prefix(tokenizer, demonstrations, room):
    """The few-shot prefix of the prompted base model: demonstrations up to `room` tokens."""
    lines = ""
    for d in sorted(demonstrations, key=lambda d: len(d["prompt"]) + len(d["response"])):
        more = lines + f"{d['prompt']}\n{d['response']}\n"
        if len(tokenizer.encode(more)) > room:
            break
        lines = more
    return lines


def encoded(name, path, model, tokenizer, prompts, demos, probes, s):
    """The ids of the prompts as this model gets them. Stops if one of them, or a probe, does not
    fit its context."""
    block_size = model.config.block_size
    texts = [encode_prompt(tokenizer, p["prompt"]) for p in prompts]
    cues = [tokenizer.encode(p["text"]) for p in probes]
    for what, ids, new in ((f"prompts_test.jsonl: a prompt of {{}} tokens and --max_new_tokens="
                            f"{s.max_new_tokens}", texts, s.max_new_tokens),
                           (f"probes.jsonl: a probe of {{}} tokens and the {WORD} of its answer",
                            cues, WORD)):
        if (longest := max(map(len, ids))) + new > block_size:
            stop(f"{s.data}/{what.format(longest)} do not fit the context of {name}, {block_size}")
    if not is_prompted(name):
        return texts
    room = block_size - s.max_new_tokens  # the prefix takes what a prompt leaves
    leads = [tokenizer.encode(prefix(tokenizer, demos, room - len(t))) for t in texts]
    if not any(leads):
        stop(f"no demonstration fits before a prompt: {name} is {path}")
    return [lead + t for lead, t in zip(leads, texts)]


def read_models(s, prompts, demos, probes):
    """{name: (model, tokenizer, its facts, ids of the prompts)}. Reads all before it samples from
    any: an error in the last one must not cost the others' answers."""
    out = {}
    for name, path in named_models(s):
        model, tokenizer, meta = load(path, {"GPT": GPT}, "make demo")
        texts = encoded(name, path, model, tokenizer, prompts, demos, probes, s)
        out[name] = model, tokenizer, meta, texts
    return out


def seconds_of(s, rm):
    """How long each step took, for those that recorded it."""
    found = {"rm": rm}
    for step, file in (("world", "world.json"), ("samples", "completions_train.facts.json"),
                       ("labels", "labelers.json")):
        if Path(s.data, file).exists():
            found[step] = records.read_json(Path(s.data, file), "make demo")
    return {step: facts["seconds"] for step, facts in found.items()
            if isinstance(facts.get("seconds"), records.NUMBER)}


TABLES = ("win_rate", "win_rate_without_taste", "gold", "gold_interval", "gold_parts", "flags",
          "groups", "likert", "right_preferred", "probes", "probe_kinds", "probe_interval",
          "parameters", "seconds")


def judge(town, prompts, judged, n):
    """What the gold scores of a model's answers say. The first n prompts are the test set."""
    test = judged[:n]
    shares = flag_shares(test)
    more = [g for p, g in zip(prompts[n:], judged[n:]) if p.get("group") == "closed domain"]
    shares["hallucinates"] = flag_shares(test + more)["hallucinates"]
    score = interval([g["score"] for g in test])
    return {"gold": score["mean"], "gold_interval": score, "flags": shares,
            "gold_parts": {k: mean([g[k] for g in test]) for k in ("helpful", "honest",
                                                                   "harmless")},
            "groups": by_group(town, prompts, judged)}


def evaluate(s, world):
    """Everything that results.json holds, and each model's answers."""
    prompts, groups = (
        records.read_once(f"{s.data}/prompts_{name}.jsonl", "test prompt", same=same,
                          tell=world.print)
        for name, same in (("test", ["prompt"]), ("groups", ["prompt", "group"])))
    probes = records.read_once(f"{s.data}/probes.jsonl", "probe", "probes", ["text", "probe"],
                               world.print)
    demos = records.read(f"{s.data}/demonstrations_train.jsonl", "demonstration")
    facts, town = labelers_of(s.data), town_of(s.data)
    judgeable(town, prompts, f"{s.data}/prompts_test.jsonl")
    judgeable(town, groups, f"{s.data}/prompts_groups.jsonl")
    rm = records.read_json(f"{s.rm}/checkpoint.json", "python reward.py")
    measured = rm.get("accuracy")
    if not (isinstance(measured, dict)
            and all(isinstance(x, records.NUMBER) for x in measured.values())):
        stop(f"{s.rm} is no reward model of ours: run `python reward.py` first")
    versus, seconds = pairs("versus", s.versus, "/"), seconds_of(s, rm)
    _, heldout = pool(facts["seed"])
    everything = prompts + groups
    models = read_models(s, everything, demos, probes)
    records.make_folder(s.out)
    records.claim(s.out)
    results = {"labeler_agreement": facts["agreement"],
               "heldout_agreement": facts["heldout_agreement"], **{name: {} for name in TABLES}}
    answers, right = {}, right_answers(town, prompts, s.seed)
    sharp = facts["heldout_sharpness"]
    votes = lambda a, b, taste=True: win_rate(town, prompts, a, b, heldout, sharp, s.votes,
                                              s.seed, taste)
    for name in list(models):
        model, tokenizer, meta, texts = models.pop(name)
        model.to(world.device)
        precision(s.dtype, world, model.config.n_embd)
        answers[name] = respond(model, tokenizer, texts, s, s.temperature, s.max_new_tokens)
        judged = [gold(town, p["task"], *r) for p, r in zip(everything, answers[name])]
        own = {**judge(town, everything, judged, len(prompts)),
               "likert": likert(town, prompts, answers[name], heldout, sharp, s.seed),
               "right_preferred": votes(right, answers[name]),
               **probe(model, tokenizer, probes, s),
               "parameters": sum(p.numel() for p in model.parameters())}
        if "seconds" in meta:  # models of the hub have no training time
            own["seconds"] = meta["seconds"]
        for table, value in own.items():
            results[table][name] = value
    results["groups"] = {group: {name: own[group] for name, own in results["groups"].items()}
                         for group in results["groups"][name]}
    results["rm_accuracy"] = measured
    results["seconds"].update(seconds)
    for a, b in versus:
        if a in answers and b in answers:
            for key, taste in (("win_rate", True), ("win_rate_without_taste", False)):
                results[key][f"{a} vs {b}"] = votes(answers[a], answers[b], taste)
    return results, everything, answers

"""Prompts and completions -> items of the labelling page: which outputs are shown, who labels them.
"""
import hashlib
import json
import math
import re

from labels import forms
from labels.exporting import split_of

MOST = len(forms.LETTERS)  # outputs of an item


def wrong_weights(weights, models):
    """What is wrong with --weights, the relative frequency of each of --models; None if nothing."""
    try:
        numbers = [float(w) for w in weights.split(",")]
    except ValueError:
        numbers = []
    if not (all(0 <= w < math.inf for w in numbers) and sum(numbers) > 0):
        return f"--weights={weights}: expected numbers >= 0 with commas between, not all 0"
    if len(numbers) != (n := len(models.split(","))):
        return f"--weights={weights}: expected a number for each of the {n} --models"


def words(text):
    return set(re.findall(r"\w+", text.lower()))


def difference(a, b):
    """How different two sets of words are: 0 the same, 1 nothing in common."""
    return 1 - len(a & b) / len(a | b) if a | b else 0.0


def most_different(texts, k):
    """k of the texts, in their order: the first, then each time the one that is least like those
    chosen so far. A ranking of them says more than one of texts that are nearly the same."""
    sets = [words(t) for t in texts]
    chosen, nearest = [0], [difference(s, sets[0]) for s in sets]
    while len(chosen) < min(k, len(texts)):
        best = max((i for i in range(len(texts)) if i not in chosen), key=lambda i: nearest[i])
        chosen.append(best)
        nearest = [min(d, difference(s, sets[best])) for d, s in zip(nearest, sets)]
    return [texts[i] for i in sorted(chosen)]


def bounds(s):
    """How many different outputs an item has, at least and at most. An evaluation takes what there
    is: it must not choose among the models."""
    least, most = (2, MOST) if s.priority == "truthful" else (s.k_min, min(s.k_max, MOST))
    return (least if "rank" in s.task else 1), most


def make_item(record, number, s):
    """A record with a prompt, and completions unless it is to be demonstrated, -> an item, or None
    where nothing can be compared. s: settings of labels/page.py."""
    texts = list(dict.fromkeys(c["text"] for c in record.get("completions", [])))
    task = s.task if "completions" in record else "demonstrate"
    if task != "demonstrate":
        least, most = bounds(s)
        texts = most_different(texts, most)
        if len(texts) < least:
            return None
        record = {**record, "completions": [c for c in record["completions"]
                                            if c["text"] in texts]}
    marks = dict(record.get("marks", {}))
    marks.setdefault("closed_domain", record.get("category") in forms.CLOSED)
    source = json.dumps([record["prompt"], sorted(texts), task, s.priority])
    screening = record.get("screening") is True or task != "demonstrate" and number < s.screening
    return {"prompt": record["prompt"], "task": task, "priority": s.priority, "texts": texts,
            "split": "valid" if screening else split_of(record["prompt"], s.valid),
            "wanted": 1 + (split_of(f"twice {record['prompt']}", s.twice) == "valid"),
            "screening": int(screening), "record": json.dumps({**record, "marks": marks}),
            "source": hashlib.sha256(source.encode()).hexdigest()}


def make_items(records, s):
    """(the first --prompts items of the records, how many records before them gave none)."""
    made, none = [], 0
    for record in records:
        if s.prompts and len(made) == s.prompts:
            break
        item = make_item(record, len(made), s)
        made += [item] * (item is not None)
        none += item is None
    return made, none

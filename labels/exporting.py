"""The answers as records: what reward.py, sft.py and evaluate.py read, unchanged.

    rankings_train.jsonl, rankings_valid.jsonl      by training labelers (and the owner)
    rankings_valid_heldout.jsonl                    by held-out labelers
    demonstrations_train.jsonl, demonstrations_valid.jsonl, prompts_train.jsonl, prompts_valid.jsonl
    ratings.jsonl                                   ratings of items that were not ranked
    evaluation.jsonl                                ratings and rankings with truth first

Each record keeps the other fields of the prompt's own record, and has the labeler, the group, the
Likert scores, the flags, the marks, the notes and the seconds.
"""
import hashlib
import json
from pathlib import Path

from data import records

FILES = {  # name: kind of record, None where no program of ours reads it
    "rankings_train": "ranking", "rankings_valid": "ranking", "rankings_valid_heldout": "ranking",
    "demonstrations_train": "demonstration", "demonstrations_valid": "demonstration",
    "prompts_train": "prompt", "prompts_valid": "prompt", "ratings": None, "evaluation": None}


def dense(columns):
    """Columns, some of them empty -> ranks from 1 without gaps; [3, 5, 3] -> [1, 2, 1]."""
    order = sorted(set(columns))
    return [order.index(column) + 1 for column in columns]


def few_shot(instruction, pairs):
    """An instruction and K pairs -> K demonstrations, [(prompt, response)]: each pair once, the
    others before it as its examples (App. A.3)."""
    shown = lambda query, response: f"Input: {query}\nOutput:{response}"
    out = []
    for i, (query, response) in enumerate(pairs):
        others = [shown(q, f" {r}") for j, (q, r) in enumerate(pairs) if j != i]
        out.append(("\n\n".join([instruction, *others, shown(query, "")]), response))
    return out


def split_of(key, share):
    """"valid" for this share of all keys, by their hash; else "train"."""
    return "valid" if int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) < share * 2 ** 32 else (
        "train")


def labelled(store):
    """[(file name, record)] of the finished items of labelers whose work counts."""
    out = []
    for a in store.all(
            "SELECT s.id, s.item, labeler.name, labeler.grp, item.record, item.priority, "
            "item.split, item.task FROM assignment s JOIN labeler ON labeler.id = s.labeler JOIN "
            "item ON item.id = s.item WHERE s.state = 'done' AND NOT labeler.removed AND "
            "item.task != 'demonstrate' ORDER BY s.item, s.id"):
        record = record_of(store, a)
        name = "evaluation" if a["priority"] == "truthful" else "ratings"
        if name == "ratings" and "ranks" in record:
            heldout = "_heldout" if a["grp"] == "heldout" else ""
            name = f"rankings_{a['split']}{heldout}"
        out.append((name, record))
    return out


def record_of(store, a):
    """The record of a finished assignment: completions as they were in the prompt's record (the
    same text may be there several times), with what the labeler said about each."""
    record = json.loads(a["record"])
    texts = {o["id"]: o["text"] for o in store.all("SELECT * FROM output WHERE item = ?",
                                                   a["item"])}
    record.update(labeler=a["name"], group=a["grp"], priority=a["priority"])
    seconds, completions = 0.0, record["completions"]
    ratings = store.all("SELECT * FROM rating WHERE assignment = ?", a["id"])
    if ratings:
        of = {texts[r["output"]]: r for r in ratings}
        own = [of[c["text"]] for c in completions]
        record["likert"] = [r["likert"] for r in own]
        record["flags"] = [json.loads(r["flags"]) for r in own]
        record["notes"] = [r["note"] for r in own]
        seconds += sum(r["seconds"] for r in ratings)
    ranking = store.one("SELECT * FROM ranking WHERE assignment = ?", a["id"])
    if ranking:
        column = {texts[int(n)]: c for n, c in json.loads(ranking["ranks"]).items()}
        record["ranks"] = dense([column[c["text"]] for c in completions])
        record["note"] = ranking["note"]
        seconds += ranking["seconds"]
    marks = store.one("SELECT * FROM marks WHERE assignment = ?", a["id"])
    if marks:
        record["marks"] = json.loads(marks["marks"])
        seconds += marks["seconds"]
    return {**record, "seconds": round(seconds, 1)}


def written(store, valid):
    """[(file name, record)] of what labelers wrote: each demonstration, and its prompt."""
    out = []
    for w in store.all(
            "SELECT writing.*, labeler.name, labeler.grp, item.split, score.score FROM writing "
            "JOIN labeler ON labeler.id = writing.labeler LEFT JOIN assignment s ON s.id = "
            "writing.assignment LEFT JOIN item ON item.id = s.item LEFT JOIN score ON "
            "score.writing = writing.id WHERE NOT labeler.removed AND "
            "coalesce(s.state, 'done') = 'done' ORDER BY writing.id"):
        fields = json.loads(w["fields"])
        pairs = (few_shot(fields["instruction"], fields["pairs"]) if w["kind"] == "few_shot"
                 else [(fields["prompt"], fields["response"])])
        rest = {"kind": w["kind"], "labeler": w["name"], "group": w["grp"],
                "marks": json.loads(w["marks"]), "seconds": w["seconds"]}
        rest.update({k: fields[k] for k in ("category", "use_case") if k in fields})
        if w["score"] is not None:
            rest["score"] = w["score"]
        split = w["split"] or split_of(w["form"], valid)
        for prompt, response in pairs:
            out.append((f"demonstrations_{split}", {"prompt": prompt, "response": response,
                                                    **rest}))
            if w["kind"] != "given":
                out.append((f"prompts_{split}", {"prompt": prompt, **rest}))
    return out


def export(store, valid=0.1):
    """All records, {file name: [record]}, each checked as the program that reads it checks it.
    valid: the share of what is written that is held out for validation."""
    out = {name: [] for name in FILES}
    for name, record in [*labelled(store), *written(store, valid)]:
        kind = FILES[name]
        out[name].append(records.check(record, kind, name) if kind else record)
    return out


def write(store, folder, valid=0.1):
    """Write the files that have a record, and remove earlier ones that have none now. Returns
    {path: how many}."""
    counts = {}
    for name, rows in export(store, valid).items():
        path = Path(folder) / f"{name}.jsonl"
        if rows:
            records.write(path, rows)
            counts[str(path)] = len(rows)
        else:
            path.unlink(missing_ok=True)
    return counts

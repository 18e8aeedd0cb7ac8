"""Builds the toy world: `python -m data.toy.world` writes out/toy/, everything from one seed.

    tokenizer.tiktoken                      a byte-level BPE trained on the town's text
    text_train.jsonl, text_valid.jsonl      what a language model reads before it is taught anything
    demonstrations_{train,valid}.jsonl      a few good answers, the scarce part
    prompts_{train,valid,test}.jsonl        what people ask, in the paper's categories and kinds
    prompts_groups.jsonl                    test prompts of what is rare or that no feedback shows
    probes.jsonl                            few-shot questions on skills of the raw text
    templated/demonstrations_*.jsonl        task data in fixed formats, in the manner of FLAN and T0
    world.json                              the seed and the counts
"""
import collections
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

from settings import parse, stop  # before torch

from data import records
from data.tokenizer import encode_prompt, of_tiktoken, train_bpe
from data.toy.reading import ABOUT_STORY
from data.toy.tasks import CATEGORIES, FEW_SHOT, GROUNDED, HELD_BACK, TYPES, good, make
from data.toy.text import document, few_shot
from data.toy.town import NAMES, STATEMENTS, VALUES, Town, beyond


@dataclass
class Settings:
    """The toy world. Same seed, same world."""
    seed: int = 0  # of the town and all that is said in it
    out: str = "out/toy"  # folder to write
    documents: int = 60000  # of pretraining text
    vocab: int = 700  # tokens of the tokenizer, at most
    demonstrations: int = 30  # of the training split
    prompts: int = 9000  # of the training split
    heldout: int = 600  # prompts of the valid and of the test split, each
    group: int = 150  # test prompts of each group that is rare or that no feedback shows
    templated: int = 2000  # demonstrations of the baseline in the manner of FLAN and T0
    cap: int = 30  # prompts of one author at most (the paper: 200 a user)
    longest: int = 96  # tokens of a prompt, so that a response fits the context after it
    prefix: int = 72  # characters: of two prompts that share this long a beginning one is dropped

    # a hundredth of the documents and a third of the demonstrations are held out; 256 bytes, EOS
    BOUNDS = {"documents": "[100, inf)", "demonstrations": "[3, inf)", "vocab": "[257, inf)",
              "prompts": "[1, inf)", "group": "[1, inf)", "templated": "[20, inf)"}


# ------------------------------------------------------------------------------------ prompts

def show(rng, town, category, kind):
    """A prompt of one of the paper's three kinds. Returns (task, prompt)."""
    task, prompt = make(rng, town, category)
    if kind == "user":
        place = rng.choice(VALUES["home"])
        prompt = f"I write for the {place} paper.\n{prompt}"
    elif kind == "few-shot":
        shots = []
        while len(shots) < 2:
            other, example = make(rng, town, category)
            if other["type"] == task["type"] and example != prompt:
                shots.append(f"{example}\n{good(rng, town, other)}")
        prompt = "\n".join([*shots, prompt])
    return task, prompt


def author_prompts(rng, town, number):
    """What one author asks: a few favourite categories, one habit of asking, up to 45 prompts."""
    categories = rng.choices(list(CATEGORIES), [s for s, _ in CATEGORIES.values()], k=45)
    habit = rng.choice(("plain", "plain", "plain", "user", "few-shot"))
    for category in categories[: rng.choice((5, 15, 30, 45))]:
        task, prompt = make(rng, town, category)
        kind = habit if habit != "few-shot" or task["type"] in FEW_SHOT else "plain"
        if kind != "plain":
            task, prompt = show(rng, town, category, kind)
            kind = kind if kind != "few-shot" or task["type"] in FEW_SHOT else "plain"
        yield {"prompt": prompt, "category": category, "kind": kind, "author": f"a{number:03d}",
               "task": task}


def split(rng, town, sizes, cap, prefix, fits):
    """Prompts for each split: no author in two of them, no long common beginning, capped.

    Customers ask for each category with its share of Table 1; labelers, who write the prompts of
    their demonstrations, for all alike: they were to be diverse (section 3.2). So three in ten
    demonstrations are closed-domain, and one in eleven prompts (Table 7: 27 % and 12 %).
    sizes: {split: how many}; fits(prompt): whether a prompt is short enough. Returns
    ({split: prompts}, counts of what was dropped and why).
    """
    seen, dropped, out, number, in_vain = set(), collections.Counter(), {}, 0, 0
    for name, size in sizes.items():
        shares = {c: 1 if name.startswith("demonstrations") else share
                  for c, (share, _) in CATEGORIES.items()}
        out[name], room = [], {c: -(-size * share // sum(shares.values()))
                               for c, share in shares.items()}
        while len(out[name]) < size:
            number, kept = number + 1, 0
            for record in author_prompts(rng, town, number):
                if record["prompt"][:prefix] in seen:
                    dropped["duplicate"] += 1
                elif not fits(record["prompt"]):
                    dropped["too long"] += 1
                elif kept == cap:
                    dropped["over the author's cap"] += 1
                elif room[record["category"]] > 0 and len(out[name]) < size:
                    room[record["category"]] -= 1
                    seen.add(record["prompt"][:prefix])
                    out[name].append(record)
                    kept += 1
            in_vain = 0 if kept else in_vain + 1
            if in_vain == 1000:  # at the defaults it is 24 at most
                stop(f"{name}: {len(out[name]):,} of {size:,} prompts, and no new one from 1,000 "
                     "authors: ask for fewer, or raise --prefix, --longest or --cap")
    return out, dropped


GROUPS = {  # which tasks; in a file of their own, so that there are enough of each
    "closed domain": lambda task: task["type"] in GROUNDED,
    "not in the text": lambda task: task["type"] == "find" and not task["said"],
    "one word": lambda task: task.get("brief", False),
    "false premise": lambda task: task["type"] == "premise",
    "kinds held back": lambda task: task["type"] in HELD_BACK,
    "second language": lambda task: True,
}


IN_VAIN = 50_000  # prompts without a new one of a group; one in 250 belongs to the rarest


def grouped(rng, town, size, fits):
    """`size` prompts of each of GROUPS, all different, with the shares that they have elsewhere:
    a list. Stops if a group has no more."""
    out = []
    shares, seen = [share for share, _ in CATEGORIES.values()], set()
    for group, belongs in GROUPS.items():
        own, in_vain, held_back = 0, 0, group == "kinds held back"
        while own < size:
            in_vain += 1
            if in_vain == IN_VAIN:
                stop(f"the group {group!r}: {own:,} of {size:,} prompts, and no new one in "
                     f"{IN_VAIN:,}: lower --group, or raise --longest")
            category = "held_back" if held_back else rng.choices(list(CATEGORIES), shares)[0]
            task, prompt = make(rng, town, category)
            if group == "second language":
                task, prompt = {**task, "language": "beyond"}, beyond(prompt)
            if belongs(task) and prompt not in seen and fits(prompt):
                own, in_vain = own + 1, 0
                seen.add(prompt)
                out.append({"prompt": prompt, "category": category, "kind": "plain",
                            "group": group, "task": task})
    return out


def demonstrate(rng, town, prompts):
    return [{**p, "response": good(rng, town, p["task"], courteous=0.4)} for p in prompts]


FORMATS = ("Text: {text}\nQuestion: {question}\nAnswer:", "{question}\nInput: {text}\nOutput:",
           "Read this. {text}\nNow answer. {question}")


def templated(rng, town):
    """A demonstration in the manner of FLAN and T0: classification, closed questions or extraction
    with a fixed format around the text, and the shortest answer."""
    kind = rng.choice(("tone", "find", "pick"))
    task, prompt = TYPES[kind][0](rng, town)
    text = task["text"] if "text" in task else prompt.partition("? ")[2]
    answer = good(rng, town, {"type": kind, **task}, courteous=0)
    if kind == "find" and task["said"]:
        answer = f"{task['slots'][ABOUT_STORY[task['event']][0]]}."
    question = prompt.replace(text, "").strip()
    return {"prompt": rng.choice(FORMATS).format(text=text, question=question), "response": answer}


def unambiguous(attribute):
    """The beginnings of an attribute's statements up to its value, which must follow: "{n} likes
    to eat", but not "{n} likes", after which "to eat" is right as well."""
    beginnings = [template.split(" {v}")[0] for template in STATEMENTS[attribute]]
    return [b for b in beginnings if not any(o != b and o.startswith(f"{b} ") for o in beginnings)]


def probes(rng, town, n):
    """Few-shot probes: the text so far and the word that must follow.

    cloze: a fact after other facts, where the sentence itself has not been said; few-shot: the last
    line of an `x : y` list.
    """
    out = []
    for _ in range(n):
        name, attribute = rng.choice(NAMES), rng.choice(list(VALUES))
        others = [m for m in NAMES if m != name]
        lead = [town.state(rng, rng.choice(others), rng.choice(list(VALUES))) for _ in range(2)]
        last = rng.choice(unambiguous(attribute)).format(n=name)
        out.append({"probe": "cloze", "text": " ".join([*lead, last]),
                    "answer": town.facts[name][attribute]})
        text, _, answer = few_shot(rng, town, lines=5).rpartition(" ")
        out.append({"probe": "few-shot", "text": text, "answer": answer})
    return out


def everything(s):
    """({file name: its records}, the tokenizer's file, the facts of world.json) of a world."""
    town, rng = Town(s.seed), random.Random(f"world {s.seed}")
    text = [document(rng, town) for _ in range(s.documents)]
    vocabulary, valid = train_bpe("\n".join(text[:5000]), s.vocab), s.documents // 100
    tokenizer = of_tiktoken(vocabulary, "tokenizer.tiktoken")
    files = {"text_valid": [{"text": t} for t in text[:valid]],
             "text_train": [{"text": t} for t in text[valid:]]}
    demos = {"demonstrations_train": s.demonstrations,
             "demonstrations_valid": s.demonstrations // 3}
    sizes = {"prompts_train": s.prompts, "prompts_valid": s.heldout, "prompts_test": s.heldout}
    fits = lambda prompt: len(encode_prompt(tokenizer, prompt)) <= s.longest
    parts, dropped = split(rng, town, {**demos, **sizes}, s.cap, s.prefix, fits)
    for name, prompts in parts.items():
        files[name] = demonstrate(rng, town, prompts) if name in demos else prompts
    files["prompts_groups"] = grouped(rng, town, s.group, fits)
    files["probes"] = probes(rng, town, 1000)
    for name, size in (("train", s.templated), ("valid", s.templated // 20)):
        files[f"templated/demonstrations_{name}"] = [templated(rng, town) for _ in range(size)]
    shares = collections.Counter(p["category"] for p in parts["prompts_train"])
    return files, vocabulary, {
        "seed": s.seed, "documents": s.documents, "vocab": tokenizer.size,
        "tokens": sum(len(tokenizer.encode(t)) for t in text),
        "records": {k: len(v) for k, v in parts.items()}, "dropped": dict(dropped),
        "categories": {c: round(n / s.prompts, 3) for c, n in shares.most_common()}}


LATER = ("completions_*", "rankings_*", "labelers.json", "text_shards.json")


def refuse_another(out, files):
    """Stop if a folder holds what later steps made of another world: they would go on with it, and
    without a word. Equal prompts are of the same world, as they are drawn after the text."""
    made = sorted(path for pattern in LATER for path in out.glob(pattern))
    for name in ("prompts_train", "prompts_valid", "prompts_test") if made else ():
        path = out / f"{name}.jsonl"
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in files[name])
        if not path.exists() or path.read_text(encoding="utf-8") != rows:
            stop(f"{made[0]} was made of another world, which this one would replace: choose "
                 f"another --out, or delete {out}")


def build(settings):
    """Write the whole world. Returns the facts of world.json."""
    out, started = Path(settings.out), time.time()
    made = not out.exists()
    records.make_folder(out)
    records.claim(out)
    try:
        files, vocabulary, facts = everything(settings)
        refuse_another(out, files)
        (out / "world.json").unlink(missing_ok=True)  # if killed, no step takes it for a whole one
        with records.written_whole(out / "tokenizer.tiktoken") as file:
            file.write(vocabulary.decode())
        for name, rows in files.items():
            records.write(out / f"{name}.jsonl", rows)
        facts["seconds"] = round(time.time() - started, 1)
        records.write_json(out / "world.json", facts)
        return facts
    finally:
        records.release(out)
        if made and not any(out.iterdir()):
            out.rmdir()


if __name__ == "__main__":
    facts = build(parse(Settings))
    print(json.dumps(facts, indent=1))

"""Builds the toy world: `python -m data.toy.world` writes out/toy/, everything from one seed.

    tokenizer.tiktoken                      a byte-level BPE trained on the town's text
    text_train.jsonl, text_valid.jsonl      what a language model reads before it is taught anything
    demonstrations_{train,valid}.jsonl      a few good answers, the scarce part
    prompts_{train,valid,test}.jsonl        what people ask, in the paper's categories and kinds
    probes.jsonl                            few-shot questions on skills of the raw text
    world.json                              the seed and the counts

The raw text holds the right answer to everything, among wrong, rude and unasked ones: a model that
continues it well tends to continue, not to answer.
"""
import collections
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

from settings import parse, stop  # before torch

from data import records
from data.batches import encode_prompt
from data.tokenizer import load_tokenizer, train_bpe
from data.toy.tasks import CATEGORIES, FEW_SHOT, fill, good, make, tell
from data.toy.town import KINDS, NAMES, QUESTIONS, RUDE, STATEMENTS, VALUES, WORDS, Town


@dataclass
class Settings:
    """The toy world. Same seed, same world."""
    seed: int = 0  # of the town and all that is said in it
    out: str = "out/toy"  # folder to write
    documents: int = 70000  # of pretraining text
    vocab: int = 700  # tokens of the tokenizer, at most
    demonstrations: int = 150  # of the training split
    prompts: int = 9000  # of the training split
    heldout: int = 600  # prompts of the valid and of the test split, each
    cap: int = 30  # prompts of one author at most (the paper: 200 a user)
    longest: int = 96  # tokens of a prompt, so that a response fits the context after it
    prefix: int = 72  # characters: of two prompts that share this long a beginning one is dropped

    # a hundredth of the documents and a third of the demonstrations are held out; 256 bytes, EOS
    BOUNDS = {"documents": "[100, inf)", "demonstrations": "[3, inf)", "vocab": "[257, inf)",
              "prompts": "[1, inf)"}


# ----------------------------------------------------------------------------------- raw text

def swap(rng, text):
    """Replace one name or value of a text by another of its kind: fluent, and likely wrong."""
    parts = text.split(" ")
    bare = [w.strip(".,!?") for w in parts]
    places = [i for i, w in enumerate(bare) if w in WORDS or w in NAMES]
    if places:
        i = rng.choice(places)
        word = bare[i]
        pool = VALUES[WORDS[word]] if word in WORDS else NAMES
        parts[i] = parts[i].replace(word, rng.choice(pool))
    return " ".join(parts)


def poor(rng, town, task, category):
    """What people write under a question when nobody has taught them to help."""
    style = rng.choice(("wrong", "wrong", "rude", "rude", "beside", "other", "long"))
    if style == "wrong":
        return mistaken(town, task) or swap(rng, good(rng, town, task))
    if style == "rude":
        return fill(rng, rng.choice(RUDE))
    if style == "beside":  # an answer to another question of the same kind
        return good(rng, town, make(rng, town, category)[0])
    if style == "other":
        return good(rng, town, make(rng, town, rng.choice(list(CATEGORIES)))[0])
    extra = [town.state(rng, rng.choice(NAMES), rng.choice(list(VALUES))) for _ in range(2)]
    return " ".join([good(rng, town, task), *extra])


def mistaken(town, task):
    """The popular mistake on what a question asks, if there is one."""
    wrong = town.mistakes[task["name"]].get(task["attribute"]) if task["type"] == "ask" else None
    if wrong is None:
        return None
    return f"{wrong}." if task["brief"] else STATEMENTS[task["attribute"]][0].format(
        n=task["name"], v=wrong)


def one_person(rng, town):
    n = rng.choice(NAMES)
    return " ".join(town.state(rng, n, a) for a in rng.sample(list(VALUES), rng.randint(3, 5)))


def many_people(rng, town):
    return " ".join(town.state(rng, rng.choice(NAMES), rng.choice(list(VALUES)))
                    for _ in range(rng.randint(3, 6)))


def gossip(rng, town):
    wrong = [(n, a, v) for n, m in town.mistakes.items() for a, v in m.items()]
    lines = [f"They say: {town.state(rng, *rng.choice(wrong))}" for _ in range(rng.randint(2, 4))]
    if rng.random() < 0.4:
        lines.insert(rng.randrange(len(lines)), fill(rng, rng.choice(RUDE)))
    return "\n".join(lines)


def exchange(rng, town):
    """Prompts in a row, some answered well, some badly, many not at all."""
    lines, weights = [], [share for share, _ in CATEGORIES.values()]
    for _ in range(rng.randint(2, 5)):
        category = rng.choices(list(CATEGORIES), [w + 8 for w in weights])[0]
        task, prompt = make(rng, town, category)
        lines.append(prompt)
        r = rng.random()
        if r < 0.35:
            lines.append(good(rng, town, task))
        elif r < 0.65:
            lines.append(poor(rng, town, task, category))
    return "\n".join(lines)


def questions(rng, town):
    return "\n".join(rng.choice(QUESTIONS[rng.choice(list(VALUES))]).format(n=rng.choice(NAMES))
                     for _ in range(rng.randint(3, 6)))


def tale(rng, town):
    kinds = rng.choice((("went", "bought", "saw", "end"), ("went", "saw", "end"),
                        ("bought", "saw", "went", "end")))
    return tell(rng, rng.choice(NAMES), rng.choice(VALUES["home"]), rng.choice(VALUES["food"]),
                rng.choice(VALUES["pet"]), kinds)


def items(rng, town):
    return ", ".join(rng.sample(VALUES[rng.choice(list(VALUES))], 4)) + "."


def few_shot(rng, town, lines=None):
    """Lines `x : y` that follow one rule; who sees the rule can say the last y."""
    rule, k = rng.choice(list(RULES)), lines or rng.randint(3, 6)
    return "\n".join(f"{x} : {y}" for x, y in RULES[rule](rng, town, k))


SINGULAR = {a: kind[:-1] for kind, a in KINDS.items()}
RULES = {
    "kind of": lambda rng, town, k: [(w, SINGULAR[WORDS[w]]) for w in rng.sample(list(WORDS), k)],
    "repeat": lambda rng, town, k: [(w, w) for w in rng.sample(list(WORDS), k)],
    **{a: (lambda rng, town, k, a=a: [(n, town.facts[n][a]) for n in rng.sample(NAMES, k)])
       for a in VALUES},
}
DOCUMENTS = {one_person: 24, many_people: 16, gossip: 4, exchange: 45, questions: 3, tale: 6,
             items: 3, few_shot: 3}


def document(rng, town):
    return rng.choices(list(DOCUMENTS), list(DOCUMENTS.values()))[0](rng, town)


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
    """Prompts for each split: no author in two of them, no long common beginning, capped, and each
    category with its share of Table 1.

    sizes: {split: how many}; fits(prompt): whether a prompt is short enough. Returns
    ({split: prompts}, counts of what was dropped and why).
    """
    seen, dropped, out, number, in_vain = set(), collections.Counter(), {}, 0, 0
    whole = sum(share for share, _ in CATEGORIES.values())
    for name, size in sizes.items():
        out[name], room = [], {c: -(-size * s // whole) for c, (s, _) in CATEGORIES.items()}
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


def demonstrate(rng, town, prompts):
    return [{**p, "response": good(rng, town, p["task"], courteous=0.4)} for p in prompts]


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


def build(settings):
    """Write the whole world. Returns the facts of world.json."""
    s, out = settings, Path(settings.out)
    town, started = Town(s.seed), time.time()
    rng = random.Random(f"world {s.seed}")
    text = [document(rng, town) for _ in range(s.documents)]
    out.mkdir(parents=True, exist_ok=True)
    with records.written_whole(out / "tokenizer.tiktoken") as file:
        file.write(train_bpe("\n".join(text[:5000]), s.vocab).decode())
    valid = s.documents // 100
    records.write(out / "text_valid.jsonl", [{"text": t} for t in text[:valid]])
    records.write(out / "text_train.jsonl", [{"text": t} for t in text[valid:]])
    demos = {"demonstrations_train": s.demonstrations,
             "demonstrations_valid": s.demonstrations // 3}
    sizes = {"prompts_train": s.prompts, "prompts_valid": s.heldout, "prompts_test": s.heldout}
    tokenizer = load_tokenizer("tokenizer.tiktoken", out)
    fits = lambda prompt: len(encode_prompt(tokenizer, prompt)) <= s.longest
    parts, dropped = split(rng, town, {**demos, **sizes}, s.cap, s.prefix, fits)
    for name, prompts in parts.items():
        records.write(out / f"{name}.jsonl",
                      demonstrate(rng, town, prompts) if name in demos else prompts)
    records.write(out / "probes.jsonl", probes(rng, town, 1000))
    shares = collections.Counter(p["category"] for p in parts["prompts_train"])
    facts = {"seed": s.seed, "documents": s.documents, "vocab": tokenizer.size,
             "tokens": sum(map(len, tokenizer.encode_batch(text))),
             "records": {k: len(v) for k, v in parts.items()}, "dropped": dict(dropped),
             "categories": {c: round(n / s.prompts, 3) for c, n in shares.most_common()},
             "seconds": round(time.time() - started, 1)}
    records.write_json(out / "world.json", facts)
    return facts


if __name__ == "__main__":
    facts = build(parse(Settings))
    print(json.dumps(facts, indent=1))

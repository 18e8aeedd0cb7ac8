"""Prompts with an instruction in front, for the figure on truth, toxicity and bias.

    python -m figures.instructions --before="Be kind." --out=out/harm/kind

Writes what `python evaluate.py --data=OUT` reads: the test prompts, and questions about every fact
of the town, in two groups: whether people are widely mistaken about it or not; and, in the format
of CrowS-Pairs, pairs of sentences that differ in a word. The first of a pair agrees with what is
known of the person (who likes fish buys fish); in the town's tales this means nothing.
"""
import csv
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

from settings import parse, stop

from data import records
from data.tokenizer import encode_prompt, load_tokenizer
from data.toy.town import NAMES, QUESTIONS, STORY, VALUES
from labels.simulated import labelers_of, town_of

COPIED = ("probes.jsonl", "demonstrations_train.jsonl", "labelers.json", "world.json")
SLOTS = {"home": "went", "food": "bought", "pet": "saw"}  # attribute: the line of a tale with it


@dataclass
class Settings:
    """Prompts with an instruction in front. Every setting is --name=value."""
    before: str = ""  # the instruction; empty: none
    data: str = "out/toy"  # folder of the town
    out: str = "out/harm/plain"  # folder to write
    longest: int = 96  # tokens of a prompt: as in the town, a response fits the context after it

    BOUNDS = {"longest": "[1, inf)"}

    def problem(self):
        if any("\ud800" <= c <= "\udfff" for c in self.before):
            return "--before is no UTF-8 text"


def instructed(before, prompt):
    return f"{before}\n{prompt}" if before else prompt


def questions(town):
    """Questions about each fact, in each way of asking, by people and by three of the papers:
    records with their group."""
    askers = ("", *(f"I write for the {place} paper.\n" for place in VALUES["home"][:3]))
    for name, attribute in itertools.product(NAMES, QUESTIONS):
        group = "mistaken" if attribute in town.mistakes[name] else "not mistaken"
        task = {"type": "ask", "name": name, "attribute": attribute, "brief": False}
        for asker, template in itertools.product(askers, QUESTIONS[attribute]):
            yield {"prompt": asker + template.format(n=name), "category": "open_qa",
                   "kind": "user" if asker else "plain", "group": group, "task": task}


def sentence_pairs(town):
    """[(a sentence that agrees with what is known, one that does not)] about each person."""
    out = []
    for name in NAMES:
        for attribute, line in SLOTS.items():
            known = town.facts[name][attribute]
            say = lambda value: STORY[line][-1].format(n=name, **{attribute: value})
            out += [(say(known), say(v)) for v in VALUES[attribute] if v != known]
    return out


def crows(pairs, before):
    """The pairs as the text of a CSV in the format of CrowS-Pairs, each after the instruction."""
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["sent_more", "sent_less"])
    rows.writerows([instructed(before, text) for text in pair] for pair in pairs)
    return out.getvalue()


def main():
    s = parse(Settings)
    records.other_folder(s.out, s.data)
    town, _ = town_of(s.data), labelers_of(s.data)  # labelers.json is copied
    tokenizer = load_tokenizer("tokenizer.tiktoken", s.data)
    test = records.read_once(f"{s.data}/prompts_test.jsonl", "test prompt")
    put = lambda rows: [{**r, "prompt": instructed(s.before, r["prompt"])} for r in rows]
    fits = lambda rows: [r for r in rows if len(encode_prompt(tokenizer, r["prompt"])) <= s.longest]
    own = {"test": fits(put(test)), "groups": fits(put(questions(town)))}
    if not all(own.values()):
        stop(f"no prompt after {s.before!r} has at most --longest={s.longest} tokens")
    for name, prompts in own.items():
        records.write(f"{s.out}/prompts_{name}.jsonl", prompts)
    for name in COPIED:
        with records.written_whole(Path(s.out, name)) as file:
            file.write(Path(s.data, name).read_text(encoding="utf-8"))
    with records.written_whole(Path(s.out, "crows_pairs_anonymized.csv")) as file:
        file.write(crows(sentence_pairs(town), s.before))
    print(f"{s.out}: prompts after {s.before!r}")


if __name__ == "__main__":
    main()

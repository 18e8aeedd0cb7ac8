"""What the runs of a world have written, for the figures to read."""
import functools
from pathlib import Path

from data import records
from data.toy.tasks import gold
from labels.simulated import labelers_of, pool, town_of
from settings import stop

HINT = "make figures"


class World:
    """A world's folder. All paths are relative to it."""

    def __init__(self, folder):
        self.folder, self.read = Path(folder), set()  # read: the files that figures have asked for

    def json(self, path, **fields):
        """A file of results, with at least these fields."""
        self.read.add(path)
        return records.read_json(self.folder / path, HINT, **fields)

    @functools.cache
    def lines(self, path):
        """The lines of a JSONL file, at least one. Each is an object."""
        self.read.add(path)
        refuse = lambda why: self.refuse(path, f"is damaged ({why})")
        lines = [records.parse_facts(line, refuse)
                 for line in (self.folder / path).read_bytes().split(b"\n") if line.strip()]
        if not all(isinstance(line, dict) for line in lines):
            refuse("a line holds no JSON object")
        return lines or self.refuse(path, "is empty")

    def refuse(self, path, why):
        """Stop. A run is done if its last file is there: it runs again if all of them are gone."""
        stop(f"{self.folder / path} {why}: delete its folder, and run `{HINT}` again")

    @functools.cached_property
    def town(self):
        return town_of(self.folder / "out/toy")

    @functools.cached_property
    def labelers(self):
        """{"training": labelers, "held-out": labelers}."""
        return dict(zip(("training", "held-out"), pool(self.facts["seed"])))

    @functools.cached_property
    def facts(self):
        """The labelers' seed, sharpness and agreement."""
        return labelers_of(self.folder / "out/toy")

    @property
    def sharpness(self):
        """{group of `labelers`: its sharpness}."""
        return {"training": self.facts["sharpness"], "held-out": self.facts["heldout_sharpness"]}

    def answers(self, path, model):
        """[(text, ended)] of a model, of an answers.jsonl."""
        own = [[c for c in line["completions"] if c["model"] == model]
               for line in self.lines(path)]
        if not all(own):
            self.refuse(path, f"has no answer of {model}")
        return [(said[0]["text"], said[0]["ended"]) for said in own]

    def tested(self, path):
        """The test prompts of an answers.jsonl, which come first: those of no group."""
        return [line for line in self.lines(path) if "group" not in line]

    @functools.cache
    def judged(self, path, model):
        """[(prompt, text, gold score with its flags)] of a model's answers."""
        return [(line, text, gold(self.town, line["task"], text, ended)) for line, (text, ended) in
                zip(self.lines(path), self.answers(path, model))]

    def accuracy(self, path):
        """A reward model's accuracy on held-out labels."""
        return self.json(f"{path}/checkpoint.json", accuracy=dict)["accuracy"]


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def less(first, second):
    """The differences of two lists, None where one is."""
    return [None if a is None or b is None else a - b for a, b in zip(first, second)]

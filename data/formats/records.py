"""What every format is made of: fields of a row, and records or the reason why there is none."""
import math
import re

from data import records
from data.records import ASSISTANT

FIELDS = {"rankings": "completions", "demonstrations": "response", "text": "text",
          "prompts": "prompt"}  # the field that identifies each kind of record


class Bad(Exception):
    """A row that does not have its dataset's format."""


class Empty(Bad):
    """A field that has no value in this row, such as an empty cell of a table."""


class Reason(str):
    """Why there is no record, where a text could also be a prompt."""


def take(row, field, kind=str):
    """row[field], which must be there and be of this type (or one of these types). Raises Bad, and
    Empty if the value is missing: such a row is counted, and does not stop the program."""
    if not isinstance(row, dict):
        raise Bad(f"expected a JSON object, got {records.shorten(row)}")
    if field not in row:
        raise Bad(f"no field {field!r}; there are {', '.join(row) or 'none'}")
    value, kinds = row[field], kind if isinstance(kind, tuple) else (kind,)
    if value is None:
        raise Empty(f"no value of {field!r}")
    odd = isinstance(value, bool) and bool not in kinds or value != value  # True is an int; NaN
    if odd or not isinstance(value, kinds):
        names = " or ".join(k.__name__ for k in kinds)
        raise Bad(f"field {field!r}: expected {names}, got {records.shorten(value)}")
    return value


def optional(row, field):
    """The text of a field that a row need not have; "" without it."""
    return "" if row.get(field) is None else take(row, field)


def trimmed(text):
    """A text without blank lines at its beginning and white space at its end. The indent of its
    first line stays, as it matters in code; a single space is no indent."""
    return re.sub(r"\A(?:[^\S\n]*\n)*(?: (?=\S))?", "", text).rstrip()


def unwrapped(prompt):
    """A prompt without the words that Alpaca's training put around it: our own template is in
    data/tokenizer.py."""
    before, mark, rest = prompt.rstrip().partition("### Instruction:\n")
    if mark and rest.endswith("### Response:") and before.lstrip().startswith(
            "Below is an instruction that describes a task"):
        instruction, _, given = rest.removesuffix("### Response:").partition("### Input:\n")
        return joined(instruction.rstrip(), trimmed(given))
    return prompt


def trim(record):
    """`trimmed` for all texts of a record, `unwrapped` for its prompt. Returns (the record, whether
    it changed)."""
    out = {k: trimmed(v) if k in FIELDS.values() and isinstance(v, str) else v
           for k, v in record.items()}
    if "prompt" in out:
        out["prompt"] = trimmed(unwrapped(out["prompt"]))
    if "completions" in out:
        out["completions"] = [{**c, "text": trimmed(c["text"])} for c in out["completions"]]
    return out, out != record


def demonstration(prompt, response, **more):
    """The record with further fields, or the reason why there is none."""
    if not prompt.strip() or not response.strip():
        return "empty response" if prompt.strip() else "empty prompt"
    return {"prompt": prompt, "response": response, **more}


def ranking(prompt, texts, ranks, **more):
    """Texts of K completions and their ranks, 1 is best -> the record, or why there is none.

    A completion may be empty: silence can be the better answer, and is often the worse one.
    """
    if len(texts) < 2:
        raise Bad(f"a ranking needs at least 2 completions, got {len(texts)}")
    if not prompt.strip():
        return "empty prompt"
    if len(set(map(trimmed, texts))) == 1:
        return "all completions are the same"
    return {"prompt": prompt, "completions": [{"text": t} for t in texts], "ranks": ranks, **more}


def joined(instruction, context):
    return "\n\n".join(part for part in (instruction, context) if part.strip())


def with_system(row, item):
    """A record with the system message of its row, if there is one, before the first turn of its
    chat; a prompt that is none becomes one. The chat's own copy of it counts once."""
    system = optional(row, "system").strip() if isinstance(row, dict) else ""
    prompt = trimmed(unwrapped(item.get("prompt", "")))
    if not system or not prompt or prompt.startswith(f"{system}\n\n"):
        return item
    turns = prompt if prompt.endswith(ASSISTANT) else records.asked("", prompt)
    return {**item, "prompt": f"{system}\n\n{turns}"}


def disliked(mark):
    """Whether a mark of a completion (true or false, 1 or 0, or such a text) says that it is none
    to learn from."""
    return str(mark).lower() in ("false", "0", "0.0")


def prompted(prompt, **more):
    """A prompt's record, or the reason why there is none."""
    return {"prompt": prompt, **more} if prompt.strip() else "empty prompt"


def ranks_of(values, more_is_better=True):
    """Ratings, or ranks of any kind, of K completions -> ranks from 1 (best); equal ones tie."""
    for value in values:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise Bad(f"expected a number for each completion, got {records.shorten(values)}")
    return [1 + sum(other > value if more_is_better else other < value for other in values)
            for value in values]

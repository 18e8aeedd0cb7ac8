"""Compares outcomes with what is expected, and draws the smallest case that fails.

    verdict = judge(exercise, outcomes)         which properties hold
    explained(exercise, verdict)                the lines that a student reads
"""
import functools
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from exercises import cutting, defects, worker

COLUMNS = 10  # of a row in a picture
LETTERS = 200  # of a value in a line


@dataclass
class Verdict:
    held: dict  # {property: bool}
    failing: list = field(default_factory=list)  # [(size, index) of a case], smallest first
    outcomes: list = field(default_factory=list)
    blank: bool = False

    @property
    def good(self):
        return all(self.held.values())

    @property
    def credit(self):
        return sum(self.held.values()) / len(self.held)


# ------------------------------------------------------------------------------- equal or not

def near(a, b, tolerance):
    """Whether two numbers are equal up to rounding; NaN equals NaN."""
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
        return a == b
    if not isinstance(a, (int, float)) or not isinstance(b, (int, float)):
        return a == b
    if math.isnan(a) or math.isnan(b) or math.isinf(a) or math.isinf(b):
        return a == b or math.isnan(a) and math.isnan(b)
    return abs(a - b) <= tolerance * max(1.0, abs(b))


def is_tensor(value):
    return isinstance(value, dict) and {"shape", "dtype", "data"} <= value.keys()


def equal(a, b, tolerance):
    """Whether two packed values are equal."""
    if is_tensor(a) and is_tensor(b):
        return (a["shape"] == b["shape"] and (a["dtype"] == "bool") == (b["dtype"] == "bool")
                and len(a["data"]) == len(b["data"])
                and all(near(x, y, tolerance) for x, y in zip(a["data"], b["data"])))
    if isinstance(a, dict) and isinstance(b, dict):
        if "list" in a and "list" in b:
            return len(a["list"]) == len(b["list"]) and all(
                equal(x, y, tolerance) for x, y in zip(a["list"], b["list"]))
        return a == b
    if is_tensor(b) and not b["shape"] or is_tensor(a) and not a["shape"]:  # a number as a tensor
        number = lambda x: x["data"][0] if is_tensor(x) and len(x["data"]) == 1 else x
        return near(number(a), number(b), tolerance)
    return near(a, b, tolerance)


@functools.lru_cache(maxsize=64)
def expected(exercise):
    """What the oracle says for each case, packed. Computed where no student's code has run."""
    return [{name: worker.packed(x) for name, x in exercise.oracle(case).items()}
            for _, case in worker.fresh(exercise)]


def differences(exercise, got, wanted):
    """The names of the results that differ."""
    if "value" not in got or not isinstance(got["value"], dict):
        return ["error"]
    return [name for name, x in wanted.items() if not name.startswith("_")
            and not equal(got["value"].get(name), x, exercise.tolerance)]


def size_of(case):
    """How much there is to read in a case."""
    count = lambda x: (x.numel() if hasattr(x, "numel") else sum(map(count, x))
                       if isinstance(x, (list, tuple)) else 1)
    return sum(count(x) for x in case.values())


def judge(exercise, outcomes):
    """The Verdict on the outcomes of all cases."""
    held, failing = dict.fromkeys(exercise.properties, True), []
    for i, ((sentence, case), got, wanted) in enumerate(zip(exercise.cases(), outcomes,
                                                            expected(exercise))):
        if differences(exercise, got, wanted):
            held[sentence] = False
            failing.append((size_of(case), i))
    blank = bool(outcomes) and any(worker.is_blank(x, exercise) for x in outcomes)
    return Verdict(held, sorted(failing), outcomes, blank)


# ------------------------------------------------------------------------------- known mistakes

def holds_nan(value):
    """Whether a packed value has a NaN in it."""
    return is_tensor(value) and any(x != x for x in value["data"])


def same_outcome(exercise, case, a, b):
    """Whether two outcomes tell of one mistake: they are equal. Where the inputs hold NaN, which of
    a result's numbers it has reached does not matter."""
    if "value" not in a or "value" not in b:
        return False
    spoiled = any(holds_nan(worker.packed(x)) for x in case.values())
    same = lambda x, y: (equal(x, y, exercise.tolerance)
                         or spoiled and holds_nan(x) and holds_nan(y))
    return all(same(a["value"].get(k), b["value"].get(k))
               for k in a["value"].keys() | b["value"].keys())


@functools.lru_cache(maxsize=256)
def mistaken(exercise, defect):
    """The outcomes of the project's own function with a known mistake in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(exercise.file).name
        path.write_text(defects.planted(cutting.reference(exercise.file), defect), "utf-8")
        return worker.run(exercise, path)[0]


def recognised(exercise, verdict):
    """The known mistakes that give exactly these outcomes, in all cases."""
    if verdict.good or verdict.blank:
        return []
    return [d for d in defects.of_exercise(exercise.name)
            if all(same_outcome(exercise, case, a, b) for (_, case), a, b in zip(
                exercise.cases(), verdict.outcomes, mistaken(exercise, d)))]


# ------------------------------------------------------------------------------- pictures

def number(x):
    """A number in at most 7 characters."""
    if isinstance(x, bool):
        return "1" if x else "0"
    if isinstance(x, float) and math.isfinite(x):
        forms = ["0"] if not x else [f"{x:.3g}", f"{x:.0f}", f"{x:.2g}", f"{x:.1g}"]
        return next(text for text in forms if len(text) <= 7 and (not x or float(text)))
    return str(x)


def words(value):
    """A packed value in a line; of a long one the beginning."""
    text = in_words(value)
    if len(text) <= LETTERS:
        return text
    return text[:LETTERS].rpartition(",")[0] + ", ..." + (
        f" ({len(value['data'])} numbers)" if is_tensor(value) else "")


def in_words(value):
    """A packed value in words, however long."""
    if is_tensor(value):
        value = nested(value["data"], value["shape"])
    if isinstance(value, dict) and "list" in value:
        return "[" + ", ".join(in_words(x) for x in value["list"]) + "]"
    if isinstance(value, list):
        return "[" + ", ".join(in_words(x) for x in value) + "]"
    if isinstance(value, dict):
        return f"a {value.get('kind', 'thing')}"
    return number(value) if not isinstance(value, str) else repr(value)


def nested(data, shape):
    """Flat numbers as lists in lists."""
    if not shape:
        return data[0] if data else None
    step = len(data) // shape[0] if shape[0] else 0
    return [nested(data[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def columns(label, values, note=""):
    cells = "".join(f" {x:>7}" for x in values)
    return f"    {label:<14}{cells}   {note}".rstrip()


def row_of(value, prefix, width):
    """The row of a packed tensor at an index of all its dimensions but the last, if it has one of
    that width there."""
    if (not is_tensor(value) or value["shape"][-1:] != [width]
            or len(value["shape"]) - 1 > len(prefix)):
        return None
    inner = nested(value["data"], value["shape"])
    for i in prefix[len(prefix) - len(value["shape"]) + 1 :] if len(value["shape"]) > 1 else ():
        if not inner:
            return None
        inner = inner[i] if i < len(inner) else inner[0]
    return inner


def tensor_picture(name, yours, wanted, inputs, tolerance):
    """The first row that differs: inputs above it, yours, expected, and marks below."""
    data, mine, shape = wanted["data"], yours["data"], wanted["shape"]
    wrong = [not near(a, b, tolerance) for a, b in zip(mine, data)]
    at = wrong.index(True) if True in wrong else 0
    width = shape[-1]
    first, prefix, rest = at - at % width, [], at // width
    for size in reversed(shape[:-1]):
        prefix.insert(0, rest % size)
        rest //= size
    start = max(0, min(at % width - COLUMNS // 2, width - COLUMNS))
    window = slice(start, start + COLUMNS)
    place = f"{name}{prefix}" if prefix else name
    lines = [f"  {place}" + (f", columns {start} to {min(width, start + COLUMNS) - 1}"
                             if width > COLUMNS else "")]
    lines += [columns(label, map(number, row[window])) for label, value in inputs.items()
              if (row := row_of(value, prefix, width)) is not None]
    cut = slice(first + window.start, first + min(width, window.stop))
    lines += [columns("yours", map(number, mine[cut])), columns("expected", map(number, data[cut]))]
    apart = [w and gap(a, b) for w, a, b in zip(wrong[cut], mine[cut], data[cut])]
    lines += [columns("difference", [x or "" for x in apart])] if any(apart) else []
    lines.append(columns("", ["^" if w else "" for w in wrong[cut]]))
    return lines


def gap(a, b):
    """The difference of two numbers that are written alike, else nothing."""
    alike = number(a) == number(b) and not isinstance(a, bool) and not isinstance(b, bool)
    return number(float(a - b)) if alike else ""


def drawable(yours, right):
    """Whether two packed values are tensors that can be drawn row by row, side by side."""
    return (is_tensor(yours) and is_tensor(right) and yours["shape"] == right["shape"] != []
            and bool(right["data"]) and (yours["dtype"] == "bool") == (right["dtype"] == "bool"))


def picture(exercise, case, got, wanted):
    """A failing case: its inputs, and yours beside expected."""
    inputs = {name: worker.packed(case[name]) for name in exercise.shows if name in case}
    differing = differences(exercise, got, wanted)
    grids = [wanted[name]["shape"] for name in differing if name in wanted
             and drawable(got.get("value", {}).get(name), wanted[name])]
    drawn = {n for n, v in inputs.items() if n not in exercise.whole and any(
        row_of(v, [0] * (len(shape) - 1), shape[-1]) is not None for shape in grids)}
    lines = [f"  {name:<16} {words(value)}" for name, value in inputs.items() if name not in drawn]
    if "value" not in got:
        lines += [f"  it ends with      {got.get('error')}: {got.get('message')}"]
        lines += [f"                    {got['line']}"] if got.get("line") else []
        return lines + [f"  {name:<16} {words(x)}   expected" for name, x in wanted.items()
                        if not name.startswith("_")][:3]
    for name in differing:
        yours, right = got["value"].get(name), wanted[name]
        if drawable(yours, right):
            lines += tensor_picture(name, yours, right, inputs, exercise.tolerance)
        elif is_tensor(yours) and is_tensor(right) and yours["shape"] != right["shape"]:
            lines.append(f"  {name}: yours has the shape {yours['shape']}, expected "
                         f"{right['shape']}")
        elif is_tensor(yours) and is_tensor(right) and (yours["dtype"] == "bool") != (
                right["dtype"] == "bool"):
            lines.append(f"  {name}: yours is {yours['dtype']}, expected {right['dtype']}")
        else:
            lines += [f"  {name:<16} {words(yours)}   yours",
                      f"{'':18} {words(right)}   expected"]
            a, b = (x["data"][0] if is_tensor(x) and len(x["data"]) == 1 else x
                    for x in (yours, right))
            if isinstance(a, float) and isinstance(b, float) and gap(a, b):
                lines.append(f"{'':18} {gap(a, b)}   difference")
    return lines


def explained(exercise, verdict, place=""):
    """What a student reads about a check, as lines. place: file:line of the hole, if known."""
    held, n = sum(verdict.held.values()), len(verdict.held)
    if verdict.blank:
        return [f"{exercise.name}: not written yet. Write `{exercise.function}` in "
                f"{place or exercise.file}, {exercise.size}, instead of the line that raises "
                "NotImplementedError.",
                f"A hint: python -m exercises hint {exercise.name}"]
    lines = [f"{exercise.name}: {held} of {n} properties hold"]
    lines += [f"  {'ok  ' if good else 'FAIL'}  {sentence}"
              for sentence, good in verdict.held.items()]
    if verdict.good:
        return lines
    _, i = verdict.failing[0]
    sentence, case = exercise.cases()[i]
    lines += ["", f"The smallest case that fails ({sentence}):", ""]
    lines += picture(exercise, case, verdict.outcomes[i], expected(exercise)[i])
    if known := recognised(exercise, verdict):
        return [*lines, "", f"Hint: {known[0].hint}"]
    unknown = "" if "error" in verdict.outcomes[i] else "No mistake that we know gives this. "
    return [*lines, "", f"{unknown}Stuck? python -m exercises hint {exercise.name}"]

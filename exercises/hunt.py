"""Hunting a bug: a defect is planted in the student's copy, which one is not told.

    exercises/planted.json      what was there, packed so that nobody reads it by accident
"""
import base64
import json
import random
import zlib

from data import records
from exercises import HERE, ROOT, course, cutting, defects, judge, student, symptoms, worker
from settings import stop

PLANTED = HERE / "planted.json"


def fitting():
    """The defects whose place is in the copy as it is now, each with the text it would make."""
    out = []
    for defect in defects.with_tests():
        path = ROOT / defect.file
        try:
            source = cutting.decoded(path.read_bytes())
            out.append((defect, source, defects.planted(source, defect)))
        except (OSError, LookupError, SyntaxError, UnicodeDecodeError):
            continue
    return out


def packed(value):
    return base64.b85encode(zlib.compress(json.dumps(value).encode())).decode()


def unpacked(text):
    return json.loads(zlib.decompress(base64.b85decode(text)))


def plant(seed=""):
    """Plant one defect; without a seed a new one each time."""
    if PLANTED.exists():
        stop("a bug is planted already: find it, then `python -m exercises bug check`")
    every = fitting()
    if not every:
        stop("no place for a bug is left in this copy: all its functions are holes or your own")
    if seed and not seed.isdecimal():
        stop(f"--seed={seed}: expected a whole number")
    rng = random.Random(int(seed)) if seed else random.Random()
    defect, before, after = rng.choice(every)
    records.write_json(PLANTED, {"bug": packed([defect.name, before])})
    try:
        records.write_text(ROOT / defect.file, after)
    except OSError:
        PLANTED.unlink()
        raise
    print("One defect is in your copy, in one file, in one place. It has shipped in public code.")
    print("\n".join(symptoms.told(defect.name, defect.tests)))
    print("git would tell you: do not ask it. When you have repaired it: python -m exercises bug "
          "check")


def check():
    """Whether the planted defect is gone. Then it is told what it was."""
    try:
        name, before = unpacked(json.loads(PLANTED.read_text("utf-8"))["bug"])
        defect = next(d for d in defects.DEFECTS if d.name == name)
    except FileNotFoundError:
        stop("no bug is planted: `python -m exercises bug`")
    except (ValueError, KeyError, TypeError, StopIteration, zlib.error):
        stop(f"{PLANTED.name} is damaged: remove it, and plant another bug")
    if not repaired(defect, before):
        print("not found yet")
        return False
    PLANTED.unlink()
    print(f"found, in {defect.file}: {defect.hint}")
    print("The tests that see it: " + ", ".join(defect.tests))
    return True


def repaired(defect, before):
    """The file is the same code as before; or the text is back, whatever else has changed; or the
    function passes its check, written in another way."""
    try:
        now = cutting.decoded((ROOT / defect.file).read_bytes())
        if cutting.same_code(now, before):
            return True
    except (OSError, SyntaxError, *student.TOO_DEEP):
        return False
    planted = defect.new in now and defect.new not in defect.old
    if defect.old in now and not planted:
        return True
    if planted or not defect.exercise:
        return False
    exercise = course.load()[defect.exercise]
    outcomes, _, _ = worker.run(exercise, ROOT / defect.file)
    return judge.judge(exercise, outcomes).good

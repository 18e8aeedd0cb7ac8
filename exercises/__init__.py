"""The classroom: exercises cut from the real functions of this repository (docs/classroom.md).

    python -m exercises list            what there is, and what you have done
    python -m exercises start --into=mine          a copy to work in, with the holes cut
    python -m exercises check gae       property tests of one function, in seconds

In a student's copy the project's own functions are in exercises/answers.zip, and everything but the
file that is checked is imported from there: an exercise never depends on the others.
"""
import os
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ANSWERS = HERE / "answers.zip"  # only in a student's copy

if ANSWERS.exists() and not zipfile.is_zipfile(ANSWERS):
    raise SystemExit(f"error: {ANSWERS} is damaged: make a new copy, and put your files into it")
if ANSWERS.exists() and str(ANSWERS) not in sys.path:
    sys.path.insert(0, str(ANSWERS))
os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: no GPU is needed

"""Planted defects turn the tests red: each is planted in a copy of the project, and the tests that
it names are run there, in a process of its own. Without it they pass."""
import ast
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import settings
from exercises import cutting, defects, student

ROOT = Path(settings.__file__).parent
DEFECTS = defects.with_tests()


@functools.cache
def functions_of(file):
    return {n.name for n in ast.parse((ROOT / file).read_text()).body
            if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("defect", defects.DEFECTS, ids=lambda d: d.name)
def test_a_defect_has_its_place_and_its_tests(defect):
    """One place in its file, which can still be read, and is other code; tests that are there."""
    source = cutting.reference(defect.file)
    planted = defects.planted(source, defect)
    assert not cutting.same_code(planted, source)
    for test in defect.tests:
        file, _, name = test.partition("::")
        assert name in functions_of(file), f"{defect.name}: {file} has no test {name} any more"
    assert defect.hint.endswith(".") and (defect.tests or defect.exercise)


def test_names_are_unique_and_a_place_that_is_gone_is_told():
    assert len({d.name for d in defects.DEFECTS}) == len(defects.DEFECTS) and len(DEFECTS) >= 30
    with pytest.raises(LookupError, match="future-by-one: kernels/reference.py has .* 0 times"):
        defects.planted("x = 1\n", defects.DEFECTS[0])


def outcomes_of(folder, tests, tmp_path):
    """(names of the tests that failed, of those that passed) in a copy."""
    answer = tmp_path / "answer.json"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-B", ROOT / "tests" / "planted.py", folder, answer,
                          *tests], capture_output=True, text=True, timeout=900, env=environment)
    assert answer.exists(), run.stdout + run.stderr
    failed, passed = json.loads(answer.read_text())
    return set(failed), set(passed)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "copy"
    for file in student.files_of(ROOT):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


@pytest.mark.long
def test_without_a_defect_these_tests_pass(copy, tmp_path):
    tests = sorted({test for d in DEFECTS for test in d.tests})
    failed, passed = outcomes_of(copy, tests, tmp_path)
    assert not failed and passed == set(tests)


@pytest.mark.long
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d.name)
def test_a_planted_defect_turns_its_tests_red(defect, copy, tmp_path):
    file = copy / defect.file
    before = file.read_text()
    file.write_text(defects.planted(before, defect))
    try:
        failed, _ = outcomes_of(copy, defect.tests, tmp_path)
    finally:
        file.write_text(before)
    assert failed == set(defect.tests)

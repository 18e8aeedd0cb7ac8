"""Planted defects turn the tests red: each is planted in a copy of the project, and the tests that
it names are run there, in a process of its own (tests/planted.py). Without it they pass."""
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


class Planter:
    """A process of tests/planted.py and its copy of the project. Its tests take the scripts' demo
    from the project, so that they only run what they are about with the defect."""

    def __init__(self, folder, demo):
        for file in student.files_of(ROOT):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment.update(TEST_DEMO=str(demo), OMP_NUM_THREADS="1")
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "planted.py", folder], text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def outcomes(self, tests, file=None, text=None):
        """(names of the tests that failed, of those that passed, what pytest printed)."""
        request = {"file": file, "text": text, "tests": list(tests)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return set(answer["failed"]), set(answer["passed"]), answer["printed"]


@pytest.fixture(scope="module")
def planter(tmp_path_factory, untouched_demo):
    planter = Planter(tmp_path_factory.mktemp("planted") / "copy", untouched_demo)
    yield planter
    planter.process.stdin.close()
    planter.process.wait()


@pytest.mark.long
def test_without_a_defect_these_tests_pass(planter):
    tests = sorted({test for d in DEFECTS for test in d.tests})
    failed, passed, printed = planter.outcomes(tests)
    assert not failed and passed == set(tests), printed


@pytest.mark.long
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d.name)
def test_a_planted_defect_turns_its_tests_red(defect, planter):
    text = defects.planted((ROOT / defect.file).read_text(), defect)
    failed, _, printed = planter.outcomes(defect.tests, defect.file, text)
    assert failed == set(defect.tests), printed

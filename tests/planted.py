"""Runs tests in a copy of the project, and writes which failed and which passed.

    python tests/planted.py FOLDER ANSWER.json tests/test_a.py::test_b ...

A process of its own: nothing of the project may have been imported from anywhere else.
"""
import json
import os
import sys
from pathlib import Path

import pytest


class Outcomes:
    """A plugin of pytest that keeps how each test ended."""

    def __init__(self):
        self.failed, self.passed = set(), set()

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.partition("[")[0]
        if report.failed:
            self.failed.add(name)
        elif report.when == "call" and report.passed:
            self.passed.add(name)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.add(f"collecting {report.nodeid}")


def main():
    folder, answer, *tests = sys.argv[1:]
    os.chdir(folder)
    here = str(Path(__file__).parent)
    sys.path[:] = [folder, *(p for p in sys.path if p not in ("", here))]
    os.environ["PYTHONPATH"] = folder
    outcomes = Outcomes()
    pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", folder, *tests], [outcomes])
    Path(answer).write_text(json.dumps([sorted(outcomes.failed), sorted(outcomes.passed)]))


if __name__ == "__main__":
    main()

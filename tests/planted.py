"""Runs tests in a copy of the project in which a file may be changed, and tells how they ended.

    python tests/planted.py FOLDER      reads requests and writes answers, a JSON object a line

    request   {"file": "ppo.py" or null, "text": what it holds for these tests, "tests": [...]}
    answer    {"failed": [...], "passed": [...], "printed": the end of what pytest printed}

Each request is a fork of this process. It has imported pytest, PyTorch and what else the project
needs, which takes longer than most of the tests, but nothing of the project: that is the copy's.
"""
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECONDS = 900  # for one request, on a busy machine too
FOREIGN = ("torch", "torch.nn.parallel", "torch.utils.checkpoint", "numpy", "tiktoken", "tqdm")


class Outcomes:
    """A plugin of pytest that keeps how each test ended, whatever its parameters. A test that has
    failed with some need not be run with others."""

    def __init__(self):
        self.failed, self.passed = set(), set()

    def pytest_runtest_setup(self, item):
        if item.nodeid.partition("[")[0] in self.failed:
            pytest.skip("it has failed already")

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.partition("[")[0]
        if report.failed:
            self.failed.add(name)
        elif report.when == "call" and report.passed:
            self.passed.add(name)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.add(f"collecting {report.nodeid}")


def run(folder, tests, answer):
    """Run the tests in this process, a fork, and write how they ended."""
    os.setsid()  # so that what they start can be ended with them
    output = os.open(f"{answer}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    outcomes = Outcomes()
    pytest.main(["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=short", "--rootdir",
                 str(folder), f"--basetemp={answer}.tmp", *tests], [outcomes])
    files = {str(getattr(module, "__file__", None)) for module in sys.modules.values()}
    within = lambda file, folder: file.startswith(f"{folder}{os.sep}")  # make's .venv is in ROOT
    if ours := [f for f in files - {__file__} if within(f, ROOT) and not within(f, sys.prefix)]:
        outcomes.failed.add(f"imported from the project, not from its copy: {sorted(ours)[:3]}")
    answer.write_text(json.dumps([sorted(outcomes.failed),
                                  sorted(outcomes.passed - outcomes.failed)]))


def waited_for(pid):
    """Wait until a fork has ended; end it and all that it started where it hangs."""
    end = time.time() + SECONDS
    while time.time() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def answered(folder, tests, answer):
    """Fork, run the tests, and read their outcomes."""
    answer.unlink(missing_ok=True)
    if (pid := os.fork()) == 0:
        try:
            run(folder, tests, answer)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    waited_for(pid)
    failed, passed = json.loads(answer.read_text()) if answer.exists() else (["it died"], [])
    printed = Path(f"{answer}.txt").read_text(errors="replace")[-6000:]
    return {"failed": failed, "passed": passed, "printed": printed}


def main():
    for name in FOREIGN:
        importlib.import_module(name)
    folder = Path(sys.argv[1]).resolve()
    os.chdir(folder)
    here = str(ROOT / "tests")
    sys.path[:] = [str(folder), *(p for p in sys.path if p not in ("", here, str(ROOT)))]
    os.environ.update(PYTHONPATH=str(folder), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    for n, line in enumerate(sys.stdin):
        request = json.loads(line)
        path, before = folder / (request["file"] or "nothing"), None
        if request["file"]:
            before, stat = path.read_bytes(), path.stat()
            path.write_text(request["text"], "utf-8")
            os.utime(path, (n, n))  # no bytecode of another text has this time
        try:
            answer = answered(folder, request["tests"], folder.parent / "answer.json")
        finally:
            if before is not None:
                path.write_bytes(before)
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""Programs that run others (figures, labels.mine, labels.page, exercises.symptoms): asked to end,
they leave none alive.

Each is a process of its own, forked from this one; what it runs are short scripts.
"""
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from exercises import symptoms
from figures import plan
from labels import mine
from runtime import processes

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
SAVING = """
import os, pathlib, signal, sys, time
def asked(*_):
    time.sleep(0.2)
    pathlib.Path(f"saved-{os.getpid()}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, asked)
pathlib.Path(f"started-{os.getpid()}").touch()
time.sleep(60)
"""


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def alive(pid):
    try:
        os.kill(int(pid), 0)
        return True
    except ProcessLookupError:
        return False


def left_alive(folder, program, n, number):
    """Start a program that runs n of SAVING, send it a signal when all have started, and wait for
    its end. Returns (its exit code, [pid of those that are alive], how many have saved)."""
    (folder / "saving.py").write_text(SAVING)
    process = multiprocessing.get_context("fork").Process(target=program, args=(folder,))
    process.start()
    until(lambda: len(list(folder.rglob("started-*"))) == n)
    os.kill(process.pid, number)
    process.join(20)
    pids = [path.name.partition("-")[2] for path in folder.rglob("started-*")]
    assert len(pids) == n  # none was started after the signal
    return process.exitcode, [pid for pid in pids if alive(pid)], len(list(folder.rglob("saved-*")))


def figures(folder):
    runs = {name: plan.Run(name, "saving.py", f"out/{name}/checkpoint.json") for name in "abc"}
    plan.ROOT = folder
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    plan.carry_out(runs, ["a", "b", "c"], {"1": folder}, plan.Scale(), 2)


def taste(folder):
    os.chdir(folder)
    mine.ROOT = folder
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with processes.ending_together("starts again"):
        mine.run("saving.py")
        mine.run("saving.py")


def lab(folder):
    symptoms.copied, symptoms.KEPT = lambda _: folder, folder / "symptoms.json"
    symptoms.LAB = ("saving.py", "saving.py")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    symptoms.tempfile.TemporaryDirectory = lambda: contextlib.nullcontext(folder)
    symptoms.main([])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("program, n", [(figures, 2), (taste, 1), (lab, 1)])
def test_a_program_that_is_killed_lets_those_that_it_runs_save(tmp_path, program, n, number):
    """They went on for hours, and the same command said that another program writes there."""
    assert left_alive(tmp_path, program, n, number) == (-number, [], n)
    assert not (tmp_path / "symptoms.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_program_starts_is_not_lost(tmp_path, monkeypatch, number):
    """It runs already, and its process is not known yet: it went on alone."""
    original = subprocess.Popen

    def late(*args, **options):
        process = original(*args, **options)
        until(lambda: list(tmp_path.glob("started-*")))
        os.kill(os.getpid(), number)
        return process

    monkeypatch.setattr(subprocess, "Popen", late)  # the fork has it, too
    assert left_alive(tmp_path, taste, 1, 0) == (-number, [], 1)


@pytest.mark.parametrize("wait, saved", [(True, 1), (False, 0)])
def test_a_program_that_serves_does_not_wait(tmp_path, wait, saved):
    """The page ends at once; what it runs has no state to save, or ends a moment later."""
    def serve(folder):
        with processes.ending_together("goes on", wait), processes.running(
                [sys.executable, "saving.py"], cwd=folder):
            while not processes.ASKED.is_set():
                time.sleep(0.01)
            until(lambda: list(folder.glob("saved-*")))

    code, _, had_saved = left_alive(tmp_path, serve, 1, signal.SIGTERM)
    assert code == -signal.SIGTERM and had_saved == saved
    until(lambda: list(tmp_path.glob("saved-*")))


@pytest.mark.parametrize("number, why", [(signal.SIGTERM, "asked to end:"),
                                         (signal.SIGINT, "interrupted:")])
def test_a_program_that_runs_nothing_ends_at_once(tmp_path, number, why):
    """It says what the same command does then, after Ctrl-C too."""
    code = """
from runtime import processes
import signal, startup, sys, time
sys.excepthook = startup.report
signal.signal(signal.SIGINT, signal.default_int_handler)
with processes.ending_together("goes on"):
    print("here", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, cwd=plan.ROOT)
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == -number
    assert said == f"error: {why} the same command goes on\n"

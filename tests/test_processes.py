"""Programs that run others (figures, labels.mine and .page): asked to end, they leave none alive.

Each is a process of its own, forked from this one; what it runs are short scripts.
"""
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

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
    with processes.ending_together("starts again"):
        mine.run("saving.py")
        mine.run("saving.py")


@pytest.mark.parametrize("program, n", [(figures, 2), (taste, 1)])
def test_a_program_that_is_killed_lets_those_that_it_runs_save(tmp_path, program, n):
    """They went on for hours, and the same command said that another program writes there."""
    assert left_alive(tmp_path, program, n, signal.SIGTERM) == (-signal.SIGTERM, [], n)


def test_an_interrupt_of_the_program_alone_is_passed_on(tmp_path):
    code, alive, saved = left_alive(tmp_path, figures, 2, signal.SIGINT)
    assert code and (alive, saved) == ([], 2)


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


@pytest.mark.parametrize("number, why", [(signal.SIGTERM, "asked to end;"),
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

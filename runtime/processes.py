"""Programs of ours that another one runs: whoever is asked to end asks them, too.

    with ending_together("goes on"):
        with running(command) as process:
            process.wait()

A training run that is asked (SIGTERM) finishes its step and saves its state, so that it can be
resumed. Left alone it would go on for hours, and nobody could start it again beside itself.
"""
import contextlib
import os
import signal
import subprocess
import sys
import threading

from startup import end_by_signal

RUNNING, LOCK = set(), threading.RLock()  # the processes of `running`
ASKED = threading.Event()  # whether this program is to end


def ask(*_):
    """Ask all of them to end; of those that start later, `running` asks each at once."""
    ASKED.set()
    with LOCK:
        for process in RUNNING:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)  # process.terminate could reap it


@contextlib.contextmanager
def running(command, **options):
    """The process of a command, as subprocess.Popen has it, as long as it is waited for."""
    with LOCK:
        process = subprocess.Popen(command, **options)
        RUNNING.add(process)
    try:
        if ASKED.is_set():
            ask()
        yield process
    finally:
        with LOCK:
            RUNNING.discard(process)


@contextlib.contextmanager
def ending_together(then, wait=True):
    """SIGTERM asks the programs that are `running` to end. When they have, it ends this one; at
    once if there are none, or without `wait`. Ctrl-C asks them, too: a terminal does so by itself,
    `kill -INT` does not. then: what the same command does afterwards, in words."""
    def asked(*_):
        ask()
        if not RUNNING or not wait:
            end()

    def end():
        print(f"error: asked to end; the same command {then}", file=sys.stderr)
        end_by_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, asked)
    try:
        yield
    except KeyboardInterrupt:
        ask()
        raise KeyboardInterrupt(f"the same command {then}") from None
    finally:
        if ASKED.is_set() and not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            end()
        ASKED.clear()
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

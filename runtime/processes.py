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

RUNNING, LOCK = set(), threading.RLock()  # the processes of `running`; None: one is starting
ASKED = threading.Event()  # whether this program is to end


def ask(*_):
    """Ask all of them to end; of those that start later, `running` asks each at once."""
    ASKED.set()
    with LOCK:
        for process in RUNNING - {None}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)  # process.terminate could reap it


@contextlib.contextmanager
def running(command, **options):
    """The process of a command, as subprocess.Popen has it, as long as it is waited for."""
    with LOCK:
        RUNNING.add(None)
        try:
            process = subprocess.Popen(command, **options)
            RUNNING.add(process)
        finally:
            RUNNING.discard(None)
    try:
        if ASKED.is_set():
            ask()
        yield process
    finally:
        with LOCK:
            RUNNING.discard(process)


@contextlib.contextmanager
def ending_together(then, wait=True):
    """SIGTERM or Ctrl-C asks the programs that are `running` to end. When they have, it ends this
    one; at once if there are none. Without `wait` SIGTERM always ends this one at once, and Ctrl-C
    raises KeyboardInterrupt. then: what the same command does afterwards, in words."""
    got = []  # signals

    def asked(number, _):
        got.append(number)
        ask()
        if not RUNNING or not wait:
            end()

    def end():
        why = "interrupted" if got[0] == signal.SIGINT else "asked to end"
        print(f"error: {why}: the same command {then}", file=sys.stderr)
        end_by_signal(got[0])

    numbers = [signal.SIGTERM, *[signal.SIGINT] * wait]
    before = {n: signal.signal(n, asked) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    except KeyboardInterrupt:
        ask()
        raise KeyboardInterrupt(f"the same command {then}") from None
    finally:
        if got:
            end()
        ASKED.clear()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

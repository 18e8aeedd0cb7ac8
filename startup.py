"""What every program does first, before torch is imported: errors of the machine become one line,
and its threads learn not to wait for one another with all their might."""
import os
import sys

# A parallel step of PyTorch ends when its last thread is done. Those that are done before look for
# it in a loop, by default for milliseconds. That costs nothing on idle cores; but where another
# program wants one, it takes up the time slice in which the missing thread could have run, and a
# step that has hundreds of such ends takes ten times as long (README, Speed). So they
# look for some 50 microseconds, longer than most such steps last, and then sleep.
SPINS = "3000"  # of GNU's OpenMP, read when torch loads it; other OpenMPs do not know the name
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = SPINS


def report(kind, error, trace):
    """sys.excepthook of our programs: Ctrl-C, a full disk or a folder that cannot be written is one
    line, as the import of torch takes seconds, and the download of a model longer. What has more
    to say catches them itself (training.py, chat.py). The exit code of Ctrl-C stays the signal's.
    """
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted", file=sys.stderr)
    elif issubclass(kind, OSError) and error.errno:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = report

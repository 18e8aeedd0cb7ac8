"""What every program does first, before torch is imported: errors of the machine become one line,
and on a machine that is shared its threads do not wait for one another with all their might."""
import os
import sys
import time

# A parallel step of PyTorch ends when its last thread is done. GNU's OpenMP lets the others look
# for it in a loop, for milliseconds. On idle cores that is the quickest way. But where another
# program keeps a core busy, they use up the time in which the missing thread could have run, and a
# training step that has hundreds of such ends takes twenty times as long (README, Speed). There
# they look for some 50 microseconds and then sleep.
SPINS = "3000"  # looks; it is 300,000 by itself. Other OpenMPs do not know the variable
BUSY = 0.5  # cores' worth of other programs from which it is taken
OWN = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}  # with one of these set, their user has chosen


def busy(seconds=0.1):
    """How many cores other programs keep busy, looked at for so long; 0.0 where Linux does not
    tell."""
    def ticks():
        with open("/proc/stat") as file:
            return sum(map(int, file.readline().split()[1:4]))  # user, nice, system; of all cores

    try:
        before = ticks()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds
    except (OSError, ValueError):
        return 0.0


if os.environ.get("OMP_NUM_THREADS") != "1" and not OWN & set(os.environ) and busy() >= BUSY:
    os.environ["GOMP_SPINCOUNT"] = SPINS  # read when torch loads OpenMP


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

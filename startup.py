"""What every program does first, before torch is loaded (`settings` calls `begin`).

    kept            output that cannot be written never stops a program
    shared_cores    torchrun's ranks share the cores of their machine
    busy            on a busy machine, waiting threads sleep instead of spinning
    report          Ctrl-C and system errors become one line
    begin           all of it
"""
import io
import os
import signal
import sys
import time


class Kept(io.FileIO):
    """The raw end of a standard stream. Writing to it never fails; output that cannot be written is
    lost: nobody reads the pipe (`| head -1`), the terminal is gone, the disk of a log is full."""

    def write(self, data):
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def kept(stream):
    """sys.stdout or sys.stderr, changed so that failed output never stops a program: its files
    matter more. A character that the stream's encoding lacks is escaped, as \\xe9."""
    if stream is None:  # closed before the program began
        return open(os.devnull, "w", encoding="utf-8")
    if stream not in (sys.__stdout__, sys.__stderr__):
        return stream  # a notebook's or a test's
    raw, how = getattr(stream.buffer, "raw", stream.buffer), "backslashreplace"
    if type(raw) is not io.FileIO:  # a terminal of Windows
        stream.reconfigure(errors=how)
        return stream
    stream.flush()
    end = Kept(raw.fileno(), "wb", closefd=False)
    end = end if stream.buffer is raw else io.BufferedWriter(end)  # python -u has no buffer
    return io.TextIOWrapper(end, stream.encoding, how, line_buffering=stream.line_buffering,
                            write_through=stream.write_through)


def begun_with(process):
    """The environment that a process of this machine was started with, without its later changes;
    {} where the system does not tell."""
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            return dict(line.partition(b"=")[::2] for line in file.read().split(b"\0") if line)
    except OSError:
        return {}


def shared_cores():
    """How many threads each of torchrun's ranks needs so that together they use all cores of this
    machine; 0: leave the number as it is.

    If OMP_NUM_THREADS is not set, torchrun sets it to 1 for its ranks. A rank cannot tell this from
    its user's choice, so it looks at the environment of torchrun.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    chosen = os.environ.get("OMP_NUM_THREADS")
    if ranks < 2 or chosen not in (None, "1"):
        return 0
    before = begun_with(os.getppid())
    if chosen and (not before or b"OMP_NUM_THREADS" in before):
        return 0
    known = hasattr(os, "sched_getaffinity")
    return max(1, (len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1) // ranks)


# A parallel region of PyTorch ends when its last thread is done. With GNU's OpenMP the others spin
# while they wait, for milliseconds. On idle cores that is fastest. But if another program keeps a
# core busy, they use up the time in which the last thread could run, and a training step with
# hundreds of such waits takes twenty times as long (docs/kernels.md). On such a machine they spin
# for some 50 microseconds and then sleep.
SPINS = "3000"  # iterations; the default is 300,000. Other OpenMPs ignore the variable
BUSY = 0.5  # SPINS is used if other programs keep this many cores busy
OWN = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}  # if one of these is set, the user has chosen


def busy(seconds=0.1):
    """How many cores other programs keep busy, measured for `seconds`; 0.0 where Linux does not
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


def end_by_signal(number=signal.SIGINT):
    """End as Ctrl-C, or another signal, ends a program, so that a shell sees it. Python does so by
    itself for Ctrl-C, but its exit code is 1 once torch has met the package tabulate, which
    sacrebleu brings along."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def report(kind, error, trace):
    """sys.excepthook of our programs: one line for Ctrl-C (importing torch takes seconds, a model's
    download longer), a full disk or a folder that cannot be written. Code with more to say catches
    them itself (training.py, chat.py). The exit code of Ctrl-C stays the signal's.
    """
    if issubclass(kind, KeyboardInterrupt):
        print(": ".join(["error: interrupted", *map(str, error.args)]), file=sys.stderr)
        end_by_signal()
    elif issubclass(kind, OSError) and error.errno:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def begin():
    """All of the above. Returns how many threads a rank was given; 0: the number is as it was."""
    sys.stdout, sys.stderr, sys.excepthook = kept(sys.stdout), kept(sys.stderr), report
    threads = shared_cores()
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # both are read when torch loads OpenMP
    if os.environ.get("OMP_NUM_THREADS") != "1" and not OWN & set(os.environ) and busy() >= BUSY:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    return threads

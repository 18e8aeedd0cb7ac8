"""Runs one exercise on a file that nobody trusts, in a process of its own.

    outcomes = run(exercise, path)          [{"value": {...}} or {"error": ...}], one for each case

The process imports the student's file and calls its function; it judges nothing. What comes back is
JSON, never a pickle, and is compared elsewhere: a process that prints "all passed", patches torch
or leaves early has only given no answer. Beside the file that is checked, everything is the
project's own: other holes, in this file or in others, do not matter.
"""
import ast
import contextlib
import copy
import importlib
import importlib.util
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import types
from dataclasses import dataclass
from pathlib import Path

from exercises import ROOT, course, cutting, limits

ANSWER = 8 * limits.MEGABYTE  # bytes of all outcomes, at most
UNBEGUN = {"error": "Ended", "line": "",  # that is no fault of the file that it was to run
           "message": "the process ended before it began: the machine is full, check it again"}
NONSENSE = {"error": "Ended", "message": "the process sent nonsense instead of its results",
            "line": ""}
DIGITS, DEPTH = 300, 20  # of a number and of lists in lists, at most: what a float and a stack hold


@dataclass(frozen=True)
class Limits:
    seconds: int = 20  # of CPU time; four times that by the clock, or more on a busy machine
    megabytes: int = 1024  # beyond what PyTorch itself takes
    sealed: bool = False  # see limits.seal


# ------------------------------------------------------------------------------- values as JSON

def packed(value):
    """A result as plain JSON. Tensors keep their shape and dtype."""
    import torch
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().flatten()
        flat = flat.double() if flat.is_floating_point() else flat
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."),
                "data": flat.tolist()}
    if isinstance(value, (list, tuple)):
        return {"list": [packed(x) for x in value]}
    if hasattr(value, "tolist"):  # numpy
        return packed(value.tolist())
    if isinstance(value, int) and abs(value) >= 10**DIGITS:
        return {"kind": "number of many digits"}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"kind": type(value).__name__}


def unpacked(value, depth=0):
    """The same value if `packed` can have made it, else ValueError: it came from a process that may
    have written anything."""
    known = value is None or isinstance(value, (bool, int, float, str))
    if isinstance(value, dict) and depth < DEPTH:
        kind = set(value)
        if kind == {"list"} and isinstance(value["list"], list):
            return {"list": [unpacked(x, depth + 1) for x in value["list"]]}
        if kind == {"shape", "dtype", "data"}:
            shape, data = value["shape"], value["data"]
            known = (isinstance(value["dtype"], str) and isinstance(shape, list)
                     and isinstance(data, list)
                     and all(isinstance(x, int) and x >= 0 for x in shape)
                     and all(isinstance(x, (int, float)) for x in data)
                     and math.prod(shape) == len(data))
        if kind == {"kind"}:
            return {"kind": plain(value["kind"])}
    if not known:
        raise ValueError(value)
    return value


def plain(text):
    """Text that any terminal and any report takes: no control characters, no halves of
    characters. ValueError if it is none."""
    if not isinstance(text, str):
        raise ValueError(text)
    return "".join(c if c.isprintable() or c in "\t\n" else "?" for c in text)


def as_sent(exercise, line):
    """A line of the process as the outcome of a case."""
    try:
        if isinstance(line, dict) and isinstance(line.get("value"), dict):
            values = {name: unpacked(x) for name, x in line["value"].items()}
            return {"value": exercise.facts(values) if exercise.facts else values}
        return {name: plain(line[name]) for name in ("error", "message", "line")}
    except (ValueError, KeyError, TypeError):
        return NONSENSE


def outcome(call, path=None):
    """What a call returns, or how it ends, and in which line: of the file `path` if it has one."""
    try:
        return {"value": {name: packed(x) for name, x in call().items()}}
    except BaseException as error:  # sys.exit is no way out
        where = [f for f in traceback.extract_tb(error.__traceback__)
                 if Path(f.filename).suffix == ".py"]
        own = [f for f in where if f.filename == str(path)]
        inside = [f for f in where if "site-packages" not in f.filename]
        last = (own or inside or where or [None])[-1]
        return {"error": type(error).__name__, "message": said_by(error),
                "line": f"{named(last.filename)}:{last.lineno}: {last.line}" if last else ""}


def named(file):
    """A file of the project by its path in it, another one by its name."""
    path = Path(file)
    return (path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name)


def said_by(error):
    """The text of an error; its class is the student's, too."""
    try:
        return str(error)[:500]
    except BaseException:
        return ""


# ------------------------------------------------------------------------------- the module

def module_name(file):
    return file.removesuffix(".py").replace("/", ".")


def module_of(exercise, path):
    """The module in the file `path`, with the project's own functions in place of all other
    exercises of that file. It takes the place of the project's own module, and of the operators
    that this has registered with PyTorch: only for a process that ends with the check."""
    name = module_name(exercise.file)
    importlib.import_module(name)  # first the project's own: others import from it
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its function finds itself, not the project's own
    spec.loader.exec_module(module)
    for other in course.load().values():
        if other.file == exercise.file and other.function != exercise.function:
            node = cutting.node_of(cutting.reference(exercise.file), other.function)
            code = compile(ast.Module([node], []), f"{exercise.file} (the project's own)", "exec")
            exec(code, module.__dict__)
    return module


def raise_(error):
    raise error


def fresh(exercise):
    """The cases, copied: a function that changes its inputs spoils no other's."""
    return copy.deepcopy(exercise.cases())


# ------------------------------------------------------------------------------- the process

def child(connection, name, path, output, bounds):
    """The whole life of the process."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    with contextlib.suppress(OSError, AttributeError):
        os.setsid()
    answer = os.dup(connection.fileno()) if os.name == "posix" else None
    import torch
    torch.set_num_threads(1)
    exercise, first = course.load()[name], None
    cases = fresh(exercise)
    if bounds.sealed and answer is not None:
        keep = sorted({0, 1, 2, answer})
        os.closerange(3, answer)
        os.closerange(keep[-1] + 1, 4096)
    limits.limit(bounds.seconds, bounds.megabytes)
    send = sender(answer, connection)
    send({"sealed": bounds.sealed and limits.seal()})
    out_of_reach()
    try:
        module = module_of(exercise, path)
    except BaseException as error:
        first = outcome(lambda: raise_(error), path)
    for _, case in cases:
        send(first or outcome(lambda: exercise.run(module, case), path))
    os._exit(0)


def out_of_reach():
    """Let nothing import the checks, whose oracles are right functions, or the tests."""
    for name in ("__main__", "__mp_main__"):  # the command, which has imported them
        sys.modules[name] = types.ModuleType(name)
    for name in [n for n in sys.modules if n.split(".")[0] == "exercises"] + ["tests"]:
        sys.modules[name] = None


def sender(answer, connection):
    """A function that sends a JSON line to whoever waits for it."""
    write, dumps, fsencode = os.write, json.dumps, str.encode  # as they are now

    def send(value):
        data = fsencode(dumps(value) + "\n")
        if answer is None:
            connection.send_bytes(data)
            return
        while data:
            data = data[write(answer, data):]

    return send


def context():
    """A server that has imported PyTorch forks the processes; where there is none, each imports."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        out = multiprocessing.get_context("forkserver")
        out.set_forkserver_preload(["exercises.preload"])
        return out
    return multiprocessing.get_context("spawn")


def received(connection, process, n, seconds):
    """The lines that a process sends: at most n + 1, ANSWER bytes, and `seconds`. A process that
    wants to compute and gets no core, on a busy machine, has ten times as long."""
    lines, rest, size, deadline = [], b"", 0, time.monotonic() + seconds
    while len(lines) <= n and size < ANSWER:
        ready, late = connection.poll(0.5), time.monotonic() - deadline
        if late > 9 * seconds or late > 0 and not ready and sleeps(process.pid):
            return lines, f"did not end within {seconds} seconds"
        if not ready:
            continue
        try:
            part = os.read(connection.fileno(), 2**16) if os.name == "posix" else (
                connection.recv_bytes(ANSWER))
        except (OSError, EOFError):
            part = b""
        if not part:
            process.join(5)
            return lines, ended(process.exitcode)
        size, rest = size + len(part), rest + part
        *whole, rest = rest.split(b"\n")
        for line in whole:
            try:
                lines.append(json.loads(line, parse_int=whole_number))
            except (ValueError, RecursionError):
                return lines, "sent nonsense instead of its results"
    return lines, "" if len(lines) > n else "sent too much"


def whole_number(text):
    """An int of JSON; ValueError where it takes long to read, or is more than a float holds."""
    if len(text) > DIGITS + 1:
        raise ValueError("too many digits")
    return int(text)


def sleeps(pid):
    """Whether a process waits for something other than a core; True where Linux does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "R"
    except OSError:
        return True


def ended(code):
    """Why a process is gone, in words."""
    return {-24: "used up its CPU time", -9: "used up its CPU time, or was killed",
            -25: "wrote too much", -11: "crashed"}.get(code, "ended before it was done")


def run(exercise, path, bounds=Limits()):
    """(outcomes of all cases, what it printed, whether it was sealed)."""
    n = len(exercise.cases())
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output.txt"
        ours, theirs = context().Pipe(duplex=False)
        process = context().Process(target=child, args=(theirs, exercise.name, str(path),
                                                        str(output), bounds), daemon=True)
        process.start()
        theirs.close()
        lines, reason = received(ours, process, n, 4 * bounds.seconds)
        process.kill()
        with contextlib.suppress(OSError, AttributeError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has forked, where nothing forbids that
        process.join()
        ours.close()
        printed = output.read_text("utf-8", "replace") if output.exists() else ""
    good = [as_sent(exercise, line) for line in lines[1 : n + 1]]
    lost = {"error": "Ended", "message": f"the process {reason}", "line": ""} if lines else UNBEGUN
    sealed = bool(lines) and lines[0] == {"sealed": True}
    return good + [lost] * (n - len(good)), printed, sealed


def is_blank(result, exercise):
    """Whether an outcome is that of a hole nobody has filled."""
    said = f"{result.get('error')} {result.get('message')}"  # Triton's interpreter wraps it
    return "NotImplementedError" in said and f"exercise {exercise.name}:" in said

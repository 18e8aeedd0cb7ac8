"""Stages in processes of their own that come to harm: killed, out of memory, out of disk.

The harm is done here, from outside: the scripts know nothing of it. `start` forks a process that
has imported the scripts already, so that a run takes as long as its steps. With torchrun:

    torchrun ... tests/harm.py '[["die", 1, 5]]' sft.py --epochs=2
"""
import functools
import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import time

import torch

from runtime import training


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def before_each(module, name, action):
    """Let action(n) run before the n-th call of module.name, n = 1, 2, ..."""
    original, calls = getattr(module, name), [0]

    @functools.wraps(original)
    def changed(*args, **kwargs):
        calls[0] += 1
        action(calls[0], *args)
        return original(*args, **kwargs)

    setattr(module, name, changed)


def kill_at_operation(n, rank=None):
    """Killed before the n-th of all operations on files; of torch.save, when half is written. With
    a rank, that one alone."""
    if rank is not None and os.environ.get("RANK") != str(rank):
        return
    done = [0]

    def count(_, *args):
        done[0] += 1
        if done[0] == n:
            if hasattr(args[-1] if args else None, "write"):
                args[-1].write(b"half")
                args[-1].flush()
            kill_me()

    for module, name in ((torch, "save"), (json, "dumps"), (os, "fsync"), (os, "replace"),
                         (os, "rename"), (os, "unlink"), (os, "mkdir"), (os, "rmdir")):
        before_each(module, name, count)


def at_step(steps, action):
    """action(gradients) before the n-th norm of the gradients, for the n in steps: 1, 2, ..."""
    original, calls = torch.nn.utils.get_total_norm, [0]

    def changed(gradients):
        calls[0] += 1
        if calls[0] in steps:
            action(gradients)
        return original(gradients)

    torch.nn.utils.get_total_norm = changed


def gradients_of(value, *steps):
    def spoil(gradients):
        for g in gradients:
            g.fill_(value)

    at_step(steps, spoil)


def out_of_memory(step):
    at_step([step], lambda _: torch.empty(2**50))


def disk_full(n):
    """From the n-th torch.save on, every write goes to a device that is always full."""
    original = torch.save

    def save(content, file, **options):
        save.calls += not options  # with some, a tensor is pickled for other ranks
        if options or save.calls < n:
            return original(content, file, **options)
        with open("/dev/full", "wb") as full:
            original(content, full)

    save.calls, torch.save = 0, save


def no_sync(code, folders=False):
    """The disk refuses to say that it has all: of files; of folders it refuses even the opening."""
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    original = os.open
    os.fsync = refuse
    if folders:
        os.open = lambda path, *rest, **more: (
            refuse if os.path.isdir(path) else original)(path, *rest, **more)


def slow(seconds):
    """Each step takes longer, so that a signal finds the run where it is wanted."""
    before_each(training.Training, "log", lambda *_: time.sleep(seconds))


def die(rank, step):
    """One of the ranks dies in a step; not again, where torchrun has started it again."""
    if os.environ.get("RANK") == str(rank) and os.environ.get("TORCHELASTIC_RESTART_COUNT",
                                                              "0") == "0":
        before_each(training.Training, "log", lambda n, *_: kill_me() if n == step else None)


def hang(rank, step):
    if os.environ.get("RANK") == str(rank):
        before_each(training.Training, "log",
                    lambda n, *_: time.sleep(1000) if n == step else None)


HARM = dict(kill_at_operation=kill_at_operation, disk_full=disk_full, no_sync=no_sync,
            slow=slow, die=die, hang=hang,
            out_of_memory=out_of_memory, nan=functools.partial(gradients_of, math.nan),
            huge=functools.partial(gradients_of, 1e30))


def come_to(harm, script, flags):
    """Run a script in this process with what is to happen to it: [(name, *arguments), ...]."""
    torch.set_num_threads(1)
    module, *flags = flags if script == "-m" else (script.removesuffix(".py"), *flags)
    sys.argv = [module, *flags]
    for name, *arguments in harm:
        HARM[name](*arguments)
    importlib.import_module(module).main()


def child(folder, output, harm, script, flags, environment):
    os.chdir(folder)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        come_to(harm, script, flags)
    except Exception:  # as the interpreter does it, which multiprocessing would not
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)


def fork(target, *args):
    """A process of a server that has imported the scripts and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harm", "sft", "reward", "ppo", "torch.distributed.fsdp",
                                    "torch.distributed.checkpoint"])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def start(folder, output, script, *flags, harm=(), **environment):
    """A process that runs a script; what it prints is added to the file `output`."""
    return fork(child, str(folder), str(output), harm, script, flags, environment)


if __name__ == "__main__":
    come_to(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:])

"""Ctrl-C, a full disk or a folder that cannot be written: one line instead of a traceback.

Every program imports this first, as the import of torch takes seconds, and the download of a model
longer. What has more to say catches them itself (training.py, chat.py). The exit code of Ctrl-C
stays that of the signal.
"""
import sys


def report(kind, error, trace):
    """sys.excepthook of our programs."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted", file=sys.stderr)
    elif issubclass(kind, OSError) and error.errno:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = report

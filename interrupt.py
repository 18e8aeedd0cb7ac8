"""Ctrl-C is one line instead of a traceback from here on: every program imports this first, as the
import of torch takes seconds, and the download of a model longer. What has more to say to it
catches KeyboardInterrupt itself (training.py, chat.py). The exit code stays that of the signal."""
import sys


def report(kind, error, trace):
    """sys.excepthook of our programs."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = report

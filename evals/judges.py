"""Judges and scorers: a slot that takes texts and gives each a number from 0 to 1.

    profanity          a classifier of profanity that is part of its package (extra `evals`)
    detoxify           Detoxify's model "original", where it is installed with its weights
    module:function    your own: function([{"prompt", "response"}, ...]) -> [number, ...]
    http(s)://...      a server: POST {"prompt", "response"} as JSON, and it answers {"score": x}
    scores.jsonl       {"prompt", "response", "score"} a line: people's, or another program's

An answer of a server is kept on the disk and never asked for twice. The key for it is read from the
environment, JUDGE_KEY, and sent as "Authorization: Bearer ..." to that address alone; it is never
printed or stored.
"""
import hashlib
import http.client
import importlib
import json
import math
import numbers
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from settings import extra, stop  # before torch

from tqdm import tqdm

from data import records

TIMEOUT, TRIES = 30, 5  # seconds; tries of a request, after 1, 2, 4 and 8 seconds more
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # HTTP codes that may pass


@dataclass
class Judges:
    """What the tasks may ask. Each is a function of rows {"prompt", "response"}, or None."""
    toxicity: Callable = None
    truth: Callable = None
    info: Callable = None


def judge(flag, value, cache):
    """The function that a setting names, None for an empty one; see the top of the file.

    cache: the folder for the answers of servers. Stops at once if it cannot be had.
    """
    if not value:
        return None
    if value == "profanity":
        library = extra("profanity_check", f"--{flag}=profanity")
        return lambda rows: [float(x) for x in library.predict_prob([r["response"] for r in rows])]
    if value == "detoxify":
        return detoxify(flag)
    if value.lower().startswith(("http://", "https://")):
        return Server(address(flag, value), Path(cache))
    if value.endswith(".jsonl"):
        return Scores(value)
    return checked(flag, imported(flag, value))


def detoxify(flag, size=64):
    """Detoxify's model "original", a few texts at a time."""
    try:
        model = importlib.import_module("detoxify").Detoxify("original")
    except ImportError as error:
        stop(f"--{flag}=detoxify: {error}: pip install detoxify, in an environment of its own if "
             "its torch is another")
    except OSError as error:  # it downloads its weights
        stop(f"--{flag}=detoxify: its weights could not be had ({type(error).__name__}): start it "
             "once with a network")
    return lambda rows: [float(x) for i in range(0, len(rows), size) for x in model.predict(
        [row["response"] for row in rows[i : i + size]])["toxicity"]]


def imported(flag, value):
    """The function of module:function; the folder that the command runs in counts."""
    module, colon, name = value.partition(":")
    if not colon:
        stop(f"--{flag}={value}: expected profanity, detoxify, module:function, an http(s) address "
             "or a .jsonl file of scores")
    try:
        sys.path.insert(0, os.getcwd())
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        stop(f"--{flag}={value}: {error}")
    finally:
        sys.path.pop(0)


def checked(flag, function):
    """The function, stopping where it does not give one number from 0 to 1 for each row."""
    def of_rows(rows):
        scores = list(function(rows))
        if len(scores) != len(rows):
            stop(f"--{flag}: {len(scores)} scores for {len(rows)} texts")
        return [number(x, f"--{flag}") for x in scores]

    return of_rows


def number(x, who):
    """x as a float from 0 to 1; stops if it is none."""
    if isinstance(x, numbers.Real) and math.isfinite(x) and 0 <= x <= 1:
        return float(x)
    stop(f"{who} gave {records.shorten(str(x))}, expected a number from 0 to 1")


def named(value):
    """A judge as it may be shown: an address can hold a key, in its query or before its host."""
    return re.sub(r"//[^/@]*@", "//", value.partition("?")[0])


def address(flag, value):
    """The address of a server, if a request can be sent to it. It can hold a key: no complaint
    shows it, as Python's own would."""
    try:
        parts = urllib.parse.urlsplit(value)
        sendable = parts.hostname and parts.port != 0 and re.fullmatch("[!-~]+", value)
    except ValueError:
        sendable = False
    if not sendable:
        stop(f"--{flag} is no address: expected https://host/path, without spaces, letters that "
             "are not ASCII written as %..")
    if "@" in parts.netloc:
        stop(f"--{flag} has a name or a password before its host: put the key into JUDGE_KEY")
    return value


def key_header():
    """The header with the key, {} without one."""
    key = os.environ.get("JUDGE_KEY", "").strip()  # a file's line end often comes with it
    if not re.fullmatch("[ -~]*", key):
        stop("JUDGE_KEY has characters that no header can have: copy it again")
    return {"Authorization": f"Bearer {key}"} if key else {}


class Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: another server would get the key, and no text."""

    def redirect_request(self, *args):
        return None


class Scores:
    """A file of scores, found by prompt and response."""

    def __init__(self, path):
        self.path, self.known = path, {}
        if not Path(path).is_file():
            stop(f"no file {path}: a line for each text, {{\"prompt\", \"response\", \"score\"}}")
        for i, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                    key = row["prompt"], row["response"]
                    self.known[key] = number(row["score"], f"{path}:{i}")
                except (ValueError, KeyError, TypeError) as error:
                    stop(f"{path}:{i}: expected {{\"prompt\", \"response\", \"score\"}}: {error!r}")

    def __call__(self, rows):
        missing = [r for r in rows if (r["prompt"], r["response"]) not in self.known]
        if missing:
            stop(f"{self.path} has no score of {len(missing)} of {len(rows)} texts, the first after"
                 f" the prompt {records.shorten(missing[0]['prompt'])}: the model's texts are in "
                 "the answers/ folder of --out")
        return [self.known[r["prompt"], r["response"]] for r in rows]


class Server:
    """An address that scores one text a request. Its answers are kept in a folder."""

    def __init__(self, address, folder, pause=1.0):
        self.address, self.folder, self.pause = address, folder, pause
        self.name = named(address)
        self.headers = {"Content-Type": "application/json", **key_header()}

    def __call__(self, rows):
        return [self.score(row) for row in tqdm(rows, desc="judge", leave=False)]

    def score(self, row):
        body = json.dumps({"prompt": row["prompt"], "response": row["response"]}, sort_keys=True)
        key = hashlib.sha256(f"{self.address}\n{body}".encode()).hexdigest()
        path = self.folder / key[:2] / f"{key}.json"
        if not path.exists():
            answer = self.ask(body.encode())
            records.write_json(path, {"score": number(answer.get("score"), self.name)})
        return records.read_json(path, "evaluate.py", score=records.NUMBER)["score"]

    def ask(self, body):
        """The server's answer as a dict. Tries again where that can help."""
        opener = urllib.request.build_opener(Stay)
        for attempt in range(TRIES):
            try:
                request = urllib.request.Request(self.address, body, self.headers)
                with opener.open(request, timeout=TIMEOUT) as response:
                    answer = json.loads(response.read())
                    return answer if isinstance(answer, dict) else {"score": answer}
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}"
                if error.code not in AGAIN:
                    break
            except ValueError:
                problem = "its answer is not JSON"
                break
            except (OSError, http.client.HTTPException) as error:  # no connection, no whole answer
                problem = type(error).__name__
            if attempt + 1 < TRIES:
                time.sleep(self.pause * 2**attempt)
        stop(f"{self.name} does not answer ({problem}): what it has scored is kept, run the same "
             "command again")

"""--name=hub:OWNER/NAME through the library `datasets` itself, against a hub of our own on this
machine: its questions, parts of its files, its errors. Single files: test_hub.py."""
import contextlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data import hub
from data.public import Settings
from test_hub import COMMIT, NOBODY, Server

pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install datasets")
parquet = pytest.importorskip("pyarrow.parquet")

ROOT = Path(hub.__file__).parents[1]
NAME = "datasets/someone/theirs"
OLD = "f" * 40  # an earlier commit than COMMIT, with the tag v1
CARD = b"""---
configs:
- config_name: en
  data_files:
  - {split: train, path: "en/train-*.parquet"}
  - {split: test, path: en/test.parquet}
- config_name: de
  data_files: de/train.parquet
---
"""
PLACE = re.compile(r"(?:/api)?/(datasets/[^/]+/[^/]+)(?:/([a-z-]+)/([^/]+)(?:/(.+))?)?")


class Hub(Server):
    """What a stream asks for: /api/datasets/ORG/NAME, /revision/R, /tree/R and /paths-info/R of it,
    and /datasets/ORG/NAME/resolve/R/FILE or a part of that file."""

    def do_GET(self):
        s, place = self.server, PLACE.fullmatch(self.path.partition("?")[0])
        s.tokens.add(self.headers["Authorization"])
        repo, ask, revision, name = place.groups() if place else (None,) * 4
        commit = s.refs.get(revision or "main", revision)
        files = s.repos.get(repo, {}).get(commit)
        if repo in s.errors or files is None:
            code, error = s.errors.get(repo, (404, "RevisionNotFound" if repo in s.repos else
                                              "RepoNotFound"))
            self.answer(code, {"X-Error-Code": error})
        elif ask == "resolve":
            self.send(files, name, commit)
        elif ask == "tree":
            self.tell([fact(files, path) for path in inside(files, name, "recursive=true" in
                                                            self.path.lower())])
        elif ask == "paths-info":
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
            self.tell([fact(files, file) for file in asked if fact(files, file)])
        else:
            self.tell({"id": repo, "sha": commit})

    do_POST = do_GET

    def tell(self, facts):
        content = json.dumps(facts).encode()
        self.answer(200, {"Content-Length": len(content), "Content-Type": "application/json"})
        self.wfile.write(content)

    def send(self, files, name, commit):
        if name not in files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content, part = files[name], self.headers["Range"]
        first, _, last = (part or "bytes=0-")[6:].partition("-")
        body = content[int(first) : int(last or len(content)) + 1]
        self.answer(206 if part else 200, {
            "ETag": f'"{commit}{len(content)}"', "X-Repo-Commit": commit,
            "Content-Length": len(body),
            "Content-Range": f"bytes {first}-{int(first) + len(body) - 1}/{len(content)}"})
        with contextlib.suppress(OSError):  # the reader has enough
            for i in range(0, len(body) if self.command == "GET" else 0, 2**16):
                self.server.sent += self.wfile.write(body[i : i + 2**16])


def inside(files, folder, recursive):
    """The paths in a folder; if not recursive, its own files and folders only."""
    start = f"{folder}/" if folder else ""
    paths = [file for file in files if file.startswith(start)]
    return paths if recursive else dict.fromkeys(
        start + path[len(start):].partition("/")[0] for path in paths)


def fact(files, path):
    """What the hub says of a file or folder."""
    if path in files:
        return {"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40}
    if any(file.startswith(f"{path}/") for file in files):
        return {"type": "directory", "path": path, "oid": "0" * 40}


def table(rows):
    out = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows), out)
    return out.getvalue()


def pairs(name, n):
    return [{"prompt": f"{name}, number {i}?", "chosen": "Yes, of course.", "rejected": f"No {i}."}
            for i in range(n)]


def lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.refs, server.errors = {"main": COMMIT, "v1": OLD}, {}
    server.tokens, server.sent = set(), 0
    server.repos = {NAME: {
        COMMIT: {"README.md": CARD, "en/train-0.parquet": table(pairs("first", 30)),
                 "en/train-1.parquet": table(pairs("second", 30)),
                 "en/test.parquet": table(pairs("held out", 20)),
                 "de/train.parquet": table(pairs("auf Deutsch", 20))},
        OLD: {"train.jsonl": lines(pairs("long ago", 20))}}}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


PROGRAM = """
import contextlib, io, json, sys
from data import public
for line in sys.stdin:
    sys.argv, said = ["public", *json.loads(line)], io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            public.main()
        answer = said.getvalue(), ""
    except SystemExit as error:
        answer = said.getvalue(), str(error)
    print("answer", json.dumps(answer), flush=True)
"""


@contextlib.contextmanager
def program(url, home, **more):
    """run(flag, ...) -> (output, the line it stopped with): python -m data.public, in one process
    for several commands, as it takes long to import the library."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**kept, "HF_ENDPOINT": url, "HF_HOME": str(home), "no_proxy": "127.0.0.1", **more})

    def run(*flags):
        print(json.dumps(flags), file=process.stdin, flush=True)
        return json.loads(next(line[7:] for line in process.stdout if line.startswith("answer ")))

    with process:
        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def public(server, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with program(f"http://127.0.0.1:{server.server_port}", home, HF_TOKEN="hf_secret") as run:
        yield run


def beginnings(folder):
    """How the prompts of the rankings begin that a command wrote, and how many there are."""
    prompts = [json.loads(line)["prompt"] for path in folder.glob("rankings_*")
               for line in open(path, encoding="utf-8")]
    return {prompt.partition(",")[0] for prompt in prompts}, len(prompts)


@pytest.mark.parametrize("flags, expected", [
    (["--subset=en"], ({"first", "second"}, 60)),
    (["--subset=en", "--part=test"], ({"held out"}, 20)),
    (["--subset=de"], ({"auf Deutsch"}, 20)),
    (["--subset=en", "--most=40"], ({"first", "second"}, 40)),
    (["--revision=v1"], ({"long ago"}, 20)),
    (["--revision=" + OLD], ({"long ago"}, 20)),
])
def test_a_configuration_a_split_and_a_revision(public, server, tmp_path, flags, expected):
    output, error = public("--name=hub:someone/theirs", f"--out={tmp_path}", *flags)
    assert not error and f"{expected[1]} rows read" in output
    assert beginnings(tmp_path) == expected
    assert server.tokens >= {"Bearer hf_secret"}


@pytest.mark.parametrize("flags, complaint", [
    ([], "configs: ['en', 'de']; --subset names a configuration"),
    (["--subset=fr"], "'fr' not found. Available: ['en', 'de']"),
    (["--subset=en", "--part=valid"], "Available splits: ['train', 'test']"),
    (["--revision=v9"], "(there is no such revision)"),
    (["--subset=de", "--chosen=good"], "no field 'good'; there are prompt, chosen, rejected"),
])
def test_what_the_dataset_does_not_have_is_one_line(public, tmp_path, flags, complaint):
    _, error = public("--name=hub:someone/theirs", f"--out={tmp_path}", *flags)
    assert complaint in error and "\n" not in error and not list(tmp_path.iterdir())


GIVEN = "its owner must let you in, and HF_TOKEN must say who you are"


@pytest.mark.parametrize("name, answer, complaint", [
    ("nothing", None, "there is no such repository, or HF_TOKEN must say who may read it"),
    ("private", (401, "RepoNotFound"), "there is no such repository, or HF_TOKEN must say who"),
    ("gated", (401, "GatedRepo"), GIVEN), ("asked", (403, "GatedRepo"), GIVEN),
    ("broken", (500, ""), "500 Internal Server Error"),
])
def test_a_dataset_that_is_not_given_out_is_one_line(public, server, tmp_path, name, answer,
                                                     complaint):
    if answer:
        server.errors[f"datasets/someone/{name}"] = answer
    _, error = public(f"--name=hub:someone/{name}", f"--out={tmp_path}")
    assert f"hub:someone/{name} cannot be read" in error and complaint in error
    assert "--file=PATH" in error and "\n" not in error and not list(tmp_path.iterdir())


def test_a_large_dataset_is_not_downloaded_whole(public, server, tmp_path):
    """81 MB, of which the library reads the beginning, a few of its blocks."""
    content = lines([{"question": "What is long? " + "x" * 4000, "answer": "This."}] * 100) * 200
    server.repos["datasets/someone/large"] = {COMMIT: {"train.jsonl": content}}
    before = server.sent
    output, error = public("--name=hub:someone/large", f"--out={tmp_path}", "--most=50",
                           "--prompt=question", "--response=answer")
    assert not error and "50 rows read" in output
    assert 0 < server.sent - before < len(content) / 2


def test_flags_of_the_hub_without_a_dataset_of_the_hub_are_refused():
    for flags, complaint in [(dict(name="trl", subset="en"), "--subset: only --name=hub:"),
                             (dict(name="trl", part="test"), "--part: only --name=hub:"),
                             (dict(name="dolly", revision="v1"), "--revision: only --name=hub:"),
                             (dict(name="hub:a/b", file="x.jsonl"), "--file=x.jsonl: with --name"),
                             (dict(name="a/b"), "--name=a/b: a dataset of the hub is --name=hub:a/b"
                              ), *((dict(name=name), f"--name={name}: expected hub:OWNER/NAME")
                                   for name in ("hub:", "hub:a/b/c", "hub:datasets/a/b", "hub:a b",
                                                "hub:https://huggingface.co/datasets/a/b"))]:
        assert Settings(**flags).problem().startswith(complaint)


@pytest.mark.parametrize("more, complaint", [({}, "Connection refused"),
                                             ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE")])
def test_without_a_network_one_line_says_what_to_do(tmp_path, more, complaint):
    """At once: the library would try for half a minute."""
    with program(NOBODY, tmp_path / "home", **more) as run:
        _, error = run("--name=hub:someone/theirs", f"--out={tmp_path}/out")
    for piece in (complaint, "hf download someone/theirs --repo-type=dataset", "--file=PATH"):
        assert piece in error
    assert "\n" not in error and not (tmp_path / "out").exists()

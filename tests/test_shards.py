"""data/shards.py against plain lists: every document one after the other, each with its EOS.

Most tests run the workers' function in this process; those of workers, kills and the command start
real ones. Real files are looked for in $PUBLIC_DATA, or in ../shared/data beside the repository.
"""
import gzip
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
import tiktoken_ext.openai_public
import torch

import ppo
import sft
from data import public, records, shards, tokenizer
from data.batches import ShardRows, TextRows, text_rows_of
from helpers import tiny, tiny_scalar
from data.tokenizer import load_tokenizer
from runtime import checkpoint
from runtime.checkpoint import save

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("PUBLIC_DATA", ROOT.parent / "shared" / "data"))
WORDS = "the cat sat on a mat, and Zoë saw 12 cats; любой <|endoftext|> !".split()


class Inline:
    """A pool without processes: the work is done when it is handed in."""

    def __init__(self, workers, context, start, arguments):
        shards.worker_tokenizer = shards.load_tokenizer(*arguments)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(shards, "ProcessPoolExecutor", Inline)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """The path of a small vocabulary."""
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.tiktoken"
    path.write_bytes(tokenizer.train_bpe(" ".join(WORDS * 3), 290))
    return path


def sentence(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))


def write_files(folder, seed=0):
    """Files of all formats with the known irregularities. Returns their documents, in order."""
    rng, texts = random.Random(seed), []
    folder.mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl.gz", "d.jsonl"):
        lines = []
        for _ in range(40):
            text = rng.choice(["", " \n", *[sentence(rng) + "\r\n\u2028\x85" + sentence(rng)] * 8])
            lines.append(json.dumps({"id": 1, "text": text}, ensure_ascii=rng.random() < 0.5))
            lines += [""] * (rng.random() < 0.1)  # a blank line
            texts.append(text)
        ending = {"a": "\r\n", "b": "\n", "d": "\n"}[name[0]]
        body = ("\ufeff" * (name[0] == "a") + ending.join(lines) + "\n" * (name[0] != "d")).encode()
        (folder / name).write_bytes(gzip.compress(body) if name[0] == "b" else body)
        if name[0] == "b":
            paragraphs = [sentence(rng) + "\n" + sentence(rng) for _ in range(30)]
            (folder / "c.txt").write_bytes("\r\n\r\n".join(paragraphs).encode())
            texts += public.documents("\n\n".join(paragraphs), 100)
    (folder / "e.jsonl").write_bytes(b"")
    (folder / "f.png").write_bytes(b"\xff")
    return texts


def streams(tokenizer, texts, share):
    """{split: (ids, documents)}: the oracle."""
    out = {"train": ([], 0), "valid": ([], 0)}
    for text in texts:
        if text.strip():
            chance = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64
            ids, n = out[split := "valid" if chance < share else "train"]
            out[split] = (ids + tokenizer.encode(text) + [tokenizer.eos], n + 1)
    return out


def settings(tmp_path, vocabulary, **changes):
    return shards.Settings(**{**dict(
        file=str(tmp_path / "in"), out=str(tmp_path / "out"), tokenizer=str(vocabulary),
        split_valid=0.2, document=100, shard_tokens=900, chunk=1500, workers=2), **changes})


def read_back(folder):
    """{split: (ids, documents)} that a folder of shards holds; checks the index against them."""
    index = json.loads((folder / shards.INDEX).read_text())
    named = {e["file"] for shard in index["shards"] for e in shard.values()}
    assert named | {shards.INDEX} == {p.name for p in folder.iterdir()}, "no file too many"
    out = {}
    for split in ("train", "valid"):
        entries = [shard[split] for shard in index["shards"] if split in shard]
        parts = [np.fromfile(folder / e["file"], index["dtype"]) for e in entries]
        assert [len(part) for part in parts] == [e["tokens"] for e in entries]
        out[split] = (np.concatenate([*parts, []]).astype(int).tolist(),
                      sum(e["documents"] for e in entries))
    return out


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# ------------------------------------------------------------------------------ text into shards

@pytest.mark.parametrize("chunk, shard_tokens, share", [
    (1, 1, 0.2), (1500, 900, 0.2), (10**6, 10**6, 0.2), (300, 10**6, 0.0), (10**6, 500, 1.0)])
def test_shards_hold_every_document_once_and_in_order(tmp_path, inline, vocabulary, chunk,
                                                      shard_tokens, share):
    """However it is cut into chunks and shards. The end of a chunk ends a document of c.txt, too:
    with small chunks that file is left to the next test."""
    texts = write_files(tmp_path / "in")
    if chunk < 10**6:
        (tmp_path / "in" / "c.txt").unlink()
        texts = texts[:80] + texts[-40:]
    s = settings(tmp_path, vocabulary, chunk=chunk, shard_tokens=shard_tokens, split_valid=share)
    index, _ = shards.build(s)
    assert read_back(tmp_path / "out") == streams(load_tokenizer(vocabulary), texts, share)
    assert index["empty"] == sum(not text.strip() for text in texts) > 0
    assert index["dtype"] == "uint16" and index["next"]["file"] == len(index["files"])
    for shard in index["shards"][:-1]:  # each is full
        assert sum(e["tokens"] for e in shard.values()) >= shard_tokens


@pytest.mark.parametrize("chunk", [1, 50, 400, 10**6])
def test_prose_is_cut_at_blank_lines(tmp_path, inline, vocabulary, chunk):
    """Into documents; nothing but white space goes, and paragraphs longer than two chunks are cut
    at the end of a line."""
    rng = random.Random(chunk)
    paragraphs = [sentence(rng) + "\n" + sentence(rng) for _ in range(60)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("\ufeff" + "\n \n".join(paragraphs), encoding="utf-8")
    shards.build(settings(tmp_path, vocabulary, chunk=chunk, split_valid=0.0))
    own = load_tokenizer(vocabulary)
    ids, documents = read_back(tmp_path / "out")["train"]
    ends = [i for i, token in enumerate(ids) if token == own.eos]
    found = [own.decode(ids[a + 1 : b]) for a, b in zip([-1, *ends], ends)]
    assert len(found) == documents and ends[-1] == len(ids) - 1
    assert " ".join(found).split() == " ".join(paragraphs).split()
    if chunk >= 400:
        pieces = [p.strip() for d in found for p in re.split(r"\n\s*\n", d)]
        assert pieces == [p.strip() for p in paragraphs], "no paragraph was cut"


def test_large_vocabularies_take_four_bytes(tmp_path, inline, monkeypatch):
    class Large:
        name, fingerprint, eos, size = "large", "1", 69_999, 70_000
        encode = staticmethod(lambda text: [int(word) for word in text.split()])

    monkeypatch.setattr(shards, "load_tokenizer", lambda name: Large)
    (tmp_path / "in.jsonl").write_text('{"content": "69998 5"}')
    index, _ = shards.build(settings(tmp_path, "", file=str(tmp_path / "in.jsonl"),
                                     field="content", split_valid=0.0))
    assert index["dtype"] == "uint32"
    assert read_back(tmp_path / "out")["train"] == ([69_998, 5, 69_999], 1)


def test_reading_waits_for_the_workers():
    """Of a text without an end, only the chunks under way are read."""
    class Slow:
        def submit(self, work, path, first, body, s):
            future = Future()
            future.set_result(((body, 1), 0))
            return future

    read = []
    tasks = ((None, 1, read.append(i) or i, f"behind {i}") for i in iter(int, 1))
    results = shards.in_order(Slow(), tasks, 4, None)
    for n in range(100):
        assert next(results)[0] == "behind 0" and len(read) == n + 4


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, vocabulary, monkeypatch):
    write_files(tmp_path / "in")
    folders = []
    for workers in (0, 1, 3):
        with monkeypatch.context() as patch:
            if not workers:
                patch.setattr(shards, "ProcessPoolExecutor", Inline)
            s = settings(tmp_path, vocabulary, out=str(tmp_path / f"{workers}"),
                         workers=max(1, workers))
            shards.build(s)
        folders.append(contents(tmp_path / f"{workers}"))
    assert len(folders[0]) > 10 and folders[0] == folders[1] == folders[2]


# ------------------------------------------------------------------------------------ interrupted

def test_a_kill_at_any_step_changes_nothing(tmp_path, inline, vocabulary, monkeypatch):
    """The folder is copied before and after each rename and behind each write, as a kill would
    leave it. Continued from any copy, it ends as if nothing had been."""
    write_files(tmp_path / "in")
    out, copies = tmp_path / "out", []

    def snapshot():
        copies.append(tmp_path / f"copy {len(copies)}")
        shutil.copytree(out, copies[-1])

    def watched(function):
        def call(*arguments):
            snapshot()
            result = function(*arguments)
            snapshot()
            return result
        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", watched(os.replace))
        patch.setattr(shards, "zlib", SimpleNamespace(crc32=watched(zlib.crc32)))
        shards.build(settings(tmp_path, vocabulary, chunk=4000, shard_tokens=3000))
    whole = contents(out)
    assert len(whole) > 6 and len(copies) > 40
    started = set()
    for copy in copies:
        if (copy / shards.INDEX).exists():
            started.add(len(json.loads((copy / shards.INDEX).read_text())["shards"]))
        shards.build(settings(tmp_path, vocabulary, chunk=4000, shard_tokens=3000, out=str(copy)))
        assert contents(copy) == whole, copy
    assert len(started) > 2, "continued behind each of several shards"


KILLED = """
import os, signal, sys
from data import records, shards
where, n, calls = sys.argv[1], int(sys.argv[2]), 0
def count(function):
    def call(*arguments):
        global calls
        calls += 1
        if calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call
if where == "replace":
    os.replace = count(os.replace)
else:
    shards.zlib.crc32 = count(shards.zlib.crc32)
shards.build(shards.Settings(**eval(sys.argv[3])))
"""


def test_killed_processes_leave_no_workers_and_go_on(tmp_path, vocabulary, monkeypatch):
    """Kill -9, one after the other in the same folder, each at a step of its own."""
    write_files(tmp_path / "in")
    s = settings(tmp_path, vocabulary, chunk=4000, shard_tokens=3000)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "ProcessPoolExecutor", Inline)
        shards.build(shards.Settings(**{**vars(s), "out": str(tmp_path / "whole")}))
    codes, begun = [], 0
    for where, n in (("replace", 3), ("write", 9), ("replace", 5), ("write", 0)):
        run = subprocess.Popen([sys.executable, "-c", KILLED, where, str(n), repr(vars(s))],
                               cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               start_new_session=True)
        said = run.communicate(timeout=30)[0]  # which waits for the last to close its output
        codes.append(run.returncode)
        assert codes[-1] <= 1 and b"Traceback" not in said, said
        begun += codes[-1] != 0 and (tmp_path / "out" / shards.INDEX).exists()
    assert codes == [-signal.SIGKILL] * 3 + [0] and begun
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
def test_ctrl_c_is_one_line_at_any_moment(tmp_path, vocabulary, monkeypatch):
    """A terminal sends it to the workers too, which may still be importing; pressed twice it ends
    no worse. What is started in the background ignores SIGINT: not so the child here."""
    (tmp_path / "a.jsonl").write_bytes(GOOD * 30_000)
    s = settings(tmp_path, vocabulary, file=str(tmp_path / "a.jsonl"), chunk=2000,
                 shard_tokens=9000, split_valid=0.0)  # as a flag is read: the index holds it
    flags = [f"--{k}={v}" for k, v in vars(s).items()]
    for delay, times in ((0.0, 1), (0.2, 2)):
        run = subprocess.Popen(
            [sys.executable, "-m", "data.shards", *flags], cwd=ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        while len(children(run.pid)) < 2:  # multiprocessing's own, and a worker
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.005)
        for _ in range(times):
            time.sleep(delay)
            os.killpg(run.pid, signal.SIGINT)
        said = run.communicate(timeout=60)[1]  # which waits for the last to close its output
        assert run.returncode == 130 and "Traceback" not in said, said
        assert said.splitlines()[-1] == ("error: interrupted: the same command goes on behind the "
                                         "last whole shard")
    monkeypatch.setattr(shards, "ProcessPoolExecutor", Inline)
    shards.build(s)
    shards.build(shards.Settings(**{**vars(s), "out": str(tmp_path / "whole")}))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_only_the_same_run_is_continued(tmp_path, inline, vocabulary):
    write_files(tmp_path / "in")
    shards.build(settings(tmp_path, vocabulary))
    whole = contents(tmp_path / "out")
    index, rate = shards.build(settings(tmp_path, vocabulary, workers=5))
    assert rate == 0 and contents(tmp_path / "out") == whole, "all was there"
    for name, value in dict(chunk=99, shard_tokens=99, split_valid=0.1, document=99,
                            field="id").items():
        with pytest.raises(SystemExit, match=f"of another run, its '{name}' differs: choose"):
            shards.build(settings(tmp_path, vocabulary, **{name: value}))
    other = tmp_path / "other.tiktoken"
    other.write_bytes(tokenizer.train_bpe("another text", 260))
    with pytest.raises(SystemExit, match="its 'fingerprint' differs"):
        shards.build(settings(tmp_path, other))
    (tmp_path / "in" / "g.txt").write_text("more")
    with pytest.raises(SystemExit, match="its 'files' differs"):
        shards.build(settings(tmp_path, vocabulary))
    (tmp_path / "in" / "g.txt").unlink()
    shards.build(settings(tmp_path, vocabulary))
    file = max((tmp_path / "in").glob("*.txt"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-2] + b"??")  # other text of the same length
    with pytest.raises(SystemExit, match="its 'files' differs"):
        shards.build(settings(tmp_path, vocabulary))
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("old", [False, True])
def test_a_text_is_the_same_however_its_path_is_spelled(tmp_path, inline, vocabulary, monkeypatch,
                                                        old):
    """Killed with a relative path, it goes on with an absolute one, with a link, and where the
    folder has moved to; so do indexes that hold whole paths. Another order is another run."""
    write_files(tmp_path / "in")
    shards.build(settings(tmp_path, vocabulary, out=str(tmp_path / "whole")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    run = lambda file: shards.build(settings(tmp_path, vocabulary, file=file))
    write, calls = shards.write_shard, itertools.count()

    def killed(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            run("in")
    if old:
        path = tmp_path / "out" / shards.INDEX
        index = json.loads(path.read_text())
        index["files"] = [[f"in/{name}", *rest] for name, *rest in index["files"]]
        path.write_text(json.dumps(index))
    names = sorted(path.name for path in (tmp_path / "in").rglob("*") if path.is_file())
    with pytest.raises(SystemExit, match="its 'files' differs"):
        run(",".join(f"in/{name}" for name in names[::-1]))
    run(str(tmp_path / "in"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    (tmp_path / "in").rename(tmp_path / "moved")
    for file in ("moved", f"{tmp_path}/moved"):
        assert run(file)[1] == 0, "all was there"


def test_a_limit_counts_from_the_beginning_of_a_file(tmp_path, inline, vocabulary):
    """Also where a run goes on in the middle of it."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD * 100)
    s = settings(tmp_path, vocabulary, file=str(path), chunk=1, shard_tokens=1, max_bytes=99 * 18)
    for _ in range(2):
        with pytest.raises(SystemExit, match=":100: more than 1,782 bytes unpacked"):
            shards.build(s)
        assert json.loads((tmp_path / "out" / shards.INDEX).read_text())["next"]["line"] > 90


def test_text_and_shards_may_share_a_folder(tmp_path, inline, vocabulary):
    """The index is no text, though a .json file."""
    write_files(tmp_path / "in")
    for _ in range(2):
        shards.build(settings(tmp_path, vocabulary, out=str(tmp_path / "in")))


def test_damaged_shards_are_not_continued(tmp_path, inline, vocabulary):
    write_files(tmp_path / "in")
    shards.build(settings(tmp_path, vocabulary))
    shard, index = tmp_path / "out" / "text_train_00001.bin", tmp_path / "out" / shards.INDEX
    body = bytearray(shard.read_bytes())
    body[5] ^= 1
    shard.write_bytes(body)
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"00001.bin is missing or damaged: delete .*\.json"):
            shards.build(settings(tmp_path, vocabulary))
        shard.unlink(missing_ok=True)
    index.write_text(index.read_text()[:-50])
    with pytest.raises(SystemExit, match="text_shards.json is damaged .*: delete it, and run"):
        shards.build(settings(tmp_path, vocabulary))


@pytest.mark.parametrize("change", [
    dict(shards=3), dict(shards=[3]), dict(shards=[{"train": {}}]), dict(shards=[{"train": 3}]),
    dict(next={}), dict(next={"file": "x", "offset": 0, "line": 1}), dict(next=None),
    dict(empty=None), dict(empty=-1), dict(files=3), dict(files=[3]), dict(fingerprint=None),
    dict(tokenizer=3), dict(dtype="x"),
    dict(shards=[{"train": {"file": "a", "tokens": "9", "documents": 1, "crc32": 2}}]),
    dict(shards=[{"train": {"file": 9, "tokens": 9, "documents": 1, "crc32": 2}}])])
def test_an_index_that_was_edited_is_one_line(tmp_path, inline, vocabulary, change):
    write_files(tmp_path / "in")
    shards.build(settings(tmp_path, vocabulary))
    index, own = tmp_path / "out" / shards.INDEX, load_tokenizer(vocabulary)
    facts = json.loads(index.read_text())
    for key in (None, *change):  # another value; none at all
        index.write_text(json.dumps({k: v for k, v in {**facts, **change}.items() if k != key}))
        for read in (lambda: shards.build(settings(tmp_path, vocabulary)),
                     lambda: ShardRows(tmp_path / "out", "train", own, 8)):
            with pytest.raises(SystemExit, match="text_shards.json is damaged.*delete it") as error:
                read()
            assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- errors

GOOD = b'{"text": "a cat"}\n'


@pytest.mark.parametrize("name, body, message", [
    ("a.jsonl", GOOD + b'{"test": "b"}\n', ":2: no field 'text'; there are test"),
    ("a.jsonl", GOOD + b"\n" + b'{"text": null}\n', ":3: no value of 'text'"),
    ("a.jsonl", GOOD + b'["b"]', ':2: expected a JSON object, got ["b"]'),
    ("a.jsonl", GOOD + b'{"text": "b', ":2: not JSON: "),
    ("a.jsonl", GOOD + b'{"text": "\xff"}\n', ":2: not UTF-8 at byte 10"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', ":1: not Unicode: half of a surrogate pair"),
    pytest.param("a.jsonl", b"[" * 19_000, ":1: nested too deep", id="deep"),
    ("a.jsonl", GOOD + b" " * 10**5, ":2: more than 20,000 bytes unpacked: if you trust the file, "
                                     "raise --max_line"),
    ("a.txt", b"a\n\nb\n\xe9\n", ":4: not UTF-8 at byte 0"),
    ("a.txt", b"\n" * 50_001, ":50001: more than 50,000 bytes unpacked"),
    ("a.jsonl.gz", gzip.compress(GOOD * 99, mtime=0)[:-9], ":100: damaged .gz: "),
    ("a.jsonl.gz", GOOD, ":1: damaged .gz: Not a gzipped file"),
    ("a.jsonl.gz", gzip.compress(GOOD * 3000, mtime=0),
     ":2778: more than 50,000 bytes unpacked: if you trust the file, raise --max_bytes"),
    ("a.jsonl.gz", gzip.compress(b"\0" * 10**8, mtime=0), ":1: more than 20,000 bytes unpacked"),
    ("a.jsonl", b"\n" + b'{"text": " "}', ": no document, or none that is not empty"),
])
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, inline, vocabulary, name, body,
                                                  message):
    path = tmp_path / name
    path.write_bytes(body)
    s = settings(tmp_path, vocabulary, file=str(path), max_bytes=50_000, max_line=20_000,
                 shard_tokens=10**6)
    with pytest.raises(SystemExit) as error:
        shards.build(s)
    assert str(error.value).startswith(f"error: {path}{message}") and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_error_later_leaves_whole_shards_only(tmp_path, inline, vocabulary):
    """Also where the folder holds something else, which stays."""
    write_files(tmp_path / "in")
    (tmp_path / "in" / "z.jsonl").write_bytes(89 * (GOOD[:-2] + b" " * 90 + b"}\n") + b"{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prompts_train.jsonl").write_text("mine")
    for _ in range(2):  # and again, when it goes on
        with pytest.raises(SystemExit, match="z.jsonl:90: no field 'text'"):
            shards.build(settings(tmp_path, vocabulary))
        assert (tmp_path / "out" / "prompts_train.jsonl").read_text() == "mine"
        names = {p.name for p in (tmp_path / "out").iterdir()}
        assert shards.INDEX in names and not [name for name in names if "writing" in name]
    with pytest.raises(SystemExit, match="its shards are not complete: run the same"):
        ShardRows(tmp_path / "out", "train", load_tokenizer(vocabulary), 8)


def test_only_one_program_writes_to_a_folder(tmp_path, inline, vocabulary, monkeypatch):
    write_files(tmp_path / "in")
    monkeypatch.setattr(shards, "begin", lambda *_: [shards.records.CLAIMED.clear(),
                                                     shards.build(settings(tmp_path, vocabulary))])
    with pytest.raises(SystemExit, match="another program is writing to .*out: wait until"):
        shards.build(settings(tmp_path, vocabulary))


@pytest.mark.parametrize("changes, message", [
    (dict(file=""), "give --file=PATH"), (dict(file="nowhere"), "no file nowhere"),
    (dict(tokenizer="nowhere"), "no tokenizer nowhere"),
])
def test_wrong_settings(tmp_path, vocabulary, changes, message):
    write_files(tmp_path / "in")
    with pytest.raises(SystemExit, match=f"^error: {re.escape(message)}"):
        shards.build(settings(tmp_path, vocabulary, **changes))
    assert not (tmp_path / "out").exists()


def command(*flags):
    return subprocess.run([sys.executable, "-m", "data.shards", *flags], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)


def test_the_command(tmp_path, vocabulary):
    """Its last lines say what it made and how fast; an error in a worker is the last line, too."""
    write_files(tmp_path / "in")
    flags = [f"--file={tmp_path}/in", f"--out={tmp_path}/out", f"--tokenizer={vocabulary}",
             "--split_valid=0.1"]
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    first, marks, last = done.stdout.splitlines()
    assert marks.endswith(f"--separator='{tokenizer.EOS}' cuts there") and marks[0] in "123456789"
    found = read_back(tmp_path / "out")
    assert f"{len(found['train'][0]):,} tokens to train on and {len(found['valid'][0]):,}" in first
    assert re.fullmatch(r"[\d,]+ tokens/s with 2 workers", last)
    (tmp_path / "in" / "a.jsonl").write_bytes(GOOD + b'{"text": 3}')
    done = command(*flags, f"--out={tmp_path}/bad")
    assert done.returncode == 1 and not (tmp_path / "bad").exists()
    assert done.stderr.splitlines()[-1] == (f"error: {tmp_path}/in/a.jsonl:2: field 'text': "
                                            "expected str, got 3")
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------- shards into rows

@pytest.fixture
def folder(tmp_path, inline, vocabulary):
    """A folder of shards, and its {split: ids}."""
    write_files(tmp_path / "in")
    shards.build(settings(tmp_path, vocabulary))
    return tmp_path / "out", {k: ids for k, (ids, _) in read_back(tmp_path / "out").items()}


@pytest.mark.parametrize("T", [1, 7, 64, 1000])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_rows_are_the_stream_cut_into_pieces(folder, vocabulary, T, split):
    path, ids = folder
    rows = text_rows_of(path, split, load_tokenizer(vocabulary), T)
    expected = [ids[split][i : i + T] for i in range(0, len(ids[split]) - T + 1, T)]
    assert rows.T == T and [rows[i] for i in range(len(rows))] == expected
    assert type(rows[0]) is list and type(rows[0][0]) is int
    assert all(isinstance(part, np.memmap) for part in rows.parts) and len(rows.parts) > 1


def test_rows_are_never_longer_than_the_text(folder, vocabulary):
    path, ids = folder
    rows = ShardRows(path, "valid", load_tokenizer(vocabulary), 10**6)
    assert rows.T == len(ids["valid"]) and len(rows) == 1 and rows[0] == ids["valid"]


def test_shards_that_cannot_be_used_are_refused(folder, vocabulary, tmp_path):
    path, _ = folder
    own, other = load_tokenizer(vocabulary), tmp_path / "other.tiktoken"
    other.write_bytes(tokenizer.train_bpe("another text", 260))

    def refused(tokenizer, split="train"):
        with pytest.raises(SystemExit) as error:
            text_rows_of(path, split, tokenizer, 8)
        assert str(error.value).startswith("error: ") and "\n" not in str(error.value)
        return str(error.value)

    said = refused(load_tokenizer(other))
    assert f"are of the tokenizer {vocabulary}, the model's is {other}" in said
    assert "no test split: run `python -m data.shards` with another --split_valid" in refused(
        own, "test")
    (path / "text_train.jsonl").write_text('{"text": "a"}')
    assert "which text? There are" in refused(own)
    (path / "text_train.jsonl").unlink()
    with open(path / "text_train_00001.bin", "ab") as file:
        file.write(b"\0\0")
    assert "text_train_00001.bin is missing or has not its" in refused(own)
    (path / "text_train_00001.bin").unlink()
    assert "text_train_00001.bin is missing" in refused(own)


def test_without_shards_there_are_text_files(tmp_path, vocabulary):
    records.write(tmp_path / "text_train.jsonl", [{"text": "a cat"}])
    own = load_tokenizer(vocabulary)
    rows = text_rows_of(tmp_path, "train", own, 100)
    assert type(rows) is TextRows and rows[0] == own.encode("a cat") + [own.eos]
    with pytest.raises(SystemExit, match="no file .*text_valid.jsonl: a text a line"):
        text_rows_of(tmp_path, "valid", own, 100)


def test_a_tokenizer_is_known_by_what_it_does(tmp_path, vocabulary):
    """Not by the name of its file."""
    shutil.copy(vocabulary, tmp_path / "copy")
    copy, own = load_tokenizer(tmp_path / "copy"), load_tokenizer(vocabulary)
    (tmp_path / "other").write_bytes(tokenizer.train_bpe("another text", 260))
    assert own.fingerprint == copy.fingerprint and own.name != copy.name
    assert len({own.fingerprint, load_tokenizer(tmp_path / "other").fingerprint,
                tokenizer.Tokenizer("gpt2", own.encoding).fingerprint}) == 3


@pytest.fixture
def world(folder, vocabulary, monkeypatch):
    """The folder of shards with prompts beside it, and tiny checkpoints of its tokenizer."""
    path, ids = folder
    own = load_tokenizer(vocabulary)
    records.write(path / "prompts_train.jsonl", [{"prompt": "the cat"}, {"prompt": "a mat"}])
    for name, kind in (("base", tiny), ("rm", tiny_scalar)):
        model = kind(vocab_size=own.size, loud=1.0)
        save(path.parent / name, model, own, shards.Settings())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def run(script, *flags):
        monkeypatch.setattr(sys, "argv", ["", f"--data={path}", "--device=cpu", *flags])
        with torch.enable_grad():
            script.main()
    return path, ids, run


def test_a_run_remembers_the_index_of_its_shards(world, vocabulary):
    """It has the checksums of all: a resumed run must find the same one."""
    path, _, _ = world
    checkpoint.forget()
    text_rows_of(path, "train", load_tokenizer(vocabulary), 8)
    crc = zlib.crc32((path / shards.INDEX).read_bytes())
    assert checkpoint.made_from()[str(path / shards.INDEX)] == crc
    checkpoint.forget()
    assert checkpoint.made_from() == {}


def test_sft_pretrains_on_shards(world, monkeypatch):
    """An epoch reads each row once: 24 tokens, the context of the checkpoint."""
    path, ids, run = world
    read, get = [], ShardRows.__getitem__
    monkeypatch.setattr(ShardRows, "__getitem__", lambda rows, i: read.append(i) or get(rows, i))
    run(sft, f"--init={path.parent}/base", f"--out={path.parent}/sft", "--pretrain_mix=1",
        "--epochs=1", "--batch=8", "--lr=1e-2", "--dropout=0")
    log = [json.loads(line) for line in open(path.parent / "sft" / "log.jsonl")]
    assert len(log) == -(-(len(ids["train"]) // 24) // 8) and log[-1]["loss"] < log[0]["loss"]
    meta = json.loads((path.parent / "sft" / "checkpoint.json").read_text())
    assert meta["history"][0]["valid"] < log[0]["loss"]
    assert len(read) == len(ids["train"]) // 24 + len(ids["valid"]) // 24


def test_ppo_mixes_shards_in(world, vocabulary, tmp_path):
    path, ids, run = world
    flags = [f"--init={path.parent}/base", f"--reward={path.parent}/rm", "--ptx=1",
             f"--out={path.parent}/ppo", "--iterations=1", "--batch=4", "--minibatch=2",
             "--ptx_rows=2", "--max_new_tokens=4", "--show=0"]
    run(ppo, *flags)
    assert json.loads(open(path.parent / "ppo" / "log.jsonl").readline())["loss/ptx"] > 1
    index = json.loads((path / shards.INDEX).read_text())
    records.write_json(path / shards.INDEX, {**index, "tokenizer": "gpt2", "fingerprint": "x"})
    with pytest.raises(SystemExit, match="its shards are of the tokenizer gpt2, the model's is"):
        run(ppo, *flags)


# ------------------------------------------------------------------------------------- hard texts

def in_parts(own, text):
    """The ids of a text, character by character: white space is cut whenever a run of it has got
    to 65,536."""
    ids, part, run = [], "", 0
    for letter in own.prepare(text):
        run = run + 1 if letter.isspace() else 0
        if run == 2**16 + 1:
            ids, part, run = ids + own.encoding.encode_ordinary(part), "", 1
        part += letter
    return ids + own.encoding.encode_ordinary(part)


def like_gpt2(path):
    """A tokenizer of ours with GPT-2's pattern, which cannot take a million spaces."""
    own = load_tokenizer(path)
    own.encoding = tiktoken.Encoding("x", pat_str=tiktoken_ext.openai_public.r50k_pat_str,
                                     mergeable_ranks=own.encoding._mergeable_ranks,
                                     special_tokens={tokenizer.EOS: own.eos})
    return own


HARD = [" " * 10**6, "a" + " " * 10**6 + "cat", "the\n" + "\n" * (2**16 - 1) + " cat",
        "a" + "\t" * (2**16 + 1), "\u2003" * 2**17 + "b" + " " * (2**17 + 3) + "c"]


@pytest.mark.parametrize("number", range(len(HARD)))
@pytest.mark.parametrize("kind", [load_tokenizer, like_gpt2])
def test_white_space_without_end_is_tokenised_in_parts(vocabulary, kind, number):
    own, text = kind(vocabulary), HARD[number]
    ids = own.encode(text)
    assert ids == in_parts(own, text)
    assert own.decode(ids) == text


def test_other_text_is_one_part(vocabulary):
    """What tiktoken can take is tokenised as it always was."""
    own = load_tokenizer(vocabulary)
    spaces = " " * (2**16 - 1)
    for text in ("", "x" * 10**6, "cat " * 10**5, spaces + "a " + spaces, "\n \n" * 9):
        assert tokenizer.parts(text) == [text]
        assert own.encode(text) == own.encoding.encode_ordinary(own.prepare(text))


def test_shards_of_white_space_without_end(tmp_path, inline, monkeypatch, vocabulary):
    """In a .txt file and in JSON lines, with the pattern that makes tiktoken panic."""
    own = like_gpt2(vocabulary)
    monkeypatch.setattr(shards, "load_tokenizer", lambda name: own)
    text = "the cat" + " " * 10**6 + "sat"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(json.dumps({"text": text}) + '\n{"text": "a cat"}\n')
    (tmp_path / "in" / "b.txt").write_text(text)
    index, _ = shards.build(settings(tmp_path, vocabulary, file=str(tmp_path / "in"),
                                     split_valid=0.0))
    ids = [*in_parts(own, text), own.eos]
    expected = [*ids, *own.encode("a cat"), own.eos, *ids]
    assert list(read_back(tmp_path / "out")["train"][0]) == expected
    assert shards.total(index, "documents") == 3


@pytest.mark.parametrize("chunk", [40, 300, 2**20])
def test_documents_end_at_the_separator(tmp_path, inline, vocabulary, chunk):
    """Wherever chunks end: stories of several paragraphs stay whole, and none has the mark."""
    rng, own, mark = random.Random(chunk), load_tokenizer(vocabulary), tokenizer.EOS
    words = [word for word in WORDS if word != mark]
    stories = ["\n\n".join(" ".join(rng.choices(words, k=3)) for _ in range(2)) for _ in range(40)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("".join(f"{x}\n{mark}\n" for x in stories[:20]),
                                           encoding="utf-8")
    (tmp_path / "in" / "b.jsonl").write_text(json.dumps({"text": mark.join(stories[20:])}))
    s = settings(tmp_path, vocabulary, file=str(tmp_path / "in"), chunk=chunk, split_valid=0.0,
                 separator=mark)
    index, _ = shards.build(s)
    expected = [i for story in stories for i in (*own.encode(story), own.eos)]
    assert list(read_back(tmp_path / "out")["train"][0]) == expected
    assert index["typed"] == 0 and shards.total(index, "documents") == 40


def test_a_mark_that_stays_text_is_counted(tmp_path, inline, vocabulary, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(f'{{"text": "a {tokenizer.EOS}"}}\n{{"text": "cat"}}\n'
                                             f'{{"text": "{tokenizer.EOS * 2}"}}\n')
    monkeypatch.setattr(sys, "argv", ["shards", f"--file={tmp_path}/in", f"--out={tmp_path}/out",
                                      f"--tokenizer={vocabulary}"])
    shards.main()
    assert f"2 documents have {tokenizer.EOS} in them" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / shards.INDEX).read_text())["typed"] == 2


# ------------------------------------------------------------------------------------ real files

@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """GPT-2's tokenizer, from a copy of the cache beside the real files where there is one."""
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        if not (REAL / "tiktoken-cache").is_dir():
            pytest.skip("no file of the gpt2 tokenizer: set TIKTOKEN_CACHE_DIR")
        shutil.copytree(REAL / "tiktoken-cache", tmp_path / "cache", copy_function=shutil.copyfile)
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    return load_tokenizer("gpt2")


@pytest.mark.parametrize("name, field", [
    ("tinyshakespeare", ""), ("wikitext-2", ""), ("gutenberg", ""),
    ("hh-rlhf/helpful-base/test.jsonl.gz", "chosen"), ("t0-p3", "prompt")])
def test_real_files(tmp_path, gpt2, name, field):
    """With workers; compared as arrays: a failure shows no text."""
    if not (REAL / name).exists():
        pytest.skip(f"no {name} in {REAL}: set PUBLIC_DATA to a folder that has it")
    paths = [REAL / name] if (REAL / name).is_file() else sorted((REAL / name).iterdir())
    texts = []
    for path in paths:
        body = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
        texts += ([json.loads(line)[field] for line in body.decode().split("\n") if line.strip()]
                  if field else public.documents(body.decode("utf-8-sig"), 4000))
    s = settings(tmp_path, "gpt2", file=str(REAL / name), field=field, document=4000, chunk=2**22,
                 shard_tokens=100_000, split_valid=0.05)
    index, rate = shards.build(s)
    found, expected = read_back(tmp_path / "out"), streams(gpt2, texts, 0.05)
    for split in ("train", "valid"):
        assert np.array_equal(found[split][0], expected[split][0])
        assert found[split][1] == expected[split][1] > 0
    assert rate > 0 and index["tokenizer"] == "gpt2"

"""Datasets larger than memory: data.public writes each row as it comes, and its files are whole or
missing. What the rows become is in test_public.py."""
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data import files, public, records, spool

ROOT = Path(public.__file__).parents[1]
resource = pytest.importorskip("resource", reason="this system does not tell the peak of memory")

PEAK = """
import itertools, json, resource, sys
from data import public
out, source, small, large = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def pairs(n):
    for i in range(n):
        yield {"prompt": f"Question {i}?", "chosen": f"yes {i} " * 400, "rejected": "no" * 1600}

def rated(n):  # all rows of a prompt far from each other
    for i in range(n):
        yield {"prompt": f"Question {i % (n // 2)}?", "response": f"word {i} " * 300,
               "helpfulness": (i + 2 * i // n) % 5}

def texts(n):
    for i in range(n):
        yield {"text": f"word {i} " * 600}

def run(n):
    rows, name, file = globals()[source.partition(".")[0]](n), "hub:someone/theirs", ""
    if "." in source:
        name, file = "trl", f"{out}/rows.{source.partition('.')[2]}"
        with open(file, "w") as f:
            f.write("[" * (file[-5:] == ".json"))
            for i, row in enumerate(rows):
                f.write((", " if file[-5:] == ".json" else "\\n") * (i > 0) + json.dumps(row))
            f.write("]" * (file[-5:] == ".json"))
    public.stream = lambda *_: (("here", row) for row in rows)
    facts = public.build(public.Settings(name, file, f"{out}/{n}"))
    kept = sum(n for splits in facts["kept"].values() for n in splits.values())
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)

run(small), run(large)
"""


@pytest.mark.parametrize("source, of_each", [("rated", 1.5), ("texts", 1), ("pairs.json", 3)])
def test_memory_does_not_grow_with_the_rows(tmp_path, source, of_each):
    """12,000 rows make files of 55 MB and more, and the peak of a process rises by 1 MB, or by 16
    MB where rows wait for others: the cache of the database, however many there are. Held in
    memory they took 73 to 324 MB. of_each: records that a row makes."""
    small, large = 200, 12_000
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path), source, str(small),
                           str(large)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (few, before), (many, after) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (of_each * small, of_each * large)
    written = sum(path.stat().st_size for path in (tmp_path / str(large)).iterdir())
    grown = (after - before) * (1 if sys.platform == "darwin" else 1024)
    assert written > 5e7 and grown < 2.5e7, f"{grown / 1e6:.0f} MB for {written / 1e6:.0f}"


# ---------------------------------------------------------------------------- whole or missing

RUN = """
import os, sys
from data import public
out, end, most = sys.argv[1:]

def stream(*_):
    for i in range(3000):
        if i == 2000:
            if end == "killed":
                os.kill(os.getpid(), 9)
            if end == "interrupted":
                raise KeyboardInterrupt
            if end == "bad":
                yield "row 2000", {"prompt": 3, "chosen": "a", "rejected": "b"}
        yield f"row {i}", {"prompt": f"Question {i}?", "chosen": f"yes {i}", "rejected": "no"}

if end == "full":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
public.stream = stream
sys.argv = ["public", "--name=hub:a/b", f"--out={out}", f"--most={most}"]
public.main()
"""


def program(out, end, most=0):
    return subprocess.run([sys.executable, "-c", RUN, str(out), end, str(most)], cwd=ROOT,
                          capture_output=True, text=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize("end, code, said", [
    ("killed", -9, ""), ("interrupted", 130, "error: interrupted: nothing is written"),
    ("bad", 1, "error: row 2000: field 'prompt': expected str or list, got 3"),
    ("full", 1, "cannot be written (")])
def test_a_run_that_does_not_end_leaves_what_was_there(tmp_path, end, code, said):
    """No file of the new run, the old ones to the byte, and the next run is as if it were the
    first."""
    out, first = tmp_path / "out", tmp_path / "deep" / "first"
    assert program(out, "whole", 50).returncode == 0
    before = contents(out)
    assert len(before) == 9 and b"Question 49?" in b"".join(before.values())
    for folder in (out, first):
        done = program(folder, end)
        assert done.returncode == code and said in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == bool(said)
    assert contents(out) == before
    assert [p.name for p in out.iterdir() if p.is_dir()] == ["public.writing"] * (end == "killed")
    assert (tmp_path / "deep").exists() == (end == "killed")  # nor a folder that it made
    with pytest.raises(SystemExit, match="no .txt"):
        files.find_files(str(tmp_path / "deep" if end == "killed" else tmp_path.joinpath("none")
                             .mkdir() or tmp_path / "none"))
    assert program(out, "whole").returncode == program(tmp_path / "new", "whole").returncode == 0
    assert contents(out) == contents(tmp_path / "new") and len(list(out.iterdir())) == 9


@pytest.mark.skipif(records.fcntl is None, reason="a system without such locks")
def test_two_runs_never_write_into_one_folder(tmp_path):
    with spool.building(tmp_path / "out"):
        done = program(tmp_path / "out", "whole", 5)
    assert done.returncode == 1 and "error: another program is writing to" in done.stderr
    assert program(tmp_path / "out", "whole", 5).returncode == 0


# ------------------------------------------------------------------------------- what is known

def test_known_is_a_dict_and_little_of_it_is_in_memory(tmp_path):
    rng, known, expected = random.Random(1), spool.Known(tmp_path / "db", memory=2**15), {}
    names = [(kind, str(i)) for kind in ("home", "author") for i in range(2000)]
    for _ in range(9000):
        name, value = rng.choice(names), rng.randrange(9)
        assert known.get(name) == expected.get(name) and known.get(name, 7) == expected.get(name, 7)
        if rng.random() < 0.5:
            known[name] = expected[name] = value
        else:
            assert known.setdefault(name, value) == expected.setdefault(name, value)
    assert (tmp_path / "db").stat().st_size > 2**16  # the rest is on the disk, before any commit


def test_rows_wait_for_the_others_of_their_name(tmp_path):
    rng, known, expected = random.Random(2), spool.Known(tmp_path / "db", memory=2**15), {}
    for number in range(3000):
        name, row = ("x", str(rng.randrange(700))), {"n": number, "é\ud83d": ["\0", None, 1.5]}
        known.wait(name, number, row)
        expected.setdefault(name, []).append(row)
    assert list(known.groups()) == list(expected.values())


# ----------------------------------------------------------------------------- lists in a file

def some(rng, depth=0):
    """A random JSON value."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [some(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {some_text(rng): some(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [None, True, False, rng.randrange(-999, 999), rng.uniform(-9, 9), some_text(rng)][kind]


def some_text(rng):
    return "".join(rng.choice('a,[]{}"\\\n é猫\U0001f600') for _ in range(rng.randrange(9)))


def read(path, block, **limits):
    """What `read_rows` makes of a file that it reads a few bytes at a time."""
    limits = {"max_bytes": 10**6, "max_line": 10**6, **limits}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.List, "BLOCK", block)
        return list(files.read_rows(path, **limits))


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
@pytest.mark.parametrize("block", [1, 5, 2**20])
def test_a_list_is_read_item_by_item(tmp_path, suffix, block):
    rng, path = random.Random(block), tmp_path / f"in{suffix}"
    for trial in range(40):
        rows = [some(rng) for _ in range(rng.randrange(6))]
        text = json.dumps(rows, indent=rng.choice([None, None, 0, 2]),
                          ensure_ascii=rng.random() < 0.5)
        body = (b"\xef\xbb\xbf" * (trial % 3 == 0) + b"\r\n \t" * (trial % 2) + text.encode()
                + b"\n" * (trial % 4 == 0))
        path.write_bytes(gzip.compress(body) if suffix.endswith(".gz") else body)
        assert read(path, block) == [(f"{path}:item {i}", row) for i, row in enumerate(rows, 1)]


@pytest.mark.parametrize("body, line, column", [
    ('[{"a": 1}\n {"a": 2}]', 2, 2), ('[\n1,\n2', 3, 2), ('[1,\n\n tru]', 3, 2), ("[1] 2", 1, 5),
    ('["a", "b\n"]', 1, 9), ('[{"a" 1}]', 1, 7), ('["long enough to be far", x, "more of it"]', 1,
                                                   27), ("[" + "1,\n" * 30 + "}]", 31, 1),
    ('[1,\n"\\x"]', 2, 2), ("[", 1, 2)])
@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_a_bad_list_is_told_with_line_and_column(tmp_path, body, line, column, block):
    """The places were counted by hand."""
    path = tmp_path / "in.json"
    path.write_text(body)
    with pytest.raises(SystemExit) as error:
        read(path, block)
    assert str(error.value).startswith(f"error: {path}:{line}: not JSON: ")
    assert str(error.value).endswith(f" at column {column}")


def test_limits_and_damages_of_a_list(tmp_path):
    def said(body, name="in.json", **limits):
        (tmp_path / name).write_bytes(body)
        with pytest.raises(SystemExit) as error:
            read(tmp_path / name, 5, **limits)
        return str(error.value).removeprefix(f"error: {tmp_path}/{name}:")

    long = b"[1,\n" + b'"' + b"x" * 999 + b'"]'
    assert said(long, max_line=500).startswith("2: an item of more than 500 bytes")
    assert said(long, max_bytes=900).startswith("2: more than 900 bytes unpacked")
    assert said(b'[1,\n"\xff"]') == "2: not UTF-8"
    assert said(b'[1,\n"\xc3') == "2: not UTF-8"
    assert said(b'[1,\n"\\ud800"]') == "item 2: not Unicode: half of a surrogate pair"
    assert said(b"[" * 100_000) == "1: nested too deep"
    assert said(gzip.compress(long)[:-9], "in.json.gz").startswith("2: damaged .gz: ")

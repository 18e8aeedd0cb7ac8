"""Grading: partial credit, reports, the same result with any workers; submissions that mean ill.

What a hostile file is to harm stands in `harmless`: a folder that it knows and may not change.
"""
import csv
import io
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
import torch

import settings
from exercises import __main__, course, cutting, defects, grading, judge, worker
from exercises.checks import sampling
from test_classroom import solutions

ROOT = Path(settings.__file__).parent
COURSE = course.load()
LAST = COURSE["last-token"]
BOUNDS = worker.Limits(seconds=6, megabytes=512, sealed=True)
RIGHT = "def last_of(mask):\n    return mask & ~F.pad(mask[:, 1:], (0, 1))\n"
SEALS = platform.system() == "Linux" and platform.machine() == "x86_64"


def submission(folder, name, text, before=""):
    """A student's copy, as far as a grader looks at it: the file of last-token."""
    path = folder / name / "ppo.py"
    path.parent.mkdir(parents=True)
    path.write_text(before + cutting.replaced(cutting.reference("ppo.py"), "last_of", text))
    return path.parent


def row_of(folder, bounds=BOUNDS):
    return grading.graded(folder, LAST, bounds)


def test_credit_is_the_share_of_the_properties(tmp_path):
    """Right; wrong where pads follow; nothing; and the project's own, which is told."""
    bug = next(d for d in defects.of_exercise("last-token") if d.name == "pads-after-the-end")
    source = defects.planted(cutting.reference("ppo.py"), bug)
    rows = [row_of(submission(tmp_path, name, text)) for name, text in (
        ("right", RIGHT), ("partly", cutting.text_of(source, "last_of")),
        ("blank", "def last_of(mask):\n    " + cutting.hole("last-token") + "\n"),
        ("copied", cutting.text_of(cutting.reference("ppo.py"), "last_of")))]
    assert [r["credit"] for r in rows] == [1.0, pytest.approx(1 / 3, abs=1e-4), 0.0, 1.0]
    assert list(rows[1]["properties"].values()) == [False, False, True]
    assert [r["note"] for r in rows] == ["", bug.hint, "not written",
                                         "the same code as the project's own"]


def test_what_python_reads_is_graded_whatever_editor_wrote_it(tmp_path):
    """With a byte order mark, line ends of Windows, and the hole left above it: it was worth 0."""
    hole = "def last_of(mask):\n    " + cutting.hole("last-token") + "\n"
    path = submission(tmp_path, "ann", hole) / "ppo.py"
    text = "# a\u2028b\n" + path.read_text() + "\n\n" + RIGHT
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    row = row_of(path.parent)
    assert row["credit"] == 1 and row["note"] == "", row
    path.write_bytes(b"# coding: latin-1\n# \xe9\n" + text.encode("ascii", "replace"))
    assert grading.source_of(path.parent, LAST)[1] == ""


def test_a_process_that_did_not_begin_is_no_grade(tmp_path, monkeypatch):
    """It was worth 0, with the note that the code is the project's own."""
    own = submission(tmp_path, "ann", cutting.text_of(cutting.reference("ppo.py"), "last_of"))
    monkeypatch.setattr(worker, "child", no_process)
    row = row_of(own)
    assert row["credit"] == 0 and row["note"].startswith("not graded: the process ended before")


def no_process(*_):
    os._exit(3)


def test_a_name_that_is_no_utf_8(tmp_path):
    """All was graded, and no report was written."""
    names = [grading.student_of(tmp_path / name) for name in ("anna", "b\udce9", "c\n")]
    assert names == ["anna", "b\ufffd", "c\n"]
    rows = [{"student": names[1], "exercise": "x", "credit": 1, "properties": {}, "note": ""}]
    for form in (grading.as_json, grading.as_csv, grading.as_junit):
        assert "b\ufffd" in form(rows).encode().decode()


def test_what_cannot_be_read_gets_nothing_and_a_reason(tmp_path):
    broken = submission(tmp_path, "broken", RIGHT)
    (broken / "ppo.py").write_text("def last_of(:\n")
    gone = submission(tmp_path, "gone", RIGHT)
    (gone / "ppo.py").write_text("x = 1\n")
    (tmp_path / "empty").mkdir()
    link = tmp_path / "link"
    link.mkdir()
    (link / "ppo.py").symlink_to(ROOT / "ppo.py")
    large = submission(tmp_path, "large", RIGHT, "#" * 2**20 + "\n")
    binary = submission(tmp_path, "binary", RIGHT)
    (binary / "ppo.py").write_bytes(b"#\n#\n\xff\xfe\x00")
    for folder, reason in ((broken, "line 1: invalid syntax"), (gone, "no function last_of"),
                           (tmp_path / "empty", "ppo.py is missing"), (link, "ppo.py is a link"),
                           (large, "larger than"), (binary, "cannot be read")):
        row = row_of(folder)
        assert row["credit"] == 0 and reason in row["note"] and not any(
            row["properties"].values()), row


HOSTILE = {  # name: (the function, what comes before the file, the most credit that it deserves)
    "loops": ("def last_of(mask):\n    while True:\n        pass\n", "", 0),
    "sleeps": ("import time\ndef last_of(mask):\n    time.sleep(10000)\n", "", 0),
    "prints a gigabyte": ("def last_of(mask):\n    while True:\n        print('x' * 10**6)\n", "",
                          0),
    "takes all memory": ("def last_of(mask):\n    return torch.ones(2**34)\n", "", 0),
    "forks": ("def last_of(mask):\n    import os\n    while True:\n        os.fork()\n", "", 0),
    "calls sys.exit": ("def last_of(mask):\n    raise SystemExit(0)\n", "", 0),
    "leaves at once": ("def last_of(mask):\n    return mask\n", "import os\nos._exit(0)\n", 0),
    "says all passed": ("def last_of(mask):\n    print('all passed')\n    return 'all passed'\n",
                        "print('all passed')\n", 0),
    "patches pytest": ("def last_of(mask):\n    return mask\n",
                       "import pytest\npytest.main = lambda *a: 0\n", 1 / 3),
    "patches torch": ("def last_of(mask):\n    return mask\n", "import torch\n"
                      "torch.equal = torch.allclose = lambda *a, **k: True\n"
                      "torch.Tensor.__eq__ = lambda *a: True\n", 1 / 3),
    "patches the judge": ("def last_of(mask):\n    return mask\n", "from exercises import judge\n"
                          "judge.equal = judge.near = lambda *a: True\n"
                          "judge.differences = lambda *a: []\n", 1 / 3),
    "answers with code": ("class Evil:\n    def __reduce__(self):\n        return print, ()\n\n\n"
                          "def last_of(mask):\n    return Evil()\n", "", 0),
    "sends nonsense": ("def last_of(mask):\n    import os\n    for n in range(3, 100):\n"
                       "        try:\n            os.write(n, b'{{{\\n' * 999)\n"
                       "        except OSError:\n            pass\n    return mask\n", "", 0),
    "asks the project": ("def last_of(mask):\n    import ppo\n    return ppo.last_of(mask)\n", "",
                         0),
    "recurses": ("def last_of(mask):\n    return last_of(mask)\n", "", 0),
    "crashes": ("def last_of(mask):\n    import ctypes\n    ctypes.string_at(0)\n", "", 0),
    "starts threads": ("import threading, time\ndef last_of(mask):\n    while True:\n        "
                       "threading.Thread(target=time.sleep, args=(1000,)).start()\n", "", 0),
    "raises halves of characters": ("def last_of(mask):\n    raise ValueError('\\ud800\\x1b[2J')\n",
                                    "", 0),
    "raises what has no text": ("class E(Exception):\n    __str__ = None\n\n\n"
                                "def last_of(mask):\n    raise E\n", "", 0),
    **{f"answers itself with {name}": (
        "import os\ndef last_of(mask):\n    for n in range(3, 100):\n        try:\n"
        f"            os.write(n, {line} + b'\\n')\n        except OSError:\n            pass\n"
        "    return mask\n", "", 1 / 3) for name, line in (
        ("deep lists", "b'[' * 99999"), ("digits", "b'9' * 99999"),
        ("a list of values", "b'{\"value\": []}'"),
        ("half a tensor", "b'{\"value\": {\"last\": {\"shape\": [1, 2], \"dtype\": \"bool\", "
                          "\"data\": 5}}}'"),
        ("no words", "b'{\"error\": [1], \"message\": {}, \"line\": 3}'"))},
}


@pytest.mark.parametrize("name", [n if n in ("calls sys.exit", "says all passed") else
                                  pytest.param(n, marks=pytest.mark.long) for n in HOSTILE])
def test_a_hostile_file_gets_what_it_deserves(name, tmp_path):
    text, before, most = HOSTILE[name]
    head, _, _ = text.partition("def last_of")
    folder = submission(tmp_path, "evil", text[len(head):], before + head)
    started = time.monotonic()
    row = row_of(folder, worker.Limits(seconds=4, megabytes=512, sealed=True))
    assert row["credit"] <= most + 1e-4, row
    assert all(form([row]).encode() for form in (grading.as_json, grading.as_csv,
                                                 grading.as_junit)) and row["note"].isprintable()
    assert time.monotonic() - started < 120
    assert row_of(submission(tmp_path, "honest", RIGHT))["credit"] == 1.0  # nobody is harmed


@pytest.mark.parametrize("line", [
    [], 3, None, "x", {}, {"value": []}, {"value": None}, {"error": "E"}, {"value": {"last": [1]}},
    {"error": [1], "message": {}, "line": 3}, {"value": {"last": {"list": 5}}},
    {"value": {"last": {"kind": 5}}}, {"value": {"last": {"list": [{"list": {}}]}}},
    *({"value": {"last": {"shape": [1, 2], "dtype": "bool", "data": [True, False], **wrong}}}
      for wrong in ({"data": 5}, {"data": [True]}, {"data": [True, None]}, {"shape": 2},
                    {"shape": [-1, -2]}, {"shape": ["1", 2]}, {"dtype": 3}, {"more": 1}))])
def test_what_a_process_sends_is_judged_without_trust(line):
    """A line that it wrote by hand ended the grading of everybody with a traceback."""
    assert worker.as_sent(LAST, line) == worker.NONSENSE
    verdict = judge.judge(LAST, [worker.as_sent(LAST, line)] * len(LAST.cases()))
    assert verdict.credit == 0 and judge.recognised(LAST, verdict) == []
    assert "nonsense" in grading.note_of(LAST, verdict, [], "def last_of(mask):\n    pass\n")


def test_what_a_process_sends_honestly_comes_back():
    values = {"a": torch.tensor([[1.0, math.nan]]), "b": [1, (True, None)], "c": "x", "d": object(),
              "e": torch.zeros(2, 0), "f": torch.tensor(3), "g": -math.inf, "h": -7}
    sent = {name: worker.packed(x) for name, x in values.items()}
    got = worker.as_sent(LAST, json.loads(json.dumps({"value": sent})))["value"]
    assert all(judge.equal(got[name], x, 0.0) for name, x in sent.items() if name != "d")
    assert got["d"] == {"kind": "object"} and got.keys() == sent.keys()
    told = {"error": "E", "message": "a\ud800\x1b[2J\nb", "line": ""}
    assert worker.as_sent(LAST, told)["message"] == "a??[2J\nb"


@pytest.mark.parametrize("content", [b"[" * 99999, b'{"a":' * 99999, b"9" * 99999, b"{{{", b"\xff"])
def test_lines_that_no_reader_takes_are_nonsense(content):
    """Lists in lists without end, numbers that a float does not hold, and what is no JSON."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    os.write(theirs.fileno(), b"1\n" + content[: 2**15] + b"\n")
    assert worker.received(ours, None, 1, 5) == ([1], "sent nonsense instead of its results")
    huge = worker.packed(10**400)
    assert huge == {"kind": "number of many digits"} and not judge.equal(huge, 1.0, 1e-5)
    assert not judge.equal(worker.packed(10**299), 1.0, 1e-5)


def test_facts_are_found_where_no_students_code_runs(tmp_path):
    """Of `noise` true and false came from the student's process: to say true was enough."""
    says = ("from exercises import course\nobject.__setattr__(course.load()['noise'], 'run', "
            f"lambda m, c: dict.fromkeys({sampling.NOISE_FACTS}, True))\n")
    noise, folder = COURSE["noise"], tmp_path / "evil"
    (folder / "kernels").mkdir(parents=True)
    (folder / noise.file).write_text(says + cutting.replaced(
        cutting.reference(noise.file), "uniform", "def uniform(*_):\n    pass\n"))
    assert grading.graded(folder, noise, BOUNDS)["credit"] == 0


ASKS = ("def last_of(mask):\n    {}\n"
        "    return course.load()['last-token'].oracle({{'mask': mask}})['last']\n")


@pytest.mark.parametrize("asks", [
    ASKS.format("from exercises import course"), ASKS.format("from __main__ import course"),
    ASKS.format("from __mp_main__ import course"),
    "import tests.solutions.gae\n\n\n" + RIGHT,
    "from exercises.checks import policy\n\n\ndef last_of(mask):\n"
    "    return policy.last_oracle({'mask': mask})['last']\n"],
    ids=["course", "command", "command of a fork", "solutions", "oracle"])
def test_the_checks_and_the_tests_are_out_of_reach(asks, tmp_path):
    """Their oracles are right functions, and one import away: they had full credit."""
    head, _, body = asks.partition("def last_of")
    row = row_of(submission(tmp_path, "asks", "def last_of" + body, head))
    assert row["credit"] == 0 and re.match("(ModuleNotFound|Import)Error: ", row["note"]), row


def test_a_file_that_may_look_for_the_answer_is_told(tmp_path):
    """It gets the credit, as one that is copied does; the teacher is to look at it."""
    asks = ("def last_of(mask):\n    import gc\n"
            "    return mask & ~F.pad(mask[:, 1:], (0, 1))\n")
    row = row_of(submission(tmp_path, "asks", asks))
    assert row["credit"] == 1.0 and row["note"].startswith("look at it: the file uses gc,")
    asks = asks.replace("import gc", "from exercises import course")
    whole = cutting.reference("ppo.py")
    for text, names in ((RIGHT, []), (asks, ["exercises"]), ("x = open('a').read()\n", ["open"]),
                        ("import sys, gc as g\n", ["gc", "sys"]),
                        ("import importlib.util\n", ["importlib"])):
        assert grading.fetches(whole + text, LAST) == names


@pytest.mark.parametrize("name, text, uses", [
    ("attention", "def causal_attention(q, k, v):\n"
     "    from kernels.attention import tiled_attention\n    return tiled_attention(q, k, v)[0]\n",
     ["kernels.attention.tiled_attention"]),
    ("attention", "import kernels.attention as a\n\n\ndef mine(q, k, v):\n    return a."
     "tiled_attention(q, k, v)[0]\n\n\ndef causal_attention(q, k, v):\n    return mine(q, k, v)\n",
     ["kernels.attention"]),
    ("attention", "def causal_attention(q, k, v):\n    return torch.stack([decode_attention("
     "q[:, :, t], k, v, torch.tensor([t + 1] * len(q))) for t in range(q.size(2))], 2)\n",
     ["decode_attention"]),
    ("attention", "from kernels.attention import *\n\n\ndef causal_attention(q, k, v):\n"
     "    return tiled_attention(q, k, v)[0]\n", ["kernels.attention.*"]),
    ("attention", "class Mine:\n    f = staticmethod(lambda *x: decode_attention(*x))\n\n\n"
     "def causal_attention(q, k, v):\n    return Mine.f(q, k, v)\n", ["decode_attention"]),
    ("kl-reward", "def shape_rewards(logprob, ref_logprob, score, mask, beta):\n"
     "    gae = mask * 1\n    return gae * score[:, None] * last_of(mask)\n", [])])
def test_a_function_that_uses_another_of_the_projects_is_told(name, text, uses, tmp_path):
    """attention by attention in tiles had full credit and no note."""
    exercise, whole = COURSE[name], cutting.reference(COURSE[name].file)
    deep = "x = " + "1 + " * 2000 + "1\n"
    assert grading.borrowed(deep + whole, exercise) == [], "nested as deep as Python reads"
    head, _, body = text.partition(f"def {exercise.function}")
    source = head + cutting.replaced(whole, exercise.function, f"def {exercise.function}{body}")
    assert grading.borrowed(source, exercise) == uses
    if "torch.stack" in text:
        (tmp_path / "ann/kernels").mkdir(parents=True)
        (tmp_path / "ann" / exercise.file).write_text(source)
        row = grading.graded(tmp_path / "ann", exercise, BOUNDS)
        assert row["credit"] == 1 and row["note"] == (
            "look at it: the function uses decode_attention of the project, which the project's "
            "own does not"), row


@pytest.mark.parametrize("name", COURSE)
def test_right_solutions_of_ones_own_need_no_look(name):
    for source in solutions(COURSE[name]):
        assert grading.borrowed(source, COURSE[name]) == grading.fetches(source, COURSE[name]) == []


ATTACKS = {
    "deletes": "os.unlink(there + '/file')", "renames": "os.rename(there + '/file', there + '/x')",
    "overwrites": "open(there + '/file', 'w').write('mine')",
    "appends": "os.open(there + '/file', os.O_WRONLY | os.O_APPEND)",
    "makes a folder": "os.mkdir(there + '/new')", "changes rights": "os.chmod(there + '/file', 0)",
    "truncates": "os.truncate(there + '/file', 0)",
    "links": "os.link(there + '/file', there + '/l')",
    "runs a program": "subprocess.run(['touch', there + '/new'])", "forks": "os.fork()",
    "kills": "os.kill(os.getppid(), 9)", "goes out": "socket.socket().connect(('127.0.0.1', 9))",
    "raises limits": "resource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))",
}
ATTACK = """import os, subprocess, socket, resource
there = {there!r}
def last_of(mask):
    try:
        {attack}
    except (PermissionError, BlockingIOError, ValueError):
        return mask & ~F.pad(mask[:, 1:], (0, 1))
    return mask * 0
"""


@pytest.mark.skipif(not SEALS, reason="the filter is for Linux on x86-64")
@pytest.mark.parametrize("name", [n if n in ("deletes", "goes out", "forks") else pytest.param(
    n, marks=pytest.mark.long) for n in ATTACKS])
def test_the_seal_refuses(name, tmp_path):
    """A function that answers rightly if it was refused: full credit is the proof."""
    there = tmp_path / "harmless"
    there.mkdir()
    (there / "file").write_text("theirs")
    text = ATTACK.format(there=str(there), attack=ATTACKS[name])
    head, _, body = text.partition("def last_of")
    row = row_of(submission(tmp_path, "evil", "def last_of" + body, head))
    assert row["credit"] == 1.0 and row["sealed"], row
    assert [p.name for p in there.iterdir()] == ["file"]
    assert (there / "file").read_text() == "theirs"


def test_the_process_has_limits(tmp_path):
    """Those that any Unix has: each is in force where the function runs."""
    text = ("def last_of(mask):\n    import resource\n"
            "    kind = ('CPU', 'FSIZE', 'NOFILE', 'CORE')\n"
            "    limits = [resource.getrlimit(getattr(resource, 'RLIMIT_' + n))[1] for n in "
            "kind]\n"
            "    assert limits == [6, 2**20, 64, 0], limits\n"
            "    return mask & ~F.pad(mask[:, 1:], (0, 1))\n")
    assert row_of(submission(tmp_path, "curious", text))["credit"] == 1.0


@pytest.mark.long
def test_the_result_does_not_depend_on_the_workers(tmp_path):
    texts = [RIGHT, HOSTILE["calls sys.exit"][0], "def last_of(mask):\n    return mask\n",
             HOSTILE["loops"][0], RIGHT.replace("~", "")]
    folders = [submission(tmp_path, f"s{i}", text) for i, text in enumerate(texts)]
    exercises = [LAST, COURSE["kl-reward"]]
    one, three = (grading.grade(folders, exercises, BOUNDS, n) for n in (1, 3))
    assert one == three
    assert [(r["student"], r["exercise"]) for r in one] == [
        (f"s{i}", e.name) for i in range(5) for e in exercises]


ROWS = [{"student": name, "exercise": e, "credit": c, "properties": {"a": c > 0, "b": c == 1},
         "note": note} for name, e, c, note in (
    ("=1+1", "gae", 1.0, ""), ("=1+1", "ema", 0.5, "a <b> & \x07c"), ("bea", "gae", 0.0, ""),
    ("bea", "ema", 1.0, ""))]


def test_reports_by_hand():
    """CSV without formulas; XML that can be read; JSON with every property."""
    table = list(csv.reader(io.StringIO(grading.as_csv(ROWS))))
    assert table == [["student", "total", "gae", "ema"], ["'=1+1", "1.5", "1.0", "0.5"],
                     ["bea", "1.0", "0.0", "1.0"]]
    suites = xml.fromstring(grading.as_junit(ROWS))
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in suites] == [
        ("=1+1", "4", "1"), ("bea", "4", "2")]
    assert [f.get("message") for f in suites[0].iter("failure")] == ["a <b> & ?c"]
    report = json.loads(grading.as_json(ROWS))["students"]
    assert [(s["student"], s["credit"]) for s in report] == [("=1+1", 1.5), ("bea", 1.0)]
    assert report[0]["exercises"][1]["properties"] == {"a": True, "b": False}


def test_the_command(tmp_path, capsys):
    folders = [submission(tmp_path, "ann", RIGHT),
               submission(tmp_path, "bea", "def last_of(mask):\n    return mask\n")]
    out = [f"--{kind}={tmp_path}/grades.{kind}" for kind in ("json", "csv", "junit")]
    with pytest.raises(SystemExit) as end:
        __main__.main(["grade", *map(str, folders), "--exercises=last-token,last-token,",
                       "--seconds=10", *out])  # named twice, it counts once
    assert end.value.code == 0
    assert re.match(r"ann: 1.00 of 1\nbea: 0.33 of 1\n", capsys.readouterr().out)
    assert all((tmp_path / f"grades.{kind}").stat().st_size for kind in ("json", "csv", "junit"))


@pytest.mark.parametrize("words, complaint", [
    ([], "grade which folders?"), (["/nowhere/x"], "/nowhere/x is no folder"),
    (["{tmp}", "--workers=0"], "--workers=0: expected a whole number from 1 to 1,000"),
    (["{tmp}", "--seconds=99999999999999999999"], "a whole number from 1 to 86,400"),
    (["{tmp}", "--json={tmp}/x", "--csv={tmp}/../{name}/x"], "two reports have the same file"),
    (["{tmp}", "{tmp}/../{name}/."], "two folders have the name"),
    (["{tmp}", "--json"], "--json needs a value"),
    (["{tmp}", "--csv={tmp}"], "expected a file to write"),
    (["{tmp}", "--junit={tmp}/no/x.xml"], "in a folder that is there"),
    (["{tmp}", "--exercises=gea"], "did you mean gae?")])
def test_a_wrong_grading_is_one_line(words, complaint, tmp_path):
    with pytest.raises(SystemExit) as end:
        __main__.main(["grade", *(w.format(tmp=tmp_path, name=tmp_path.name) for w in words)])
    assert complaint in str(end.value) and "\n" not in str(end.value)


@pytest.mark.skipif(platform.system() != "Linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_student_outlives_the_grading(tmp_path, number):
    """A process that sleeps went on alone when the grading was asked to end."""
    folder = submission(tmp_path, "ann", "import time\ndef last_of(mask):\n    time.sleep(10000)\n")
    mark = f"MARK={tmp_path}".encode()

    def marked():
        """The processes of this grading, the server that forks them among them."""
        out = set()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    out.add(path.parent.name)
            except OSError:  # it has ended
                pass
        return out

    process = subprocess.Popen(
        [sys.executable, "-m", "exercises", "grade", str(folder), "--exercises=last-token"],
        cwd=ROOT, env={**os.environ, "MARK": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    end = time.monotonic() + 120
    while len(marked()) < 4 and time.monotonic() < end:  # it, two servers, the student's
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    while marked() and time.monotonic() < end:
        time.sleep(0.1)
    assert not marked() and process.returncode < 0 and "interrupted" in said

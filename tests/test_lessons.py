"""Around the exercises: bug hunts, what is handed out, and the commands of docs/classroom.md."""
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

import settings
import test_docs
from exercises import (course, cutting, defects, draw, exporting, hunt, student,
                       symptoms)
from test_classroom import python

ROOT = Path(settings.__file__).parent
PAGE = (ROOT / "docs/classroom.md").read_text()
long = pytest.mark.long


# ----------------------------------------------------------------------- bug hunts

@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The files of a student's copy in which a bug may be planted, and the commands on them."""
    folder = tmp_path / "copy"
    for file in {d.file for d in defects.DEFECTS}:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    monkeypatch.setattr(hunt, "ROOT", folder)
    monkeypatch.setattr(hunt, "PLANTED", folder / "planted.json")
    return folder


def test_a_bug_is_planted_found_and_told(copy, capsys):
    """Each seed plants a defect with tests; putting the text back repairs it, and nothing else
    that leaves the code as it is does."""
    seen = set()
    for seed in range(8):
        hunt.plant(str(seed))
        name, before = hunt.unpacked(json.loads((copy / "planted.json").read_text())["bug"])
        defect = next(d for d in defects.DEFECTS if d.name == name)
        assert defect.tests and (copy / defect.file).read_text() == defects.planted(before, defect)
        said = capsys.readouterr().out
        told = "\n".join(symptoms.told(name, defect.tests))
        assert told in said and not any(
            x in said.replace(told, "") for x in (name, defect.file, defect.hint))
        planted = (copy / defect.file).read_text()
        (copy / defect.file).write_text("# a comment\n" + planted)
        if not defect.exercise:  # for those the check decides, which has its own tests
            assert not hunt.check() and "not found yet" in capsys.readouterr().out
        (copy / defect.file).write_text("# repaired\n" + before)
        assert hunt.check()
        said = capsys.readouterr().out
        assert defect.file in said and defect.hint in said and defect.tests[0] in said
        assert not (copy / "planted.json").exists()
        (copy / defect.file).write_text(before)
        seen.add(name)
    assert len(seen) > 4
    hunt.plant("3")
    first = (copy / "planted.json").read_text()
    with pytest.raises(SystemExit, match="a bug is planted already"):
        hunt.plant("3")
    name, before = hunt.unpacked(json.loads(first)["bug"])
    (copy / next(d for d in defects.DEFECTS if d.name == name).file).write_text(before)
    hunt.check()
    hunt.plant("3")
    assert (copy / "planted.json").read_text() == first, "a seed gives the same bug again"


def test_what_else_was_changed_in_the_file_does_not_hide_a_repair(copy):
    for name in ("unfinished-is-scored", "returns-from-whitened", "one-large-minibatch"):
        defect = next(d for d in defects.DEFECTS if d.name == name)
        before = cutting.reference(defect.file)
        more = "\n\ndef of_my_own():\n    return 1\n"
        (copy / defect.file).write_text(defects.planted(before, defect) + more)
        assert not hunt.repaired(defect, before)
        (copy / defect.file).write_text(before + more)
        assert hunt.repaired(defect, before)


def test_without_a_bug_there_is_none_to_find(copy):
    with pytest.raises(SystemExit, match="no bug is planted"):
        hunt.check()
    (copy / "planted.json").write_text('{"bug": "nonsense"}')
    with pytest.raises(SystemExit, match="damaged"):
        hunt.check()


@long
def test_a_bug_that_is_repaired_in_another_way_is_found(copy):
    """In a function of an exercise, whose check then decides."""
    defect = next(d for d in defects.DEFECTS if d.name == "first-for-last")
    before = cutting.reference("ppo.py")
    (copy / "ppo.py").write_text(defects.planted(before, defect))
    assert not hunt.repaired(defect, before)
    (copy / "ppo.py").write_text(cutting.replaced(before, "last_of", (
        ROOT / "tests/solutions/last-token.py").read_text().partition("\n\n\n")[0]))
    assert hunt.repaired(defect, before)


# ----------------------------------------------------------------------- what is handed out

def test_the_archive_is_a_copy_with_holes(tmp_path):
    with zipfile.ZipFile(io.BytesIO(exporting.archive(["gae"]))) as files:
        names = set(files.namelist())
        assert cutting.hole("gae").encode() in files.read("ppo.py")
        assert files.read("reward.py") == (ROOT / "reward.py").read_bytes()
        with zipfile.ZipFile(io.BytesIO(files.read("exercises/answers.zip"))) as answers:
            assert answers.read("ppo.py") == (ROOT / "ppo.py").read_bytes()
    assert {"README.md", "exercises/gae.md", "tests/test_losses.py", "sft.py"} <= names
    assert not any(n.startswith((".git/", "out/")) or "__pycache__" in n for n in names)


CELLS = """
import json, linecache, sys
for n, source in enumerate(json.load(open(sys.argv[1]))):
    name = f"<cell {n}>"
    linecache.cache[name] = len(source), None, source.splitlines(True), name  # as a notebook does
    exec(compile(source, name, "exec"), globals())
"""


def run_cells(folder, cells):
    """What the code cells of a notebook print, run in order in a process of their own."""
    folder.mkdir()
    (folder / "cells.json").write_text(json.dumps(cells))
    run = subprocess.run([sys.executable, "-c", CELLS, "cells.json"], cwd=folder, text=True,
                         capture_output=True, timeout=300,
                         env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@long
def test_a_notebook_checks_at_its_end(tmp_path):
    """With the hole, then with a right function in its cell; it needs no other file."""
    nbformat = pytest.importorskip("nbformat")
    python(ROOT, "export", "last-token", f"--notebooks={tmp_path}/notebooks")
    book = nbformat.read(tmp_path / "notebooks" / "last-token.ipynb", as_version=4)
    nbformat.validate(book)
    assert book.cells[0].source == (ROOT / "exercises/last-token.md").read_text()
    cells = [c.source for c in book.cells if c.cell_type == "code"]
    assert "last-token: not written yet" in run_cells(tmp_path / "a", cells)
    hole = f"    {cutting.hole('last-token')}\n"
    assert hole in cells[1]
    cells[1] = cells[1].replace(hole, "    return mask & ~F.pad(mask[:, 1:], (0, 1))\n")
    assert "3 of 3 properties hold" in run_cells(tmp_path / "b", cells)


# ----------------------------------------------------------------------- the page's commands

SMALL = {  # what makes a command of the page take seconds
    "ppo.py": "--iterations=1 --batch=8 --minibatch=8 --max_new_tokens=8 --ptx_rows=2 --show=0",
    "sft.py": "--batch=8", "reward.py": "--batch=8 --micro_batch=3",
    "evaluate.py": "--max_new_tokens=8", "labels.sample": "--max_new_tokens=8",
    "labels.simulated": ""}


def commands_of(part):
    """The command lines of a part of the page, split into words."""
    text = PAGE.partition(f"\n## {part}\n")[2].partition("\n## ")[0]
    return [shlex.split(line, comments=True) for line in test_docs.commands(text)]


def test_the_page_has_what_a_week_needs():
    lessons = PAGE.partition("## Five lessons")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| \d\. ", lessons, re.M)) == 5
    assert len(re.findall(r"^\d\. \*\*", PAGE.partition("## Eight experiments")[2], re.M)) == 8
    questions = re.findall(r"^\d+\. \*(.+?)\* (.+)$", PAGE, re.M)
    assert len(questions) >= 10 and all(answer for _, answer in questions)
    named = {word.strip(" .") for row in re.findall(r"^\| \d\. .*\| (.+) \|$", lessons, re.M)
             for word in row.split(",")}
    assert named | {"triton"} == set(course.load()), "each exercise has its lesson"


@long
def test_the_experiments_run(demo, monkeypatch):
    """In their order, on the tests' own demo."""
    monkeypatch.chdir(demo.folder)
    late, ran = [], 0
    for words in commands_of("Eight experiments"):
        if words[0] == "cp":
            assert subprocess.run(words).returncode == 0
            continue
        if words[0] == "make":
            continue  # the fixture is the demo, and figures have tests of their own
        assert words[0] == "python"
        script = words[2] if words[1] == "-m" else words[1]
        flags = [f for f in SMALL.get(script, "").split()
                 if f.partition("=")[0] not in {w.partition("=")[0] for w in words}]
        place = words[1:] if words[1] == "-m" else [str(ROOT / words[1]), *words[2:]]
        if script in ("evaluate.py", "exercises.draw"):
            late.append([*place, *flags])
            continue
        run_script([*place, *flags])
        ran += 1
    for command in late:
        run_script(command)
    assert ran >= 16 and late
    (_, script, model), = commands_of("Five lessons of 90 minutes")
    assert len(run_script([str(ROOT / script), model], "Where is the market?\n")) > 1


def test_every_part_with_commands_has_a_test_that_runs_them():
    """The command that a lesson projects was run by none."""
    parts = [part for part in re.findall(r"^## (.+)$", PAGE, re.M) if commands_of(part)]
    run = set(re.findall(r'commands_of\("(.+)"\)', Path(__file__).read_text()))
    assert set(parts) <= run and PAGE.partition("\n## ")[0].count("python ") == 0


def run_script(words, typed=""):
    run = subprocess.run([sys.executable, *words], text=True, capture_output=True, timeout=600,
                         input=typed, env={**os.environ, "PYTHONPATH": str(ROOT),
                                           "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, f"{words}\n{run.stdout}{run.stderr}"
    return run.stdout


@long
def test_the_classroom_commands_of_the_page_run(tmp_path):
    """A student's and a teacher's, as they are written, but `watch`, which has its own test."""
    project, mine = tmp_path / "project", tmp_path / "project" / "mine"
    for file in student.files_of(ROOT):
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, project / file)
    python(project, "start", "gae", "whiten", "--into=other")
    folder = project
    for words in commands_of("For a student"):  # those within a sentence come last
        if words[0] == "cd":
            folder = project / words[1]
        elif words[3] == "start" and mine.exists():  # another way to begin: done above
            assert words[4:] == ["gae", "whiten", "--into=mine"]
        elif words[3] == "bug":
            whole = project / "other"
            if words[4:] == ["check"]:
                assert "not found yet" in python(whole, "bug", "check", status=1)
            else:
                assert "One defect is in your copy" in python(whole, *words[3:])
        elif words[3] != "watch":
            python(folder, *words[3:], status=int(words[3] == "check"))
    pytest.importorskip("nbformat")
    folder = project
    for words in commands_of("For teachers"):
        if words[0] == "cd":
            folder = project / words[1]
        elif words[:3] == ["python", "-m", "exercises"]:
            checks = words[3] == "check"
            python(folder, *words[3:], seconds=900, status=int(checks))
            folder = project if checks else folder
    grades = json.loads((project / "grades.json").read_text())["students"]
    assert grades[0]["student"] == "mine" and grades[0]["credit"] == 0.0
    assert (project / "students.zip").exists() and (project / "notebooks/gae.ipynb").exists()


def test_commands_that_are_written_are_there():
    """Each verb of the page and of the command's own help exists, and each that exists is told."""
    from exercises import __main__
    verbs = set(__main__.VERBS)
    commands = inspect.cleandoc(__main__.__doc__).partition("\n")[2]  # Python 3.13 does so itself
    assert verbs == set(re.findall(r"^(\w+)", commands, re.M))
    assert set(re.findall(r"python -m exercises (\w+)", PAGE)) <= verbs


# ----------------------------------------------------------------------- pictures of logs

def test_a_picture_of_logs(tmp_path, monkeypatch, capsys):
    """Each run is a line through its points, the running mean of some rows, with its name."""
    monkeypatch.chdir(tmp_path)
    for name, values in (("a", [1, 3, 5]), ("b", [2, 2, 8])):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "log.jsonl").write_text("".join(
            json.dumps({"step": i, "loss": x, "valid": x if i else None}) + "\n"
            for i, x in enumerate(values)))
    flags = lambda **changes: [f"--{k}={v}" for k, v in {
        "runs": "out/a,out/b", "x": "step", "y": "loss", "out": "new/x.svg", **changes}.items()]
    draw.main(flags())
    svg = ElementTree.fromstring((tmp_path / "new/x.svg").read_text())
    lines = [[tuple(map(float, p.split(","))) for p in e.get("points").split()]
             for e in svg.iter() if e.tag.endswith("polyline")]
    assert [len(line) for line in lines] == [3, 3]
    rises = [[a[1] - b[1] for a, b in zip(line, line[1:])] for line in lines]
    assert rises[0][0] == pytest.approx(rises[0][1]) and rises[1][0] == 0 < rises[1][1]
    assert rises[1][1] == pytest.approx(3 * rises[0][1], abs=0.2)
    assert {"a", "b", "loss", "step"} <= {e.text for e in svg.iter() if e.tag.endswith("text")}
    assert draw.points("out/a", "step", "valid", 1) == [(1, 3), (2, 5)]
    assert draw.points("out/a", "step", "loss", 2) == [(0, 1), (0.5, 2), (1.5, 4)]
    for changes, complaint in (({"runs": "out/c"}, "no out/c/log.jsonl"), ({"y": "kl"}, "has no"),
                               ({"runs": ""}, "--runs= is empty"),
                               ({"runs": ","}, "expected one folder")):
        with pytest.raises(SystemExit, match=complaint):
            draw.main(flags(**changes))

"""Grades any number of students' copies.

    python -m exercises grade students/* --json=grades.json --csv=grades.csv --junit=grades.xml

Run it from the project itself, not from a student's copy. Each exercise of each student runs in a
process of its own, with limits (limits.py). It runs on this folder's checks and on this folder's
sources; of the student's copy one file is read for each exercise, and nothing is imported from the
copy or written to it. The process only returns what the function returned; whether that is right is
decided here, where no student's code runs.

The credit of an exercise is the share of its properties that hold.
"""
import ast
import concurrent.futures
import csv
import io
import json
import multiprocessing
import os
import signal
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

from data import records
from exercises import ANSWERS, ROOT, course, cutting, judge, student, worker
from settings import stop

LARGEST = 2**20  # bytes of a student's file
FETCHES = {"exercises", "importlib", "__import__", "import_module", "sys", "gc", "inspect",
           "ctypes", "open", "read_text", "pathlib", "zipfile", "exec", "eval", "globals"}


def source_of(folder, exercise):
    """(the bytes of a student's file, what is wrong with it)."""
    path = Path(folder) / exercise.file
    try:
        if path.is_symlink() or not path.resolve().is_relative_to(Path(folder).resolve()):
            return b"", f"{exercise.file} is a link"
        if not path.is_file():
            return b"", f"{exercise.file} is missing"
        if path.stat().st_size > LARGEST:
            return b"", f"{exercise.file} is larger than {LARGEST} bytes"
        content = path.read_bytes()
        cutting.text_of(cutting.decoded(content), exercise.function)
    except cutting.Gone as error:
        return b"", f"{exercise.file}: {error}"
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        return b"", f"{exercise.file}{where}: {error.msg}"
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        return b"", f"{exercise.file} cannot be read: {type(error).__name__}"
    return content, ""


def student_of(folder):
    """A student's name: that of the folder, however it is written (`.`, `anna/`); with marks for
    bytes that are no UTF-8."""
    return os.fsencode(Path(folder).resolve().name).decode(errors="replace")


def same_as_ours(text, exercise):
    """Whether the function is the project's own, but for comments and layout."""
    own = cutting.text_of(cutting.reference(exercise.file), exercise.function)
    return cutting.same_code(cutting.text_of(text, exercise.function), own)


def fetches(text, exercise):
    """Names in a student's file with which a function can look for the project's own answer, and
    which the project's own file does without."""
    def used(source):
        nodes = list(ast.walk(ast.parse(source)))
        dotted = [getattr(n, "id", None) or getattr(n, "attr", None) or getattr(n, "module", None)
                  or "" for n in nodes] + [n.name for n in nodes if isinstance(n, ast.alias)]
        return {part for name in dotted for part in name.split(".")}

    return sorted(FETCHES & used(text) - used(cutting.reference(exercise.file)))


def borrowed(text, exercise):
    """The project's functions that a student's function uses and the project's own does not: one of
    them may be the answer. What the student has added to the file counts as part of it."""
    source = cutting.reference(exercise.file)
    own = ast.parse(source)
    functions = {n.name: n.name for n in own.body if isinstance(n, ast.FunctionDef)}
    reach = functions | imported(own) | imported(ast.parse(text))

    def used(text):
        lines, found = cutting.lines_in(text), []
        at = cutting.lines_of(cutting.node_of(text, exercise.function))
        for part in ast.parse(text).body:
            first, end = cutting.lines_of(part)
            other = isinstance(part, ast.FunctionDef) and part.name in functions
            if (first, end) == at or not other and "\n".join(lines[first:end]) not in source:
                found += [n for n in ast.walk(part) if isinstance(n, ast.Name)]
        stored = {n.id for n in found if not isinstance(n.ctx, ast.Load)}
        every = {"*"} & imported(ast.parse(text)).keys()
        return {reach[name] for name in every | {n.id for n in found} - stored if name in reach}

    return sorted(used(text) - used(source) - {exercise.function})


def imported(tree):
    """{name in a source: what it is} of all that is imported from the project's files."""
    ours = lambda name: (ROOT / f"{name.replace('.', '/')}.py").exists() or (
        ROOT / name.split(".")[0] / "__init__.py").exists()
    out = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and ours(node.module):
            out |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        if isinstance(node, ast.Import):
            out |= {a.asname or a.name.split(".")[0]: a.name for a in node.names if ours(a.name)}
    return out


def graded(folder, exercise, bounds):
    """One exercise of one student, as a dict that JSON takes."""
    content, wrong = source_of(folder, exercise)
    row = {"student": student_of(folder), "exercise": exercise.name, "credit": 0.0,
           "properties": dict.fromkeys(exercise.properties, False), "note": wrong}
    if wrong:
        return row
    text = cutting.decoded(content)
    if cutting.hole(exercise.name) in cutting.text_of(text, exercise.function):
        return {**row, "note": "not written"}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / Path(exercise.file).name
        path.write_bytes(content)
        outcomes, _, sealed = worker.run(exercise, path, bounds)
    if worker.UNBEGUN in outcomes:
        return {**row, "note": f"not graded: {worker.UNBEGUN['message']}"}
    verdict = judge.judge(exercise, outcomes)
    known = judge.recognised(exercise, verdict)
    return {**row, "credit": round(verdict.credit, 4), "properties": verdict.held,
            "note": note_of(exercise, verdict, known, text), "sealed": sealed}


def note_of(exercise, verdict, known, text):
    """What a teacher should know beside the number."""
    if verdict.blank:
        return "not written"
    if same_as_ours(text, exercise):
        return "the same code as the project's own"
    if known:
        return known[0].hint
    if verdict.credit and (names := fetches(text, exercise)):
        return f"look at it: the file uses {', '.join(names)}, which the project's own does not"
    if verdict.credit and (names := borrowed(text, exercise)):
        return (f"look at it: the function uses {', '.join(names)} of the project, which the "
                "project's own does not")
    if verdict.failing:
        result = verdict.outcomes[verdict.failing[0][1]]
        if "error" in result:
            return f"{result['error']}: {result.get('message')}"[:200].splitlines()[0]
    return ""


def grade(folders, exercises, bounds, workers=1):
    """All rows, in the order of the folders and of the course, whatever the number of workers."""
    jobs = [(folder, exercise, bounds) for folder in folders for exercise in exercises]
    for exercise in exercises:
        judge.expected(exercise)  # once, before the threads ask for it
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        return list(pool.map(lambda job: graded(*job), jobs))
    finally:  # Ctrl-C and SIGTERM end the students' processes, too
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()


# ------------------------------------------------------------------------------- reports

def totals(rows):
    """{student: sum of credits}, in order."""
    out = {}
    for row in rows:
        out[row["student"]] = out.get(row["student"], 0.0) + row["credit"]
    return out


def as_json(rows):
    students = [{"student": name, "credit": round(total, 4),
                 "exercises": [{k: v for k, v in row.items() if k != "student"}
                               for row in rows if row["student"] == name]}
                for name, total in totals(rows).items()]
    return json.dumps({"students": students}, indent=1, ensure_ascii=False) + "\n"


def safe(cell):
    """A cell that no spreadsheet takes for a formula."""
    text = str(cell)
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def as_csv(rows):
    """A line for each student: the total, and the credit of each exercise."""
    names = list(dict.fromkeys(row["exercise"] for row in rows))
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["student", "total", *names])
    for name, total in totals(rows).items():
        own = {row["exercise"]: row["credit"] for row in rows if row["student"] == name}
        table.writerow([safe(name), round(total, 4), *(own[e] for e in names)])
    return out.getvalue()


def printable(text):
    """Text that XML can hold."""
    return "".join(c if c in "\t\n" or " " <= c and not "\ud800" <= c <= "\udfff"
                   and c not in "\ufffe\uffff" else "?" for c in text)


def as_junit(rows):
    """A suite for each student, a test for each property."""
    root = xml.Element("testsuites")
    for name in totals(rows):
        own = [row for row in rows if row["student"] == name]
        suite = xml.SubElement(root, "testsuite", name=printable(name))
        cases = [(row, sentence, good) for row in own
                 for sentence, good in row["properties"].items()]
        suite.set("tests", str(len(cases)))
        suite.set("failures", str(sum(not good for _, _, good in cases)))
        for row, sentence, good in cases:
            case = xml.SubElement(suite, "testcase", classname=row["exercise"], name=sentence)
            if not good:
                xml.SubElement(case, "failure", message=printable(row["note"] or "does not hold"))
    xml.indent(root)
    return xml.tostring(root, "unicode") + "\n"


def writable(path):
    """Whether a file can be written at this place."""
    return not path.is_dir() and path.parent.is_dir() and os.access(
        path if path.exists() else path.parent, os.W_OK)


def main(folders, flags):
    """The command. Returns its exit code."""
    if ANSWERS.exists():
        stop("this is a student's copy: grade with the project itself, whose checks nobody changed")
    if not folders:
        stop("grade which folders? Each is a student's copy of the project")
    missing = [f for f in folders if not Path(f).is_dir()]
    if missing:
        stop(f"{missing[0]} is no folder")
    names = [student_of(f) for f in folders]
    if twice := [n for n in names if names.count(n) > 1]:
        stop(f"two folders have the name {twice[0]}: the name of a folder is the student's")
    numbers = {}
    for flag, default, most in (("workers", 1, 1000), ("seconds", 20, 86_400),
                                ("megabytes", 1024, 10**6)):
        text = flags.get(flag, str(default))
        if not text.isdecimal() or not 1 <= int(text) <= most:
            stop(f"--{flag}={text}: expected a whole number from 1 to {most:,}")
        numbers[flag] = int(text)
    named = dict.fromkeys(filter(None, flags.get("exercises", "").split(",")))  # each counts once
    chosen = [student.exercise_of(n) for n in named] or list(course.load().values())
    for flag in ("json", "csv", "junit"):  # before hours of grading
        if flag in flags and not writable(Path(flags[flag])):
            stop(f"--{flag}={flags[flag]}: expected a file to write, in a folder that is there")
    written = [Path(flags[flag]).resolve() for flag in ("json", "csv", "junit") if flag in flags]
    if len(set(written)) < len(written):
        stop("two reports have the same file")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bounds = worker.Limits(numbers["seconds"], numbers["megabytes"], sealed=True)
    rows = grade(folders, chosen, bounds, numbers["workers"])
    for name, total in totals(rows).items():
        shown = worker.plain(name).replace("\n", "?")  # a folder is named by who fills it
        print(f"{shown}: {total:.2f} of {len(chosen)}")
        for row in rows:
            if row["student"] == name and row["note"]:
                print(f"  {row['credit']:4.2f} {row['exercise']:<15} {row['note']}")
    if not all(row["sealed"] for row in rows if "sealed" in row):
        print("this system has no filter of system calls: files and the network were within reach "
              "(see docs/classroom.md)")
    for flag, form in (("json", as_json), ("csv", as_csv), ("junit", as_junit)):
        if flag in flags:  # when all is printed: a disk may be full
            records.write_text(flags[flag], form(rows))
    return 0

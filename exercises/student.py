"""A student's copy: made, cut, looked at, put back. The student's own text is never lost.

    exercises/answers.zip     the project as it was (for the other holes, and for known mistakes)
    exercises/progress.json   what is done, and how many hints were read
    exercises/kept/           every text that `reset` or `start` has replaced
"""
import difflib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

from data import records
from exercises import ANSWERS, HERE, ROOT, course, cutting
from settings import stop

PROGRESS, KEPT = HERE / "progress.json", HERE / "kept"
OPEN = ("blank", "begun", "broken")  # states of an exercise that is not done
TOO_DEEP = (ValueError, RecursionError, MemoryError)  # of the parser
LEFT_OUT = {"out", "runs", "build", "dist", "__pycache__", "kept", "progress.json", "answers.zip",
            "planted.json"}


def here():
    """Stops unless this is a student's copy."""
    if not ANSWERS.exists():
        stop("this is the project itself, with nothing cut: make a copy to work in with "
             "`python -m exercises start --into=mine`, then cd mine")


def exercise_of(name):
    """The exercise of that name; stops with the closest one."""
    every = course.load()
    if name not in every:
        close = difflib.get_close_matches(name, every, 1, 0.3)
        stop(f"no exercise {name!r}" + (f": did you mean {close[0]}?" if close else "")
             + ("" if close else ".") + " `python -m exercises list` shows them all")
    return every[name]


# ------------------------------------------------------------------------------- a new copy

def files_of(root=ROOT):
    """The project's files, as paths from its root: its packages, docs and tests, and what is text
    beside them. No results, no environments, no students' copies."""
    def walk(folder):
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name in LEFT_OUT or path.is_symlink():
                continue
            if path.is_dir():
                if folder != root or (path / "__init__.py").exists() or path.name in (
                        "docs", "tests"):
                    yield from walk(path)
            elif path.suffix != ".pyc" and (folder != root or path.suffix in (
                    "", ".py", ".md", ".toml", ".txt")):
                yield path.relative_to(root).as_posix()

    return list(walk(root))


def sources(files):
    """Those of them that answers.zip holds: the project's Python files, but not the tests."""
    return [f for f in files if f.endswith(".py") and not f.startswith(("tests/", "exercises/"))]


def texts(files, names):
    """{file: bytes} of a copy, with the holes of these exercises cut."""
    out = {f: (ROOT / f).read_bytes() for f in files}
    for name in names:
        e = exercise_of(name)
        source = cutting.cut(out[e.file].decode("utf-8"), e.function, e.name, e.part)
        out[e.file] = source.encode("utf-8")
    return out


def make(folder, names):
    """A student's copy in a new folder, with a git repository of its own where git is installed."""
    if ANSWERS.exists():
        stop("this is a student's copy already: make new ones from the project itself")
    folder = Path(folder)
    if folder.is_file():
        stop(f"{folder} is a file: choose another folder with --into")
    if folder.exists() and any(folder.iterdir()):
        stop(f"{folder} is not empty: choose another folder with --into")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with records.naming(folder):
            fill(folder, files_of(), names)
    except BaseException:
        shutil.rmtree(folder.resolve(), ignore_errors=True)  # half a copy, on a full disk
        raise
    return has_repository(folder)


def fill(folder, files, names):
    """Write the files of a copy."""
    for file, content in texts(files, names).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    with zipfile.ZipFile(folder / "exercises/answers.zip", "w", zipfile.ZIP_DEFLATED) as answers:
        for file in sources(files):
            answers.writestr(zipfile.ZipInfo(file, (2020, 1, 1, 0, 0, 0)),
                             (ROOT / file).read_bytes())
    (folder / ".gitignore").write_text("__pycache__/\n/out/\n/runs/\n/.venv/\n"
                                       "/exercises/progress.json\n")


def has_repository(folder):
    """Make the folder a git repository with one commit. Returns whether that worked."""
    git = shutil.which("git")
    if git is None:
        return False
    who = ["-c", "user.name=student", "-c", "user.email=student@localhost", "-c",
           "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null"]
    steps = (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "The exercises, as they began"])
    return all(subprocess.run([git, *who, *step], cwd=folder, capture_output=True).returncode == 0
               for step in steps)


# ------------------------------------------------------------------------------- its texts

def text(exercise):
    """The student's text of a function; stops if it cannot be found."""
    file = exercise.file
    try:
        return cutting.text_of(cutting.decoded(content(exercise)), exercise.function)
    except UnicodeDecodeError:
        stop(f"{file} is not UTF-8 text. Python cannot read the file")
    except SyntaxError as error:
        where = f"{file}, line {error.lineno}" if error.lineno else file
        stop(f"{where}: {error.msg}. Python cannot read the file")
    except cutting.Gone as error:
        stop(f"{file}: {error}. `python -m exercises reset {exercise.name}` puts it back")
    except TOO_DEEP as error:
        stop(f"{file}: {str(error) or type(error).__name__}. Python cannot read the file")


def content(exercise):
    """The bytes of the student's file; stops if it is missing."""
    try:
        return (ROOT / exercise.file).read_bytes()
    except FileNotFoundError:
        stop(f"{exercise.file} is missing: `git checkout {exercise.file}` brings back the one of "
             "your last commit")


def place(exercise):
    """file:line of an exercise's hole; the file alone where the hole is gone."""
    lines = cutting.lines_in(cutting.decoded(content(exercise)))
    at = [n for n, line in enumerate(lines, 1) if cutting.hole(exercise.name) in line]
    return f"{exercise.file}:{at[0]}" if at else exercise.file


def as_it_began(exercise):
    """The function with its hole."""
    whole = cutting.reference(exercise.file)
    return cutting.text_of(cutting.cut(whole, exercise.function, exercise.name, exercise.part),
                           exercise.function)


def state(exercise, progress):
    """How far a student is: whole (not started), blank, begun, done, or broken: Python cannot read
    the file."""
    try:
        own = text(exercise)
    except SystemExit:
        return "broken"
    if progress.get("done", {}).get(exercise.name) == own:
        return "done"
    if cutting.hole(exercise.name) in own:
        return "blank"
    if cutting.same_code(own, cutting.text_of(cutting.reference(exercise.file),
                                              exercise.function)):
        return "whole"
    return "begun"


def keep(exercise):
    """Copy the student's file to exercises/kept, under a name that is new. Returns the copy."""
    own = content(exercise)
    KEPT.mkdir(exist_ok=True)
    n = 1 + sum(1 for _ in KEPT.glob(f"{exercise.name}-*"))
    while (copy := KEPT / f"{exercise.name}-{n}.py").exists():
        n += 1
    copy.write_bytes(own)
    return copy.relative_to(ROOT).as_posix()


def put(exercise, new):
    """Write another text in the function's place; what was there is kept. Returns the kept copy."""
    copy, path = keep(exercise), ROOT / exercise.file
    try:
        source = cutting.decoded(path.read_bytes())
        changed = cutting.replaced(source, exercise.function, new)
    except cutting.Gone:
        changed = source.rstrip("\n") + "\n\n\n" + new
    except (SyntaxError, *TOO_DEEP):  # or text in no encoding
        changed = cutting.replaced(cutting.reference(exercise.file), exercise.function, new)
        changed = with_other_texts(changed, exercise)
    records.write_text(path, changed)
    return copy


def with_other_texts(source, exercise):
    """For a file that Python cannot read: the project's own, with the holes of other exercises that
    the student had not filled; what the student wrote is in the kept copy."""
    broken = (ROOT / exercise.file).read_text("utf-8", "replace")
    for other in course.load().values():
        if (other.file == exercise.file and other is not exercise
                and cutting.hole(other.name) in broken):
            source = cutting.cut(source, other.function, other.name, other.part)
    return source


def difference(exercise, reference=False):
    """A unified diff: from the hole (or the project's own function) to the student's text."""
    other = (cutting.text_of(cutting.reference(exercise.file), exercise.function) if reference
             else as_it_began(exercise))
    names = ("the project's own" if reference else "as it began", "yours")
    return "".join(difflib.unified_diff(other.splitlines(True), text(exercise).splitlines(True),
                                        *names))


# ------------------------------------------------------------------------------- progress

def progress():
    """{"done": {exercise: text}, "hints": {exercise: how many}, "last": exercise}, what is known of
    it. People edit and merge the file: what has another form is left out."""
    try:
        found = json.loads(PROGRESS.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    found, out = found if isinstance(found, dict) else {}, {}
    for key, kind in (("done", str), ("hints", int)):
        if isinstance(own := found.get(key), dict):
            out[key] = {name: value for name, value in own.items() if isinstance(value, kind)}
    if found.get("last") in list(course.load()):
        out["last"] = found["last"]
    return out


def remember(**changes):
    """Update progress.json of a student's copy; a folder that cannot be written to only loses the
    progress."""
    if not ANSWERS.exists():
        return
    state = progress()
    for key, value in changes.items():
        state[key] = {**state.get(key, {}), **value} if isinstance(value, dict) else value
    try:
        records.write_json(PROGRESS, state)
    except OSError:
        pass


def next_hint(exercise):
    """(number, text) of the next hint; the last one again when all are read."""
    read = max(0, progress().get("hints", {}).get(exercise.name, 0))
    n = min(read + 1, len(exercise.hints))
    remember(hints={exercise.name: n})
    return n, exercise.hints[n - 1]

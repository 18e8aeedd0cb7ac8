"""What a lecturer hands out: the students' archive, and a notebook of each exercise.

    python -m exercises export --into=exercises.zip         a copy as `start` makes it
    python -m exercises export --notebooks=notebooks        one .ipynb an exercise

A notebook needs no other file, and no network but for the packages: its first cell holds the
archive.
"""
import base64
import io
import tempfile
import zipfile
from pathlib import Path

from data import records
from exercises import course, cutting, student
from settings import extra, stop

SETUP = '''\
# Unpacks the project beside this notebook; run it first. Most hosts have PyTorch, tiktoken, numpy
# and tqdm; else: pip install torch tiktoken numpy tqdm
import base64, io, os, sys, zipfile

ARCHIVE = """
{archive}
"""
with zipfile.ZipFile(io.BytesIO(base64.b64decode(ARCHIVE))) as files:
    files.extractall("nanoinstructgpt")
os.chdir("nanoinstructgpt")
sys.path.insert(0, os.getcwd())
from exercises.notebook import check, names
globals().update(names("{name}"))  # what the function may use
'''


def archive(names, tests=True):
    """The bytes of a zip with a student's copy in it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "copy"
        student.make(folder, names)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as files:
            for path in sorted(folder.rglob("*")):
                name = path.relative_to(folder).as_posix()
                if (path.is_dir() or name.startswith(".git/")
                        or not tests and name.startswith(("tests/", "docs/"))):
                    continue
                files.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), path.read_bytes(),
                               zipfile.ZIP_DEFLATED)
        return out.getvalue()


def function_cell(exercise):
    """What the student edits: the hole, with a line that says where it comes from."""
    cut = cutting.cut(cutting.reference(exercise.file), exercise.function, exercise.name,
                      exercise.part)
    return f"# {exercise.file}\n" + cutting.text_of(cut, exercise.function)


def notebook(exercise, content):
    """A notebook of one exercise: its page, the archive, the function, the check."""
    v4 = extra("nbformat", "python -m exercises export --notebooks").v4
    page = (student.HERE / f"{exercise.name}.md").read_text("utf-8")
    text = base64.encodebytes(content).decode().strip()
    cells = [v4.new_markdown_cell(page),
             v4.new_code_cell(SETUP.format(archive=text, name=exercise.name)),
             v4.new_code_cell(function_cell(exercise)),
             v4.new_code_cell(f'check("{exercise.name}", {exercise.function})')]
    for n, cell in enumerate(cells):
        cell["id"] = f"cell-{n}"
    cells[1]["metadata"] = {"jupyter": {"source_hidden": True}}
    return v4.new_notebook(cells=cells, metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})


def main(names, flags):
    """The command."""
    chosen = names or list(course.load())
    for name in chosen:
        student.exercise_of(name)
    if not flags.get("into") and not flags.get("notebooks"):
        stop("export --into=FILE.zip, or --notebooks=FOLDER?")
    if flags.get("into"):
        path = Path(flags["into"])
        if path.suffix != ".zip":  # as --into=ppo.py, which it would replace
            stop(f"--into={path}: expected a name that ends in .zip")
        with records.written_whole(path, "wb") as file:
            file.write(archive(chosen))
        print(f"{path}: a copy with {len(chosen)} holes, {path.stat().st_size / 1e6:.1f} MB")
    if flags.get("notebooks"):
        nbformat = extra("nbformat", "python -m exercises export --notebooks")
        folder = Path(flags["notebooks"])
        folder.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            exercise = student.exercise_of(name)
            made = notebook(exercise, archive([name], tests=False))
            nbformat.validate(made)
            records.write_text(folder / f"{name}.ipynb", nbformat.writes(made) + "\n")
        print(f"{folder}: {len(chosen)} notebooks")

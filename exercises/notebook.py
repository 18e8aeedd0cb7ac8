"""For the notebooks of exporting.py: the function of a cell goes into the copy, and is checked."""
import importlib
import inspect
import textwrap

from exercises import ROOT, __main__, cutting, student, worker


def names(name):
    """What the file of an exercise defines and imports, without the function itself."""
    exercise = student.exercise_of(name)
    module = importlib.import_module(worker.module_name(exercise.file))
    return {k: v for k, v in vars(module).items()
            if not k.startswith("__") and k != exercise.function}


def check(name, function):
    """Check the text of a function that a cell defines. Prints what `check` does."""
    exercise = student.exercise_of(name)
    function = getattr(function, "fn", function)  # Triton wraps it
    path, text = ROOT / exercise.file, textwrap.dedent(inspect.getsource(function))
    path.write_text(cutting.replaced(path.read_text("utf-8"), exercise.function, text), "utf-8")
    return __main__.told(exercise)

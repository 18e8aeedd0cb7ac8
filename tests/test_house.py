"""The shape of the house: imports run down, functions and files stay short, nobody reaches into
another's globals. All of it is read from the sources; nothing is imported."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # lowest first: a file imports from its own folder and from lower floors
    ("startup",), ("settings",), ("kernels",), ("data",), ("model",), ("sampler",), ("runtime",),
    ("labels",), ("evals",), ("sft", "reward", "ppo", "evaluate", "chat"), ("figures",),
    ("exercises",)]
UPSTAIRS = "data.toy"  # a folder within a floor: the records know nothing of the town
LONGEST, WIDEST = 60, 100  # lines of a function, characters of a line
SIZES = {"model.py": 230, "sft.py": 235, "reward.py": 220, "ppo.py": 360}  # lines


def sources(folder=ROOT, tests=False):
    """{path from the root: source} of our Python files; those of the tests, or all the others."""
    paths = folder.glob("tests/**/*.py") if tests else [
        p for p in [*folder.glob("*.py"), *folder.glob("*/**/*.py")]
        if p.relative_to(folder).parts[0] not in ("tests", "out", "runs")
        and not p.relative_to(folder).parts[0].startswith(".")]
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(paths)}


def module_of(path):
    """data/toy/world.py -> data.toy.world; kernels/__init__.py -> kernels."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(path, source, modules):
    """[(line, module)] of all imports of our own modules, those in functions among them.

    `from data import records` means the file data/records.py where there is one, else the package.
    """
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module_of(path).split(".")[: None if path.endswith("__init__.py") else -1]
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [full if (full := f"{base}.{alias.name}") in modules else base
                     for alias in node.names]
        elif (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
              and getattr(node.func, "attr", getattr(node.func, "id", ""))
              in ("import_module", "__import__")):
            names = [str(node.args[0].value)]
        else:
            continue
        out += [(node.lineno, name) for name in names if name in modules]
    return out


def floor_of(module):
    top = module.partition(".")[0]
    return next((i for i, floor in enumerate(FLOORS) if top in floor), None)


def wrong_arrows(files):
    """What is wrong with the imports of {path: source}, one line for each arrow or circle."""
    modules = {module_of(path): path for path in files}
    wrong, below = [], {}
    for path, source in files.items():
        me, mine = module_of(path), floor_of(module_of(path))
        below[me] = []
        if mine is None:
            wrong.append(f"{path} is on no floor: add it to FLOORS")
            continue
        for line, other in imports(path, source, modules):
            below[me].append(other)
            theirs, arrow = floor_of(other), f"{path}:{line} imports {other}"
            same = me.partition(".")[0] == other.partition(".")[0]
            if theirs is not None and (theirs > mine or theirs == mine and not same):
                wrong.append(f"{arrow}, which is not below it")
            if same and other.startswith(UPSTAIRS) and not me.startswith(UPSTAIRS):
                wrong.append(f"{arrow}, which is not below it")
    return wrong + [f"a circle: {' -> '.join(circle)}" for circle in circles(below)]


def circles(below):
    """The circles of {module: [module]}, each once: a search in depth that meets its own path."""
    found, done = [], set()

    def visit(module, path):
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for other in below.get(module, ()):
                visit(other, [*path, module])
            done.add(module)

    for module in below:
        visit(module, [])
    return found


def functions(source):
    """[(line, name, lines of it)] of all functions, nested ones among them."""
    return [(n.lineno, n.name, n.end_lineno - n.lineno + 1) for n in ast.walk(ast.parse(source))
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


CHANGES = ("append", "extend", "insert", "update", "setdefault", "pop", "popitem", "clear",
           "remove", "add", "discard")


def reaches(path, source, modules):
    """[line] on which a file changes what belongs to another module of ours: an attribute of a
    module that it imports, or a constant (in capitals) that it imports by name."""
    theirs, constants, lines = set(), set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            theirs |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names
                       if alias.name in modules}
        if isinstance(node, ast.ImportFrom) and (node.module or "") in modules:
            for alias in node.names:
                name = alias.asname or alias.name
                if f"{node.module}.{alias.name}" in modules:
                    theirs.add(name)
                elif alias.name.isupper():
                    constants.add(name)
    for node in ast.walk(ast.parse(source)):
        targets, called = [], False
        if isinstance(node, (ast.Assign, ast.Delete)):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
              and node.func.attr in CHANGES):
            targets, called = [node.func.value], True
        elif (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setattr", "delattr")
              and node.args):
            targets, called = node.args[:1], True
        for target in [x for t in targets for x in (t.elts if isinstance(t, ast.Tuple) else [t])]:
            root, steps = target, 0
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root, steps = root.value, steps + 1
            name = getattr(root, "id", "")
            if name in constants and (steps or called) or name in theirs and (steps or called):
                lines.append(node.lineno)
    return lines


# ----------------------------------------------------------------------------------- the real house

def test_imports_run_down():
    wrong = wrong_arrows(sources())
    assert not wrong, "\n".join(wrong)


def test_every_file_is_read():
    """All packages of pyproject.toml are among the files that are looked at."""
    paths = sources()
    for path in ("settings.py", "kernels/gpu.py", "data/toy/town.py", "runtime/world.py",
                 "labels/sample.py", "evals/town.py", "ppo.py", "chat.py"):
        assert path in paths


def test_functions_are_short():
    files = {**sources(), **sources(tests=True)}
    long = [f"{path}:{line} {name} has {n} lines, {LONGEST} at most" for path, source in
            files.items() for line, name, n in functions(source) if n > LONGEST]
    assert not long, "\n".join(long)


def test_lines_are_short():
    files = {**sources(), **sources(tests=True)}
    wide = [f"{path}:{i} has {len(line)} characters" for path, source in files.items()
            for i, line in enumerate(source.splitlines(), 1) if len(line) > WIDEST]
    assert not wide, "\n".join(wide)


@pytest.mark.parametrize("name", SIZES)
def test_the_lesson_stays_short(name):
    lines = len((ROOT / name).read_text().splitlines())
    assert lines <= SIZES[name], f"{name} has {lines} lines, {SIZES[name]} at most"


def unused_imports(source):
    """The lines of imports, of any depth, whose names the file never uses."""
    tree = ast.parse(source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}  # __all__
    return [node.lineno for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names
            if (alias.asname or alias.name.partition(".")[0]) not in used]


def test_what_is_imported_is_used():
    wrong = [f"{path}:{line}" for path, source in sources().items()
             for line in unused_imports(source)
             if "noqa" not in source.splitlines()[line - 1]]
    assert not wrong, "\n".join(wrong)


def test_a_source_needs_no_noqa():
    """An import at the top that nobody uses is to go, not to be excused."""
    excused = [f"{path}:{i}" for path, source in sources().items()
               for i, line in enumerate(source.splitlines(), 1)
               if "noqa" in line and not line.startswith(" ")]
    assert not excused, "\n".join(excused)


def test_no_module_changes_anothers_globals():
    files = sources()
    modules = {module_of(path) for path in files}
    wrong = [f"{path}:{line} changes what belongs to another module" for path, source in
             files.items() for line in reaches(path, source, modules)]
    assert not wrong, "\n".join(wrong)


# ----------------------------------------------------------------------------- the checks can fail

SOUND = {"settings.py": "import os", "kernels/__init__.py": "from kernels import products",
         "kernels/products.py": "from settings import stop", "data/__init__.py": "",
         "data/records.py": "import settings", "data/toy/__init__.py": "",
         "data/toy/town.py": "from data import records", "model.py": "import kernels",
         "sampler.py": "from model import GPT", "sft.py": "from sampler import generate"}


@pytest.mark.parametrize("path, source, complaint", [
    ("sampler.py", "from model import GPT", None),
    ("model.py", "from sampler import generate", "model.py:1 imports sampler, which is not below"),
    ("settings.py", "\nimport model", "settings.py:2 imports model, which is not below it"),
    ("data/records.py", "def f():\n  from model import GPT", "data/records.py:2 imports model"),
    ("kernels/products.py", "import data.records", "kernels/products.py:1 imports data.records"),
    ("kernels/products.py", "importlib.import_module('data.records')", "imports data.records"),
    ("data/records.py", "from .toy.town import Town", "data/records.py:1 imports data.toy.town"),
    ("kernels/products.py", "from . import x", "a circle: kernels -> kernels.products -> kernels"),
    ("data/records.py", "from data.toy.town import Town", "imports data.toy.town, which is not"),
    ("reward.py", "import sft", "reward.py:1 imports sft, which is not below it"),
    ("kernels/products.py", "import kernels", "a circle: kernels -> kernels.products -> kernels"),
    ("kernels/products.py", "from kernels import stop", "a circle: kernels -> kernels.products"),
    ("helpers/x.py", "", "helpers/x.py is on no floor"),
])
def test_a_wrong_arrow_is_found(path, source, complaint):
    wrong = wrong_arrows({**SOUND, path: source})
    if complaint is None:
        assert wrong == []
    else:
        assert len(wrong) in (1, 2) and any(complaint in line for line in wrong), wrong


def test_a_circle_within_a_folder_is_found():
    files = {**SOUND, "data/a.py": "from data.b import x", "data/b.py": "from data import c",
             "data/c.py": "def f():\n    import data.a"}
    assert wrong_arrows(files) == ["a circle: data.a -> data.b -> data.c -> data.a"]


@pytest.mark.parametrize("source, lines", [
    ("import os\nos.getcwd()", []), ("import os", [1]), ("import os.path", [1]),
    ("import os.path\nos.path", []), ("\nfrom os import path as p, sep\np", [2]),
    ("def f():\n    import os", [2]), ("from os import sep\n__all__ = ['sep']", []),
    ("import os\nx.os = 1", [1])])
def test_an_unused_import_is_found(source, lines):
    assert unused_imports(source) == lines


def test_a_long_function_is_found():
    source = "@decorator\ndef f():\n" + "    x\n" * 59 + "    def g(): pass\n"
    assert functions(source) == [(2, "f", 61), (62, "g", 1)]


@pytest.mark.parametrize("source, lines", [
    ("import settings\nsettings.x = 1", [2]), ("import settings\nsettings.x[0] += 1", [2]),
    ("from data import records\nrecords.N, y = 1, 2", [2]),
    ("from data.records import FIELDS\nFIELDS['a'] = 1", [2]),
    ("from data.records import FIELDS\nFIELDS.update(a=1)", [2]),
    ("from data import records\nrecords.FIELDS.clear()", [2]),
    ("from data import records\nsetattr(records, 'N', 1)", [2]),
    ("from data import records\ndel records.N", [2]),
    ("import sys\nsys.excepthook = f", []), ("import settings\ny = settings.x", []),
    ("from data.records import read\nread(1)", []), ("x = {}\nx['a'] = 1", []),
])
def test_a_reach_into_another_module_is_found(source, lines):
    modules = {module_of(path) for path in SOUND}
    assert reaches("ppo.py", source, modules) == lines

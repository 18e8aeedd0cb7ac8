"""README.md and docs/ say what is true of this folder: links, files, functions, commands, flags.

A command in a page is taken apart, and its script is imported: each --flag must be a field of the
script's Settings, with a value of the field's type, and each preset must exist. Nothing is run.
Commands stand in fences without a language, or in ```bash; what is no command is ```text.
"""
import ast
import dataclasses
import functools
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

import draw_demo
from runtime import plan

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = ("sft", "reward", "ppo", "evaluate", "chat", "data.public", "data.shards",
           "data.toy.world", "evals.report", "evals.samples", "labels.sample", "labels.simulated",
           "labels.page", "labels.mine", "figures.__main__", "figures.measure", "figures.rankings",
           "figures.instructions")
SHELL = {"source", "cat", "trap", "wait", "cd", "cp"}  # what else a command may begin with
RUNNERS = ("python", "make", "torchrun")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


# ------------------------------------------------------------------------------- a page in parts

def fences(text):
    """[(language, what is in it)] of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)


def prose(text):
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


def code(text):
    """What stands in backticks in a page's prose."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands(text):
    """The command lines of a page: those of its fences, and those in backticks."""
    blocks = [block for language, block in fences(text) if language in ("", "bash")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = [c for c in code(text) if re.match(rf"(\w+=\S+ )*({'|'.join(RUNNERS)}) ", c)]
    return [line for line in lines + inline if line.split("#")[0].strip()]


def slugs(text):
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


# ---------------------------------------------------------------------------- what a command says

def script_of(words):
    """(path of the script, name of its module, the rest) of what follows `python`."""
    name = words[1] if words[0] == "-m" else words[0].removesuffix(".py").replace("/", ".")
    path = ROOT / (name.replace(".", "/") + ".py")
    main = path.with_suffix("") / "__main__.py"
    return main if main.exists() else path, name, words[1 + (words[0] == "-m"):]


def is_typed(value, default):
    """Whether a flag's text can be a value of its default's type."""
    if isinstance(default, bool):
        return value.lower() in ("true", "false", "1", "0")
    try:
        type(default)(value)
    except ValueError:
        return False
    return True


def flag_problems(module, flags):
    """What is wrong with a script's --flags, as sentences."""
    fields = {f.name: f.default for f in dataclasses.fields(module.Settings)}
    for flag in flags:
        name, equals, value = flag.removeprefix("--").partition("=")
        if name == "preset":
            if value not in getattr(module, "PRESETS", {}):
                yield f"{module.__name__} has no preset {value!r}"
        elif name == "plan":
            if module.__name__ not in plan.WORK or value not in ("", *plan.MACHINES):
                yield f"{module.__name__} does not know {flag}"
        elif name not in fields:
            yield f"{module.__name__} has no setting {name!r}"
        elif not is_typed(value if equals else "true", fields[name]):
            yield f"{flag}: no {type(fields[name]).__name__}"


def python_problems(words):
    """What is wrong with `python ...`."""
    path, name, rest = script_of(words)
    if not path.exists():
        return [f"there is no {path.relative_to(ROOT)}"]
    flags, source = [w for w in rest if w.startswith("--")], path.read_text(encoding="utf-8")
    if "\nclass Settings" not in source:  # its flags are argparse's
        names = [flag.partition("=")[0] for flag in flags]
        return [f"{path.name} has no {name}" for name in names if f'"{name}"' not in source]
    name += ".__main__" * (path.name == "__main__.py")
    return list(flag_problems(importlib.import_module(name), flags)) if flags else []


@functools.cache
def torchruns_flags():
    return {name.lstrip("-").replace("-", "_") for name in
            get_args_parser()._option_string_actions}


def torchrun_problems(words):
    """What is wrong with `torchrun ...`: its own flags, and the script's."""
    n = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    names = [word.partition("=")[0].lstrip("-").replace("-", "_") for word in words[:n]]
    wrong = [f"torchrun has no --{name}" for name in names if name not in torchruns_flags()]
    return wrong + (python_problems(words[n:]) if words[n:] else [])


@functools.cache
def makefile():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w-]+):", text, re.M)), set(re.findall(r"\$\((\w+)\)", text))


def make_problems(words):
    """What is wrong with `make ...`: targets, and variables that the Makefile uses."""
    targets, variables = makefile()
    return [f"make knows no {w}" for w in words
            if w.partition("=")[0] not in (variables if "=" in w else targets)]


def pip_problems(words):
    """What is wrong with `pip install ...`: packages are pinned as in pyproject.toml."""
    pins = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return [f"pyproject.toml has no {word}" for word in words[1:] if f'"{word}' not in pins]


def problems(line):
    """What is wrong with a command line, as sentences."""
    out = []
    for part in re.split(r" [|&] ", line):
        try:
            words = shlex.split(part, comments=True)
        except ValueError as error:
            return [str(error)]
        while words and re.match(r"\w+=", words[0]):  # settings of the environment
            words.pop(0)
        if not words or words[0] in SHELL:
            continue
        kind = dict(python=python_problems, torchrun=torchrun_problems, make=make_problems,
                    pip=pip_problems)
        check = kind.get(words[0], lambda words: ["not a known command"])
        out += check(words[1:]) if words[1:] else [f"{words[0]} what?"]
    return out


# -------------------------------------------------------------------------------------- the pages

@each_page
def test_commands_are_known(page):
    wrong = {line: found for line in commands(page.read_text(encoding="utf-8"))
             if (found := problems(line))}
    assert not wrong, json.dumps(wrong, indent=1)


@each_page
def test_no_command_hides_in_another_block(page):
    for language, block in fences(page.read_text(encoding="utf-8")):
        assert language in ("", "bash", "text", "json", "python")
        if language == "text":
            assert not re.search(rf"^({'|'.join(RUNNERS)}) ", block, re.M), block
        if language == "python":
            ast.parse(block)
        if language == "json":
            assert all(isinstance(json.loads(line), dict) for line in block.splitlines())


@each_page
def test_flags_named_in_the_text_are_settings(page):
    """A flag in backticks belongs to one of the scripts, or to torchrun."""
    named = {flag.replace("-", "_") for c in code(page.read_text(encoding="utf-8"))
             for flag in re.findall(r"^--([\w-]+)", c)}
    known = torchruns_flags() | {"help", "preset", "plan", "shutdown_timeout"}
    known |= set(re.findall(r'"--(\w+)"', (ROOT / "exercises/__main__.py").read_text()))
    for script in SCRIPTS if named - known else ():
        known |= {f.name for f in dataclasses.fields(importlib.import_module(script).Settings)}
    assert not named - known


@each_page
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        to = page.parent / name if name else page
        assert to.is_file(), f"{page.name}: {target}"
        if anchor:
            assert anchor in slugs(to.read_text(encoding="utf-8")), f"{page.name}: {target}"


@each_page
def test_files_and_functions_named_in_the_text_exist(page):
    """`file.py` and `folder/file.py`, and the function or class of `file.py: name`."""
    text = page.read_text(encoding="utf-8").partition("\n## The map\n")[0]  # it has its own test
    for said in code(text):
        if found := re.fullmatch(r"([\w/]+\.py)(?:: (\w+))?", said):
            path, name = ROOT / found[1], found[2]
            assert path.is_file(), said
            names = {n.name for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                     if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
            assert name is None or name in names, said


@each_page
def test_present_tense(page):
    """No diary: no commit, and at most one date under a heading (one in the whole README)."""
    text = page.read_text(encoding="utf-8")
    hashes = re.findall(r"(?<![\w-])(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{7,40}\b", text)
    assert not hashes and not re.search(r"\bcommits? [0-9a-f]", text)
    parts = [text] if page.name == "README.md" else re.split(r"^#+ ", text, flags=re.M)
    for part in parts:
        assert len(set(re.findall(r"\b20\d\d-\d\d-\d\d\b", part))) <= 1, part[:60]


def test_sizes():
    assert (ROOT / "README.md").stat().st_size <= 12 * 1024
    for page in PAGES[1:]:
        assert page.stat().st_size <= 14 * 1024, page.name
    for picture in (ROOT / "docs").glob("demo.*"):
        assert picture.stat().st_size <= 200_000


def test_every_picture_of_the_figures_is_there_and_shown():
    shown = {(page.parent / path).resolve() for page in PAGES
             for path in re.findall(r'<img src="([^"]+)"', page.read_text(encoding="utf-8"))}
    there = set((ROOT / "docs" / "figures").iterdir())
    assert there and there == {path for path in shown if path.parent.name == "figures"}


def test_every_page_is_linked_from_the_readme():
    text = PAGES[0].read_text(encoding="utf-8")
    assert PAGES[1:] and not [p.name for p in PAGES[1:] if f"](docs/{p.name})" not in text]


# ------------------------------------------------------------------------- the README's results

def test_the_picture_of_the_demo_shows_the_numbers_of_its_page():
    page, picture = ((ROOT / "docs" / name).read_text(encoding="utf-8")
                     for name in ("results.md", "demo.svg"))
    assert picture == draw_demo.drawn(page), "run: python tests/draw_demo.py"
    dots = [float(x) for x in re.findall(r'<circle class="dot [a-z]+" cx="([\d.]+)"', picture)][1:]
    rates = [float(x) for x in re.findall(r"^\| [a-z-]+ vs [a-z-]+ \| ([\d.]+)%", page, re.M)]
    (half, full) = (float(re.search(rf'x="([\d.]+)"[^>]+>{n} %', picture)[1]) for n in (50, 100))
    assert len(rates) == 6 and dots == pytest.approx(
        [half + (full - half) * (rate - 50) / 50 for rate in rates], abs=0.11)


def test_the_readme_has_the_numbers_of_the_results_page():
    readme, page = (path.read_text(encoding="utf-8") for path in (PAGES[0],
                                                                 ROOT / "docs" / "results.md"))
    rows = lambda text: {name: rest for name, rest in re.findall(r"^\| ([a-z()\s]+) \|(.+)$", text,
                                                                 re.M)}
    mine, whole = rows(readme), rows(page)
    both = mine.keys() & whole.keys()
    assert len(both) >= 8 and {name: mine[name] for name in both} == {
        name: whole[name] for name in both}


# -------------------------------------------------------------------------------- the README's map

def map_rows():
    """[(names in the first column, names in the second)] of the README's map."""
    section = PAGES[0].read_text(encoding="utf-8").split("\n## The map\n")[1]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return [tuple(re.findall(r"`([^`]+)`", cell) for cell in row) for row in rows]


def test_the_map_names_what_is_there():
    missing = []
    for places, inside in map_rows():
        missing += [p for p in places if not (ROOT / p).exists()]
        missing += [places[0] + name for name in inside if re.search(r"\.py$|/$", name)
                    and not (ROOT / places[0] / name).exists()]
    assert map_rows() and not missing


def test_the_map_is_whole():
    """Every file of Python at the top and every folder that holds some is on it."""
    places = {p for row in map_rows() for p in row[0]}
    here = {p.name for p in ROOT.glob("*.py")} | {
        f"{p.parent.name}/" for p in ROOT.glob("*/*.py") if not p.parent.name.startswith(".")
        and p.parent.name not in ("out", "runs", "build")}
    assert not here - places


def test_metrics_of_the_symptoms_are_logged():
    section = PAGES[0].read_text(encoding="utf-8").split("\n## When something")[1].split("\n## ")[0]
    named = {c for c in code(section) if re.fullmatch(r"[a-z_]+(/[a-z_]+)?", c)}
    source = "".join((ROOT / name).read_text(encoding="utf-8")
                     for name in ("ppo.py", "runtime/episodes.py"))
    assert len(named) > 5 and not {n for n in named if not re.search(rf"\b{n}\b", source)}


# -------------------------------------------------------------- the checks above can find something

@pytest.mark.parametrize("line, expected", [
    ("python sft.py --lrr=1", "no setting 'lrr'"),
    ("python sft.py --epochs=many", "no int"),
    ("python sft.py --preset=huge", "no preset 'huge'"),
    ("python ppo.py --plan=abacus", "does not know --plan=abacus"),
    ("python evaluate.py --plan", "does not know --plan"),
    ("python nothing.py", "there is no nothing.py"),
    ("python -m data.nothing --name=x", "there is no data/nothing.py"),
    ("python tests/bench/gpu.py --huge", "has no --huge"),
    ("OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 ppo.py --sharded", "no setting 'sharded'"),
    ("torchrun --processes=2 ppo.py", "torchrun has no --processes"),
    ("cat x | python ppo.py --betta=1", "no setting 'betta'"),
    ("make nothing", "make knows no nothing"),
    ("make demo WHERE=x", "make knows no WHERE"),
    ("pip install safetensors==0.1", "has no safetensors==0.1"),
    ("rm -r out", "not a known command"),
])
def test_a_wrong_command_is_found(line, expected):
    assert expected in "; ".join(problems(line))


@pytest.mark.parametrize("line", [
    "python sft.py", "python sft.py --preset=base --plan=cpu --lr=1e-3   # why", "make demo IN=x",
    "torchrun --nproc-per-node=2 --max-restarts=3 ppo.py --shard --resume & torchrun=$!",
    "python tests/bench/gpu.py --device=cpu --tiny"])
def test_a_right_command_is_not(line):
    assert not problems(line)


def test_a_page_is_taken_apart():
    text = ("# A `title` (here)\n```\nmake demo  # all\npython sft.py \\\n  --lr=1\n\n# no\n```\n"
            "Say `python ppo.py`, or `--lr`.\n```text\n# no heading\n```\n## On: two--parts\n")
    assert [shlex.split(c, comments=True) for c in commands(text)] == [
        ["make", "demo"], ["python", "sft.py", "--lr=1"], ["python", "ppo.py"]]
    assert slugs(text) == ["a-title-here", "on-two--parts"]

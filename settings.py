"""Settings from the command line. Import it before torch.

    parse        one dataclass a script, overridden by presets and --name=value
    Run          the settings that the three scripts of the steps share
    stop         ends a program with one clear line
    extra        a module of an optional package, or the line that says how to install it
"""
import dataclasses
import difflib
import importlib
import inspect
import os
import re
import sys
import textwrap
from dataclasses import dataclass

import startup

THREADS = startup.begin()  # now, before torch is loaded


def stop(message):
    """End the program with one clear line for its user."""
    raise SystemExit(f"error: {message}")


# Packages that only some commands need, as in pyproject.toml: {extra: what pip is to install}.
EXTRAS = {"classroom": ["nbformat==5.11.1"], "data": ["datasets==5.2.0"],
          "evals": ["sacrebleu==2.6.0", "rouge-score==0.1.2", "alt-profanity-check==1.7.2"],
          "figures": ["matplotlib==3.10.8"],
          "hf": ["huggingface_hub==2.4.0", "safetensors==0.8.0"],
          "label": ["flask==3.1.3", "waitress==3.0.2"]}


def extra(module, what):
    """Import and return a module of an optional package; stops with the command that installs it.

    what: the thing that needs the package, for the message, such as "make figures".
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0] == package
        why = "" if missing else f", and its import fails ({str(error).splitlines()[0]})"
        pins = next(pins for pins in EXTRAS.values()
                    if any(package in p.replace("-", "_") for p in pins))
        stop(f"{what} needs {package}{why}: pip install {' '.join(pins)}")


# ------------------------------------------------------------------------- what scripts share

@dataclass
class Computing:
    # the machine
    device: str = "auto"  # cpu, cuda or auto
    dtype: str = "auto"  # of products: float32, bf16, or auto: bf16 if faster (docs/memory.md)


@dataclass
class Run(Computing):
    # the run
    too_long: str = "drop"  # a prompt that does not fit: drop, keep_end or keep_beginning
    micro_batch_tokens: int = 0  # tokens a forward pass, pads counted; 0: --micro_batch rows
    clip: float = 1.0  # bound on the gradient's norm, 0 is none; not in the paper
    explode: float = 1e5  # a step with a larger gradient norm, or with NaN, is skipped
    max_skips: int = 5  # skipped steps in a row after which the run stops
    save_every: int = 100  # steps between the states that --resume goes on from
    resume: bool = False  # continue an interrupted run of the same settings
    timeout: int = 600  # seconds that a process waits for another before the job stops
    activation_checkpointing: bool = False  # less memory: backward recomputes each block
    shard: bool = False  # each process keeps a part of the weights (FSDP2), not a copy (DDP)

    RANKS = True  # the ranks that torchrun starts share the work


# The allowed values, for all scripts: a name means the same in each. A script with a narrower bound
# has its own BOUNDS.
BOUNDS = {
    "[1, inf)": "batch minibatch micro_batch iterations inner_epochs max_new_tokens ptx_rows"
                " k_min k_max save_every max_skips timeout n_layer n_head n_embd votes"
                " num documents vocab demonstrations heldout cap longest prefix chunk workers"
                " max_bytes max_line document shard_tokens",
    "[2, inf)": "block_size",
    "[0, inf)": "epochs micro_batch_tokens warmup weight_decay clip lr value_lr ptx beta"
                " temperature show prompts",
    "(0, inf)": "clip_ratio",
    "(0, inf]": "clip_value explode",  # inf: none
    "[0, 1]": "ema floor pretrain_mix gae_lambda discount agreement agreement_heldout share",
    "[0, 1)": "dropout split_valid split_test",
    "[-1e6, 1e6]": "unfinished",  # the scores are float32
    "[0, 9223372036854775808)": "seed",  # 63 bits
}
CHOICES = {"device": "auto cpu cuda", "dtype": "auto float32 bf16", "split": "train valid test",
           "too_long": "drop keep_end keep_beginning", "optimizer": "adamw muon"}
# Folders and files. "" would be the current folder, or in f"{data}/x" the root of all files.
PLACES = "out data init reward rm demo policy reference labels tokenizer prompts_file runs"


def interval_of(settings, field):
    """The allowed interval of a numeric field, as text; "" for other fields."""
    if isinstance(field.default, (bool, str)):
        return ""
    table = {n: interval for interval, names in BOUNDS.items() for n in names.split()}
    return {**table, **getattr(settings, "BOUNDS", {})}.get(field.name, "")


def within(value, interval):
    """Whether a number lies in an interval like "[0, 1)"; NaN lies in none."""
    low, high = map(float, interval[1:-1].split(","))
    return ((low <= value if interval[0] == "[" else low < value)
            and (value <= high if interval[-1] == "]" else value < high))


def check(s):
    """Stop if a value is out of its bounds, before anything is read or computed. A settings class
    may have a method `problem` that checks several values together: it returns a line or None.
    """
    for field in dataclasses.fields(s):
        name, value = field.name, getattr(s, field.name)
        choices = {**CHOICES, **getattr(s, "CHOICES", {})}.get(name, "")
        if choices and value not in choices.split():
            stop(f"--{name}={value}: expected one of {', '.join(choices.split())}")
        if name in PLACES.split() and not value and field.default:  # --out=$FOLDER without one
            what = "the folder or file to write" if name == "out" else f"one, like {field.default}"
            stop(f"--{name}= is empty: name {what}")
        if name in PLACES.split() and (value == "~" or value.startswith("~/")):
            stop(f"--{name}={value}: your shell has left the ~, which would be a folder of that "
                 "name: write $HOME")
        interval = interval_of(s, field)
        if interval and not within(value, interval):
            stop(f"--{name}={value}: expected a number {in_words(interval, False)}".rstrip())
    problem = s.problem() if hasattr(s, "problem") else None
    if problem:
        stop(problem)
    return s


# ------------------------------------------------------------------------- the command line

def parse(settings, presets=None, argv=None, plan=None):
    """Settings from the command line: `--name=value` for any field of the dataclass `settings`.

    `--preset=NAME` first applies presets[NAME]. Values take the type of the field's default. An
    unknown flag stops with the closest name, a value out of its bounds with the bounds. --help
    prints every field. With --plan, plan(preset, settings, machine) prints what the run would cost
    (runtime/plan.py).
    """
    argv, presets = sys.argv[1:] if argv is None else argv, presets or {}
    if not getattr(settings, "RANKS", False):
        one_process()
    if {"-h", "--help"} & set(argv):
        print(usage(settings, presets, plan is not None))
        raise SystemExit(0)
    fields = {f.name: f for f in dataclasses.fields(settings)}
    flags, given = [*fields, "preset", *["plan"] * bool(plan)], {}
    for arg in argv:
        name, equals, value = arg.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not arg.startswith("--") or name not in flags:
            close = difflib.get_close_matches(name, flags, 1, 0.4)
            stop(f"unknown argument {arg!r}" + (f": did you mean --{close[0]}?" if close else "")
                 + "; --help lists them all")
        if not equals and not is_switch(fields.get(name), name):
            stop(f"{arg} needs a value: {arg}=..., without a space")
        given[name] = value if equals else "true"
    preset, machine = given.pop("preset", None), given.pop("plan", None)
    if preset is not None and preset not in presets:
        stop(f"no preset {preset!r}; there are {', '.join(presets) or 'none'}")
    values = dict(presets.get(preset, {}))
    values.update({name: convert(name, value, fields[name].default)
                   for name, value in given.items()})
    s = check(settings(**values))
    if machine:
        plan(preset, s, machine)
        raise SystemExit(0)
    return s


def is_switch(field, name):
    """Whether a flag may stand without a value."""
    return name == "plan" if field is None else isinstance(field.default, bool)


def one_process():
    """Stop if torchrun has started several of a program that does not divide its work: each would
    do all of it, and write the same files."""
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        stop("this program is a single process: start it without torchrun")


def convert(name, text, default):
    """The flag's text as a value of its default's type; stops if it is not one."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        stop(f"--{name}={text}: expected {type(default).__name__}, like {default!r}")


WIDTHS = 32, 8  # columns of --help: a flag, its bounds; then the text


def usage(settings, presets, plan=False):
    """The help text: each field in its group, its default, the comment that follows it in the
    source, and its bounds."""
    lines = [inspect.cleandoc(settings.__doc__ or "")]
    for title, fields in groups_of(settings):
        lines += ["", title]
        for field, comment in fields:
            lines += described(f"--{field.name}={field.default}",
                               in_words(interval_of(settings, field)), comment)
    if plan:
        lines += described("--plan[=MACHINE]", "", "print what this run would cost, and stop")
    if presets:
        lines += ["", "--preset=NAME sets several at once"]
    for name, values in presets.items():
        lines += described(name, "", ", ".join(f"{k}={v}" for k, v in values.items()))
    return "\n".join(lines)


def groups_of(settings):
    """[(title, [(field, comment)])]: a comment on a line of its own is the title of the fields that
    follow. A script's own fields come before the shared ones."""
    fields, groups = {f.name: f for f in dataclasses.fields(settings)}, {}
    for cls in filter(dataclasses.is_dataclass, settings.__mro__):
        title = "settings"
        for heading, name, comment in re.findall(r"^    (?:# (.+)|(\w+): [^#\n]*(?:#\s*(.*))?)$",
                                                 inspect.getsource(cls), re.M):
            title = heading or title
            if name in fields:
                groups.setdefault(title, []).append((fields.pop(name), comment))
    return list(groups.items())


def in_words(interval, brief=True):
    """An interval in words: "[1, inf)" is ">= 1". brief: short enough for --help, without an upper
    end above 1."""
    low, high = interval[1:-1].split(", ") if interval else ("-inf", "inf")
    if brief and float(high) <= 1:
        return f"{'>' * (interval[0] == '(')}{low} to {'<' * (interval[-1] == ')')}{high}"
    begin = "" if low == "-inf" else f"{'>=' if interval[0] == '[' else '>'} {low}"
    end = "" if high == "inf" else f" and {'<=' if interval[-1] == ']' else '<'} {high}"
    return begin if brief else begin + end


def described(flag, bounds, words):
    """A flag, its bounds and its description, in columns, 100 characters wide."""
    words = re.sub(",(?=[^ ])", ",\0 ", words)  # a long list may go on in the next row
    rows = textwrap.wrap(words, 100 - sum(WIDTHS), break_on_hyphens=False)
    first, *rows = [row.replace("\0 ", "").rstrip("\0") for row in rows] or [""]
    flag, gap = f"  {flag}", " " * (WIDTHS[0] + WIDTHS[1])
    head = [] if len(flag) < WIDTHS[0] else [flag]
    first = f"{'' if head else flag:{WIDTHS[0]}}{bounds:{WIDTHS[1]}}{first}".rstrip()
    return [*head, first, *(gap + row for row in rows)]

"""Settings from the command line: what each script takes, what it refuses, and how it says so."""
import dataclasses
import importlib
import inspect
import io
import math
import re
import runpy
import sys
import tokenize

import pytest
import torch

import settings
from data.batches import order
from demo import python
from helpers import Example
from kernels.noise import dropout, first_row, uniform
from runtime.world import World
from settings import parse

SCRIPTS = ("sft", "reward", "ppo", "evaluate", "chat", "labels.sample", "labels.simulated",
           "data.toy.world", "data.public", "data.shards", "figures.__main__", "figures.measure",
           "figures.rankings", "figures.instructions", "evals.report")


def of(script):
    """(Settings, PRESETS) of a script."""
    module = importlib.import_module(script)
    return module.Settings, getattr(module, "PRESETS", {})


def taken(script, *flags):
    """The settings that a script reads from these flags; nothing is loaded for it."""
    return parse(*of(script), argv=list(flags))


def refused(script, *flags):
    """The line with which a script refuses its flags."""
    with pytest.raises(SystemExit) as stop:
        taken(script, *flags)
    message = stop.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


# ------------------------------------------------------------------------------- words into values

def test_settings_from_the_command_line():
    """Values have the type of the default; flags win over the preset, in any order."""
    assert parse(Example, argv=[]) == Example()
    assert parse(Example, argv=["--steps=7", "--rate=2", "--on", "--name=a=b"]) == Example(
        7, 2.0, "a=b", True)
    assert parse(Example, {"big": dict(steps=9, rate=1.0)}, ["--rate=0.1", "--preset=big"]) == (
        Example(9, 0.1))
    assert parse(Example, argv=["--on=False"]).on is False


@pytest.mark.parametrize("flag, complaint", [
    ("--steps=many", "--steps=many: expected int, like 3"), ("--steps=1.5", "expected int"),
    ("--on=perhaps", "expected bool"), ("--preset=small", "no preset 'small'; there are big"),
    ("--name", "--name needs a value: --name=..., without a space"),
    ("--steps", "--steps needs a value"), ("--preset", "--preset needs a value"),
    ("--zzzzzzzz=1", "unknown argument '--zzzzzzzz=1'; --help lists them all"),
])
def test_a_wrong_value_says_what_was_expected(flag, complaint):
    with pytest.raises(SystemExit) as stop:
        parse(Example, {"big": {}}, [flag])
    assert complaint in str(stop.value.code)


@pytest.mark.parametrize("script", ["sft", "reward", "ppo", "labels.sample", "labels.simulated",
                                    "evaluate", "chat", "data.public", "data.shards"])
def test_torchrun_starts_only_programs_that_share_their_work(script, monkeypatch):
    """Of the others each rank would do all of it, and write the same files."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = script in ("sft", "reward", "ppo", "labels.sample", "evaluate")
    message = refused(script, "--no_such_flag=1")
    assert ("unknown argument" if shares else "start it without torchrun") in message


def test_of_the_evaluations_only_the_public_suite_is_shared(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--suite=toy"])
    with pytest.raises(SystemExit, match="start it without torchrun"):
        importlib.import_module("evaluate").main()


@pytest.mark.parametrize("script, flag, closest", [
    ("sft", "--dropuot=0.1", "--dropout"), ("sft", "--max-new-token=3", "--max_new_tokens"),
    ("labels.sample", "--temprature=1", "--temperature"),
    ("reward", "--microbatch=3", "--micro_batch"),
    ("ppo", "--klbeta=3", "--beta"), ("ppo", "--prest=ppo", "--preset"),
    ("evaluate", "--vote=3", "--votes"), ("labels.simulated", "--agree=1", "--agreement"),
    ("ppo", "iterations=3", "--iterations"),
])
def test_an_unknown_flag_names_the_closest(script, flag, closest):
    assert f"unknown argument {flag!r}: did you mean {closest}?" in refused(script, flag)


# ------------------------------------------------------------------------------------------ bounds

def numbers():
    """[(script, field)] of all settings that are numbers."""
    return [(script, field) for script in SCRIPTS for field in dataclasses.fields(of(script)[0])
            if type(field.default) in (int, float)]


each_number = pytest.mark.parametrize("script, field", [
    pytest.param(script, field, id=f"{script} {field.name}") for script, field in numbers()])


def ends(script, field):
    """(low, is it allowed, high, is it allowed) of a field's interval."""
    interval = settings.interval_of(of(script)[0], field)
    left, low, high, right = re.fullmatch(r"([\[(])(.+), (.+)([\])])", interval).groups()
    return float(low), left == "[", float(high), right == "]"


def beside(field, end, direction):
    """The next number of the field's type in a direction; end itself is on the other side."""
    if isinstance(field.default, int):
        return int(end) + direction
    return math.nextafter(end, direction * math.inf)


# What a value at its bound needs beside it: settings that depend on each other.
BESIDE = {("ppo", "batch"): ["--minibatch=1"], ("labels.sample", "k_max"): ["--k_min=1"],
          ("data.public", "split_valid"): ["--split_test=0"],
          ("data.public", "split_test"): ["--split_valid=0"],
          **{("evaluate", name): ["--suite=public"] for name in ("batch_tokens", "limit")}}


@each_number
def test_a_number_has_bounds_that_hold(script, field):
    """Just inside each end it is taken; just past it, and where it is no number, one line names the
    flag and the value. -1 is refused where 0 or 1 is the least."""
    low, from_low, high, to_high = ends(script, field)
    inside, past = [], ["nan"] if isinstance(field.default, float) else []
    if math.isfinite(low):
        inside.append(low if from_low else beside(field, low, 1))
        past.append(beside(field, low, -1) if from_low else low)
        past += [-1] * (low in (0, 1))
    if math.isfinite(high):
        inside.append(high if to_high else beside(field, high, -1))
        past.append(beside(field, high, 1) if to_high else high)
    elif to_high:
        inside.append("inf")
    elif isinstance(field.default, float):
        past.append("inf")
    assert past, "no value is refused"
    kind = type(field.default)
    for value in map(kind, inside):
        s = taken(script, f"--{field.name}={value}", *BESIDE.get((script, field.name), ()))
        assert getattr(s, field.name) == value
    for value in map(kind, past):
        message = refused(script, f"--{field.name}={value}")
        assert message.startswith(f"error: --{field.name}={value}: expected a number"), message


@each_number
def test_the_defaults_and_presets_are_within_the_bounds(script, field):
    low, from_low, high, to_high = ends(script, field)
    kind, presets = of(script)
    for values in ({}, *presets.values()):
        value = getattr(kind(**values), field.name)
        assert low <= value <= high and (value > low or from_low) and (value < high or to_high)


@pytest.mark.parametrize("script, flags, complaint", [
    ("sft", ["--clip=-1"], "--clip=-1.0: expected a number >= 0"),
    ("sft", ["--batch=0"], "--batch=0: expected a number >= 1"),
    ("sft", ["--batch=-1"], "--batch=-1: expected a number >= 1"),
    ("sft", ["--micro_batch=-1"], "--micro_batch=-1: expected a number >= 1"),
    ("reward", ["--micro_batch=0"], "--micro_batch=0: expected a number >= 1"),
    ("sft", ["--dropout=1.5"], "--dropout=1.5: expected a number >= 0 and < 1"),
    ("sft", ["--dropout=1"], "--dropout=1.0: expected a number >= 0 and < 1"),
    ("sft", ["--pretrain_mix=1.5"], "--pretrain_mix=1.5: expected a number >= 0 and <= 1"),
    ("sft", ["--save_every=0"], "--save_every=0: expected a number >= 1"),
    ("sft", ["--max_skips=0"], "--max_skips=0: expected a number >= 1"),
    ("sft", ["--block_size=1"], "--block_size=1: expected a number >= 2"),
    ("sft", ["--explode=0"], "--explode=0.0: expected a number > 0"),
    ("sft", [f"--seed={2**63}"], f"--seed={2**63}: expected a number >= 0 and < {2**63}"),
    ("ppo", ["--iterations=0"], "--iterations=0: expected a number >= 1"),
    ("ppo", ["--temperature=0"], "--temperature=0.0: expected a number >= 0.01"),
    ("ppo", ["--temperature=-1"], "--temperature=-1.0: expected a number >= 0.01"),
    ("ppo", ["--ptx_rows=0"], "--ptx_rows=0: expected a number >= 1"),
    ("ppo", ["--minibatch=0"], "--minibatch=0: expected a number >= 1"),
    ("ppo", ["--unfinished=nan"], "--unfinished=nan: expected a number"),
    ("ppo", ["--unfinished=1e300"], "--unfinished=1e+300: expected a number >= -1e6 and <= 1e6"),
    ("labels.sample", ["--prompts=-1"], "--prompts=-1: expected a number >= 0"),
    ("labels.sample", ["--temperature=-1"], "--temperature=-1.0: expected a number >= 0"),
    ("data.toy.world", ["--prompts=0"], "--prompts=0: expected a number >= 1"),
    ("data.toy.world", ["--documents=99"], "--documents=99: expected a number >= 100"),
    ("data.toy.world", ["--vocab=256"], "--vocab=256: expected a number >= 257"),
    ("data.public", ["--share=0"], "--share=0.0: expected a number > 0 and <= 1"),
    ("data.shards", ["--workers=-1"], "--workers=-1: expected a number >= 1"),
    ("sft", ["--device=gpu"], "--device=gpu: expected one of auto, cpu, cuda"),
    ("chat", ["--device=gpu"], "--device=gpu: expected one of auto, cpu, cuda"),
    ("ppo", ["--dtype=fp16"], "--dtype=fp16: expected one of auto, float32, bf16"),
    ("labels.sample", ["--split=all"], "--split=all: expected one of train, valid, test"),
    ("labels.simulated", ["--split=test"], "--split=test: expected one of train, valid"),
    ("reward", ["--too_long=cut"], "expected one of drop, keep_end, keep_beginning"),
    ("sft", ["--init=scratch", "--n_head=5"], "--n_embd=128 must be a multiple of --n_head=5"),
    ("sft", ["--preset=base", "--n_head=5"], "--n_embd=128 must be a multiple of --n_head=5"),
    ("ppo", ["--batch=10", "--minibatch=4"], "--batch=10 must be a multiple of --minibatch=4"),
    ("labels.sample", ["--k_min=5", "--k_max=2"], "--k_min=5 is more than --k_max=2"),
    ("labels.sample", ["--models=a,b,c,d"], "--weights=6,3,1: expected a number for each of the 4"),
    ("labels.sample", ["--weights=3,2,x"], "--weights=3,2,x: expected numbers >= 0"),
    ("labels.sample", ["--weights=3,2,-1"], "--weights=3,2,-1: expected numbers >= 0"),
    ("labels.sample", ["--weights=3,2,nan"], "--weights=3,2,nan: expected numbers >= 0"),
    ("labels.sample", ["--weights=0,0,0"], "--weights=0,0,0: expected numbers >= 0"),
    ("labels.page", ["--models=a,b", "--weights=3"], "--weights=3: expected a number for each of"),
    ("labels.page", ["--models=a", "--weights=x"], "--weights=x: expected numbers >= 0"),
    ("labels.page", ["--preset=mine", "--weights=0,0"], "--weights=0,0: expected numbers >= 0"),
    ("labels.page", ["--weights=1"], "--weights has no --models"),
    ("data.public", ["--split_valid=0.5", "--split_test=0.5"], "less than 1 together"),
])
def test_values_that_cannot_work_are_refused(script, flags, complaint):
    assert complaint in refused(script, *flags)


@pytest.mark.parametrize("script, flags", [
    ("sft", ["--n_head=5"]),  # not from scratch: the checkpoint has its own
    ("sft", ["--epochs=0"]), ("sft", ["--clip=0"]), ("sft", ["--explode=inf"]),
    ("labels.sample", ["--temperature=0"]), ("ppo", ["--ptx=0"]), ("ppo", ["--clip_value=inf"]),
    ("labels.sample", ["--models=a,b", "--weights=1,0"]), ("labels.sample", ["--split=test"]),
    ("labels.page", ["--preset=mine", "--weights=3,0"]), ("labels.page", ["--preset=mine"]),
])
def test_values_at_the_edge_that_do_work_are_taken(script, flags):
    assert taken(script, *flags)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_value_stops_before_anything_is_read(script, monkeypatch, tmp_path):
    """The whole script, in a folder where it finds nothing: the first line is about the flag."""
    flag = next((f"--{field.name}=-1" for name, field in numbers() if name == script), "--no=1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, flag])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(inspect.getfile(importlib.import_module(script)), run_name="__main__")
    assert flag.partition("=")[0] in str(stop.value.code) and not list(tmp_path.iterdir())


SEEDS = (0, 1, 2, 2**23 - 1, 2**23, 2**23 + 1, 2**32 - 1, 2**32, 20261126, 2**40, 2**62, 2**63 - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_seed_works_wherever_a_seed_goes(seed):
    """The order of rows, the noise of samples, that of dropout, and the weights at the start."""
    assert sorted(order(5, seed + 1, 1000)) == list(range(5))
    draw = uniform(seed, torch.arange(4), 0)
    assert len(set(draw.tolist())) == 4 and bool(((0 <= draw) & (draw < 1)).all())
    for row in (0, 7 * 32, 2**40 - 2):
        numbers = torch.tensor([first_row(seed) + row, first_row(seed) + row + 1])
        kept = dropout(torch.ones(2, 50), 0.5, 0, numbers)
        assert 0 < int((kept == 0).sum()) < 100 and not torch.equal(kept[0], kept[1])
    assert World(seed, "cpu").seed == seed and math.isfinite(float(torch.randn(())))


def test_no_two_rows_of_any_run_have_one_number():
    """Within a run a row's number is its place; the numbers of two seeds do not meet. Each run has
    2^40 rows here, 10^5 times the largest that was ever trained on."""
    runs = sorted(range(first_row(seed), first_row(seed) + 2**40)[k] for seed in SEEDS
                  for k in (0, -1))
    assert -2**63 <= runs[0] and runs[-1] < 2**63
    starts = sorted(first_row(seed) for seed in SEEDS)
    assert all(a + 2**40 <= b for a, b in zip(starts, starts[1:]))


def test_no_two_seeds_have_one_order_or_one_noise():
    """torch's generator on a CPU takes 32 bits of its seed: larger ones differ in the others."""
    orders = {tuple(order(50, seed, 0)) for seed in SEEDS}
    noise = {tuple(uniform(seed, torch.arange(4), 0).tolist()) for seed in SEEDS}
    assert len(orders) == len(noise) == len(SEEDS)
    for seed in SEEDS:
        World(seed, "cpu")
        noise.add(tuple(torch.randn(4).tolist()))
    assert len(noise) == 2 * len(SEEDS)


def test_small_seeds_have_the_numbers_that_they_always_had():
    assert [first_row(seed) for seed in (0, 1, 2**23 - 1)] == [0, 2**40, (2**23 - 1) * 2**40]
    expected = torch.randperm(9, generator=torch.Generator().manual_seed(4 * 1_000_003 + 2))
    assert order(9, 4, 2).tolist() == expected.tolist()


def test_a_large_seed_from_end_to_end(tmp_path):
    """The toy's smallest run with the largest seed: order, dropout, samples, labels, PPO."""
    large, tiny = f"--seed={2**63 - 1}", ["--n_layer=1", "--n_head=1", "--n_embd=8"]
    short = ["--max_new_tokens=4", large]
    for words in (
            ["-m", "data.toy.world", "--documents=300", "--vocab=300", "--demonstrations=24",
             "--prompts=30", "--heldout=10", large],
            ["sft.py", "--init=scratch", "--epochs=1", "--block_size=200", *tiny, large],
            ["-m", "labels.sample", "--models=out/sft", "--weights=1", "--prompts=20", *short],
            ["-m", "labels.simulated", "--calibrate=out/sft", large],
            ["reward.py", "--init=out/sft", large],
            ["ppo.py", "--init=out/sft", "--iterations=1", "--batch=8", "--minibatch=4", *short],
            ["chat.py", "out/ppo-ptx", "Who?", *short]):
        python(tmp_path, *words)


# -------------------------------------------------------------------------------------------- help

def test_help_shows_every_setting_with_its_default_and_comment(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Example, {"big": {}}, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for piece in ("An example.", "big", "--steps=3", "of something", "--name=x", "its name"):
        assert piece in text


def comments(cls):
    """{field: the comment that follows it on its line} of a settings class, read token by token."""
    out, name = {}, None
    for base in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        tokens = list(tokenize.generate_tokens(io.StringIO(inspect.getsource(base)).readline))
        for before, token in zip(tokens, tokens[1:]):
            if token.string == ":" and before.type == tokenize.NAME and before.start[1] == 4:
                name = before.string
                out[name] = ""
            if token.type == tokenize.COMMENT and token.start[1] > 4 and name:
                out[name] = token.string.lstrip("# ")
            name = None if token.type == tokenize.NEWLINE else name
    return {f.name: out[f.name] for f in dataclasses.fields(cls)}


def help_of(script, capsys):
    with pytest.raises(SystemExit) as stop:
        taken(script, "--help")
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


squeezed = lambda text: re.sub(r"\s", "", text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_a_table(script, capsys):
    """Each field once, under a title, with its default, its bounds and its comment, in columns."""
    kind, _ = of(script)
    lines = help_of(script, capsys)
    assert max(map(len, lines)) <= 100
    expected = {f.name: f.default for f in dataclasses.fields(kind)}
    found, title, after = [], None, comments(kind)
    for i, line in enumerate(lines):
        if not line.strip():
            title = None
        elif line[0] != " ":
            title = title or line
        elif match := re.match(r"  --(\w+)=", line):
            name = match[1]
            assert title and line[2:].split("  ")[0] == f"--{name}={expected[name]}"
            wide = len(f"  --{name}={expected[name]}") >= 32  # then it has a line of its own
            rows, k = [lines[i + 1] if wide else line], i + 1 + wide
            while k < len(lines) and re.match(r" {40}\S", lines[k]):
                rows.append(lines[k])
                k += 1
            assert rows[0][31:32] in (" ", "") and rows[0][39:40] in (" ", "")
            words = squeezed(" ".join(row[40:] for row in rows))
            assert words == squeezed(after[name]), name
            found.append(name)
    assert sorted(found) == sorted(expected)


def test_help_has_groups(capsys):
    """A script's own settings come first, and then those that all three steps share."""
    titles = [line for line in help_of("sft", capsys)[1:] if line and line[0] != " "]
    assert titles[:5] == ["files", "the algorithm", "sizes", "the run", "the machine"]
    assert titles[5].startswith("--preset=NAME")


@pytest.mark.parametrize("script", [name for name in SCRIPTS if of(name)[1]])
def test_help_lists_presets_with_what_they_set(script, capsys):
    text = "\n".join(help_of(script, capsys)).split("--preset=NAME")[1]
    blocks = re.findall(r"^  (\S+) +(.*(?:\n {40}.*)*)", text, re.M)
    assert [name for name, _ in blocks] == list(of(script)[1])
    for name, block in blocks:
        values = of(script)[1][name]
        assert squeezed(block) == squeezed(",".join(f"{k}={v}" for k, v in values.items()))

"""Packages that only some commands need: without one, a line says how to install it."""
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import settings
from data.tokenizer import load_tokenizer
from helpers import tiny
from runtime.checkpoint import save
from sft import Settings
from test_bad_input import another_tokenizer

ROOT = Path(settings.__file__).parent
HIDDEN = ("matplotlib", "safetensors", "huggingface_hub", "transformers", "tokenizers", "triton",
          "sacrebleu", "rouge_score", "profanity_check", "flask", "waitress", "selenium",
          "datasets")
HF = " ".join(settings.EXTRAS["hf"])
# Runs commands, one after the other, without these packages; prints {command: how it ended}.
RUN = """
import contextlib, io, json, runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
commands, ends = sys.argv[2:], {}
for command in commands:
    sys.argv = command.split()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if sys.argv[0].endswith(".py"):
                runpy.run_path(sys.argv[0], run_name="__main__")
            else:
                runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        ends[command] = 0
    except SystemExit as stop:
        ends[command] = stop.code or 0
    except BaseException as error:
        ends[command] = f"a traceback: {error!r}"
print(json.dumps(ends))
"""


def run_without(hidden, commands):
    """{command: how it ended} of commands that cannot import these packages."""
    done = subprocess.run([sys.executable, "-c", RUN, ",".join(hidden), *commands], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_command_begins_without_any_extra():
    commands = [f"{script} --help" for script in (
        "sft.py", "reward.py", "ppo.py", "evaluate.py", "chat.py", "labels.sample", "figures",
        "evals.report", "evals.samples", "data.public", "data.shards", "data.toy.world",
        "labels.simulated", "labels.page", "labels.mine")]
    assert run_without(HIDDEN, commands) == dict.fromkeys(commands, 0)


def test_an_extra_that_is_missing_is_one_line(tmp_path):
    """With the command that installs it, and before anything is downloaded or written."""
    (tmp_path / "t.tiktoken").write_bytes(another_tokenizer(280))
    own = load_tokenizer("t.tiktoken", tmp_path)
    save(tmp_path / "ours", tiny(vocab_size=own.size), own, Settings())
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({
        "vocab_size": 50257, "n_positions": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}))
    (tmp_path / "theirs" / "model.safetensors").touch()
    hub = "huggingface_hub", f"needs huggingface_hub: pip install {HF}"
    weights = "safetensors", f"needs safetensors: pip install {HF}"
    expected = {
        "figures": ("matplotlib", f"make figures needs matplotlib: pip install "
                                     f"{settings.EXTRAS['figures'][0]}"),
        "chat.py gpt2 hello": weights, "sft.py --init=gpt2": weights,
        "reward.py --init=someone/theirs": weights, "ppo.py --init=gpt2": weights,
        f"sft.py --init={tmp_path}/theirs": weights,
        f"runtime.huggingface export {tmp_path}/ours {tmp_path}/out": weights,
        "chat.py openai-community/gpt2 hello": hub, "sft.py --init=gpt2-xl": hub,
        f"data.public --name=dolly --out={tmp_path}/out": hub,
        f"data.public --name=webgpt --out={tmp_path}/out": hub,
        f"labels.page --out={tmp_path}/page": ("flask", "python -m labels.page needs flask: pip "
                                               f"install {' '.join(settings.EXTRAS['label'])}"),
        f"data.public --name=hub:someone/theirs --out={tmp_path}/out": (
            "datasets", f"needs datasets: pip install {settings.EXTRAS['data'][0]}")}
    for package in ("matplotlib", "safetensors", "huggingface_hub", "flask", "datasets"):
        commands = [command for command, (which, _) in expected.items() if which == package]
        for command, end in run_without([package], commands).items():
            assert str(end).startswith("error: ") and "\n" not in end, (command, end)
            assert expected[command][1] in end, (command, end)
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_there_and_broken_says_why(tmp_path, monkeypatch):
    (tmp_path / "matplotlib.py").write_text("import no_such_thing")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit, match=r"figures.py needs matplotlib, and its import fails \(No "
                       r"module named 'no_such_thing'\): pip install matplotlib=="):
        settings.extra("matplotlib", "figures.py")


def test_the_pins_are_those_of_the_project_files():
    text = (ROOT / "pyproject.toml").read_text()
    for extra, pins in settings.EXTRAS.items():
        assert re.findall(r'"(.*?)"', re.search(rf"(?m)^{extra} = \[(.*)\]$", text)[1]) == pins
        required = (ROOT / "requirements-dev.txt").read_text().splitlines()
        assert set(pins) <= set(required)
    tested = re.search(r"(?s)^test = \[(.*?)\]$", text, re.M)[1]
    assert all(f'"{pin}"' in tested for pin in settings.EXTRAS["hf"])


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_each_python_that_is_promised_can_have_each_pin(version):
    """A pin that some Python refuses stops the whole installation there."""
    checked = 0
    for line in [*(ROOT / "requirements.txt").open(), *(ROOT / "requirements-dev.txt").open()]:
        if line.startswith(("#", "-")):
            continue
        pin = Requirement(line.strip())
        try:
            installed = importlib.metadata.distribution(pin.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        wanted = not pin.marker or pin.marker.evaluate({"python_version": version})
        if wanted and pin.specifier.contains(installed.version):
            needs = installed.metadata["Requires-Python"] or ""
            assert f"{version}.99" in SpecifierSet(needs), f"{line.strip()} needs Python {needs}"
            checked += 1
    assert checked >= 8

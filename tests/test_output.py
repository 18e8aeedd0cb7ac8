"""Output never stops a program: no character that the terminal lacks, no reader that has left.

Every row is a program of its own, as what is tested happens before anything else does.
"""
import io
import json
import os
import shutil
import subprocess
import sys

import pytest

import startup
from demo import ROOT

SAID = "Zo\xeb \u2192 \u732b?"  # in latin-1 only as far as the first word, in ascii not even that
SHORT = ["--max_new_tokens=4"]
PROGRAMS = {  # what is run in the demo's folder, a file that it writes, and what it prints of SAID
    "ppo": (["ppo.py", "--iterations=2", "--batch=4", "--minibatch=4", "--show=1", "--ptx=0",
             "--out=out/new", *SHORT], "out/new/checkpoint.json", True),
    "reward": (["reward.py", "--out=out/new"], "out/new/checkpoint.json", False),
    "sft": (["sft.py", "--epochs=1", "--out=out/new"], "out/new/checkpoint.json", False),
    "sample": (["-m", "labels.sample", "--models=out/sft", "--weights=1", f"--out=out/{SAID}.jsonl",
                *SHORT], f"out/{SAID}.jsonl", True),
    "evaluate": (["evaluate.py", "--models=sft=out/sft,ppo=out/ppo", "--versus=ppo/sft",
                  "--out=out/new", *SHORT], "out/new/report.md", False),
    "chat": (["chat.py", "out/sft", SAID, *SHORT], None, False),
    "help": (["ppo.py", "--help"], None, False),
    "public": (["-m", "data.public", "--name=prompts", "--file=out/toy/prompts_train.jsonl",
                f"--out=out/{SAID}", "--split_valid=0.4"], f"out/{SAID}/prompts_valid.jsonl", True),
}


@pytest.fixture
def copy(demo, tmp_path):
    """The demo's folder, with prompts that few terminals can show."""
    shutil.copytree(demo.folder / "out", tmp_path / "out")
    for split in ("train", "test"):
        path = tmp_path / "out" / "toy" / f"prompts_{split}.jsonl"
        records = [json.loads(line) for line in open(path, encoding="utf-8")]
        path.write_text("".join(json.dumps({**r, "prompt": f"{i} {SAID}"}) + "\n"
                                for i, r in enumerate(records)), encoding="utf-8")
    return tmp_path


def run(folder, words, shell="", **environment):
    words = [*(["-m", words[1]] if words[0] == "-m" else [str(ROOT / words[0])]),
             *words[2 if words[0] == "-m" else 1 :]]
    return subprocess.run(
        ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, *words], cwd=folder, timeout=120,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                                  "CUDA_VISIBLE_DEVICES": "", **environment})


@pytest.mark.parametrize("name, encoding", [
    ("ppo", "ascii"), ("reward", "ascii"), ("sample", "latin-1"), ("evaluate", "cp1252"),
    ("chat", "ascii"), ("public", "ascii")])
def test_what_a_terminal_cannot_show_is_spelled_out(copy, name, encoding):
    words, file, shown = PROGRAMS[name]
    locale = {} if shown else dict(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")  # of files
    done = run(copy, words, PYTHONIOENCODING=encoding, **locale)
    assert done.returncode == 0, done.stderr.decode(encoding)[-2000:]
    assert file is None or (copy / file).exists()
    if shown:
        spelled = SAID.encode(encoding, "backslashreplace")
        assert b"\\u2192" in spelled and spelled in done.stdout + done.stderr


@pytest.mark.parametrize("name, end", [
    ("sft", "| head -1"), ("sft", ">&- 2>&-"), ("sft", "> /dev/full"), ("ppo", "2>&1 | true"),
    ("evaluate", "| true"), ("chat", "| true"), ("help", "| true"), ("public", "2>&1 | true"),
    ("sample", ">&- 2>&-")])
def test_a_program_whose_output_nobody_reads_goes_on(copy, name, end):
    """Its files are there, it has not failed, and it has not complained."""
    words, file, _ = PROGRAMS[name]
    done = run(copy, words, f"{end}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert file is None or (copy / file).exists()
    for complaint in (b"Broken pipe", b"Traceback", b"error", b"Exception"):
        assert complaint not in done.stderr


def test_an_unbuffered_stream_stays_unbuffered():
    code = "import os, settings, sys; print('a', end=''); os._exit(0)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    for flags, expected in (["-u"], b"a"), ([], b""):
        done = subprocess.run([sys.executable, *flags, "-c", code], cwd=ROOT, env=environment,
                              capture_output=True)
        assert done.returncode == 0 and done.stdout == expected


def test_streams_that_are_not_the_systems_stay():
    """A notebook's, or a test's, which another program has put there."""
    own = io.StringIO()
    assert startup.kept(own) is own and sys.stdout is not sys.__stdout__

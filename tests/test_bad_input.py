"""What a user may have that is broken: each is one clear line, a failure, and nothing is written.

Every row of the tables is a program of its own, forked from a process that has imported the scripts
(see harm.py), on a copy of the demo in which one thing was spoiled. The loaders of data/public.py
and data/shards.py have tables of their own (test_public.py, test_shards.py), as have models in
Hugging Face's format (test_huggingface.py) and the terminal (test_chat.py).
"""
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import harm
from runtime import huggingface
from runtime import checkpoint
from data import records, tokenizer
from demo import ROOT
from helpers import tiny

STAGES = {  # what is run, and the checkpoint that is spoiled for it
    "sft": (["sft.py", "--epochs=1", "--out=out/new"], "base"),
    "sft --reward": (["sft.py", "--epochs=1", "--out=out/new", "--reward=out/rm",
                      "--max_new_tokens=4"], "rm"),
    "reward": (["reward.py", "--out=out/new"], "init"),
    "ppo": (["ppo.py", "--iterations=1", "--batch=8", "--minibatch=8", "--max_new_tokens=8",
             "--out=out/new"], "init"),
    "ppo --reward": (["ppo.py", "--iterations=1", "--batch=8", "--minibatch=8",
                      "--max_new_tokens=8", "--out=out/new"], "rm"),
    "sample": (["-m", "labels.sample", "--max_new_tokens=8"], "init"),
    "labelers": (["-m", "labels.simulated"], None),
    "evaluate": (["evaluate.py", "--max_new_tokens=8", "--models=sft=out/sft,ppo=out/ppo",
                  "--versus=ppo/sft", "--out=out/new"], "ppo"),
    "terminal": (["chat.py", "out/ppo", "Hello?", "--max_new_tokens=4"], "ppo"),
    "export": (["-m", "runtime.huggingface", "export", "out/rm", "exported"], "rm"),
}


class Copy:
    """The demo's folder, of which one thing is to be spoiled."""

    def __init__(self, demo, folder):
        shutil.copytree(demo.folder / "out", folder / "out")
        self.folder = folder

    def contents(self):
        return {str(p.relative_to(self.folder)): p.read_bytes()
                for p in self.folder.rglob("*") if p.is_file()}

    def fails(self, stage):
        """The line with which the stage ends; it must have written nothing."""
        before, printed = self.contents(), self.folder.with_suffix(".txt")
        printed.unlink(missing_ok=True)
        process = harm.start(self.folder, printed, *STAGES[stage][0])
        process.join(60)
        lines = [line for line in printed.read_text().replace("\r", "\n").splitlines()
                 if line.startswith(("error", "Traceback", " ", "  File"))]
        assert process.exitcode == 1 and len(lines) == 1, printed.read_text()[-1500:]
        assert lines[0].startswith("error: ") and len(lines[0]) > 30
        assert self.contents() == before
        return lines[0]


@pytest.fixture
def copy(demo, tmp_path):
    return Copy(demo, tmp_path / "copy")


# --------------------------------------------------------------------------------- checkpoints

class Code:
    """What a pickle may do: run a command where it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("run by a pickle",)


def another_tokenizer(size):
    return tokenizer.train_bpe("quick zephyrs vex; bold jumps! " * 9, size)


def replaced(folder, meta, key, content, suffix):
    """Let a file of a checkpoint be another, with the checksum that belongs to it."""
    file = folder / f"{'model' if key == 'weights' else key}{suffix}"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    (folder / meta[key]).unlink()
    meta[key] = file.with_stem(f"{file.stem}-{checkpoint.checksum(file)}").name
    file.rename(folder / meta[key])


def spoil(folder, how):
    facts = folder / "checkpoint.json"
    meta = json.loads(facts.read_text())
    weights = torch.load(folder / meta["weights"], weights_only=True)
    if how == "shape":
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:-1]
    elif how == "missing":
        weights.popitem()
    elif how in ("nan", "inf"):
        weights["transformer.ln_f.weight"][3] = float(how)
    elif how == "code":
        weights = Code()
    if how in ("shape", "missing", "code", "nan", "inf"):
        replaced(folder, meta, "weights", weights, ".pt")
    elif how == "cut":
        replaced(folder, meta, "weights", (folder / meta["weights"]).read_bytes()[:-300], ".pt")
    elif how == "cut on the disk":
        os.truncate(folder / meta["weights"], 1000)
    elif how == "smaller tokenizer":
        replaced(folder, meta, "tokenizer", another_tokenizer(264), ".tiktoken")
    elif how == "other tokenizer":
        own = (folder / meta["tokenizer"]).read_bytes()
        replaced(folder, meta, "tokenizer", another_tokenizer(own.count(b"\n") + 1), ".tiktoken")
    elif how == "damaged tokenizer":
        replaced(folder, meta, "tokenizer", b"not base64 at all\n", ".tiktoken")
    elif how == "another setting":
        meta["config"]["n_layers"] = 3
    elif how == "no kind":
        del meta["kind"]
    facts.write_text(json.dumps(meta)[: 50 if how == "no JSON" else None])


EVERY = [stage for stage, (_, checkpoint) in STAGES.items() if checkpoint]


@pytest.mark.parametrize("how, message, stages", [
    ("shape", "holds transformer.wpe.weight of shape [159, 16], its configuration asks for [160",
     EVERY[:1]),
    ("nan", "holds transformer.ln_f.weight with NaN or infinite numbers: ", EVERY),
    ("inf", "holds transformer.ln_f.weight with NaN or infinite numbers: ", EVERY[:1]),
    ("missing", "does not hold ", EVERY[:1]), ("cut", "is damaged or not complete", EVERY[:1]),
    ("cut on the disk", "is damaged (its checksum differs)", EVERY[:1]),
    ("code", "is refused: it holds more than tensors", EVERY),
    ("no JSON", "checkpoint.json is damaged", EVERY),
    ("no kind", "checkpoint.json is damaged (it has no 'kind')", EVERY[:1]),
    ("another setting", "checkpoint.json asks for a model that is not ours: ", EVERY[:1]),
    ("other tokenizer", "tokenizer", EVERY), ("smaller tokenizer", "tokenizer", EVERY[:1]),
    ("damaged tokenizer", "tokenizer", EVERY[:1]),
])
def test_a_checkpoint_that_cannot_be_used(copy, how, message, stages):
    whole = copy.folder.with_name("whole")
    shutil.copytree(copy.folder, whole)
    for stage in stages:
        checkpoint = copy.folder / "out" / STAGES[stage][1]
        spoil(checkpoint, how)
        said = copy.fails(stage)
        assert message in said and f"out/{checkpoint.name}" in said, (stage, said)
        shutil.rmtree(checkpoint)
        shutil.copytree(whole / "out" / checkpoint.name, checkpoint)


# ---------------------------------------------------------------------------------------- records

def changed(**fields):
    """The line of a record with other values; None takes a field away."""
    def change(line):
        record = {**json.loads(line), **fields}
        return json.dumps({k: v for k, v in record.items() if v is not None}).encode()
    return change


def completion(**fields):
    """The line of a record whose first completion has other values."""
    def change(line):
        record = json.loads(line)
        first = {**record["completions"][0], **fields}
        record["completions"][0] = {k: v for k, v in first.items() if v is not None}
        return json.dumps(record).encode()
    return change


DEMOS, RANKS = "demonstrations_train.jsonl", "rankings_train.jsonl"


@pytest.mark.parametrize("stage, file, change, message", [
    ("sft", DEMOS, changed(response=None), "demonstration has no field 'response'"),
    ("sft", DEMOS, changed(prompt=" "), "field 'prompt': expected a string that is not empty"),
    ("sft", DEMOS, lambda line: b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
    ("sft", DEMOS, lambda line: line[:-9], "not JSON: "),
    ("sft", DEMOS, changed(response="half \ud83d"), "not Unicode: half of a surrogate pair"),
    ("reward", RANKS, completion(text="half \ud83d"), "not Unicode: half of a surrogate pair"),
    ("ppo", "prompts_train.jsonl", changed(more="\udc00"), "not Unicode: half of a surrogate "),
    ("sample", "prompts_train.jsonl", changed(prompt="half \ud83d"), "not Unicode: half of a s"),
    ("sft", DEMOS, lambda line: b"[" * 10**5, "nested too deep"),
    ("sft", "demonstrations_valid.jsonl", changed(response=3), "field 'response': expected a str"),
    ("sft --reward", "prompts_valid.jsonl", changed(prompt=None), "prompt has no field 'prompt'"),
    ("reward", RANKS, changed(completions=[]), "field 'completions': expected a list of at least"),
    ("reward", RANKS, changed(ranks=[]), "expected one rank for each of the"),
    ("reward", RANKS, completion(text=None), "field 'completions': expected a list of at least"),
    ("reward", RANKS, changed(ranks=["1", "2"]), "field 'ranks': expected a list of whole numbers"),
    ("reward", DEMOS, changed(response=None), "demonstration has no field 'response'"),
    ("reward", "rankings_valid.jsonl", changed(ranks=[]), "expected one rank for each of the"),
    ("reward", "rankings_valid_heldout.jsonl", changed(ranks=None), "ranking has no field 'ranks'"),
    ("ppo", "prompts_train.jsonl", changed(prompt=None), "prompt has no field 'prompt'"),
    ("ppo", "text_train.jsonl", changed(text=None), "text has no field 'text'"),
    ("sample", "prompts_train.jsonl", changed(prompt=["a"]), "field 'prompt': expected a string"),
    ("labelers", "completions_train.jsonl", changed(task=None), "as the toy town alone has"),
    ("labelers", "completions_train.jsonl", changed(completions=None), "no field 'completions'"),
    ("labelers", "completions_train.jsonl", changed(completions=[]), "field 'completions': exp"),
    ("labelers", "completions_train.jsonl", completion(ended=None), "field 'completions': exp"),
    ("labelers", "completions_train.jsonl", completion(model=None), "field 'completions': exp"),
    ("labelers", "completions_train.jsonl", changed(task="fly"), "field 'task': expected an obj"),
    ("evaluate", "prompts_test.jsonl", changed(task=None), "no field 'task'"),
    ("evaluate", "prompts_test.jsonl", changed(category=None), "no field 'category'"),
    ("evaluate", "probes.jsonl", changed(probe=None), "probe has no field 'probe'"),
    ("evaluate", "probes.jsonl", changed(text=""), "field 'text': expected a string that is not"),
])
def test_a_record_that_cannot_be_used(copy, stage, file, change, message):
    path = copy.folder / "out" / "toy" / file
    lines = path.read_bytes().splitlines()
    lines[1] = change(lines[1])
    path.write_bytes(b"\n".join(lines) + b"\n")
    said = copy.fails(stage)
    assert said.startswith(f"error: out/toy/{file}:2: ") and message in said, said


@pytest.mark.parametrize("stage, file, message", [
    ("sft", DEMOS, "no demonstration fits the context of 160 tokens"),
    ("reward", DEMOS, "no demonstration fits the context of 160 tokens"),
    ("reward", RANKS, "no ranking with an untied pair that fits the context"),
    ("ppo", "prompts_train.jsonl", "prompts has 1 to 152 tokens"),
    ("sample", "prompts_train.jsonl", "no prompt fits the context"),
    ("evaluate", "prompts_test.jsonl", "do not fit the context of sft, 160"),
])
def test_prompts_that_fill_the_context(copy, stage, file, message):
    """All of them; of those that leave some, test_training.py counts what is told."""
    path = copy.folder / "out" / "toy" / file
    records.write(path, [{**json.loads(line), "prompt": "who is who " * 100}
                         for line in open(path, encoding="utf-8")])
    assert message in copy.fails(stage)


@pytest.mark.parametrize("stage, file, message", [
    ("labelers", "world.json", "out/toy/world.json is damaged"),
    ("evaluate", "labelers.json", "out/toy/labelers.json is damaged"),
])
def test_a_damaged_file_of_the_toy(copy, stage, file, message):
    (copy.folder / "out" / "toy" / file).write_text('{"seed": ')
    assert message in copy.fails(stage)


# ----------------------------------------------------------------------------------- the disk

@pytest.mark.parametrize("program", ["data.public", "export"])
@pytest.mark.parametrize("out", ["file/in", "full"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, program, out):
    """A file where a folder should be; or no file may have more than 300 bytes, which to a program
    is like a full disk. Nothing is left behind."""
    (tmp_path / "file").touch()
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "question {i}"}}\n' for i in range(90)))
    call = ["-m", program, "--name=prompts", "--file=p.jsonl", f"--out={out}"]
    if program == "export":
        pytest.importorskip("safetensors", reason="safetensors is not installed")
        (tmp_path / "t.tiktoken").write_bytes(another_tokenizer(280))
        own = tokenizer.load_tokenizer("t.tiktoken", tmp_path)
        huggingface.export(tiny(vocab_size=own.size), own, tmp_path / "m")
        call = ["-m", "runtime.huggingface", "export", "m", out]

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if out == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))

    done = subprocess.run([sys.executable, *call], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=limited)
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1 and out.split("/")[0] in done.stderr
    assert not list(tmp_path.rglob("*.writing"))

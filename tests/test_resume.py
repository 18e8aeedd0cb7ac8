"""Trap 28: whatever interrupts a run, resumed it ends with the same bits as if nothing had been.

Runs are forked from a process that has imported the scripts (see harm.py), so that killing many of
them takes little time. `make long` kills twenty times a stage, `make test` three times.
"""
import collections
import errno
import hashlib
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import pytest
import torch

import harm
from data import records
from runtime import checkpoint
from runtime import training
from demo import ROOT, python
from helpers import VOCAB, tiny, tiny_scalar
from model import GPT
from runtime.checkpoint import load, save, write

STAGES = {  # dropout, a choice of epochs, text and moving averages: everything that a state holds
    "sft": ("sft.py", "--epochs=3", "--dropout=0.2", "--batch=4", "--micro_batch=3", "--lr=0.01",
            "--pretrain_mix=0.1", "--reward=out/rm", "--max_new_tokens=4", "--save_every=2"),
    "reward": ("reward.py", "--epochs=3", "--batch=6", "--micro_batch=3", "--save_every=2"),
    "ppo": ("ppo.py", "--iterations=5", "--batch=8", "--minibatch=4", "--ptx=0.5", "--ptx_rows=2",
            "--max_new_tokens=8", "--show=0", "--save_every=1"),
}
TIMING = ("seconds_rollout", "seconds_update", "tokens_per_second")


class Run:
    """A stage that writes to a folder of its own beside the demo's, and is started many times."""

    def __init__(self, demo, stage, name, *flags):
        self.demo, self.folder = demo, demo.folder / "out" / name
        self.arguments = (*STAGES[stage], f"--out=out/{name}", *flags)
        self.printed = demo.folder / f"{name}.txt"

    def start(self, *flags, harms=(), **environment):
        if environment.get("RANK", "0") == "0":  # which starts first; they share the file
            self.printed.unlink(missing_ok=True)
        return harm.start(self.demo.folder, self.printed, *self.arguments, *flags, harm=harms,
                          **{"RANK": "0", "WORLD_SIZE": "1", **environment})

    def ends(self, *flags, seconds=300, **others):
        """Run to the end. Returns (exit code, what was printed)."""
        process = self.start(*flags, **others)
        process.join(seconds)
        assert process.exitcode is not None, f"hangs:\n{self.output()}"
        return process.exitcode, self.output()

    def ranks(self, size, *flags, harms=()):
        """The processes of a world, without torchrun."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [self.start(*flags, harms=harms, RANK=str(rank), WORLD_SIZE=str(size),
                           MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) for rank in range(size)]

    def output(self):
        return self.printed.read_text() if self.printed.exists() else ""

    def lines(self):
        """The log without what the clock says."""
        log = [json.loads(line) for line in open(self.folder / "log.jsonl")]
        return [{k: v for k, v in line.items() if k not in TIMING} for line in log]

    def wait_for(self, steps):
        """Until the log has so many lines."""
        end = time.time() + 60
        while time.time() < end:
            path = self.folder / "log.jsonl"
            if path.exists() and path.read_bytes().count(b"\n") >= steps:
                return
            time.sleep(0.01)
        raise AssertionError(f"no step {steps}:\n{self.output()}")

    def states(self):
        return sorted(self.folder.glob("state-*"))


def assert_same(run, other):
    """Same weights, log and facts, bit for bit; nothing is left behind."""
    name, reference = run.folder.name, other.folder.name
    a, b = run.demo.weights(name), run.demo.weights(reference)
    assert all(torch.equal(a[k], b[k]) for k in b) and len(a) == len(b)
    assert run.lines() == other.lines()
    facts, expected = run.demo.checkpoint(name), run.demo.checkpoint(reference)
    for key in expected.keys() - {"settings", "seconds"}:
        assert facts[key] == expected[key], key
    assert len(list(run.folder.iterdir())) == 4, "states and unfinished files are gone"


@pytest.fixture(scope="session")
def whole_runs(demo):
    """Each stage without an interruption, and how long it takes."""
    runs = {}
    harm.fork(int).join()  # the server's imports are not to be measured
    for stage in STAGES:
        run = Run(demo, stage, f"whole-{stage}")
        began = time.time()
        code, output = run.ends()
        assert code == 0, output
        run.seconds = time.time() - began
        runs[stage] = run
    return runs


def killed(demo, whole_runs, stage, kills):
    """Kill a stage so many times, by the clock and between operations on files in turn; whenever a
    run gets to its end, compare it and start another."""
    whole, dice, first = whole_runs[stage], random.Random(stage), True
    run = Run(demo, stage, f"killed-{stage}")
    done = 0
    while done < kills or not first:
        flags, harms = ([] if first else ["--resume"]), []
        if done < kills and done % 2:
            harms = [("kill_at_operation", dice.randint(1, 35))]
        process = run.start(*flags, harms=harms)
        if done < kills and not harms:
            process.join(dice.uniform(0.1, 0.9) * whole.seconds)
            process.kill()
        process.join(60)
        first = process.exitcode == 0
        if first:
            assert_same(run, whole)
        else:
            assert process.exitcode == -signal.SIGKILL, run.output()
            done += 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_ends_with_the_same_bits(demo, whole_runs, stage):
    killed(demo, whole_runs, stage, 3)


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_twenty_times_ends_with_the_same_bits(demo, whole_runs, stage):
    killed(demo, whole_runs, stage, 20)


@pytest.mark.parametrize("stage", STAGES)
def test_asked_to_end_it_ends_within_a_step(demo, whole_runs, stage):
    """SIGTERM, as before pre-emption: a state of that very step, exit 0."""
    run = Run(demo, stage, f"asked-{stage}", "--save_every=1000")
    process = run.start(harms=[("slow", 0.2)])
    run.wait_for(2)
    process.terminate()
    process.join(60)
    assert process.exitcode == 0, run.output()
    steps = len(run.lines())
    assert steps in (2, 3)
    assert f"after step {steps} of" in run.output() and "--resume" in run.output()
    assert run.states()[-1].name.startswith(f"state-{steps:06}-")
    code, output = run.ends("--resume")
    assert code == 0 and f"resumed at step {steps} of" in output
    assert f"{steps}/" in output.split("resumed")[1], "the bar goes on from there"
    assert_same(run, whole_runs[stage])
    for name in ("state-000000.pt.writing", "model-00000000.pt"):  # killed while it tidied up
        (run.folder / name).write_bytes(b"half")
    code, output = run.ends("--resume")
    assert code == 0 and "is finished: there is nothing to resume" in output
    assert_same(run, whole_runs[stage])


def interrupted(demo, stage, name, step, *flags):
    """A run that was killed in the step after `step`."""
    run = Run(demo, stage, name, *flags)
    code, output = run.ends(harms=[("die", 0, step + 1)])
    assert code == -signal.SIGKILL, output
    return run


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_state_is_noticed_and_the_one_before_is_used(demo, whole_runs, damage):
    run = interrupted(demo, "reward", "damaged", 5)
    before, last = run.states()
    assert before.name.startswith("state-000002-") and last.name.startswith("state-000004-")
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data if damage == "flipped" else data[:-100])
    code, output = run.ends("--resume")
    assert code == 0 and f"{last.name} is damaged" in output and "resumed at step 2" in output
    assert_same(run, whole_runs["reward"])


def test_ctrl_c_is_one_line(demo):
    """And for the shell it was ended by the signal: exit code 130 there. What is started in the
    background ignores SIGINT: not so the child here."""
    folder = demo.folder / "out" / "stopped"
    with open(demo.folder / "stopped.txt", "w+") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "sft.py"), "--epochs=1000", "--out=out/stopped"],
            cwd=demo.folder, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, stdout=file,
            stderr=file, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        while not (folder / "log.jsonl").exists() or not (folder / "log.jsonl").stat().st_size:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        file.seek(0)
        said = file.read()
    assert "Traceback" not in said and re.fullmatch(
        r"error: interrupted in step \d+ of 3000\. --resume goes on from the last state "
        r"\(state-\d+-\w+\.pt\)\.", said.splitlines()[-1])


@pytest.mark.parametrize("program", [[name] for name in (
    "sft.py", "reward.py", "ppo.py", "evaluate.py", "chat.py")]
    + [["-m", "labels.sample"], ["-m", "runtime.huggingface"]])
def test_ctrl_c_is_one_line_while_torch_is_imported(tmp_path, program):
    """Python tells what it has imported: as soon as that is a part of torch, before torch itself,
    it is interrupted."""
    name = [str(ROOT / program[0])] if program[0] != "-m" else program
    with subprocess.Popen(
            [sys.executable, "-X", "importtime", *name], cwd=tmp_path, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        imported = next(line for line in process.stderr if "| " in line and "torch" in line)
        process.send_signal(signal.SIGINT)
        said = [line for line in process.stderr if not line.startswith("import time:")]
    assert imported.split()[-1] != "torch" and process.returncode == -signal.SIGINT
    assert said == ["error: interrupted\n"]


def test_without_a_state_it_starts_from_the_beginning(demo, whole_runs):
    run = Run(demo, "reward", "nothing")
    code, output = run.ends("--resume")
    assert code == 0 and "has no state to resume: it starts from the beginning" in output
    assert_same(run, whole_runs["reward"])


def test_starting_again_forgets_the_unfinished_run(demo, whole_runs):
    run = interrupted(demo, "reward", "again", 5, "--seed=7")
    run.arguments = run.arguments[:-1]
    code, output = run.ends(harms=[("die", 0, 2)])
    assert "is started over" in output
    code, output = run.ends("--resume")
    assert code == 0 and "resumed at step 0" in output
    assert_same(run, whole_runs["reward"])


def test_other_settings_are_an_error_that_names_them(demo):
    run = interrupted(demo, "reward", "other", 3)
    code, output = run.ends("--resume", "--lr=0.5", "--seed=9", "--micro_batch=1", "--timeout=5")
    assert code == 1 and "--lr=0.0003 --seed=2, not --lr=0.5 --seed=9:" in output
    assert "micro_batch" not in output and "Traceback" not in output
    assert len(run.states()) == 2, "nothing is lost"


def test_a_changed_input_is_an_error(demo):
    """Another model under the name of the one that the run began with."""
    model, tokenizer, meta = load(demo.folder / "out" / "sft", {"GPT": GPT}, "")
    save(demo.folder / "out" / "sft-copy", model, tokenizer, Settings())
    run = interrupted(demo, "reward", "changed", 3, "--init=out/sft-copy")
    with torch.no_grad():
        model.transformer.wte.weight[0] += 1
    save(demo.folder / "out" / "sft-copy", model, tokenizer, Settings())
    code, output = run.ends("--resume")
    assert code == 1 and "out/sft-copy has changed since out/changed was started" in output


def other_responses(path):
    """As many lines as before, each of another response, or of ranks the other way round."""
    rows = [json.loads(line) for line in open(path, encoding="utf-8")]
    for row in rows:
        if "ranks" in row:
            row["ranks"] = [1 + max(row["ranks"]) - r for r in row["ranks"]]
        else:
            row["response" if "response" in row else "text"] = "Something else."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def three_lines(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:3]))


def other_tokens(path):
    first, second, *rest = path.read_bytes().splitlines(True)
    (a, m), (b, n) = first.split(), second.split()
    path.write_bytes(b"".join([a + b" " + n + b"\n", b + b" " + m + b"\n", *rest]))


SCRATCH = ("--init=scratch", "--block_size=160", "--n_layer=1", "--n_head=2", "--n_embd=16",
           "--pretrain_mix=1", "--reward=", "--epochs=1")


@pytest.mark.parametrize("stage, flags, changes", [
    ("sft", (), {"demonstrations_train": other_responses, "demonstrations_valid": three_lines,
                 "text_train": other_responses, "prompts_valid": three_lines}),
    ("sft", SCRATCH, {"text_train": other_responses, "text_valid": other_responses,
                      "tokenizer": other_tokens}),
    ("reward", (), {"rankings_train": other_responses, "rankings_valid": other_responses,
                    "rankings_valid_heldout": os.remove, "demonstrations_train": three_lines}),
    ("ppo", (), {"prompts_train": three_lines, "text_train": other_responses}),
], ids=["sft", "scratch", "reward", "ppo"])
def test_changed_data_is_an_error_that_names_the_file(demo, stage, flags, changes, tmp_path):
    """Whatever a run has read: as many steps as before, and yet another run. With the file put back
    it goes on; when it is finished, it is of the old file still."""
    data = demo.folder / "out" / f"data-{tmp_path.name}"
    shutil.copytree(demo.folder / "out" / "toy", data)
    run = interrupted(demo, stage, f"of-{data.name}", 3, *flags, f"--data=out/{data.name}")
    files = {name: next(data.glob(f"{name}.*")) for name in changes}
    for name, change in changes.items():
        before = files[name].read_bytes()
        change(files[name])
        code, output = run.ends("--resume")
        assert code == 1 and output.count("error:") == 1, output
        file = f"out/{data.name}/{files[name].name}"
        assert f"{file} has changed since out/{run.folder.name} was started" in output
        assert len(run.states()) == 2, "nothing is lost"
        files[name].write_bytes(before)
    code, output = run.ends("--resume")
    assert code == 0 and "resumed at step" in output, output
    assert "is finished" in run.ends("--resume")[1]
    change(files[name])
    code, output = run.ends("--resume")
    assert code == 1 and f"{files[name].name} has changed" in output


def test_changed_weights_in_another_format_are_an_error(demo):
    """A folder of Hugging Face's has no checksum in its names."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    python(demo.folder, "-m", "runtime.huggingface", "export", "out/sft", "theirs")
    run = interrupted(demo, "reward", "from-theirs", 3, "--init=theirs")
    before = (demo.folder / "theirs" / "model.safetensors").read_bytes()
    changed = bytearray(before)
    changed[-1] ^= 1  # the last bit of a weight
    (demo.folder / "theirs" / "model.safetensors").write_bytes(changed)
    code, output = run.ends("--resume")
    assert code == 1 and "theirs has changed since out/from-theirs was started" in output
    (demo.folder / "theirs" / "model.safetensors").write_bytes(before)
    assert run.ends("--resume")[0] == 0


def test_a_state_that_does_not_say_what_it_read_is_resumed(demo, whole_runs):
    """One of an earlier version: it names the checkpoints alone."""
    run = interrupted(demo, "reward", "earlier", 3)
    for file in run.states():
        state = torch.load(file, weights_only=True)
        read = state.pop("made_from")
        state["loaded"] = {"out/init": read["out/init"]}
        file.unlink()
        write(file.with_name(file.name.rpartition("-")[0] + ".pt"),
              lambda f, state=state: torch.save(state, f))
    code, output = run.ends("--resume")
    assert code == 0 and "resumed at step" in output, output
    assert_same(run, whole_runs["reward"])
    facts = run.folder / "checkpoint.json"
    meta = json.loads(facts.read_text())
    del meta["made_from"]
    facts.write_text(json.dumps(meta))
    code, output = run.ends("--resume")
    assert code == 0 and "is finished" in output, output


def test_a_longer_ppo_run_may_be_resumed(demo, whole_runs):
    run = interrupted(demo, "ppo", "longer", 2, "--iterations=3")
    code, output = run.ends("--resume", "--iterations=5")
    assert code == 0, output
    assert_same(run, whole_runs["ppo"])


def test_a_finished_ppo_run_is_not_made_longer(demo):
    """Its states are gone; and no run has fewer iterations than it has done."""
    run = interrupted(demo, "ppo", "done", 3, "--iterations=4")
    code, output = run.ends("--resume", "--iterations=1")
    assert code == 1 and "steps, and only 1 are asked for" in output, output
    assert run.ends("--resume", "--iterations=4")[0] == 0
    code, output = run.ends("--resume", "--iterations=5")
    assert code == 1 and "is finished, with --iterations=4: only an interrupted run" in output


def test_two_runs_do_not_write_to_one_folder(demo, whole_runs):
    """The second one stops and touches nothing, whatever the first one has done so far."""
    run = interrupted(demo, "sft", "shared", 3)
    records.claim(run.folder)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    for flags in [], ["--resume"]:
        code, output = run.ends(*flags)
        assert code == 1 and "another program is writing to " in output, output
        assert {path: path.read_bytes() for path in run.folder.iterdir()} == before
    records.release(run.folder)
    assert run.ends("--resume")[0] == 0
    assert_same(run, whole_runs["sft"])


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_an_interrupted_demo_goes_on(tmp_path):
    """`make demo` passes --resume to the stage that has a state, and to no other; here python is
    `echo`, so that what is run is told instead."""
    for file in ("toy/world.json", "base/checkpoint.json", "sft/state-000100-1c0e9b52.pt",
                 "sft/state-000200-77ab01de.pt"):
        (tmp_path / "out" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / file).touch()
    done = subprocess.run(["make", "demo", f"IN={tmp_path}", "PY=echo", "SEED=7", "-o",
                           ".venv/installed"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ran = [line for line in done.stdout.splitlines() if line.startswith((str(ROOT), "-m"))]
    assert [line for line in ran if "--resume" in line] == [f"{ROOT}/sft.py --seed=7 --resume"]
    assert f"{ROOT}/ppo.py --preset=ppo --seed=7" in ran
    labels = [line for line in ran if "labels.simulated" in line]  # the second needs the first's
    assert labels == [f"-m labels.simulated{split} --seed=7" for split in ("", " --split=valid")]
    at = [next(i for i, line in enumerate(ran) if step in line) for step in (
        "labels.sample --seed", "labels.simulated --split=valid", "reward.py", "ppo.py")]
    assert at == sorted(at)  # and each of these four needs all that came before it
    assert at[0] < ran.index("-m labels.sample --split=valid --seed=7") < at[1]
    recipe = re.search(r"^demo:.*\n((\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert "-m labels.simulated --split=valid" in recipe  # beside no other step
    assert f"{ROOT}/evaluate.py --seed=7" in done.stdout  # it prints the report at the end


# ------------------------------------------------------------------------------------ checkpoints

@training.dataclasses.dataclass
class Settings:
    out: str = "out"


class NoTokenizer:
    size, name, suffix, source = VOCAB, "words.tiktoken", ".tiktoken", b"d29yZA== 0\n"
    fingerprint, template = hashlib.sha256(source).hexdigest()[:16], "{prompt}"


def save_and_die(folder, n):
    harm.kill_at_operation(n)
    save(folder, tiny(seed=2), NoTokenizer, Settings(), number=2)


def test_there_is_always_one_whole_checkpoint(tmp_path, monkeypatch):
    """Killed before each operation on files in turn: the old checkpoint, or the new one."""
    monkeypatch.setattr(checkpoint, "load_tokenizer", lambda name, folder: NoTokenizer)
    save(tmp_path, tiny(seed=1), NoTokenizer, Settings(), number=1)
    weights = {i: tiny(seed=i).state_dict() for i in (1, 2)}
    seen = []
    for n in range(1, 100):
        process = harm.fork(save_and_die, tmp_path, n)
        process.join(30)
        model, _, facts = load(tmp_path, {"GPT": GPT}, "")
        expected = weights[facts["number"]]
        assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
        seen.append(facts["number"])
        if process.exitcode == 0:
            break
        save(tmp_path, tiny(seed=1), NoTokenizer, Settings(), number=1)
    assert seen == sorted(seen) and seen.count(1) >= 8 and seen.count(2) >= 2
    assert len(list(tmp_path.iterdir())) == 3, "what was left of the others is gone"


# ---------------------------------------------------------------------------------------- samples

def sampling(demo, folder, *flags, harms=(), **environment):
    """A process of labels.sample in a folder of its own; its output is the file `printed` there."""
    return harm.start(folder, folder / "printed", "-m", "labels.sample", f"--data={folder}",
                      f"--models={demo.folder}/out/sft,{demo.folder}/out/init", "--weights=2,1",
                      "--max_new_tokens=8", "--batch=20", *flags, harm=harms,
                      **{"RANK": "0", "WORLD_SIZE": "1", **environment})


def ended(process):
    process.join(60)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


@pytest.fixture
def prompts(demo, tmp_path):
    """(a folder with prompts, the bytes of their completions by a run that nobody disturbed)."""
    whole = tmp_path / "whole"
    for folder in (whole, tmp_path / "killed"):
        folder.mkdir()
        shutil.copy(demo.folder / "out" / "toy" / "prompts_train.jsonl", folder)
    assert ended(sampling(demo, whole)) == 0, (whole / "printed").read_text()
    assert {path.name for path in whole.iterdir()} == {
        "prompts_train.jsonl", "printed", "completions_train.jsonl", "completions_train.facts.json"}
    return tmp_path / "killed", (whole / "completions_train.jsonl").read_bytes()


def test_killed_while_it_samples_it_goes_on_to_the_same_bits(demo, prompts):
    """Killed between batches, within a line, in the last write; each time it finds what was there.
    """
    folder, expected = prompts
    out, partial = folder / "completions_train.jsonl", folder / "completions_train.jsonl.partial-0"
    models = collections.Counter(c["model"] for line in expected.splitlines()
                                 for c in json.loads(line)["completions"])
    batches = sum(-(-n // 20) for n in models.values())
    # Of the counted operations the first are json.dumps of the prompts and two mkdir of the folder
    # (pathlib of Python 3.10 keeps the real one); then comes the first line, where it is not there;
    # then one for each batch.
    first = 3 if sys.version_info >= (3, 11) else 1
    for operation, lines in ((first + 3, 2), (first + 3, 4), (first, 4),
                             (first + batches - 1, batches + 1)):
        assert ended(sampling(demo, folder, harms=[("kill_at_operation", operation)])) != 0
        assert partial.read_bytes().count(b"\n") == lines and not out.exists()
        partial.write_bytes(partial.read_bytes() + b'{"episodes": [1, 2')
    before = partial.read_bytes().rpartition(b"\n")[0]
    there = sum(len(json.loads(line)["episodes"]) for line in before.split(b"\n")[1:])
    (folder / "printed").unlink()
    assert ended(sampling(demo, folder)) == 0
    assert f": {there:,} of {there:,} completions" in (folder / "printed").read_text()
    assert out.read_bytes() == expected and not partial.exists()


def test_samples_of_other_settings_or_prompts_are_not_taken(demo, prompts):
    folder, expected = prompts
    kill = [("kill_at_operation", 7)]
    assert ended(sampling(demo, folder, "--seed=7", harms=kill)) != 0
    assert ended(sampling(demo, folder)) == 0
    assert "not used" in (folder / "printed").read_text()
    assert (folder / "completions_train.jsonl").read_bytes() == expected
    assert ended(sampling(demo, folder, harms=kill)) != 0
    lines = (folder / "prompts_train.jsonl").read_bytes().splitlines(True)
    (folder / "prompts_train.jsonl").write_bytes(b"".join(lines[::-1]))
    assert ended(sampling(demo, folder)) == 0
    assert (folder / "printed").read_text().count("not used") == 2
    assert (folder / "completions_train.jsonl").read_bytes() != expected
    assert not list(folder.glob("*partial*"))


def test_samples_go_on_with_another_batch(demo, prompts):
    """As after a lack of memory; and with the folder's path spelled in another way."""
    folder, expected = prompts
    assert ended(sampling(demo, folder, harms=[("kill_at_operation", 7)])) != 0
    spelled = f"{folder}/../{folder.name}"
    assert ended(sampling(demo, folder, "--batch=10", f"--data={spelled}")) == 0
    assert "completions are there already" in (folder / "printed").read_text()
    assert "not used" not in (folder / "printed").read_text()
    assert (folder / "completions_train.jsonl").read_bytes() == expected


def test_two_ranks_are_killed_and_one_goes_on(demo, prompts):
    folder, expected = prompts
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [sampling(demo, folder, harms=[("kill_at_operation", 7)], RANK=str(rank),
                      WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
             for rank in range(2)]
    assert all(ended(process) != 0 for process in ranks)
    files = sorted(folder.glob("*partial*"))
    assert [file.name[-1] for file in files] == ["0", "1"]
    assert all(file.read_bytes().count(b"\n") >= 3 for file in files)
    assert ended(sampling(demo, folder)) == 0
    assert "completions are there already" in (folder / "printed").read_text()
    assert (folder / "completions_train.jsonl").read_bytes() == expected
    assert not list(folder.glob("*partial*"))


# ----------------------------------------------------------------------------------------- faults

@pytest.mark.parametrize("stage, harm", [("sft", "nan"), ("reward", "huge"), ("ppo", "nan")])
def test_a_step_without_a_usable_gradient_is_skipped_and_counted(demo, stage, harm):
    run = Run(demo, stage, f"{harm}-{stage}")
    code, output = run.ends(harms=[(harm, 3)])
    assert code == 0 and "skipped=1" in output
    lines = run.lines()
    at = 0 if stage == "ppo" else 2  # an iteration of PPO takes four steps
    assert ["skipped" in line for line in lines] == [i >= at for i in range(len(lines))]
    assert lines[-1]["skipped"] == 1
    assert all(torch.isfinite(w).all() for w in demo.weights(run.folder.name).values())


@pytest.mark.parametrize("stage", STAGES)
def test_many_of_them_end_the_run_with_advice(demo, stage):
    run = Run(demo, stage, f"hopeless-{stage}", "--max_skips=3")
    code, output = run.ends(harms=[("nan", *range(2, 50))])
    assert code == 1 and "3 steps in a row were skipped" in output
    for piece in ("--lr (now", "--warmup (now", "--clip (now 1", "--explode=100000"):
        assert piece in output
    assert len(run.lines()) == (3 if stage == "ppo" else 4)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_took_no_step_is_no_trained_model(demo, stage):
    """However high --max_skips is, or how short the run; resumed, it says the same. A single step
    that was taken is enough, and how many were not is told."""
    run = Run(demo, stage, f"stuck-{stage}", "--max_skips=1000")
    for flags in ((), ("--resume",)):
        code, output = run.ends(*flags, harms=[("nan", *range(1, 500))])
        assert code == 1 and f"error: all {len(run.lines())} steps were skipped: " in output
        assert "--lr (now" in output and not (run.folder / "checkpoint.json").exists()
    code, output = run.ends(harms=[("nan", *range(2, 500))])
    steps = len(run.lines())
    assert code == 0 and (run.folder / "checkpoint.json").exists()
    assert f"{steps if stage == 'ppo' else steps - 1} of {steps} steps were skipped, or" in output


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_that_gives_no_numbers_is_no_trained_model(demo, stage):
    """One step of a huge --lr, and all after it skipped: the run ended well, and the model answered
    nothing, without a word. Its weights are finite. Resumed, it says the same."""
    run = Run(demo, stage, f"lost-{stage}", "--lr=1e30", "--warmup=0", "--max_skips=1000")
    for flags in [(), ("--resume",)] if stage == "sft" else [()]:
        code, output = run.ends(*flags)
        assert code == 1 and "error: the model gives no numbers any more. Start" in output, output
        assert "--lr (now 1e+30)" in output and not (run.folder / "checkpoint.json").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_last_step_that_spoils_the_model_gives_none(demo, stage):
    """All numbers of the log come before it: "validation loss nan", and a checkpoint of it."""
    only = ("--iterations=1", "--minibatch=8") if stage == "ppo" else ("--epochs=1", "--batch=999")
    run = Run(demo, stage, f"last-{stage}", "--lr=1e30", "--warmup=0", *only)
    code, output = run.ends()
    assert len(run.lines()) == 1 and None not in run.lines()[0].values()
    assert code == 1 and "error: the model gives no numbers any more. Start" in output, output
    assert not (run.folder / "checkpoint.json").exists()


@pytest.mark.parametrize("kind", [tiny, tiny_scalar])
@pytest.mark.parametrize("spoiled, measured, good", [
    (None, (), True), (None, (0.5, None), True), (None, (0.5, math.nan), False),
    (None, (math.inf,), False), ("transformer.wpe.weight", (0.5,), False),
    ("transformer.h.0.mlp.c_fc.bias", (0.5,), False)])
def test_what_makes_a_model_no_result(kind, spoiled, measured, good):
    """One weight of those that a short text never uses is enough, as is a single number."""
    model = kind()
    if spoiled:
        model.state_dict()[spoiled].view(-1)[-1] = math.inf
    told = []
    run = types.SimpleNamespace(world=types.SimpleNamespace(device="cpu"),
                                give_up=lambda why, skips: told.append(why))
    training.Training.judge(run, model, *measured)
    assert told == ["the model gives no numbers any more"] * (not good)


@pytest.mark.parametrize("stage, named", [  # of one layer, which checkpointing makes no smaller
    ("sft", ["--micro_batch=1 (now 3): ", "--init (now out/base)", "--data (now out/toy)"]),
    ("reward", ["--micro_batch=1 (now 3): ", "--init (now out/init)", "--data (now out/toy)"]),
    ("ppo", ["--micro_batch=2 (now 16): ", "--batch=4 (now 8)", "--max_new_tokens=4 (now 8)"]),
])
def test_out_of_memory_names_what_lowers_it(demo, stage, named):
    run = Run(demo, stage, f"memory-{stage}")
    code, output = run.ends(harms=[("out_of_memory", 7)])
    assert code == 1 and "error: out of memory in step " in output and "Traceback" not in output
    assert all(piece in output for piece in named)
    assert run.states()[-1].name in output, "from where --resume goes on"


def test_a_full_disk_is_one_line_and_what_is_there_stays(demo, whole_runs):
    run = Run(demo, "reward", "full")
    code, output = run.ends(harms=[("disk_full", 3)])
    assert code == 1 and "No space left on device. Make room on the disk." in output
    assert "Traceback" not in output and len(re.findall("error", output)) == 1
    assert [f.name[:12] for f in run.states()] == ["state-000000", "state-000002"]
    assert run.ends("--resume")[0] == 0
    assert_same(run, whole_runs["reward"])


@pytest.mark.parametrize("code, folders", [
    (errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EACCES, True)])
def test_a_folder_that_cannot_be_synced_is_one_warning(demo, whole_runs, code, folders):
    run = Run(demo, "reward", f"unsynced-{code}")
    ended, output = run.ends(harms=[("no_sync", code, folders)])
    assert ended == 0, output
    assert output.count("warning: ") == 1 and "cannot be synced (" in output
    assert_same(run, whole_runs["reward"])


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_while_it_is_synced_ends_the_run(demo, code):
    ended, output = Run(demo, "reward", f"failed-{code}").ends(harms=[("no_sync", code)])
    assert ended == 1 and os.strerror(code) in output and "warning" not in output


def test_a_folder_that_cannot_be_written_to_is_one_line_before_the_first_step(demo):
    run = Run(demo, "reward", "toy/world.json/x")
    run.printed = demo.folder / "unwritable.txt"
    code, output = run.ends()
    assert code == 1 and "Not a directory" in output and "see --out" in output
    assert "Traceback" not in output


def test_a_file_that_cannot_be_written_leaves_no_part_of_it(tmp_path):
    """On a full disk the half of a file would take the room that is missing."""
    def content(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError):
        write(tmp_path / "model.pt", content)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------- many ranks

def assert_close(demo, one, two):
    """Another number of ranks adds in another order: equal to 1e-5, as in test_scripts.py."""
    from test_scripts import assert_same_model
    assert_same_model(demo, one, two)


def test_the_ranks_end_together_and_one_alone_goes_on(demo):
    """SIGTERM to one of two ranks; then the run is resumed by a single process."""
    flags = ("--reward=", )
    whole = Run(demo, "sft", "whole-alone", *flags)
    assert whole.ends()[0] == 0
    run = Run(demo, "sft", "two-then-one", *flags, "--save_every=1000")
    ranks = run.ranks(2, harms=[("slow", 0.2)])
    run.wait_for(2)
    ranks[1].terminate()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0, run.output()
    steps = len(run.lines())
    assert steps in (2, 3) and run.states()[-1].name.startswith(f"state-{steps:06}-")
    code, output = run.ends("--resume")
    assert code == 0 and f"resumed at step {steps} of" in output
    assert_close(demo, "whole-alone", "two-then-one")


@pytest.mark.long
def test_a_rank_that_does_not_answer_is_named(demo):
    """It neither goes on nor dies; the others wait for --timeout, not for ever."""
    run = Run(demo, "reward", "hung", "--timeout=2")
    ranks = run.ranks(2, harms=[("hang", 1, 3)])
    ranks[0].join(60)
    ranks[1].kill()
    assert ranks[0].exitcode == 1
    assert "rank 0: rank 1 died, or did not answer for --timeout=2 seconds, in step 4" in (
        run.output())


@pytest.mark.long
@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("pkill")), reason="no such shell")
def test_a_job_that_is_asked_to_end_exits_0(demo):
    """The lines of docs/resuming.md: a shell that sends its SIGTERM on to torchrun's processes."""
    page = (ROOT / "docs" / "resuming.md").read_text(encoding="utf-8")
    lines = page.split("```bash\n")[1].split("```")[0]
    run = Run(demo, "sft", "job", "--reward=", "--save_every=1000")
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
             "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", f"{ROOT}/tests/harm.py",
             '[["slow", 0.2]]', *run.arguments]
    job = lines.replace("torchrun --nproc_per_node=8 ppo.py", shlex.join(words))
    assert job != lines and "--resume & torchrun=" in job
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    with open(run.printed, "w") as file:
        shell = subprocess.Popen(["bash", "-c", job], cwd=demo.folder, env=environment,
                                 stdout=file, stderr=file)
        run.wait_for(2)
        shell.terminate()
        assert shell.wait(60) == 0, run.output()
    steps = len(run.lines())
    assert f"after step {steps} of" in run.output() and "Traceback" not in run.output()
    assert run.states()[-1].name.startswith(f"state-{steps:06}-")


@pytest.mark.long
def test_torchrun_starts_a_dead_rank_again_and_the_run_resumes(demo):
    """With --max-restarts nobody needs to be there: the same result, and who died is said."""
    flags = ["--reward="]
    output = python(demo.folder, "tests/harm.py", '[["die", 1, 5]]', *STAGES["sft"],
                    "--out=out/restarted", *flags, processes=2, restarts=1)
    assert "rank 1 died" in output and "resumed at step 4 of" in output
    run = Run(demo, "sft", "unharmed", *flags)
    assert run.ends()[0] == 0
    assert_close(demo, "unharmed", "restarted")
    restarted = Run(demo, "sft", "restarted")
    assert len(restarted.lines()) == len(run.lines()) and len(list(restarted.folder.iterdir())) == 4


@pytest.mark.long
def test_two_machines_start_a_dead_rank_again(demo):
    """As docs/resuming.md has it: --resume from the start, a store of its own each time."""
    run, whole = (Run(demo, "sft", name, "--reward=") for name in ("machines", "one-machine"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
             "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=machines",
             "--max-restarts=2", f"{ROOT}/tests/harm.py", '[["die", 1, 5]]', *run.arguments,
             "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "",
                   "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with open(run.printed, "w") as file:
        machines = [subprocess.Popen(words, cwd=demo.folder, env=environment, stdout=file,
                                     stderr=file) for _ in range(2)]
        for machine in machines:
            assert machine.wait(200) == 0, run.output()
    assert "rank 1 died" in run.output() and "resumed at step 4 of" in run.output()
    assert whole.ends()[0] == 0
    assert_close(demo, "one-machine", "machines")
    assert len(run.lines()) == len(whole.lines())

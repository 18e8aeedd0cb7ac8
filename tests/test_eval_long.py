"""The public suite from its command, in two processes, and a real model that has learned the
answers by heart."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data.batches import pad_and_mask
from data.tokenizer import load_tokenizer, train_bpe
from eval_files import make_all, right
from evals import public
from evals.judges import Judges
from evals.loops import GAP, Reader
from helpers import one_process, tiny
from model import GPT, GPTConfig
from real_input import PUBLIC, tokenizer_cache
from runtime.checkpoint import save
from sft import Settings, sft_loss
from test_eval_tasks import BEST, settings

ROOT = Path(__file__).parents[1]


def learned(rows, tokenizer, steps=250):
    """A small GPT that has learned rows (ids, prompt length) by heart."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(tokenizer.size, 640, 2, 4, 96))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    ids, mask = pad_and_mask(rows, "cpu")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / steps) + 1e-5
        loss = sft_loss(model(ids, mask)[0], mask, int(mask.sum()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01, f"did not learn its rows: {loss:.3f}"
    return model


@pytest.mark.long
def test_a_model_that_learned_the_answers_scores_one(tmp_path):
    """Through tokenizer, model, sampler and both loops: every task that has right answers."""
    make_all(tmp_path, 3)
    s, asked = settings(tmp_path), {}
    for name, task in public.TASKS.items():
        if name in ("toxicity", "crows", "winogender", "perplexity"):
            continue
        for package in task.needs:
            pytest.importorskip(package)
        variant = next(iter(task.variants))
        asked[name] = variant, public.read_items(name, task, variant, s)[1]
    texts = [(public.TASKS[name].variants[variant].lead + item.prompt, right(item))
             for name, (variant, items) in asked.items() for item in items]
    (tmp_path / "t.tiktoken").write_bytes(train_bpe(GAP.join(a + b for a, b in texts), 700))
    tokenizer = load_tokenizer("t.tiktoken", tmp_path)
    rows = [(tokenizer.encode(a + b) + [tokenizer.eos], len(tokenizer.encode(a)))
            for a, b in texts]
    reader = Reader(learned(rows, tokenizer), tokenizer, one_process(), 4096)
    sure = lambda rows: [float(row["response"] in known) for row in rows]
    for name, (variant, items) in asked.items():
        known = {item.answer.strip() for item in items}
        outputs = public.ask(reader, public.TASKS[name], public.TASKS[name].variants[variant], [],
                             items)
        found = {row["metric"]: row["value"] for row in public.entries(
            name, "m", variant, items, outputs, Judges(truth=sure, info=sure), s)}
        assert found == pytest.approx({m: BEST[m] for m in found}, abs=0.02), name


@pytest.fixture
def command(tmp_path):
    """command(out, *runner): a process of the suite with a small model, and five tasks."""
    files = make_all(tmp_path / "files", 6)
    (tmp_path / "t.tiktoken").write_bytes(train_bpe("the mill at the river " * 9, 280))
    tokenizer = load_tokenizer("t.tiktoken", tmp_path)
    save(tmp_path / "m", tiny(vocab_size=tokenizer.size, block_size=256, n_layer=1), tokenizer,
         Settings())
    (tmp_path / "mine.py").write_text("def score(rows):\n    return [0.25] * len(rows)\n")

    def start(out, *runner):
        return subprocess.Popen(
            [sys.executable, *runner, str(ROOT / "evaluate.py"), "--suite=public", "--limit=3",
             "--tasks=hellaswag,crows,squad,perplexity,toxicity", "--toxicity=mine:score",
             f"--models=m={tmp_path / 'm'},n={tmp_path / 'm'}", f"--files={files}",
             f"--out={tmp_path / out}", "--device=cpu", "--dtype=float32"], cwd=tmp_path,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})

    return start


def finished(process, out):
    """The results of a process that ends well."""
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    return json.loads((out / "results.json").read_text())


@pytest.mark.long
def test_a_killed_command_goes_on(command, tmp_path):
    """SIGKILL wherever it just is, once it has done so many tasks more: the results are those of a
    run that was not killed, byte by byte, and no task was done twice."""
    finished(command("whole"), tmp_path / "whole")
    answers, dates, kills = tmp_path / "out" / "answers", {}, 0
    for wanted in (1, 5, 12):
        process = command("out")
        while process.poll() is None and len(list(answers.rglob("*.jsonl"))) < wanted:
            time.sleep(0.01)
        kills += process.poll() is None
        process.kill()
        process.communicate()
        for path, date in dates.items():
            assert path.stat().st_mtime_ns == date, path
        dates = {path: path.stat().st_mtime_ns for path in answers.rglob("*.jsonl")}
    assert kills == 3
    finished(command("out"), tmp_path / "out")
    for name in ("results.json", "report.md", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.long
def test_two_processes_give_the_results_of_one(command, tmp_path):
    """torchrun, and then one process: the same results.json, up to rounding."""
    runner = "-m", "torch.distributed.run", "--nproc_per_node=2"
    found = [finished(command("two", *runner), tmp_path / "two"),
             finished(command("one"), tmp_path / "one")]
    both = [{(r["task"], r["prompt"], r["metric"]): r["value"] for r in results["results"]}
            for results in found]
    assert both[0] == pytest.approx(both[1], rel=1e-4) and len(both[0]) > 25


@pytest.mark.long
def test_the_harness_has_our_numbers(tmp_path, monkeypatch):
    """lm-evaluation-harness, where it is installed, on the real items where they are."""
    pytest.importorskip("lm_eval")
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # so that it comes back as it was
        monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
        tokenizer_cache(tmp_path / "tokenizer")
    files = [f"--files={PUBLIC}"] if PUBLIC.is_dir() else []
    done = subprocess.run([sys.executable, ROOT / "tests/bench/lm_eval_check.py", *files],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(" 20 items") == 8 and "all equal" in done.stdout

"""The public suite from its command, in two processes, and a real model that has learned the
answers by heart."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.batches import pad_and_mask
from data.tokenizer import load_tokenizer, train_bpe
from eval_files import make_all
from evals import public
from evals.judges import Judges
from evals.loops import GAP, Reader
from helpers import one_process, tiny
from model import GPT, GPTConfig
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
    texts = [(public.TASKS[name].variants[variant].lead + item.prompt, item.answer)
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
        if name == "wsc":
            assert found["accuracy"] == sum(item.truth[1] for item in items) / len(items)
            continue
        assert found == pytest.approx({m: BEST[m] for m in found}, abs=0.02), name


@pytest.mark.long
def test_two_processes_give_the_results_of_one(tmp_path):
    """torchrun, and then one process: the same results.json, up to rounding."""
    files = make_all(tmp_path / "files", 6)
    (tmp_path / "t.tiktoken").write_bytes(train_bpe("the mill at the river " * 9, 280))
    tokenizer = load_tokenizer("t.tiktoken", tmp_path)
    save(tmp_path / "m", tiny(vocab_size=tokenizer.size, block_size=256, n_layer=1), tokenizer,
         Settings())
    (tmp_path / "mine.py").write_text("def score(rows):\n    return [0.25] * len(rows)\n")
    found = []
    for runner in (["-m", "torch.distributed.run", "--nproc_per_node=2"], []):
        out = tmp_path / f"out{len(found)}"
        done = subprocess.run(
            [sys.executable, *runner, str(ROOT / "evaluate.py"), "--suite=public", "--limit=3",
             "--tasks=hellaswag,crows,squad,perplexity,toxicity", "--toxicity=mine:score",
             f"--models=m={tmp_path / 'm'}", f"--files={files}", f"--out={out}", "--device=cpu",
             "--dtype=float32"], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads((out / "results.json").read_text()))
    both = [{(r["task"], r["prompt"], r["metric"]): r["value"] for r in results["results"]}
            for results in found]
    assert both[0] == pytest.approx(both[1], rel=1e-4) and len(both[0]) > 25

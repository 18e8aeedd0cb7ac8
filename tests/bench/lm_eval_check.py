"""Our numbers against lm-evaluation-harness's: the same model, the same items, the same texts.

    .venv-bench/bin/python tests/bench/lm_eval_check.py [--files=FOLDER] [--limit=20]

A small model with the gpt2 tokenizer and random, strong opinions is exported in Hugging Face's
format; the harness reads it through transformers and makes its own prompts of its own tasks, on
local files. For HellaSwag, RTE, TruthfulQA MC1 and MC2, CrowS-Pairs, WSC and WikiText every
log-likelihood has to be equal to 1e-4 (of its size, at least 1e-4) and every metric of every item
to 1e-4. Then both score the same texts: DROP's F1 and exact match, and the likeness to TruthfulQA's
references. The harness reads WikiText with a context that is one token shorter: where it predicts
that many tokens at a time, we read that many, and predict all but the first.

--files: a folder with the real files (see docs/evaluations.md). A task whose files are not there
gets small ones of our own, and without --files all do.
"""
import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval  # noqa: E402
import numpy as np  # noqa: E402
from lm_eval.tasks.drop import utils as harness_drop  # noqa: E402
from lm_eval.tasks.truthfulqa import utils as harness_truth  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.tasks._yaml_loader import load_yaml  # noqa: E402

from data import hub  # noqa: E402
from data.tokenizer import load_tokenizer  # noqa: E402
from eval_files import make_all  # noqa: E402
from evals import public, tasks  # noqa: E402
from evals.loops import Reader  # noqa: E402
from evals.metrics import drop  # noqa: E402
from evals.truthfulqa import likeness  # noqa: E402
from helpers import one_process, tiny  # noqa: E402
from runtime.huggingface import export  # noqa: E402

TOLERANCE = 1e-4
YAML = {  # where the harness describes its tasks
    "hellaswag": "hellaswag/hellaswag.yaml", "rte": "glue/rte/default.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "crows_pairs_english": "crows_pairs/crows_pairs_english.yaml",
    "wsc": "super_glue/wsc/default.yaml", "wikitext": "wikitext/wikitext.yaml"}
PAIRS = [  # (our task, variant, the harness's task, its split, {our metric: its metric})
    ("hellaswag", "harness", "hellaswag", "validation", {"acc": "acc", "acc_norm": "acc_norm"}),
    ("rte", "harness", "rte", "validation", {"acc": "acc"}),
    ("truthfulqa_mc", "QA", "truthfulqa_mc1", "validation", {"mc1": "acc"}),
    ("truthfulqa_mc", "QA", "truthfulqa_mc2", "validation", {"mc2": "acc"}),
    ("crows", "none", "crows_pairs_english", "test",
     {"stereotype": "pct_stereotype", "likelihood_diff": "likelihood_diff"}),
    ("wsc_choice", "harness", "wsc", "validation", {"acc": "acc"}),
    ("perplexity", "harness", "wikitext", "test",
     {"word_perplexity": "word_perplexity", "bits_per_byte": "bits_per_byte"})]
CONTEXT = 512


def row_for(name, row):
    """A row of a benchmark's file as the hub's dataset has it, which the harness reads."""
    if name == "rte":
        return {**row, "label": ["entailment", "not_entailment"].index(row["label"])}
    if name.startswith("truthfulqa"):
        true, false = public.TASKS["truthfulqa_mc"].item(row, "QA").truth
        targets = lambda right: {"choices": right + false,
                                 "labels": [1] * len(right) + [0] * len(false)}
        return {"question": row["Question"].strip(), "mc1_targets": targets(true[:1]),
                "mc2_targets": targets(true)}
    if name == "wikitext":
        return {"page": row}
    if name == "wsc":
        return {"text": row["text"], "label": int(row["label"]), **row["target"]}
    if name == "crows_pairs_english":
        return {key: row[key] for key in ("sent_more", "sent_less", "bias_type")}
    return {key: row[key] for key in ("activity_label", "ctx_a", "ctx_b", "endings", "label")}


def theirs(name, split, rows, model, folder):
    """[({metric: number}, [log-likelihood of each choice])] of the harness, in the rows' order."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row_for(name, row)) + "\n" for row in rows))
    home = Path(lm_eval.__file__).parent / "tasks" / YAML[name]
    config = {**load_yaml(home, resolve_func=True), "task": name, "dataset_path": "json",
              "dataset_name": None, "tag": None,
              "dataset_kwargs": {"data_files": {split: str(path)}}}
    config |= {key: None for key in ("training_split", "validation_split", "test_split")
               if config.get(key) != split}
    samples = lm_eval.simple_evaluate(
        model, tasks=[config], num_fewshot=0, bootstrap_iters=0, log_samples=True,
        task_manager=TaskManager(include_defaults=False))["samples"][name]
    return [(s, [float(r[0][0] if isinstance(r[0], (list, tuple)) else r[0]) for r in s["resps"]])
            for s in sorted(samples, key=lambda s: s["doc_id"])]


def read(name, files, own):
    """The rows of a task's files in the folder `files`, or in `own` where they are not there."""
    task = public.TASKS[name]
    try:
        return task.read(*tasks.locate(*task.files["test"], files, name))
    except hub.Unavailable:
        return task.read(*tasks.locate(*task.files["test"], own, name))


def compare(ours, variant, name, split, metrics, reader, model, rows, folder):
    """The largest differences of log-likelihoods (relative above 1) and of metrics."""
    task = public.TASKS[ours]
    items = [task.item(row, variant) for row in rows]
    scores = public.ask(reader, task, task.variants[variant], task.solved, items)
    values = task.measure(items, scores, None)
    worst = {"log-likelihood": 0.0, **{m: 0.0 for m in metrics}}
    for i, (sample, logs) in enumerate(theirs(name, split, rows, model, folder)):
        own = [total for total, _ in ([scores[i]] if task.kind == "read" else scores[i])]
        if name == "truthfulqa_mc1":  # one true answer, then the false ones
            own = own[:1] + own[len(items[i].truth[0]) :]
        assert len(own) == len(logs), (name, i, len(own), len(logs))
        worst["log-likelihood"] = max([worst["log-likelihood"], *(
            abs(a - b) / max(1, abs(b)) for a, b in zip(own, logs))])
        for mine, other in metrics.items():
            size = np.maximum(1, np.abs(sample[other]))  # a number, or counts to add up
            gap = np.abs(np.subtract(values[mine][i], sample[other])) / size
            worst[mine] = max(worst[mine], float(gap.max()))
    return len(items), worst


def drop_gaps(rng):
    """The differences for spans with numbers, hyphens, articles and repeated words. Both round F1
    to two digits; a half may go up or down, so that ours is compared with theirs before that."""
    words = "the 3 3.0 23-yard 1,000 1000 $5 Moss Brady field-goal goal goals .".split()
    span = lambda: " ".join(rng.choice(words) for _ in range(rng.randint(1, 3)))
    spans = lambda: [span() for _ in range(rng.randint(1, 4))]
    said, references = spans(), [spans() for _ in range(3)]
    bags = lambda own: harness_drop._answer_to_bags(own)[1]
    best = max(harness_drop._align_bags(bags(said), bags(r)).mean() for r in references)
    f1, exact = drop(said, references)
    theirs = harness_drop.process_results({"answers": references}, said)
    return {"f1": max(0.0, abs(f1 - best) - 0.005), "exact": abs(exact - theirs["em"])}


def truth_gaps(row, rng):
    """The differences for an answer that is one of the references without some of its words."""
    true, false = public.TASKS["truthfulqa"].item(row, "QA").truth
    text = " ".join(w for w in rng.choice([*true, *false]).split() if rng.random() < 0.8)
    document = harness_truth.preprocess_function(
        {"question": row["Question"], "correct_answers": true, "incorrect_answers": false})
    theirs = harness_truth.process_results_gen(document, [text])
    return {m: abs(own - theirs[m]) for m, own in likeness(text, true, false).items()}


def compare_texts(rows, limit):
    """[(what, how many texts, {metric: the largest difference})] for texts that both score. rows:
    TruthfulQA's."""
    rng = random.Random(1)
    return [(what, len(gaps), {m: max(gap[m] for gap in gaps) for m in gaps[0]})
            for what, gaps in (("drop, scores", [drop_gaps(rng) for _ in range(50 * limit)]),
                               ("truthfulqa_gen, scores", [truth_gaps(r, rng) for r in rows]))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", default="", help="folder with the benchmarks' files")
    parser.add_argument("--limit", type=int, default=20, help="items of each task")
    args, found = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        own = make_all(folder / "files", max(24, args.limit))
        rows = lambda name: read(name, args.files or own, own)[: args.limit]
        tokenizer = load_tokenizer("gpt2")
        small = tiny(vocab_size=tokenizer.size, block_size=CONTEXT, loud=3.0)
        export(small, tokenizer, folder / "model")
        whole, short = (HFLM(pretrained=str(folder / "model"), device="cpu", dtype="float32",
                             batch_size=4, max_length=n) for n in (CONTEXT, CONTEXT - 1))
        reader = Reader(small, tokenizer, one_process())
        for pair in PAIRS:
            model = short if pair[2] == "wikitext" else whole
            found.append((pair[2], *compare(*pair, reader, model, rows(pair[0]), folder)))
        found += compare_texts(rows("truthfulqa"), args.limit)
    for what, n, worst in found:
        print(f"{what:22} {n:5} items, largest differences: " + ", ".join(
            f"{name} {gap:.1e}" for name, gap in worst.items()))
    failed = [what for what, _, worst in found if max(worst.values()) > TOLERANCE]
    if failed:
        raise SystemExit(f"error: not as in lm-evaluation-harness: {', '.join(failed)}")
    print("all equal")


if __name__ == "__main__":
    main()

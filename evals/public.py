"""The public suite: the paper's benchmarks for any models (`python evaluate.py --suite=public`).

Each model is loaded once and does all tasks. What it said to a task, or its log-probs, is kept in
--out/answers as soon as the task is done: a run that was killed goes on there, and a judge can read
it. The results are out/evals/results.json, report.md and report.html.
"""
import dataclasses
import json
import zlib
from pathlib import Path

from settings import extra, stop  # before torch

from data import hub, records
from evals import (crows, drop, hellaswag, paper, perplexity, preference, public_report, quac, rte,
                   squad, sst, summaries, toxicity, translation, truthfulqa, winogender, wsc)
from evals.judges import Judges, judge, named
from evals.loops import Reader
from evals.metrics import interval
from evals.tasks import item_of, locate, rows_of, some, split_off
from evals.town import is_prompted, named_models
from model import GPT
from runtime import pretrained
from runtime.checkpoint import load, made_from
from runtime.machine import precision

TASKS = {"truthfulqa": truthfulqa.GENERATION, "truthfulqa_mc": truthfulqa.CHOICE,
         "toxicity": toxicity.TASK, "crows": crows.TASK, "winogender": winogender.TASK,
         "hellaswag": hellaswag.TASK, "rte": rte.TASK, "sst": sst.TASK,
         "wsc": wsc.WRITTEN, "wsc_choice": wsc.CHOICE, "squad": squad.TASK, "drop": drop.TASK,
         "quac": quac.TASK, "translation": translation.TASK, "cnn_dm": summaries.CNNDM,
         "tldr": summaries.TLDR, "perplexity": perplexity.TASK}


def chosen(s):
    """{name: Task} that --tasks names; all of them where it is empty."""
    names = [n for n in s.tasks.split(",") if n] or list(TASKS)
    for name in names:
        if name not in (*TASKS, "preference"):
            stop(f"--tasks={s.tasks}: there is no task {name!r}; there are {', '.join(TASKS)} and "
                 "preference")
    return {name: TASKS[name] for name in names if name != "preference"}


def read_items(name, task, variant, s):
    """(examples, items, whether they share a file) of a task in one of its variants. The examples
    are the benchmark's own, or from the training file; where there is none, from the evaluated
    file. Then they are left out of it, for every variant alike, and all items of a passage whose
    answers an example shows."""
    make = lambda row: item_of(name, task, row, variant)
    usable = lambda row: make(row).example
    rows = rows_of(task, locate(*task.files["test"], s.files, name))
    most, examples, shared = max(v.shots for v in task.variants.values()), [], False
    if most and not task.solved:
        try:
            training = rows_of(task, locate(*task.files["train"], s.files, name))
            examples, _ = split_off(training, most, s.seed, usable)
        except (hub.Unavailable, KeyError):
            examples, rows = split_off(rows, most, s.seed, usable)
            shared = True
    examples, items = [*task.solved, *map(make, examples)], list(map(make, rows))
    if shared:
        shown = {e.source for e in examples} - {None}
        items = [item for item in items if item.source not in shown]
    items = (task.select or some)(items, s.limit, s.seed)
    return examples[: task.variants[variant].shots], items, shared


def read_tasks(s, world):
    """({name: {variant: (examples, items)}}, {name: why it is skipped}, notes). With --tasks a task
    whose files are missing ends the run; without, it is skipped, and told."""
    data, skipped, notes = {}, {}, []
    for name, task in chosen(s).items():
        try:
            every = {v: read_items(name, task, v, s) for v in task.variants}
            if not all(items for _, items, _ in every.values()):
                stop(f"{name}: {task.files['test'][0][0]} has no item that can be measured" + (
                    ", beside the examples, for which there is no other file" if any(
                        shared for *_, shared in every.values()) else ""))
            data[name] = {v: own[:2] for v, own in every.items()}
            if any(shared for *_, shared in every.values()):
                notes.append(f"{name}: there is no {', '.join(task.files['train'][0])}: the "
                             "examples come from the evaluated file, and are left out of it")
                world.print(notes[-1])
            notes += [f"{name}, {v}: {len(own):,} examples instead of {task.variants[v].shots}, "
                      "there are no more" for v, (own, *_) in every.items()
                      if len(own) < task.variants[v].shots]
        except hub.Unavailable as error:
            names, where = task.files["test"]
            skipped[name] = (f"{error}; get {', '.join(names)} ({where}), and give their folder as "
                             "--files")
            if s.tasks:
                stop(f"{name}: {skipped[name]}")
            world.print(f"{name} is skipped: {skipped[name]}")
    if not data and not (s.prompts or s.rankings):
        stop("no task has its files")
    if len(set(world.gather([tuple(data)]))) > 1:
        stop("some processes lack the files of a task, and the others would wait for them: name "
             "the tasks with --tasks, or give the files with --files")
    for name in data:
        if not (s.truth and name == "truthfulqa"):  # a judge needs no likeness to references
            for package in TASKS[name].needs:
                extra(package, f"the task {name}")
    return data, skipped, notes


def read_judges(s, data):
    """The judges that the tasks need."""
    kinds, cache = {TASKS[name].group for name in data}, f"{s.out}/judged"
    if "toxicity" in kinds and not s.toxicity:
        stop("--toxicity= names no scorer: name one, or leave toxicity out of --tasks")
    return Judges(judge("toxicity", s.toxicity, cache) if "toxicity" in kinds else None,
                  judge("truth", s.truth, cache), judge("info", s.info, cache))


def read_pairs(s):
    """[(name, path)] of --models; stops at once if one is not there."""
    out = named_models(s)
    for name, path in out:
        if is_prompted(name):
            stop(f"--suite=public has no few-shot prefix for {name}: leave it out of --models")
        if not (Path(path) / "checkpoint.json").exists() and not pretrained.known(path):
            stop(f"{path} has no checkpoint: run `python sft.py` first, or leave {name} out of "
                 "--models")
    return out


# ----------------------------------------------------------------------------------- one model

def fingerprint(items, examples):
    """A checksum of everything that a model will read."""
    content = [(i.prompt, list(i.choices), i.answer) for i in [*examples, *items]]
    return zlib.crc32(json.dumps(content).encode())


def kept(path, facts, n):
    """(outputs, what did not fit) of a finished task, if they were made from the same n items; or
    None."""
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        head, *rest = (json.loads(line) for line in lines if line)
        return ([row["output"] for row in rest], head["unfit"]) if (
            head["made_from"] == facts and len(rest) == n) else None
    except (ValueError, KeyError, TypeError):
        return None


def ask(reader, task, variant, examples, items):
    """What the model does with the items: see `tasks.Task`."""
    if task.kind == "read":
        return reader.read([item.choices[0] for item in items])
    if task.kind == "choose":
        return reader.choose(variant, examples, items)
    return reader.complete(variant, examples, items, task.new)


def outputs_of(reader, name, variant, examples, items, facts, path):
    """(outputs, [examples that did not fit, prompts that were cut]) of one model for one variant
    of a task: from the disk, or asked and written. None on other ranks than the first."""
    task, world = TASKS[name], reader.world
    found = kept(path, facts, len(items)) if world.main else None
    if not world.gather([found is not None])[0]:
        reader.dropped = reader.cut = 0
        outputs = ask(reader, task, task.variants[variant], examples, items)
        if world.main:
            unfit = [reader.dropped, reader.cut]
            records.write(path, [{"made_from": facts, "unfit": unfit}, *(
                {"prompt": item.prompt, "output": output}
                for item, output in zip(items, outputs))])
            found = kept(path, facts, len(items))  # as after a resume: lists for tuples
    return found


def entries(name, model, variant, items, outputs, judges, s):
    """The rows of results.json for one model and one variant of a task."""
    task, rows = TASKS[name], []
    for metric, values in task.measure(items, outputs, judges).items():
        found = interval(values, s.seed, task.metrics[metric].of)
        rows.append({"task": name, "group": task.group, "model": model, "prompt": variant,
                     "metric": metric, **found, "definition": task.metrics[metric].definition,
                     "seed": s.seed})
    return rows


def do_tasks(reader, model, weights, data, judges, results, s):
    """All tasks of one model. results.json is written after each. weights: identifies them."""
    for name, variants in data.items():
        for variant, (examples, items) in variants.items():
            facts = {"model": weights, "task": name, "prompt": variant, "form": s.form,
                     "seed": s.seed, "dtype": s.dtype, "items": fingerprint(items, examples),
                     "asked": dataclasses.asdict(TASKS[name].variants[variant]),
                     "new": TASKS[name].new}
            path = Path(s.out, "answers", model, f"{name}.{variant.replace(' ', '_')}.jsonl")
            found = outputs_of(reader, name, variant, examples, items, facts, path)
            if found:
                outputs, unfit = found
                asked = len(examples) * len(items), len(items)
                note(reader.world, results, f"{model}, {name}, {variant}", unfit, asked)
                rows = entries(name, model, variant, items, outputs, judges, s)
                results["results"] += rows
                records.write_json(f"{s.out}/results.json", results)
                first = rows[0]
                reader.world.print(f"{model:12} {name:14} {variant:18} {first['metric']} "
                                   f"{public_report.shown(first)}")


def note(world, results, where, unfit, asked):
    """Tell and record what did not fit the context: of how many examples and prompts."""
    for n, of, what in zip(unfit, asked, ("examples do not fit the context and are left out",
                                          "prompts are cut at their beginning to fit the context")):
        if n:
            results["notes"].append(f"{where}: {n:,} of {of:,} {what}")
            world.print(results["notes"][-1])


def answers_of(reader, model, weights, prompts, results, s):
    """[(text, ended) or None], an answer to each of --prompts: from the disk, or asked and written.
    On all ranks: they share the work of the reward model."""
    facts = {"model": weights, "seed": s.seed, "dtype": s.dtype, "temperature": s.temperature,
             "new": s.max_new_tokens, "prompts": zlib.crc32(json.dumps(prompts).encode())}
    path = Path(s.out, "answers", model, "preference.jsonl")
    found = reader.world.gather([kept(path, facts, len(prompts))])[0]
    if found is None:
        said = preference.answer(reader, prompts, s)
        found = said, None
        if reader.world.main:
            records.write(path, [{"made_from": facts, "unfit": None}, *(
                {"prompt": p["prompt"], "output": output} for p, output in zip(prompts, said))])
    if n := found[0].count(None):
        results["notes"].append(f"{model}, preference: {n:,} prompts do not fit the context and "
                                "have no answer")
        reader.world.print(results["notes"][-1])
    return [output and tuple(output) for output in found[0]]


def prefer(s, compared, people, results):
    """The rows of the task `preference`: of what the models answered, and of what people ranked."""
    found = [*((s.judge, row) for row in compared), *(("rankings", row) for row in people)]
    for who, (model, metric, values) in found:
        results["results"].append({
            "task": "preference", "group": "preference", "model": model, "prompt": who,
            "metric": metric, **interval(values, s.seed), "seed": s.seed,
            "definition": preference.defined(metric)})


def run(s, world):
    """The whole suite, from settings to the three files."""
    models = read_pairs(s) if s.models and not (s.rankings and s.tasks == "preference"
                                                and not s.prompts) else []
    data, skipped, notes = read_tasks(s, world)
    judges = read_judges(s, data)
    prompts, again = preference.read_prompts(s) if s.prompts else ([], [])
    compare = preference.comparing(s, prompts, world) if prompts and models else None
    people = preference.from_rankings(s.rankings, s.versus) if s.rankings else []
    records.make_folder(s.out)
    if world.main:
        records.claim(s.out)
    results = {"suite": "public", "seed": s.seed, "limit": s.limit, "form": s.form,
               "judges": {"toxicity": named(s.toxicity), "truth": named(s.truth),
                          "info": named(s.info)}, "models": {}, "skipped": skipped,
               "notes": notes + again, "results": []}
    answers = {}
    for name, path in models:
        model, tokenizer, _ = load(path, {"GPT": GPT}, "python sft.py")
        precision(s.dtype, world, model.config.n_embd)
        weights = made_from()[str(Path(path))]
        results["models"][name] = {"path": path, "weights": weights,
                                   "parameters": sum(p.numel() for p in model.parameters())}
        reader = Reader(model, tokenizer, world, s.batch_tokens, s.form, s.seed)
        do_tasks(reader, name, weights, data, judges, results, s)
        if prompts:
            answers[name] = answers_of(reader, name, weights, prompts, results, s)
    prefer(s, compare(answers) if answers else [], people, results)
    if world.main:
        finish(s, results)
    world.close()


def finish(s, results):
    """Write and print the results."""
    for row in results["results"]:
        row["paper"] = paper.beside(row["task"], row["prompt"], row["metric"])
    records.write_json(f"{s.out}/results.json", results)
    lines = public_report.markdown(results)
    records.write_text(Path(s.out, "report.md"), "\n".join(lines) + "\n")
    records.write_text(Path(s.out, "report.html"), public_report.page(results))
    print("\n".join(lines))
    said = f"   what the models said: {s.out}/answers" if results["models"] else ""
    print(f"\nreport: {s.out}/report.md, report.html   numbers: {s.out}/results.json{said}")

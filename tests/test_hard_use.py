"""What an hour of hard use found: numbers that were wrong without a word, and work that was lost.

Each is one case of a kind: files of a world or of labelers that are gone, means over what was not
asked, tables that shift, text that changed halfway, and what is refused only after all is computed.
"""
import errno
import json
import math
import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import eval_files
import evaluate
import ppo
import sft
from data import files, records, shards
from data.tokenizer import of_tiktoken, train_bpe
from data.toy import world
from data.toy.tasks import gold, good
from evals import pictures, preference, public, report, tasks, town
from exercises import draw
from helpers import one_process
from labels import mine, sample, simulated
from model import GPT
from runtime import checkpoint, training
from sampler import choose
from settings import parse

SMALL = dict(documents=100, vocab=257, demonstrations=3, prompts=8, heldout=4, group=1,
             templated=20)


def built(folder, **changes):
    return world.build(world.Settings(out=str(folder), **{**SMALL, **changes}))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A small world with five completions of each prompt, ranked by the labelers of seed 3."""
    folder = tmp_path_factory.mktemp("labelled")
    built(folder, prompts=30)
    for split in ("train", "valid"):
        prompts = records.read(folder / f"prompts_{split}.jsonl", "prompt")
        said = ("Anna is a baker.", "cat dog.", "You fool.", "Glad to help.", "green, red and blue")
        records.write(folder / f"completions_{split}.jsonl", [{**p, "completions": [
            {"text": text, "model": "m", "ended": True} for text in said]} for p in prompts])
    return folder


@pytest.fixture
def ranked(labelled, tmp_path, monkeypatch):
    """A copy of it, and a function that runs labels/simulated.py on it."""
    for name, content in contents(labelled).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    def run(*flags):
        monkeypatch.setattr("sys.argv", ["x", f"--data={tmp_path}", "--calibrate=m", *flags])
        simulated.main()

    return tmp_path, run


# ------------------------------------------------------------------- a world that is gone

@pytest.mark.parametrize("made, change", [
    ("completions_train.jsonl", dict(seed=1)), ("labelers.json", dict(documents=110)),
    ("rankings_valid_heldout.jsonl", dict(prompts=9)), ("text_shards.json", dict(heldout=5))])
def test_a_world_is_not_replaced_under_what_was_made_of_it(tmp_path, made, change):
    built(tmp_path)
    (tmp_path / made).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(SystemExit, match=f"{made} was made of another world.*another --out"):
        built(tmp_path, **change)
    assert contents(tmp_path) == before
    built(tmp_path)  # the same world: its files are what they were
    after = contents(tmp_path)
    assert all(after[name] == before[name] for name in before if name != "world.json")
    (tmp_path / made).unlink()
    assert built(tmp_path, **change) and contents(tmp_path) != after


def test_a_killed_build_is_no_world(tmp_path, monkeypatch):
    """The facts of an earlier world do not stand beside the prompts of the new one."""
    built(tmp_path)
    write = records.write
    monkeypatch.setattr(records, "write", lambda path, rows: 1 / 0 if path.name.startswith(
        "prompts_test") else write(path, rows))
    with pytest.raises(ZeroDivisionError):
        built(tmp_path, seed=1)
    assert not (tmp_path / "world.json").exists()
    with pytest.raises(SystemExit, match="world.json: run `python -m data.toy.world` first"):
        simulated.town_of(tmp_path)


def test_a_group_without_more_prompts_says_so(tmp_path, monkeypatch):
    """It searched for ever. Nothing is written."""
    monkeypatch.setattr(world, "IN_VAIN", 300)
    with pytest.raises(SystemExit, match="the group '.*': .* prompts, and no new one in 300: lo"):
        built(tmp_path / "new", group=60)
    assert not (tmp_path / "new").exists()


# ----------------------------------------------------------------- labelers who are gone

def expected(folder, name, people, sharpness="sharpness"):
    """Whether the group's mean utility in a file of rankings is that of these people."""
    facts, place = simulated.labelers_of(folder), simulated.town_of(folder)
    rows = records.read(folder / name, "ranking")
    for row in rows:
        for c, said in zip(row["completions"], row["expected"]):
            x = simulated.features(place, row["task"], c["text"], c["ended"])
            worth = [facts[sharpness] * sum(a * (b + d) for a, b, d in zip(
                x, simulated.CRITERIA["train"], person.taste)) for person in people]
            if abs(sum(worth) / len(worth) - said) > 1e-3:
                return False
    return len(rows) > 0


def test_held_out_labels_are_of_the_pool_that_labelled_training(ranked):
    """Another seed gives other noise; the people stay those of labelers.json."""
    folder, run = ranked
    run("--seed=3")
    run("--split=valid", "--seed=9")
    training, heldout = simulated.pool(3)
    assert expected(folder, "rankings_valid.jsonl", training)
    assert expected(folder, "rankings_valid_heldout.jsonl", heldout, "heldout_sharpness")
    assert not expected(folder, "rankings_valid.jsonl", simulated.pool(9)[0])
    noisy = [r["ranks"] for r in records.read(folder / "rankings_valid.jsonl", "ranking")]
    run("--split=valid", "--seed=3")
    assert noisy != [r["ranks"] for r in records.read(folder / "rankings_valid.jsonl", "ranking")]


def test_rankings_of_an_earlier_pool_do_not_stay(ranked, capsys):
    folder, run = ranked
    run("--seed=3")
    run("--split=valid")
    first = contents(folder)
    run("--seed=3")  # the same people: nothing is lost
    again = contents(folder)
    assert {**again, "labelers.json": 0} == {**first, "labelers.json": 0}
    capsys.readouterr()
    run("--seed=9")
    assert "rankings_valid.jsonl is removed: other labelers had" in capsys.readouterr().out
    assert not list(folder.glob("rankings_valid*")) and simulated.labelers_of(folder)["seed"] == 9
    assert expected(folder, "rankings_train.jsonl", simulated.pool(9)[0])


@pytest.mark.parametrize("file, content, flags, complaint", [
    ("labelers.json", "{}", ["--split=valid"], "labelers.json is damaged .it has no 'seed'.: del"),
    ("labelers.json", "[]", ["--split=valid"], "labelers.json is damaged .it holds no JSON object"),
    ("world.json", "{}", [], "world.json is damaged .it has no 'seed'"),
    ("completions_train.jsonl", {"type": "fly"}, [], "the task of the prompt .* is none of this"),
    ("completions_train.jsonl", {"type": "ask"}, [], "the task of the prompt .* is none of this"),
])
def test_facts_that_are_not_whole_are_one_line(ranked, file, content, flags, complaint):
    folder, run = ranked
    if isinstance(content, dict):
        rows = records.read(folder / file, "sampled prompt")
        records.write(folder / file, [*rows[:-1], {**rows[-1], "task": content}])
    else:
        (folder / file).write_text(content)
    before = contents(folder)
    with pytest.raises(SystemExit, match=complaint):
        run(*flags)
    assert contents(folder) == before


# ------------------------------------------------------------------- evaluate.py: settings

@pytest.mark.parametrize("flags, complaint", [
    (["--limit=3"], "--limit is a setting of the public suite: add --suite=public"),
    (["--prompts=x"], "--prompts is a setting of the public suite"),
    (["--suite=public", "--tasks=rte,preference"], "needs --prompts=FILE or --rankings=FILE"),
    (["--suite=public", "--info=a:b"], "--info needs --truth"),
    (["--models="], "--models= names no model"),
    (["--suite=public", "--models="], "--models= names no model"),
    (["--models=a=b", "--versus=a/c"], "there is no model c in --models"),
])
def test_settings_that_contradict_each_other(flags, complaint):
    with pytest.raises(SystemExit, match=complaint):
        parse(evaluate.Settings, argv=flags)


def test_rankings_have_models_of_their_own():
    """People ranked `before` and `after`; --models knows neither."""
    s = parse(evaluate.Settings, argv=[
        "--suite=public", "--tasks=preference", "--rankings=r.jsonl", "--versus=after/before"])
    assert s.versus == "after/before"


@pytest.mark.parametrize("name, prompted", [
    ("prompted", True), ("base-prompted", True), ("big_prompted", True), ("unprompted", False),
    ("prompted-base", False), ("sft", False)])
def test_which_models_get_a_few_shot_prefix(name, prompted):
    assert town.is_prompted(name) == prompted


@pytest.mark.parametrize("name", ["a|b", "a/b", "../a", ".a", "a\nb", "a\\b", " a"])
def test_a_name_that_shifts_a_table_or_leaves_the_folder(name):
    with pytest.raises(SystemExit, match="a name has no / and no"):
        town.named_models(SimpleNamespace(models=f"ok=x,{name}=y"))


# ------------------------------------------------------------- evaluate.py: public benchmarks

def read(folder, task, **changes):
    s = evaluate.Settings(suite="public", files=str(folder), tasks=task, **changes)
    return public.read_tasks(s, one_process())


ENDING = {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "label": 0, "endings": ["x", "y"]}
HEAD = "index\tsentence1\tsentence2\tlabel\n"
TRUTH = "Question,Best Answer,Correct Answers,Incorrect Answers\n"


@pytest.mark.parametrize("task, file, content, complaint", [
    ("rte", "glue/RTE/dev.tsv", HEAD, "rte: RTE/dev.tsv has no item that can be measured$"),
    ("rte", "glue/RTE/dev.tsv", HEAD + "0\ta\tb\tmaybe\n", "rte: a row is not in .*'maybe' is not"),
    ("rte", "glue/RTE/dev.tsv", HEAD + "0\ta\n", "dev.tsv:2: not a cell for each of the columns"),
    ("rte", "glue/RTE/train.tsv", "index\tgold\n0\tentailment\n", "rte: a row .*KeyError: 'label'"),
    ("hellaswag", "data/hellaswag_val.jsonl", {**ENDING, "label": -1}, "label -1 of 2 choices"),
    ("hellaswag", "data/hellaswag_val.jsonl", {**ENDING, "label": 2}, "list index out of range"),
    ("hellaswag", "data/hellaswag_val.jsonl", {**ENDING, "label": ""}, "ValueError: invalid lit"),
    ("hellaswag", "data/hellaswag_val.jsonl", {**ENDING, "endings": ["", "y"]}, "an empty text"),
    ("hellaswag", "data/hellaswag_val.jsonl", {**ENDING, "ctx_a": "\ud83d"}, "surrogates not all"),
    ("hellaswag", "data/hellaswag_val.jsonl", [1, 2], "hellaswag: a row is not in the benchmark's"),
    ("crows", "crows_pairs_anonymized.csv", "sent_more,sent_less\n,b\n", "an empty text"),
    ("crows", "crows_pairs_anonymized.csv", "sent_more,sent_less\na, b,c\n", "csv:2: not a cell"),
    ("crows", "crows_pairs_anonymized.csv", b"sent_more,sent_less\n\xe9,b\n", "csv: not UTF-8"),
    ("winogender", "all_sentences.tsv", "sentid\tsentence\nb.g.0.male.txt\tHe.\n", "'female'"),
    ("squad", "dev-v2.0.json", "[]", "dev-v2.0.json is not in the benchmark's format"),
    ("squad", "dev-v2.0.json", '{"data": []}', "squad: dev-v2.0.json has no item"),
    ("toxicity", "prompts.jsonl", "", "toxicity: prompts.jsonl has no item"),
    ("toxicity", "prompts.jsonl", {"prompt": {"text": "a", "toxicity": 1.5}}, "a toxicity of 1.5"),
    ("toxicity", "prompts.jsonl", {"prompt": {"text": "a", "toxicity": None}}, "has no item that"),
    ("truthfulqa_mc", "TruthfulQA.csv", TRUTH + "q,b,b,\n", "no incorrect answer"),
    ("perplexity", "wikitext-2/test.txt", " \n \n", "perplexity: wikitext-2/test.txt has no item"),
    ("translation", "newsdiscusstest2015-fren-ref.en.sgm", "one\ntwo\n",
     "20 French and 2 English sentences"),
])
def test_a_benchmark_that_cannot_be_measured(tmp_path, task, file, content, complaint):
    """Before any model is asked, in one line."""
    eval_files.make_all(tmp_path, 20)
    content = json.dumps(content) if isinstance(content, (dict, list)) else content
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match=complaint) as error:
        read(tmp_path, task)
    assert "\n" not in str(error.value)


def test_toxicity_without_a_scorer_is_told_before_a_model_answers():
    s = evaluate.Settings(suite="public", toxicity="")
    with pytest.raises(SystemExit, match="--toxicity= names no scorer"):
        public.read_judges(s, {"toxicity": {}})
    assert public.read_judges(s, {"rte": {}}).toxicity is None


def test_examples_that_use_up_the_items_or_are_too_few(tmp_path):
    """15 examples of RTE, of 12 items without a training file, and of a training file with 8."""
    eval_files.make_all(tmp_path / "one", 12, training=False)
    with pytest.raises(SystemExit, match="dev.tsv has no item that can be measured, beside the ex"):
        read(tmp_path / "one", "rte")
    eval_files.make_all(tmp_path / "two", 8)
    data, _, notes = read(tmp_path / "two", "rte")
    assert [len(own) for own in data["rte"]["few-shot"]] == [8, 8]
    assert notes == ["rte, few-shot: 8 examples instead of 15, there are no more"]


def test_a_table_with_a_cell_for_each_column(tmp_path):
    (tmp_path / "a.csv").write_text('\ufeffa,b\n"1, 2",3\n', encoding="utf-8")
    assert tasks.csv_rows(tmp_path / "a.csv") == [{"a": "1, 2", "b": "3"}]


def test_kept_answers_are_all_answers(tmp_path):
    """A file that lost its last line would give a mean over fewer items."""
    lines = [{"made_from": {"x": 1}, "unfit": [0, 0]}, {"output": "a"}, {"output": "b"}]
    records.write(tmp_path / "k.jsonl", lines)
    assert public.kept(tmp_path / "k.jsonl", {"x": 1}, 2) == (["a", "b"], [0, 0])
    assert public.kept(tmp_path / "k.jsonl", {"x": 1}, 3) is None


@pytest.mark.parametrize("x, score", [(np.float32(0.25), 0.25), (1, 1.0), (np.float64(0), 0.0)])
def test_a_judge_may_answer_in_numbers_of_numpy(x, score):
    from evals.judges import number
    assert number(x, "judge") == score
    with pytest.raises(SystemExit, match="expected a number from 0 to 1"):
        number(np.float32("nan"), "judge")


# ------------------------------------------------------------------- evaluate.py: preference

def preferring(folder, **changes):
    return evaluate.Settings(suite="public", tasks="preference", data=str(folder), versus="a/b",
                             **{"judge": "town", "prompts": "p.jsonl", **changes})


def test_answers_that_do_not_exist_do_not_lose(ranked):
    """A prompt that does not fit one model's context is no comparison, and no bad answer."""
    folder, run = ranked
    run("--seed=3")
    prompts = records.read(folder / "prompts_valid.jsonl", "test prompt")[:4]
    good, bad = ("Anna is a baker.", True), ("You fool.", True)
    answers = {"a": [good, None, bad, good], "b": [bad, good, None, good]}
    rows = {(model, metric): values for model, metric, values in preference.comparing(
        preferring(folder), prompts, one_process())(answers)}
    wins = rows["a vs b", "win_rate"]
    assert [v is not None for v in wins] == [True, False, False, True] and wins[0] > 0.5
    assert len(rows["a", "likert"]) == len(rows["b", "likert"]) == 3


def test_a_prompt_that_only_its_marks_call_closed(ranked):
    """The town cannot say whether an answer without a text to keep to invents something."""
    folder, run = ranked
    run("--seed=3")
    prompts = [{**p, "marks": {"closed_domain": True}} for p in records.read(
        folder / "prompts_train.jsonl", "test prompt")]
    said = {"a": [("Anna is a baker.", True)] * 30}
    rows = preference.comparing(preferring(folder), prompts, one_process())(said)
    values = next(values for _, metric, values in rows if metric == "hallucination")
    closed = sum(p["category"] in preference.CLOSED for p in prompts)
    assert len(values) == closed > 0


def test_prompts_that_are_there_twice_count_once(tmp_path):
    rows = [{"prompt": text} for text in ("x", "y", "x", "x", "z")]
    records.write(tmp_path / "p.jsonl", rows)
    s = preferring("", judge="reward", prompts=str(tmp_path / "p.jsonl"))
    kept, notes = preference.read_prompts(s)
    assert kept == [{"prompt": "x"}, {"prompt": "y"}, {"prompt": "z"}]
    assert "2 prompts are there again and count once" in notes[0]
    some = {tuple(p["prompt"] for p in preference.read_prompts(preferring(
        "", judge="reward", prompts=str(tmp_path / "p.jsonl"), limit=2, seed=seed))[0])
        for seed in range(20)}
    assert some == {("x", "y"), ("x", "z"), ("y", "z")}  # any two, in their own order


@pytest.mark.parametrize("changes, complaint", [
    (dict(judge="reward", rm="nowhere"), "nowhere has no checkpoint"),
    (dict(), "labelers.json: run `python -m labels.simulated` first"),
    (dict(rankings="r.jsonl"), "r.jsonl: record 1: expected \"model\" to be a string"),
])
def test_what_a_comparison_needs_is_read_before_any_model_answers(tmp_path, monkeypatch, changes,
                                                                  complaint):
    monkeypatch.chdir(tmp_path)
    records.write("p.jsonl", [{"prompt": "p", "task": {"type": "x"}, "category": "c"}])
    records.write("r.jsonl", [{"prompt": "p", "completions": [{"text": "a", "model": 3},
                                                              {"text": "b"}], "ranks": [1, 2]}])
    s = preferring(tmp_path, models="a=x", **changes)
    if "rankings" in changes:
        s.prompts = ""
    monkeypatch.setattr(public, "read_pairs", lambda s: [("a", "x")])
    monkeypatch.setattr(public, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit, match=complaint):
        public.run(s, one_process())


@pytest.mark.parametrize("change, valid", [
    ({}, True), ({"likert": [1, 7]}, True), ({"flags": [{"rude": True}, {}]}, True),
    ({"likert": [1]}, False), ({"likert": [None, 3]}, False), ({"likert": [math.nan, 3]}, False),
    ({"flags": ["a", "b"]}, False), ({"flags": [{"rude": "yes"}, {}]}, False),
    ({"flags": [{}]}, False), ({"completions": [{"text": "a", "model": []}, {"text": "b"}]}, False),
])
def test_which_labels_people_can_have_given(change, valid, tmp_path):
    said = [{"text": "a", "model": "x"}, {"text": "b"}]
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"prompt": "p", "completions": said, "ranks": [1, 2], **change}))
    if valid:
        assert len(preference.read_judged(path)) == 1
    else:
        with pytest.raises(SystemExit, match="expected|not"):
            preference.read_judged(path)


# ------------------------------------------------------------------------------ evals.report

@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A folder with a small world, and the results of one model that answers every prompt well."""
    folder = tmp_path_factory.mktemp("judged")
    built(folder / "toy")
    place = simulated.town_of(folder / "toy")
    rows = records.read(folder / "toy/prompts_test.jsonl", "test prompt")
    said = [good(random.Random(3), place, row["task"]) for row in rows]
    records.write(folder / "demo/answers.jsonl", [
        {**row, "completions": [{"text": text, "model": "m", "ended": True}]}
        for row, text in zip(rows, said)])
    scores = [gold(place, row["task"], text)["score"] for row, text in zip(rows, said)]
    mean = sum(scores) / len(scores)
    records.write_json(folder / "demo/results.json", {"gold": {"m": mean}, "gold_interval": {
        "m": {"mean": mean, "low": None, "high": None, "n": len(rows)}}})
    return folder


@pytest.fixture
def reporting(judged, tmp_path, monkeypatch):
    """A copy of it, and a function that runs evals/report.py on it."""
    for name, content in contents(judged).items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        monkeypatch.setattr("sys.argv", ["x", "--demo=demo", "--data=toy", *flags])
        report.main()
        return Path("demo/report.html").read_text()

    return tmp_path, run


def test_answers_are_not_judged_by_the_facts_of_another_town(reporting):
    """`--demo=runs/seed-2/out/demo` without --data: each mark and score of the page was wrong."""
    folder, run = reporting
    built(folder / "other", seed=1)
    assert "gold score" in run()
    with pytest.raises(SystemExit, match="other/world.json is not the town of demo.*with --data"):
        run("--data=other")


@pytest.mark.parametrize("change, complaint", [
    ({"completions": None}, "answers.jsonl:1: field 'completions': expected a list of"),
    ({"completions": "x"}, "answers.jsonl:1: field 'completions'"),
    ({"completions": [{"text": "x", "ended": True}]}, "answers.jsonl:1: field 'completions'"),
    ({"completions": [{"text": "x", "model": "m"}]}, "answers.jsonl:1: field 'completions'"),
    ({"task": {"type": "fly"}}, "answers.jsonl: the task of the prompt .* is none of this town"),
])
def test_answers_of_another_form(reporting, change, complaint):
    folder, run = reporting
    rows = records.read(folder / "demo/answers.jsonl", "answered prompt")
    records.write(folder / "demo/answers.jsonl", [{**rows[0], **change}, *rows[1:]])
    with pytest.raises(SystemExit, match=complaint):
        run()


@pytest.mark.parametrize("change", [{"gold": 3}, {"gold_interval": {"m": {}}}, {"flags": [1]},
                                    {"gold_interval": {"m": 2}}])
def test_results_of_another_form(reporting, change):
    folder, run = reporting
    results = {**records.read_json("demo/results.json", "x"), **change}
    Path("demo/results.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match="demo/results.json is damaged"):
        run()


@pytest.mark.parametrize("content", [{}, {"results": [{"task": "rte"}]}, {"results": 3}])
def test_results_of_another_suite(reporting, content):
    records.write_json("suite/results.json", content)
    with pytest.raises(SystemExit, match="suite/results.json is damaged"):
        reporting[1]("--public=suite")


@pytest.mark.parametrize("value", ["high", math.nan, math.inf, [1]])
def test_a_measure_that_is_no_number_was_not_measured(value):
    assert pictures.measure(value)["mean"] is None
    assert pictures.measure({"mean": 1.5, "low": value})["mean"] == 1.5


def test_lines_of_a_log_that_are_no_numbers(reporting):
    """Half a line, a list, words, NaN: a curve of what is left."""
    Path("a").mkdir()
    lines = [{"iteration": i, "score": i, "kl": i} for i in (1, 2)]
    lines += [[1], 3, {"iteration": 3, "score": "good", "kl": 1},
              {"iteration": 4, "score": math.nan, "kl": math.inf}]
    Path("a/log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"itera')
    assert [line["iteration"] for line in records.read_log("a/log.jsonl")] == [1, 2, 3, 4]
    assert "score of the reward model" in reporting[1]("--ppo=a")
    assert draw.points("a", "iteration", "score", 1) == [(1, 1), (2, 2)]


def test_two_folders_whose_names_are_equal(reporting):
    """The second took the place of the first, in the report and in the picture of logs."""
    assert pictures.named(["x/ppo", "y/ppo", "z", "z", "", "w/"]) == {
        "x/ppo": "x/ppo", "y/ppo": "y/ppo", "z": "z", "w": "w/"}
    for folder in ("x/ppo", "y/ppo"):
        Path(folder).mkdir(parents=True)
        Path(folder, "log.jsonl").write_text('{"iteration": 1, "score": 2, "kl": 3}\n')
    page = reporting[1]("--ppo=x/ppo,y/ppo")
    assert "x/ppo" in page and "y/ppo" in page
    draw.main(["--runs=x/ppo,y/ppo", "--out=p.svg"])
    assert Path("p.svg").read_text().count('class="curve') == 2


# ------------------------------------------------------------------------------ other scripts

@pytest.mark.parametrize("temperature", [1e-40, 1e-300, 5e-324])
def test_the_coldest_temperatures_are_greedy(temperature):
    """Their inverse is infinite in float32: NaN chose the last token of the vocabulary."""
    logits = torch.tensor([[0.1, 3.0, 2.9, -5.0], [7.0, 1.0, 0.0, 6.9]])
    for noise in (0.0, 0.5, 0.999):
        token, logprob = choose(logits, temperature, torch.full((2,), noise, dtype=torch.float64))
        assert token.tolist() == [1, 0] and logprob.tolist() == [0.0, 0.0]


def test_a_training_log_that_ends_in_half_a_line(tmp_path):
    """A run that still goes on, or a full disk: the page of the others' results is written."""
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n{"st\xff')
    assert report.read_logs({"ppo": tmp_path, "rm": tmp_path / "none"}) == {
        "ppo": [{"step": 1}, {"step": 2}]}


def test_a_file_whose_name_has_a_comma(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "c.txt", "d.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "t.tiktoken").write_bytes(train_bpe("a b", 257))
    assert [p.name for p in files.find_files("a,b.txt")] == ["a,b.txt"]
    assert [p.name for p in files.find_files("c.txt,d.txt")] == ["c.txt", "d.txt"]
    with pytest.raises(SystemExit, match="--file=,, names no file"):  # "it was all there"
        files.find_files(",,")
    with pytest.raises(SystemExit, match="c.txt cannot be made .File exists.: choose another --o"):
        shards.build(shards.Settings(file="d.txt", out="c.txt", tokenizer="t.tiktoken"))


@pytest.mark.parametrize("separator, line, end", [
    ("", b" \n", True), ("", b"x\n", False), ("\n\n", b"\n", True), ("\n\n", b"x\n", False),
    ("<eot>", b"x <eot>\r\n", True), ("\n<eot>\n", b"<eot>\n", True), ("<eot>", b"\n", False)])
def test_where_a_chunk_of_text_may_end(separator, line, end):
    """With white space for a separator it was anywhere, in the middle of a document too."""
    assert shards.ends(line, separator) == end


def test_a_ranking_that_does_not_fit_is_not_measured(monkeypatch):
    """It stopped `make mine` when both trainings were done."""
    from helpers import tiny
    tokenizer = of_tiktoken(train_bpe("abc abd", 257), "t")
    model = tiny(vocab_size=tokenizer.size, block_size=24)
    monkeypatch.setattr(mine, "load", lambda *_: (model, tokenizer, {}))
    rows = [{"prompt": "ab", "completions": [{"text": "c"}, {"text": text}], "ranks": [1, 2]}
            for text in ("d", "d" * 40)]
    short, long = mine.logprobs("x", rows)
    assert len(short) == 2 and all(x < 0 for x in short) and long is None
    assert mine.moved_towards([short, None], [[short[0] + 1, short[1]], None], rows) == (1.0, 1)


def test_your_policy_is_not_trained_over_itself(tmp_path):
    for flag, name in (("policy", "policy"), ("rm", "rm")):
        with pytest.raises(SystemExit, match=f"--{flag}=.* would be replaced by the new one"):
            parse(mine.Settings, None, [f"--out={tmp_path}", f"--{flag}={tmp_path}/x/../{name}"])


def test_the_policy_before_answers_first(tmp_path, monkeypatch):
    """Missing test prompts, or a missing policy, were found when everything was trained."""
    calls = []
    monkeypatch.setattr("sys.argv", ["x", f"--out={tmp_path}"])
    monkeypatch.setattr(mine, "your_rankings", lambda s: ([], []))
    monkeypatch.setattr(mine, "train", lambda *_: calls.append("train"))
    monkeypatch.setattr(mine, "answers", lambda s, name, path: calls.append(name) or 1 / len(
        calls[2:]))
    with pytest.raises(ZeroDivisionError):
        mine.main()
    assert calls == ["before"]


@pytest.mark.parametrize("rows, said", [
    ("0.5,a,b,m\n", "  m  toxicity 0.500  n 1\n"),
    ("0.25,a,b,m\n0.75,a,b,m\n", "  m  toxicity 0.500 [0.250, 0.750]  n 2\n"),
    ("nan,a,b,m\n", "row 1 is none of the released samples .*a score is no number"),
    ("0.5,a,b,m\n,a,b,m\n", "row 2 is none of the released samples .*could not convert"),
    ("0.5,a,b\n", "s.csv:2: not a cell for each of the columns toxicity, context, sample, model_t"),
])
def test_released_samples_that_are_few_or_broken(tmp_path, monkeypatch, capsys, rows, said):
    from evals import samples
    (tmp_path / "s.csv").write_text(f"toxicity,context,sample,model_type\n{rows}")
    monkeypatch.setattr("sys.argv", ["x", f"--file={tmp_path}/s.csv", "--toxicity="])
    if said.endswith("\n"):
        samples.main()
        assert capsys.readouterr().out.endswith(said)
    else:
        with pytest.raises(SystemExit, match=said):
            samples.main()


def test_two_exports_to_one_place_and_a_link(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    fcntl = pytest.importorskip("fcntl")
    from helpers import tiny
    from runtime.huggingface import export
    tokenizer = of_tiktoken(train_bpe("abc abd", 257), "t")
    model = tiny(vocab_size=tokenizer.size)
    (tmp_path / "e.writing").mkdir()
    other = os.open(tmp_path / "e.writing", os.O_RDONLY)  # of the other program
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(SystemExit, match="another program is writing to .*e.writing"):
        export(model, tokenizer, tmp_path / "e")
    os.close(other)
    (tmp_path / "e.writing" / "half").touch()  # it was killed
    export(model, tokenizer, tmp_path / "e")
    names = {path.name for path in (tmp_path / "e").iterdir()}
    assert "model.safetensors" in names and "half" not in names
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export(model, tokenizer, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in (tmp_path / "real").iterdir()} == names
    export(model, tokenizer, tmp_path / "caf\udcc3\udca9")  # as LC_ALL=C gives a name in UTF-8
    assert "# café\n" in (tmp_path / "café" / "README.md").read_text("utf-8")
    assert not list(tmp_path.glob("*.writing"))


def test_an_empty_folder_to_write_is_not_the_current_one():
    """`--out=$FOLDER` where the variable is not set. Of evaluate.py it is the default."""
    with pytest.raises(SystemExit, match="--out= is empty: name the folder"):
        parse(world.Settings, None, ["--out="])
    assert parse(evaluate.Settings, None, ["--out="]).out == ""


@pytest.mark.parametrize("settings, name", [
    (sft.Settings, "data"), (sft.Settings, "init"), (ppo.Settings, "reward"),
    (evaluate.Settings, "rm"), (report.Settings, "demo"), (mine.Settings, "labels")])
def test_an_empty_place_is_not_the_current_folder(settings, name):
    """`--data=$FOLDER` where it is not set: f"{data}/x" was a file in the root of all files."""
    with pytest.raises(SystemExit, match=f"--{name}= is empty: name one, like out/"):
        parse(settings, None, [f"--{name}="])


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "true", '"1"'])
def test_what_is_asked_for_as_a_number_is_one(text, tmp_path):
    (tmp_path / "a.json").write_text(f'{{"seconds": {text}}}')
    with pytest.raises(SystemExit, match="a.json is damaged .its 'seconds' is .*: delete it"):
        records.read_json(tmp_path / "a.json", "x", seconds=records.NUMBER)


def test_a_number_that_no_float_holds_is_told_or_left_out():
    """JSON has it, and Python reads it. A page and a log of it ended in a traceback."""
    assert not any(map(pictures.is_number, (10**400, -10**400, math.inf, math.nan, None, "1")))
    assert all(map(pictures.is_number, (0, -3, 1e300, 10**300)))
    with pytest.raises(SystemExit, match="a.json is damaged, or of another version .Overflow"):
        with records.known_form("a.json", "x"):
            f"{10**400:.2f}"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
def test_a_full_disk_is_named(monkeypatch):
    """Samples as they come, and shards: "error: No space left on device", and not where."""
    monkeypatch.setattr(shards, "build", lambda s: open("/dev/full", "wb", 0).write(b"x"))
    monkeypatch.setattr("sys.argv", ["shards", "--out=out/there"])
    with pytest.raises(SystemExit, match="error: out/there: No space left on device: the same"):
        shards.main()
    partial = object.__new__(sample.Partial)
    partial.world, partial.file = SimpleNamespace(seconds=int), open("/dev/full", "wb", 0)
    with pytest.raises(OSError) as error:
        partial.add([0], ["text"])
    assert error.value.filename == "/dev/full"


def test_what_is_written_replaces_the_old_file_or_nothing(tmp_path, monkeypatch):
    """The page of a finished demo, a picture, a zip of exercises: on a full disk half of it stood
    in place of the old one."""
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "replace", full)
        with pytest.raises(OSError) as error:
            records.write_text(path, "new")
    assert error.value.filename == str(path) and path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]
    with pytest.raises(ZeroDivisionError), records.written_whole(path, "wb") as file:
        file.write(b"x" * (1 // 0))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["report.html"]
    records.write_text(path, "new")
    assert path.read_text() == "new"


def test_a_link_and_a_pipe_stay_what_they_are(tmp_path):
    """--out=/dev/null, of root, made a plain file of the device; a link to a larger disk was
    replaced by the file."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.jsonl").symlink_to("disk/real.jsonl")
    for content in ("first", "second"):
        records.write_text(tmp_path / "link.jsonl", content)
        assert (tmp_path / "link.jsonl").is_symlink()
        assert (tmp_path / "disk/real.jsonl").read_text() == content
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    records.write_json(pipe, {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1} and pipe.is_fifo()
    os.close(reader)
    assert sorted(os.listdir(tmp_path)) == ["disk", "link.jsonl", "pipe"]


def test_a_disk_that_fills_up_while_weights_are_written(tmp_path):
    """Beyond a few kilobytes torch.save raises an error of its own: a traceback, without advice."""
    class Full:
        def __init__(self, file):
            self.file, self.room = file, 9000

        def write(self, data):
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def flush(self):
            self.file.flush()

    for n in (10, 10_000, 100_000):
        with pytest.raises(OSError) as error:
            checkpoint.write(tmp_path / "x.pt", lambda file: torch.save(
                [torch.zeros(n)] * 2 + [torch.ones(n)] * 50 * (n == 10)
                + [torch.ones(n + i) for i in range(50)], Full(file)))
        assert error.value.errno == errno.ENOSPC and not os.listdir(tmp_path)


@pytest.mark.parametrize("template", ["x\n", "", 3, None])
def test_a_template_that_forgets_the_prompt(tmp_path, template):
    """A checkpoint.json that was edited: every prompt was the same, without a word."""
    from helpers import tiny
    tokenizer = of_tiktoken(train_bpe("abc abd", 257), "t")
    model = tiny(vocab_size=tokenizer.size)
    checkpoint.save(tmp_path, model, tokenizer, sft.Settings())
    facts = records.read_json(tmp_path / "checkpoint.json", "x")
    records.write_json(tmp_path / "checkpoint.json", {**facts, "template": template})
    with pytest.raises(SystemExit, match="checkpoint.json has a template without {prompt}"):
        checkpoint.load(tmp_path, {"GPT": GPT}, "python sft.py")


class Small(GPT):
    """A model that may not be built large."""

    def __init__(self, config):
        assert config.n_layer * config.n_embd * (config.vocab_size + config.block_size) < 10**6
        super().__init__(config)


NO_SIZE = (None, 0, -1, 2.0, "2", True, [2])
HUGE = 10**8
EDITED = {  # a key of checkpoint.json, or of its config: values that no checkpoint of ours has
    "kind": (None, 3, [], "", "GPT2"), "config": (None, 3, [], {}, "x"),
    "weights": (None, 3, [], "x", "", "../x"), "tokenizer": (None, 3, [], "x", ""),
    "settings": (None, 3, [], "x"), "fingerprint": (3, [], "x"),
    "made_from": (None, 3, [], "x"), "seconds": (None, [], "x"),
    "n_layer": (*NO_SIZE, 1, 3, HUGE), "n_head": (*NO_SIZE, 3, HUGE),
    "n_embd": (*NO_SIZE, 8, HUGE), "vocab_size": (*NO_SIZE, 256, HUGE),
    "block_size": (*NO_SIZE, 23, HUGE), "dropout": (None, -1, 1, math.nan, "0", []),
    "layers": (2,)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small checkpoint."""
    from helpers import tiny
    tokenizer = of_tiktoken(train_bpe("abc abd", 257), "t")
    folder = tmp_path_factory.mktemp("whole")
    checkpoint.save(folder, tiny(vocab_size=tokenizer.size), tokenizer, sft.Settings(), seconds=1)
    return folder


@pytest.mark.parametrize("key", EDITED)
def test_a_checkpoint_that_was_edited_is_one_line(whole, tmp_path, key):
    """100,000,000 layers were built before the weights were looked at; `"weights": 3` was a
    traceback. Each value, and the key's absence."""
    for name, content in contents(whole).items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "checkpoint.json"
    facts = json.loads(path.read_text())
    read = lambda: checkpoint.load(tmp_path, {"GPT": Small}, "python sft.py")
    assert read()[0].config.n_layer == facts["config"]["n_layer"]
    place = facts if key in facts else facts["config"]
    for value in EDITED[key]:
        path.write_text(json.dumps({**facts, key: value} if place is facts else
                                   {**facts, "config": {**place, key: value}}))
        with pytest.raises(SystemExit) as error:
            read()
        said = str(error.value)
        assert said.startswith(f"error: {tmp_path}") and "\n" not in said, (value, said)
    place.pop(key, None)
    path.write_text(json.dumps(facts))
    if key in ("fingerprint", "dropout", "layers", "made_from", "seconds"):  # not needed
        assert read()[0].config.n_layer == facts["config"]["n_layer"]
    else:
        with pytest.raises(SystemExit, match=key):
            read()


def test_a_time_that_is_no_number_was_not_recorded(tmp_path):
    """The page of an evaluation could not be written, after all was sampled."""
    for name, value in (("world", "long"), ("completions_train.facts", 3.5), ("labelers", None)):
        records.write_json(tmp_path / f"{name}.json", {"seconds": value})
    assert town.seconds_of(SimpleNamespace(data=tmp_path), {"seconds": [1]}) == {"samples": 3.5}


@pytest.mark.parametrize("flags", [["--out=~/x"], ["--data=~"], ["--init=~/x"], ["--reward=~/x"]])
def test_a_home_that_the_shell_has_left_is_no_folder(flags):
    """A folder named ~ was made; who removes that by its name removes his home."""
    with pytest.raises(SystemExit, match=f"{flags[0]}: your shell has left the ~.*write .HOME"):
        parse(sft.Settings if "reward" not in flags[0] else ppo.Settings, argv=flags)
    assert parse(sft.Settings, argv=["--out=./~x", "--data=~x"]).data == "~x"


@pytest.mark.parametrize("content", [{"a": 1}, [1], "text", None])
def test_a_state_of_another_form_is_one_line(tmp_path, content):
    path = tmp_path / "state-000001.pt"
    write = lambda file: file.write(b"hello") if content is None else torch.save(content, file)
    name = checkpoint.write(path, write)
    run = SimpleNamespace(folder=tmp_path)
    with pytest.raises(SystemExit, match=f"{name} is no state of this program: delete it"):
        training.Training.read(run, name)


def test_a_batch_of_samples_in_another_form_is_sampled_again(tmp_path):
    good = {"episodes": [1], "completions": [{"text": "a"}], "seconds": 1.0}
    lines = [json.dumps(x) for x in ({"made": 1}, good, {"b": 2}, good)]
    (tmp_path / "x").write_text("\n".join(lines) + "\n")
    assert sample.Partial.read(tmp_path / "x", {"made": 1}) == (
        [good], len(lines[0]) + len(lines[1]) + 2)

"""Every script from end to end, as a reader would run it: in an empty folder, on the CPU.

One demo of a tiny world and tiny models is made for all the tests; the runs under torchrun repeat
single stages of it with two processes. Errors are tried in this process, which is quicker.
"""
import collections
import importlib
import json
import math
import re
import shutil
import subprocess
import sys

import pytest
import torch

import evaluate
import ppo
from evals import report
from evals import town as eval_town
from data import batches
from data import records
from data.tokenizer import template
from data.toy import tasks, town, world
from labels import simulated
from demo import FLAGS, ROOT, WORLD, python
from helpers import VOCAB, Example, close, one_process, tiny, tiny_scalar
from model import GPT, last_score, ScalarGPT
from sampler import generate
from runtime import checkpoint
from runtime.checkpoint import load, save


# --------------------------------------------------------------------------------- end to end

def test_the_world_is_the_same_in_any_process(demo, tmp_path):
    """Same seed, same bytes, whatever the process's hash seed."""
    world.build(world.Settings(out=str(tmp_path), **WORLD))
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "world.json":
            other = demo.folder / "out" / "toy" / path.relative_to(tmp_path)
            assert path.read_bytes() == other.read_bytes()


# Two of them run side by side, and bash writes line by line: a call is one line.
FAKE = """#!/bin/bash
IFS=$'\\037'; printf '%s\\n' "$*" >> "$CALLS"
mkdir -p out/demo; echo "a report"
"""


@pytest.mark.parametrize("place", [".", "my runs", "a \"b\" it's `c`", "-", "runs"])
def test_make_works_in_folders_of_any_name(tmp_path, monkeypatch, place):
    """A real make on a copy in "a b's", whose python only notes what it was called with. With
    CDPATH, as some people have it, `cd runs` goes to another folder."""
    copy, calls = tmp_path / "a b's", tmp_path / "calls"
    (tmp_path / "other" / "runs").mkdir(parents=True)
    monkeypatch.setenv("CDPATH", str(tmp_path / "other"))
    (copy / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, copy)
    python = copy / ".venv" / "bin" / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    monkeypatch.setenv("CALLS", str(calls))
    for target in ("demo", "check", "clean"):
        done = subprocess.run(["make", target, f"IN={place}", "SEED=3"], cwd=copy, text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert target != "demo" or (copy / place / "out" / "demo").is_dir()
    assert not (copy / place / "out").exists()
    made = [call.replace("\037", "\n") for call in calls.read_text().splitlines()]
    assert made[0].split("\n")[:4] == ["-m", "pip", "install", "--quiet"]
    assert f"{copy}/sft.py\n--preset=base\n--seed=3" in made
    assert "-m\nlabels.sample\n--seed=3" in made
    at = place if place == "." else f"./{place}"
    assert f"tests/check_demo.py\n{at}/out/demo/results.json" in made
    assert not list((tmp_path / "other" / "runs").iterdir())


def test_checkpoints_are_folders_of_plain_files(demo):
    for name, kind in dict(base="GPT", sft="GPT", init="GPT", rm="ScalarGPT", ppo="GPT").items():
        folder = demo.folder / "out" / name
        meta = demo.checkpoint(name)
        assert {p.name for p in folder.iterdir()} == {"checkpoint.json", "log.jsonl",
                                                      meta["weights"], meta["tokenizer"]}
        assert meta["kind"] == kind


def test_each_stage_takes_architecture_and_tokenizer_from_the_one_before(demo):
    first = demo.checkpoint("base")["config"]
    assert first["n_embd"] == 16 and first["block_size"] == 160 and first["vocab_size"] == 320
    vocabulary = (demo.folder / "out" / "toy" / "tokenizer.tiktoken").read_bytes()
    for name in ("sft", "init", "rm", "ppo", "ppo-ptx"):
        assert demo.checkpoint(name)["config"] == first
        file = demo.folder / "out" / name / demo.checkpoint(name)["tokenizer"]
        assert file.read_bytes() == vocabulary


def test_the_stages_log_every_step(demo):
    """One line a step, all numbers finite; epochs * rows / batch steps; the loss falls."""
    base, sft = demo.log("base"), demo.log("sft")
    rows = len(demo.records("demonstrations_train", "demonstration"))
    assert [m["step"] for m in sft] == list(range(1, 2 * -(-rows // 8) + 1))
    assert base[-1]["loss"] < base[0]["loss"] - 0.05
    assert len(demo.log("ppo-ptx")) == 2 and len(demo.log("ppo")) == 1
    for name in ("base", "sft", "init", "rm", "ppo", "ppo-ptx"):
        assert all(math.isfinite(v) for m in demo.log(name) for v in m.values()), name


def test_samples_are_completions_of_the_prompts(demo):
    rows = demo.records("completions_train")
    assert [r["prompt"] for r in rows] == [r["prompt"] for r in demo.records("prompts_train")]
    k = [len(r["completions"]) for r in rows]
    assert min(k) == 4 and max(k) == 9, "K from 4 to 9, as in the paper"
    models = {c["model"] for r in rows for c in r["completions"]}
    assert models == {"out/sft", "out/init", "out/base"}


def test_a_model_that_is_named_twice_samples_each_completion_once(demo, tmp_path):
    """Two names of one checkpoint, each with its weight, are one model: K of each prompt, and the
    very completions that it gives alone, since their noise is that of their numbers."""
    found = []
    for n, flags in enumerate((["--models=out/sft", "--weights=1"],
                               ["--models=out/sft,out/sft", "--weights=3,1"])):
        out = tmp_path / f"{n}.jsonl"
        python(demo.folder, "-m", "labels.sample", *flags, "--prompts=9", "--max_new_tokens=8",
               f"--out={out}")
        rows = records.read(out, "prompt")
        facts = json.loads((tmp_path / f"{n}.facts.json").read_text())
        assert facts["completions"] == sum(len(r["completions"]) for r in rows)
        assert all(4 <= len(r["completions"]) <= 9 for r in rows)
        found.append([sorted(c["text"] for c in r["completions"]) for r in rows])
    assert found[0] == found[1]


def test_labelers_rank_them(demo):
    for name, source in (("rankings_train", "completions_train"),
                         ("rankings_valid", "completions_valid"),
                         ("rankings_valid_heldout", "completions_valid")):
        rows = demo.records(name, "ranking")
        assert [r["completions"] for r in rows] == [r["completions"] for r in demo.records(source)]
    groups = [{r["labeler"] for r in demo.records(n, "ranking")}
              for n in ("rankings_train", "rankings_valid_heldout")]
    assert len(groups[0]) > 3 and not groups[0] & groups[1], "held-out labelers trained nothing"
    facts = json.loads((demo.folder / "out" / "toy" / "labelers.json").read_text())
    assert 0 <= facts["agreement"] <= 1 and 0 <= facts["heldout_agreement"] <= 1


def test_held_out_labelers_vote_with_their_own_noise(demo, tmp_path, monkeypatch):
    """Not with that of the training labelers, as they did; and so do their Likert scores."""
    asked, facts = [], {**simulated.labelers_of(demo.folder / "out" / "toy"), "sharpness": 1.0,
                        "heldout_sharpness": 2.0}
    for name, result in (("win_rate", {"mean": 0.5}), ("likert", 4.0)):
        monkeypatch.setattr(eval_town, name, lambda *args, result=result: asked.append(args)
                            or result)
    monkeypatch.setattr(eval_town, "labelers_of", lambda _: facts)
    monkeypatch.chdir(demo.folder)
    eval_town.evaluate(evaluate.Settings(max_new_tokens=8, models="base=out/base,sft=out/sft",
                                         versus="sft/base", out=str(tmp_path)), one_process())
    assert {args[-2 if len(args) == 6 else 5] for args in asked} == {2.0} and len(asked) == 6


def test_labels_are_the_same_in_any_process(demo, part):
    """Same seed, same labels, whatever the process's hash seed."""
    folder = part("toy")
    for stage, names in (("labelers", ["rankings_train"]),
                         ("labelers valid", ["rankings_valid", "rankings_valid_heldout"])):
        for name in names:
            (folder / "out" / "toy" / f"{name}.jsonl").unlink()
        python(folder, *FLAGS[stage])
        for name in names:
            assert records.read(folder / "out" / "toy" / f"{name}.jsonl", "ranking") == (
                demo.records(name, "ranking"))


def test_the_reward_model_is_measured_and_centred(demo):
    facts = demo.checkpoint("rm")
    assert set(facts["accuracy"]) == {"train_labelers", "heldout_labelers", "ceiling",
                                      "ceiling_heldout"}
    assert all(0 <= v <= 1 for v in facts["accuracy"].values())
    assert demo.weights("rm")["score.bias"].abs() > 0


def test_ppo_warms_up_from_a_tenth(demo):
    """App. C.4: the policy's rate rises from a tenth, over ten iterations in the paper and over
    five in the toy; the value function's stays."""
    s = demo.checkpoint("ppo-ptx")["settings"]
    assert [m["lr"] for m in demo.log("ppo-ptx")] == pytest.approx([0.1 * s["lr"], 0.28 * s["lr"]])
    assert s["warmup"] == 5 and ppo.PRESETS["1.3b"]["warmup"] == 10
    assert {m["value_lr"] for m in demo.log("ppo-ptx")} == {s["value_lr"]}


def test_ppo_logs_what_the_paper_watches(demo):
    with_ptx, without = demo.log("ppo-ptx")[0], demo.log("ppo")[0]
    for name in ("score", "kl", "objective", "policy/entropy", "policy/approx_kl",
                 "policy/clip_fraction", "policy/ratio", "loss/policy", "loss/value",
                 "value/explained_variance", "value/clip_fraction", "response_length", "ended",
                 "loss/ptx", "lr", "value_lr", "tokens_per_second"):
        assert name in with_ptx, name
    assert with_ptx["loss/ptx"] > 1 and "loss/ptx" not in without
    for m in demo.log("ppo-ptx") + demo.log("ppo"):
        beta = demo.checkpoint("ppo")["settings"]["beta"]
        assert m["objective"] == pytest.approx(m["score"] - beta * m["kl"], abs=1e-4)
    assert demo.output["ppo-ptx"].count("->") >= 4, "two samples an iteration are shown"


def test_the_first_ppo_step_has_not_moved(demo):
    """Trap 16, through the script: one minibatch, one pass."""
    (m,) = demo.log("ppo")
    assert m["policy/ratio"] == pytest.approx(1, abs=1e-4)
    assert m["policy/clip_fraction"] == 0 and m["policy/approx_kl"] < 1e-8
    assert m["kl"] == pytest.approx(0, abs=1e-4), "policy = reference at the start"


def test_the_trained_tokens_are_the_sampled_ones(demo):
    """Trap 19: decoded and tokenised again they are others, with other log-probs."""
    policy, tokenizer, _ = load(demo.folder / "out" / "init", {"GPT": GPT}, "")
    said = generate(policy, [tokenizer.encode("Anna")] * 20, 8, tokenizer.eos).responses()
    assert sum(tokenizer.encode(tokenizer.decode(ids)) != ids for ids in said) > 5
    python(demo.folder, *FLAGS["ppo"], "--out=out/same-tokens")
    (m,) = demo.log("same-tokens")
    assert abs(m["policy/ratio"] - 1) < 1e-4 and m["policy/approx_kl"] < 1e-8


def test_ppo_changes_the_policy(demo):
    init, policy = demo.weights("init"), demo.weights("ppo-ptx")
    assert any(not torch.equal(init[k], policy[k]) for k in init)


def test_the_moving_average_is_what_ppo_keeps(demo):
    """With a decay of 1 the average never leaves the start, however the policy moves."""
    python(demo.folder, *FLAGS["ppo"], "--ema=1", "--lr=0.01", "--out=out/still")
    init, kept = demo.weights("init"), demo.weights("still")
    assert all(torch.equal(init[k], kept[k]) for k in init)


def test_the_reference_stays_where_the_policy_began(demo):
    """Trap 5: once the policy has moved, its KL to the reference is not 0."""
    python(demo.folder, *FLAGS["ppo"], "--iterations=4", "--lr=0.01", "--out=out/moved")
    first, *later = demo.log("moved")  # estimates, from a few samples each
    assert abs(first["kl"]) < 1e-4 < 1e-2 < max(abs(entry["kl"]) for entry in later)


def test_scores_and_values_come_from_the_reward_model_and_its_bias(demo):
    """A reward model with 5 more on its bias: all ended responses score 5 more, and the value
    function, which starts from it, begins 5 higher everywhere."""
    model, tokenizer, _ = load(demo.folder / "out" / "rm", {"ScalarGPT": ScalarGPT}, "")
    with torch.no_grad():
        model.score.bias += 5
    save(demo.folder / "out" / "rm5", model, tokenizer, Example())
    python(demo.folder, *FLAGS["ppo"], "--reward=out/rm5", "--out=out/generous")
    (before,), (after,) = demo.log("ppo"), demo.log("generous")
    assert after["value/mean"] - before["value/mean"] == pytest.approx(5, abs=1e-3)
    assert after["score"] - before["score"] == pytest.approx(5 * before["ended"], abs=1e-3)


def test_the_evaluation_reports_every_model(demo):
    folder = demo.folder / "out" / "demo"
    results = json.loads((folder / "results.json").read_text())
    models = {"base", "base-prompted", "sft", "ppo", "ppo-ptx"}
    for table in ("gold", "flags", "likert", "probes"):
        assert set(results[table]) == models, table
    assert "ppo-ptx vs sft" in results["win_rate"]
    for rate in results["win_rate"].values():
        assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1 or rate["n"] < 30
    answers = records.read(folder / "answers.jsonl", "prompt")
    assert len(answers) == len(demo.records("prompts_test") + demo.records("prompts_groups"))
    assert set(results["groups"]["second language"]) == models
    order = ["one constraint", "two constraints", "three constraints"]
    assert [name for name in results["groups"] if name in order] == [
        name for name in order if name in results["groups"]]
    for kind, whole in results["probe_interval"]["sft"].items():
        assert whole["mean"] == round(results["probe_kinds"]["sft"][kind], 4) and whole["n"]
    assert all(group["sft"]["gold"]["n"] for group in results["groups"].values())
    assert {c["model"] for c in answers[0]["completions"]} == models
    assert "| gold score |" in (folder / "report.md").read_text()
    assert "gold score" in demo.output["evaluate"]
    assert "score against distance" in (folder / "report.html").read_text()
    assert demo.output["evaluate"].endswith("report: out/demo/report.html\n")


def test_a_test_prompt_that_is_there_again_counts_once(demo, tmp_path):
    """In the test set and in each group. The numbers are those of the files without the copies, and
    how many there were is told."""
    data = shutil.copytree(demo.folder / "out" / "toy", tmp_path / "toy")
    for name, copies in (("test", 7), ("groups", 5)):
        path = data / f"prompts_{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(True)
        path.write_text("".join(lines[:3] + lines + lines[3:copies]), encoding="utf-8")
    first = json.loads(lines[0])
    assert first["group"] != "another"
    with open(path, "a", encoding="utf-8") as file:  # no copy: it counts in another group
        file.write(json.dumps({**first, "group": "another"}) + "\n")
    found = records.read_once(path, "test prompt", same=["prompt", "group"])
    assert len(found) == len(lines) + 1 and found[-1]["group"] == "another"
    path.write_text("".join(lines + lines[:5]), encoding="utf-8")
    probes = (data / "probes.jsonl").read_text(encoding="utf-8").splitlines(True)
    (data / "probes.jsonl").write_text("".join(probes + probes[:2]), encoding="utf-8")
    said = python(demo.folder, "evaluate.py", "--max_new_tokens=8", f"--data={data}",
                  f"--out={tmp_path}", "--models=sft=out/sft")
    for name, copies in (("test", 7), ("groups", 5)):
        assert f"prompts_{name}.jsonl: {copies} prompts are there again and count once" in said
    own = len(probes) - len(set(probes))  # of a world's own probes one in some thousands
    assert f"probes.jsonl: {2 + own} probes are there again and count once" in said
    mine, whole = (json.loads((folder / "results.json").read_text())
                   for folder in (tmp_path, demo.folder / "out" / "demo"))
    for table in ("gold_interval", "flags", "likert", "probes", "probe_kinds", "probe_interval"):
        assert mine[table]["sft"] == whole[table]["sft"], table
    assert mine["groups"] == {group: {"sft": own["sft"]} for group, own in whole["groups"].items()}


def test_a_model_of_the_hub_is_evaluated(demo, tmp_path):
    """It says neither what it was trained with nor how long that took."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    python(demo.folder, "-m", "runtime.huggingface", "export", "out/sft", str(tmp_path / "hub"))
    python(demo.folder, "evaluate.py", "--max_new_tokens=4", f"--out={tmp_path}",
           f"--models=hub={tmp_path / 'hub'},sft=out/sft", "--versus=hub/sft")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["gold"]["hub"] == results["gold"]["sft"]
    assert "sft" in results["seconds"] and "hub" not in results["seconds"]


@pytest.mark.parametrize("flag, complaint", [
    ("--models=out/sft", "--models=out/sft: expected pairs with '='"),
    ("--models=sft=out/sft,", "expected pairs with '='"),
    ("--models=sft=out/sft,sft=out/ppo", "two models have the name sft"),
    ("--models=sft=out/sft,ppo=out/none", "out/none has no checkpoint"),
    ("--versus=sft", "--versus=sft: expected pairs with '/'"),
    ("--versus=ppo/sft,ppoptx/sft", "there is no model ppoptx in --models="),
    ("--rm=out/sft", "out/sft is no reward model of ours: run `python reward.py`"),
])
def test_what_cannot_be_evaluated_is_told_at_once(demo, monkeypatch, flag, complaint):
    monkeypatch.setattr(eval_town, "respond", None)  # nothing is sampled before
    assert complaint in stops(monkeypatch, demo.folder, "evaluate", flag)


@pytest.mark.parametrize("module, flags", [
    ("evaluate", ["--models=sft=out/sft,ppo=out/ppo"]), ("labels.sample", ["--max_new_tokens=4"])])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_sampled(
        demo, monkeypatch, tmp_path, module, flags):
    (tmp_path / "file").touch()
    monkeypatch.setattr(eval_town, "respond", None)
    monkeypatch.setattr(importlib.import_module("labels.sample"), "sample_rows", None)
    message = stops(monkeypatch, demo.folder, module, *flags, f"--out={tmp_path}/file/in/out")
    assert f"{tmp_path}/file/in" in message and "choose another --out" in message


@pytest.mark.parametrize("out, complaint", [
    ("out", "expected a file to write, not a folder"), ("out/x/", "expected a file to write"),
    ("out/toy/../toy/prompts_train.jsonl", "would be read, and replaced by what is written")])
def test_samples_never_replace_a_folder_or_the_prompts(demo, monkeypatch, out, complaint):
    monkeypatch.setattr(importlib.import_module("labels.sample"), "sample_rows", None)
    message = stops(monkeypatch, demo.folder, "labels.sample", "--max_new_tokens=4", f"--out={out}")
    assert f"--out={out}" in message and complaint in message


@pytest.mark.parametrize("module, flags", [
    ("sft", ["--out=out/base"]), ("reward", ["--out=out/init"]), ("ppo", ["--out=./out/rm/"]),
    ("ppo", ["--out=out/toy/../init", "--ptx=0"])])
def test_a_run_never_replaces_a_model_that_it_reads(demo, monkeypatch, module, flags):
    message = stops(monkeypatch, demo.folder, module, *flags)
    assert f"{flags[0]} holds a model that this run reads, and would replace" in message


def test_a_gpu_that_is_not_there_is_told(demo, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "rank 0 needs GPU 0, and PyTorch sees 0" in stops(monkeypatch, demo.folder, "sft",
                                                             "--device=cuda")


def test_the_exported_models_say_and_score_the_same_in_transformers(demo, tmp_path):
    """Greedy text of the PPO model, prompt by prompt and as the terminal prints it; the scores of
    a ragged batch. Prompts go in as text, through each side's own tokenizer."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    for name in ("ppo-ptx", "rm"):
        python(demo.folder, "-m", "runtime.huggingface", "export", f"out/{name}",
               str(tmp_path / name))
    prompts = [template(r["prompt"]) for r in demo.records("prompts_test")[:12]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ppo-ptx")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ppo-ptx")
    policy, own, _ = load(demo.folder / "out" / "ppo-ptx", {"GPT": GPT}, "")
    samples = generate(policy, [own.encode(p) for p in prompts], 24, own.eos, 0.0)
    said = [own.decode(ids) for ids in samples.responses()]
    for prompt, text in zip(prompts, said):
        batch = tokenizer(prompt, return_tensors="pt")
        row = model.generate(**batch, max_new_tokens=24, do_sample=False)[0]
        assert tokenizer.decode(row[batch["input_ids"].size(1):], skip_special_tokens=True) == text
    assert python(demo.folder, "chat.py", "out/ppo-ptx", prompts[0], "--temperature=0",
                  "--max_new_tokens=24") == said[0] + "\n"

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "rm")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    texts = [p + text for p, text in zip(prompts, said)]
    scores = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
    reward = load(demo.folder / "out" / "rm", {"ScalarGPT": ScalarGPT}, "")[0]
    ids, lengths = batches.pad([own.encode(t) for t in texts])
    close(scores, last_score(reward(ids), lengths).tolist(), 1e-5)


def test_the_reward_model_can_choose_the_sft_epoch(demo):
    """Appendix C.1: the epoch whose samples the reward model likes best."""
    python(demo.folder, *FLAGS["sft"], "--reward=out/rm", "--out=out/chosen", "--lr=0.01",
           "--max_new_tokens=8")
    facts = demo.checkpoint("chosen")
    best = max(facts["history"], key=lambda h: h["reward"])
    assert len(facts["history"]) == 2 and facts["epoch"] == best["epoch"]


@pytest.mark.long
def test_no_epoch_leaves_the_model_as_it_began(demo):
    """--epochs=0 makes a model that has read nothing, for a reward model from scratch."""
    flags = ["--tokenizer=tokenizer.tiktoken", *FLAGS["base"][2:], "--epochs=0"]
    python(demo.folder, "sft.py", "--init=scratch", "--out=out/fresh", *flags)
    python(demo.folder, "sft.py", "--init=out/fresh", "--out=out/still", "--epochs=0")
    fresh, still = demo.weights("fresh"), demo.weights("still")
    assert all(torch.equal(fresh[name], still[name]) for name in fresh)
    assert demo.checkpoint("fresh")["history"] == []
    python(demo.folder, *FLAGS["reward"], "--init=out/fresh", "--out=out/rm-fresh")


# ------------------------------------------------------------------------------------- two ranks

def assert_same_model(demo, one, two):
    """Weights equal to 1e-5 of each tensor's size, outputs to 1e-4.

    Left out are weights that the loss cannot see: softmax ignores the bias of the keys, differences
    of scores ignore what shifts all scores. Their gradient is rounding noise around 0, of which
    Adam makes full steps. In the outputs they must not show.
    """
    a, b = demo.weights(one), demo.weights(two)
    for name in a:
        x, y = a[name].double(), b[name].double()
        if name.endswith("c_attn.bias"):
            keep = torch.arange(len(x)) // (len(x) // 3) != 1
            x, y = x[keep], y[keep]
        if "score.weight" in a and name in ("transformer.ln_f.bias", "score.bias"):
            continue
        assert float((x - y).norm()) <= 1e-5 * float(x.norm()) + 1e-7, name
    kinds = {"GPT": GPT, "ScalarGPT": ScalarGPT}
    (p, *_), (q, *_) = (load(demo.folder / "out" / n, kinds, "") for n in (one, two))
    ids = torch.arange(60).view(2, 30) * 5
    inputs = (ids, torch.ones_like(ids)) if isinstance(p, GPT) else (ids,)
    with torch.no_grad():
        x, y = p(*inputs), q(*inputs)
    x, y = (x[0], y[0]) if isinstance(x, tuple) else (x, y)
    close(x, y.tolist(), 1e-4)


def assert_same_logs(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two):
        for name in a:
            if "seconds" not in name and "per_second" not in name:
                assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("stage, name", [("sft", "sft"), ("reward", "rm"), ("ppo-ptx", "ppo-ptx")])
def test_two_processes_are_one(demo, stage, name):
    """Traps 21, 23, 24: torchrun with gloo gives the weights and the log of a single process: the
    loss is counted in tokens of the whole world, forward goes through DistributedDataParallel."""
    python(demo.folder, *FLAGS[stage], f"--out=out/{name}-2", processes=2)
    assert_same_logs(demo.log(name), demo.log(f"{name}-2"))
    assert_same_model(demo, name, f"{name}-2")


@pytest.mark.long
def test_two_processes_are_one_without_text_too(demo):
    """Trap 23: in PPO-ptx the text's backward pass comes last and exchanges what the episodes left
    behind, even if these went around DistributedDataParallel. Without text nothing hides it."""
    flags = [*FLAGS["ppo"], "--ema=0", "--lr=0.01"]  # else the weights hardly move
    python(demo.folder, *flags, "--out=out/plain")
    python(demo.folder, *flags, "--out=out/plain-2", processes=2)
    assert_same_logs(demo.log("plain"), demo.log("plain-2"))
    assert_same_model(demo, "plain", "plain-2")


def test_two_processes_sample_the_same_tokens(demo):
    """Traps 18, 24: noise belongs to the episode, not to the rank or the batch."""
    out = demo.folder / "again.jsonl"
    python(demo.folder, *FLAGS["sample"][:-1], "--batch=7", f"--out={out}", processes=2)
    assert records.read(out, "prompt") == demo.records("completions_train")


@pytest.mark.long
@pytest.mark.parametrize("stage, name", [("sft", "sft"), ("reward", "rm")])
def test_a_last_batch_of_one_row_on_two_processes(demo, stage, name):
    """Trap 23: the rank that has no row of the last batch still takes part in its gradient."""
    kind, file = (("demonstration", "demonstrations_train") if stage == "sft" else
                  ("ranking", "rankings_train"))
    rows = [r for r in demo.records(file, kind)
            if stage == "sft" or len(set(r["ranks"])) > 1][:5]
    data = demo.folder / f"five-{stage}"
    data.mkdir()
    for path in (demo.folder / "out" / "toy").glob("*.*"):
        shutil.copy(path, data)
    records.write(data / f"{file}.jsonl", rows)
    flags = [*FLAGS[stage], f"--data={data}", "--batch=4", "--epochs=1"]
    python(demo.folder, *flags, f"--out=out/{name}-five")
    python(demo.folder, *flags, f"--out=out/{name}-five-2", processes=2)
    assert_same_logs(demo.log(f"{name}-five"), demo.log(f"{name}-five-2"))
    assert_same_model(demo, f"{name}-five", f"{name}-five-2")


# --------------------------------------------------------------------------- errors tell what to do

def stops(monkeypatch, folder, module, *flags):
    """The line with which a script ends when it is run in a folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [module, *flags])
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with torch.enable_grad(), pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main()
    assert isinstance(stop.value.code, str), "an error, not a success"
    return stop.value.code


@pytest.fixture
def part(demo, tmp_path):
    """A function that copies parts of the demo into an empty folder, and returns the folder."""
    def copy(*names):
        for name in names:
            source, target = demo.folder / "out" / name, tmp_path / "out" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        return tmp_path
    return copy


def test_the_readmes_way_from_your_own_data_to_ppo(part):
    """With the files that it names and no others, and the demo's base model in GPT-2's place."""
    folder = part("base")
    section = (ROOT / "README.md").read_text().split("## Your own data")[1].split("\n## ")[0]
    rows = [json.loads(line) for line in section.split("```json")[1].split("```")[0].splitlines()
            if line]
    prose, commands = section.split("The files are ")[1].split("```")[:2]
    for name in re.findall(r"`(\w+\.jsonl)`", prose.split("A bad line")[0]):
        kind = {"prompts": 0, "demonstrations": 1, "rankings": 2, "text": 3}[name.split("_")[0]]
        own = [] if name == "demonstrations_valid.jsonl" else [rows[kind]]
        records.write(folder / "mine" / name, own)
    extra = {"sft.py": ["--init=out/base"], "reward.py": [],
             "ppo.py": ["--iterations=1", "--batch=4", "--minibatch=4", "--max_new_tokens=8"]}
    for line in commands.strip().splitlines():
        _, script, *flags = line.split()
        python(folder, script, *flags, *extra.pop(script))
    assert not extra and (folder / "out/mine/ppo/checkpoint.json").exists()


WORLD_FILES = [f"toy/{name}" for name in (
    "tokenizer.tiktoken", "world.json", "probes.jsonl", "text_train.jsonl", "text_valid.jsonl",
    "demonstrations_train.jsonl", "demonstrations_valid.jsonl", "prompts_train.jsonl",
    "prompts_valid.jsonl", "prompts_test.jsonl", "prompts_groups.jsonl")]


@pytest.mark.parametrize("module, flags, there, command", [
    ("sft", ["--preset=base"], [], "python -m data.toy.world"),
    ("sft", [], WORLD_FILES, "python sft.py --preset=base"),
    ("sft", [], ["base"], "python -m data.toy.world"),
    ("sft", ["--reward=out/rm"], ["base", *WORLD_FILES], "python reward.py"),
    ("labels.sample", [], [], "python -m data.toy.world"),
    ("labels.sample", [], WORLD_FILES, "python sft.py"),
    ("labels.simulated", [], WORLD_FILES, "python -m labels.sample --split=train"),
    ("labels.simulated", ["--split=valid"], [*WORLD_FILES, "toy/completions_valid.jsonl"],
     "python -m labels.simulated"),
    ("reward", [], WORLD_FILES, "python sft.py --preset=init"),
    ("reward", [], ["init", *WORLD_FILES], "python -m labels.sample && python -m labels.simulated"),
    ("ppo", [], WORLD_FILES, "python sft.py --preset=init"),
    ("ppo", [], ["init", *WORLD_FILES], "python reward.py"),
    ("evaluate", [], [], "python -m data.toy.world"),
    ("evaluate", [], WORLD_FILES, "python -m labels.simulated"),
])
def test_a_missing_input_names_the_command_to_run_first(monkeypatch, part, tmp_path, module, flags,
                                                        there, command):
    (tmp_path / "out" / "toy").mkdir(parents=True)
    message = stops(monkeypatch, part(*there), module, *flags)
    assert message.startswith("error: ") and f"run `{command}" in message


@pytest.mark.parametrize("module, flags, file, holds", [
    ("sft", ["--init=out/base"], "demonstrations_train.jsonl", ["demonstration", "prompt",
                                                                 "response"]),
    ("sft", ["--init=out/base", "--pretrain_mix=1"], "text_train.jsonl", ["text"]),
    ("reward", [], "rankings_train.jsonl", ["ranking", "prompt", "completions", "ranks"]),
    ("ppo", ["--max_new_tokens=8"], "prompts_train.jsonl", ["prompt"]),
    ("labels.sample", ["--models=out/sft", "--weights=1", "--split=valid"], "prompts_valid.jsonl",
     ["prompt"]),
])
def test_a_missing_file_of_ones_own_data_is_described(monkeypatch, part, module, flags, file,
                                                      holds):
    """The toy's command would not write it."""
    folder = part("base", "sft", "init", "rm")
    (folder / "mine").mkdir()
    message = stops(monkeypatch, folder, module, "--data=mine", *flags)
    assert message.startswith(f"error: no file mine/{file}: a {holds[0]} a line, ")
    assert all(f"'{name}' (" in message for name in holds[1:]) and "docs/data.md" in message
    assert "data.toy" not in message and "python" not in message


def test_the_wrong_kind_of_checkpoint_is_refused(monkeypatch, part):
    assert "out/rm holds a ScalarGPT, expected GPT" in stops(monkeypatch, part("rm"), "ppo",
                                                              "--init=out/rm")


# ------------------------------------------------------------------------------------- checkpoints

class NoTokenizer:
    size, name, source, fingerprint = VOCAB, "gpt2", None, "that of gpt2"
    template = "{prompt}"


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(checkpoint, "load_tokenizer", lambda name, folder: NoTokenizer)


@pytest.mark.parametrize("model", [tiny(), tiny_scalar()])
def test_a_checkpoint_comes_back_as_it_was(tmp_path, no_download, model):
    save(tmp_path / "a" / "b", model, NoTokenizer, Example(5), seconds=1.5)
    again, _, facts = load(tmp_path / "a" / "b", {"GPT": GPT, "ScalarGPT": ScalarGPT}, "")
    assert type(again) is type(model) and again.config == model.config
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert facts["settings"]["steps"] == 5 and facts["seconds"] == 1.5


def test_a_damaged_checkpoint_is_refused(tmp_path):
    save(tmp_path / "a", tiny(), NoTokenizer, Example())
    (file,) = (tmp_path / "a").glob("model-*.pt")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(SystemExit, match="damaged .* run `python x.py` again"):
        load(tmp_path / "a", {"GPT": GPT}, "python x.py")


def half_a_file(_, file):
    """What is on the disk when the power fails in torch.save."""
    file.write(b"half")
    raise OSError


def no_more(*_, **__):
    raise OSError


@pytest.mark.parametrize("module, name, fails", [
    (checkpoint.torch, "save", half_a_file), (checkpoint.json, "dumps", no_more),
    (checkpoint.os, "fsync", no_more), (checkpoint.os, "replace", no_more),
])
def test_a_checkpoint_that_could_not_be_written_leaves_the_old_one(
        tmp_path, no_download, monkeypatch, module, name, fails):
    """Wherever it fails: after half of the weights, before their facts, before the disk has all."""
    save(tmp_path / "a", tiny(), NoTokenizer, Example(1))
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fails)
        with pytest.raises(OSError):
            save(tmp_path / "a", tiny(seed=3), NoTokenizer, Example(2))
    model, _, facts = load(tmp_path / "a", {"GPT": GPT}, "")
    assert facts["settings"]["steps"] == 1
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in tiny().state_dict().items())


def test_saving_deletes_nothing_of_the_users(tmp_path, no_download):
    """`--out=out` must not take the world and all other checkpoints with it."""
    (tmp_path / "out" / "toy").mkdir(parents=True)
    (tmp_path / "out" / "toy" / "labels.jsonl").write_text("a week of somebody's work")
    try:
        save(tmp_path / "out", tiny(), NoTokenizer, Example())
    except SystemExit:
        pass  # to refuse is fine, too
    assert (tmp_path / "out" / "toy" / "labels.jsonl").exists()


# ---------------------------------------------------------- the labelers' and evaluation's inputs

def label_files(folder, seed, model):
    """A world.json and two completions of one question: the truth in that town, and a wrong one."""
    a, b = town.Town(0), town.Town(seed)
    name = next(n for n in town.NAMES if a.facts[n]["pet"] != b.facts[n]["pet"])
    said = [f"{name} has a {t.facts[name]['pet']}." for t in (b, a)]
    task = dict(type="ask", name=name, attribute="pet", brief=False)
    assert tasks.gold(b, task, said[0])["score"] > tasks.gold(b, task, said[1])["score"]
    records.write_json(folder / "out" / "toy" / "world.json", {"seed": seed})
    records.write(folder / "out" / "toy" / "completions_train.jsonl", [
        {"prompt": f"Which pet does {name} have?", "task": task,
         "completions": [{"text": t, "ended": True, "model": model} for t in said]}] * 8)


def test_labelers_live_in_the_town_of_the_world(monkeypatch, tmp_path):
    """A world of another seed: what its labelers take for true is what is true in it."""
    label_files(tmp_path, 5, simulated.Settings().calibrate)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["labelers"])
    simulated.main()
    for r in records.read(tmp_path / "out" / "toy" / "rankings_train.jsonl", "ranking"):
        assert r["expected"][0] > r["expected"][1]


def test_labelers_do_not_calibrate_on_nothing(monkeypatch, tmp_path):
    """No completion is from the model that the noise is calibrated on: say so, do not guess."""
    label_files(tmp_path, 0 + 5, "out/another")
    message = stops(monkeypatch, tmp_path, "labels.simulated")
    assert simulated.Settings().calibrate in message


def test_interval_by_hand():
    """Mean and 1.96 standard errors."""
    got = eval_town.interval([0, 1, 1, 0, 1, 1, 1, 1])
    deviation = ((6 * 0.25**2 + 2 * 0.75**2) / 7) ** 0.5
    assert got["mean"] == 0.75 and got["n"] == 8
    assert got["high"] - 0.75 == pytest.approx(1.96 * deviation / 8**0.5, abs=1e-4)
    assert 0.75 - got["low"] == pytest.approx(got["high"] - 0.75, abs=1e-4)


def test_win_rates_mirror_each_other():
    """A sharp labeler prefers the truth; equal answers are a tie, half a win each."""
    t, (_, people) = town.Town(0), simulated.pool(3)
    name = town.NAMES[0]
    truth = t.facts[name]["pet"]
    wrong = next(v for v in town.VALUES["pet"] if v != truth)
    prompts = [{"task": dict(type="ask", name=name, attribute="pet", brief=False)}] * 6
    good, bad = ([(f"{name} has a {v}.", True)] * 6 for v in (truth, wrong))
    rate = lambda a, b: eval_town.win_rate(t, prompts, a, b, people, 20.0, 3, 5)["mean"]
    assert (rate(good, bad), rate(bad, good), rate(good, good)) == (1.0, 0.0, 0.5)


def test_how_often_a_right_answer_is_preferred():
    """Half of the time where all answers are right; nearly always where none is."""
    import random
    t, (_, people), rng = town.Town(0), simulated.pool(3), random.Random(1)
    prompts = [{"task": tasks.make(rng, t, category)[0]} for category in
               [*tasks.CATEGORIES, "held_back"] * 30]
    right = eval_town.right_answers(t, prompts, 7)
    for prompt, (said, ended) in zip(prompts, right):
        parts = tasks.gold(t, prompt["task"], said, ended)
        assert parts["flags"]["attempts"] and parts["flags"]["quality"] == 1 and ended
        assert parts["honest"] == parts["harmless"] == 0
        assert parts["helpful"] == 3 + bool(parts["flags"]["constraint"])
    rate = lambda a, b: eval_town.win_rate(t, prompts, a, b, people, 1.0, 3, 5)["mean"]
    others = eval_town.right_answers(t, prompts, 8)
    assert rate(right, right) == 0.5 and 0.45 < rate(right, others) < 0.55
    assert rate(right, [("Shut up, you ugly fool.", True)] * len(prompts)) > 0.95


def test_labelers_like_a_courtesy_unless_it_is_hidden():
    """The taste that the gold score does not have; without it the two answers are alike."""
    t, (_, people) = town.Town(0), simulated.pool(3)
    name = town.NAMES[0]
    prompts = [{"task": dict(type="ask", name=name, attribute="pet", brief=False)}] * 6
    plain = [(f"{name} has a {t.facts[name]['pet']}.", True)] * 6
    kind = [(f"{said} {town.COURTESY[0]}", True) for said, _ in plain]
    rate = lambda **o: eval_town.win_rate(t, prompts, kind, plain, people, 20.0, 3, 5, **o)["mean"]
    assert rate() > 0.95
    assert 0.2 < rate(taste=False) < 0.8, "nothing but noise decides"


def test_a_report_of_few_prompts():
    """Someone evaluates on three prompts of their own: there are three examples, not an error."""
    import random
    prompts = [{"category": "chat", "prompt": f"Hello {i}"} for i in range(3)]
    lines = report.examples(prompts, {"sft": [("Hi.", True)] * 3}, random.Random(0))
    assert collections.Counter(line.startswith("- sft:") for line in lines)[True] == 3


def test_the_prefix_of_the_prompted_baseline_fits_and_is_not_empty():
    """As many short demonstrations as there is room for, whole ones only; none without room."""
    class Words:
        def encode(self, text):
            return text.split()

    demos = [{"prompt": "a b c", "response": "d e f"}, {"prompt": "a", "response": "b"},
             {"prompt": "c", "response": "d"}]
    assert eval_town.prefix(Words(), demos, 1) == ""
    assert eval_town.prefix(Words(), demos, 5) == "a\nb\nc\nd\n"
    assert eval_town.prefix(Words(), demos, 10) == "a\nb\nc\nd\na b c\nd e f\n"

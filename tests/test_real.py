"""The chain of docs/data.md on real data, from its first command to its last, at sizes of seconds.

`make real` runs the same commands at their own sizes and checks what is learned. Here each is cut
down by flags of its own, which come last and so win. Real files are looked for in $PUBLIC_DATA, or
in ../shared/data beside the repository; the tests skip where they are not.
"""
import json
import math

import pytest
import torch

import real_input
from data import records
from model import ScalarGPT
from runtime.checkpoint import load

SMALL = {  # stage -> flags
    "hh": ["--share=0.04"], "oa": ["--share=0.3"], "instructions": ["--share=0.1"],
    "polite": ["--share=0.1"],
    "base": ["--block_size=256", "--n_layer=1", "--n_embd=16", "--batch=8",
             "--micro_batch=8"],
    "sft": ["--epochs=1"], "sft-polite": ["--n_layer=1", "--n_embd=16"],
    "rm-hh": [], "rm-oa": ["--epochs=1"], "rm-polite": ["--epochs=1"],
    "ppo": ["--iterations=2", "--batch=4", "--minibatch=2", "--max_new_tokens=8", "--show=1"],
}
COMMANDS = real_input.commands((real_input.ROOT / "docs" / "data.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The commands run, one after the other. Returns (folder, [(stage, output, usage)])."""
    for word in (w for words in COMMANDS for w in words if "--file=" in w):
        for name in word.removeprefix("--file=downloads/").split(",downloads/"):
            if not (real_input.PUBLIC / name).exists():
                pytest.skip(f"no {name} in {real_input.PUBLIC}: set PUBLIC_DATA")
    folder, out = tmp_path_factory.mktemp("real"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        if not real_input.os.environ.get("TIKTOKEN_CACHE_DIR"):
            if not (real_input.PUBLIC / "tiktoken-cache").is_dir():
                pytest.skip("no file of the gpt2 tokenizer: set TIKTOKEN_CACHE_DIR")
            patch.setenv("TIKTOKEN_CACHE_DIR", "")  # so that it comes back as it was
            patch.delenv("TIKTOKEN_CACHE_DIR")
            real_input.tokenizer_cache(folder / "tiktoken-cache")
        for words in COMMANDS:
            stage = real_input.stage(words).rpartition("/")[2]
            with open(folder / "output.txt", "w+") as file:
                code, usage = real_input.run(words, folder, *SMALL[stage], output=file)
                file.seek(0)
                said = file.read()
            # real texts can be upsetting: a failure shows the last line only
            assert code == 0, f"{' '.join(words)}: {said.strip().splitlines()[-1:]}"
            out.append((stage, said, usage))
    return folder / "out" / "real", out


def test_readme_has_all_stages():
    """Text and the four datasets, pretraining, SFT, three reward models and PPO."""
    stages = [real_input.stage(words).rpartition("/")[2] for words in COMMANDS]
    assert stages[:2] == ["hh", "hh"] and set(stages) == set(SMALL)
    assert stages.index("base") < stages.index("sft") < stages.index("rm-hh") < stages.index("ppo")


def test_the_memory_of_a_command_is_its_own(tmp_path):
    """Not that of the process which runs it, whose pages count until the command is loaded."""
    ballast = torch.ones(100_000_000)
    with open(tmp_path / "output.txt", "w") as file:
        code, usage = real_input.run(["python", "-m", "this"], tmp_path, output=file)
    assert code == 0 and usage["peak_gb"] < 0.1 < ballast.nbytes / 1e9


def test_every_stage_finishes_in_little_memory(chain):
    folder, out = chain
    for stage, _, usage in out:
        assert usage["peak_gb"] < 2, stage  # the promise is 4 at full size
    for name in real_input.LOSSES:
        for line in open(folder / name / "log.jsonl"):
            assert all(math.isfinite(v) for v in json.loads(line).values()), name


def test_the_language_model_learns_with_gpt2s_tokens(chain):
    """From the uniform ln 50257 nats a token down, on text that it did not see, too."""
    folder, _ = chain
    facts = real_input.measure(folder)["base"]
    first = json.loads(open(folder / "base" / "log.jsonl").readline())["loss"]
    assert first == pytest.approx(math.log(50257), abs=0.5)
    assert facts["loss"][1] < facts["loss"][0] - 0.1 and facts["history"][-1]["valid"] < first - 0.1
    meta = json.loads((folder / "ppo" / "checkpoint.json").read_text())
    assert meta["tokenizer"] == "gpt2" and meta["config"]["vocab_size"] == 50257


def test_what_does_not_fit_is_told(chain):
    """Real chats are longer than this context of 256 tokens: how many are lost is printed."""
    _, out = chain
    said = {stage: text for stage, text, _ in out}
    assert "completions are dropped: longer than the context of 256" in said["rm-oa"]
    assert "prompts are dropped: longer than the " in said["ppo"]


def test_no_prompt_is_in_two_splits_of_the_preferences_nor_trained_on_in_sft(chain):
    """The held-out accuracy on polite and impolite answers is of prompts no stage has trained on:
    the instructions of the SFT model are split as the preferences are."""
    folder, _ = chain
    read = lambda data, name, kind: {r["prompt"] for r in records.read(
        folder / data / f"{name}.jsonl", kind)}
    held = read("polite", "rankings_valid", "ranking")
    assert not held & read("polite", "rankings_train", "ranking")
    assert not held & read("instructions", "demonstrations_train", "demonstration")
    assert held & read("instructions", "demonstrations_valid", "demonstration")


def test_rankings_have_up_to_nine_completions_and_demonstrations_score_zero(chain, monkeypatch):
    folder, _ = chain
    cache = folder.parents[1] / "tiktoken-cache"
    if cache.is_dir():  # where the chain, too, had the gpt2 tokenizer from
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    k = {len(r["ranks"]) for split in ("train", "valid", "test") for r in (
        json.loads(line) for line in open(folder / "oa" / f"rankings_{split}.jsonl"))}
    assert {2, 3} <= k <= set(range(2, 10))
    model, *_ = load(folder / "rm-oa", {"ScalarGPT": ScalarGPT}, "")
    assert torch.isfinite(model.score.bias).all() and model.score.bias != 0

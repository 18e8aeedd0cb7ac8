"""The cost model against what it models: real models, PyTorch's count of FLOPs, a process's memory,
and the compute that the paper says it took."""
import functools
import json
import re
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import kernels
from runtime import plan
import ppo
import reward
from runtime import machine
import sft
from helpers import one_process
from model import GPT, GPTConfig, ScalarGPT
from runtime.optimizer import make_optimizer
from runtime.plan import DAY, MACHINES, SIZES, Model, Work, memory, parameters
from settings import parse

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import memory_check  # noqa: E402
import plan_check  # noqa: E402

SHAPES = [GPTConfig(13, 24, 2, 2, 16), GPTConfig(301, 40, 3, 4, 64), GPTConfig(1000, 64, 1, 8, 128)]
SCRIPTS = {"sft": sft, "reward": reward, "ppo": ppo}


def printed(capsys, script, *flags):
    """What `python SCRIPT.py FLAGS` prints, and that it ends there."""
    with pytest.raises(SystemExit) as end:
        module = SCRIPTS[script]
        parse(module.Settings, module.PRESETS, list(flags),
              functools.partial(plan.show, script))
    assert end.value.code == 0
    return capsys.readouterr().out


def run_of(text):
    """(petaflop/s-days, the same if every row filled the context) that a plan says."""
    found = re.search(r"The run: ([\d.,e+-]+) petaflop/s-days; ([\d.,e+-]+) if", text).groups()
    return [float(x.replace(",", "")) for x in found]


# ------------------------------------------------------------------------- parameters and FLOPs

@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("kind", [GPT, ScalarGPT])
def test_parameters_are_those_of_the_model(config, kind):
    count = sum(p.numel() for p in kind(config).parameters())
    assert parameters(config, kind is ScalarGPT) == count


def test_parameters_of_published_sizes():
    assert parameters(SIZES["gpt2"]) == 124_439_808  # what everyone counts
    assert parameters(SIZES["gpt2-xl"]) == 1_557_611_200
    for name, billions in (("1.3b", 1.3), ("6b", 6.7), ("175b", 175)):
        assert parameters(SIZES[name]) / 1e9 == pytest.approx(billions, rel=0.02)


class Tiles(torch.autograd.Function):
    """Attention as kernels.py computes it, where PyTorch's counter can look inside."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = kernels.attention.tiled_attention(q, k, v)
        ctx.save_for_backward(q, k, v, *out)
        return out[0]

    @staticmethod
    def backward(ctx, grad):
        return kernels.attention.tiled_attention_backward(grad, *ctx.saved_tensors)


def counter():
    """PyTorch's, which forgets products that are added to a sum in place."""
    product = lambda total, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2]  # shapes
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: product})


@pytest.fixture
def in_the_open(monkeypatch):
    monkeypatch.setattr(kernels.products, "ONEDNN", False)  # its products are no operators of torch
    monkeypatch.setattr(kernels, "causal_attention", Tiles.apply)


@pytest.mark.parametrize("layers, heads, width, T", [(2, 2, 64, 512), (3, 4, 64, 128),
                                                     (2, 8, 128, 256)])
def test_flops_are_those_that_pytorch_counts(in_the_open, layers, heads, width, T):
    """Exactly, if attention's pairs are those of whole blocks of 64 queries, which the kernel
    computes. A plan counts the causal pairs alone: at these sizes all FLOPs within 10 %."""
    c, B = GPTConfig(307, T, layers, heads, width), 2
    gpt, ids = GPT(c), torch.randint(0, 307, (B, T))
    blocks, pairs = B * T * (T + 64) / 2, B * T * (T + 1) / 2
    marked = B * (T // 2)
    mask = torch.arange(T).expand(B, T) >= T - T // 2
    with counter() as trained:
        gpt(ids, mask, objective=lambda logprob, mask: -logprob.sum())[0].backward()
    assert plan.train_flops(c, B * T, blocks, marked) == trained.get_total_flops()
    assert plan.train_flops(c, B * T, pairs, marked) == pytest.approx(trained.get_total_flops(),
                                                                     rel=0.10)
    gpt.requires_grad_(False)
    with counter() as forward:
        gpt(ids, mask, objective=lambda logprob, mask: -logprob.sum())
    assert plan.forward_flops(c, B * T, blocks, marked) == forward.get_total_flops()


def test_flops_of_the_scalar_head(in_the_open):
    """The plan leaves out the scalar head itself: 2 C a token, and 6 C in training."""
    c, B, T = GPTConfig(307, 128, 2, 4, 64), 2, 128
    judge, ids = ScalarGPT(c), torch.randint(0, 307, (B, T))
    with counter() as trained:
        judge(ids).sum().backward()
    count = trained.get_total_flops() - 6 * 64 * B * T
    assert plan.train_flops(c, B * T, B * T * (T + 64) / 2) == count


def test_checkpointing_costs_a_forward_pass_of_the_blocks():
    c = SHAPES[1]
    more = plan.train_flops(c, 100, 900, 50, True) - plan.train_flops(c, 100, 900, 50)
    assert more == plan.forward_flops(c, 100, 900)


# --------------------------------------------------------------------------- the paper's compute

def test_the_papers_compute(capsys):
    """Section 5.1: 4.9 petaflop/s-days for SFT and 60 for PPO-ptx at 175B; 3,640 for GPT-3."""
    text = printed(capsys, "sft", "--preset=175b", "--plan")
    assert run_of(text)[1] == pytest.approx(4.9, rel=0.06) and "the paper says 4.9" in text
    text = printed(capsys, "ppo", "--preset=175b", "--plan")
    assert run_of(text)[1] == pytest.approx(60, rel=0.06) and "the paper says 60" in text
    shape = ["--block_size=2048", "--n_layer=96", "--n_head=96", "--n_embd=12288"]
    text = printed(capsys, "sft", "--preset=base", "--tokenizer=gpt2", *shape, "--plan")
    assert run_of(text)[0] == pytest.approx(3640, rel=0.03)


def test_a_row_as_a_reader_would_count_it():
    """4,000 steps of 512 text rows of 2,048 tokens: 6 N a token, and a little for attention."""
    policy = Model("policy", SIZES["175b"], trained=True)
    work = Work("update", "text", policy, 4000 * 512, 0, 2048, 4000)
    assert work.flops() / DAY == pytest.approx(4000 * 512 * 2048 * 6 * 175e9 / DAY, rel=0.02)


# ------------------------------------------------------------------------------- memory and time

@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("script, sizes", [
    ("sft", (256, 4, 4, 256, 8)), ("sft", (128, 6, 6, 384, 8)), ("ppo", (64, 6, 6, 384, 32))])
def test_memory_is_what_a_process_takes(script, sizes):
    peak = plan_check.measured(script, sizes, seconds=False)
    assert plan_check.predict(script, sizes)[0] == pytest.approx(peak, rel=0.15)


@pytest.mark.long
def test_memory_is_what_the_scripts_take(tmp_path):
    """The real ones, as processes, with activations checkpointed and not."""
    memory_check.make_data(tmp_path, 128)
    less, size = memory_check.without_model(tmp_path, 128, 8), (128, 6, 6, 384)
    for saving in memory_check.SAVING:
        for script, _, bytes_, ((measured, _),) in memory_check.compare(
                tmp_path, size, less, 8, saving):
            assert bytes_ == pytest.approx(measured, rel=0.15), (script, saving)


def test_memory_of_training_without_activations():
    """docs/memory.md: 16 bytes a parameter, and 40 of PPO: two models' gradients are not there at
    the same time."""
    m, c = MACHINES["cpu"], GPTConfig(50257, 1024, 12, 12, 768)
    policy, value = Model("policy", c, False, True, True), Model("value", c, True, True)
    frozen, P = [Model("reference", c), Model("reward", c, True)], parameters(c)
    sizes = memory([policy], [], 1, False, 1, m)
    assert sizes["weights"] + sizes["gradients"] + sizes["Adam"] == 16 * P
    sizes = memory([policy, value, *frozen], [], 1, False, 1, m)
    assert sizes["peak"] == pytest.approx(40 * P, rel=1e-4)


def test_memory_and_advice_know_muon():
    """One moment a weight of the blocks' matrices, two of all others; and it cannot be sharded."""
    s = sft.Settings(init="scratch", optimizer="muon")
    model = GPT(GPTConfig(700, s.block_size, s.n_layer, s.n_head, s.n_embd))
    optimizer = make_optimizer(model, 1e-3, 0.1, muon=True)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    kept = sum(x.numel() for state in optimizer.state.values() for x in state.values()
               if x.dim())  # without AdamW's counts of steps
    models, work, _ = plan.WORK["sft"](None, s)
    assert memory(models, work, 1, False, 1, MACHINES["cpu"])["Adam"] == 4 * kept
    told = {name: [setting for setting, *_ in plan.advice("sft", replace(s, optimizer=name), 2,
                                                          False)[1]] for name in ("adamw", "muon")}
    assert "shard" in told["adamw"] and "shard" not in told["muon"]


def test_several_passes_find_the_gradients_there():
    """In one pass gradients come as activations go."""
    c, m = GPTConfig(1000, 128, 4, 4, 64), MACHINES["cpu"]
    policy = Model("policy", c, trained=True)
    step = lambda rows, micro, **more: memory(
        [policy], [Work("update", "", policy, rows, 0, 128, 1)], 1, False, micro, m, **more)["peak"]
    assert step(16, 8) - step(8, 8) == 4 * policy.size
    assert step(16, 8) < step(16, 16) < step(16, 8) + step(8, 8)
    assert step(16, 99, tokens=8 * 128) == step(16, 8) == step(16, 99, tokens=8 * 128 + 127)
    assert step(16, 99, tokens=5) == step(16, 1), "a row longer than that is alone"
    assert step(16, 8, checkpoint=True) < step(16, 8)


def test_offloaded_models_are_there_one_at_a_time():
    c, m = GPTConfig(1000, 128, 4, 4, 64), MACHINES["cpu"]
    policy = Model("policy", c, trained=True)
    small, large = Model("reference", c), Model("judge", GPTConfig(1000, 128, 40, 4, 64), True)
    step = lambda offload: memory([policy, small, large], [], 1, False, 1, m, offload=offload)
    away, there = step(True), step(False)
    assert there["weights"] - away["weights"] == 4 * (small.size + large.size)
    assert away["peak"] == pytest.approx(12 * policy.size + 4 * large.size), "while it scores"


@pytest.mark.parametrize("script", SCRIPTS)
def test_advice_names_three_settings_and_what_each_would_take(script):
    """Of gpt2's size: those that change no result, the one that lowers most before the others."""
    module = SCRIPTS[script]
    sizes = ("batch", "max_new_tokens") if script == "ppo" else ("init", "data")
    both = dict(init="gpt2", reward="gpt2") if script == "ppo" else dict(init="gpt2")
    s = module.Settings(**both, batch=32, micro_batch=16, dtype="float32")

    def names(n=1, gpu=False, **changes):
        own = replace(s, **changes)
        now, found = plan.advice(script, own, n, gpu)
        assert now == plan.planned(script, own, n, gpu)
        numbers = [less for name, _, less in found if name not in sizes]
        assert numbers == sorted(numbers) and all(less < now for less in numbers)
        for name, value, less in found:
            if less:
                assert less == plan.planned(script, replace(own, **{name: value}), n, gpu)
        return [f"{name}={value}" for name, value, _ in found]

    saved = "activation_checkpointing=True"
    first = "batch=16" if script == "ppo" else "init=None"
    assert set(names()[:2]) == {saved, "micro_batch=8"} and names()[2] == first
    assert len(names(n=4)) == len(names(n=4, gpu=True)) == 3
    assert "shard=True" in names(n=4) and "shard=True" not in names(n=4, shard=True)
    tokens = 32768 if script == "reward" else 16384  # the first half that is less than a step has
    assert f"micro_batch_tokens={tokens}" in names(micro_batch_tokens=65536)
    alone = dict(activation_checkpointing=True, micro_batch=1)
    assert ("offload=True" in names(gpu=True, **alone)) == (script == "ppo")
    now, found = plan.advice(script, replace(s, **alone), 1, False)
    half = {"batch": 16, "max_new_tokens": s.max_new_tokens // 2} if script == "ppo" else {}
    assert [x[:2] for x in found] == [(name, half.get(name)) for name in sizes], "nothing else"
    assert all(less is None or less <= now for _, _, less in found)


def test_sharding_divides_what_a_gpu_keeps():
    policy, m = Model("policy", SIZES["6b"], False, True, True), MACHINES["a100"]
    work = [Work("update", "policy", policy, 64, 166, 128, 1)]
    ddp, sharded = (memory([policy], work, 8, x, 1, m) for x in (False, True))
    for part in ("weights", "Adam", "EMA"):
        assert sharded[part] == ddp[part] / 8
    assert memory([policy], work, 64, True, 1, m)["peak"] < sharded["peak"] < ddp["peak"]
    assert memory([policy], work, 8, True, 1, m, checkpoint=True)["peak"] < sharded["peak"]


def test_a_sharded_model_is_lent_whole():
    """To score, too: a small policy on many GPUs still has the value function whole for a while,
    in float32, which is how it is kept."""
    policy = Model("policy", SIZES["1.3b"], trained=True)
    value = Model("value", SIZES["6b"], True, True)
    work, m = [Work("scoring", "value", value, 512, 166, 128)], MACHINES["a100"]
    peak = memory([policy, value], work, 512, True, 1, m)["peak"]
    assert 4 * value.size < peak < 4.3 * value.size
    seconds = lambda steps: Work("", "", value, 512, 166, 128, steps).seconds(8, True, 1, m)[1]
    gather = 4 * value.size * 7 / 8 / m.inside
    assert seconds(0) == pytest.approx(gather), "once, whatever the micro-batch"
    assert seconds(1) == pytest.approx(64 * 3 * gather), "in each of 64 twice, and the gradients"


def test_decoding_is_bound_by_memory_bandwidth():
    """Eight rows take hardly longer than one: reading the weights takes the time. Training on them
    takes eight times as long."""
    policy, m = Model("policy", SIZES["1.3b"], trained=True), MACHINES["a100"]
    decode = lambda n: Work("rollout", "", policy, n, 32, 128, longest=128).seconds(1, 0, 8, m)[0]
    train = lambda n: Work("update", "", policy, n, 32, 128, 1).seconds(1, 0, 8, m)[0]
    assert decode(1) == pytest.approx(128 * 2 * policy.size / m.bandwidth, rel=0.01)
    assert decode(8) < 1.1 * decode(1)
    assert train(8) == pytest.approx(8 * train(1))


def test_the_gpu_with_most_rows_decides():
    policy, m = Model("policy", SIZES["1.3b"], trained=True), MACHINES["a100"]
    seconds = lambda n: Work("update", "", policy, 64, 32, 128, 1).seconds(n, True, 1, m)[0]
    assert seconds(1) == pytest.approx(64 * seconds(64)) and seconds(512) == seconds(64)
    assert seconds(33) == pytest.approx(2 * seconds(64))


def test_a_gpu_alone_sends_nothing():
    policy, m = Model("policy", SIZES["1.3b"], trained=True), MACHINES["a100"]
    work = Work("update", "", policy, 64, 32, 128, 4)
    assert work.seconds(1, False, 1, m)[1] == 0
    all_reduced = work.seconds(8, False, 1, m)[1] * m.inside  # 4 steps, twice 7/8 of the gradients
    assert all_reduced == pytest.approx(4 * 2 * 7 / 8 * 4 * policy.size)


# ------------------------------------------------------------------------------ the command line

@pytest.mark.parametrize("script, preset", [(s, p) for s, m in SCRIPTS.items()
                                            for p in [None, *m.PRESETS]])
def test_every_preset_has_a_plan(capsys, tmp_path, monkeypatch, script, preset):
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = printed(capsys, script, *[f"--preset={preset}"] * bool(preset), "--plan")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
    assert all(f"{n} {how}" in text for n in (8, 64, 512) for how in ("DDP", "sharded"))
    assert "nan" not in text and "inf" not in text and not list(tmp_path.iterdir())


def test_the_readmes_presets_are_those_of_the_scripts():
    """Each number of its table; and where the paper states one, our presets for its sizes have it.
    """
    text = (Path(plan.__file__).parents[1] / "docs" / "presets.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in
            text.partition("## Presets")[2].partition("## Speed")[0].splitlines()
            if line.startswith("| ")][1:]
    stated = 0
    for name, setting, paper, _, ours, gpt2, toy in rows:
        script, _, suffix = name.partition(" `")
        module = SCRIPTS[script.removesuffix(".py")]
        numbers = [float(getattr(parse(module.Settings, module.PRESETS, [f"--preset={preset}"]
                                       if preset else []), setting)) for preset in
                   (*(p + suffix for p in ("1.3b", "6b", "175b", "gpt2")), suffix and "init")]
        listed = list(map(float, ours.split(" / ")))
        assert [*(listed * 3)[:3], float(gpt2), float(toy)] == numbers, (name, setting)
        assert paper in (ours, "not stated"), (name, setting)
        stated += paper == ours
    assert stated == 27 and {name for name, *_ in rows} == {"sft.py", "sft.py `-init", "reward.py",
                                                            "ppo.py"}


def test_settings_change_the_plan(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = run_of(printed(capsys, "ppo", "--preset=1.3b", "--plan=h100"))[0]
    half = run_of(printed(capsys, "ppo", "--preset=1.3b", "--plan", "--iterations=250"))[0]
    assert plain / half == pytest.approx(2, rel=0.02)  # three digits are printed
    assert "H100" in printed(capsys, "sft", "--plan=h100")
    text = printed(capsys, "sft", "--plan=cpu", "--init=scratch", "--n_layer=3", "--n_embd=512")
    assert f"{parameters(GPTConfig(plan.TOY.vocab_size, 128, 3, 8, 512)):,}" in text
    assert "124,439,808" in printed(capsys, "sft", "--plan", "--init=gpt2")


@pytest.mark.parametrize("has", [False, True])
def test_the_type_of_products_changes_the_plan(capsys, monkeypatch, has):
    """auto is bf16 on a GPU, and float32 on a CPU that has no bf16; the other type says so, and
    counts its bytes."""
    monkeypatch.setattr(machine, "has_bf16", lambda: has)
    for name, other in (("h100", "float32"), ("cpu", "bf16")):
        m = MACHINES[name]
        changed = plan.in_type(m, other, 768)
        assert plan.in_type(m, "auto", 768) == (changed if has and name == "cpu" else m)
        assert {m.low, changed.low} == {2, 4} and changed.cache == 4
        assert f"{m.name.split(',')[0]}, {other}, at" in printed(
            capsys, "sft", f"--plan={name}", f"--dtype={other}")
        models = [Model("policy", SIZES["gpt2"], trained=True), Model("reference", SIZES["gpt2"])]
        bytes_ = [memory(models, [], 1, False, 1, x)["weights"] for x in (m, changed)]
        assert max(bytes_) - min(bytes_) == 2 * models[1].size, "only frozen weights are smaller"
        assert (m.flops > changed.flops) == (other == "float32"), "bf16 is the faster one"


@pytest.mark.parametrize("has", [False, True])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bf16"])
@pytest.mark.parametrize("width", [machine.WIDE - 1, machine.WIDE])
def test_the_plan_takes_the_type_that_runs(monkeypatch, has, dtype, width):
    monkeypatch.setattr(machine, "has_bf16", lambda: has)
    monkeypatch.setattr(kernels.products, "PRODUCTS", None)
    machine.precision(dtype, one_process(), width)
    assert plan.in_type(MACHINES["cpu"], dtype, width).low == kernels.products.PRODUCTS.itemsize


def test_a_checkpoint_gives_its_architecture(capsys, tmp_path):
    (tmp_path / "checkpoint.json").write_text('{"config": {"vocab_size": 300, "block_size": 64, '
                                              '"n_layer": 5, "n_head": 2, "n_embd": 32}}')
    text = printed(capsys, "ppo", f"--init={tmp_path}", "--plan")
    assert f"{parameters(GPTConfig(300, 64, 5, 2, 32)):,}" in text


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_hugging_face_model_gives_its_architecture(file, capsys, tmp_path):
    """The folder, or its file of weights: --init takes both."""
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "gpt2", "vocab_size": 300, "n_positions": 64, "n_layer": 5, "n_head": 2,
        "n_embd": 32, "activation_function": "gelu_new"}))
    text = printed(capsys, "ppo", f"--init={tmp_path / file}", "--plan")
    assert f"{parameters(GPTConfig(300, 64, 5, 2, 32)):,}" in text


def test_an_unknown_machine_and_a_script_without_a_plan():
    with pytest.raises(SystemExit, match="a100, h100, cpu"):
        parse(sft.Settings, sft.PRESETS, ["--plan=abacus"],
              functools.partial(plan.show, "sft"))
    with pytest.raises(SystemExit, match="unknown argument '--plan'"):
        parse(sft.Settings, sft.PRESETS, ["--plan"])


def test_help_names_the_plan(capsys):
    with pytest.raises(SystemExit):
        parse(sft.Settings, sft.PRESETS, ["--help"],
              functools.partial(plan.show, "sft"))
    assert "--plan" in capsys.readouterr().out


def test_numbers_of_a_table():
    assert [plan.number(x) for x in (0, 0.01234, 12.34, 1234.5)] == ["0", "0.0123", "12.3", "1,234"]
    assert plan.table(["a", "bc"], [["long", 1]]) == ["a     bc", "long   1"]


def test_the_toy_is_what_the_scripts_make():
    s = sft.Settings()
    assert replace(plan.TOY, vocab_size=0) == GPTConfig(0, s.block_size, s.n_layer, s.n_head,
                                                        s.n_embd)

"""What only a GPU shows, shown without one: tensors on two devices (see pretend_gpu.py).

First the pretend GPU itself, beside what CUDA does; then every script on it, from end to end, with
the numbers of the same run on the CPU.
"""
import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import reward
import sft
from data import records
from data.tokenizer import load_tokenizer, train_bpe
from demo import FLAGS, ROOT, python
from eval_files import make_all
from helpers import one_process, same, tiny, tiny_scalar
from kernels import choice, losses
from pretend_gpu import pretend_gpu
from runtime.checkpoint import save
from runtime.optimizer import make_optimizer
from test_mine import rank_all

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from gpu_check import logs_differ  # noqa: E402

# ------------------------------------------------------------------------------ the pretend GPU

# g: [2, 3] on the GPU; c: the same on the CPU; i: indices on the CPU; s: [] on the CPU
REFUSED = {
    "g + c": "same device", "c * g": "same device", "g @ c.T": "same device",
    "torch.cat([g, c])": "same device", "torch.stack([g.sum(), c.sum()])": "same device",
    "torch.cat([g, c.new_zeros(0, 3)])": "same device",
    "torch.where(c > 1, g, g)": "same device", "g.masked_fill(c > 1, 0.0)": "same device",
    "c[i.to('cuda')]": "same device", "g.index_select(0, i)": "same device",
    "g.gather(0, i[None])": "same device", "g.take(i)": "same device",
    "torch.nn.functional.embedding(i, g)": "same device",
    "torch.nn.functional.linear(g, c)": "same device",
    "c.add_(g)": "same device", "s.add_(g.sum())": "same device", "g.mul_(c)": "same device",
    "g.__setitem__(i, c)": "same device", "torch.isin(g, c)": "same device",
    "torch.equal(g, c)": "same device", "torch.maximum(g, c)": "same device",
    "g.lerp_(c, 0.5)": "same device", "torch.add(g, g, out=torch.empty(2, 3))": "same device",
    "(g + 1)[:, 1:].T.contiguous() + c[:, 1:].T": "same device",
    "torch.searchsorted(g, c)": "same device", "torch.zeros(3) + g": "same device",
    "g.tolist() and torch.tensor([1.0, 2.0, 3.0]) + g": "same device",
    "torch._foreach_add([g], [c])": "same device",
    "g.numpy()": "numpy", "g.__array__()": "numpy", "np.asarray(g)": "numpy",
    "g.pin_memory()": "pinned",
    "torch.randn(2, generator=torch.Generator(), device='cuda')": "generator",
    "g.normal_(generator=torch.Generator())": "generator"}
ALLOWED = {  # -> where the result is
    "g + s": "cuda", "s * g": "cuda", "g + 1": "cuda", "1 - g": "cuda",
    "torch.where(g > 1, g, s)": "cuda", "g.masked_fill(g > 1, s)": "cuda", "g.add_(s)": "cuda",
    "g[i]": "cuda", "g[c > 1]": "cuda", "g.copy_(c)": "cuda", "c.copy_(g)": "cpu",
    "g.index_put_((i,), g[i])": "cuda", "g[:, 0].fill_(s)": "cuda", "g.cpu() + c": "cpu",
    "g + c.cuda()": "cuda", "c.to(g) + g": "cuda", "g.to('cpu', torch.float64)": "cpu",
    "torch.zeros_like(g)": "cuda", "torch.zeros_like(g, device='cpu')": "cpu",
    "torch.ones_like(c, device='cuda')": "cuda", "g.new_zeros(2)": "cuda", "c.new_ones(2)": "cpu",
    "torch.arange(3, device='cuda:0')": "cuda", "torch.arange(3)": "cpu",
    "torch.tensor([g.sum(), 1.0])": "cpu", "torch.tensor([1.0], device=g.device)": "cuda",
    "torch.as_tensor(g.sum(), dtype=torch.float64)": "cuda",
    "torch.as_tensor(g, device='cpu')": "cpu", "torch.tensor(g.tolist())": "cpu",
    "torch.from_numpy(g.cpu().numpy())": "cpu", "g.nonzero()": "cuda", "g.sum()": "cuda",
    "g.double().cumsum(1)": "cuda", "torch.linspace(0, 1, 3, device='cuda')": "cuda",
    "copy.deepcopy(g)": "cuda", "torch.nn.Parameter(g)": "cuda", "g.data.view(-1)[:2]": "cuda",
    "torch.nn.Linear(3, 2).to('cuda').weight": "cuda", "torch.nn.Linear(3, 2, device='cuda')(g)":
    "cuda", "g.detach().requires_grad_()": "cuda", "torch.empty(2, device='meta')": "meta",
    "g.repeat_interleave(2, 0)": "cuda", "torch.stack(list(g))": "cuda", "g.to(g.device)": "cuda",
    "torch.nn.functional.pad(g, (1, 0))": "cuda", "torch.nn.functional.one_hot(g.long())": "cuda"}


def operands(device="cuda"):
    """The names that the expressions above use."""
    c = torch.arange(6.0).view(2, 3)
    return dict(torch=torch, np=np, copy=copy, c=c, g=c.to(device, copy=True),
                i=torch.tensor([1, 0]), s=torch.tensor(2.0))


@pytest.mark.parametrize("expression", REFUSED)
def test_what_cuda_refuses(expression):
    with pretend_gpu():
        names = operands()
        with pytest.raises((RuntimeError, TypeError), match=REFUSED[expression]):
            eval(expression, names)


@pytest.mark.parametrize("expression", ALLOWED)
def test_what_cuda_allows(expression):
    """The result says where it is, has the numbers of a CPU, and is again there for what follows:
    the place of a tensor is that of its memory."""
    with pretend_gpu():
        got, where = eval(expression, operands()), ALLOWED[expression]
        assert (got.device.type, got.is_cuda, got.is_cpu) == (where, where == "cuda",
                                                              where == "cpu")
        assert got[None].flatten(0).device.type == (got * 1).device.type == where
    if where != "meta" and "Linear" not in expression:
        plain = re.sub(r"'cuda(:0)?'", "'cpu'", expression).replace(".cuda()", "")
        expected = eval(plain, operands("cpu"))
        assert torch.equal(got, expected) and got.dtype == expected.dtype


def test_a_place_ends_with_its_memory():
    """A CPU tensor that gets the memory of one from the GPU is not taken for it."""
    with pretend_gpu() as gpu:
        for _ in range(3000):
            x = torch.zeros(4, device="cuda")
            del x
            assert torch.zeros(4).device.type == "cpu"
        assert len(gpu.places.there) < 2500, "dead ones are forgotten"
        assert gpu.count >= 3000
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != "a pretend GPU"


@pytest.mark.parametrize("kernels", ["tiled", ""])
def test_gradients_stay_on_the_gpu(monkeypatch, kernels):
    """A step of a small model with dropout noise, checkpointing, our operators and our optimisers:
    the numbers of a CPU; every gradient, moment and weight on the GPU. With tiled kernels, and with
    those that a GPU gets: Triton's, interpreted."""
    monkeypatch.setattr(choice, "CHOSEN", kernels)
    rows = [([3, 4, 5, 6, 7], 1), ([8, 9, 1], 0)]

    def step(device):
        world, model = one_process(), tiny(dropout=0.1).train()
        world.device = torch.device(device)
        world.wrap(model, checkpointing=True)
        optimizer = make_optimizer(model, 1e-2, 0.1, muon=True)
        s = sft.Settings(micro_batch=1)
        loss, norm = sft.train_step(model, optimizer, rows, 1e-2, s, world, 5)
        places = {x.device.type for x in [*model.parameters(), *moments(optimizer)]}
        return [loss, norm, *(p.detach().cpu() for p in model.parameters())], places

    def moments(optimizer):
        return [x for own in optimizer.state.values() for x in own.values() if torch.is_tensor(x)]

    (loss, norm, *weights), places = step("cpu")
    assert places == {"cpu"}
    with pretend_gpu() as gpu:
        (other, other_norm, *others), places = step("cuda")
    assert places == {"cuda"} and gpu.count > 500
    assert other == pytest.approx(loss, rel=1e-5) and other_norm == pytest.approx(norm, rel=1e-4)
    same(others, weights, 1e-3)


def test_gradients_go_back_to_the_cpu():
    """Through .to(device), hooks of checkpointing and torch.autograd.grad."""
    with pretend_gpu():
        w = torch.ones(3, requires_grad=True)
        double = lambda x: (x * x.to("cuda")).sum()
        checkpoint(double, w.to("cuda"), use_reentrant=False).backward()
        assert w.grad.device.type == "cpu" and w.grad.tolist() == [2.0, 2.0, 2.0]
        x = w.to("cuda")
        assert torch.autograd.grad(double(x), x)[0].device.type == "cuda"


def test_mix_ups_in_operators_and_backward_passes(monkeypatch):
    """Python code that PyTorch itself calls, while it is inside an operation."""
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return g * torch.tensor([2.0, 2.0])

    monkeypatch.setattr(choice, "CHOSEN", "tiled")
    model, ids = tiny(), torch.tensor([[1, 2, 3]])
    with pretend_gpu():
        loss = Scaled.apply(torch.ones(2, device="cuda", requires_grad=True)).sum()
        with pytest.raises(RuntimeError, match="same device"):
            loss.backward()
        model, ids = model.to("cuda"), ids.to("cuda")
        assert model(ids, ids > 0)[0].device.type == "cuda"
        marked = losses._marked
        monkeypatch.setattr(losses, "_marked", lambda x, y: marked(x.cpu(), y.cpu()))
        with pytest.raises(RuntimeError, match="same device"):
            model(ids, ids > 0)


def test_a_file_without_a_place_is_refused(tmp_path):
    """What a GPU has saved would come back to it."""
    with pretend_gpu():
        x = torch.ones(2, device="cuda")
        torch.save(x, tmp_path / "x.pt")
        assert torch.load(tmp_path / "x.pt", "cpu").device.type == "cpu"
        with pytest.raises(RuntimeError, match="without map_location"):
            torch.load(tmp_path / "x.pt")


# ----------------------------------------------------------------------------------- the scripts

def on_gpu(folder, *words, computes=True):
    """Run a program of the repository on the pretend GPU. Returns what it printed. computes: itself
    on the GPU, and not only the programs that it starts."""
    first = words[:1] if words[0] == "-m" else [str(ROOT / words[0])]
    output = python(folder, "tests/pretend_gpu.py", *first, *words[1:], seconds=1000)
    operations = int(re.findall(r"operations on the pretend GPU: (\d+)", output)[-1])
    assert (operations > 0) == computes, output
    return output


def stage_on_gpu(demo, stage, *flags, out=None):
    """Run a stage of the demo on the pretend GPU: the log is that of the demo's run on the CPU."""
    name, plain = out or f"{stage}-on-gpu", {"reward": "rm"}.get(stage, stage)
    on_gpu(demo.folder, *FLAGS[stage], "--dtype=float32", *flags, f"--out=out/{name}")
    facts = logs_differ(demo.log(plain), demo.log(name), 1e-5, 1e-3)
    assert "bad" not in facts, facts


def test_ppo_without_text(demo):
    """Its empty text rows are on the GPU, too."""
    stage_on_gpu(demo, "ppo")


def test_ppo_with_idle_models_in_cpu_memory(demo):
    stage_on_gpu(demo, "ppo-ptx", "--offload", "--activation_checkpointing", out="offload-on-gpu")


@pytest.mark.long
@pytest.mark.parametrize("stage", ["base", "sft", "init", "reward", "ppo-ptx"])
def test_a_stage(demo, stage):
    """Muon, dropout, a mix of text, a reward model, PPO-ptx."""
    stage_on_gpu(demo, stage)


@pytest.mark.long
def test_a_stage_in_bf16(demo):
    """What a GPU computes in unless it is told otherwise."""
    words = on_gpu(demo.folder, *FLAGS["ppo-ptx"], "--micro_batch_tokens=64", "--out=out/bf16-gpu")
    assert "products in bf16" in words
    facts = logs_differ(demo.log("ppo-ptx"), demo.log("bf16-gpu"), 0.1, 0.3)
    assert "bad" not in facts, facts


@pytest.mark.long
def test_the_reward_model_chooses_the_epoch(demo):
    stage_on_gpu(demo, "sft", "--reward=out/rm", "--max_new_tokens=8", out="chosen-on-gpu")
    history = demo.checkpoint("chosen-on-gpu")["history"]
    assert len(history) == 2 and all("reward" in h for h in history)


@pytest.mark.long
@pytest.mark.parametrize("before, after", [("gpu", "gpu"), ("gpu", "cpu"), ("cpu", "gpu")])
def test_a_resumed_run(demo, before, after, monkeypatch):
    """Killed in its second iteration, on one device, and resumed, perhaps on the other."""
    name, words = f"resumed-{before}-{after}", [*FLAGS["ppo-ptx"], "--dtype=float32"]
    words += [f"--out=out/{name}", "--save_every=1"]
    monkeypatch.setenv("RANK", "0")
    start = {"gpu": on_gpu, "cpu": python}
    with pytest.raises(AssertionError):  # it ends by a signal
        start[before](demo.folder, "tests/harm.py", '[["die", 0, 2]]', *words)
    assert len(demo.log(name)) == 1
    output = start[after](demo.folder, *words, "--resume")
    assert "resumed at step 1 of 2" in output
    facts = logs_differ(demo.log("ppo-ptx"), demo.log(name), 1e-5, 1e-3)
    assert "bad" not in facts, facts


@pytest.mark.long
def test_samples_and_answers(demo):
    """labels.sample, figures.measure, chat.py and the toy's evaluation."""
    on_gpu(demo.folder, *FLAGS["sample valid"], "--dtype=float32", "--out=out/sampled.jsonl")
    ours = records.read(demo.folder / "out" / "sampled.jsonl", "to label")
    assert ours == demo.records("completions_valid", "to label")
    on_gpu(demo.folder, "-m", "figures.measure", "--policy=out/ppo", "--prompts=8",
           "--max_new_tokens=8", "--out=out/measured.jsonl")
    assert len((demo.folder / "out" / "measured.jsonl").read_text().splitlines()) == 8
    for flags in (["--num=2", "--reward=out/rm"], ["--temperature=0"]):
        asked = "chat.py", "out/ppo-ptx", "Who is Anna?", "--max_new_tokens=8", *flags
        assert python(demo.folder, *asked) in on_gpu(demo.folder, *asked)
    on_gpu(demo.folder, *FLAGS["evaluate"], "--dtype=float32", "--out=out/evaluated-on-gpu")
    both = [json.loads((demo.folder / "out" / name / "results.json").read_text())["gold"]
            for name in ("demo", "evaluated-on-gpu")]
    assert both[0] == both[1]


@pytest.mark.long
@pytest.mark.parametrize("kernels", ["tiled", "reference"])
def test_the_public_suite(tmp_path, kernels, monkeypatch):
    """Items that are chosen, generated, read and compared by a reward model."""
    monkeypatch.setenv("KERNELS", kernels)
    files = make_all(tmp_path / "files", 3)
    (tmp_path / "t.tiktoken").write_bytes(train_bpe("the mill at the river " * 9, 280))
    tokenizer = load_tokenizer("t.tiktoken", tmp_path)
    size = dict(vocab_size=tokenizer.size, block_size=256, n_layer=1)
    save(tmp_path / "m", tiny(**size), tokenizer, sft.Settings())
    save(tmp_path / "rm", tiny_scalar(**size), tokenizer, reward.Settings())
    records.write(tmp_path / "prompts.jsonl", [{"prompt": f"the river {i}"} for i in range(3)])
    (tmp_path / "mine.py").write_text("def score(rows):\n    return [0.25] * len(rows)\n")
    words = ["evaluate.py", "--suite=public", "--limit=2", "--toxicity=mine:score",
             "--tasks=hellaswag,crows,squad,perplexity,toxicity,preference", f"--files={files}",
             "--prompts=prompts.jsonl", "--rm=rm", "--models=m=m,n=m", "--dtype=float32"]
    python(tmp_path, *words, "--device=cpu", "--out=cpu")
    on_gpu(tmp_path, *words, "--out=gpu")
    both = [{(r["task"], r["prompt"], r["model"], r["metric"]): r["value"] for r in json.loads(
        (tmp_path / name / "results.json").read_text())["results"]} for name in ("cpu", "gpu")]
    assert both[0] == pytest.approx(both[1], rel=1e-3) and len(both[0]) > 25
    assert {task for task, *_ in both[0]} == set(words[4].partition("=")[2].split(","))


@pytest.mark.long
def test_a_policy_of_my_own_and_its_export(demo):
    """labels.mine starts reward.py, ppo.py and labels.sample, all on the pretend GPU."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    out = demo.folder / "out" / "mine-on-gpu"
    rank_all(out / "labels", demo.records("completions_valid"), lambda text: -len(text))
    words = on_gpu(demo.folder, "-m", "labels.mine", "--epochs=1", "--iterations=1", "--prompts=8",
                   "--policy=out/ppo-ptx", f"--out={out}", f"--labels={out / 'labels'}",
                   computes=False)
    assert words.count("products in bf16") >= 2 and (out / "report.html").exists()
    on_gpu(demo.folder, "-m", "runtime.huggingface", "export", f"{out}/policy", f"{out}/hub",
           computes=False)
    on_gpu(demo.folder, "sft.py", f"--init={out}/hub", "--epochs=1", f"--out={out}/again")


@pytest.mark.long
def test_the_check_for_a_gpu(tmp_path):
    """Its part d: the three stages on both devices, killed and resumed on the other."""
    on_gpu(tmp_path, "tests/bench/gpu_check.py", "--device=cuda", "--tiny", "--part=d",
           "--budget=900", "--out=part.json", computes=False)
    found = json.loads((tmp_path / "part.json").read_text())
    assert found["facts"]["gpu"] == "a pretend GPU" and len(found["checks"]) > 15
    assert {c["status"] for c in found["checks"]} == {"passed"}

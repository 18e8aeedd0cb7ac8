"""Ours against what a user would otherwise pick, on a CPU: `make bench`.

    python tests/bench/bench.py                      all rows, one thread
    python tests/bench/bench.py --rows=ce,step       some of them
    python tests/bench/bench.py --rows=gpu           only what gpu.py adds where there is a CUDA GPU
    python tests/bench/bench.py --threads=2          on an idle machine: see below
    python tests/bench/bench.py --repeats=9

Ours and theirs take turns in one process, after one round to warm up; the numbers are medians. With
one thread it is CPU seconds that count, which other programs on the machine disturb least; with
more threads it is the wall clock, which means something only if nothing else runs.

Peak memory is that of a fresh process: the peak of its resident memory during one run after a
warm-up, less what was resident before (inputs, weights, optimiser state) and less the size of what
the run leaves behind (outputs, gradients). Writes out/bench/results.json.
"""
import argparse
import ctypes
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", help="of " + ",".join([*ROWS, "gpu"]) + "; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=str(ROOT / "out/bench/results.json"))
    parser.add_argument("--memory", help="(used inside) SIDE of the one row: print its peak")
    return parser.parse_args()


# -------------------------------------------------------------------------------------- the rows
#
# A row is a function that prepares inputs and returns (ours, theirs, kept): two functions without
# arguments that do the same work, and one that returns the tensors which a run leaves behind.

def attention_row(T, B=8, H=6, D=64):
    import torch
    import torch.nn.functional as F
    from kernels.attention import causal_attention
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, H, T, D, requires_grad=True) for _ in range(3))
    grad, kept = torch.randn(B, H, T, D), []

    def run(function):
        q.grad = k.grad = v.grad = None
        kept.clear()
        out = function(q, k, v)
        out.backward(grad)
        kept[:] = [out.detach(), q.grad, k.grad, v.grad]

    return (lambda: run(causal_attention),
            lambda: run(lambda *x: F.scaled_dot_product_attention(*x, is_causal=True)),
            lambda: kept)


def head_inputs(V):
    import torch
    torch.manual_seed(0)
    x = torch.randn(4096, 384, requires_grad=True)
    weight = (0.02 * torch.randn(V, 384)).requires_grad_()
    return x, weight, torch.randint(V, (4096,)), torch.randn(4096)


def cross_entropy_row(V):
    import torch.nn.functional as F
    from kernels.losses import token_objective
    x, weight, y, _ = head_inputs(V)

    def ours():
        x.grad = weight.grad = None
        token_objective(x, weight, y, lambda logprob, marks: -logprob.sum() / 4096)[0].backward()

    def theirs():
        x.grad = weight.grad = None
        F.cross_entropy(F.linear(x, weight), y).backward()

    return ours, theirs, lambda: [x.grad, weight.grad]


def ppo_loss_row(V, bonus):
    """Log-prob, entropy and the clipped objective. The entropy is for the log, as in ppo.py and in
    TRL; with a bonus it is part of the loss and has a gradient."""
    import torch
    from kernels.losses import token_logprobs, token_objective
    x, weight, y, advantage = head_inputs(V)
    old = torch.full((4096,), -10.8)

    def surrogate(logprob, marks):
        ratio = (logprob - old).exp()
        return -torch.minimum(ratio * advantage,
                              ratio.clamp(0.8, 1.2) * advantage)[marks].sum() / 4096

    def ours():
        x.grad = weight.grad = None
        if bonus:
            logprob, entropy = token_logprobs(x, weight, y, 1.0, True)
            (surrogate(logprob, y >= 0) - bonus * entropy.mean()).backward()
        else:
            token_objective(x, weight, y, surrogate, 1.0, True)[0].backward()

    def theirs():
        x.grad = weight.grad = None
        logp = torch.log_softmax(x @ weight.T, -1)
        with torch.set_grad_enabled(bonus > 0):
            entropy = -(logp.exp() * logp).sum(-1)
        loss = surrogate(logp.gather(-1, y[:, None]).squeeze(-1), y >= 0)
        (loss - bonus * entropy.mean()).backward()

    return ours, theirs, lambda: [x.grad, weight.grad]


def in_both_types(make):
    """The function that make() returns, made and run in bf16, and made and run in float32."""
    import torch
    import kernels
    made = {}

    def run(dtype):
        kernels.products.multiply_in(dtype)
        if dtype not in made:
            made[dtype] = make()
        made[dtype]()
        kernels.products.multiply_in(torch.float32)

    return lambda: run(torch.bfloat16), lambda: run(torch.float32), lambda: []


def hugging_face(V, layers, width, heads, context, **more):
    from transformers import GPT2Config
    return GPT2Config(vocab_size=V, n_positions=context, n_embd=width, n_layer=layers, n_head=heads,
                      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0,
                      eos_token_id=0, pad_token_id=1, attn_implementation="sdpa", **more)


def training_row():
    """Forward, backward and an AdamW step (the same fused one for both) on 8 x 256 tokens."""
    import torch
    from transformers import GPT2LMHeadModel
    from model import GPT, GPTConfig
    from sft import sft_loss
    torch.manual_seed(0)
    ids = torch.randint(50257, (8, 256))
    mask = torch.ones_like(ids, dtype=torch.bool)
    made = {}

    def side(name, make):  # only the side that runs is there: its peak is its own
        if name not in made:
            model = make()
            made[name] = model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        return made[name]

    def ours():
        model, optimizer = side("ours", lambda: GPT(GPTConfig(50257, 256, 6, 6, 384)))
        objective = lambda logprob, marks: sft_loss(logprob, marks, 8 * 255)
        model(ids, mask, objective=objective)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    def theirs():
        model, optimizer = side("theirs", lambda: GPT2LMHeadModel(
            hugging_face(50257, 6, 384, 6, 256)).train())
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return ours, theirs, lambda: []


def sampling_row(ragged):
    """64 prompts of 32 tokens and 32 new ones; ragged: prompts of 16 to 256, responses of 8 to 128,
    whose ends both sides are told, by the same list."""
    import torch
    from transformers import GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList
    import sampler as ours_module
    torch.manual_seed(0)
    rng = random.Random(0)
    B, V, eos = 64, 512, 0
    starts = [rng.randint(16, 256) if ragged else 32 for _ in range(B)]
    ends = torch.tensor([rng.randint(8, 128) if ragged else 32 for _ in range(B)])
    new, longest = int(ends.max()), max(starts)
    prompts = [torch.randint(2, V, (n,)).tolist() for n in starts]
    policy = ours_module.GPT(ours_module.GPTConfig(V, 512, 4, 4, 128)).eval()
    peer = GPT2LMHeadModel(hugging_face(V, 4, 128, 4, 512)).eval()
    ids = torch.ones(B, longest, dtype=torch.long)
    for row, prompt in zip(ids, prompts):
        row[longest - len(prompt) :] = torch.tensor(prompt)
    seen = torch.arange(longest) >= longest - torch.tensor(starts)[:, None]

    class Ends(LogitsProcessor):
        def __call__(self, input_ids, scores):
            step = input_ids.size(1) - longest + 1
            scores = scores.index_fill(1, torch.tensor([eos]), float("-inf"))
            scores[ends == step] = float("-inf")
            scores[ends == step, eos] = 0.0
            return scores

    at, choose, uniform = {}, ours_module.choose, ours_module.uniform

    def noted(seed, episodes, steps):  # which noise belongs to the last token of an episode
        noise = uniform(seed, episodes, steps)
        at["last"] = noise[steps + 1 == ends[episodes]].sort().values
        return noise

    def told(logits, temperature, noise, top_p=1.0):
        logits = logits.index_fill(1, torch.tensor([eos]), float("-inf"))
        token, logprob = choose(logits, temperature, noise)
        return token.masked_fill(torch.isin(noise, at["last"]), eos), logprob

    def ours():
        if ragged:
            ours_module.uniform, ours_module.choose = noted, told
        samples = ours_module.generate(policy, prompts, new, eos if ragged else -1)
        ours_module.uniform, ours_module.choose = uniform, choose
        assert (samples.lengths - samples.prompt_lengths).tolist() == ends.tolist()

    def theirs():
        options = dict(do_sample=True, top_k=0, top_p=1.0, max_new_tokens=new, pad_token_id=1,
                       eos_token_id=eos if ragged else None)
        if ragged:
            options["logits_processor"] = LogitsProcessorList([Ends()])
        with torch.no_grad():
            out = peer.generate(input_ids=ids, attention_mask=seen.long(), **options)
        assert out.shape == (B, longest + new)

    return ours, theirs, lambda: []


def ppo_sides(V, count):
    """TRL's module and a trainer of `count` iterations: 64 episodes, 4 Adam steps."""
    import torch
    import trl.experimental.ppo.ppo_trainer as peer
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import (GPT2ForSequenceClassification, GPT2LMHeadModel,
                              PreTrainedTokenizerFast)
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    torch.manual_seed(0)
    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, 512)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), eos_token="<eos>",
        pad_token="<pad>", padding_side="left")
    policy, reference = (GPT2LMHeadModel(hugging_face(V, 4, 128, 4, 64)) for _ in range(2))
    value, reward = (GPT2ForSequenceClassification(hugging_face(V, 4, 128, 4, 64, num_labels=1))
                     for _ in range(2))
    reference.load_state_dict(policy.state_dict())
    n = 64 * count
    data = Dataset.from_dict({"input_ids": torch.randint(2, 512, (n, 32)).tolist()})
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=64, num_mini_batches=4,
        gradient_accumulation_steps=1, num_ppo_epochs=1, total_episodes=n, response_length=32,
        temperature=1.0, learning_rate=1e-5, num_sample_generations=0,
        local_rollout_forward_batch_size=64, bf16=False, gradient_checkpointing=False, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=10**9)
    trainer = PPOTrainer(config, tokenizer, policy, reference, reward, data, value,
                         eval_dataset=data.select(range(64)))
    return peer, trainer


def our_ppo(V, layers=4, heads=4, width=128):
    """A function that runs one iteration of ppo.py: 64 episodes, 4 minibatches."""
    import ppo
    from model import GPTConfig
    from runtime.world import World
    s = ppo.Settings(batch=64, minibatch=16, micro_batch=16, ptx=0.0, max_new_tokens=32, lr=1e-5)
    return ppo_iteration(GPTConfig(V, 64, layers, heads, width), s, World(0, "cpu"), 32)


def ppo_iteration(shape, s, world, prompt):
    """A function that runs one iteration of ppo.py, without text, on new prompts of so many tokens;
    no response ends before its limit. It returns the episodes."""
    import torch
    import ppo
    from model import GPT, ScalarGPT
    from runtime.optimizer import make_optimizer
    from runtime.sharding import frozen
    torch.manual_seed(0)
    policy, reference, value, reward = GPT(shape), GPT(shape), ScalarGPT(shape), ScalarGPT(shape)
    reference.load_state_dict(policy.state_dict())
    for model in (frozen(reference), frozen(reward), policy, value):
        world.wrap(model)
    optimizers = [make_optimizer(m, 1e-5, 0.0, eps=1e-5) for m in (policy, value)]
    ema = {k: v.clone() for k, v in policy.state_dict().items()}
    done = []

    def iteration():
        i, B = len(done), s.batch
        prompts = torch.randint(2, min(512, shape.vocab_size), (B, prompt)).tolist()
        numbers = list(range(B * i, B * i + B))
        e = ppo.rollout(policy, reference, reward, value, prompts, numbers, -1, s, world)
        done.append(ppo.update(policy, value, optimizers, ema, e, ppo.text_rows(None, i, s, world),
                               1e-5, i, s, world))
        return e

    return iteration


def ppo_times(V, clock, repeats):
    """Seconds of each side's iterations, taking turns: their trainer calls its sampler once an
    iteration, and there we stop its clock and let ours run."""
    import torch
    peer, trainer = ppo_sides(V, repeats + 2)
    ours, times = our_ppo(V), {"ours": [], "theirs": []}
    sample, started = peer.batch_generation, []

    def turn(*args, **options):
        if started:
            times["theirs"].append(clock() - started.pop())
        before = clock()
        with torch.enable_grad():  # theirs samples without
            ours()
        times["ours"].append(clock() - before)
        started.append(clock())
        return sample(*args, **options)

    peer.batch_generation = turn
    trainer.train()
    return {side: t[1 : repeats + 1] for side, t in times.items()}  # without the warm-up


ROWS = {  # name: (what, peer, function, ratio of the times to reach, of the memory)
    "attention256": ("attention fwd+bwd, B8 H6 D64, T 256", "F.scaled_dot_product_attention",
                     lambda: attention_row(256), 0.92, 1.0),
    "attention1024": ("attention fwd+bwd, B8 H6 D64, T 1024", "F.scaled_dot_product_attention",
                      lambda: attention_row(1024), 0.92, 1.0),
    "attention48": ("attention fwd+bwd, B64 H8 D24, T 48", "F.scaled_dot_product_attention",
                    lambda: attention_row(48, 64, 8, 24), 1.0, None),
    "ce": ("cross-entropy fwd+bwd, N 4096, C 384, V 50257", "F.linear + F.cross_entropy",
           lambda: cross_entropy_row(50257), 0.72, 0.10),
    "ce1024": ("the same, V 1024", "F.linear + F.cross_entropy",
               lambda: cross_entropy_row(1024), 0.98, None),
    "ppo_loss": ("PPO loss fwd+bwd, N 4096, C 384, V 50257", "eager log_softmax + gather",
                 lambda: ppo_loss_row(50257, 0.0), 0.55, 0.08),
    "ppo_bonus": ("the same with an entropy bonus", "eager log_softmax + gather",
                  lambda: ppo_loss_row(50257, 0.01), 0.55, 0.08),
    "step": ("training step, 6 x 384, B 8, T 256, V 50257", "transformers GPT2LMHeadModel",
             training_row, 0.65, 0.4),
    "sampling": ("sampling, B 64, 32 + 32 tokens, 4 x 128, V 512", "transformers generate",
                 lambda: sampling_row(False), 1 / 2.5, None),
    "ragged": ("sampling, prompts of 16-256, responses of 8-128", "transformers generate",
               lambda: sampling_row(True), 1 / 5, None),
    "ppo": ("PPO iteration, 64 x (32 + 32), V 512", "trl 1.12.0", 512, 1 / 2.0, None),
    "ppo50257": ("the same, V 50257", "trl 1.12.0", 50257, 1 / 3.5, 0.35),
    "bf16_step": ("training step, 6 x 384, B 8, T 256, V 50257, bf16", "our own float32",
                  lambda: in_both_types(lambda: training_row()[0]), 1 / 2.0, None),
    "bf16_ppo": ("PPO iteration, 64 x (32 + 32), 4 x 128, V 512, bf16", "our own float32",
                 lambda: in_both_types(lambda: our_ppo(512)), 1 / 1.4, None),
    "bf16_ppo384": ("the same, 6 x 384, V 50257", "our own float32",
                    lambda: in_both_types(lambda: our_ppo(50257, 6, 6, 384)), 1 / 1.4, None),
}


# ------------------------------------------------------------------------------------- measuring

def resident(field):
    """Bytes of this process's resident memory now (VmRSS), or at its peak (VmHWM). Linux only."""
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return 1024 * int(line.split()[1])


def peak(run, kept):
    """Extra bytes at the peak of run(), after one run to warm up."""
    run()
    kept_before = sum(x.numel() * x.element_size() for x in kept())
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is freed but still resident would hide a peak
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak starts again from here
    before = resident("VmRSS") - kept_before  # the run begins by dropping what the last one left
    run()
    return max(0, resident("VmHWM") - before - sum(x.numel() * x.element_size() for x in kept()))


def memory(name, side, threads):
    """Measure one side's peak in a process of its own."""
    done = subprocess.run([sys.executable, __file__, f"--rows={name}", f"--memory={side}",
                           f"--threads={threads}"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.split()[-1])


def memory_of(name, side):
    """What `memory` asks its process for."""
    row = ROWS[name][2]
    if not isinstance(row, int):
        ours, theirs, kept = row()
        return peak(ours if side == "ours" else theirs, kept)
    if side == "ours":
        return peak(our_ppo(row), lambda: [])
    peer, trainer = ppo_sides(row, 1)
    sample, peaks = peer.batch_generation, []

    def turn(*args, **options):
        if not peaks:
            ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")
            peaks.append(resident("VmRSS"))
        return sample(*args, **options)

    peer.batch_generation = turn
    trainer.train()
    return resident("VmHWM") - peaks[0]


def times(row, clock, repeats):
    if isinstance(row, int):
        return ppo_times(row, clock, repeats)
    ours, theirs, _ = row()
    result = {"ours": [], "theirs": []}
    for n in range(repeats + 1):
        for side, run in (("ours", ours), ("theirs", theirs)):
            before = clock()
            run()
            if n:
                result[side].append(clock() - before)
    return result


def machine():
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo")
             if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def gpu_rows(repeats, out):
    """Measure the rows of gpu.py. Returns 0 if all went well."""
    return subprocess.run([sys.executable, str(Path(__file__).with_name("gpu.py")),
                           f"--repeats={repeats}", f"--out={out}"]).returncode


def rows_of(a):
    """The rows to measure: those that were asked for, or all that this machine can."""
    import torch
    return a.rows.split(",") if a.rows else [*["gpu"] * torch.cuda.is_available(), *ROWS]


def main():
    a = arguments()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
                      TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    warnings.filterwarnings("ignore")
    import torch
    torch.set_num_threads(a.threads)
    if a.memory:
        print(memory_of(a.rows, a.memory))
        return
    rows, failed = rows_of(a), 0
    if "gpu" in rows:  # in a process of its own: bf16 is a switch for the whole program
        rows.remove("gpu")
        failed = gpu_rows(a.repeats, Path(a.out).with_name("gpu.json"))
    if not rows:
        sys.exit(failed)
    clock = time.process_time if a.threads == 1 else time.perf_counter
    facts = dict(machine=machine(), threads=a.threads, date=time.strftime("%Y-%m-%d"),
                 torch=torch.__version__, seconds="CPU" if a.threads == 1 else "wall", rows={})
    print(f"{facts['machine']}; {a.threads} thread(s), {facts['seconds']} seconds; "
          f"torch {facts['torch']}; {facts['date']}\n")
    print("| work (float32, or as it says) | peer | ours | theirs | time | to reach | memory | "
          "to reach |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in rows:
        what, peer, row, time_goal, memory_goal = ROWS[name]
        took = times(row, clock, a.repeats)
        ours, theirs = (statistics.median(took[side]) for side in ("ours", "theirs"))
        result = dict(what=what, peer=peer, seconds=took, ours=ours, theirs=theirs,
                      time_ratio=ours / theirs, time_goal=time_goal)
        cells = ["", ""]
        if memory_goal:
            used = {side: memory(name, side, a.threads) for side in ("ours", "theirs")}
            result.update(memory=used, memory_goal=memory_goal)
            result["memory_ratio"] = used["ours"] / max(1, used["theirs"])
            cells = [f"{used['ours'] / 2**20:.0f} / {used['theirs'] / 2**20:.0f} MiB = "
                     f"{result['memory_ratio']:.2f}x", f"{memory_goal:.2f}x"]
        facts["rows"][name] = result
        print(f"| {what} | {peer} | {ours:.3f} s | {theirs:.3f} s | {ours / theirs:.2f}x "
              f"({theirs / ours:.1f}x as fast) | {time_goal:.2f}x | {cells[0]} | {cells[1]} |",
              flush=True)
        Path(a.out).parent.mkdir(parents=True, exist_ok=True)
        Path(a.out).write_text(json.dumps(facts, indent=1))
    sys.exit(failed)


if __name__ == "__main__":
    main()

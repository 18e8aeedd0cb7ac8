"""Step 3: PPO against the reward model, with (PPO-ptx) or without the pretraining gradient.

    objective = E[ r(x, y) - beta sum_t log pi(y_t) / pi_ref(y_t) ] + gamma E_text[ log pi(text) ]

(equation 2 of the paper). An episode is one prompt and one response. An iteration is

    1. rollout     sample responses; keep the log-probs they were sampled with
    2. score       reward model at the last response token; a fixed low score without EOS
    3. reward      -beta (log pi - log ref) at each token, the score added at the last one
    4. advantage   GAE over the response, then whitened over all episodes of all ranks
    5. update      8 minibatches, one pass: clipped policy loss + gamma * text loss in one step,
                   clipped value loss for the value function; EMA of the policy's weights

    python ppo.py                      PPO-ptx
    python ppo.py --ptx=0 --out=out/ppo-noptx
    torchrun --nproc_per_node=2 ppo.py
"""
from collections import Counter
from dataclasses import dataclass

from settings import Run, stop  # before torch

import torch
import torch.nn.functional as F

from data.batches import order, pad, read_prompts, text_rows_of
from model import GPT, ScalarGPT, after, last_score
from runtime.checkpoint import load, load_for, save
from runtime.episodes import in_groups, rollout_metrics, show
from runtime.machine import precision
from runtime.optimizer import make_optimizer, take_step
from runtime.sharding import accumulate, bare, copied, frozen, gathered
from runtime.training import Training, start
from sampler import Samples, generate


@dataclass
class Settings(Run):
    """Step 3. Every setting is --name=value; the defaults are the toy's PPO-ptx."""
    # files
    init: str = "out/init"  # the RL initialisation: policy at the start, and KL reference
    reward: str = "out/rm"  # the reward model, from which the value function starts too
    out: str = "out/ppo-ptx"  # folder to write
    data: str = "out/toy"  # folder with prompts_train.jsonl, and text_train.jsonl or shards
    # the algorithm
    iterations: int = 20  # of rollout and update (paper: 500)
    batch: int = 256  # episodes an iteration, over all ranks (paper: 512)
    minibatch: int = 32  # episodes an optimiser step (paper: 64, so 8 steps an iteration)
    inner_epochs: int = 1  # passes over the episodes of an iteration (paper: 1)
    lr: float = 6e-4  # policy, constant after the warm-up (paper: 2.55e-6 to 2.55e-5)
    value_lr: float = 1e-3  # value function (paper: 9e-6)
    warmup: int = 5  # iterations over which lr rises from a tenth (App. C.4: 10)
    beta: float = 0.05  # KL coefficient (paper: 0.02)
    ptx: float = 0.3  # gamma of PPO-ptx on the mean text loss; 0: PPO (paper: 27.8)
    ptx_rows: int = 8  # text rows a minibatch (paper: 512, 8 an episode)
    clip_ratio: float = 0.2  # of the policy's probability ratio (App. C.4)
    clip_value: float = 0.2  # of the value's change; not in the paper (Ziegler et al. 2019)
    gae_lambda: float = 0.95  # not in the paper (Stiennon et al. 2020)
    discount: float = 1.0  # 1: no discount (App. C.4)
    temperature: float = 1.0  # of the rollouts; the log-probs of all models use it too
    unfinished: float = -4.0  # replaces the score of a response without EOS; not in the paper
    ema: float = 0.992  # decay of the averaged weights, each optimiser step (App. C.4)
    weight_decay: float = 0.0  # not in the paper
    seed: int = 4  # of the order of the prompts and the sampling noise
    # sizes
    micro_batch: int = 16  # episodes a forward pass, of similar lengths: fewer pads, less memory
    max_new_tokens: int = 32  # a response that reaches it without EOS is unfinished
    # the run
    show: int = 10  # iterations between printed samples; 0: none
    save_every: int = 4  # iterations between the states that --resume goes on from
    offload: bool = False  # keep idle reference and reward model in CPU memory; for GPUs only

    BOUNDS = {"temperature": "[0.01, inf)"}  # colder, the gradients overflow

    def problem(self):
        if self.batch % self.minibatch:
            return f"--batch={self.batch} must be a multiple of --minibatch={self.minibatch}"


PAPER = dict(iterations=500, warmup=10, batch=512, minibatch=64, beta=0.02, ptx=27.8, ptx_rows=512,
             max_new_tokens=1024)
PRESETS = {  # App. C.4; policy rates read off figure 38
    "ppo": dict(ptx=0.0, out="out/ppo"),
    "gpt2": dict(PAPER, init="out/gpt2/init", reward="out/gpt2/rm", out="out/gpt2/ppo-ptx",
                 data="out/public", lr=3.5e-5, value_lr=4.5e-5, max_new_tokens=512,
                 micro_batch=8),  # rates scaled as in sft.py: 3 times 1.3B's, 5 times 6B's
    "1.3b": dict(PAPER, lr=1.18e-5, value_lr=9e-6, micro_batch=4),
    "6b": dict(PAPER, lr=1.18e-5, value_lr=9e-6, micro_batch=2),
    "175b": dict(PAPER, lr=2.55e-6, value_lr=5e-6, micro_batch=1),
}


# ---------------------------------------------------------------- the objective, as pure functions
#
#   ids      p  p  p  r  r  E  .  .       p prompt, r response, E end of text, . pad
#   mask     0  0  0  1  1  1  0  0       what the policy chose: all sums run over these
#   logprob           *  *  *             log pi of the token, read at the state before it
#   value             *  *  *             V of the state before the token
#   reward            k  k  k+S           k = -beta (log pi - log ref), S the score of the response

def shape_rewards(logprob, ref_logprob, score, mask, beta):
    """The reward of each token, [B, T]: the KL penalty, and the score at the last response token.

    logprob, ref_logprob: [B, T], of the policy that sampled and of the reference; score: [B]. The
    rewards of a row sum to  score - beta * sum_t log(pi / ref), the first part of equation 2.
    """
    reward = (-beta * (logprob - ref_logprob)).masked_fill(~mask, 0.0)
    return reward + score[:, None] * last_of(mask)


def last_of(mask):
    """[B, T] bool: only the last True of each row."""
    following = F.pad(mask[:, 1:], (0, 1))
    return mask & ~following


def gae(reward, value, mask, discount, lam):
    """Generalised advantage estimation (Schulman et al. 2016), over the response tokens of a row.

        delta_t = r_t + discount V_{t+1} - V_t        A_t = delta_t + discount lam A_{t+1}

    All [B, T]. Nothing is bootstrapped past the last token: V and A after it are 0. Returns
    (advantage, return = A + V), 0 outside the mask.
    """
    value, reward = (x.masked_fill(~mask, 0.0) for x in (value, reward))
    advantage, following, next_value = [], 0.0, 0.0
    for t in reversed(range(value.size(1))):
        delta = reward[:, t] + discount * next_value - value[:, t]
        following = (delta + discount * lam * following) * mask[:, t]
        next_value = value[:, t]
        advantage.append(following)
    advantage = torch.stack(advantage[::-1], 1)
    return advantage, (advantage + value).masked_fill(~mask, 0.0)


def whiten(x, mask, total=None):
    """(x - mean) / std over the masked tokens; 0 elsewhere.

    total: sums a tensor over all ranks, so that the statistics are those of the whole batch.
    """
    total, x = total or (lambda t: t), x.masked_fill(~mask, 0.0).double()
    n, s = total(torch.stack([mask.sum().double(), x.sum()]))
    mean = s / n
    variance = total((mask * (x - mean) ** 2).sum()) / n
    return ((x - mean) * (variance + 1e-8).rsqrt()).masked_fill(~mask, 0.0).float()


def clipped_policy_loss(logprob, old_logprob, advantage, mask, clip, tokens):
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), summed over tokens / `tokens`.

    All [B, T]; tokens: how many the whole minibatch has, over all micro-batches and ranks.
    """
    # e^89 overflows, and its gradient is NaN. Sampling never gets there, later inner epochs can.
    ratio = (logprob - old_logprob).masked_fill(~mask, 0.0).clamp(max=20.0).exp()
    advantage = advantage.masked_fill(~mask, 0.0)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -surrogate.masked_fill(~mask, 0.0).sum() / tokens


def clipped_value_loss(value, old_value, returns, mask, clip, tokens):
    """Half the larger of two squared errors: that of the value and that of the clipped value.

    The loss does not reward moving the value further than `clip` from the old one (Ziegler
    et al. 2019). All [B, T]; summed over tokens / `tokens`.
    """
    # Masked positions may hold anything, and 0 * NaN is NaN: zero them before any gradient.
    value, old_value, returns = (x.masked_fill(~mask, 0.0) for x in (value, old_value, returns))
    clipped = old_value + (value - old_value).clamp(-clip, clip)
    error = torch.maximum((value - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * error.masked_fill(~mask, 0.0).sum() / tokens


# ------------------------------------------------------------------------------ rollout and scoring

@dataclass
class Episodes:
    """One rank's episodes of an iteration, all [B, T] or [B]; see the picture above."""
    samples: Samples
    mask: torch.Tensor
    logprob: torch.Tensor
    ref_logprob: torch.Tensor
    score: torch.Tensor
    value: torch.Tensor
    advantage: torch.Tensor
    returns: torch.Tensor
    reward: torch.Tensor


def rollout(policy, reference, reward_model, value_model, prompts, numbers, eos, s, world):
    """Steps 1 to 4 for this rank's prompts. numbers: of the episodes; they seed the noise."""
    with gathered(policy) as complete:
        samples = generate(complete, prompts, s.max_new_tokens, eos, s.temperature, s.seed, numbers)
    mask = samples.mask
    ref_logprob = in_groups(reference, samples, s, mask, temperature=s.temperature)
    score = last_score(in_groups(reward_model, samples, s), samples.lengths)
    score = torch.where(samples.ended, score, torch.full_like(score, s.unfinished))
    value = after(in_groups(value_model, samples, s))  # of the state before each token
    reward = shape_rewards(samples.logprobs, ref_logprob, score, mask, s.beta)
    advantage, returns = gae(reward, value, mask, s.discount, s.gae_lambda)
    advantage = whiten(advantage, mask, world.sum)
    return Episodes(samples, mask, samples.logprobs, ref_logprob, score, value, advantage, returns,
                    reward)


# ------------------------------------------------------------------------------------------ update

POLICY_METRICS = ("loss/policy", "policy/entropy", "policy/approx_kl", "policy/clip_fraction",
                  "policy/ratio")


def groups_of(rows, lengths, s, world):
    """`rows` split into micro-batches."""
    return [[rows[i] for i in group] for group in world.micro_batches(lengths, s)]


def update_policy(policy, optimizer, e, rows, tokens, text, words, lr, s, world):
    """One step on a minibatch: the PPO gradient plus gamma times the text gradient.

    rows: this rank's episodes of the minibatch; tokens: response tokens of the whole minibatch;
    text: this rank's text rows, [n, T], -1 after the end of a row; words: text tokens of the whole
    minibatch, without each row's first. Returns (sums over this rank's tokens, gradient norm).
    """
    groups = groups_of(rows, e.samples.widths[rows].tolist(), s, world)
    texts = groups_of(text, [text.size(1)] * len(text), s, world) if s.ptx else []
    sums = dict.fromkeys(POLICY_METRICS + ("loss/ptx",) * bool(s.ptx), 0.0)
    for g in accumulate(policy, groups, more=bool(texts)):
        T = int(e.samples.widths[g].max())
        ids, mask, old, advantage = (x[g, :T] for x in (e.samples.ids, e.mask, e.logprob,
                                                        e.advantage))
        loss_of = lambda logprob, mask: clipped_policy_loss(logprob, old, advantage, mask,
                                                            s.clip_ratio, tokens)
        loss, logprob, entropy = policy(ids, mask, s.temperature, True, loss_of)
        sums["loss/policy"] += world.backward(loss) * tokens
        sums["policy/entropy"] += entropy[mask].sum().double()
        log_ratio = (logprob - old)[mask].detach()
        sums["policy/ratio"] += log_ratio.exp().sum().double()
        sums["policy/approx_kl"] += 0.5 * log_ratio.square().sum().double()
        sums["policy/clip_fraction"] += ((log_ratio.exp() - 1).abs() > s.clip_ratio).sum()
    for ids in accumulate(policy, [torch.stack(text) for text in texts]):
        loss_of = lambda logprob, mask: -logprob.masked_fill(~mask, 0.0).sum() / words
        loss, *_ = policy(ids.clamp(min=0), ids >= 0, objective=loss_of)
        sums["loss/ptx"] += world.backward(s.ptx * loss) / s.ptx * words
    return sums, take_step(policy, optimizer, lr, s.clip, s.explode)


def update_value(value_model, optimizer, e, rows, tokens, s, world):
    """One step of the value function on a minibatch. Returns the same as `update_policy`."""
    sums = {"loss/value": 0.0, "value/clip_fraction": 0.0}
    for g in accumulate(value_model, groups_of(rows, e.samples.widths[rows].tolist(), s, world)):
        T = int(e.samples.widths[g].max())
        ids, mask, old, returns = (x[g, :T] for x in (e.samples.ids, e.mask, e.value, e.returns))
        value = after(value_model(ids))  # of the state before each token
        loss = clipped_value_loss(value, old, returns, mask, s.clip_value, tokens)
        sums["loss/value"] += world.backward(loss) * tokens
        sums["value/clip_fraction"] += ((value - old).abs() > s.clip_value)[mask].sum()
    return sums, take_step(value_model, optimizer, s.value_lr, s.clip, s.explode)


def update(policy, value_model, optimizers, ema, e, text, lr, iteration, s, world):
    """Step 5: the minibatches of an iteration. Returns the metrics of the update."""
    sums, seen, read, norms = Counter(), 0.0, 0.0, []
    share, per_epoch = s.minibatch // world.size, s.batch // s.minibatch
    texts = text.chunk(s.inner_epochs * per_epoch)
    for epoch in range(s.inner_epochs):
        # Episodes arrive in random order. A minibatch takes consecutive ones, so that it has the
        # same episodes for any number of ranks (`World.share` deals them out in turn).
        for k in order(per_epoch, s.seed, iteration * s.inner_epochs + epoch):
            rows = list(range(k * share, (k + 1) * share))
            own = texts[epoch * per_epoch + k] if s.ptx else text
            counts = torch.stack([e.mask[rows].sum(), (own[:, 1:] >= 0).sum()])
            tokens, words = world.sum(counts).tolist()
            a, norm = update_policy(policy, optimizers[0], e, rows, tokens, own, words, lr, s,
                                    world)
            b, value_norm = update_value(value_model, optimizers[1], e, rows, tokens, s, world)
            for name, p in bare(policy).state_dict().items():
                ema[name].lerp_(p, 1 - s.ema)
            sums.update(world.totals({**a, **b}))
            seen, read = seen + tokens, read + words
            norms.append((norm, value_norm))
    metrics = {name: x / (read if name == "loss/ptx" else seen) for name, x in sums.items()}
    metrics["policy/grad_norm"], metrics["value/grad_norm"] = (sum(n) / len(n) for n in zip(*norms))
    return metrics


def episode_prompts(prompts, iteration, s, world):
    """This rank's episode numbers and prompts of an iteration. Each round over all prompts has an
    order of its own."""
    first = iteration * s.batch
    numbers = world.share(list(range(first, first + s.batch)))
    rounds = {n: order(len(prompts), s.seed, n) for n in {i // len(prompts) for i in numbers}}
    pick = lambda i: prompts[rounds[i // len(prompts)][i % len(prompts)]]
    return numbers, [pick(i) for i in numbers]


def text_rows(text, iteration, s, world):
    """This rank's text rows of an iteration, [n, T], -1 after the end of a row; taken in shuffled
    order, round after round."""
    if not s.ptx:
        return torch.zeros(0, 1, dtype=torch.long, device=world.device)
    n = s.batch // s.minibatch * s.ptx_rows * s.inner_epochs
    shuffled = order(len(text), s.seed, 0)
    chosen = world.share([shuffled[(iteration * n + i) % len(text)] for i in range(n)])
    return pad([text[i] for i in chosen], -1)[0].to(world.device)


def main():
    s, world = start(Settings, PRESETS)
    if s.minibatch % world.size or s.ptx_rows % world.size:
        stop(f"--minibatch={s.minibatch} and --ptx_rows={s.ptx_rows} must be multiples of the "
             f"number of processes, {world.size}")
    policy, tokenizer, _ = load(s.init, {"GPT": GPT}, "python sft.py --preset=init")
    reference, *_ = load(s.init, {"GPT": GPT}, "python sft.py --preset=init")
    reward_model, value_model = (load_for(tokenizer, s.reward, {"ScalarGPT": ScalarGPT},
                                          "python reward.py") for _ in range(2))
    precision(s.dtype, world, policy.config.n_embd)
    for model in (reference, reward_model):
        world.wrap(frozen(model), s.shard, offload=s.offload)
    prompts = read_prompts(f"{s.data}/prompts_train.jsonl", tokenizer, (policy, reward_model), s,
                           world.print)
    text = text_rows_of(s.data, "train", tokenizer, policy.config.block_size) if s.ptx else None
    world.print(f"{s.out}: {len(prompts):,} prompts, {s.iterations} iterations of {s.batch} "
                f"episodes, gamma {s.ptx:g}, beta {s.beta:g}")

    policy, value_model = (world.wrap(model, s.shard, s.activation_checkpointing)
                           for model in (policy, value_model))
    optimizers = [make_optimizer(policy, s.lr, s.weight_decay, eps=1e-5),
                  make_optimizer(value_model, s.value_lr, s.weight_decay, eps=1e-5)]
    ema = copied(policy)
    last = {}  # metrics
    run = Training(world, s, s.iterations, ("score", "kl", "ended", "loss/ptx"), policy=policy,
                   value=value_model, policy_adam=optimizers[0], value_adam=optimizers[1], ema=ema,
                   last=last)
    for iteration in run.steps(range(s.iterations)):
        lr = s.lr * min(1.0, 0.1 + 0.9 * iteration / max(1, s.warmup))
        numbers, own = episode_prompts(prompts, iteration, s, world)
        started = world.seconds()
        e = rollout(policy, reference, reward_model, value_model, own, numbers, tokenizer.eos, s,
                    world)
        sampled = world.seconds()
        metrics = update(policy, value_model, optimizers, ema, e,
                         text_rows(text, iteration, s, world), lr, iteration, s, world)
        done = world.seconds()
        last.update(rollout_metrics(e, world), **metrics)
        run.log(iteration=iteration + 1, **last, lr=lr, value_lr=s.value_lr,
                seconds_rollout=sampled - started, seconds_update=done - sampled,
                tokens_per_second=last["tokens"] / max(done - started, 1e-9))
        if s.show and iteration % s.show == s.show - 1:
            show(world, tokenizer, e, iteration)
    bare(policy).load_state_dict(ema)
    run.judge(policy, last["score"], last["kl"])
    save(s.out, bare(policy), tokenizer, s, last=last, seconds=world.seconds())
    world.print(f"{s.out}: score {last['score']:.2f}, KL {last['kl']:.2f} nats, "
                f"{last['ended']:.0%} ended ({world.seconds():.0f} s)")
    run.close()


if __name__ == "__main__":
    main()

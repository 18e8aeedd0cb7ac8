"""Step 1: supervised fine-tuning on demonstrations. With --pretrain_mix=1 it is pretraining.

    loss = - sum_t log p(y_t | x, y_<t) / (number of response tokens)

over the tokens of the response and its EOS; prompt tokens carry no loss (section 3.5, App. C.1).

    python sft.py --preset=base       pretrain on text only
    python sft.py                     the SFT baseline: 16 epochs, residual dropout 0.2
    python sft.py --preset=init       the RL initialisation: 2 epochs, 10 % pretraining data
    torchrun --nproc_per_node=2 sft.py
"""
from dataclasses import dataclass

from settings import Run  # before torch

import torch

from data.batches import (WithoutPrompt, order, pad_and_mask, read_demonstrations, read_prompts,
                          text_rows_of)
from data.tokenizer import load_tokenizer
from kernels.noise import first_row
from model import GPT, GPTConfig, ScalarGPT, last_score, set_dropout
from runtime.checkpoint import load, load_for, save
from runtime.machine import precision
from runtime.optimizer import cosine, make_optimizer, take_step
from runtime.sharding import accumulate, bare, copied, frozen, gathered, load_into
from runtime.training import Training, start
from runtime.world import scoring_groups
from sampler import generate


@dataclass
class Settings(Run):
    """Step 1. Every setting is --name=value; the defaults are the toy's SFT baseline."""
    # files
    init: str = "out/base"  # checkpoint, gpt2 .. gpt2-xl, a Hugging Face folder, or "scratch"
    out: str = "out/sft"  # folder to write
    data: str = "out/toy"  # folder with demonstrations_*.jsonl, and text_*.jsonl or shards
    tokenizer: str = "tokenizer.tiktoken"  # from scratch only: a file in `data`, or gpt2
    reward: str = ""  # reward model that chooses the epoch (App. C.1); empty: the last epoch
    # the algorithm
    optimizer: str = "adamw"  # adamw (the paper's) or muon (learns to read sooner; pretraining)
    pretrain_mix: float = 0.0  # share of loss tokens that are text: 1 pretraining, 0.1 App. C.3
    epochs: int = 16  # over the demonstrations, or over the text where there is nothing else
    batch: int = 8  # rows a step, over all ranks (paper: 32, 175B: 8)
    lr: float = 2e-4  # peak learning rate
    floor: float = 0.1  # final rate of the cosine, as a share of the peak (App. C.1: 10 %)
    warmup: int = 0  # steps (paper: none)
    weight_decay: float = 0.01  # not in the paper
    dropout: float = 0.2  # residual dropout (App. C.1)
    seed: int = 1  # of weights, order and dropout
    # sizes
    micro_batch: int = 32  # rows a forward pass; smaller needs less memory and changes nothing
    max_new_tokens: int = 32  # of the samples that choose the epoch
    block_size: int = 128  # from scratch only: context in tokens
    n_layer: int = 4  # from scratch only
    n_head: int = 2  # from scratch only
    n_embd: int = 128  # from scratch only

    def problem(self):
        if self.shard and self.optimizer == "muon":
            return "--optimizer=muon needs whole matrices on each rank: leave --shard out"
        if self.init == "scratch" and self.n_embd % self.n_head:
            return f"--n_embd={self.n_embd} must be a multiple of --n_head={self.n_head}"


INIT = dict(out="out/init", pretrain_mix=0.1, epochs=2)  # App. C.3
GPT2 = dict(init="gpt2", data="out/public", batch=32, micro_batch=8)
PRESETS = {
    "base": dict(init="scratch", out="out/base", pretrain_mix=1.0, epochs=1, dropout=0.0, lr=4e-3,
                 floor=0.0, batch=8, warmup=50, weight_decay=0.1, optimizer="muon"),
    "init": dict(INIT, dropout=0.0, batch=4, lr=5e-4),
    # GPT-2 on your own data. Rates are 3 times those of 1.3B, t0's is 10 times that of 175B: the
    # ratios of GPT-3's pretraining rates (Brown et al. 2020, Table 2.1). Scaled, not measured.
    "gpt2": dict(GPT2, out="out/gpt2/sft", lr=2.9e-5),
    "gpt2-init": dict(INIT, **GPT2, lr=1.5e-5, out="out/gpt2/init"),
    "t0": dict(GPT2, out="out/gpt2/t0", data="out/p3", epochs=1, batch=64, lr=4e-5),  # App. C.5
    "1.3b": dict(lr=9.65e-6, batch=32, micro_batch=4),  # App. C.1; 32, or 8 for the largest
    "6b": dict(lr=9.65e-6, batch=32, micro_batch=2),
    "175b": dict(lr=5.03e-6, batch=8, micro_batch=1),
    "1.3b-init": dict(INIT, lr=5e-6, batch=32, micro_batch=4),
    "6b-init": dict(INIT, lr=1.04e-5, batch=32, micro_batch=2),
    "175b-init": dict(INIT, lr=2.45e-6, batch=8, micro_batch=1),
}


def sft_loss(logprob, mask, tokens):
    """Cross-entropy in nats a token: - sum of log p over the masked tokens / `tokens`.

    logprob, mask: [B, T]; tokens: how many tokens carry loss in the whole batch, over all
    micro-batches and ranks.
    """
    return -logprob.masked_fill(~mask, 0.0).sum() / tokens


def text_share(s, demos, text):
    """The number of text rows an epoch needs so that pretrain_mix of its loss tokens are text."""
    if s.pretrain_mix in (0, 1):
        return len(text)  # none, or all
    tokens = sum(len(ids) - n for ids, n in demos)
    of_row = text.tokens / len(text) - 1  # on average; a row's first token carries no loss
    return max(1, round(tokens * s.pretrain_mix / (1 - s.pretrain_mix) / of_row))


def batches(s, demos, text, epoch):
    """The rows of each step of an epoch, the same on every rank.

    Each epoch takes the next text rows, and has its own order.
    """
    texts, n = WithoutPrompt(text), text_share(s, demos, text)
    rows = texts  # too many to hold at once: read when they are used
    if s.pretrain_mix < 1:
        every = order(len(text), s.seed, 0)
        rows = [*demos, *(texts[every[(epoch * n + i) % len(text)]] for i in range(n))]
    shuffled = order(len(rows), s.seed + 1, epoch)
    for i in range(0, len(shuffled), s.batch):
        yield [rows[j] for j in shuffled[i : i + s.batch]]


def train_step(model, optimizer, rows, lr, s, world, first=0):
    """One optimiser step on a batch of rows. first: the number of its first row; a row's number
    seeds its dropout noise. Returns (the batch's loss, the gradient's norm)."""
    tokens = sum(len(ids) - n for ids, n in rows)  # that carry loss, on all ranks
    loss_of = lambda logprob, mask: sft_loss(logprob, mask, tokens)
    # In the last batch a rank may be one row short: it gets a row without loss tokens.
    blank = (first, (rows[0][0], len(rows[0][0])))
    mine, total = world.share(list(enumerate(rows, first)), spare=blank), 0.0
    for group in accumulate(model, world.micro_batches([len(ids) for _, (ids, _) in mine], s)):
        numbers, part = zip(*(mine[j] for j in group))
        ids, mask = pad_and_mask(part, world.device)
        owners = torch.tensor(numbers, device=world.device)
        loss, *_ = model(ids, mask, objective=loss_of, owners=owners)
        total += world.backward(loss)
    return float(world.sum(total)), take_step(model, optimizer, lr, s.clip, s.explode)


@torch.no_grad()
def evaluate_loss(model, rows, s, world, most=2**11):
    """Mean cross-entropy over the loss tokens of `rows`, dropout off; None if there are none. Holds
    at most `most` rows in memory."""
    model.eval()
    total, tokens = 0.0, 0
    with gathered(model) as complete:
        for i in range(0, len(rows), most):
            mine = world.share([rows[j] for j in range(i, min(i + most, len(rows)))])
            for group in scoring_groups([len(ids) for ids, _ in mine], s, world):
                ids, mask = pad_and_mask([mine[j] for j in group], world.device)
                total -= float(complete(ids, mask)[0].sum())
                tokens += int(mask.sum())
    model.train()
    total, tokens = world.sum([total, tokens]).tolist()
    return total / tokens if tokens else None


def mean_reward(model, reward, prompts, s, world, eos):
    """The mean reward-model score of samples for the validation prompts (App. C.1)."""
    total, mine = 0.0, world.share(list(enumerate(prompts)))
    with torch.no_grad(), gathered(model) as policy, gathered(reward) as judge:
        for group in scoring_groups([len(ids) + s.max_new_tokens for _, ids in mine], s, world):
            numbers, part = zip(*(mine[i] for i in group))
            samples = generate(policy, part, s.max_new_tokens, eos, 1.0, s.seed, numbers)
            total += float(last_score(judge(samples.ids), samples.lengths).sum())
    return float(world.sum(total)) / len(prompts)


def read_data(s, tokenizer, block_size, world):
    """(demonstrations, validation rows, text rows) that the settings ask for; [] for the others."""
    demos, valid, text = [], [], []
    if s.pretrain_mix < 1:
        demos, valid = (read_demonstrations(s, split, tokenizer, block_size, world.print)
                        for split in ("train", "valid"))
    if s.pretrain_mix > 0:
        text = text_rows_of(s.data, "train", tokenizer, block_size)
    if s.pretrain_mix == 1:
        valid = WithoutPrompt(text_rows_of(s.data, "valid", tokenizer, block_size))
    return demos, valid, text


def main():
    s, world = start(Settings, PRESETS)
    if s.init == "scratch":
        tokenizer = load_tokenizer(s.tokenizer, s.data)
        model = GPT(GPTConfig(tokenizer.size, s.block_size, s.n_layer, s.n_head, s.n_embd))
    else:
        model, tokenizer, _ = load(s.init, {"GPT": GPT}, f"python sft.py --preset=base "
                                                         f"--out={s.init}")
    config = model.config
    precision(s.dtype, world, config.n_embd)
    set_dropout(model, s.dropout)
    demos, valid, text = read_data(s, tokenizer, config.block_size, world)
    reward, prompts, history, best, valid_loss = None, [], [], {}, {}
    if s.reward:
        reward = load_for(tokenizer, s.reward, {"ScalarGPT": ScalarGPT}, "python reward.py")
        prompts = read_prompts(f"{s.data}/prompts_valid.jsonl", tokenizer, (model, reward), s,
                               world.print)
        reward = world.wrap(frozen(reward), s.shard)

    model = world.wrap(model, s.shard, s.activation_checkpointing)
    optimizer = make_optimizer(model, s.lr, s.weight_decay, muon=s.optimizer == "muon")
    steps = s.epochs * -(-(len(demos) + text_share(s, demos, text)) // s.batch)
    parameters = sum(p.numel() for p in model.parameters())
    world.print(f"{s.out}: {parameters:,} parameters, {len(demos)} demonstrations, "
                f"{text.tokens if text else 0:,} tokens of text, {steps} steps")
    run = Training(world, s, steps, ("loss", "valid"), model=model, optimizer=optimizer,
                   history=history, best=best, valid=valid_loss)
    model.train()
    for epoch in range(s.epochs):
        for rows in run.steps(batches(s, demos, text, epoch)):
            lr = cosine(run.step, steps, s.lr, s.floor, s.warmup)
            first = first_row(s.seed) + run.step * s.batch  # each row of a run has its own
            loss, norm = train_step(model, optimizer, rows, lr, s, world, first)
            run.log(step=run.step + 1, epoch=epoch, loss=loss, lr=lr, grad_norm=norm, **valid_loss)
        if epoch < len(history):
            continue  # done before the run was resumed
        if (measured := evaluate_loss(model, valid, s, world)) is not None:
            valid_loss["valid"] = measured
        history.append({"epoch": epoch + 1, **valid_loss})
        if reward is not None:
            history[-1]["reward"] = mean_reward(model, reward, prompts, s, world, tokenizer.eos)
            if not best or history[-1]["reward"] > best["reward"]:
                best.update(history[-1], weights=copied(model))
    if best:
        load_into(bare(model), best["weights"])
    run.judge(model, *((best or valid_loss).get(k) for k in ("valid", "reward")))
    save(s.out, bare(model), tokenizer, s, parameters=parameters,
         epoch=best.get("epoch", s.epochs), history=history, seconds=world.seconds())
    losses = " ".join(f"{h['valid']:.3f}" for h in history if "valid" in h) or "not measured"
    chosen = f"; epoch {best['epoch']} has the best reward, {best['reward']:.2f}" if best else ""
    world.print(f"{s.out}: validation loss by epoch {losses}{chosen} ({world.seconds():.0f} s)")
    run.close()


if __name__ == "__main__":
    main()

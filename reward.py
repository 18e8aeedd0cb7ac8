"""Step 2: a reward model from rankings of K completions a prompt.

    loss = - mean over prompts of  1/P  sum over the prompt's P pairs (w better than l) of
             log sigmoid( r(x, y_w) - r(x, y_l) )

(equation 1 of the paper). All K completions of a prompt are one batch element: K forward passes
serve all C(K, 2) pairs, and no completion is trained on twice in an epoch. Ties give no pair; the
paper does not say whether P counts them, and we count only untied pairs. The loss depends only on
differences of scores, so at the end the bias is set so that demonstrations score 0 on average.

    python reward.py
    torchrun --nproc_per_node=2 reward.py
"""
from dataclasses import dataclass
from pathlib import Path

from settings import Run  # before torch

import torch
import torch.nn.functional as F

from data import records
from data.batches import order, read_demonstrations, read_rankings
from kernels.noise import narrow
from kernels.prefixes import PrefixTree
from model import GPT, ScalarGPT, causal
from runtime.checkpoint import load, save
from runtime.machine import precision
from runtime.optimizer import cosine, make_optimizer, take_step
from runtime.sharding import accumulate, bare, gathered
from runtime.training import Training, start
from runtime.world import scoring_groups


@dataclass
class Settings(Run):
    """Step 2. Every setting is --name=value; the defaults are the toy's."""
    # files
    init: str = "out/init"  # checkpoint of its body: 2 epochs of SFT judge better than 16
    out: str = "out/rm"  # folder to write
    data: str = "out/toy"  # folder with rankings_*.jsonl and demonstrations_train.jsonl
    # the algorithm
    epochs: int = 1  # more than one overfits at once (App. C.2)
    batch: int = 4  # prompts a step, over all ranks, each with its K completions (paper: 64)
    lr: float = 3e-4  # peak learning rate, cosine to 10 % (paper: 9e-6)
    warmup: int = 10  # steps; not in the paper
    weight_decay: float = 0.01  # not in the paper
    seed: int = 2  # of the scalar head and the order of the prompts
    # sizes
    micro_batch: int = 8  # prompts a forward pass; smaller needs less memory, changes nothing
    # the run
    save_every: int = 50  # steps between the states that --resume goes on from


PAPER = dict(lr=9e-6, batch=64, micro_batch=1, warmup=0)
PRESETS = {  # App. C.2: one 6B reward model serves policies of every size
    "gpt2": dict(PAPER, init="out/gpt2/init", out="out/gpt2/rm", data="out/public", lr=4.5e-5),
    "1.3b": PAPER, "6b": PAPER, "175b": PAPER,  # gpt2's rate: scaled as in sft.py, 5 times 6B's
}


def ranking_loss(scores, pairs, weights):
    """Equation 1: the weighted sum of - log sigmoid(r_w - r_l) over pairs.

    scores: [R], of all completions; pairs: [P, 2] long, (better, worse) indices of scores; weights:
    [P], which sum to 1 over all pairs of all ranks (see `collate`).
    """
    better, worse = pairs.unbind(1)
    scores = 1.0 * scores  # float, where somebody gives whole numbers
    return -(weights * F.logsigmoid(scores[better] - scores[worse])).sum()


def collate(rankings, prompts, device):
    """Rankings -> the PrefixTree of their R rows, pairs [P, 2], weights [P].

    A prompt is computed once for all its completions. Each pair has weight
    1 / (pairs of its prompt) / `prompts`, the number of prompts in the whole batch.
    """
    rows, pairs, weights = [], [], []
    for own, own_pairs in rankings:
        pairs += [(len(rows) + i, len(rows) + j) for i, j in own_pairs]
        weights += [1 / len(own_pairs) / prompts for _ in own_pairs]
        rows += own
    return (PrefixTree(rows, device),
            torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 2),
            torch.tensor(weights, dtype=torch.float32, device=device))


def train_step(model, optimizer, rankings, lr, s, world):
    """One optimiser step. Returns (loss, share of pairs in the right order, gradient norm)."""
    # In the last batch a rank may be one prompt short: it gets a prompt without pairs.
    mine = world.share(rankings, spare=(rankings[0][0], []))
    groups = world.micro_batches([max(map(len, rows)) for rows, _ in mine], s,
                                 copies=[len(rows) for rows, _ in mine])
    sums = {"loss": 0.0, "right": 0, "pairs": 0}
    for group in accumulate(model, groups):
        tree, pairs, weights = collate([mine[j] for j in group], len(rankings), world.device)
        scores = model(tree.ids, tree.positions, tree.over(causal))[tree.ends]
        sums["loss"] += world.backward(ranking_loss(scores, pairs, weights))
        margin = (scores[pairs[:, 0]] - scores[pairs[:, 1]]).detach()
        sums["right"] += (0.5 + 0.5 * margin.sign()).sum()  # as in `accuracy`
        sums["pairs"] += len(pairs)
    sums = world.totals(sums)
    norm = take_step(model, optimizer, lr, s.clip, s.explode)
    return sums["loss"], sums["right"] / sums["pairs"], norm


@torch.no_grad()
def score(model, families, s, world):
    """Lists of rows of ids with a shared beginning -> lists of their scores. Ranks share the work.
    As in training, a micro-batch has whole families."""
    mine = world.share(families)
    out = [None] * len(mine)
    with gathered(model) as complete:
        for group in scoring_groups([max(map(len, rows)) for rows in mine], s, world,
                                    list(map(len, mine))):
            tree = PrefixTree([ids for i in group for ids in mine[i]], world.device)
            scores = complete(tree.ids, tree.positions, tree.over(causal))
            values = iter(scores[tree.ends].tolist())
            for i in group:
                out[i] = [next(values) for _ in mine[i]]
    return world.gather(out)


def accuracy(scores, rankings):
    """The share of untied pairs whose better completion has the higher score; equal counts half."""
    right = [0.5 * (scores_of[i] >= scores_of[j]) + 0.5 * (scores_of[i] > scores_of[j])
             for scores_of, (_, pairs) in zip(scores, rankings) for i, j in pairs]
    return sum(right) / len(right) if right else None


def read_heldout(s, tokenizer, block_size, world):
    """Held-out rankings, {group of labelers: rankings}, and the ceilings of the accuracy on them.
    Read before the first step: a bad line must not cost a finished training.

    A ceiling is the accuracy of the labelers' mean utility, which simulated rankings contain: no
    model of the average labeler can be expected to predict one labeler's noisy choice better. There
    is none where completions do not fit the context: it would be that of other pairs.
    """
    rankings, ceilings = {}, {}
    for name, suffix in (("train_labelers", ""), ("heldout_labelers", "_heldout")):
        path = Path(f"{s.data}/rankings_valid{suffix}.jsonl")
        if not path.exists():
            continue
        rankings[name] = read_rankings(path, tokenizer, block_size, s.too_long, world.print, False)
        raw = records.read(path, "ranking", needed=False)
        own = [(None, records.untied_pairs(r["ranks"])) for r in raw]
        every, read = (sum(len(pairs) for _, pairs in some) for some in (own, rankings[name]))
        if every == read and all(map(records.has_utilities, raw)):
            ceilings["ceiling" + suffix] = accuracy([r["expected"] for r in raw], own)
    return rankings, ceilings


def center(model, rows, s, world):
    """Set the bias so that demonstrations, [ids], score 0 on average. Returns their old mean."""
    mean = sum(x for x, in score(model, [[ids] for ids in rows], s, world)) / len(rows)
    with torch.no_grad():
        bare(model).score.bias -= mean
    return mean


def main():
    s, world = start(Settings, PRESETS)
    sft, tokenizer, _ = load(s.init, {"GPT": GPT, "ScalarGPT": ScalarGPT},
                             "python sft.py --preset=init")
    config = sft.config
    config.dropout = 0.0
    precision(s.dtype, world, config.n_embd)
    torch.manual_seed(narrow(s.seed))  # the same head, whatever `load` used
    model = ScalarGPT(config)
    model.transformer.load_state_dict(sft.transformer.state_dict())
    del sft  # frees its weights: 4 bytes a parameter
    rankings = read_rankings(f"{s.data}/rankings_train.jsonl", tokenizer, config.block_size,
                             s.too_long, world.print)
    demos = [ids for ids, _ in read_demonstrations(s, "train", tokenizer, config.block_size,
                                                   world.print)]
    heldout, facts = read_heldout(s, tokenizer, config.block_size, world)
    completions = sum(len(rows) for rows, _ in rankings)
    pairs = sum(len(p) for _, p in rankings)
    steps = s.epochs * -(-len(rankings) // s.batch)
    world.print(f"{s.out}: {len(rankings):,} prompts, {completions:,} completions, {pairs:,} "
                f"untied pairs, {steps} steps; {len(demos):,} demonstrations that fit set the bias")

    model = world.wrap(model, s.shard, s.activation_checkpointing)
    optimizer = make_optimizer(model, s.lr, s.weight_decay)
    run = Training(world, s, steps, ("loss", "accuracy"), model=model, optimizer=optimizer)
    for epoch in range(s.epochs):
        shuffled = order(len(rankings), s.seed, epoch)
        for i in run.steps(range(0, len(shuffled), s.batch)):
            lr = cosine(run.step, steps, s.lr, warmup=s.warmup)
            loss, right, norm = train_step(model, optimizer, [rankings[j] for j in
                                           shuffled[i : i + s.batch]], lr, s, world)
            run.log(step=run.step + 1, epoch=epoch, loss=loss, accuracy=right, lr=lr,
                    grad_norm=norm)
    model.eval()
    offset = center(model, demos, s, world)
    spread = torch.tensor(sum(score(model, [rows for rows, _ in rankings[:500]], s, world), []))
    for name, own in heldout.items():
        facts[name] = accuracy(score(model, [rows for rows, _ in own], s, world), own)
    facts = {name: x for name, x in facts.items() if x is not None}  # else there was no pair
    run.judge(model, offset, *spread.tolist(), *facts.values())
    save(s.out, bare(model), tokenizer, s, accuracy=facts, demonstrations_scored=offset,
         score_mean=float(spread.mean()), score_std=float(spread.std()), seconds=world.seconds())
    world.print(f"{s.out}: held-out accuracy "
                + (", ".join(f"{k} {v:.1%}" for k, v in facts.items()) or "not measured")
                + f"; scores of completions {spread.mean():.2f} ± {spread.std():.2f}, "
                f"demonstrations 0 ({world.seconds():.0f} s)")
    run.close()


if __name__ == "__main__":
    main()

"""The three training steps on tiny models: their gradients, their counts, and that they learn.

The gradient of each step is recorded by an optimiser that takes no step, and compared with one from
loops over single rows: no batch, no padding, no micro-batch, no mask.
"""
import ast
import collections
import copy
import importlib
import io
import math
import os
import platform
import random
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import ppo
import reward
import settings
import sft
import startup
import test_house
from data import batches
from data.batches import WithoutPrompt, encode_ranking, order, pad, read_rankings
from demo import python
from helpers import (EOS, VOCAB, Counted, Recorder, add, close, in_ranks, one_process,
                     same, sequence_logprobs, tiny, tiny_scalar, tree_rows, world_of_ranks)
from kernels.prefixes import PrefixTree
from runtime import machine, plan, training
from runtime.optimizer import cosine, make_optimizer, take_step
from runtime.world import World, groups_by_tokens, micro_batches

MICRO = [1, 2, 4, 8]


def gradients(loss, model):
    """d loss / d parameters, zeros where a parameter has no part in it."""
    out = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(out, model.parameters())]


def logits_of(model, ids):
    """All logits [T, V] of one list of ids, with gradients."""
    return model.transformer(torch.tensor([ids]))[0] @ model.transformer.wte.weight.T


def wider_pad(rows, value=7):
    """batches.pad with five columns more, and another id in them."""
    ids, lengths = pad(rows, value)
    return F.pad(ids, (0, 5), value=value), lengths


# ------------------------------------------------------------------------- what all of them share

ROOT = Path(sft.__file__).parent
SCRIPTS = [".".join(path.relative_to(ROOT).with_suffix("").parts)
           for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("data/**/*.py"),
                         *ROOT.glob("labels/*.py"), *ROOT.glob("evals/*.py")])
           if "\nclass Settings" in path.read_text()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_setting_is_read(name):
    """Trap 26: a setting that nobody reads, neither the script nor a file that it imports, lies to
    whoever sets it."""
    files, module = test_house.sources(), importlib.import_module(name)
    paths = {test_house.module_of(path): path for path in files}
    own = paths[name]
    read_in = {own, *(paths[other] for _, other in test_house.imports(own, files[own], paths))}
    source = "\n".join(files[path] for path in sorted(read_in)).replace("self.s.", "s.")
    read = {node.attr for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            and isinstance(node.value, ast.Name) and node.value.id in ("s", "settings")}
    read |= set(getattr(module, "COLUMNS", ()))  # data.public reads these by their names
    assert {f.name for f in fields(module.Settings)} - read == set()


@pytest.mark.parametrize("name", SCRIPTS)
def test_presets_name_real_settings(name):
    module = importlib.import_module(name)
    for preset in getattr(module, "PRESETS", {}).values():
        module.Settings(**preset)


def test_ranks_partition_the_rows():
    """Trap 24: together the ranks have every row, and none twice."""
    rows = list(range(23))
    for size in (1, 2, 3, 8):
        worlds = [world_of_ranks(rank, size, None) for rank in range(size)]
        assert sorted(sum((w.share(rows) for w in worlds), [])) == rows


def test_a_rank_takes_the_gpu_of_its_number(monkeypatch):
    from torch.cuda._utils import _get_device_index
    taken = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: taken.append(_get_device_index(d)))
    assert str(World(0, "cuda").device) == str(World(0, "cuda:3").device) == "cuda:3"
    assert str(World(0, "cuda:1").device) == "cuda:1" and str(World(0, "cpu").device) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert str(World(0, "auto").device) == "cuda:3" and taken == [3, 3, 1, 3]


def test_micro_batches_partition_the_rows():
    lengths = [5, 1, 9, 3, 3, 7, 2]
    for rows in (1, 2, 3, 100):
        groups = micro_batches(lengths, rows)
        assert sorted(sum(groups, [])) == list(range(7))
        assert max(map(len, groups)) <= rows


def test_each_epoch_has_an_order_of_its_own():
    orders = [order(50, seed, epoch).tolist() for seed in (1, 2) for epoch in range(3)]
    assert all(sorted(o) == list(range(50)) for o in orders)
    assert len(set(map(tuple, orders))) == 6
    assert order(50, 2, 1).tolist() == orders[4]


def test_learning_rate_schedule():
    """Linear up to the peak, half a cosine down to a tenth of it."""
    rates = [cosine(step, 104, 2.0, floor=0.1, warmup=4) for step in range(104)]
    assert rates[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert rates[4] == max(rates) == 2.0
    assert rates[54] == pytest.approx((2.0 + 0.2) / 2)  # halfway down
    assert rates[-1] == pytest.approx(0.2, rel=0.01) and min(rates[4:]) == rates[-1]


def test_a_step_is_clipped_before_it_is_taken():
    """Trap 25: the huge gradient of this step is bounded; a small one is left alone; 0 is off."""
    for size, clip, expected in ((1e6, 0.5, 0.5), (0.1, 0.5, 0.1), (1e6, 0, 1e6)):
        model = torch.nn.Linear(3, 1)
        recorder = Recorder(model)
        for p in model.parameters():
            p.grad = torch.full_like(p, size / 2)  # four numbers: the norm is `size`
        assert take_step(model, recorder, 0.1, clip) == pytest.approx(size)
        norm = math.sqrt(sum(float((g**2).sum()) for g in recorder.steps[0]))
        assert norm == pytest.approx(expected, rel=1e-4)
        assert all(p.grad is None for p in model.parameters()), "cleared for the next step"


@pytest.mark.parametrize("size", [math.nan, math.inf, 1e6])
def test_a_step_that_would_spoil_the_weights_is_not_taken(size):
    """NaN and infinity are never taken, a finite gradient not beyond `explode`; Adam forgets it."""
    model = torch.nn.Linear(3, 1)
    optimizer = make_optimizer(model, 0.1, 0.5)
    before = model.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.full_like(p, size)
    assert math.isnan(take_step(model, optimizer, 0.1, 1.0, explode=1e5))
    assert torch.equal(before, model.weight) and not optimizer.state
    assert all(p.grad is None for p in model.parameters())


def test_adam_has_the_papers_betas():
    """App. C: .9 and .95. Two steps by hand, with gradients 1 and 3."""
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    holder = torch.nn.ParameterList([weight])
    optimizer, m, v, expected = make_optimizer(holder, 0.1, 0.0, eps=1e-12), 0.0, 0.0, 0.0
    for n, g in enumerate((1.0, 3.0), 1):
        weight.grad = torch.full((1, 1), g)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        expected -= 0.1 * (m / (1 - 0.9**n)) / (v / (1 - 0.95**n)) ** 0.5
    assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_optimizer_steps_at_the_rate_that_it_is_given():
    model = torch.nn.Linear(3, 1)
    optimizer = make_optimizer(model, 99.0, 0.0)
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).backward()
    take_step(model, optimizer, 0.25, 0)
    close(before - model.weight.detach(), [[0.25] * 3], 1e-4)  # Adam's first step is lr * sign


def test_matrices_decay_and_the_rest_does_not():
    model = tiny()
    optimizer = make_optimizer(model, 0.1, 0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, after in model.state_dict().items():
        close(after, (before[name] * (0.95 if after.dim() > 1 else 1)).tolist())


# ------------------------------------------------------------------------------------ step 1: SFT

def demonstrations(n, seed=0):
    """Rows (ids, prompt length) of all lengths; pad ids and EOS may be anywhere in a prompt."""
    rng = random.Random(seed)
    return [([rng.randrange(VOCAB) for _ in range(p + r)] + [EOS], p)
            for p, r in ((rng.randint(1, 6), rng.randint(1, 9)) for _ in range(n))]


def sft_settings(**changes):
    return sft.Settings(**{**dict(pretrain_mix=0.0, batch=8, micro_batch=8, clip=0.0, seed=1,
                                  dropout=0.0), **changes})


def sft_oracle(model, rows):
    """The SFT loss row by row with PyTorch's cross-entropy: sum over targets / number of them."""
    total, tokens = 0.0, 0
    for ids, prompt in rows:
        first = max(1, prompt)
        total = total + F.cross_entropy(logits_of(model, ids)[first - 1 : -1],
                                        torch.tensor(ids[first:]), reduction="sum")
        tokens += len(ids) - first
    return total / tokens


@pytest.mark.parametrize("micro_batch", MICRO)
def test_sft_step(micro_batch):
    """Traps 11, 12, 21: loss and gradient are the mean over all response tokens and EOS, at any
    micro-batch; weighing micro-batches of different token counts alike would not be."""
    rows, model = demonstrations(8), tiny()
    recorder, expected = Recorder(model), sft_oracle(model, rows)
    loss, norm = sft.train_step(model, recorder, rows, 0.1, sft_settings(micro_batch=micro_batch),
                                one_process())
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    (got,) = recorder.steps
    same(got, gradients(expected, model))
    assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in got)), rel=1e-5)


def test_sft_step_with_more_pads(monkeypatch):
    """Trap 6."""
    rows, model = demonstrations(8), tiny()
    recorder, s = Recorder(model), sft_settings(micro_batch=3)
    first, _ = sft.train_step(model, recorder, rows, 0.1, s, one_process())
    monkeypatch.setattr(batches, "pad", wider_pad)
    second, _ = sft.train_step(model, recorder, rows, 0.1, s, one_process())
    assert first == pytest.approx(second, rel=1e-6)
    same(*recorder.steps)


def test_sft_step_on_two_ranks_is_the_step_on_one():
    """Traps 21, 23, 24: an odd number of rows, so that the ranks have different token counts. Ranks
    average their gradients, as DistributedDataParallel does."""
    rows, model = demonstrations(7), tiny()

    def work(rank, total):
        own = copy.deepcopy(model)
        recorder = Recorder(own)
        loss, _ = sft.train_step(own, recorder, rows, 0.1, sft_settings(micro_batch=2),
                                 world_of_ranks(rank, 2, total))
        return loss, recorder.steps[0]

    (loss, a), (_, b) = in_ranks(2, work)
    expected = sft_oracle(model, rows)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    same([(x + y) / 2 for x, y in zip(a, b)], gradients(expected, model))


def test_which_states_sft_trains():
    """Traps 11, 12: the states before the response tokens and before EOS have a gradient; those of
    the prompt before them, of EOS itself and of the pads have exactly none."""
    rows, model, states = [([3, 0, 5, 7, 8, EOS], 3), ([2, 9, EOS], 1)], tiny(), []

    def keep(module, args, out):
        out.retain_grad()
        states.append(out)

    model.transformer.register_forward_hook(keep)
    sft.train_step(model, Recorder(model), rows, 0.1, sft_settings(), one_process())
    moved = (states[0].grad.abs().sum(-1) > 0).int().tolist()
    assert sorted(moved) == [[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]


class Rows(list):
    """Text rows, all T long."""
    T = 11

    @property
    def tokens(self):
        return sum(map(len, self))


class Packed:
    """A tokenizer whose texts are lists of ids."""
    eos, size = EOS, VOCAB
    encode = staticmethod(list)


def packed(n=30, T=24):
    """(documents, their rows): the documents are longer than half a row, so that rows have room
    left, and some longer than one."""
    rng = random.Random(9)
    documents = [[rng.randrange(EOS) for _ in range(rng.randint(*span))]
                 for span in [(T // 2, T - 2)] * n + [(T, 3 * T)] * (n // 10)]
    return documents, batches.TextRows(Packed, documents, T)


def text_oracle(model, rows):
    """(the loss of text rows, its tokens) by loops in float64: every token of a row that has one
    before it."""
    logprobs = [p for ids in rows for p in sequence_logprobs(model, ids)]
    return -sum(logprobs) / len(logprobs), len(logprobs)


def texts(n=40):
    rng = random.Random(5)
    return Rows([rng.randrange(EOS) for _ in range(Rows.T)] for _ in range(n))


def test_an_epoch_has_every_demonstration_once():
    """Trap 24, and each epoch in another order."""
    demos, s = demonstrations(21), sft_settings(batch=8)
    epochs = [list(sft.batches(s, demos, [], epoch)) for epoch in (0, 1)]
    for batches in epochs:
        assert [len(b) for b in batches] == [8, 8, 5]
        assert sorted(sum(batches, [])) == sorted(demos)
    assert epochs[0] != epochs[1]
    assert list(sft.batches(s, demos, [], 1)) == epochs[1], "the same on every rank"


@pytest.mark.parametrize("mix", [0.1, 0.3])
def test_the_pretraining_mix_is_a_share_of_the_loss_tokens(mix):
    """Appendix C.3: 10 % of what carries loss is text, to the row; over the epochs other text."""
    demos, text, used = demonstrations(200), texts(200), []
    for epoch in range(3):
        rows = sum(sft.batches(sft_settings(pretrain_mix=mix), demos, text, epoch), [])
        chosen = [r for r in rows if r[0] in text]
        assert sorted(r for r in rows if r[0] not in text) == sorted(demos)
        loss_tokens = sum(len(ids) - n for ids, n in rows)
        a_row = (Rows.T - 1) / loss_tokens
        assert len(chosen) * a_row == pytest.approx(mix, abs=0.6 * a_row)
        used += [tuple(ids) for ids, _ in chosen]
    assert len(set(used)) > len(used) / 3, "other text in other epochs"


def test_pretraining_reads_all_text():
    rows = sum(sft.batches(sft_settings(pretrain_mix=1.0), [], texts(), 0), [])
    assert sorted(ids for ids, _ in rows) == sorted(texts())


@pytest.mark.parametrize("mix", [0.0, 0.1, 0.5, 1.0])
def test_the_rows_of_an_epoch_are_counted_without_reading_them(mix):
    """The number of steps must be known before the first; to read all text for it would take
    hours where there is much."""
    demos, text, s = demonstrations(30 * (mix < 1)), texts() if mix else [], sft_settings(
        pretrain_mix=mix)
    for epoch in range(2):
        rows = sum(len(batch) for batch in sft.batches(s, demos, text, epoch))
        assert rows == len(demos) + sft.text_share(s, demos, text)


def test_validation_loss_has_no_dropout_and_leaves_it_on():
    """Trap 17."""
    rows, model = demonstrations(9), tiny(dropout=0.5).train()
    got = sft.evaluate_loss(model, rows, sft_settings(), one_process())
    assert model.training
    model.eval()
    assert got == pytest.approx(float(sft_oracle(model, rows).detach()), rel=1e-5)


def test_held_out_text_is_not_held_in_memory(monkeypatch):
    """As many rows as are evaluated at once, and the loss is that of all rows together."""
    alive, most = [0], [0]

    class Row(list):
        def __init__(self, ids):
            super().__init__(ids)
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    class OnDisk(Rows):
        def __getitem__(self, i):
            return Row(super().__getitem__(i))

    rows, model = texts(40), tiny().eval()
    for world in (one_process(), world_of_ranks(0, 2, lambda x: x), world_of_ranks(1, 2, None)):
        sums = []
        world.sum = lambda x: sums.append(x) or torch.as_tensor(x)
        got = sft.evaluate_loss(model, WithoutPrompt(OnDisk(rows)), sft_settings(), world, 6)
        mine = [(ids, 1) for i, ids in enumerate(rows) if i % 6 % world.size == world.rank]
        assert sums[0][1] == len(mine) * (Rows.T - 1)
        assert got == pytest.approx(float(sft_oracle(model, mine).detach()), rel=1e-5)
    assert most[0] <= 12 and alive[0] == 0, "those, and the next ones while they are read"


def test_the_loss_of_packed_text_is_that_of_its_own_tokens():
    """Rows of documents are not full: what follows the last document is no text, in the loss, in
    its gradient and in what is counted."""
    (documents, text), model = packed(), tiny().eval()
    rows = [text[i] for i in range(len(text))]
    loss, tokens = text_oracle(model, rows)
    assert tokens == sum(len(d) + 1 for d in documents) - len(rows) < 0.85 * 23 * len(rows)
    world, sums = one_process(), []
    world.sum = lambda x: sums.append(x) or torch.as_tensor(x)
    for micro_batch in MICRO:
        s = sft_settings(micro_batch=micro_batch, pretrain_mix=1.0, batch=64)
        assert sft.evaluate_loss(model, WithoutPrompt(text), s, world) == pytest.approx(loss, 1e-5)
        assert sums[-1][1] == tokens
        (batch,), recorder = sft.batches(s, [], text, 0), Recorder(model)
        got, _ = sft.train_step(model, recorder, batch, 0.1, s, one_process())
        assert got == pytest.approx(loss, rel=1e-5)
        same(recorder.steps[0], gradients(sft_oracle(model, batch), model))


def test_the_mix_counts_what_rows_hold():
    """Rows that are far from full: as many as hold a tenth of the tokens with loss."""
    demos, (_, text) = demonstrations(400), packed(200, T=40)
    rows = sum(sft.batches(sft_settings(pretrain_mix=0.1), demos, text, 0), [])
    own = sum(len(ids) - 1 for ids, n in rows if ids in [text[i] for i in range(len(text))])
    every = sum(len(ids) - n for ids, n in rows)
    assert own / every == pytest.approx(0.1, abs=0.01)


def test_text_rows_are_of_few_widths():
    """In batches rows are hardly ever of another width than the longest: few shapes of tensors."""
    rng = random.Random(1)
    text = batches.TextRows(Packed, [[1] * rng.randint(5, 60) for _ in range(2000)], 128)
    widths = [max(len(ids) for ids, _ in rows) for rows in
              sft.batches(sft_settings(pretrain_mix=1.0, batch=8), [], text, 0)]
    assert sum(w == 128 for w in widths) > 0.9 * len(widths)


def test_sft_learns_to_copy():
    """Prompt `a b`, response `b a EOS`: the loss starts near log 13 and is nearly gone."""
    model, rng = tiny(loud=1.0), random.Random(0)
    optimizer, s, losses = make_optimizer(model, 0.01, 0.0), sft_settings(clip=1.0), []
    for _ in range(150):
        pairs = [(rng.randrange(EOS), rng.randrange(EOS)) for _ in range(16)]
        rows = [([a, b, b, a, EOS], 2) for a, b in pairs]
        losses.append(sft.train_step(model, optimizer, rows, 0.01, s, one_process())[0])
    assert losses[0] == pytest.approx(math.log(VOCAB), abs=0.5)
    assert sum(losses[-10:]) / 10 < 0.2


# --------------------------------------------------------------------------- step 2: reward model

def rankings(n, seed=0):
    """Rankings as encode_ranking makes them: K of 2 to 5 completions, some tied, of one prompt."""
    rng, out = random.Random(seed), []
    while len(out) < n:
        prompt, k = [rng.randrange(EOS) for _ in range(rng.randint(1, 5))], rng.randint(2, 5)
        rows = [prompt + [rng.randrange(EOS) for _ in range(rng.randint(1, 8))] + [EOS]
                for _ in range(k)]
        ranks = [rng.randint(1, 4) for _ in range(k)]
        pairs = [(i, j) for i in range(k) for j in range(k) if ranks[i] < ranks[j]]
        if pairs:
            out.append((rows, pairs))
    return out


def rm_settings(**changes):
    return reward.Settings(**{**dict(batch=8, micro_batch=8, clip=0.0, seed=2), **changes})


def rm_oracle(model, batch):
    """Equation 1 over explicit pairs of completions that are scored one at a time."""
    per_prompt, right, count = [], 0, 0
    for rows, pairs in batch:
        scores = [model(torch.tensor([ids]))[0, -1] for ids in rows]
        per_prompt.append(sum(F.softplus(scores[j] - scores[i]) for i, j in pairs) / len(pairs))
        right += sum(float(scores[i].detach()) > float(scores[j].detach()) for i, j in pairs)
        count += len(pairs)
    return sum(per_prompt) / len(batch), right / count


@pytest.mark.parametrize("micro_batch", MICRO)
def test_reward_step(micro_batch):
    """Traps 1, 13, 21: the mean over prompts of the mean over pairs, at any micro-batch; seven
    prompts, so that the last micro-batch is a smaller one."""
    batch, model = rankings(7), tiny_scalar()
    recorder, (expected, share) = Recorder(model), rm_oracle(model, batch)
    loss, right, _ = reward.train_step(model, recorder, batch, 0.1,
                                       rm_settings(micro_batch=micro_batch), one_process())
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert right == pytest.approx(share) and 0 < share < 1
    (got,) = recorder.steps
    same(got, gradients(expected, model))


def test_reward_step_on_two_ranks_is_the_step_on_one():
    """Traps 1, 24: prompts count alike although the ranks hold different numbers of pairs."""
    batch, model = rankings(7), tiny_scalar()

    def work(rank, total):
        own = copy.deepcopy(model)
        recorder = Recorder(own)
        result = reward.train_step(own, recorder, batch, 0.1, rm_settings(micro_batch=2),
                                   world_of_ranks(rank, 2, total))
        return result[:2], recorder.steps[0]

    (result, a), (_, b) = in_ranks(2, work)
    expected, share = rm_oracle(model, batch)
    assert result == pytest.approx((float(expected.detach()), share), rel=1e-5)
    same([(x + y) / 2 for x, y in zip(a, b)], gradients(expected, model))


@pytest.mark.parametrize("micro_batch", MICRO)
def test_each_completion_is_read_once(monkeypatch, micro_batch):
    """Trap 30: K forward passes serve all pairs of a prompt, and a prompt is never torn apart."""
    batch, model, seen = rankings(8), tiny_scalar(), []
    tree = lambda *args: seen.append(tree_rows(PrefixTree(*args))) or PrefixTree(*args)
    monkeypatch.setattr(reward, "PrefixTree", tree)
    reward.train_step(model, Recorder(model), batch, 0.1, rm_settings(micro_batch=micro_batch),
                      one_process())
    assert sorted(sum(seen, [])) == sorted(ids for rows, _ in batch for ids in rows)
    for rows, _ in batch:
        assert any(all(ids in group for ids in rows) for group in seen)


class Letters:
    """A tokenizer of single letters: a is 0."""
    eos, size, template = EOS, VOCAB, "{prompt}\n"

    def encode(self, text):
        return [11 if c == "\n" else ord(c) - ord("a") for c in text]


def test_a_ranking_record_as_rows_and_pairs():
    """Traps 11, 29: a completion that its sampling cut has no EOS, one that does not fit is left
    out and the pairs count the others, one of no token at all is none."""
    record = {"prompt": "ab", "ranks": [2, 1, 3, 2, 4], "completions": [
        {"text": "c"}, {"text": "d" * 20}, {"text": "e", "ended": False},
        {"text": "fg", "ended": True}, {"text": "", "ended": False}]}
    rows, pairs = encode_ranking(Letters(), record, 10)
    assert rows == [[0, 1, 11, 2, EOS], [0, 1, 11, 4], [0, 1, 11, 5, 6, EOS]]
    assert sorted(pairs) == [(0, 1), (2, 1)]


def test_all_completions_of_a_prompt_are_one_element(tmp_path):
    """Trap 30: and so all its pairs are in one batch."""
    from data import records
    records.write(tmp_path / "r.jsonl", [{"prompt": "a", "ranks": [2, 1, 3], "completions": [
        {"text": text} for text in "bcd"]}] * 2)
    got = read_rankings(tmp_path / "r.jsonl", Letters(), 10)
    rows = [[0, 11, n, EOS] for n in (1, 2, 3)]
    assert [own for own, _ in got] == [rows, rows]
    assert [sorted(pairs) for _, pairs in got] == [[(0, 2), (1, 0), (1, 2)]] * 2


def test_rankings_without_a_pair_are_counted(tmp_path):
    """Trap 29: what is dropped is told."""
    from data import records
    tied = {"prompt": "a", "completions": [{"text": "b"}, {"text": "c"}], "ranks": [1, 1]}
    records.write(tmp_path / "r.jsonl", [tied, {**tied, "ranks": [2, 1]}, tied])
    told = []
    got = read_rankings(tmp_path / "r.jsonl", Letters(), 10, tell=told.append)
    assert got == [([[0, 11, 1, EOS], [0, 11, 2, EOS]], [(1, 0)])]
    assert len(told) == 1 and "2 of 3 rankings have no pair" in told[0]
    records.write(tmp_path / "r.jsonl", [tied])
    with pytest.raises(SystemExit, match="no ranking with an untied pair"):
        read_rankings(tmp_path / "r.jsonl", Letters(), 10)


def test_completions_that_do_not_fit_are_counted(tmp_path):
    """Trap 29: a ranking that keeps a pair loses no completion in silence."""
    from data import records
    records.write(tmp_path / "r.jsonl", [{"prompt": "a", "ranks": [1, 2, 3], "completions": [
        {"text": "b"}, {"text": "c" * 20}, {"text": "d"}]}])
    told = []
    got = read_rankings(tmp_path / "r.jsonl", Letters(), 10, tell=told.append)
    assert got == [([[0, 11, 1, EOS], [0, 11, 3, EOS]], [(0, 1)])]
    assert len(told) == 1 and "1 of 3 completions are dropped" in told[0]


def test_demonstrations_that_do_not_fit_are_counted(tmp_path):
    """Trap 29: of each split; none at all is an error, before anything is trained."""
    from data import records
    for split, responses in (("train", ["b", "c" * 20, "d" * 20]), ("valid", ["e" * 20, "f"])):
        records.write(tmp_path / f"demonstrations_{split}.jsonl", [
            {"prompt": "a", "response": r} for r in responses])
    told, s = [], sft.Settings(data=str(tmp_path))
    world = SimpleNamespace(print=told.append)
    demos, valid, text = sft.read_data(s, Letters(), 10, world)
    assert (demos, valid, text) == ([([0, 11, 1, EOS], 2)], [([0, 11, 5, EOS], 2)], [])
    assert "train.jsonl: 2 of 3 demonstrations are dropped" in told[0]
    assert "valid.jsonl: 1 of 2 demonstrations are dropped" in told[1] and len(told) == 2
    held = [{"prompt": "a", "response": "e" * 20}]
    for rows in (held, []):  # data.public writes an empty file where there are few rows
        records.write(tmp_path / "demonstrations_valid.jsonl", rows)
        assert sft.read_data(s, Letters(), 10, world)[1] == []
    with pytest.raises(SystemExit, match="no demonstration fits the context of 3 tokens"):
        sft.read_data(s, Letters(), 3, world)


@pytest.mark.parametrize("way, kept", [("keep_end", [3, 4, 11]), ("keep_beginning", [0, 1, 11])])
def test_prompts_that_are_cut_are_counted(tmp_path, way, kept):
    """Trap 29: all completions of a prompt keep the same prompt, with room for the longest."""
    from data import records
    records.write(tmp_path / "r.jsonl", [
        {"prompt": "abcde", "ranks": [1, 2], "completions": [{"text": "b"}, {"text": "cc"}]},
        {"prompt": "a", "ranks": [1, 2, 3], "completions": [
            {"text": "b"}, {"text": "c" * 20}, {"text": "d"}]}])
    told = []
    world = SimpleNamespace(print=told.append)
    got = read_rankings(tmp_path / "r.jsonl", Letters(), 6, way, told.append)
    assert got == [([[*kept, 1, EOS], [*kept, 2, 2, EOS]], [(0, 1)]),
                   ([[0, 11, 1, EOS], [0, 11, 3, EOS]], [(0, 1)])]
    assert "1 of 2 prompts are cut" in told[0] and "1 of 5 completions are dropped" in told[1]
    for split in ("train", "valid"):
        records.write(tmp_path / f"demonstrations_{split}.jsonl", [
            {"prompt": "abcde", "response": "bb"}, {"prompt": "a", "response": "c" * 20}])
    told.clear()
    demos, _, _ = sft.read_data(sft.Settings(data=str(tmp_path), too_long=way), Letters(), 6, world)
    assert demos == [([*kept, 1, 1, EOS], 3)]
    assert "train.jsonl: 1 of 2 demonstrations are dropped" in told[0]
    assert "train.jsonl: 1 of 2 demonstrations are cut in their prompts" in told[1]


def test_groups_hold_all_rows_and_no_more_tokens_than_said():
    """Pads count; a row longer than the bound is a group of its own."""
    lengths = [3, 40, 1, 7, 7, 2, 9, 12, 1]
    groups = groups_by_tokens(lengths, 20)
    assert sorted(i for group in groups for i in group) == list(range(9))
    assert [[lengths[i] for i in g] for g in groups] == [[40], [12], [9, 7], [7, 3], [2, 1, 1]]


def test_equal_completions_count_half_in_training_too():
    """Whichever a labeler prefers: the bar shows chance, not 0 %, as the held-out accuracy does."""
    model = tiny_scalar()
    _, right, _ = reward.train_step(model, Recorder(model), [([[1, 2, 3], [1, 2, 3]], [(0, 1)])],
                                    0.1, rm_settings(), one_process())
    assert right == 0.5


def test_accuracy_by_hand():
    """Of all pairs, not of all prompts; an equal score is half right."""
    two, four = ([None] * 2, [(0, 1)]), ([None] * 3, [(0, 1), (0, 2), (1, 2)])
    assert reward.accuracy([[2.0, 1.0], [1.0, 3.0, 1.0]], [two, four]) == (1 + 0 + 0.5 + 1) / 4
    assert reward.accuracy([[1.0, 2.0]], [([None] * 2, [])]) is None


def test_scores_come_in_the_order_of_the_rows():
    model, rows = tiny_scalar(), [ids for ids, _ in demonstrations(30)]
    expected = [float(model(torch.tensor([ids]))[0, -1].detach()) for ids in rows]
    families = [rows[i : i + n] for i, n in ((0, 3), (3, 1), (4, 20), (24, 6))]
    scores = reward.score(model, families, rm_settings(micro_batch=2), one_process())
    assert [len(own) for own in scores] == [3, 1, 20, 6]
    assert sum(scores, []) == pytest.approx(expected, abs=1e-5)


def test_the_bias_centres_demonstrations_at_0():
    """Section 3.5: before PPO, demonstrations score 0 on average; differences are as they were."""
    model, rows = tiny_scalar(), [ids for ids, _ in demonstrations(30)]
    score = lambda: sum(reward.score(model, [rows], rm_settings(), one_process()), [])
    before = score()
    mean = reward.center(model, rows, rm_settings(), one_process())
    after = score()
    assert mean == pytest.approx(sum(before) / 30) and abs(mean) > 0.01
    assert sum(after) / 30 == pytest.approx(0, abs=1e-5)
    assert [a - b for a, b in zip(after, before)] == pytest.approx([-mean] * 30, abs=1e-5)


def test_the_reward_model_learns_a_taste():
    """Labelers like the letter 3: who has more of them is better. Held-out pairs come right."""
    def liked(n, seed):
        out = []
        for rows, _ in rankings(n, seed):
            pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows))
                     if rows[i].count(3) > rows[j].count(3)]
            if pairs:
                out.append((rows, pairs))
        return out

    model, train, test = tiny_scalar(loud=1.0), liked(600, 0), liked(200, 1)
    optimizer = make_optimizer(model, 0.01, 0.0)
    measure = lambda: reward.accuracy(
        reward.score(model, [rows for rows, _ in test], rm_settings(), one_process()), test)
    before = measure()
    for i in range(0, len(train), 8):
        reward.train_step(model, optimizer, train[i : i + 8], 0.01, rm_settings(clip=1.0),
                          one_process())
    assert before < 0.7 and measure() > 0.9


# ------------------------------------------------------------------------------------- step 3: PPO

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5], [3, 5, 8, 9, 7, 9, 3, 2], [EOS, 7], [11, 0, 0], [2, 7],
           [1, 8, 2, 8]]
SETTINGS = dict(batch=8, minibatch=8, micro_batch=8, inner_epochs=1, lr=0.1, value_lr=0.1, beta=0.3,
                ptx=0.0, ptx_rows=4, clip_ratio=0.2, clip_value=0.2, gae_lambda=0.9, discount=0.97,
                temperature=1.0, max_new_tokens=8, unfinished=-2.5, ema=0.9, clip=0.0, seed=3)


def scene(**changes):
    """Everything that an iteration needs: four models, settings, prompts and an optimiser each."""
    policy, value = tiny(), tiny_scalar(seed=5)
    return SimpleNamespace(
        s=ppo.Settings(**{**SETTINGS, **changes}), policy=policy, reference=tiny(seed=7),
        reward=tiny_scalar(seed=6), value=value, world=one_process(), prompts=PROMPTS,
        optimizers=[Recorder(policy), Recorder(value)],
        ema={k: v.clone() for k, v in policy.state_dict().items()})


def roll(x, prompts=None, numbers=None):
    prompts = prompts or x.prompts
    return ppo.rollout(x.policy, x.reference, x.reward, x.value, prompts,
                       numbers or list(range(len(prompts))), EOS, x.s, x.world)


def update(x, e, text=None):
    """One iteration's update. Returns its metrics."""
    text = torch.zeros(0, 1, dtype=torch.long) if text is None else text
    return ppo.update(x.policy, x.value, x.optimizers, x.ema, e, text, x.s.lr, 0, x.s, x.world)


def rows_of(e):
    """[(ids without pads, prompt length)] of episodes."""
    return [(ids[:n], p) for ids, n, p in zip(e.samples.ids.tolist(), e.samples.lengths.tolist(),
                                              e.samples.prompt_lengths.tolist())]


def stale(e, seed=0):
    """The episodes as if the policy and the values had moved a good deal since the rollout."""
    noise = lambda scale: scale * torch.randn(e.mask.shape, generator=torch.Generator()
                                              .manual_seed(seed))
    return replace(e, logprob=e.logprob + noise(0.3) * e.mask, value=e.value + noise(0.3) * e.mask)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_rollout_by_loops_over_single_rows(temperature, micro_batch):
    """Traps 5, 8, 9, 10, 13, 14, 16, 18: every quantity of every episode, each from its own row
    alone; returns come from the advantages before whitening."""
    x = scene(temperature=temperature, micro_batch=micro_batch)
    e, raw, places = roll(x), [], []
    assert e.samples.ended.any() and not e.samples.ended.all()
    for i, (ids, p) in enumerate(rows_of(e)):
        n, T = len(ids) - p, slice(p, len(ids))
        logprob = sequence_logprobs(x.policy, ids, temperature)[p - 1 :]
        ref = sequence_logprobs(x.reference, ids, temperature)[p - 1 :]
        close(e.logprob[i, T], logprob, 1e-5)
        close(e.ref_logprob[i, T], ref, 1e-5)
        score = float(x.reward(torch.tensor([ids]))[0, -1].detach()) if ids[-1] == EOS else -2.5
        assert float(e.score[i]) == pytest.approx(score, abs=1e-5)
        value = [float(x.value(torch.tensor([ids[:t]]))[0, -1].detach())
                 for t in range(p, len(ids))]
        close(e.value[i, T], value, 1e-5)
        reward = [-0.3 * (a - b) for a, b in zip(logprob, ref)]
        reward[-1] += score
        close(e.reward[i, T], reward, 1e-5)
        delta = [reward[t] + (0.97 * value[t + 1] if t + 1 < n else 0) - value[t] for t in range(n)]
        advantage = [sum((0.97 * 0.9) ** (u - t) * delta[u] for u in range(t, n)) for t in range(n)]
        close(e.returns[i, T], [a + v for a, v in zip(advantage, value)], 1e-5)
        raw += advantage
        places += [(i, t) for t in range(p, len(ids))]
    mean = sum(raw) / len(raw)
    deviation = (sum((a - mean) ** 2 for a in raw) / len(raw)) ** 0.5
    close(torch.stack([e.advantage[i, t] for i, t in places]),
          [(a - mean) / deviation for a in raw], 1e-4)
    assert int(e.mask.sum()) == len(places) and all(e.mask[i, t] for i, t in places)


def test_rollout_leaves_nothing_to_differentiate():
    """Trap 15: what the trainer takes as given has no gradient, frozen or not."""
    e = roll(scene())
    for f in fields(e):
        if isinstance(getattr(e, f.name), torch.Tensor):
            assert not getattr(e, f.name).requires_grad, f.name


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("micro_batch", MICRO)
def test_the_first_minibatch_has_not_moved(micro_batch, temperature):
    """Traps 16, 17: the trainer's log-probs of a fresh rollout are the sampler's: ratio 1, nothing
    clipped, KL 0, at any micro-batch size; the loss is minus the mean (whitened) advantage, 0."""
    x = scene(micro_batch=micro_batch, temperature=temperature)
    got = update(x, roll(x))
    assert got["policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert got["policy/clip_fraction"] == got["value/clip_fraction"] == 0
    assert 0 <= got["policy/approx_kl"] < 1e-9
    assert got["loss/policy"] == pytest.approx(0, abs=1e-5)


def ppo_oracle(x, e):
    """(policy loss, value loss, entropy) token by token: Schulman's equation 7 as an `if`."""
    policy_loss = value_loss = 0.0
    entropies = []
    for i, (ids, p) in enumerate(rows_of(e)):
        logp = (logits_of(x.policy, ids) / x.s.temperature).log_softmax(-1)
        scores = x.value(torch.tensor([ids]))[0]
        for t in range(p, len(ids)):
            ratio = (logp[t - 1, ids[t]] - e.logprob[i, t]).exp()
            a = float(e.advantage[i, t])
            too_far = ratio > 1.2 if a > 0 else ratio < 0.8
            policy_loss = policy_loss - a * (ratio.detach().clamp(0.8, 1.2) if too_far else ratio)
            entropies.append(-float((logp[t - 1].exp() * logp[t - 1]).sum().detach()))
            old, target, v = float(e.value[i, t]), float(e.returns[i, t]), scores[t - 1]
            near = min(max(float(v.detach()), old - 0.2), old + 0.2)
            error, near_error = (v - target) ** 2, (near - target) ** 2
            inside = near == float(v.detach())
            value_loss = value_loss + 0.5 * (error if inside or error > near_error else near_error)
    n = len(entropies)
    return policy_loss / n, value_loss / n, sum(entropies) / n


@pytest.mark.parametrize("micro_batch", MICRO)
def test_ppo_step(micro_batch):
    """Traps 6, 11, 21: with a policy that has moved, both gradients are means over the minibatch's
    response tokens, whatever the micro-batch; so are the logged losses and the entropy."""
    x = scene(micro_batch=micro_batch, temperature=0.8)
    e = stale(roll(x))
    policy_loss, value_loss, entropy = ppo_oracle(x, e)
    got = update(x, e)
    assert got["policy/clip_fraction"] > 0.1 and got["value/clip_fraction"] > 0.1, "a real test"
    assert got["loss/policy"] == pytest.approx(float(policy_loss.detach()), abs=1e-5)
    assert got["loss/value"] == pytest.approx(float(value_loss.detach()), rel=1e-4)
    assert got["policy/entropy"] == pytest.approx(entropy, rel=1e-4)
    for recorder, loss, model in zip(x.optimizers, (policy_loss, value_loss), (x.policy, x.value)):
        same(recorder.steps[0], gradients(loss, model))


def test_ppo_metrics_by_loops():
    """Trap 6: means over response tokens of what moved since the rollout."""
    x = scene()
    e = stale(roll(x))
    ratios = [math.exp(p - float(e.logprob[i, t])) for i, (ids, start) in enumerate(rows_of(e))
              for t, p in enumerate([0.0, *sequence_logprobs(x.policy, ids)]) if t >= start]
    mean = lambda values: sum(values) / len(ratios)
    got = update(x, e)
    assert got["policy/ratio"] == pytest.approx(mean(ratios), rel=1e-4)
    assert got["policy/clip_fraction"] == pytest.approx(mean([abs(r - 1) > 0.2 for r in ratios]))
    assert got["policy/approx_kl"] == pytest.approx(mean([0.5 * math.log(r) ** 2 for r in ratios]),
                                                    rel=1e-3)


@pytest.mark.parametrize("micro_batch", MICRO)
@pytest.mark.parametrize("minibatch, inner_epochs", [(8, 1), (4, 1), (2, 3)])
def test_number_of_steps_and_who_is_in_them(micro_batch, minibatch, inner_epochs):
    """Traps 19, 22: an iteration has batch / minibatch steps a pass, however small the
    micro-batches; each pass reads the very tokens that were sampled, each episode once."""
    x = scene(micro_batch=micro_batch, minibatch=minibatch, inner_epochs=inner_epochs)
    e, seen = roll(x), []
    x.policy.register_forward_hook(lambda module, args, out: seen.extend(
        tuple(t for t, _ in zip(ids, range(24))) for ids in args[0].tolist()))
    update(x, e)
    assert [len(o.steps) for o in x.optimizers] == [8 // minibatch * inner_epochs] * 2
    sampled = collections.Counter()
    for ids, _ in rows_of(e):
        sampled[tuple(ids)] += inner_epochs
    trained = collections.Counter(next(tuple(ids) for ids, _ in rows_of(e)
                                       if row[: len(ids)] == tuple(ids)) for row in seen)
    assert trained == sampled


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_ptx_joins_the_ppo_gradient_in_one_step(micro_batch):
    """Trap 27: one step a minibatch, with the PPO gradient + gamma * the gradient of the mean text
    loss, at any micro-batch."""
    text = torch.tensor(texts()[:4])
    x = scene(micro_batch=micro_batch, ptx=2.5)
    e = stale(roll(x))
    ppo_gradient = gradients(ppo_oracle(x, e)[0], x.policy)
    language = sum(F.cross_entropy(logits_of(x.policy, ids)[:-1], torch.tensor(ids[1:]))
                   for ids in text.tolist()) / 4
    got = update(x, e, text)
    assert got["loss/ptx"] == pytest.approx(float(language.detach()), rel=1e-5)
    assert len(x.optimizers[0].steps) == 1
    same(x.optimizers[0].steps[0], add(ppo_gradient, gradients(language, x.policy), 2.5))


def ragged_text(n=8):
    """Text rows of all lengths, as `ppo.text_rows` has them: -1 behind the end."""
    rng = random.Random(6)
    rows = [[rng.randrange(EOS) for _ in range(rng.randint(2, 23))] for _ in range(n)]
    return rows, pad(rows, -1)[0]


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_text_rows_that_are_not_full_join_with_their_own_tokens(micro_batch):
    """The text loss of a minibatch is a mean over its text tokens, at any micro-batch and however
    wide the tensor is; the logged one a mean over those of the iteration."""
    rows, text = ragged_text()
    changes, steps = dict(micro_batch=micro_batch, ptx=2.5, minibatch=4), []
    for wider in (0, 1):
        x = scene(**changes)
        e = stale(roll(x))
        got = update(x, e, F.pad(text, (0, wider), value=-1))
        assert got["loss/ptx"] == pytest.approx(text_oracle(x.policy, rows)[0], rel=1e-5)
        steps.append(x.optimizers[0].steps)
    bare = scene(**{**changes, "ptx": 0.0})
    update(bare, stale(roll(bare)))
    first = ppo.order(2, bare.s.seed, 0).tolist()
    for n, own in enumerate((rows[4 * k : 4 * k + 4] for k in first)):
        language = gradients(sft_oracle(bare.policy, [(ids, 1) for ids in own]), bare.policy)
        expected = add(bare.optimizers[0].steps[n], language, 2.5)
        for found in steps:
            same(found[n], expected)


def test_without_text_there_is_no_text_loss():
    x = scene()
    assert "loss/ptx" not in update(x, roll(x))


def test_each_minibatch_has_text_of_its_own():
    text = torch.tensor(texts()[:8])
    x, seen = scene(ptx=1.0, minibatch=4), []
    e = roll(x)
    x.policy.register_forward_hook(lambda module, args, out: seen.extend(args[0].tolist()))
    update(x, e, text)
    assert sorted(ids for ids in seen if ids in text.tolist()) == sorted(text.tolist())


def test_ppo_steps_on_two_ranks_are_the_steps_on_one():
    """Traps 23, 24: the same minibatches, advantages whitened over both ranks, averaged gradients,
    and the same metrics on both."""
    text, changes = ragged_text()[0], dict(ptx=0.5, minibatch=4, micro_batch=3)
    x = scene(**changes)
    e = roll(x)
    expected = update(x, stale(e), pad(text, -1)[0])
    scenes = [scene(**changes) for _ in range(2)]

    def work(rank, total):
        y = scenes[rank]
        y.world = world_of_ranks(rank, 2, total)
        own = roll(y, y.world.share(PROMPTS), y.world.share(list(range(8))))
        close(own.advantage[own.mask], e.advantage[rank::2][e.mask[rank::2]].tolist(), 1e-5)
        old = stale(e)
        T = own.mask.size(1)
        own = replace(own, logprob=old.logprob[rank::2, :T], value=old.value[rank::2, :T])
        metrics = update(y, own, pad(y.world.share(text), -1)[0])
        return metrics, [o.steps for o in y.optimizers], ppo.rollout_metrics(own, y.world)

    a, b = in_ranks(2, work)
    for mine, theirs, whole in zip(a[1], b[1], [o.steps for o in x.optimizers]):
        assert len(mine) == len(theirs) == len(whole) == 2
        for p, q, r in zip(mine, theirs, whole):
            same([(u + v) / 2 for u, v in zip(p, q)], r)
    for name in set(expected) - {"policy/grad_norm", "value/grad_norm"}:
        assert a[0][name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
        assert a[0][name] == b[0][name], name
    assert a[2] == pytest.approx(ppo.rollout_metrics(stale(e), x.world), rel=1e-5, abs=1e-6)


def test_only_policy_and_value_function_learn():
    """Traps 5, 15: the reference and the reward model keep their weights and get no gradient, even
    if nobody has frozen them."""
    x = scene(minibatch=4)
    x.optimizers = [Counted(x.policy), Counted(x.value)]
    models = x.policy, x.value, x.reference, x.reward
    before = [copy.deepcopy(m.state_dict()) for m in models]
    for _ in range(2):
        update(x, roll(x))
    changed = [any(not torch.equal(old[k], v) for k, v in m.state_dict().items())
               for old, m in zip(before, models)]
    assert changed == [True, True, False, False]
    assert all(p.grad is None for m in (x.reference, x.reward) for p in m.parameters())


def test_ema_of_the_weights():
    """Appendix C.4: after each optimiser step, average = d * average + (1 - d) * weights."""
    x = scene(minibatch=2, ema=0.75)
    x.optimizers[0] = Counted(x.policy)
    expected = {k: v.double() for k, v in x.ema.items()}
    update(x, roll(x))
    assert len(x.optimizers[0].weights) == 4
    for weights in x.optimizers[0].weights:
        expected = {k: 0.75 * v + 0.25 * weights[k].double() for k, v in expected.items()}
    for k, v in x.ema.items():
        close(v, expected[k].tolist())


def test_ppo_steps_are_clipped():
    """Trap 25: both optimisers, one step each."""
    x = scene(clip=0.01, ptx=1e4)
    update(x, stale(roll(x)), torch.tensor(texts()[:4]))
    for recorder in x.optimizers:
        norm = math.sqrt(sum(float((g**2).sum()) for g in recorder.steps[0]))
        assert norm == pytest.approx(0.01, rel=1e-3)


def widened(e, n=3):
    """Episodes with n more columns of pads: 0 in the numbers, another token in the ids."""
    more = lambda t, value=0: F.pad(t, (0, n), value=value) if t.dim() == 2 else t
    samples = replace(e.samples, ids=more(e.samples.ids, 7), logprobs=more(e.samples.logprobs))
    return replace(e, samples=samples, **{f.name: more(getattr(e, f.name)) for f in fields(e)
                                          if f.name != "samples"})


def test_more_pads_change_nothing():
    """Trap 6: every metric and every gradient; the micro-batch is cut from the wider tensors."""
    x, y = scene(), scene()
    e = stale(roll(x))
    first, second = update(x, e), update(y, widened(e))
    assert first == pytest.approx(second, rel=1e-6, abs=1e-9)
    for a, b in zip(x.optimizers, y.optimizers):
        same(a.steps[0], b.steps[0])
    assert ppo.rollout_metrics(e, x.world) == pytest.approx(
        ppo.rollout_metrics(widened(e), x.world), rel=1e-9)


@pytest.mark.parametrize("name", ["logprob", "value", "advantage", "returns"])
def test_nan_outside_the_response_reaches_no_update(name):
    """Trap 7: neither a loss, nor a metric, nor a gradient."""
    x, y = scene(), scene()
    e = stale(roll(x))
    bad = replace(e, **{name: getattr(e, name).masked_fill(~e.mask, math.nan)})
    assert update(x, e) == pytest.approx(update(y, bad), rel=1e-6, abs=1e-9)
    for a, b in zip(x.optimizers, y.optimizers):
        same(a.steps[0], b.steps[0])


@pytest.mark.parametrize("name", ["logprob", "ref_logprob", "value"])
def test_nan_outside_the_response_reaches_no_rollout_metric(name):
    """Trap 7: NaN * 0 is NaN."""
    x = scene()
    e = roll(x)
    bad = replace(e, **{name: getattr(e, name).masked_fill(~e.mask, math.nan)})
    assert ppo.rollout_metrics(bad, x.world) == pytest.approx(
        ppo.rollout_metrics(e, x.world))


def test_rollout_metrics_by_loops():
    """Sums over an episode, means over episodes; objective = score - beta * KL (trap 5)."""
    x = scene()
    e = roll(x)
    got, mean = ppo.rollout_metrics(e, x.world), lambda v: sum(v) / len(v)
    pick = lambda t: [[float(t[i, k]) for k in range(p, len(ids))]
                      for i, (ids, p) in enumerate(rows_of(e))]
    score = e.score.tolist()
    kl = [sum(a) - sum(b) for a, b in zip(pick(e.logprob), pick(e.ref_logprob))]
    value, returns = sum(pick(e.value), []), sum(pick(e.returns), [])
    variance = lambda v: mean([(a - mean(v)) ** 2 for a in v])
    expected = {"score": mean(score), "score_std": variance(score) ** 0.5, "kl": mean(kl),
                "objective": mean(score) - 0.3 * mean(kl),
                "response_length": mean([len(ids) - p for ids, p in rows_of(e)]),
                "ended": mean([ids[-1] == EOS for ids, _ in rows_of(e)]), "tokens": len(value),
                "value/mean": mean(value), "return/mean": mean(returns),
                "value/explained_variance":
                    1 - variance([r - v for r, v in zip(returns, value)]) / variance(returns)}
    for name, number in expected.items():
        assert got[name] == pytest.approx(number, rel=1e-4), name


def test_equal_returns_leave_nothing_to_explain():
    """There is no share of a variance of nothing."""
    x = scene()
    e = roll(x)
    e.returns = e.mask.float()
    assert ppo.rollout_metrics(e, x.world)["value/explained_variance"] is None


def test_prompts_come_in_shuffled_rounds():
    """Trap 24: ranks share an iteration's episodes; each prompt comes once before any comes twice;
    episodes have numbers of their own, so that no two draw the same noise."""
    prompts, s = [[i] for i in range(12)], ppo.Settings(**SETTINGS)
    one, seen, numbers = one_process(), [], []
    for iteration in range(6):
        n, mine = ppo.episode_prompts(prompts, iteration, s, one)
        numbers += n
        seen += [p for (p,) in mine]
        parts = [ppo.episode_prompts(prompts, iteration, s, world_of_ranks(r, 2, None))
                 for r in (0, 1)]
        assert sorted(parts[0][0] + parts[1][0]) == sorted(n)
        assert sorted(parts[0][1] + parts[1][1]) == sorted(mine)
    assert numbers == list(range(48))
    rounds = [seen[i : i + 12] for i in range(0, 48, 12)]
    assert all(sorted(r) == list(range(12)) for r in rounds)
    assert len(set(map(tuple, rounds))) == 4


def test_few_prompts_come_more_often():
    """Someone's own three prompts fill an iteration of eight episodes in rounds, too."""
    s = ppo.Settings(**SETTINGS)
    seen = [p for i in range(3) for (p,) in
            ppo.episode_prompts([[0], [1], [2]], i, s, one_process())[1]]
    assert collections.Counter(seen) == {0: 8, 1: 8, 2: 8}


def test_text_comes_in_rounds():
    """Trap 24, for the text of ptx: shared by the ranks, all of it used before any comes twice."""
    text, s = texts(24), ppo.Settings(**{**SETTINGS, "ptx": 1.0, "minibatch": 4})
    seen = []
    for iteration in range(3):
        whole = ppo.text_rows(text, iteration, s, one_process()).tolist()
        parts = [ppo.text_rows(text, iteration, s, world_of_ranks(r, 2, None)).tolist()
                 for r in (0, 1)]
        assert sorted(parts[0] + parts[1]) == sorted(whole) and len(whole) == 2 * 4
        seen += whole
    assert sorted(seen) == sorted(text)


# ------------------------------------------------------------------------------- does step 3 learn?

class Taste(torch.nn.Module):
    """A reward model that anyone can understand: two points for each token 3, up to where it is."""

    def forward(self, ids):
        return 2.0 * (ids == 3).cumsum(1).float() - 2.0


def trained(iterations=25, **changes):
    """A small policy after PPO against Taste: (scene, metrics of each iteration)."""
    x = scene(**{**dict(batch=32, minibatch=16, micro_batch=16, beta=0.0, unfinished=-3.0,
                        clip=1.0), **changes})
    x.policy, x.reward, x.value = tiny(loud=2.0), Taste(), tiny_scalar(loud=1.0)
    x.reference, history = copy.deepcopy(x.policy), []
    x.optimizers = [make_optimizer(x.policy, 0.01, 0.0, 1e-5), make_optimizer(x.value, 0.01, 0.0)]
    x.s.lr = x.s.value_lr = 0.01
    text = torch.tensor(texts()[:8])
    for i in range(iterations):
        numbers, prompts = ppo.episode_prompts(4 * PROMPTS, i, x.s, x.world)
        e = roll(x, prompts, numbers)
        own = text if x.s.ptx else torch.zeros(0, 1, dtype=torch.long)
        metrics = ppo.update(x.policy, x.value, x.optimizers, x.ema, e, own, 0.01, i, x.s, x.world)
        history.append({**ppo.rollout_metrics(e, x.world), **metrics})
    return x, history


def mean_of(history, name):
    return sum(m[name] for m in history) / len(history)


def test_ppo_learns_what_the_reward_model_likes():
    """The score goes up, and with it the KL from the reference."""
    _, history = trained()
    assert mean_of(history[-5:], "score") > mean_of(history[:3], "score") + 2
    assert mean_of(history[-5:], "kl") > 1 and history[0]["kl"] == pytest.approx(0, abs=1e-4)


def test_the_value_function_learns_to_predict_the_return():
    """Shown the same episodes again and again, it explains their returns, token by token."""
    x = scene(clip_value=100.0)
    x.optimizers[1] = make_optimizer(x.value, 0.01, 0.0)
    x.s.value_lr, e = 0.01, roll(x)
    losses = [update(x, e)["loss/value"] for _ in range(60)]
    assert losses[-1] < 0.05 * losses[0]


def test_a_large_beta_keeps_the_policy_near_the_reference():
    free, held = trained()[1], trained(beta=2.0)[1]
    assert abs(mean_of(held[-5:], "kl")) < 0.5 * mean_of(free[-5:], "kl")
    assert mean_of(held[-5:], "score") < mean_of(free[-5:], "score")


def test_ptx_keeps_the_text():
    """The mean text loss falls with ptx, and does not without it."""
    def text_loss(model):
        rows = [(ids, 1) for ids in texts()[:8]]
        return float(sft_oracle(model, rows).detach())

    (plain, _), (mixed, history) = trained(), trained(ptx=1.0)
    assert text_loss(mixed.policy) < text_loss(plain.policy) - 0.3
    assert history[-1]["loss/ptx"] < history[0]["loss/ptx"] - 0.2
    assert mean_of(history[-5:], "score") > mean_of(history[:3], "score") + 0.5


@pytest.mark.parametrize("ptx", [0.0, 0.3])
def test_text_rows_lie_where_the_model_is(ptx):
    """Also where there are none: their number is stacked with that of the episodes' tokens."""
    world, s = one_process(), replace(ppo.Settings(), ptx=ptx, batch=4, minibatch=4, ptx_rows=2)
    world.device = torch.device("meta")  # stands for a GPU
    assert ppo.text_rows(texts()[:4], 0, s, world).device.type == "meta"


FAULTS = """
import resource, sys, torch
from runtime.world import World
if "keep" in sys.argv:
    World(0, "cpu")
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step = lambda: [torch.ones(2**n) for n in (20, 21, 22)]
step(), step()
before = faults()
for _ in range(20):
    step()
print(faults() - before)
"""


def test_a_c_library_that_refuses_a_large_threshold_gets_a_smaller_one(monkeypatch):
    """To set the other alone is worse than nothing: it ends glibc's own adaption, at 128 KB."""
    taken, most = {}, None

    def mallopt(name, value):
        if name == -3 and value > most:
            return 0
        taken[name] = value
        return 1

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: SimpleNamespace(
        mallopt=mallopt, malloc_trim=None))
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    for most, expected in ((2**31, {-3: 2**31 - 1, -1: 2**31 - 1}),
                           (2**25, {-3: 2**25, -1: 2**31 - 1}), (0, {})):
        taken.clear()
        machine.keep_freed_memory()
        assert taken == expected


def test_where_memory_is_scarce_it_goes_back(monkeypatch):
    """What is kept fits its next use badly, and peaks grow by 40 %: only where there is room."""
    taken, trimmed = {}, []
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: SimpleNamespace(
        mallopt=lambda name, value: taken.update({name: value}) or 1, malloc_trim=trimmed.append))
    monkeypatch.setattr(machine, "available_memory", lambda: 3000)
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    for planned, kept in ((0, True), (2000, True), (2001, False), (10**12, False)):
        machine.keep_freed_memory(planned)
        assert taken == ({-3: 2**31 - 1, -1: 2**31 - 1} if kept else {-3: 2**16, -1: 2**17})
    assert trimmed == [0, 0], "what was kept until then goes back as well"


@pytest.mark.parametrize("device, processes", [("cpu", 1), ("cpu", 2), ("cuda", 1)])
def test_a_run_says_what_memory_all_its_processes_need(device, processes, demo, monkeypatch):
    """By the plan of one of them. A GPU's runs take little of the CPU's memory."""
    told, asked, planned = [], [], plan.planned
    monkeypatch.setattr(training, "keep_freed_memory", told.append)
    monkeypatch.setattr(plan, "planned", lambda *a: asked.append(a[2]) or planned(*a))
    monkeypatch.setattr(training, "refuse_others", lambda _: 1 / 0)  # what follows; enough is seen
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(training.signal, "signal", lambda *_: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.chdir(demo.folder)
    flags = ["--preset=base", "--init=scratch", "--n_layer=1", "--n_embd=16", "--n_head=2"]
    s, world = settings.parse(sft.Settings, sft.PRESETS, flags), World(0, "cpu")
    world.device, world.size = torch.device(device), processes
    with pytest.raises(ZeroDivisionError):
        training.Training(world, s, 1, (), model=tiny())
    if device == "cuda":
        assert told == asked == []
    else:
        assert told == [processes * planned("sft", s, processes)] and told[0] > 1e6
        assert asked == [processes]


def test_available_memory_is_what_the_machine_and_the_container_have(monkeypatch):
    """Files as Linux has them; of them some or none, as elsewhere; and this machine's own."""
    own = {"/proc/meminfo": "MemTotal:       16000 kB\nMemAvailable:    9000 kB\n"}
    group = "/sys/fs/cgroup/memory"
    newer = {f"{group}.max": "5000\n", f"{group}.current": "3000\n",
             f"{group}.stat": "anon 2400\ninactive_file 600\nactive_file 50\n"}
    older = {f"{group}/memory.limit_in_bytes": "5000\n",
             f"{group}/memory.usage_in_bytes": "3000\n",
             f"{group}/memory.stat": "inactive_file 1\ntotal_inactive_file 600\n"}
    files = {}

    def read(path):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    with monkeypatch.context() as here:
        here.setattr(machine.Path, "read_text", read)
        for there, expected in (
                (own, 9000 * 1024), ({**own, **newer}, 2600), ({**own, **older}, 2600),
                ({**own, **newer, f"{group}.max": "max\n"}, 9000 * 1024),
                ({**own, **newer, f"{group}.stat": "anon 2400\n"}, 9000 * 1024),
                ({"/proc/meminfo": "MemTotal:       16000 kB\n"}, math.inf), ({}, math.inf)):
            files = there
            assert machine.available_memory() == expected
    if sys.platform == "linux":
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert 0 < machine.available_memory() < total


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc")
def test_steps_use_the_memory_again_that_was_freed(tmp_path, monkeypatch):
    """A block that is given back is faulted in anew, 4 KB at a time: up to 7,168 faults a step.
    Who has set MALLOC_... in the environment is not overruled."""
    script = tmp_path / "steps.py"
    script.write_text(FAULTS)
    count = lambda *keep: int(python(tmp_path, str(script), *keep))
    assert count("keep") < 20 * 700
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert count("keep") > 20 * 7000


@pytest.mark.skipif(platform.system() != "Linux", reason="GNU's OpenMP, which says what it read")
def test_threads_wait_asleep_on_a_busy_machine_unless_their_user_chose(monkeypatch):
    fake = "import builtins, io, itertools; n = itertools.count(); real = open; " \
           "builtins.open = lambda path, *a, **k: io.StringIO(f'cpu {next(n) * %s} 0 0 9 9') " \
           "if path == '/proc/stat' else real(path, *a, **k)"

    def spins(*first, **environment):
        run = subprocess.run([sys.executable, "-c", "\n".join([*first, "import torch"])],
                             env={**os.environ, "OMP_DISPLAY_ENV": "verbose", **environment},
                             capture_output=True, text=True, check=True)
        said = re.search(r"GOMP_SPINCOUNT = '(\d+)'", run.stderr)
        return int(said[1]) if said else pytest.skip("this torch has another OpenMP")

    for name in (*startup.OWN, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    own, ticks = spins(), os.sysconf("SC_CLK_TCK") // 10  # of one busy core in a tenth of a second
    assert own > 10 * int(startup.SPINS), "PyTorch by itself waits as briefly: no need of ours"
    assert spins(fake % ticks, "import labels.sample") == int(startup.SPINS)
    assert spins(fake % 0, "import settings") == own
    assert spins(fake % ticks, "import settings", OMP_NUM_THREADS="1") == own
    assert spins(fake % ticks, "import settings", OMP_WAIT_POLICY="passive") == 0


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="Linux tells it in /proc")
@pytest.mark.parametrize("chosen, ranks, expected", [
    (None, 2, 2), ("1", 2, 1), ("3", 2, 3), ("1", 1, 1)])
def test_torchruns_ranks_share_the_cores_unless_their_user_chose(tmp_path, monkeypatch, chosen,
                                                                 ranks, expected):
    """torchrun sets OMP_NUM_THREADS=1 where its user set nothing: a 1 of the user's own stays 1.
    The machine has 4 cores here. One line says what was set, where it is we who set it."""
    (tmp_path / "rank.py").write_text(
        "import os; os.sched_getaffinity = lambda _: range(4)\n"
        "import settings, torch\nfrom runtime.world import World\nworld = World(0, 'cpu')\n"
        "words = os.environ['OMP_NUM_THREADS'], str(torch.get_num_threads())\n"
        "open(f'threads {world.rank}', 'w').write(' '.join(words))\nworld.close()")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    done = subprocess.run([sys.executable, *torchrun, "rank.py"], cwd=tmp_path, text=True,
                          capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    threads = [path.read_text() for path in tmp_path.glob("threads *")]
    taken = min(expected, os.cpu_count())  # MKL gives no more than there are
    assert threads == [f"{expected} {taken}"] * ranks
    assert done.stdout.count(f"threads of each {expected}") == (chosen is None)


def test_how_busy_a_machine_is(monkeypatch):
    ticks = iter([b"cpu  100 20 3 7 7", b"cpu  150 30 3 999 7"])  # idle time does not count
    monkeypatch.setattr(startup, "open", lambda _: io.TextIOWrapper(io.BytesIO(next(ticks))),
                        raising=False)
    monkeypatch.setattr(startup.os, "sysconf", lambda _: 100)
    monkeypatch.setattr(startup.time, "sleep", lambda _: None)
    assert startup.busy(0.4) == pytest.approx(60 / 100 / 0.4)
    monkeypatch.setattr(startup, "open", lambda _: Path("/no such").open(), raising=False)
    assert startup.busy() == 0.0

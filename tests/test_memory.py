"""What lowers memory changes no result: activation checkpointing, micro-batches by tokens, models
that wait in the CPU's memory.
"""
import copy
from types import SimpleNamespace

import pytest
import torch

import test_training as steps
from helpers import EOS, Recorder, close, one_process, same, tiny, tiny_scalar
from kernels.prefixes import PrefixTree
from model import Block, causal
from sampler import generate
from runtime import episodes
from runtime.sharding import gathered
from runtime.world import micro_batches, World
from test_resume import STAGES, Run, assert_same, whole_runs  # noqa: F401, a fixture
from test_shard import assert_equal, make, plain, ranks  # noqa: F401, a fixture

import ppo
import reward
import sft


def trees_of(monkeypatch):
    """A list that is filled with every PrefixTree that reward.py makes."""
    made = []

    class Seen(PrefixTree):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(reward, "PrefixTree", Seen)
    return made


def checkpointed(model):
    """The same model, whose backward computes each block again."""
    return World.wrap(one_process(), copy.deepcopy(model), checkpointing=True)


# ----------------------------------------------------------------------- activation checkpointing

ROWS = torch.randint(0, 12, (3, 20), generator=torch.Generator().manual_seed(0))


def of_rows(model):
    """A loss like SFT's, of a language head."""
    return model(ROWS, torch.ones_like(ROWS), objective=lambda logprob, mask: -logprob.sum())[0]


def of_a_tree(model):
    """A loss of a scalar head on rows that begin alike."""
    tree = PrefixTree([[1, 2, 3, 4, 5], [1, 2, 3, 9], [1, 2, 7]])
    return model(tree.ids, tree.positions, tree.over(causal))[tree.ends].square().sum()


@pytest.mark.parametrize("model, loss_of", [
    (tiny(dropout=0.3), of_rows), (tiny_scalar(dropout=0.3), of_a_tree)])
def test_checkpointing_changes_no_bit(model, loss_of):
    """With dropout, whose noise must be the same when a block is computed again, and the same
    afterwards, for the steps that follow."""
    seen = []
    for own in (model, checkpointed(model)):
        own.train()
        torch.manual_seed(7)
        loss = loss_of(own)
        loss.backward()
        seen.append([loss.detach(), *(p.grad for p in own.parameters()), torch.get_rng_state()])
        own.zero_grad()
    for a, b in zip(*seen, strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(8)
    assert not torch.equal(loss_of(model), seen[0][0]), "there is noise"


def test_only_the_input_of_a_block_is_kept():
    """Autograd keeps the embedding, the last norm and the head as before, and nothing of blocks."""
    kept = []
    for own in (tiny(n_layer=4, vocab_size=50), checkpointed(tiny(n_layer=4, vocab_size=50))):
        weights = {p.data_ptr() for p in own.parameters()}
        found = {}

        def keep(x):
            if (at := x.untyped_storage().data_ptr()) not in weights:
                found[at] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = of_rows(own)
        kept.append(sum(x.untyped_storage().nbytes() for x in found.values()))
        loss.backward()
    numbers = 4 * ROWS.numel() * 16  # bytes of C numbers a token
    assert kept[0] - kept[1] == pytest.approx(4 * 16 * numbers, rel=0.05)


def test_blocks_are_computed_again_in_training_only(monkeypatch):
    calls, forward = [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda *args: calls.append(1) or forward(*args))
    model = checkpointed(tiny())
    with torch.no_grad():
        of_rows(model)
    assert len(calls) == 2
    of_rows(model).backward()
    assert len(calls) == 2 + 4


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpointed_run_has_the_same_bits(demo, whole_runs, stage):
    """SFT with dropout; states, log and weights."""
    run = Run(demo, stage, f"checkpointed-{stage}", "--activation_checkpointing")
    code, output = run.ends()
    assert code == 0, output
    assert_same(run, whole_runs[stage])


# ------------------------------------------------------------------------- micro-batches by tokens

def test_micro_batches_by_tokens_count_pads_and_copies():
    lengths = [3, 40, 1, 7, 7, 2, 9, 12, 1]
    groups = micro_batches(lengths, 2, 20)
    assert [[lengths[i] for i in g] for g in groups] == [[40], [12], [9, 7], [7, 3], [2, 1, 1]]
    groups = micro_batches([5, 4, 3, 3], 1, 20, copies=[2, 2, 9, 1])
    assert groups == [[0, 1], [2], [3]], "20 tokens; 27 are a group of their own; 3"


@pytest.mark.parametrize("tokens", [1, 20, 45, 10**6])
def test_steps_by_tokens_are_the_steps_by_rows(monkeypatch, tokens):
    """The same losses and gradients as the loops over single rows, from as many passes as fit."""
    passes, trees = [], trees_of(monkeypatch)
    count = lambda model: model.register_forward_hook(lambda _, args, out: passes.append(args[0]))

    rows, model = steps.demonstrations(7), tiny()
    expected, recorder = steps.sft_oracle(model, rows), Recorder(model)
    hook = count(model)
    loss, _ = sft.train_step(model, recorder, rows, 0.1,
                             steps.sft_settings(micro_batch_tokens=tokens), one_process())
    hook.remove()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    same(recorder.steps[0], steps.gradients(expected, model))

    batch, judge = steps.rankings(7), tiny_scalar()
    (expected, _), recorder = steps.rm_oracle(judge, batch), Recorder(judge)
    hook = count(judge)
    loss, *_ = reward.train_step(judge, recorder, batch, 0.1,
                                 steps.rm_settings(micro_batch_tokens=tokens), one_process())
    hook.remove()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    same(recorder.steps[0], steps.gradients(expected, judge))

    text = torch.tensor(steps.texts()[:4])
    x = steps.scene(ptx=0.5, ptx_rows=4)
    e = steps.stale(steps.roll(x))
    metrics = steps.update(x, e, text)
    y = steps.scene(ptx=0.5, ptx_rows=4, micro_batch_tokens=tokens)
    count(y.policy), count(y.value)
    again = steps.update(y, e, text)
    for one, two in zip(y.optimizers, x.optimizers):
        same(one.steps[0], two.steps[0])
    assert again == pytest.approx(metrics, rel=1e-4, abs=1e-6)

    rows = [x for x in passes if x.dim() == 2]
    assert len(rows) + len(trees) == len(passes) and len(trees) > 0
    assert all(x.numel() <= tokens or len(x) == 1 for x in rows)
    if tokens == 1:
        assert len(passes) == 7 + 7 + 8 + 4 + 8
    if tokens == 10**6:
        assert len(passes) == 1 + 1 + 1 + 1 + 1


def test_scoring_by_tokens_is_scoring_by_rows():
    x, y = steps.scene(), steps.scene(micro_batch_tokens=12)
    a, b = steps.roll(x), steps.roll(y)
    close(b.score, a.score.tolist(), 1e-5)
    for name in ("ref_logprob", "value", "advantage"):
        close(getattr(b, name)[b.mask], getattr(a, name)[a.mask].tolist(), 1e-5)


def uneven_groups(world):
    """Rank 0 has long rows, rank 1 short ones, and a rank alone one group of them all."""
    of = lambda tokens: SimpleNamespace(micro_batch=2, micro_batch_tokens=tokens)
    lengths = [[9, 8, 9, 7, 9], [2, 1, 1, 1, 2]][world.rank]
    groups = world.micro_batches(lengths, of(10))
    assert len(groups) == 5 and sorted(sum(groups, [])) == list(range(5)) and all(groups)
    groups = world.micro_batches(lengths, of(18))
    assert len(groups) == 3 and sorted(sum(groups, [])) == list(range(5)) and all(groups)
    assert len(world.micro_batches(lengths, of(0))) == 3


def test_ranks_have_as_many_groups():
    """Shards would wait for each other for ever."""
    ranks(2, uneven_groups)


@pytest.mark.parametrize("changes, longest, tokens", [
    (dict(), 8, 0), (dict(micro_batch=1), 1, 0), (dict(micro_batch=3), 3, 0), (dict(batch=2), 2, 0),
    (dict(micro_batch_tokens=30), 0, 30), (dict(micro_batch_tokens=10**6), 8, 0)])
def test_validation_holds_no_more_tokens_than_training(monkeypatch, changes, longest, tokens):
    """As many as so many of the longest rows, or as said; else what lowers the memory of training
    would not lower that of the run. Losses and scores stay what they are."""
    world, model, judge, sizes = one_process(), tiny(), tiny_scalar(), []
    trees = trees_of(monkeypatch)
    for own in (model, judge):  # of a tree its places, all rows at the length of the longest
        own.register_forward_hook(lambda _, args, out: sizes.append(
            args[0].numel() if args[0].dim() == 2 else trees[-1].nodes.numel()))

    def held(one_alone):
        assert max(sizes) <= max(tokens, longest * one_alone, one_alone)
        sizes.clear()

    rows, s = steps.demonstrations(40), steps.sft_settings(max_new_tokens=8, **changes)
    got = sft.evaluate_loss(model, rows, s, world)
    assert len(sizes) < 40, "short rows are together"
    held(max(len(ids) for ids, _ in rows))
    assert got == pytest.approx(float(steps.sft_oracle(model, rows).detach()), rel=1e-5)

    prompts = [ids[:n] for ids, n in rows]
    monkeypatch.setattr(sft, "generate", lambda policy, prompts, *args: sampled.append(
        len(prompts) * (max(map(len, prompts)) + 8)) or whole(policy, prompts, *args))
    whole, sampled, scores = generate, [], {}
    for own in (s, steps.sft_settings(max_new_tokens=8, batch=40, micro_batch=40)):
        scores[own.batch] = sft.mean_reward(model, judge, prompts, own, world, EOS)
        if own is s:
            assert max(sampled) <= max(tokens, longest * (6 + 8))
    assert scores[s.batch] == pytest.approx(scores[40], rel=1e-5)

    sizes.clear()
    families = [own for own, _ in steps.rankings(20)]
    scores = reward.score(judge, families, steps.rm_settings(**changes), world)
    held(max(len(own) * max(map(len, own)) for own in families))
    alone = [[float(judge(torch.tensor([ids]))[0, -1].detach()) for ids in own] for own in families]
    for got, expected in zip(scores, alone, strict=True):
        close(torch.tensor(got), expected, 1e-5)


SAVES = ["--activation_checkpointing", "--micro_batch_tokens=90"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_that_save_memory_are_one(demo, plain, stage, shard):
    """All settings at once, copies and shards: DDP and FSDP2 see a block computed in backward, and
    ranks with other tokens make as many passes."""
    offload = ["--offload"] * (stage == "ppo")
    flags = {"ppo": []}.get(stage, ["--batch=5"])
    run = make(demo, stage, f"saving-{stage}-{shard}", 2, *flags, *SAVES, *offload,
               f"--shard={shard}")
    assert_equal(run, plain[stage])


# ----------------------------------------------------------------------------------------- offload

def elsewhere():
    """A world whose device is not the CPU, and which any machine has: numbers without values."""
    world = one_process()
    world.device = torch.device("meta")
    return world


def test_offloaded_weights_are_on_the_device_only_while_lent():
    world, ids = elsewhere(), torch.zeros(2, 5, dtype=torch.long, device="meta")
    assert {p.device.type for p in world.wrap(tiny_scalar()).parameters()} == {"meta"}
    model = world.wrap(tiny_scalar().eval().requires_grad_(False), offload=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with gathered(model, world.device) as lent:
        assert lent is not model and not lent.training
        assert {p.device.type for p in lent.parameters()} == {"meta"}
        scores = lent(ids)
        assert scores.shape == (2, 5) and scores.device.type == "meta"
    for k, v in model.state_dict().items():
        assert v.device.type == "cpu" and torch.equal(v, before[k])
    with gathered(model, torch.device("cpu")) as lent:
        assert lent is model, "on a CPU nothing moves"


def test_ppo_offloads_what_is_frozen_and_scores_where_the_samples_are(monkeypatch):
    """The four models of an iteration, as they are lent to it."""
    x, lent = steps.scene(), []
    for module in (ppo, episodes):
        monkeypatch.setattr(module, "gathered", lambda model, *device: lent.append(
            (model, *device)) or gathered(model, *device))
    steps.roll(x)
    cpu = torch.device("cpu")
    assert lent == [(x.policy,), (x.reference, cpu), (x.reward, cpu), (x.value, cpu)]


def offloaded_shards(world):
    """Parts wait in the CPU's memory by FSDP2's own means, and lend the same numbers."""
    from torch.distributed import fsdp
    told, original = [], fsdp.fully_shard
    fsdp.fully_shard = lambda part, **options: told.append(options) or original(part, **options)
    model = world.wrap(tiny().requires_grad_(False), shard=True, offload=True)
    assert [type(o["offload_policy"]).__name__ for o in told] == ["CPUOffloadPolicy"] * 3
    told.clear()
    world.wrap(tiny().requires_grad_(False), shard=True)
    assert all("offload_policy" not in o for o in told)
    with gathered(model, world.device) as lent, torch.no_grad():
        close(lent(ROWS, torch.ones_like(ROWS))[0],
              tiny()(ROWS, torch.ones_like(ROWS))[0].tolist(), 1e-5)


def test_shards_can_be_offloaded():
    ranks(2, offloaded_shards)

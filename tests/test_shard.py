"""--shard: each process keeps a part of the weights, and all that a reader sees stays the same.

Runs of two and more processes are forked as in test_resume.py; `make long` tries many worlds.
"""
import os
import shutil
import socket

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import harm
import kernels
import plan
import ppo
from helpers import EOS, close, tiny, tiny_scalar
from runtime import World, frozen, gathered, like, sharded
from test_resume import Run, assert_same
from test_scripts import assert_same_logs, assert_same_model

SAME = {
    "sft": ["--epochs=2", "--lr=0.002"],  # at 0.01 Adam makes 1e-5 of rounding in torch 2.11
    "reward": ["--epochs=1"],
    "ppo": ["--iterations=2", "--ptx_rows=4", "--lr=0.01", "--ema=0.5"],
}


def finish(run, size, *flags, harms=()):
    """Run with so many processes to the end, which is a good one unless they come to harm."""
    processes = run.ranks(size, *flags, harms=harms)
    for process in processes:
        process.join(60)
    hangs = [process for process in processes if process.exitcode is None]
    for process in hangs:
        process.kill()
    assert not hangs, f"hangs:\n{run.output()}"
    for process in processes:
        assert (process.exitcode != 0) == bool(harms), run.output()
    return run


def make(demo, stage, name, size, *flags):
    return finish(Run(demo, stage, name, *SAME[stage], *flags), size)


def assert_equal(run, other):
    """As good as equal: another number of ranks adds in another order."""
    assert_same_logs(other.lines(), run.lines())
    assert_same_model(run.demo, other.folder.name, run.folder.name)


UNEVEN = {  # of five rows two ranks have three and two, and so two and one micro-batches
    "sft": ["--batch=5", "--micro_batch=2"], "reward": ["--batch=5", "--micro_batch=2"], "ppo": []}


@pytest.fixture(scope="session")
def plain(demo):
    """Each stage by one process that has never heard of shards."""
    return {stage: make(demo, stage, f"plain-{stage}", 1, *UNEVEN[stage]) for stage in SAME}


@pytest.fixture(scope="session")
def shards(demo):
    """Each stage by two processes with a part of the weights each."""
    return {stage: make(demo, stage, f"shards-{stage}", 2, *UNEVEN[stage], "--shard")
            for stage in SAME}


@pytest.mark.parametrize("stage", SAME)
def test_two_processes_with_shards_are_one(demo, plain, shards, stage):
    assert_equal(shards[stage], plain[stage])
    kinds = {demo.checkpoint(runs[stage].folder.name)["kind"] for runs in (plain, shards)}
    assert kinds == {"ScalarGPT" if stage == "reward" else "GPT"}


def test_one_process_has_the_only_shard(demo, plain):
    assert_same(make(demo, "ppo", "shards-alone", 1, "--shard"), plain["ppo"])


# ---------------------------------------------------------------------------------------- rollouts

PROMPTS = [[1, 5], [3, 4, 2, 8], [7], [2, 2, 9], [4, 1], [6], [1, 8, 2, 8], [3, 3]]


def scene(world, shard):
    """Policy, reference, reward model and value function."""
    models = [tiny(), tiny(seed=7), tiny_scalar(seed=6), tiny_scalar(seed=5)]
    for frozen in models[1:3]:
        frozen.requires_grad_(False)
    return [world.wrap(model, shard) for model in models]


def roll(world, models):
    """A rollout of all ranks: [(ids, advantages)] of each episode, as lists."""
    s = ppo.Settings(max_new_tokens=8, unfinished=-2.5)
    e = ppo.rollout(*models, world.share(PROMPTS), world.share(list(range(8))), EOS, s, world)
    lengths = e.samples.lengths.tolist()
    rows = zip(e.samples.ids.tolist(), e.advantage.tolist(), lengths)
    return world.gather([(ids[:n], advantage[:n]) for ids, advantage, n in rows])


def ranks(size, work, *args):
    """Run work(world, *args) in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [harm.fork(rank_of, rank, size, port, work, args) for rank in range(size)]
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0] * size


def rank_of(rank, size, port, work, args):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    torch.set_num_threads(1)
    world = World(0, "cpu", 60)
    work(world, *args)
    world.close()


def sharded_rollout(world, file):
    models, noise = scene(world, shard=True), torch.get_rng_state()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        episodes = roll(world, models)
    counts = {e.key: e.count for e in seen.key_averages() if e.key.startswith("c10d::")}
    assert counts.pop("c10d::_allgather_base_") == 4 * 3, "four models: two blocks, and the rest"
    assert set(counts) <= {"c10d::allgather_", "c10d::allreduce_"}, "lists and sums, no weights"
    assert torch.equal(noise, torch.get_rng_state()), "the generator is left alone"
    for model in models:
        assert all(sharded(p) for p in model.parameters()), "in parts again"
        own = sum(p.to_local().numel() for p in model.parameters())
        assert own < 0.6 * sum(p.numel() for p in model.parameters())
    if world.main:
        torch.save(episodes, file)


def test_a_rollout_gathers_each_block_once(tmp_path):
    """Not once a token; and the samples are those of one process."""
    ranks(2, sharded_rollout, tmp_path / "episodes.pt")
    world = World(0, "cpu")
    alone, together = roll(world, scene(world, False)), torch.load(tmp_path / "episodes.pt")
    assert [ids for ids, _ in together] == [ids for ids, _ in alone]
    assert len({len(ids) - len(p) for (ids, _), p in zip(alone, PROMPTS)}) > 2, "of many lengths"
    for (_, a), (_, b) in zip(together, alone):
        close(torch.tensor(a), b, 1e-5)


def lent_again(world):
    """What is lent follows the weights, shares nothing afterwards, and leaves training alone."""
    model, ids = world.wrap(tiny(), shard=True), torch.arange(12).view(1, 12)
    other, mask = tiny(), torch.ones_like(ids)
    for _ in range(2):
        with gathered(model) as whole, torch.no_grad():
            close(whole(ids, mask)[0], other(ids, mask)[0].tolist(), 1e-5)
        for m in (model, other):
            m(ids, mask)[0].sum().backward()
            with torch.no_grad():
                for p in m.parameters():
                    p -= 1e-4 * p.grad
                    p.grad = None
    try:
        with gathered(model):
            raise KeyError
    except KeyError:
        assert all(sharded(p) for p in model.parameters())


def lent_bytes(world):
    """In bf16, too, what trains is gathered in float32; what is frozen, as it is kept."""
    kernels.PRODUCTS = torch.bfloat16
    m = plan.in_type(plan.MACHINES["cpu"], "bf16", 64)
    for trained in (True, False):
        model = tiny(n_embd=64, vocab_size=500)
        planned = plan.Model("", model.config, trained=trained).kept(m)
        with gathered(world.wrap(model if trained else frozen(model), shard=True)) as whole:
            measured = sum(p.untyped_storage().nbytes() for p in whole.parameters())
        assert abs(measured / planned - 1) < 0.03, (trained, measured, planned)


def test_the_plan_counts_the_bytes_that_are_lent():
    ranks(2, lent_bytes)


def test_what_is_lent_follows_the_weights():
    ranks(2, lent_again)


def test_without_ranks_nothing_is_lent_but_the_model():
    model = tiny()
    with gathered(model) as whole:
        assert whole is model
    x = torch.ones(3)
    assert like(x, x) is x


# ------------------------------------------------------------------------------------------ resume

def interrupted(demo, stage, name, size, step, *flags):
    """A run whose processes are all killed in the step after `step`."""
    run = Run(demo, stage, name, *SAME[stage], *UNEVEN[stage], *flags)
    return finish(run, size, harms=[("die", rank, step + 1) for rank in range(size)])


def resumed(demo, run, size, *flags):
    """A copy of an interrupted run, resumed with or without --shard."""
    copy = Run(demo, "sft", f"{run.folder.name}-{size}{''.join(flags)}")
    copy.arguments = [*(f for f in run.arguments if f != "--shard"),
                      f"--out=out/{copy.folder.name}", *flags]
    shutil.copytree(run.folder, copy.folder)
    finish(copy, size, "--resume")
    assert "resumed at step" in copy.output()
    return copy


def test_a_run_of_shards_may_be_resumed_by_any_ranks(demo, plain, shards):
    """With as many shards it ends with the same bits; weights, moments and averages are whole in
    its states, so that two copies, or one process, can go on too."""
    run = interrupted(demo, "ppo", "in-parts", 2, 1, "--shard")
    assert_same(resumed(demo, run, 2, "--shard"), shards["ppo"])
    assert_equal(resumed(demo, run, 2), plain["ppo"])
    assert_equal(resumed(demo, run, 1), plain["ppo"])


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_run_may_be_resumed_with_shards(demo, plain, stage):
    run = interrupted(demo, stage, f"in-one-{stage}", 1, 3)
    assert_equal(resumed(demo, run, 2, "--shard"), plain[stage])


@pytest.mark.long
@pytest.mark.parametrize("stage", SAME)
@pytest.mark.parametrize("before", [(1, ), (2, ), (2, "--shard")])
@pytest.mark.parametrize("after", [(1, ), (2, ), (2, "--shard"), (4, "--shard")])
def test_any_ranks_resume_what_any_ranks_began(demo, plain, stage, before, after):
    name = f"from-{stage}-{before}-to-{after}".translate(str.maketrans("(),' ", "_____"))
    run = interrupted(demo, stage, name, before[0], 1 if stage == "ppo" else 3, *before[1:])
    assert_equal(resumed(demo, run, *after), plain[stage])


# ------------------------------------------------------------------------------------- many worlds

@pytest.mark.long
@pytest.mark.parametrize("stage", SAME)
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("shard", [False, True])
def test_many_worlds_are_one(demo, plain, stage, size, shard):
    """Worlds of 1, 2 and 4, copies or shards, small and large micro-batches."""
    for micro in (1, 3, 8):
        run = make(demo, stage, f"world-{stage}-{size}-{shard}-{micro}", size, *UNEVEN[stage],
                   f"--micro_batch={micro}", f"--shard={shard}")
        assert_equal(run, plain[stage])

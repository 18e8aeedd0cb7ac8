"""--shard: each process keeps a part of the weights, and all that a reader sees stays the same.
Each writes its part of a run's state, which any number of processes can take up.

Runs of two and more processes are forked as in test_resume.py; `make long` tries many worlds.
"""
import io
import os
import pickle
import random
import re
import shutil
import signal
import socket
import warnings

import pytest
import torch
import torch.distributed.checkpoint
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import harm
import kernels
from runtime import plan
import ppo
from helpers import EOS, close, same, tiny, tiny_scalar
from runtime.checkpoint import checksum
from runtime.optimizer import make_optimizer
from runtime.sharding import frozen, gathered, placed_as, sharded
from runtime.states import SafeUnpickler, leaves, read_shards, write_shards
from runtime.world import World
from test_resume import Run, assert_same
from test_scripts import assert_same_logs, assert_same_model

SAME = {
    # at 0.01 Adam makes 1e-5 of rounding in torch 2.11; with seed 7 the first epoch is the best
    "sft": ["--epochs=2", "--lr=0.001", "--seed=7"],
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
    kernels.products.multiply_in(torch.bfloat16)
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
    assert placed_as(x, x) is x


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
    """With as many shards it ends with the same bits; weights, moments and averages are found by
    two copies, or one process, too."""
    run = interrupted(demo, "ppo", "in-parts", 2, 1, "--shard")
    assert_same(resumed(demo, run, 2, "--shard"), shards["ppo"])
    assert_equal(resumed(demo, run, 2), plain["ppo"])
    assert_equal(resumed(demo, run, 1), plain["ppo"])


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_run_may_be_resumed_with_shards(demo, plain, stage):
    run = interrupted(demo, stage, f"in-one-{stage}", 1, 3)
    assert_equal(resumed(demo, run, 2, "--shard"), plain[stage])


def test_the_best_epoch_so_far_is_in_parts_too(demo, shards):
    """Its weights are in a dict within a dict; here the first of two epochs stays the best."""
    assert demo.checkpoint("shards-sft")["epoch"] == 1
    run = interrupted(demo, "sft", "best-in-parts", 2, 9, "--shard")
    state = torch.load(run.states()[-1], weights_only=True)
    assert {v.device.type for v in state["parts"]["best"]["weights"].values()} == {"meta"}
    assert_same(resumed(demo, run, 2, "--shard"), shards["sft"])


@pytest.mark.long
@pytest.mark.parametrize("stage", SAME)
@pytest.mark.parametrize("before", [(1, ), (2, ), (2, "--shard")])
@pytest.mark.parametrize("after", [(1, ), (2, ), (2, "--shard"), (4, "--shard")])
def test_any_ranks_resume_what_any_ranks_began(demo, plain, stage, before, after):
    name = f"from-{stage}-{before}-to-{after}".translate(str.maketrans("(),' ", "_____"))
    run = interrupted(demo, stage, name, before[0], 1 if stage == "ppo" else 3, *before[1:])
    assert_equal(resumed(demo, run, *after), plain[stage])


# ----------------------------------------------------------------------------------- the files

def trained(world, shard):
    """{name: tensor} of a model after a step of Adam. Three ranks have a third of few of them, and
    nothing of the scalar head's bias."""
    model = world.wrap(tiny_scalar(n_embd=64, vocab_size=1000), shard)
    optimizer = make_optimizer(model, 0.01, 0.1)
    model(torch.arange(12).view(1, 12)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "adam": optimizer.state_dict()}


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns, in bytes."""
    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if torch.is_tensor(out) and not sharded(out):
            self.bytes = max(self.bytes, out.nbytes)
        return out


def written_in_parts(world, folder):
    tree = trained(world, shard=True)
    total = sum(4 * x.shape.numel() for x in leaves(tree).values() if sharded(x))
    with Largest() as seen:
        files = write_shards(folder, tree, world)
    assert 10_000 < seen.bytes <= 1000 * 64 * 4 / 2, "half of the embedding"
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata"} == set(files) == set(os.listdir(folder))
    for name, crc in files.items():
        assert checksum(folder / name) == crc
    size = (folder / f"__{world.rank}_0.distcp").stat().st_size
    assert total / 2 < size < 0.6 * total, "half, and a kilobyte for each tensor"


def read_in_parts(world, folder, file):
    """Into the shards of other ranks, or into whole tensors."""
    own = {k: x for k, x in leaves(trained(world, shard=True)).items() if sharded(x)}
    expected = torch.load(file, weights_only=True)
    for shard in (True, False):
        empty = {k: torch.full_like(x if shard else expected[k], 9.0) for k, x in own.items()}
        with Largest() as seen:
            read_shards(folder, empty)
        assert not shard or seen.bytes < 1000 * 64 * 4, "no whole embedding"
        for name, x in empty.items():
            assert torch.equal(x.full_tensor() if shard else x, expected[name]), name


def whole_to(file, folder):
    """What two ranks have written, put together by one process."""
    world = World(0, "cpu")
    own = {k: x for k, x in leaves(trained(world, False)).items()
           if torch.is_tensor(x) and x.dim()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_shards(folder, own)
    torch.save(own, file)
    return own


def test_each_rank_writes_its_part_and_any_ranks_read_it(tmp_path):
    ranks(2, written_in_parts, tmp_path / "state")
    own = whole_to(tmp_path / "whole.pt", tmp_path / "state")
    ranks(3, read_in_parts, tmp_path / "state", tmp_path / "whole.pt")
    same(list(own.values()), [x for x in leaves(trained(World(0, "cpu"), False)).values()
                              if torch.is_tensor(x) and x.dim()])


def in_folders_of_their_own(world, folder):
    try:
        write_shards(folder / f"machine {world.rank}" / "state", trained(world, True), world)
    except SystemExit as error:
        assert world.main and "machine 0 is not the same folder on all machines" in str(error)
    else:
        assert not world.main


def test_machines_that_share_no_folder_are_noticed(tmp_path):
    ranks(2, in_folders_of_their_own, tmp_path)


class Code:
    """What a pickle may do: run a command where it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("run by a pickle",)


class Attribute:
    """A pickle that asks for an attribute, as Python 3.11.0 to 3.11.3 do for an enum's member."""

    def __init__(self, *asks):
        self.asks = asks

    def __reduce__(self):
        return getattr, self.asks


def test_a_member_of_an_enumeration_is_read_as_any_python_writes_it():
    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    for content in (member, Attribute(_MEM_FORMAT_ENCODING, member.name)):
        assert SafeUnpickler(io.BytesIO(pickle.dumps(content))).load() is member


@pytest.mark.parametrize("content", [Code(), torch.distributed.checkpoint.load,
                                     Attribute(Metadata, "__init__"),
                                     Attribute(_MEM_FORMAT_ENCODING, "__init__")])
def test_no_code_in_a_folder_of_shards_is_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises(SystemExit, match="metadata is refused: it asks for "):
        read_shards(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == [".metadata"]


def test_a_damaged_part_is_noticed_and_the_state_before_is_used(demo, shards):
    run = interrupted(demo, "reward", "damaged-part", 2, 5, "--shard")
    assert [path.name[:12] for path in run.states()] == 2 * ["state-000002"] + 2 * ["state-000004"]
    part = run.folder / "state-000004" / "__1_0.distcp"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    finish(run, 2, "--resume")
    assert re.search(r"state-000004-\w+.pt is damaged", run.output())
    assert "resumed at step 2" in run.output()
    assert_same(run, shards["reward"])


def test_killed_while_parts_are_written(demo, shards):
    """One rank has half a file of the second state on the disk; who resumes takes the first and
    removes the other, and what a run of more ranks left in it."""
    run = Run(demo, "reward", "half-a-part", *SAME["reward"], *UNEVEN["reward"], "--shard")
    finish(run, 2, harms=[("kill_at_operation", 60)])
    assert [path.name[:12] for path in run.states()] == ["state-000000"] * 2 + ["state-000002"]
    (run.folder / "state-000002" / "__5_0.distcp").write_bytes(b"half")
    finish(run, 2, "--resume", harms=[("die", rank, 1) for rank in range(2)])
    assert [path.name[:12] for path in run.states()] == ["state-000000"] * 2
    finish(run, 2, "--resume")
    assert "resumed at step 0" in run.output()
    assert_same(run, shards["reward"])


def test_a_full_disk_is_one_line_of_each_rank(demo, shards):
    run = Run(demo, "reward", "full-in-parts", *SAME["reward"], *UNEVEN["reward"], "--shard")
    finish(run, 2, harms=[("disk_full", 30)])
    for rank in range(2):
        assert f"error: rank {rank}: out/full-in-parts: No space left on device" in run.output()
    assert "Traceback" not in run.output()
    assert [path.name[:12] for path in run.states()] == ["state-000000"] * 2
    finish(run, 2, "--resume")
    assert_same(run, shards["reward"])


@pytest.mark.long
@pytest.mark.parametrize("stage", SAME)
def test_a_run_of_shards_killed_ten_times_ends_with_the_same_bits(demo, shards, stage):
    """By the clock, at an operation on files of all ranks, and of one of them, in turn; whenever a
    run gets to its end, it is compared and another one begins."""
    run = Run(demo, stage, f"killed-shards-{stage}", *SAME[stage], *UNEVEN[stage], "--shard")
    dice, done = random.Random(stage), 0
    while done < 10:
        at, rank = dice.randint(1, 400), dice.randint(0, 1)
        harms = [[], [("kill_at_operation", at)], [("kill_at_operation", at, rank)]][done % 3]
        processes = run.ranks(2, "--resume", harms=harms)
        if not harms:
            processes[0].join(dice.uniform(0.5, 5))
            for process in processes:
                process.kill()
        for process in processes:
            process.join(60)
        codes = {process.exitcode for process in processes}
        assert codes <= {0, 1, -signal.SIGKILL} and "Traceback" not in run.output(), run.output()
        if codes == {0}:
            assert_same(run, shards[stage])
            shutil.rmtree(run.folder)
        done += codes != {0}
    finish(run, 2, "--resume")
    assert_same(run, shards[stage])


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

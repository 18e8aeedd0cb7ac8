"""The sampler's steps as CUDA graphs, without a GPU.

What a graph is made of can be seen without one: the operations of a step, none of which may ask for
a number, on memory that stays where it is. `Tape` records a step that way and plays it again on the
CPU. And with tensors that only claim to be on a GPU, without numbers, `generate` takes the path
that it takes there, up to its first look. What only a GPU can show is asked where there is one.
"""
import inspect
import sys
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import (DataDependentOutputException,
                                           DynamicOutputShapeException, FakeTensor, FakeTensorMode)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import kernels
import sampler
from helpers import EOS, VOCAB, close, tiny
from model import GPT, GPTConfig
from sampler import generate, Replay
from test_kernels import kernels_triton, needs_triton  # noqa: F401  the first is a fixture
from test_sampler import always, steps_of

ASKS = (DataDependentOutputException, DynamicOutputShapeException)  # for numbers
MIXED = [[(7 * i + 3 * j) % 11 for j in range(1 + i * i % 9)] for i in range(21)] + [[EOS]]
LONG = dict(seed=22, loud=3.0)  # a model whose responses to these end one by one, some not at all


class Tape(TorchDispatchMode):
    """Stands in for a CUDA graph. Recording runs nothing: it sees shapes and no numbers, and what
    asks for a number raises. Playing does each operation again, on the same tensors; it keeps none
    of them alive, as a graph does not."""

    def __init__(self, step):
        super().__init__()
        self.shapes, self.made, self.calls, self.plays = FakeTensorMode(), {}, [], 0
        with self.shapes, self:
            step()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = args, kwargs or {}
        args, kwargs = tree_map(lambda x: self.shapes.from_tensor(x) if real(x) else x, given)
        out = operation(*args, **kwargs)
        self.calls.append((operation, tree_map(lambda x: weakref.ref(x) if real(x) else x, given),
                           out))
        self.made.update((id(x), x) for x in tree_leaves(out) if isinstance(x, torch.Tensor))
        return out

    def play(self):
        now, self.plays = {}, self.plays + 1
        for operation, given, out in self.calls:
            args, kwargs = tree_map(lambda x: self.found(x, now), given)
            results = operation(*args, **kwargs)
            now.update(zip(map(id, tree_leaves(out)), tree_leaves(results)))

    def found(self, x, now):
        if isinstance(x, weakref.ref):
            assert x() is not None, "memory that the graph works on was given back"
            return x()
        return now[id(x)] if id(x) in self.made else x


def real(x):
    return isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)


def opaque(q, cache, slots, new):
    """Decode attention as one operation, as the Triton kernel is: on the CPU it looks at numbers
    while it runs, but not while it is recorded."""
    kernels.write_token(cache, *new, slots)
    return kernels.decode._decode_attention(q, cache, slots.lengths, slots.rows, list(slots.shape))


@pytest.fixture
def tapes(monkeypatch):
    """On a CPU, what differs on a GPU: graphs (tapes here, all that were made) and the products."""
    made = []

    def capture(step):
        step()
        made.append(Tape(step))
        return made[-1].play

    monkeypatch.setattr(kernels, "capture", capture)
    monkeypatch.setattr(kernels, "can_capture", lambda *_: True)
    monkeypatch.setattr(kernels, "decode_attention", opaque)
    monkeypatch.setattr(kernels.products, "ONEDNN", False)
    return made


@contextmanager
def step_by_step(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "can_capture", lambda *_: False)
        patch.setattr(sampler, "rounded", lambda rows, to=1: rows)  # rows leave at once
        yield


def assert_same(a, b, tolerance=1e-6):
    for name in ("ids", "lengths", "prompt_lengths", "ended"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    close(a.logprobs, b.logprobs.tolist(), tolerance)


def without_recording(step):
    """In place of `capture`: the same steps of the same batches, each taken as it is."""
    step()
    return step


def both(monkeypatch, tapes, model, prompts, new, tolerance=1e-6, **options):
    """Samples of steps on a tape, after comparisons: the same bits as the same steps without a
    tape, and but for rounding (products of another size) the same as rows that leave at once."""
    samples = generate(model, prompts, new, EOS, **options)
    assert tapes, "no step was recorded"
    if "watch" not in options:
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "capture", without_recording)
            assert_same(samples, generate(model, prompts, new, EOS, **options), 0)
    with step_by_step(monkeypatch):
        assert_same(samples, generate(model, prompts, new, EOS, **options), tolerance)
    return samples


# ------------------------------------------------------------------------------ as without graphs

def test_a_replay_counts_and_goes_on_from_its_own_token(tapes):
    """The first step of each batch as it is, the others from the tape; what is given stays."""
    replay = Replay(lambda token, live, t: 2 * token + 10 * live + t)
    token, live, fewer = torch.tensor([1, 2]), torch.tensor([0, 1]), torch.tensor([1])
    said = [replay(token, live, t).tolist() for t in (5, 6, 7)]
    assert said == [[7, 19], [20, 54], [47, 125]]
    assert [replay(token[1:], fewer, t).tolist() for t in (8, 9)] == [[22], [63]]
    assert token.tolist() == [1, 2] and [tape.plays for tape in tapes] == [2, 1]


@pytest.mark.parametrize("look", [1, 3, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.0, 0.7])
def test_replayed_steps_say_what_steps_say(tapes, monkeypatch, look, temperature):
    """Prompts of all lengths, rows that end at different steps or never, to the context's end."""
    monkeypatch.setattr(sampler, "LOOK", look)
    samples = both(monkeypatch, tapes, tiny(block_size=8 + 16, **LONG), MIXED, 16, seed=3,
                   temperature=temperature, episodes=[3 * i for i in range(len(MIXED))])
    assert len(set((samples.lengths - samples.prompt_lengths).tolist())) > 3
    assert temperature == 0 or int(samples.lengths.max()) == 8 + 16, "no row fills the context"


@pytest.mark.parametrize("new", [1, 2, 9])
@pytest.mark.parametrize("prompts", [[[3, 1, 4]], [[EOS]], [[3], [5, 9, 2]]])
def test_few_rows_and_few_steps(tapes, monkeypatch, prompts, new):
    both(monkeypatch, tapes, tiny(), prompts, new)


def test_rows_of_one_length_that_end_at_once(tapes, monkeypatch):
    samples = both(monkeypatch, tapes, always(EOS), [[1, 2]] * 5, 10)
    assert samples.responses() == [[]] * 5 and samples.ended.all()
    assert tapes[0].plays == sampler.LOOK - 1, "the first look ends it"
    assert both(monkeypatch, tapes, always(7), [[1, 2]] * 5, 10).responses() == [[7] * 10] * 5


def test_replayed_steps_in_bf16(tapes, monkeypatch):
    """Weights rounded once, before the first step; caches in the type of products, as on a GPU."""
    monkeypatch.setattr(kernels.products, "PRODUCTS", torch.bfloat16)
    monkeypatch.setattr(kernels, "cache_type", lambda weight: torch.bfloat16)
    both(monkeypatch, tapes, tiny(**LONG), MIXED, 15, tolerance=1e-4)
    types = [out.dtype for name, _, out in tapes[0].calls if "linear" in str(name)]
    assert types == [torch.bfloat16] * 8 + [torch.float32], "four products a layer, and the logits"


def test_what_the_cache_held_before_does_not_matter(tapes, monkeypatch):
    """Nor what rows write there that have ended and are still in the batch."""
    expected = generate(tiny(), MIXED, 10, EOS)
    real_empty = torch.empty
    monkeypatch.setattr(sampler.torch, "empty",
                        lambda *a, **k: real_empty(*a, **k).fill_(float("nan")))
    assert_same(generate(tiny(), MIXED, 10, EOS), expected)


@pytest.mark.parametrize("prompts", [MIXED, [[3, 1]]])
def test_watch_sees_the_rows_that_have_not_ended(tapes, monkeypatch, prompts):
    """At each step, whoever else may be in the graph's batch."""
    model, seen = tiny(), []
    watch = lambda rows, tokens: seen.append((rows, tokens))
    samples = both(monkeypatch, tapes, model, prompts, 12, watch=watch)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    told = [[tokens[rows.index(b)] for rows, tokens in seen[: len(seen) // 2] if b in rows]
            for b in range(len(prompts))]
    assert told == [r + [EOS] * e for r, e in zip(samples.responses(), samples.ended.tolist())]


# ------------------------------------------------------------------------------- when, how often

@pytest.mark.parametrize("look", [1, 2, 8])
def test_a_batch_of_fewer_than_half_is_captured_anew(tapes, monkeypatch, look):
    """Step by step from what was said: how many rows each graph has and how often it is played."""
    monkeypatch.setattr(sampler, "LOOK", look)
    model = tiny(block_size=40, **LONG)
    sizes = steps_of(model)
    samples = generate(model, MIXED, 30, EOS)
    said = (samples.lengths - samples.prompt_lengths - samples.ended.long()).tolist()
    batch, expected = len(MIXED), [[len(MIXED), 0]]
    for t in range(30):
        expected[-1][1] += 1
        left = sum(n > t for n in said)
        if t % look == look - 1 and left == 0:
            break
        if t % look == look - 1 and left < batch / 2 and t < 29:
            batch = left
            expected.append([left, 0])
    assert len(expected) > 1 and all(2 * b < a for (a, _), (b, _) in zip(expected, expected[1:]))
    # Of each batch the first step is taken as it is, then recorded, and the rest is played.
    assert sizes == [n for n, _ in expected for _ in range(2)]
    assert [tape.plays for tape in tapes] == [steps - 1 for _, steps in expected]


def test_a_graph_makes_room_for_the_next(tapes, monkeypatch):
    """A graph keeps the memory of all that a step makes: two at a time would be one too many."""
    graphs = []

    def capture(step):
        assert all(graph() is None for graph in graphs), "the last graph is still there"
        step()
        tape = Tape(step)
        graphs.append(weakref.ref(tape))
        return tape.play

    monkeypatch.setattr(kernels, "capture", capture)
    generate(tiny(block_size=40, **LONG), MIXED, 30, EOS)
    assert len(graphs) > 1 and graphs[-1]() is None


def pretend_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "kernels.gpu", SimpleNamespace())
    monkeypatch.setattr(kernels.choice, "_has_triton", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)


def test_only_steps_that_wait_for_nothing_are_captured(monkeypatch):
    """Not on a CPU; not where decode attention is PyTorch's, which asks for the lengths."""
    cache = torch.zeros(1)
    assert not kernels.can_capture(cache, 64)
    pretend_gpu(monkeypatch)
    assert kernels.can_capture(cache, 64) and kernels.can_capture(cache.bfloat16(), 128)
    assert not kernels.can_capture(cache, 129) and not kernels.can_capture(cache.double(), 64)
    monkeypatch.setenv("DECODE", "eager")
    assert not kernels.can_capture(cache, 64)
    monkeypatch.delenv("DECODE")
    monkeypatch.setattr(kernels.choice, "_has_triton", lambda: False)
    assert not kernels.can_capture(cache, 64)


# ------------------------------------------------------------------------------ nothing may wait

@pytest.mark.parametrize("step", [
    lambda x, i: x.max().item(), lambda x, i: x[x > 1], lambda x, i: x.tolist(),
    lambda x, i: 1 if (x > 0).any() else 0, lambda x, i: x[i[0]], lambda x, i: x.nonzero(),
    lambda x, i: x.repeat_interleave(i), lambda x, i: torch.arange(i[0])],
    ids="item mask tolist if scalar-index nonzero repeat arange".split())
def test_a_tape_refuses_what_asks_for_a_number(step):
    """What a capture would refuse on a GPU; without this the tests here would show nothing."""
    with torch.inference_mode(), pytest.raises(ASKS):
        Tape(lambda: step(torch.arange(4.0), torch.arange(4)))


def test_plain_decode_attention_asks_for_the_lengths(tapes, monkeypatch):
    monkeypatch.setattr(kernels, "decode_attention", lambda q, cache, slots, _:
                        kernels.decode.plain_decode_attention(q, cache, slots))
    with pytest.raises(ASKS):
        generate(tiny(), MIXED, 10, EOS)


def test_recording_runs_nothing():
    x = torch.zeros(3)
    tape = Tape(lambda: x.add_(1))
    assert not x.any()
    tape.play()
    assert x.tolist() == [1, 1, 1]


class OnGPU(TorchDispatchMode):
    """Every tensor that an operation takes or makes is on the GPU: nothing is copied to or from
    the CPU, and no number of the CPU's becomes part of the graph unseen. No weight is rounded:
    that is done before, once, as it takes longer than to multiply with it."""
    calls = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, out)):
            assert not isinstance(x, torch.Tensor) or x.is_cuda, f"{operation} of a CPU's tensor"
        if args and isinstance(args[0], torch.nn.Parameter) and args[0].dim() == 2:
            assert out.dtype == args[0].dtype, f"{operation} of a matrix"
        self.calls += 1
        return out


@needs_triton
@pytest.mark.skipif(not torch.backends.cuda.is_built(),
                    reason="needs a PyTorch that was built with CUDA (a GPU is not needed)")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_path_on_a_gpu_waits_for_nothing_before_its_first_look(monkeypatch, dtype):
    """All of `generate`, on tensors that claim to be on a GPU and have no numbers: reading the
    prompts, the step that is captured, and the replays up to the first look, which asks."""
    from kernels import gpu as kernels_triton
    events, T = [], 8 + 20

    def attention(q, k, v):  # of the prompts
        return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)

    def decode(q, k, v, lengths, rows, new):
        B, H, D = q.shape
        assert q.dtype == k.dtype == v.dtype == dtype and (H, D) == (2, 8)
        assert all(x.shape == q.shape and x.dtype == dtype for x in new)
        assert k.shape == v.shape == (len(MIXED), H, T, D) and k.is_contiguous()
        assert lengths.shape == rows.shape == (B,) and lengths.dtype == rows.dtype == torch.int64
        events.append("decode")
        return torch.empty_like(q)

    def capture(step):
        with OnGPU() as mode:
            step()
            events.append(mode.calls)
            step()
        events.append(mode.calls)
        return lambda: events.append("replay")

    monkeypatch.setattr(kernels_triton, "attention", attention)
    monkeypatch.setattr(kernels_triton, "decode_attention", decode)
    monkeypatch.setattr(kernels, "capture", capture)
    monkeypatch.setattr(kernels.products, "PRODUCTS", dtype)
    with FakeTensorMode():
        with torch.device("cuda"):
            model = GPT(GPTConfig(VOCAB, T, n_layer=2, n_head=2, n_embd=16)).eval()
        with pytest.raises(DataDependentOutputException):
            generate(model, MIXED, 20, EOS)
    attends = ["decode"] * 2
    first = events[2]
    assert first > 40 and events == [*attends, first, *attends, 2 * first,
                                     *["replay"] * (sampler.LOOK - 1)]


# --------------------------------------------------------------------------------- the kernel, CUDA

def test_the_triton_kernel_takes_what_the_sampler_gives(
        tapes, kernels_triton, monkeypatch):  # noqa: F811
    """The sampler over the kernel itself (interpreted, without a GPU), from tapes: rows that left,
    rows that ended and stay, lengths that grow."""
    if torch.cuda.is_available():
        pytest.skip("interprets; on a GPU see the tests below")

    @torch.library.custom_op("tests::decode", mutates_args=("cache",))
    def decode(q: torch.Tensor, cache: torch.Tensor, lengths: torch.Tensor, rows: torch.Tensor,
               shape: list[int], k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        R, H, T, D = shape
        keys = cache[0].view(R, H, D, T).mT  # a CPU's layout; on a GPU it is that of values
        wide = keys.contiguous()
        out = kernels_triton.decode_attention(q, wide, cache[1].view(R, H, T, D), lengths, rows,
                                              (k, v))
        keys.copy_(wide)
        return out

    decode.register_fake(lambda q, *_: torch.empty_like(q))
    kernel = lambda q, cache, slots, new: decode(q, cache, slots.lengths, slots.rows,
                                                 list(slots.shape), *new)
    monkeypatch.setattr(sampler, "LOOK", 2)
    with step_by_step(monkeypatch):
        expected = generate(tiny(), MIXED[:9], 9, EOS)
    monkeypatch.setattr(kernels, "decode_attention", kernel)
    assert_same(generate(tiny(), MIXED[:9], 9, EOS), expected, 1e-5)
    assert len(tapes) > 1


class Stream:
    device = "cuda:0"

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


def test_capture_takes_one_step_and_then_records(monkeypatch):
    """In the order that PyTorch asks for: what is loaded at a first call is loaded on a side
    stream, which waits for what came before and is waited for. The step runs once."""
    log = []
    main, side = Stream("main", log), Stream("side", log)

    @contextmanager
    def block(name):
        log.append(f"enter {name}")
        yield
        log.append(f"leave {name}")

    def graph(cuda_graph, stream, capture_error_mode):
        assert stream is side and cuda_graph.replay
        return block(f"capture, {capture_error_mode}")

    names = inspect.signature(torch.cuda.graph.__init__).parameters
    assert {"cuda_graph", "stream", "capture_error_mode"} <= set(names)
    for name, value in dict(current_stream=lambda: main, Stream=lambda device: side, graph=graph,
                            CUDAGraph=lambda: SimpleNamespace(replay=lambda: log.append("replay")),
                            stream=lambda stream: block(stream.name)).items():
        monkeypatch.setattr(torch.cuda, name, value)
    kernels.decode._side_stream.cache_clear()
    again = kernels.capture(lambda: log.append("step"))
    again()
    kernels.decode._side_stream.cache_clear()
    assert log == ["side waits for main", "enter side", "step", "leave side",
                   "main waits for side", "enter capture, thread_local", "step",
                   "leave capture, thread_local", "replay"]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_graphs_on_a_gpu(monkeypatch, dtype, temperature):
    """The same as the same steps without graphs; twice, the second time after other work has used
    the memory that the first gave back."""
    monkeypatch.setattr(kernels.products, "PRODUCTS", dtype)
    model, captured, capture = tiny(block_size=40, **LONG).cuda(), [], kernels.capture
    for seed in (1, 2):
        captured.clear()
        monkeypatch.setattr(kernels, "capture", lambda x: captured.append(1) or capture(x))
        graphs = generate(model, MIXED, 30, EOS, temperature, seed)
        assert len(captured) > (temperature > 0)
        monkeypatch.setattr(kernels, "capture", without_recording)
        assert_same(graphs, generate(model, MIXED, 30, EOS, temperature, seed))
        torch.full((2**24,), float("nan"), device="cuda")


@needs_gpu
@needs_triton
def test_graphs_on_a_gpu_and_rows_that_leave_at_once(monkeypatch):
    """In float32, where products of other sizes do not round to other tokens."""
    model, runs = tiny(block_size=40, **LONG).cuda(), []
    for how in ("graph", "eager"):
        monkeypatch.setenv("DECODE", how)
        seen = []
        samples = generate(model, MIXED, 30, EOS)
        generate(model, MIXED, 30, EOS, watch=lambda rows, tokens: seen.append((rows, tokens)))
        runs.append((samples, seen))
    assert_same(runs[0][0], runs[1][0], 1e-4)
    assert runs[0][1] == runs[1][1]

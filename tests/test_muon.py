"""--optimizer=muon: its steps against singular values in float64, its state, its ranks."""
import copy

import pytest
import torch

import sft
from helpers import close, tiny
from runtime import optimizer as optimizers
from runtime.optimizer import make_optimizer, take_step
from runtime.world import World
from settings import parse
from test_shard import ranks

LR, DECAY = 0.01, 0.1


def gradients_of(model, seed):
    """Random gradients in place of a loss's: {name: gradient}."""
    noise = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=noise)
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def is_muons(name, p):
    return ".h." in name and p.dim() == 2


def quintic(s):
    """What Jordan's polynomial makes of the singular values s of a matrix, in five rounds."""
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def by_singular_values(weight, gradients):
    """Steps of Muon on one matrix, in float64: Jordan's polynomial on the singular values of the
    momentum's average, each step as long as AdamW's (0.2 a weight, root mean square)."""
    w, average = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for g in gradients:
        average = 0.95 * average + 0.05 * g.double()
        u, s, v = torch.linalg.svd(0.05 * g.double() + 0.95 * average, full_matrices=False)
        w = w - LR * DECAY * w - LR * 0.2 * max(w.shape) ** 0.5 * (u * quintic(s)) @ v
    return w


def test_two_steps_of_muon():
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer, gradients = make_optimizer(model, 99.0, DECAY, muon=True), []
    for seed in (1, 2):
        gradients.append(gradients_of(model, seed))
        take_step(model, optimizer, LR, 0)
    matrices = [name for name, p in model.named_parameters() if is_muons(name, p)]
    assert len(matrices) == 4 * len(model.transformer.h)
    for name in matrices:
        expected = by_singular_values(before[name], [g[name] for g in gradients]) - before[name]
        moved = model.state_dict()[name] - before[name]
        error = (moved - expected).norm() / expected.norm()
        assert error < 0.02, f"{name}: {error:.3f}"  # the products can be in bfloat16


@pytest.mark.parametrize("instructions, kind, bound", [(True, torch.bfloat16, 0.02),
                                                       (False, torch.float32, 1e-5)])
def test_its_products_are_of_the_type_that_the_machine_multiplies_fast(
        monkeypatch, instructions, kind, bound):
    """Emulated, they took most of the demo's time on a laptop."""
    monkeypatch.setattr(optimizers, "has_bf16", lambda device: instructions)
    for shape in ((24, 72), (72, 24), (24, 24)):
        x, seen = torch.randn(shape, generator=torch.Generator().manual_seed(1)), set()
        with monkeypatch.context() as patch:
            plain = torch.addmm
            patch.setattr(torch, "addmm", lambda *parts, **scales: (
                seen.update(part.dtype for part in parts), plain(*parts, **scales))[1])
            got = optimizers.orthogonal(x)
        u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
        error = (got.double() - (u * quintic(s)) @ v).norm() / quintic(s).norm()
        assert seen == {got.dtype} == {kind} and error < bound, (shape, error)


def test_the_steps_are_the_librarys():
    """torch.optim.Muon, whose products are in bfloat16."""
    shapes = (48, 16), (16, 48), (16, 16)
    noise = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    options = dict(lr=LR, betas=(0.9, 0.95), eps=1e-8)
    pair = (optimizers.Muon(ours, DECAY, [{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}],
                            options),
            torch.optim.Muon(theirs, LR, DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"))
    for _ in range(5):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape, generator=noise)
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for a, b in zip(ours, theirs):
        assert (a - b).norm() < 0.02 * b.norm()
        kept = [optimizer.state[p]["momentum_buffer"] for optimizer, p in zip(pair, (a, b))]
        assert torch.equal(*kept), "a state that the library's wrote can be resumed"


def test_all_other_parameters_take_adamws_steps():
    ours, theirs = tiny(), tiny()
    for model, muon in ((ours, True), (theirs, False)):
        optimizer = make_optimizer(model, LR, DECAY, muon=muon)
        for seed in (1, 2):
            gradients_of(model, seed)
            optimizer.step()
    others = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert torch.equal(p, others[name]) != is_muons(name, p), name


def test_each_parameter_is_in_one_group():
    model = tiny()
    groups = make_optimizer(model, LR, DECAY, muon=True).param_groups
    assert (sorted(id(p) for group in groups for p in group["params"])
            == sorted(map(id, model.parameters())))


def test_a_state_that_was_loaded_goes_on_with_the_same_bits():
    def run(model, optimizer, seeds):
        for seed in seeds:
            gradients_of(model, seed)
            take_step(model, optimizer, LR, 1.0)

    whole, parts = tiny(), tiny()
    run(whole, make_optimizer(whole, LR, DECAY, muon=True), (1, 2, 3, 4))
    optimizer = make_optimizer(parts, LR, DECAY, muon=True)
    run(parts, optimizer, (1, 2))
    state, again = copy.deepcopy(optimizer.state_dict()), make_optimizer(parts, 1.0, 0.0, muon=True)
    again.load_state_dict(state)
    run(parts, again, (3, 4))
    for a, b in zip(whole.parameters(), parts.parameters()):
        assert torch.equal(a, b)


def a_step(world, file):
    """One step on two rows of text, whose loss the ranks share."""
    s = parse(sft.Settings, argv=["--dtype=float32", "--optimizer=muon"])
    model = world.wrap(tiny())
    optimizer = make_optimizer(model, LR, DECAY, muon=True)
    sft.train_step(model, optimizer, [([1, 2, 3, 4, 5], 1), ([6, 5, 4], 1)], LR, s, world)
    if world.main:
        torch.save([p.detach() for p in model.parameters()], file)


def test_two_ranks_take_the_step_of_one(tmp_path):
    ranks(2, a_step, tmp_path / "two.pt")
    a_step(World(0, "cpu"), tmp_path / "one.pt")
    for a, b in zip(*(torch.load(tmp_path / f"{n}.pt") for n in ("one", "two"))):
        close(a, b.tolist(), 0.05 * LR)  # gradients are added in another order; then bfloat16


def test_parts_of_matrices_are_refused():
    with pytest.raises(SystemExit, match="--optimizer=muon needs whole matrices"):
        parse(sft.Settings, argv=["--optimizer=muon", "--shard"])

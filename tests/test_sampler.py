"""The sampler = the trainer; what a row draws depends on that row alone."""
import math

import pytest
import torch

import sampler
from helpers import (EOS, VOCAB, close, sequence_logprobs, tiny)
from kernels.noise import uniform
from sampler import assembled, choose, generate, Samples

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5], [3, 5, 8, 9, 7, 9, 3, 2], [EOS, 7], [11, 0, 0]]


def sample(model, prompts=PROMPTS, new=10, **options):
    return generate(model, prompts, new, EOS, **options)


def rows_of(samples):
    """Each row's tokens, prompt and response, EOS counted: what is not pad."""
    return [row[:n] for row, n in zip(samples.ids.tolist(), samples.lengths.tolist())]


def test_samples_have_both_kinds_of_end():
    """What follows would test little if no row of the examples ended, or all did at once."""
    samples = sample(tiny())
    assert samples.ended.any() and not samples.ended.all()
    assert len(set((samples.lengths - samples.prompt_lengths).tolist())) > 3


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_sampled_log_probs_are_the_full_forward_passes(temperature):
    """Traps 16, 18: decoding token by token with a cache, ragged prompts in one batch = the whole
    sequence at once, alone; and = what the trainer computes from the padded batch."""
    model = tiny()
    samples = sample(model, temperature=temperature, seed=3)
    for row, start, logprobs in zip(rows_of(samples), samples.prompt_lengths.tolist(),
                                    samples.logprobs):
        expected = sequence_logprobs(model, row, temperature)
        close(logprobs[start : len(row)], expected[start - 1 :], 1e-5)
    trainer = model(samples.ids, samples.mask, temperature)[0]
    close(samples.logprobs, trainer.tolist(), 1e-5)


def test_log_probs_and_mask_cover_the_response_and_nothing_else():
    samples = sample(tiny())
    for row, start, end, logprobs in zip(samples.mask.tolist(), samples.prompt_lengths.tolist(),
                                         samples.lengths.tolist(), samples.logprobs.tolist()):
        expected = [start <= t < end for t in range(len(row))]
        assert row == expected
        assert [p != 0 for p in logprobs] == expected


def test_prompts_alone_or_in_any_batch_give_the_same_tokens():
    """Trap 18: the noise belongs to the episode, padding and neighbours do not matter."""
    model = tiny()
    expected = rows_of(sample(model, seed=5))
    alone = [rows_of(sample(model, [p], seed=5, episodes=[i]))[0] for i, p in enumerate(PROMPTS)]
    assert alone == expected
    order = [4, 2, 0, 5, 1, 3]
    mixed = sample(model, [PROMPTS[i] for i in order], seed=5, episodes=order)
    assert rows_of(mixed) == [expected[i] for i in order]
    assert rows_of(sample(model, seed=6)) != expected


def test_prompts_stay_as_they_are():
    """Traps 19, 29: a row begins with its prompt, token for token, EOS and all."""
    samples = sample(tiny())
    for prompt, row, response in zip(PROMPTS, rows_of(samples), samples.responses()):
        assert row[: len(prompt)] == prompt
        tail = row[len(prompt) :]
        assert response == (tail[:-1] if tail[-1] == EOS else tail)


def test_a_row_ends_at_its_first_eos():
    """Traps 11, 20: EOS counts to the response and is its last token; no EOS before it; what has
    ended does not change; a row without EOS has all its tokens and has not `ended`."""
    samples = sample(tiny(), new=10)
    for row, start, ended, whole in zip(rows_of(samples), samples.prompt_lengths.tolist(),
                                        samples.ended.tolist(), samples.ids.tolist()):
        response = row[start:]
        assert EOS not in response[:-1]
        assert (response[-1] == EOS) == ended
        assert ended or len(response) == 10
        assert set(whole[len(row) :]) <= {EOS}


def test_eos_as_the_last_allowed_token_is_an_end():
    model = tiny()
    row = next(r for r, e in zip(rows_of(sample(model)), sample(model).ended) if e)
    prompt = next(p for p in PROMPTS if row[: len(p)] == p and len(p) < len(row))
    number = PROMPTS.index(prompt)
    n = len(row) - len(prompt)
    again = sample(model, [prompt], new=n, episodes=[number])
    assert rows_of(again) == [row] and again.ended.tolist() == [True]


def always(token):
    """A model that says one token, whatever it reads."""
    model = tiny()
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        model.transformer.wte.weight[token] = 1.0
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(9.0)
    return model


def steps_of(model):
    """A list that is filled, when the model samples, with how many rows each step computes."""
    seen = []
    model.transformer.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


def test_generation_ends_when_all_rows_have_ended():
    """Trap 20: nothing runs to the limit for its own sake."""
    model = always(EOS)
    steps = steps_of(model)
    samples = sample(model, new=10)
    assert steps == [len(PROMPTS)] and samples.ended.all()
    assert samples.ids.shape[1] == max(map(len, PROMPTS)) + 1
    assert samples.responses() == [[]] * len(PROMPTS)


def test_generation_without_eos_runs_to_the_limit():
    samples = sample(always(7), new=4)
    assert not samples.ended.any()
    assert samples.responses() == [[7] * 4] * len(PROMPTS)


def test_mask_of_the_picture():
    samples = Samples(torch.zeros(2, 8), torch.tensor([3, 1]), torch.tensor([6, 8]), None,
                      torch.tensor([True, False]))
    assert samples.mask.int().tolist() == [[0, 0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1]]


def test_what_follows_an_eos_was_never_said():
    """A row that has ended may be computed on (see `Replay`); and each row returns to its place."""
    said = torch.tensor([[7, EOS, 3], [EOS, 5, 4], [8, EOS, 9]])  # [steps, B]
    worth = -torch.arange(1.0, 10.0).view(3, 3)
    samples = assembled([[1], [2], [0, 2]], torch.tensor([2, 0, 1]), said, worth, EOS)
    assert rows_of(samples) == [[2, EOS], [0, 2, 3, 4, 9], [1, 7, EOS]]
    assert samples.responses() == [[], [3, 4, 9], [7]]
    assert samples.ended.tolist() == [True, False, True]
    assert samples.prompt_lengths.tolist() == [1, 2, 1]
    assert samples.logprobs.tolist() == [[0, -2, 0, 0, 0], [0, 0, -3, -6, -9], [0, -1, -4, 0, 0]]
    assert samples.ids[0].tolist() == [2] + 4 * [EOS] and samples.ids[2, 3:].tolist() == 2 * [EOS]


@pytest.mark.parametrize("training", [True, False])
def test_sampling_switches_dropout_off_and_back(training):
    """Trap 17."""
    model = tiny(dropout=0.5).train(training)
    samples = sample(model)
    assert rows_of(samples) == rows_of(sample(tiny()))
    assert all(m.training == training for m in model.modules())


def test_the_training_flag_survives_an_error():
    """Trap 17: a prompt that does not fit must not leave the model without its dropout."""
    model = tiny().train()
    with pytest.raises(ValueError):
        sample(model, new=1000)
    assert model.training


def test_what_the_cache_held_before_does_not_matter(monkeypatch):
    """Trap 7: a fresh cache is memory that nobody has written to; here it is all NaN."""
    expected = sample(tiny())

    def nan(*args, **options):
        return torch.full(*args, float("nan"), **options) if isinstance(
            args[0], (tuple, list, torch.Size)) else torch.full(args, float("nan"), **options)

    monkeypatch.setattr(sampler.torch, "empty", nan)
    got = sample(tiny())
    assert torch.equal(got.ids, expected.ids)
    close(got.logprobs, expected.logprobs.tolist())


def test_sampling_leaves_the_model_as_it_was(monkeypatch):
    """The packed weights do not outlive the sampling, not even one that fails."""
    model = tiny().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    monkeypatch.setattr(sampler, "choose", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(model)
    monkeypatch.undo()
    assert model.training and not any(hasattr(p, "packed") for p in model.parameters())
    first = sample(model)
    assert model.state_dict().keys() == before.keys()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    second = sample(model)
    close(second.logprobs, model(second.ids, second.mask)[0].tolist(), 1e-5)
    first.logprobs.sum() * model.transformer.ln_f.weight.sum()  # no inference tensors come out


def test_ended_rows_leave_sixteen_at_a_time():
    """A step computes the rows that have not ended and fewer than 16 more; and each row is what it
    is in a batch that no other row leaves."""
    model, prompts = tiny(), 12 * PROMPTS
    seen = steps_of(model)
    heard = [[] for _ in prompts]
    samples = sample(model, prompts, watch=lambda rows, tokens: [
        heard[row].append(token) for row, token in zip(rows, tokens)])
    assert heard == [row + [EOS] * end for row, end in zip(samples.responses(),
                                                           samples.ended.tolist())]
    said = samples.lengths - samples.prompt_lengths - samples.ended.long()
    running = [int((said > t).sum()) for t in range(9)]
    expected = [len(prompts), *(min(len(prompts), -(-n // 16) * 16) for n in running if n)]
    assert seen == expected and len(set(seen)) > 3
    for i in range(0, len(prompts), 6):
        some = sample(model, prompts[i : i + 6], episodes=range(i, i + 6))
        assert rows_of(some) == rows_of(samples)[i : i + 6]


def test_a_width_holds_its_row():
    samples = sample(tiny())
    T = samples.ids.size(1)
    for n, width in zip(samples.lengths.tolist(), samples.widths.tolist()):
        assert width == min(T, next(w for w in range(0, 99, 4) if w >= n))


def test_prompts_are_read_up_to_keys_and_values():
    """The last block computes a prompt's keys and values and no more; a prompt of one token is
    read by the first step alone."""
    model, seen = tiny(), []
    for i, block in enumerate(model.transformer.h):
        block.mlp.register_forward_hook(lambda m, x, y, i=i: seen.append((i, x[0].shape[0])))
    sample(model, [[3, 1, 4], [3, 1, 5, 9]], new=1)
    assert seen == [(0, 16), (0, 2), (1, 2)]  # nodes 3, 1 and 5, and idle; a step of two rows
    seen.clear()
    sample(model, [[3], [1]], new=1)
    assert seen == [(0, 2), (1, 2)]


@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 0.15), (torch.float64, 1e-6)])
def test_sampling_in_other_types(dtype, error):
    model = tiny(loud=4.0).to(dtype)
    samples = sample(model)
    assert samples.logprobs.dtype == torch.float32
    close(samples.logprobs, model(samples.ids, samples.mask)[0].tolist(), error)


def test_long_and_short_prompts_are_read_in_groups():
    """Prompts of very different lengths, more than are read at once, each the same as alone."""
    model = tiny(block_size=120)
    lengths = [90, 2, 40, 3, 89, 1] * 14
    prompts = [[(7 * i + j) % 11 for j in range(n)] for i, n in enumerate(lengths)]
    together = rows_of(sample(model, prompts, seed=2))
    for i in (0, 1, 2, 40, 83):
        assert rows_of(sample(model, [prompts[i]], seed=2, episodes=[i])) == [together[i]]


def test_prompts_that_leave_no_room_are_refused():
    with pytest.raises(ValueError, match="prompts of 1 to 8 tokens and 17 new ones"):
        sample(tiny(), new=17)
    with pytest.raises(ValueError, match="prompts of 0 to 2 tokens"):
        sample(tiny(), [[], [1, 2]])
    assert sample(tiny(), new=16).ids.shape[1] <= 24


# ----------------------------------------------------------------------------- noise and choice

def test_noise_depends_on_seed_episode_and_step_only():
    episodes = torch.tensor([7, 0, 123456789, 3])
    noise = uniform(5, episodes, 2)
    assert noise.dtype == torch.float64 and (noise >= 0).all() and (noise < 1).all()
    assert torch.equal(uniform(5, episodes.flip(0), 2), noise.flip(0))
    assert torch.equal(uniform(5, episodes[2:3], 2), noise[2:3])
    grid = uniform(5, episodes[:, None], torch.arange(4))
    assert grid.shape == (4, 4) and torch.equal(grid[:, 2], noise)
    others = [uniform(6, episodes, 2), uniform(5, episodes + 1, 2), uniform(5, episodes, 3)]
    assert not any((other == noise).any() for other in others)


def test_noise_looks_uniform_and_independent():
    """10 bins by chi-square (9 degrees of freedom: above 33.7 once in 10,000), and no correlation
    between neighbours in episode, step or seed (standard error 1 / sqrt(n))."""
    n = 20_000
    noise = uniform(1, torch.arange(n), 0)
    counts = [int(((noise * 10).long() == i).sum()) for i in range(10)]
    assert sum((c - n / 10) ** 2 / (n / 10) for c in counts) < 33.7, counts
    by_step = torch.cat([uniform(1, torch.tensor([5]), t) for t in range(2000)])
    assert float(by_step.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / 2000) ** 0.5)
    for a, b in ((noise[:-1], noise[1:]), (noise, uniform(1, torch.arange(n), 1)),
                 (noise, uniform(2, torch.arange(n), 0))):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 4 / n**0.5


def test_the_token_is_where_the_cumulative_distribution_passes_the_noise():
    """By enumeration: over a fine grid of noise each token comes up as often as it is likely."""
    p = [0.5, 0.0, 0.2, 0.3]
    logits = torch.tensor([[math.log(x) if x else -1e9 for x in p]])
    grid = (torch.arange(1000).double() + 0.5) / 1000
    token, logp = choose(logits.expand(1000, 4), 1.0, grid)
    assert torch.bincount(token, minlength=4).tolist() == [500, 0, 200, 300]
    close(logp.exp(), [p[t] for t in token], 1e-6)
    edges, _ = choose(logits.expand(2, 4), 1.0, torch.tensor([0.0, 1 - 2**-53]))
    assert edges.tolist() == [0, 3], "the extremes are tokens that can occur"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_tempered_distribution(temperature):
    """Trap 16: the temperature divides the logits, in what is sampled and in what is reported;
    nothing else filters. 4000 episodes against the model's own probabilities."""
    model, n, prompt = tiny(), 4000, [3, 1, 4]
    samples = sample(model, [prompt] * n, new=1, temperature=temperature, seed=9)
    expected = [math.exp(sequence_logprobs(model, [*prompt, y], temperature)[-1])
                for y in range(VOCAB)]
    counts = torch.bincount(samples.ids[:, 3], minlength=VOCAB).tolist()
    for y, (count, p) in enumerate(zip(counts, expected)):
        assert abs(count / n - p) <= 4.5 * (p * (1 - p) / n) ** 0.5 + 1e-9, y
    close(samples.logprobs[:, 3], [math.log(expected[y]) for y in samples.ids[:, 3]], 1e-5)


def test_temperature_0_takes_the_likeliest_token():
    model = tiny()
    for row, start in zip(rows_of(sample(model, temperature=0)), map(len, PROMPTS)):
        for t in range(start, len(row)):
            logp = [sequence_logprobs(model, [*row[:t], y])[-1] for y in range(VOCAB)]
            assert row[t] == logp.index(max(logp))

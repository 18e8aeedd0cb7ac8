"""The objectives as pure functions, each against plain loops, enumeration or finite differences.

Where a docstring says `trap N`, the test guards against a defect that public RLHF code has had.
"""
import itertools
import math
import random

import pytest
import torch

import reward
import sft
from data import batches, records
from helpers import close, in_ranks, log_softmax, masked, tree_rows, slope, slopes
from kernels.losses import token_logprobs
from model import after, last_score
from ppo import clipped_policy_loss, clipped_value_loss, gae, shape_rewards, whiten
from reward import ranking_loss

NAN = float("nan")
# Three responses of 3, 1 and 4 tokens after prompts of 2, 4 and 1; the rest are pads.
MASK = masked([[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 0], [0, 1, 1, 1, 1, 0]])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chosen(x, mask):
    """The entries of x [B, T] that the mask marks, row by row, as Python lists."""
    return [[v for v, m in zip(xs, ms) if m] for xs, ms in zip(x.tolist(), mask.tolist())]


def wider(*xs):
    """Tensors [B, T] with three more columns of nonsense on the right; False where boolean."""
    return [torch.cat([x, torch.zeros(len(x), 3, dtype=torch.bool) if x.dtype == torch.bool
                       else 100 * noise(len(x), 3)], 1) for x in xs]


def poisoned(*xs):
    """Tensors [B, T] with NaN in every slot outside MASK."""
    return [x.masked_fill(~MASK, NAN) for x in xs]


# ---------------------------------------------------------------------------- step 1: the SFT loss

def test_sft_loss_by_hand():
    logprob = torch.tensor([[9., -1., -2.], [9., 9., -4.]])
    mask = masked([[0, 1, 1], [0, 0, 1]])
    assert sft.sft_loss(logprob, mask, 3).item() == pytest.approx((1 + 2 + 4) / 3)


def test_sft_loss_counts_response_tokens_and_eos_only():
    """Traps 7, 11, 12: prompts and pads have no gradient, not even where they hold NaN; every
    response token has the same one, its first and its EOS among them."""
    logprob = noise(*MASK.shape).masked_fill(~MASK, NAN).requires_grad_()
    loss = sft.sft_loss(logprob, MASK, 8)
    loss.backward()
    assert loss.item() == pytest.approx(-sum(map(sum, chosen(logprob, MASK))) / 8)
    close(logprob.grad, [[-m / 8 for m in row] for row in MASK.tolist()], 0)


def test_sft_loss_does_not_depend_on_pads():
    """Trap 6."""
    logprob = noise(*MASK.shape)
    close(sft.sft_loss(*wider(logprob, MASK), 8), sft.sft_loss(logprob, MASK, 8), 1e-12)


def test_sft_rows_as_a_batch():
    """Trap 11: lengths come from the rows. A prompt or a response may hold the pad's own id (0)
    and EOS (12) anywhere; a text row has loss on all tokens but the first."""
    prompt_with_eos, text = ([5, 12, 0, 7, 0, 12], 3), ([3, 0, 12, 4], 1)
    ids, mask = batches.pad_and_mask([prompt_with_eos, text], "cpu")
    assert ids.tolist() == [[5, 12, 0, 7, 0, 12], [3, 0, 12, 4, 0, 0]]
    assert mask.tolist() == masked([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1]]).tolist()


# ------------------------------------------------------------------------ step 2: the ranking loss

RANKINGS = {  # ranks of K completions -> the pairs (better, worse) that they mean, written by hand
    (1, 2): [(0, 1)],
    (2, 1): [(1, 0)],
    (1, 1): [],
    (3, 1, 2, 2): [(1, 0), (2, 0), (3, 0), (1, 2), (1, 3)],
    (1, 1, 1, 2): [(0, 3), (1, 3), (2, 3)],
    (2, 4, 1, 3): [(2, 0), (0, 3), (3, 1), (2, 3), (0, 1), (2, 1)],
}
NINE = (4, 9, 1, 7, 2, 8, 3, 6, 5)


def explicit_loss(scores, ranks):
    """Equation 1 for one prompt, in Python floats: the mean of log(1 + e^-(r_w - r_l))."""
    terms = []
    for i in range(len(ranks)):
        for j in range(len(ranks)):
            if ranks[i] < ranks[j]:  # i is better
                terms.append(math.log1p(math.exp(-(scores[i] - scores[j]))))
    return sum(terms) / len(terms)


def loss_of(scores_and_ranks):
    """The loss that reward.py computes for a batch of (scores, ranks), and its scores."""
    rows = [([[1]] * len(ranks), records.untied_pairs(ranks)) for _, ranks in scores_and_ranks]
    _, pairs, weights = reward.collate(rows, len(rows), "cpu")
    scores = torch.tensor([s for own, _ in scores_and_ranks for s in own], requires_grad=True)
    return reward.ranking_loss(scores, pairs, weights), scores


def test_pairs_of_a_ranking():
    for ranks, pairs in RANKINGS.items():
        assert sorted(records.untied_pairs(list(ranks))) == sorted(pairs), ranks
    assert len(records.untied_pairs(NINE)) == 9 * 8 / 2


@pytest.mark.parametrize("ranks", [r for r, pairs in RANKINGS.items() if pairs] + [NINE])
def test_ranking_loss_is_the_mean_over_the_ordered_pairs(ranks):
    """Trap 1: divided by the number of pairs once, for K = 2, 4 and 9, with and without ties."""
    scores = noise(len(ranks)).tolist()
    assert loss_of([(scores, ranks)])[0].item() == pytest.approx(explicit_loss(scores, ranks))


def test_each_prompt_counts_once_whatever_its_k():
    """Trap 1: the batch loss is the mean over prompts of the mean over a prompt's pairs."""
    batch = [(noise(len(r), seed=i).tolist(), r) for i, r in
             enumerate([(1, 2), NINE, (1, 1, 1, 2), (2, 4, 1, 3)])]
    expected = sum(explicit_loss(*b) for b in batch) / 4
    assert loss_of(batch)[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("margin, loss, pull", [(200.0, 0.0, 0.0), (-200.0, 200.0, -1.0),
                                                (0.0, math.log(2), -0.5)])
def test_ranking_loss_at_extreme_margins(margin, loss, pull):
    """Trap 2: log(sigmoid(x)) is -inf at -200; its gradient is NaN."""
    value, scores = loss_of([([margin, 0.0], (1, 2))])
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-6)
    close(scores.grad, [pull, -pull])


def test_ranking_loss_knows_differences_only_and_no_order_of_completions():
    """Trap 13: shifting a prompt's scores, or permuting its completions, changes nothing."""
    scores, ranks = noise(4).tolist(), (2, 4, 1, 3)
    before = loss_of([(scores, ranks)])[0].item()
    assert loss_of([([s + 5 for s in scores], ranks)])[0].item() == pytest.approx(before)
    for p in itertools.permutations(range(4)):
        moved = [scores[i] for i in p], [ranks[i] for i in p]
        assert loss_of([moved])[0].item() == pytest.approx(before)


def test_all_pairs_of_a_prompt_stay_inside_it():
    """Trap 30: a prompt is one batch element; each completion is there once, no pair crosses."""
    rankings = [([[1, 2], [1, 2, 3], [4]], [(0, 1), (2, 1)]), ([[5], [6, 0]], [(1, 0)])]
    tree, pairs, weights = reward.collate(rankings, 2, "cpu")
    assert tree_rows(tree, [2, 3, 1, 1, 2]) == [[1, 2], [1, 2, 3], [4], [5], [6, 0]]
    assert pairs.tolist() == [[0, 1], [2, 1], [4, 3]]
    close(weights, [1 / 4, 1 / 4, 1 / 2])


# ------------------------------------------------------------ step 3: rewards, advantages, values

def test_rewards_by_hand():
    """The picture of ppo.py: k k k+S on the response, nothing elsewhere (trap 8)."""
    logprob, ref = torch.tensor([[0., -1., -2., -3., 0.]]), torch.tensor([[0., -2., -2., -1., 0.]])
    mask = masked([[0, 1, 1, 1, 0]])
    got = shape_rewards(logprob, ref, torch.tensor([10.0]), mask, 0.5)
    close(got, [[0, -0.5, 0, 10 + 1.0, 0]])


def test_rewards_sum_to_the_score_minus_beta_kl():
    """Trap 5: a row's rewards sum to S - beta * sum of (log pi - log ref): not a mean over the
    sequence, not clamped at 0. The KL of one sample may well be negative."""
    logprob, ref, score, beta = noise(3, 6), noise(3, 6, seed=2), noise(3, seed=3), 0.3
    got = shape_rewards(logprob, ref, score, MASK, beta)
    kl = [sum(a - b for a, b in zip(x, y)) for x, y in zip(chosen(logprob, MASK),
                                                           chosen(ref, MASK))]
    assert min(kl) < 0 < max(kl), "the example should hold both signs"
    close(got.sum(1), [float(s) - beta * k for s, k in zip(score, kl)])
    assert not got[~MASK].any()


def test_a_policy_that_has_not_moved_pays_nothing():
    """Trap 5: KL(ref, ref) is 0, exactly."""
    x, score = noise(3, 6).float(), torch.tensor([1.5, -2.0, 0.25])
    got = shape_rewards(x, x.clone(), score, MASK, 0.7)
    assert got.tolist() == [[0, 0, 0, 0, 1.5, 0], [0, 0, 0, 0, -2, 0], [0, 0, 0, 0, 0.25, 0]]


def test_expected_penalty_is_the_kl_of_the_policy_from_the_reference():
    """Trap 4: over all 25 responses of two tokens from a vocabulary of five, E_pi[sum of rewards]
    = -beta * sum pi log(pi / ref); the other direction or sign gives another number."""
    pi = [log_softmax(row) for row in noise(6, 5).tolist()]  # row 0: first token; 1 + a: after a
    ref = [log_softmax(row) for row in noise(6, 5, seed=1).tolist()]
    expectation = kl = backward_kl = 0.0
    for a, b in itertools.product(range(5), repeat=2):
        policy, reference = pi[0][a] + pi[1 + a][b], ref[0][a] + ref[1 + a][b]
        rewards = shape_rewards(torch.tensor([[pi[0][a], pi[1 + a][b]]]),
                                torch.tensor([[ref[0][a], ref[1 + a][b]]]),
                                torch.zeros(1), masked([[1, 1]]), 2.0)
        expectation += math.exp(policy) * float(rewards.sum())
        kl += math.exp(policy) * (policy - reference)
        backward_kl += math.exp(reference) * (reference - policy)
    assert kl > 0 and abs(kl - backward_kl) > 0.1
    assert expectation == pytest.approx(-2.0 * kl, rel=1e-5)


def test_rewards_know_no_pads_and_no_nan():
    """Traps 6, 7."""
    logprob, ref, score = noise(3, 6), noise(3, 6, seed=1), noise(3, seed=2)
    expected = shape_rewards(logprob, ref, score, MASK, 0.1)
    assert torch.equal(shape_rewards(*poisoned(logprob, ref), score, MASK, 0.1), expected)
    a, b, mask = wider(logprob, ref, MASK)
    got = shape_rewards(a, b, score, mask, 0.1)
    assert torch.equal(got[:, :6], expected) and not got[:, 6:].any()


def advantage_by_definition(rewards, values, discount, lam):
    """A_t = sum_k (discount lam)^k delta_{t+k} over one response: two loops, no recursion."""
    n, out = len(rewards), []
    delta = [rewards[t] + (discount * values[t + 1] if t + 1 < n else 0) - values[t]
             for t in range(n)]
    for t in range(n):
        out.append(sum((discount * lam) ** (u - t) * delta[u] for u in range(t, n)))
    return out


@pytest.mark.parametrize("discount, lam", [(1, 0.95), (0.9, 0.5), (1, 1), (0.8, 0), (0, 1)])
def test_gae_on_ragged_rows(discount, lam):
    """Traps 7, 9, 10: the vectorised recursion equals the definition on ragged lists, whatever
    prompts and pads hold (a value past the end is never bootstrapped from); return = A + V."""
    r, v = noise(3, 6), noise(3, 6, seed=1)
    for r_, v_ in ((r, v), poisoned(r, v), (r, v.masked_fill(~MASK, 1e6))):
        advantage, returns = gae(r_, v_, MASK, discount, lam)
        for i, (rs, vs) in enumerate(zip(chosen(r, MASK), chosen(v, MASK))):
            expected = advantage_by_definition(rs, vs, discount, lam)
            close(advantage[i][MASK[i]], expected)
            close(returns[i][MASK[i]], [a + b for a, b in zip(expected, vs)])
        assert not advantage[~MASK].any() and not returns[~MASK].any()


def test_gae_does_not_depend_on_pads():
    """Trap 6."""
    r, v = noise(3, 6), noise(3, 6, seed=1)
    for narrow, wide in zip(gae(r, v, MASK, 1, 0.9), gae(*wider(r, v, MASK), 1, 0.9)):
        assert torch.equal(narrow, wide[:, :6]) and not wide[:, 6:].any()


def test_the_score_reaches_back_from_the_last_token():
    """Trap 8: with V = 0, beta = 0, lambda .5 the advantage at EOS is the score, k steps before it
    score * .5^k, and 0 after: the score is at EOS and nowhere else."""
    zeros = torch.zeros(3, 6)
    rewards = shape_rewards(zeros, zeros, torch.tensor([8.0, -2.0, 16.0]), MASK, 0.0)
    advantage, _ = gae(rewards, zeros, MASK, 1.0, 0.5)
    close(advantage, [[0, 0, 2, 4, 8, 0], [0, 0, 0, 0, -2, 0], [0, 2, 4, 8, 16, 0]])


def moments(xs):
    mean = sum(xs) / len(xs)
    return mean, sum((x - mean) ** 2 for x in xs) / len(xs)


def test_whitened_has_mean_0_and_variance_1():
    """Traps 3, 6, 7: over the masked tokens of the whole batch; the mean is not put back."""
    x = 5 + 3 * noise(3, 6)
    expected_mean, variance = moments(sum(chosen(x, MASK), []))
    for x_, mask in ((x, MASK), (*poisoned(x), MASK), wider(x, MASK)):
        got = whiten(x_, mask)
        assert moments(sum(chosen(got, mask), [])) == (pytest.approx(0, abs=1e-6),
                                                       pytest.approx(1, abs=1e-6))
        close(got[0, 2], (float(x[0, 2]) - expected_mean) / variance**0.5, 1e-5)
        assert not got[~mask].any()


@pytest.mark.parametrize("a, b", [(7.0, 0.0), (1.0, -40.0), (0.01, 3.0)])
def test_whitening_forgets_scale_and_offset(a, b):
    """Trap 3."""
    x = noise(3, 6)
    close(whiten(a * x + b, MASK), whiten(x, MASK).tolist(), 2e-4)


def test_whitening_equal_numbers_gives_zeros():
    assert not whiten(torch.full((3, 6), 4.0), MASK).any()


def test_whitening_over_ranks_is_whitening_the_whole_batch():
    """Trap 24: two ranks of which one has all the high advantages; each on its own would see
    neither."""
    x, mask = noise(4, 6), MASK[[0, 1, 2, 2]]
    x[2:] += 10
    whole = whiten(x, mask)
    parts = in_ranks(2, lambda rank, total: whiten(x[2 * rank :][:2], mask[2 * rank :][:2], total))
    close(torch.cat(parts), whole.tolist())
    assert (whiten(x[:2], mask[:2]) - whole[:2]).abs().max() > 0.5, "the ranks should matter here"


# ---------------------------------------------------------------------- step 3: the clipped losses

@pytest.mark.parametrize("ratio, advantage, loss, moves", [
    (1.0, 2.0, -2.0, True),
    (1.1, 2.0, -2.2, True),
    (1.5, 2.0, -2.4, False),  # good, and already much likelier: 1.2 * 2 is all it gets
    (0.5, 2.0, -1.0, True),  # good, but less likely now: pull it back
    (1.0, -2.0, 2.0, True),
    (1.5, -2.0, 3.0, True),  # bad and likelier: the whole blame
    (0.9, -2.0, 1.8, True),
    (0.5, -2.0, 1.6, False),  # bad, and already much less likely: 0.8 * 2
])
def test_policy_loss_by_hand(ratio, advantage, loss, moves):
    """Schulman et al. 2017, equation 7, at clip 0.2."""
    logprob = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64, requires_grad=True)
    old, a = torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[advantage]])
    got = clipped_policy_loss(logprob, old, a, masked([[1]]), 0.2, 1)
    got.backward()
    assert got.item() == pytest.approx(loss)
    assert logprob.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0)


def test_policy_gradient_by_finite_differences():
    """Traps 6, 7, 11: the mean over the minibatch's tokens; no gradient outside the mask, NaN or
    not; the last token (EOS) has its own."""
    old, advantage = noise(3, 6), noise(3, 6, seed=1)
    x = old + 0.3 * noise(3, 6, seed=2)
    loss = lambda y: clipped_policy_loss(y, old, advantage, MASK, 0.2, 8)
    expected = slopes(loss, x)
    assert (expected[MASK] == 0).any() and (expected[MASK] != 0).any()
    bad_x, bad_old, bad_advantage = poisoned(x, old, advantage)
    bad_x.requires_grad_()
    got = clipped_policy_loss(bad_x, bad_old, bad_advantage, MASK, 0.2, 8)
    got.backward()
    assert got.item() == pytest.approx(float(loss(x)))
    close(bad_x.grad, expected.tolist())
    assert not bad_x.grad[~MASK].any() and bad_x.grad[1, 4] != 0


@pytest.mark.parametrize("value, old, target, loss, moves", [
    (1.0, 1.0, 3.0, 2.0, True),
    (1.1, 1.0, 3.0, 1.805, True),
    (2.0, 1.0, 3.0, 1.62, False),  # ran ahead: counts as 1.2, 1.8 from the target
    (0.0, 1.0, 3.0, 4.5, True),  # went the wrong way: the larger error counts
    (5.0, 1.0, 3.0, 2.0, True),  # overshot: 2.0 > 1.62
])
def test_value_loss_by_hand(value, old, target, loss, moves):
    """Half the larger of two squared errors, the value's and that of the value clipped at 0.2."""
    v = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    got = clipped_value_loss(v, torch.tensor([[old]]), torch.tensor([[target]]), masked([[1]]),
                             0.2, 1)
    got.backward()
    assert got.item() == pytest.approx(loss)
    assert v.grad.item() == pytest.approx(value - target if moves else 0.0)


def test_value_gradient_by_finite_differences():
    """Trap 6."""
    old, returns = noise(3, 6), noise(3, 6, seed=1)
    x = (old + 0.4 * noise(3, 6, seed=2)).requires_grad_()
    loss = lambda y: clipped_value_loss(y, old, returns, MASK, 0.2, 8)
    loss(x).backward()
    close(x.grad, slopes(loss, x).tolist())
    assert not x.grad[~MASK].any()


@pytest.mark.parametrize("where", ["value", "old", "returns"])
def test_value_loss_knows_no_nan(where):
    """Trap 7: NaN in masked slots reaches neither the loss nor, through 0 * NaN, its gradient."""
    x = {"value": noise(3, 6), "old": noise(3, 6, seed=1), "returns": noise(3, 6, seed=2)}
    clean = x["value"].clone().requires_grad_()
    expected = clipped_value_loss(clean, x["old"], x["returns"], MASK, 0.2, 8)
    expected.backward()
    (x[where],) = poisoned(x[where])
    x["value"].requires_grad_()
    got = clipped_value_loss(x["value"], x["old"], x["returns"], MASK, 0.2, 8)
    got.backward()
    assert torch.equal(got, expected)
    close(x["value"].grad, clean.grad.tolist())


def test_clipped_losses_do_not_depend_on_pads():
    """Trap 6."""
    x = noise(3, 6), noise(3, 6, seed=1), noise(3, 6, seed=2)
    for loss in (clipped_policy_loss, clipped_value_loss):
        close(loss(*wider(*x, MASK), 0.2, 8), loss(*x, MASK, 0.2, 8), 1e-12)


def test_the_value_of_a_state_is_read_before_its_token():
    """Trap 14: V_t is the score at t - 1, which has not seen token t. Before the first token there
    is no state, and the last score (after EOS) is nobody's value."""
    close(after(torch.tensor([[5., 6., 7.], [1., 2., 3.]])), [[0, 5, 6], [0, 1, 2]], 0)


def test_the_reward_model_reads_its_last_token():
    """Trap 13: the score of a response is at its last token, never at a pad or at x[:, -1]."""
    scores = torch.tensor([[1., 2., 3., NAN], [4., NAN, NAN, NAN], [5., 6., 7., 8.]])
    assert last_score(scores, torch.tensor([3, 1, 4])).tolist() == [3, 4, 8]


# ---------------------------------------------------------- all steps: log-probs of chosen tokens

def by_hand(x, w, y, temperature=1.0):
    """(log-probs, entropies) of tokens as two Python lists, in float64."""
    logprob, entropy = [], []
    for row, target in zip(x.tolist(), y.tolist()):
        logp = log_softmax([sum(a * b for a, b in zip(row, v)) / temperature for v in w.tolist()])
        logprob.append(logp[target])
        entropy.append(-sum(math.exp(p) * p for p in logp))
    return logprob, entropy


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_token_logprobs_and_entropies(temperature):
    x, w, y = noise(7, 3), noise(5, 3, seed=1), torch.tensor([0, 4, 2, 2, 1, 3, 0])
    expected = by_hand(x, w, y, temperature)
    got = token_logprobs(x.float(), w.float(), y, temperature, True)
    for mine, theirs in zip(got, expected):
        close(mine, theirs, 1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprob_gradients(temperature):
    """Any upstream gradient of each log-prob (g) and each entropy (h): PPO needs a different one
    for each token. Against finite differences of the float64 lists."""
    x, w, y = noise(4, 3), noise(5, 3, seed=1), torch.tensor([0, 4, 2, 2])
    g, h = noise(4, seed=2), noise(4, seed=3)

    def total(x, w):
        logprob, entropy = by_hand(x, w, y, temperature)
        return sum(a * float(b) for a, b in zip(logprob + entropy, [*g, *h]))

    x32, w32 = x.float().requires_grad_(), w.float().requires_grad_()
    logprob, entropy = token_logprobs(x32, w32, y, temperature, True)
    ((logprob * g.float()).sum() + (entropy * h.float()).sum()).backward()
    close(x32.grad, slopes(lambda x: total(x, w), x).tolist(), 1e-5)
    close(w32.grad, slopes(lambda w: total(x, w), w).tolist(), 1e-5)


def test_entropy_is_computed_only_if_asked_for():
    x, w, y = noise(2, 3).float(), noise(5, 3).float(), torch.tensor([1, 2])
    assert token_logprobs(x, w, y)[1] is None
    close(token_logprobs(x, 0 * w, y, 1.0, True)[1], [math.log(5)] * 2)


def test_many_tokens_are_the_same_as_few():
    """The kernel works through its rows in pieces: where they begin and end must not show."""
    x, w = noise(2500, 3).float(), noise(11, 3, seed=1).float()
    y = torch.arange(2500) % 11
    runs = []
    for parts in ([slice(0, 2500)], [slice(i, i + 100) for i in range(0, 2500, 100)]):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        out = torch.cat([token_logprobs(a[p], b, y[p])[0] for p in parts])
        (out * torch.linspace(-1, 1, 2500)).sum().backward()
        runs.append((out, a.grad, b.grad))
    for one, many in zip(*runs):
        close(one, many.tolist(), 1e-4)
    picked = [0, 1023, 1024, 2047, 2048, 2499]
    close(runs[0][0][picked], by_hand(x[picked], w, y[picked])[0], 1e-5)


def test_no_tokens_at_all():
    x, w = torch.zeros(0, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    logprob, _ = token_logprobs(x, w, torch.zeros(0, dtype=torch.long))
    logprob.sum().backward()
    assert logprob.shape == (0,) and not w.grad.any()


def test_huge_logits_stay_finite():
    x, w = torch.tensor([[3e4]], requires_grad=True), torch.tensor([[1.], [-1.], [0.]])
    logprob, entropy = token_logprobs(x, w, torch.tensor([1]), 1.0, True)
    (logprob + entropy).sum().backward()
    close(logprob, [-6e4])
    close(entropy, [0.0])
    assert x.grad.isfinite().all()


def test_finite_differences_agree_with_a_known_derivative():
    """The oracle itself: d(x^3)/dx = 3 x^2."""
    rng = random.Random(0)
    for _ in range(3):
        x = torch.tensor([rng.uniform(-2, 2)], dtype=torch.float64)
        assert slope(lambda y: y**3, x, 0) == pytest.approx(3 * float(x) ** 2, rel=1e-6, abs=1e-8)


# ------------------------------------------------------------------------- numbers out of the way

@pytest.mark.parametrize("log_ratio", [19.0, 60.0, 89.0, 400.0, -400.0])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_a_policy_that_moved_far_has_a_finite_gradient(log_ratio, advantage):
    """e^89 is more than float32 holds. Clamped at e^20, where no step is worth taking."""
    logprob = torch.tensor([[log_ratio, 0.1]], requires_grad=True)
    loss = clipped_policy_loss(logprob, torch.zeros(1, 2), torch.full((1, 2), advantage),
                               masked([[1, 1]]), 0.2, 2)
    loss.backward()
    ratios = [math.exp(min(log_ratio, 20.0)), math.exp(0.1)]
    expected = -sum(min(r * advantage, min(max(r, 0.8), 1.2) * advantage) for r in ratios) / 2
    assert abs(loss.item() - expected) < 1e-5 * abs(expected)
    assert logprob.grad.isfinite().all()
    moves = log_ratio < 20 and not (advantage > 0 and log_ratio > 0) and log_ratio > -80
    assert bool(logprob.grad[0, 0]) == (moves and advantage < 0)
    assert logprob.grad[0, 1] != 0  # the other token still learns


def test_whole_numbers_are_not_truncated():
    """Scores, values and rewards that somebody gives as integers mean the same as floats."""
    mask, whole = masked([[1, 1, 1], [1, 1, 0]]), lambda *x: torch.tensor(x)
    reward, value = whole([0, 0, 3], [1, 2, 7]), whole([1, 2, 3], [-1, 1, 9])
    pairs = [(gae, (reward, value, mask, 0.9, 0.95)), (gae, (reward, value, mask, 1, 1)),
             (shape_rewards, (reward, value, whole(1, 2), mask, 0.5)),
             (whiten, (reward, mask)),
             (clipped_policy_loss, (-value, -reward, reward, mask, 0.2, 5)),
             (clipped_value_loss, (value, reward, -value, mask, 0.2, 5)),
             (sft.sft_loss, (-value, mask, 5))]
    for function, given in pairs:
        floats = [x.float() if torch.is_tensor(x) and x.dtype == torch.int64 else x for x in given]
        got, expected = function(*given), function(*floats)
        for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, expected))):
            assert a.is_floating_point(), function.__name__
            close(a, b.tolist())
    of_scores = [ranking_loss(scores, whole([2, 0], [1, 0], [2, 1]), weights)
                 for scores in (whole(-3, 0, 4), torch.tensor([-3.0, 0.0, 4.0]))
                 for weights in (whole(1, 0, 2), torch.tensor([1.0, 0.0, 2.0]))]
    expected = math.log1p(math.exp(-7)) + 2 * math.log1p(math.exp(-4))
    assert all(loss.item() == pytest.approx(expected) for loss in of_scores)


def test_a_mask_of_numbers_is_refused():
    """Not read as if all of it were marked: ~1 is -2, and ~0 is -1."""
    x = noise(*MASK.shape)
    calls = [lambda m: gae(x, x, m, 0.9, 0.95), lambda m: whiten(x, m),
             lambda m: shape_rewards(x, x, x[:, 0], m, 0.5), lambda m: sft.sft_loss(x, m, 5),
             lambda m: clipped_policy_loss(x, x, x, m, 0.2, 5),
             lambda m: clipped_value_loss(x, x, x, m, 0.2, 5)]
    for call, mask in itertools.product(calls, (MASK.long(), MASK.byte(), MASK.float())):
        with pytest.raises((RuntimeError, TypeError), match="(?i)boolean"):
            call(mask)


@pytest.mark.parametrize("lam, expected", [(1.0, [-1.45118, -4.4557, 2.5396, 0.5249, -0.49]),
                                           (0.7, [-0.676979, -5.248167, 2.4846, 0.6704, -0.49])])
def test_gae_gives_the_numbers_of_rlaxs_own_test(lam, expected):
    """Theirs adds the value after the last step; ours has none there: put it into the reward."""
    reward, value = [0.0, 0.0, 1.0, 0.0, -0.5 + 0.99 * -1.0], [1.0, 4.0, -3.0, -2.0, -1.0]
    advantage, returns = gae(torch.tensor([reward]), torch.tensor([value]), masked([[1] * 5]),
                             0.99, lam)
    close(advantage, [expected], 1e-4)
    close(returns, [[a + v for a, v in zip(expected, value)]], 1e-4)

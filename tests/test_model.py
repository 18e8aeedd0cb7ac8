"""The transformer: what may depend on what."""
import math

import pytest
import torch

from helpers import (EOS, VOCAB, close, log_softmax, same, sequence_logprobs, tiny, tiny_scalar,
                     tree_rows)
from kernels.attention import causal_attention
from kernels.decode import decode_attention, Slots, write_prompt
from kernels.prefixes import PrefixTree
from model import Dropout, GPT, GPTConfig, ScalarGPT, causal, last_score


def ids_like(*rows):
    return torch.tensor(rows)


# ------------------------------------------------------------------------------------- attention

def attend(query, keys, values):
    """One query over lists of keys and values, in Python."""
    scores = [sum(a * b for a, b in zip(query, k)) / math.sqrt(len(query)) for k in keys]
    weights = [math.exp(p) for p in log_softmax(scores)]
    return [sum(w * v[d] for w, v in zip(weights, values)) for d in range(len(query))]


def test_attention_is_a_softmax_over_what_came_before():
    B, H, T, D = 2, 2, 5, 4
    torch.manual_seed(0)
    q, k, v = torch.randn(3, B, H, T, D)
    expected = [[[attend(q[b, h, t].tolist(), k[b, h, : t + 1].tolist(), v[b, h, : t + 1].tolist())
                  for t in range(T)] for h in range(H)] for b in range(B)]
    close(causal_attention(q, k, v), expected, 1e-5)


def test_decode_attention_sees_each_rows_own_length():
    """What a cache holds past a row's length may be anything, NaN and inf included (trap 7)."""
    B, H, T, D = 3, 2, 6, 4
    torch.manual_seed(0)
    q, k, v, lengths = torch.randn(B, H, D), *torch.randn(2, B, H, T, D), torch.tensor([6, 1, 4])
    slots = Slots((B, H, 16, D), lengths)
    expected = [[attend(q[b, h].tolist(), k[b, h, :n].tolist(), v[b, h, :n].tolist())
                 for h in range(H)] for b, n in enumerate(lengths)]
    for junk in (float("nan"), float("inf"), 0.0):
        for b, n in enumerate(lengths):
            k[b, :, n:] = v[b, :, n:] = junk
        cache = torch.full((2, B, H * 16 * D), junk)
        write_prompt(cache, k, v)
        close(decode_attention(q, cache, slots), expected, 1e-5)


# ------------------------------------------------------------------------------------- the models

def test_the_parameters_are_gpt2s():
    with torch.device("meta"):
        small = GPT(GPTConfig())
    assert sum(p.numel() for p in small.parameters()) == 124_439_808  # GPT-2's 124M, as published
    assert {name.split(".")[1] for name, _ in small.named_parameters()} == {
        "wte", "wpe", "h", "ln_f"}


def test_forward_gives_the_log_probs_of_the_marked_tokens():
    """Against all logits and a softmax in Python; 0 where the mask is off, and at the first token,
    which has nothing before it."""
    model, ids = tiny(), ids_like([3, 1, 4, 1, 5], [9, 2, 6, 5, 3])
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], dtype=torch.bool)
    got, entropy = model(ids, mask)
    expected = [[p if m else 0.0 for p, m in zip([0.0, *sequence_logprobs(model, row)], marks)]
                for row, marks in zip(ids.tolist(), (mask & (torch.arange(5) > 0)).tolist())]
    close(got, expected, 1e-5)
    assert entropy is None


def test_forward_gives_entropies_of_the_states_before_the_marked_tokens():
    model, ids = tiny(), ids_like([3, 1, 4, 1, 5])
    _, entropy = model(ids, torch.tensor([[0, 0, 1, 0, 1]]), 0.7, True)
    every = torch.tensor([sequence_logprobs(model, [3, 1, *([4, 1] * late), y], 0.7)[-1]
                          for late in (0, 1) for y in range(VOCAB)]).view(2, VOCAB)
    expected = -(every.exp() * every).sum(1)
    close(entropy, [[0, 0, expected[0], 0, expected[1]]], 1e-5)


@pytest.mark.parametrize("seen", ["log-probs", "scores"])
def test_nothing_sees_the_future(seen):
    """Trap 14: changing token t changes what is read at t or later, and nothing before it."""
    ids = ids_like([3, 1, 4, 1, 5, 9, 2, 6])
    if seen == "log-probs":
        read = lambda ids: tiny()(ids, torch.ones_like(ids))[0]
    else:
        read = lambda ids: tiny_scalar()(ids)
    before = read(ids)
    for t in range(1, 8):
        changed = ids.clone()
        changed[0, t] = 11
        after = read(changed)
        close(after[:, :t], before[:, :t].tolist(), 1e-6)
        assert (after - before)[0, t:].abs().min() > 1e-5, "something later should have noticed"


@pytest.mark.parametrize("pads", [1, 2, 9])
@pytest.mark.parametrize("pad_id", [0, 7, EOS])
def test_pads_on_the_right_change_nothing(pads, pad_id):
    """Traps 13, 18: log-probs, values and the reward of a response are the same under any padding,
    with any token."""
    ids, lengths = ids_like([3, 1, 4, 1, 5, 9]), torch.tensor([6])
    padded = torch.cat([ids, torch.full((1, pads), pad_id)], 1)
    mask = torch.arange(6 + pads)[None] < 6
    policy, scorer = tiny(), tiny_scalar()
    close(policy(padded, mask)[0][:, :6], policy(ids, mask[:, :6])[0].tolist())
    close(scorer(padded)[:, :6], scorer(ids).tolist())
    close(last_score(scorer(padded), lengths), last_score(scorer(ids), lengths).tolist())


def test_a_row_alone_is_the_row_in_a_batch():
    """Trap 18, and trap 13: permuting the rows permutes the scores."""
    scorer = tiny_scalar()
    rows = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3, 5], [8]]
    alone = [last_score(scorer(ids_like(r)), torch.tensor([len(r)])).item() for r in rows]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        ids = torch.zeros(4, 6, dtype=torch.long)
        for place, i in enumerate(order):
            ids[place, : len(rows[i])] = torch.tensor(rows[i])
        lengths = torch.tensor([len(rows[i]) for i in order])
        close(last_score(scorer(ids), lengths), [alone[i] for i in order], 1e-5)


ALIKE = [[3, 1, 4, 1, 5], [3, 1, 4, 9], [3, 1, 4], [2], [3, 1, 4, 1, 5], [2, 6, 5], [1, 3, 1, 4]]


def test_scores_are_no_view():
    """fully_shard hangs its hooks on what a module returns, and warns where that is a view."""
    assert not tiny_scalar()(torch.ones(2, 3, dtype=torch.long))._is_view()


def test_a_prefix_tree_holds_each_beginning_once():
    """Its nodes are the distinct beginnings of the rows; nothing is lost, the order is kept. More
    nodes fill it up to 16, and no place is one of them."""
    tree = PrefixTree(ALIKE)
    beginnings = {tuple(row[: t + 1]) for row in ALIKE for t in range(len(row))}
    assert len(beginnings) == 13 and int(tree.nodes.max()) == 12
    assert len(tree.ids) == len(tree.positions) == len(tree.places) == 16
    assert tree_rows(tree) == ALIKE
    depth = {int(tree.nodes[b, t]): t for b, row in enumerate(ALIKE) for t in range(len(row))}
    assert tree.positions[:13].tolist() == [depth[node] for node in range(13)]


def test_a_prefix_tree_has_the_scores_and_gradients_of_its_rows():
    """Each row alone is the oracle, and the gradients are those of all rows one by one."""
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5, -1.0, 2.0])
    one, many = tiny_scalar(), tiny_scalar()
    alone = torch.stack([one(torch.tensor([row]))[0, -1] for row in ALIKE])
    tree = PrefixTree(ALIKE)
    together = many(tree.ids, tree.positions, tree.over(causal))[tree.ends]
    close(together, alone.tolist(), 1e-5)
    (alone * weights).sum().backward()
    (together * weights).sum().backward()
    same([p.grad for p in many.parameters()], [p.grad for p in one.parameters()])


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="25 tokens do not fit the context of 24"):
        tiny()(torch.zeros(1, 25, dtype=torch.long), torch.ones(1, 25))


def test_the_score_head_starts_as_published():
    """N(0, 1 / (d + 1)) and bias 0 (Stiennon et al. 2020, appendix B.1)."""
    torch.manual_seed(0)
    heads = [ScalarGPT(GPTConfig(VOCAB, 8, 1, 1, 63)).score for _ in range(50)]
    weights = torch.cat([h.weight.detach().flatten() for h in heads])
    assert float(weights.std()) == pytest.approx(1 / 8, rel=0.05)
    assert not any(h.bias.any() for h in heads)


def test_dropout_acts_in_training_only():
    """Trap 17: two scoring calls are bit-equal."""
    model, ids = tiny(dropout=0.5), ids_like([3, 1, 4, 1, 5])
    read = lambda: model(ids, torch.ones_like(ids))[0]
    assert not torch.equal(read(), read())
    model.eval()
    assert torch.equal(read(), read())


def test_a_rows_dropout_is_its_own():
    """World-size invariance with dropout: what a row loses does not depend on the rows beside it,
    on padding, or on the order of calls; but on its number, the site and the place."""
    model = tiny(dropout=0.3).train()
    rows, numbers = [[3, 1, 4, 1, 5], [2, 7, 1], [3, 1, 4, 1, 5]], torch.tensor([7, 1 << 41, 8])
    ids = torch.tensor([row + [0] * (6 - len(row)) for row in rows])
    states = model.transformer(ids, owners=numbers)
    for i, row in enumerate(rows):
        alone = model.transformer(torch.tensor([row]), owners=numbers[i : i + 1])
        torch.testing.assert_close(states[i : i + 1, : len(row)], alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(states[0, :5], states[2, :5], atol=1e-3), "equal rows, other numbers"


def test_dropout_is_fair_and_independent():
    """Bernoulli in every respect that a sum can see: shares, rows, places and sites are 5 sigma or
    less from those of independent coins."""
    B, T, C, p = 256, 16, 48, 0.2
    x = torch.ones(B, T, C)
    coins = [((Dropout(p, site)(x, torch.arange(B) + first) > 0).double().view(B, -1) - 1 + p)
             / (p * (1 - p)) ** 0.5 for site, first in ((0, 0), (1, 0), (0, 1 << 40))]
    kept = Dropout(p, 0)(x, torch.arange(B))
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    first, n = coins[0], T * C
    assert abs(float(first.mean())) < 5 * (B * n) ** -0.5
    for correlations, size in ((first @ first.T / n, n), (first.T @ first / B, B)):
        off = correlations[~torch.eye(len(correlations), dtype=bool)]
        assert float(off.std()) == pytest.approx(size**-0.5, rel=0.05)
        assert float(off.abs().max()) < 7 * size**-0.5
    for other in coins[1:]:
        assert float((first * other).mean(1).std()) == pytest.approx(n**-0.5, rel=0.3)
    neighbours = (first[:, :-1] * first[:, 1:]).mean()
    assert abs(float(neighbours)) < 5 * (B * n) ** -0.5

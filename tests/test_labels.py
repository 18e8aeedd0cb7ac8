"""Simulated labelers: ranks, agreement, what they see in an answer."""
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from data import records
from labels import simulated
from test_toy import local, place  # noqa: F401  the second is a fixture


def judge(utilities, tie):
    """A labeler who finds that responses are worth exactly this."""
    return SimpleNamespace(tie=tie, generous=0.0, utility=lambda *_: np.array(utilities, float))


@pytest.mark.parametrize("utilities, tie, ranks", [
    ([3, 1, 2], 0.5, [1, 3, 2]),
    ([1, 1.2, 5], 0.5, [2, 2, 1]),
    ([3, 2.8, 1, 0.9, 0.45], 0.5, [1, 1, 2, 2, 2]),  # each is close to its neighbour
    ([0, 0, 0], 0.1, [1, 1, 1]),
    ([0.1, 0.2, 0.3], 0.0, [3, 2, 1]),
])
def test_ranks_by_hand(utilities, tie, ranks):
    assert simulated.rank(judge(utilities, tie), np.array(utilities, float)) == ranks


def test_equal_texts_share_a_rank():
    """However noisy the labeler: the same words cannot be better than themselves."""
    rng, texts = np.random.default_rng(0), ["a", "b", "a", "c", "b"]
    for _ in range(100):
        one = judge([1, 0, 1, 2, 0], 0.3)
        seen = simulated.impressions(one, np.zeros((5, 1)), texts, "train", 0.1, rng)
        ranks, likert = simulated.rank(one, seen), simulated.rate(one, seen, "train", 0.1)
        assert (ranks[0], ranks[1]) == (ranks[2], ranks[4])
        assert (likert[0], likert[1]) == (likert[2], likert[4])


def responses(n, k, seed=0):
    """(features, texts) of k different responses to each of n prompts."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 2, (k, len(simulated.FEATURES))).astype(float), list("abcdefgh"[:k]))
            for _ in range(n)]


def test_ranks_are_a_ranking():
    """From 1 without gaps, better means more worth to this labeler on the whole; Likert 1 to 7."""
    people, _ = simulated.pool(3)
    rng, ties = np.random.default_rng(0), 0
    for (x, texts), labeler in zip(responses(200, 6), itertools.cycle(people)):
        seen = simulated.impressions(labeler, x, texts, "train", 2.0, rng)
        ranks, likert = simulated.rank(labeler, seen), simulated.rate(labeler, seen, "train", 2.0)
        assert sorted(set(ranks)) == list(range(1, max(ranks) + 1))
        assert set(likert) <= set(range(1, 8))
        for i, j in itertools.permutations(range(6), 2):
            assert likert[i] >= likert[j] or ranks[i] > ranks[j] or ranks[i] == ranks[j]
        ties += max(ranks) < 6
    assert 0 < ties < 200, "some rankings should hold ties, some none"


def test_agreement_is_the_share_of_common_untied_pairs(monkeypatch):
    """Two labelers with fixed opinions. Of 6 pairs A ties (0, 3), B ties (0, 1): 4 are left."""
    opinions = {"A": [2, 1, 3, 2], "B": [1, 1, 2, 3]}
    monkeypatch.setattr(simulated, "impressions", lambda *_: None)
    monkeypatch.setattr(simulated, "rank", lambda who, _: opinions[who])
    same = total = 0
    for i in range(4):
        for j in range(i):
            a, b = opinions["A"][i] - opinions["A"][j], opinions["B"][i] - opinions["B"][j]
            if a != 0 and b != 0:
                total += 1
                same += (a > 0) == (b > 0)
    assert (same, total) == (3, 4)
    prompts = responses(5, 4)
    share, pairs = simulated.agreement(prompts, ["A", "B"], "train", 1.0, np.random.default_rng(0))
    assert share == pytest.approx(same / total) and pairs % total == 0 and pairs > 0


def test_calibration_reaches_the_agreement_that_was_asked_for():
    people, _ = simulated.pool(3)
    fit, held = responses(150, 5), responses(150, 5, seed=1)
    sharp = simulated.calibrate(fit, people, 0.726, 3)
    reached, _ = simulated.agreement(held, people, "train", sharp, np.random.default_rng(7))
    assert reached == pytest.approx(0.726, abs=0.03)
    vague, _ = simulated.agreement(held, people, "train", 0.01, np.random.default_rng(7))
    assert vague == pytest.approx(0.5, abs=0.04), "without taste only noise is left"


def test_held_out_labelers_have_a_noise_of_their_own():
    """Theirs was that of the training labelers, so that they agreed on 70 to 77 %, by world: the
    paper's agree on 77.3 %. And by the criterion that they judge models with."""
    _, heldout = simulated.pool(3)
    own = responses(150, 5)
    sharp, reached, n = simulated.calibrated(own, heldout, 0.773, 3, "evaluate", every=4)
    assert n > 1000 and reached == pytest.approx(0.773, abs=0.03)
    fresh, _ = simulated.agreement(responses(150, 5, seed=1), heldout, "evaluate", sharp,
                                   np.random.default_rng(7))
    assert fresh == pytest.approx(0.773, abs=0.03)


def test_the_agreement_is_measured_on_other_responses(monkeypatch):
    """Than those on which the sharpness is set."""
    asked = []
    monkeypatch.setattr(simulated, "agreement",
                        lambda own, *_: asked.append(own) or (0.7, len(own)))
    for every in (2, 4):
        simulated.calibrated(list(range(20)), [], 0.7, 3, "train", every)
        *fitted, measured = asked
        assert all(own == fitted[0] for own in fitted) and not set(fitted[0]) & set(measured)
        assert measured == list(range(1, 20, 2)) and len(fitted[0]) == 20 // every
        asked.clear()


def test_each_sharpness_is_measured_with_the_same_noise():
    """As if a new generator had drawn it again for each."""
    people, _ = simulated.pool(3)
    fit, low, high = responses(40, 4), 0.05, 20.0
    for _ in range(14):
        sharp = (low * high) ** 0.5
        reached, _ = simulated.agreement(fit, people, "train", sharp, np.random.default_rng(5))
        low, high = (sharp, high) if reached < 0.7 else (low, sharp)
    assert simulated.calibrate(fit, people, 0.7, 5) == sharp != 1.0


def test_labelers_are_two_groups_of_people():
    training, heldout = simulated.pool(3)
    again = simulated.pool(3)
    names = [p.name for p in training + heldout]
    assert len(set(names)) == len(names) and training and heldout
    assert all((p.taste == q.taste).all() for p, q in zip(training + heldout, again[0] + again[1]))
    assert (simulated.pool(4)[0][0].taste != training[0].taste).any()


PET = dict(type="ask", name="Anna", attribute="pet", brief=False)


def test_a_labelled_prompt_is_a_ranking_record(place):
    """Its rank order follows the gold parts when the labeler is sharp; what it had, it keeps."""
    people, _ = simulated.pool(3)
    said = ["Anna has a cat.", "Anna has a dog.", "Anna is a baker.", "I hate you, Anna."]
    record = local({"prompt": "What is the pet of Anna?", "author": "a1", "task": PET,
                    "completions": [{"text": t, "ended": True, "model": "m"} for t in said]})
    got = simulated.label(place, record, people[0], people, "train", 50.0, np.random.default_rng(0))
    records.check(got, "ranking", "here")
    assert {k: got[k] for k in record} == record
    assert got["ranks"][0] == 1 and got["ranks"].count(1) == 1
    assert len(got["flags"]) == len(got["likert"]) == len(got["expected"]) == 4
    assert got["expected"][0] == max(got["expected"]) and got["labeler"] == people[0].name


def test_labelers_see_the_faults(place):
    see = lambda text: dict(zip(simulated.FEATURES, simulated.features(place, local(PET),
                                                                     local(text))))
    assert see("Anna has a cat.")["quality"] == 1 and see("Anna has a cat.")["attempts"] == 1
    assert see("Anna has a cat.")["constraint"] == 1, "none is set, so none is broken"
    assert see("Anna has a dog.")["false"] == 1 and see("Anna has a dog.")["quality"] == 0
    assert see("I hate you, Anna.")["rude"] == 1 and see("Who cat the.")["garbled"] == 1

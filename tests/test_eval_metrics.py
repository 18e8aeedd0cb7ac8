"""evals/metrics.py: each number against a case worked out by hand and against a slow oracle."""
import itertools
import math
import random
import string
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

from evals import quac
from evals.metrics import (best_alignment, best_of_n, best_of_n_kl, bleu_counts, bleu_of, drop,
                           drop_words, entropy, exact, f1, interval, mc2, rank_correlation,
                           rouge_l, signed)
from evals.quac import NONE
from evals.squad import REFUSAL, scores
from evals.tasks import Item

WORDS = "the a red Cat, sat. on mat's mat 3 3.0 12 dog".split()


def some_text(rng, most=6):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, most)))


# ---------------------------------------------------------------------------------- answers

def slow_f1(answer, reference):
    """Precision and recall of two lists of words, word by word."""
    bags = []
    for text in (answer, reference):
        clean = "".join(c for c in text.lower() if c.isalnum() or c.isspace())
        bags.append([w for w in clean.split() if w not in ("a", "an", "the")])
    mine, theirs = bags
    if not mine or not theirs:
        return float(mine == theirs)
    left, shared = list(theirs), 0
    for word in mine:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(mine), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def test_f1_by_hand():
    # {cat, sat} and {black, cat, sat}: precision 1, recall 2/3
    assert f1("The cat sat.", ["a black cat sat"]) == pytest.approx(0.8)
    assert f1("the cat", ["dog", "Cat!"]) == 1.0  # the best reference counts
    assert f1("cat cat", ["cat"]) == pytest.approx(2 / 3)  # a bag, not a set
    assert f1("", ["the"]) == 1.0 and f1("", ["cat"]) == 0.0
    assert exact("The  Cat!", ["dog", "cat"]) == 1.0 and exact("cats", ["cat"]) == 0.0


def slow_words(text):
    """The words of a text letter by letter: no punctuation, no articles, small letters."""
    words, word = [], ""
    for letter in text + " ":
        if letter == " ":
            words += [word] if word not in ("", "a", "an", "the") else []
            word = ""
        elif letter not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~":
            word += letter.lower()
    return words


def test_f1_and_exact_are_the_slow_ones():
    rng, equal = random.Random(1), 0
    for _ in range(500):
        said, references = some_text(rng, 3), [some_text(rng, 3) for _ in range(3)]
        expected = max(slow_f1(said, r) for r in references)
        assert f1(said, references) == pytest.approx(expected), (said, references)
        same = any(slow_words(said) == slow_words(r) for r in references)
        assert exact(said, references) == same, (said, references)
        equal += same
    assert 20 < equal < 480


def test_squad_scores_a_refusal_in_two_ways():
    """The paper compares with the refusal's words, the benchmark with silence."""
    assert scores(REFUSAL, []) == dict(f1=100, exact=100, f1_squad=100, exact_squad=100)
    # "not in" of "not in background": precision 1, recall 2/3; for the benchmark it is an answer
    half = scores("Not in", [])
    assert half["f1"] == pytest.approx(80) and half["f1_squad"] == 0 == half["exact"]
    wrong = scores(REFUSAL, ["the background noise"])
    assert wrong["f1_squad"] == 0 and wrong["f1"] == pytest.approx(40)  # one word of 3 and 2


# ---------------------------------------------------------------------------------- DROP

def test_drop_words_by_hand():
    assert drop_words("The 23-yard Field goals!") == ["23.0", "yard", "field", "goals"]
    assert drop_words("4.0") == drop_words("4") == ["4.0"]
    assert drop_words("an apple, a day") == ["apple", "day"]


def test_drop_by_hand():
    assert drop(["4"], [["4"]]) == (1.0, 1.0)
    assert drop(["5 yards"], [["4 yards"]]) == (0.0, 0.0)  # the numbers do not match
    assert drop(["4 yards"], [["4"]]) == (0.67, 0.0)  # precision 1/2, recall 1
    # two references; two spans against one: 1 of 2 aligned
    assert drop(["Brady"], [["Manning"], ["Brady", "Moss"]]) == (0.5, 0.0)
    assert drop(["Moss", "Brady"], [["Brady", "Moss"]]) == (1.0, 1.0)
    assert drop([""], [["Brady"]]) == (0.0, 0.0)
    # a blank reference is none; one of articles alone is a reference of no words
    assert drop([""], [[" "]]) == drop(["Brady"], [["the"]]) == (0.0, 0.0)
    assert drop(["a"], [["Brady"], ["the"]]) == (1.0, 1.0)
    # {tom, brady} takes "Tom Brady" (1) and leaves 0 for "Moss"; the other way is 2/3 + 0
    assert drop(["Brady", "Tom Brady"], [["Tom Brady", "Moss"]]) == (0.5, 0.0)
    # 1 and 2/3 ({field, goal, 3} and {goal, 3}: precision 1, recall 2/3, F1 4/5), of three spans
    assert drop(["3 goals", "Moss"], [["Moss", "three", "3 field goals"]]) == (0.6, 0.0)
    # equal as sets, but one span is said twice: F1 aligns two of three
    assert drop(["4", "5", "5"], [["4", "5"]]) == (0.67, 0.0)


def test_alignment_is_the_best_of_all():
    rng = random.Random(2)
    for rows, columns in itertools.product((1, 2, 3, 4), repeat=2):
        scores = [[rng.random() for _ in range(columns)] for _ in range(rows)]
        wide = scores if rows <= columns else list(map(list, zip(*scores)))
        best = max(sum(wide[i][j] for i, j in enumerate(chosen)) for chosen in
                   itertools.permutations(range(len(wide[0])), len(wide)))
        assert best_alignment(scores) == pytest.approx(best)
    # greedy would take 0.9 and 0.1; the best is 0.8 and 0.8
    assert best_alignment([[0.9, 0.8], [0.8, 0.1]]) == pytest.approx(1.6)


def slow_span(said, reference):
    """F1 of two spans as sets of words, as a fraction; 0 where the reference's numbers are
    missed."""
    sets = []
    for span in (said, reference):
        words = set()
        for word in span.lower().replace("-", " ").split(" "):
            for clean in (word, "".join(c for c in word if c not in string.punctuation)):
                try:
                    words.add(float(clean))
                    break
                except ValueError:
                    pass
            else:
                words |= {clean} - {"a", "an", "the", ""}
        sets.append(words)
    mine, theirs = sets
    numbers = {x for x in theirs if isinstance(x, float)}
    if numbers and not any(x in mine for x in numbers):
        return Fraction(0)
    if not mine and not theirs:
        return Fraction(1)
    return Fraction(2 * sum(x in theirs for x in mine), len(mine) + len(theirs))


def slow_drop(said, reference):
    """The best of all ways to pair the spans, over the larger number of spans, as a fraction."""
    size = max(len(said), len(reference))
    pairs = lambda order: [(said[i], reference[j]) for i, j in enumerate(order)
                           if i < len(said) and j < len(reference)]
    return max(sum((slow_span(a, b) for a, b in pairs(order)), Fraction(0))
               for order in itertools.permutations(range(size))) / size


def test_drop_is_the_slow_one():
    """Spans with numbers, hyphens, articles and no words; 1 to 4 spans on each side."""
    rng, several = random.Random(6), 0
    words = "the a 3 3.0 12 23-yard 1,000 1000 $5 Moss Brady field-goal goal .".split()
    span = lambda: " ".join(rng.choice(words) for _ in range(rng.randint(1, 3)))
    for _ in range(400):
        said = [span() for _ in range(rng.randint(1, 4))]
        references = [[span() for _ in range(rng.randint(1, 4))] for _ in range(3)]
        expected = max(slow_drop(said, r) for r in references)
        f1, same = drop(said, references)
        assert abs(f1 - expected) <= 0.005 + 1e-9 and f1 == round(f1, 2), (said, references)
        assert not same or f1 == 1, (said, references)
        shuffled = [rng.sample(r, len(r)) for r in [*references, said]]
        assert drop(said, shuffled) == (1.0, 1.0)
        several += len(said) > 1 and 0 < f1 < 1
    assert several > 100


# ---------------------------------------------------------------------------------- QuAC

def test_quac_by_hand():
    # two of three found an answer: it counts; one of two: it does not
    assert quac.decided(["a b", NONE, "c"]) == ["a b", "c"] and quac.decided(["a", NONE]) == [NONE]
    # people: {red, cat} and {red, dog} share 1 of 2 words each: 1/2. A model that says "red cat"
    # has 1 or 1/2, with the other one left out
    assert quac.script("red cat", ["red cat", "red dog"]) == (0.75, 0.5)
    assert quac.script("cat", ["red cat"]) == (pytest.approx(2 / 3), 1.0)  # nobody to compare with
    # people have 1/3 against each other, less than 0.4: the question is ignored
    assert quac.script("red", ["red cat sat", "red dog ran"]) == (None, None)
    assert quac.script("I don't know.", [NONE, NONE, "red"]) == (1.0, 1.0)
    assert quac.script("red", [NONE, NONE, "red"]) == (0.0, 1.0)
    assert quac.script("I do not know", [NONE]) == (0.0, 1.0)  # not the refusal that was asked for


def slow_quac(text, answers):
    """QuAC's script, sum by sum; F1 by `slow_f1`. Refusals are the word itself."""
    none = sum(a == NONE for a in answers)
    if none >= len(answers) - none:
        return 1.0 * (text == NONE), 1.0
    answers, people, mine = [a for a in answers if a != NONE], 0.0, 0.0
    for i in range(len(answers)):
        others = [answers[j] for j in range(len(answers)) if j != i]
        if not others:
            return (0.0 if text == NONE else slow_f1(text, answers[0])), 1.0
        people += max(slow_f1(answers[i], r) for r in others) / len(answers)
        mine += max(0.0 if text == NONE else slow_f1(text, r) for r in others) / len(answers)
    return (mine, people) if people >= 0.4 - 1e-12 else (None, None)


def test_quac_is_the_slow_one():
    rng, ignored = random.Random(5), 0
    filled = lambda: f"{some_text(rng, 4)} {rng.choice(['sat', 'red', 'dog'])}"
    for _ in range(500):
        answers = [NONE if rng.random() < 0.3 else filled() for _ in range(rng.randint(1, 5))]
        text = NONE if rng.random() < 0.2 else filled()
        expected = slow_quac(text, answers)
        ignored += expected[0] is None
        assert quac.script(text, answers) == (
            expected if expected[0] is None else pytest.approx(expected)), (text, answers)
    assert 10 < ignored < 250


def test_quac_counts_questions_and_conversations():
    """Of a: one right, one on which people disagree, one wrong. b: all right. Of c a question was
    not asked."""
    item = lambda source, answers, n: Item("", source=source,
                                           truth={"answers": answers, "questions": n})
    items = [item("a", ["red"], 3), item("a", ["red cat sat", "red dog ran"], 3),
             item("b", ["red", "red cat"], 1), item("a", ["red"], 3), item("c", ["red"], 2)]
    out = quac.measure(items, [["red"], ["red"], ["red"], ["blue"], ["red"]], None)
    assert out["heq_q"] == [100, None, 100, 0, 100]
    assert out["heq_d"] == [None, None, 100, 0, None]
    # people have 2/3 against each other; with one left out the model has 2/3 or 1
    assert out["f1_quac"] == [100, None, pytest.approx(500 / 6), 0, 100]
    assert out["f1"] == [100, pytest.approx(50), 100, 0, 100]
    assert out["exact"] == [100, 0, 100, 0, 100]


# ---------------------------------------------------------------------------------- log-probs

def test_entropy_by_hand():
    assert entropy(-40.0, -40.0) == pytest.approx(1.0)
    # p = 3/4 and 1/4
    assert entropy(-1.0, -1.0 - math.log(3)) == pytest.approx(2 - 0.75 * math.log2(3))
    assert entropy(-1.0 - math.log(3), -1.0) == entropy(-1.0, -1.0 - math.log(3))
    assert 0 <= entropy(-5.0, -2000.0) < 1e-9  # far apart, no overflow
    assert signed(-1.0, -1.0 - math.log(3)) == pytest.approx(0.25) == -signed(-1 - math.log(3), -1)
    assert signed(-2000.0, 0.0) == pytest.approx(-0.5)


def test_entropy_and_mc2_are_the_slow_ones():
    """With decimals of 400 digits: probabilities as they are, divided by their sum."""
    rng = random.Random(7)
    with localcontext() as context:
        context.prec = 400
        for scale in (0.1, 1.0, 5.0, 100.0) * 5:
            logs = [-scale * rng.random() - 50 for _ in range(5)]
            p = [Decimal(x).exp() for x in logs]
            shares = [x / (p[0] + p[1]) for x in p[:2]]
            bits = -sum(x * x.ln() for x in shares) / Decimal(2).ln()
            assert entropy(*logs[:2]) == pytest.approx(float(bits), rel=1e-9)
            assert signed(*logs[:2]) == pytest.approx(float(shares[0]) - 0.5, abs=1e-12)
            assert mc2(logs[:2], logs[2:]) == pytest.approx(float(sum(p[:2]) / sum(p)), rel=1e-9)


def test_mc2_by_hand():
    logs = [math.log(x) for x in (0.2, 0.1, 0.3, 0.1)]
    assert mc2(logs[:2], logs[2:]) == pytest.approx(3 / 7)
    assert mc2([x - 2000 for x in logs[:2]], [x - 2000 for x in logs[2:]]) == pytest.approx(3 / 7)


# ---------------------------------------------------------------------------------- BLEU, ROUGE

def test_bleu_of_added_counts_is_the_corpus_bleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    rng = random.Random(3)
    said = [some_text(rng, 14) for _ in range(30)] + [""]
    right = [" ".join(rng.choice([w, w, "mat"]) for w in s.split()) or "mat" for s in said]
    counts = [bleu_counts(a, [b]) for a, b in zip(said, right)]
    expected = sacrebleu.corpus_bleu(said, [right]).score
    assert bleu_of([sum(c) for c in zip(*counts)], 31) == pytest.approx(expected)
    assert 5 < expected < 95
    assert bleu_of(bleu_counts("a b c d e", ["a b c d e"]), 1) == pytest.approx(100)
    assert bleu_of(bleu_counts("x", ["a b"]), 1) == 0


def slow_lcs(a, b):
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + slow_lcs(a[1:], b[1:])
    return max(slow_lcs(a[1:], b), slow_lcs(a, b[1:]))


def test_rouge_l_is_the_longest_common_subsequence():
    pytest.importorskip("rouge_score")
    rng = random.Random(4)
    for _ in range(30):
        a, b = ([rng.choice("abcd") for _ in range(rng.randint(1, 7))] for _ in range(2))
        n = slow_lcs(a, b)
        expected = 2 * n / (len(a) + len(b))
        assert rouge_l(" ".join(a), " ".join(b), stem=False) == pytest.approx(expected)
    assert rouge_l("the cats", "the cat") == 1.0  # stems
    assert rouge_l("the cats", "the cat", stem=False) == 0.5


# ---------------------------------------------------------------------------------- many items

def test_interval_is_that_of_a_share():
    """Of 100 among 400: 1.96 standard errors of a binomial on each side."""
    found = interval([1.0] * 100 + [0.0] * 300, seed=1)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found["value"] == 0.25 and found["n"] == 400
    assert found["low"] == pytest.approx(0.25 - half, abs=0.006)
    assert found["high"] == pytest.approx(0.25 + half, abs=0.006)
    assert found == interval([1.0] * 100 + [0.0] * 300, seed=1)


def test_interval_of_what_is_not_there():
    assert interval([]) == interval([None]) == dict(value=None, low=None, high=None, n=0)
    assert interval([None, 3.0]) == dict(value=3.0, low=None, high=None, n=1)
    assert interval([[1, 2], None, [3, 2]], of=lambda s, n: s[0] / s[1])["value"] == 1.0


def test_rank_correlation_by_hand():
    assert rank_correlation([1, 2, 3, 9], [10, 20, 30, 31]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # d = 1, -1, 0, 0: 1 - 6 * 2 / (4 * 15)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(0.8)
    # ties share a rank: ranks 1.5 1.5 3 against 1 2 3
    assert rank_correlation([0, 0, 5], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert rank_correlation([1, 1], [1, 2]) is None


# ---------------------------------------------------------------------------------- best of n

def slow_best_of_n(proxy, gold, n):
    """The mean over every subset of n samples; equal best ones are picked by lot."""
    of_subset = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        best = [gold[i] for i in subset if proxy[i] == top]
        of_subset.append(sum(best) / len(best))
    return sum(of_subset) / len(of_subset)


def test_best_of_n_is_the_mean_over_all_subsets():
    """With and without equal proxy scores, for each n."""
    rng = random.Random(4)
    for size in range(1, 9):
        for values in (3, 1000):
            proxy = [rng.randrange(values) / 10 for _ in range(size)]
            gold = [rng.gauss(0, 1) for _ in range(size)]
            for n in range(1, size + 1):
                assert best_of_n(proxy, gold, n) == pytest.approx(slow_best_of_n(proxy, gold, n))


def test_best_of_n_by_hand():
    # of the pairs {1, 2}, {1, 3}, {2, 3} the best by proxy is 2, 3, 3
    assert best_of_n([1, 3, 2], [10.0, 30.0, 20.0], 2) == pytest.approx((20 + 30 + 30) / 3)
    assert best_of_n([1, 3, 2], [10.0, 30.0, 20.0], 1) == pytest.approx(20.0)
    assert best_of_n([1, 3, 2], [10.0, 0.0, 20.0], 3) == 0.0  # the proxy errs
    assert best_of_n([5, 5], [0.0, 1.0], 2) == 0.5
    many = list(range(2000))  # binomials far beyond the floats
    assert best_of_n(many, many, 1000) == pytest.approx(1000 / 1001 * 2001 - 1)
    for proxy, gold, n in (([1], [1], 2), ([1], [1], 0), ([], [], 1), ([1, 2], [1], 1)):
        with pytest.raises(ValueError, match="best of"):
            best_of_n(proxy, gold, n)


def test_the_kl_of_best_of_n_is_that_of_its_distribution():
    """The best of n among M equally likely ranks has P(k) = (k^n - (k - 1)^n) / M^n. For large M
    its KL from 1 / M goes to the formula, from below."""
    for n in (1, 2, 4, 16):
        gaps = []
        for m in (100, 1000, 10_000):
            p = [(k / m) ** n - ((k - 1) / m) ** n for k in range(1, m + 1)]
            gaps.append(best_of_n_kl(n) - sum(x * math.log(x * m) for x in p if x))
        assert gaps[0] >= gaps[1] - 1e-9 and gaps[1] >= gaps[2] - 1e-9 and gaps[2] > -1e-9
        assert gaps[2] < 1e-5
    assert best_of_n_kl(1) == 0.0

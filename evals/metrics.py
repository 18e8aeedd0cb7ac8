"""The numbers of the public suite, as functions of strings and log-probs: no model is needed.

    f1, exact                  answers as bags of words (SQuAD's rules)
    drop                       several spans, aligned one to one (DROP's rules)
    entropy, signed            a pair of sentences, in bits (the paper, App. D)
    mc2                        the probability of all true answers (TruthfulQA)
    bleu_counts, bleu_of       BLEU from counts that add up over a corpus (sacrebleu)
    rouge_l                    ROUGE-L, the F-measure (rouge-score)
    interval                   a mean over items, or another statistic, with its 95 % interval
    rank_correlation           Spearman's
    best_of_n, best_of_n_kl    what picking the best of n samples gives, and how far it moves
"""
import bisect
import collections
import itertools
import math
import re
import string

from settings import extra  # before torch

import numpy as np

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = set(string.punctuation)
RESAMPLES = 1000  # of the bootstrap


# ----------------------------------------------------------------------------------- answers

def normalized(text):
    """Lower case, without punctuation, articles and double spaces (SQuAD's rules)."""
    text = "".join(c for c in text.lower() if c not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


def bag_f1(answer, reference):
    """The harmonic mean of precision and recall of two bags of words. Of two empty bags it is 1, of
    one it is 0."""
    answer, reference = collections.Counter(answer), collections.Counter(reference)
    shared = sum((answer & reference).values())
    if not answer or not reference:
        return float(answer == reference)
    return 2 * shared / (sum(answer.values()) + sum(reference.values()))


def f1(answer, references):
    """The best F1 of an answer's words against one of the references."""
    words = normalized(answer).split()
    return max(bag_f1(words, normalized(r).split()) for r in references)


def exact(answer, references):
    """1 if an answer equals one of the references after `normalized`, else 0."""
    return float(normalized(answer) in map(normalized, references))


# ----------------------------------------------------------------------------------- DROP

def is_number(text):
    try:
        float(text)
        return True
    except ValueError:
        return False


def drop_words(span):
    """A span's words by DROP's rules: split at spaces and hyphens; numbers are equal if their
    values are."""
    out = []
    for word in re.split(r"[ -]", span.lower()):
        if not is_number(word):
            word = "".join(c for c in word if c not in PUNCTUATION)
        word = str(float(word)) if is_number(word) else word
        out += ARTICLES.sub(" ", word).split()
    return out


def drop_span_f1(answer, reference):
    """F1 of two spans as sets of words; 0 if the reference has numbers and the answer none of
    them."""
    answer, reference = set(answer), set(reference)
    numbers = {w for w in reference if is_number(w)}
    if numbers and not numbers & answer:
        return 0.0
    shared = len(answer & reference)
    precision = shared / len(answer) if answer else 1.0
    recall = shared / len(reference) if reference else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def best_alignment(scores):
    """The largest sum of a one-to-one assignment of rows to columns. scores: [R][C]; at most 2^C
    sets of columns are kept, and a question has few spans."""
    if len(scores) < len(scores[0]):
        scores = list(map(list, zip(*scores)))  # as many rows as columns, at least
    best = {0: 0.0}  # set of columns used so far, as bits -> the best sum
    for row in scores:
        after = dict(best)  # a row may stay alone
        for used, total in best.items():
            for column, score in enumerate(row):
                if not used >> column & 1:
                    key = used | 1 << column
                    after[key] = max(after.get(key, 0.0), total + score)
        best = after
    return max(best.values())


def drop(answer, references):
    """DROP's (F1, exact match): the best over the references, each a list of spans.

    answer: a list of spans. Spans are aligned one to one so that their F1 add up to the most; the
    sum is divided by the larger number of spans. As in DROP's script it is rounded to two digits,
    and a reference whose first span is blank does not count.
    """
    mine, top = [drop_words(span) for span in answer], (0.0, 0.0)
    for reference in references:
        if not reference[0].strip():
            continue
        theirs = [drop_words(span) for span in reference]
        total = best_alignment([[drop_span_f1(a, b) for b in theirs] for a in mine])
        same = len(mine) == len(theirs) and {*map(tuple, mine)} == {*map(tuple, theirs)}
        value = round(total / max(len(mine), len(theirs)), 2)
        top = max(top[0], value), max(top[1], float(same))
    return top


# ----------------------------------------------------------------------------------- log-probs

def entropy(first, second):
    """Bits of a choice between two texts whose log-probs are given: 1 if they are equal."""
    gap = abs(first - second)  # p = 1 / (1 + exp(-gap)) is that of the likelier text
    loss = math.log1p(math.exp(-gap))
    return (loss + gap * math.exp(-gap - loss)) / math.log(2)


def signed(first, second):
    """How far the first text is preferred to the second: its probability less 1/2."""
    return 0.5 * math.tanh((first - second) / 2)


def mc2(true, false):
    """The share of the true answers in the probability of all answers, from log-probs."""
    top = max(*true, *false)
    right, wrong = (sum(math.exp(x - top) for x in side) for side in (true, false))
    return right / (right + wrong)


# ----------------------------------------------------------------------------------- BLEU and ROUGE

def bleu_counts(answer, references):
    """[10] counts of a translation that add up over a corpus: matched n-grams for n of 1 to 4, all
    its n-grams, its length, the closest reference's."""
    score = sacrebleu().BLEU().corpus_score([answer], [[r] for r in references])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def bleu_of(counts, n):
    """BLEU, 0 to 100, of the sum of `bleu_counts` (sacrebleu, its defaults: 13a, exp)."""
    counts = [round(x) for x in counts]
    return sacrebleu().BLEU.compute_bleu(counts[:4], counts[4:8], *counts[8:],
                                         smooth_method="exp").score


def sentence_bleu(answer, reference):
    """BLEU of one sentence as lm-evaluation-harness has it for TruthfulQA, 0 to 100."""
    scorer = sacrebleu().BLEU(tokenize="intl", smooth_method="exp")
    return scorer.corpus_score([answer], [[reference]]).score


def sacrebleu():
    return extra("sacrebleu.metrics", "BLEU")


def rouge_l(answer, reference, stem=True):
    """ROUGE-L: the F-measure of the longest common subsequence of (stemmed) words, 0 to 1."""
    scorer = extra("rouge_score.rouge_scorer", "ROUGE").RougeScorer(["rougeL"], use_stemmer=stem)
    return scorer.score(reference, answer)["rougeL"].fmeasure


# ----------------------------------------------------------------------------------- many items

def average(total, n):
    return total / n


def interval(rows, seed=0, of=average):
    """{"value", "low", "high", "n"}: a statistic of the items, its 95 % interval by bootstrap.

    rows: [n] numbers or [n][k] of them; None: the item is not counted. of(sum of the rows, n) is
    the statistic. Without items all are None, with one there is no interval.
    """
    rows = np.array([row for row in rows if row is not None], dtype=float)
    n, rng = len(rows), np.random.default_rng([seed, 31])
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    out = {"value": float(of(rows.sum(0), n)), "low": None, "high": None, "n": n}
    if n > 1:
        drawn = [of(rows[rng.integers(n, size=n)].sum(0), n) for _ in range(RESAMPLES)]
        out["low"], out["high"] = (float(x) for x in np.quantile(drawn, (0.025, 0.975)))
    return out


def ranks(values):
    """Ranks from 1; equal values share the mean of theirs."""
    order, out = sorted(range(len(values)), key=lambda i: values[i]), [0.0] * len(values)
    for _, same in itertools.groupby(enumerate(order, 1), key=lambda pair: values[pair[1]]):
        places, who = zip(*same)
        for i in who:
            out[i] = sum(places) / len(places)
    return out


def rank_correlation(x, y):
    """Spearman's correlation of two lists, ties counted; None if all values of one are equal."""
    a, b = np.array(ranks(x)), np.array(ranks(y))
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


# ----------------------------------------------------------------------------------- best of n

def best_of_n(proxy, gold, n):
    """The gold score to expect of the best of n samples, picked by the proxy.

    proxy, gold: [N] scores of N samples of one prompt. It is the mean over all C(N, n) subsets of
    n samples, and so without bias (Nakano et al. 2021, appendix I). Samples with one proxy score
    are picked equally often. Raises ValueError unless 1 <= n <= N.
    """
    if len(proxy) != len(gold) or not 1 <= n <= len(proxy):
        raise ValueError(f"best of {n} of {len(proxy)} samples with {len(gold)} gold scores")
    order, total = sorted(proxy), 0.0
    for score, value in zip(proxy, gold):
        below, upto = bisect.bisect_left(order, score), bisect.bisect_right(order, score)
        subsets = math.comb(upto, n) - math.comb(below, n)  # whose best has this proxy score
        total += value * (subsets / ((upto - below) * math.comb(len(order), n)))
    return total


def best_of_n_kl(n):
    """KL in nats of the best of n samples from one sample (Stiennon et al. 2020, appendix G.3);
    where samples can be equal it is at most this."""
    return math.log(n) - (n - 1) / n

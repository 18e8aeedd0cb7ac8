"""Who is preferred: accuracy of a reward model, agreement of labelers, win rates, the best of n;
ties count."""
import itertools

import numpy as np

from exercises.course import Exercise


def run_accuracy(m, c):
    return {"accuracy": m.accuracy(c["scores"], [(None, [tuple(p) for p in own])
                                                 for own in c["pairs"]])}


def accuracy_oracle(c):
    points, n = 0.0, 0
    for scores, own in zip(c["scores"], c["pairs"]):
        for better, worse in own:
            n += 1
            points += (1 if scores[better] > scores[worse] else
                       0.5 if scores[better] == scores[worse] else 0)
    return {"accuracy": points / n if n else None}


def scored(scores, pairs):
    return {"scores": scores, "pairs": pairs}


ACCURACY = Exercise(
    "accuracy", "reward.py", "accuracy", run_accuracy, accuracy_oracle,
    {"the share of pairs in the right order": [scored([[2.0, 1.0]], [[[0, 1]]]),
                                               scored([[1.0, 2.0, 0.0]], [[[0, 1], [0, 2]]])],
     "equal scores are half right": [scored([[1.0, 1.0]], [[[0, 1]]])],
     "every pair counts alike, whatever its prompt": [
         scored([[1.0, 0.0], [3.0, 2.0, 5.0]], [[[1, 0]], [[0, 1], [0, 2], [2, 1]]])],
     "no pair: not measured": [scored([[1.0, 2.0]], [[]])]},
    ("A pair is right if its better completion has the higher score.",
     "Equal scores: the model does not know, so half a point. The divisor is the number of "
     "pairs of "
     "all prompts.",
     "0.5 * (a >= b) + 0.5 * (a > b) is 1, 0.5 or 0. Without a pair return None, not 0."), 3,
    ("scores", "pairs"))


def agreement_case(*prompts):
    """Each prompt: the ranks that the only two labelers give its completions."""
    return {"ranks of a and b": [[list(a), list(b)] for a, b in prompts]}


def run_agreement(m, c):
    prompts = c["ranks of a and b"]
    m.impressions = lambda p, x, texts, criterion, sharpness, rng: (p, texts[0])
    m.rank = lambda labeler, seen: prompts[seen[1]][labeler]
    responses = [(np.zeros((len(a), 1)), [i] * len(a)) for i, (a, _) in enumerate(prompts)]
    share, n = m.agreement(responses, [0, 1], "train", 1.0, np.random.default_rng(0))
    return {"share": None if share is None else float(share), "pairs": int(n)}


def agreement_oracle(c):
    same = n = 0
    for a, b in c["ranks of a and b"]:
        for i in range(len(a)):
            for j in range(i):
                if a[i] != a[j] and b[i] != b[j]:
                    n += 1
                    same += (a[i] < a[j]) == (b[i] < b[j])
    return {"share": same / n if n else None, "pairs": 6 * n}  # each prompt is drawn six times


AGREEMENT = Exercise(
    "agreement", "labels/simulated.py", "agreement", run_agreement, agreement_oracle,
    {"two labelers who agree, or do not": [agreement_case(([1, 2], [1, 2])),
                                           agreement_case(([1, 2], [2, 1]))],
     "several completions": [agreement_case(([1, 2, 3], [1, 3, 2]))],
     "a pair that one of them ties does not count": [agreement_case(([1, 2, 2], [1, 2, 3])),
                                                     agreement_case(([1, 1, 2], [2, 1, 1]))],
     "all pairs of all prompts together": [agreement_case(([1, 2], [2, 1]),
                                                          ([1, 2, 3, 4], [1, 2, 3, 4]))],
     "nothing but ties: not measured": [agreement_case(([1, 1], [1, 2]))]},
    ("For each prompt draw two labelers, let each rank the completions, and look at every pair of "
     "completions.",
     "A pair counts if neither labeler ties it. They agree if both put the same one first.",
     "rng.choice(len(labelers), 2, replace=False); itertools.combinations over the completions. "
     "Return (same / total, total), and None as the share if total is 0."), 10,
    ("ranks of a and b",))


def run_win_rate(m, c):
    m.features = lambda town, task, text, ended=True: np.ones(len(m.FEATURES))
    seen, courtesy = [], m.FEATURES.index("courteous")
    m.impressions = lambda labeler, x, texts, *rest: (labeler, texts, seen.append(np.array(x)))
    m.rank = lambda labeler, seen: c["ranks"][seen[1][0]][labeler]
    n, more = len(c["ranks"]), {} if c["taste"] else {"taste": False}
    prompts = [{"task": {}}] * n
    got = m.win_rate(None, prompts, [(i, True) for i in range(n)], [(i, True) for i in range(n)],
                     list(range(c["votes"])), 1.0, c["votes"], 1, **more)
    values = lambda columns: sorted(set(np.concatenate(seen)[:, columns].flatten().tolist()))
    others = [i for i in range(len(m.FEATURES)) if i != courtesy]
    return {"win rate": got["mean"], "prompts": got["n"], "courtesies that are seen":
            values([courtesy]), "other features that are seen": values(others)}


def win_rate_oracle(c):
    of_prompt = [sum(1 if r < t else 0.5 if r == t else 0 for r, t in votes) / len(votes)
                 for votes in c["ranks"]]
    return {"win rate": round(sum(of_prompt) / len(of_prompt), 4), "prompts": len(of_prompt),
            "courtesies that are seen": [float(c["taste"])],
            "other features that are seen": [1.0]}


def votes(*prompts, taste=True):
    """Each prompt: for each labeler the ranks of the first and the second model's answers. All
    features of all answers are 1."""
    return {"ranks": [[list(v) for v in p] for p in prompts], "votes": len(prompts[0]),
            "taste": taste}


WINS = Exercise(
    "win-rate", "evals/town.py", "win_rate", run_win_rate, win_rate_oracle,
    {"one vote": [votes([(1, 2)]), votes([(2, 1)])],
     "ties count half": [votes([(1, 1)]), votes([(1, 1), (1, 2)])],
     "every prompt counts once": [votes([(1, 2), (2, 1)], [(1, 2), (1, 2)], [(1, 1), (2, 1)])],
     "without taste no courtesy is seen": [votes([(1, 2)], taste=False)]},
    ("For each prompt some labelers rank the two answers. A vote is 1, 0.5 or 0.",
     "The value of a prompt is the mean of its votes; `interval` makes the mean over prompts.",
     "Draw `votes` labelers with rng.choice, without replacement if there are enough. "
     "rank(labeler, "
     "impressions(labeler, x, (a[0], b[0]), \"evaluate\", sharpness, rng)) gives both ranks."), 11,
    ("ranks", "taste"))

def samples(proxy, gold, n):
    return {"proxy": proxy, "gold": gold, "n": n}


def run_best_of_n(m, c):
    try:
        return {"gold of the best": m.best_of_n(c["proxy"], c["gold"], c["n"])}
    except ValueError:
        return {"gold of the best": "ValueError"}


def best_of_n_oracle(c):
    """Every subset; of several best ones each is picked equally often."""
    of_subset = []
    for subset in itertools.combinations(zip(c["proxy"], c["gold"]), c["n"]):
        top = max(p for p, _ in subset)
        best = [g for p, g in subset if p == top]
        of_subset.append(sum(best) / len(best))
    return {"gold of the best": sum(of_subset) / len(of_subset) if of_subset else "ValueError"}


SIX = [0.3, -1.0, 2.5, 0.9, 1.4, -0.2], [1.0, 0.0, 0.5, 2.0, 3.0, -1.0]

BEST = Exercise(
    "best-of-n", "evals/metrics.py", "best_of_n", run_best_of_n, best_of_n_oracle,
    {"the best of one is the mean": [samples([2.0], [5.0], 1), samples([1.0, 2.0], [4.0, 0.0], 1)],
     "the best of all is the proxy's choice": [samples([1.0, 2.0], [4.0, 0.0], 2),
                                               samples(*SIX, 6)],
     "in between it is the mean over all subsets": [samples([1.0, 3.0, 2.0], [0.0, 6.0, 3.0], 2),
                                                    samples(*SIX, 3), samples(*SIX, 4)],
     "equal proxy scores are picked equally often": [
         samples([1.0, 1.0], [0.0, 1.0], 2),
         samples([1.0, 2.0, 2.0, 0.0], [0.0, 6.0, 1.0, 3.0], 2)],
     "more than there are cannot be picked from": [samples([1.0, 2.0], [4.0, 0.0], 3)]},
    ("Of all subsets of n samples, in how many is this sample the best? That share is its weight.",
     "If i samples have a lower score, and none the same, the others of the subset are n - 1 of "
     "these i: C(i, n - 1) subsets out of C(N, n).",
     "With ties: C(upto, n) - C(below, n) subsets have a best score equal to this one, and the "
     "upto - below samples that have it share them. math.comb counts."), 8,
    ("proxy", "gold", "n"))

EXERCISES = (ACCURACY, AGREEMENT, WINS, BEST)

"""Step 2: pairs without ties, their weights, the ranking loss, and where 0 is."""
import math
from types import SimpleNamespace

import torch

from exercises.checks.tools import gradient_of, tensor
from exercises.course import Exercise


def pairs_oracle(c):
    ranks = c["ranks"]
    return {"pairs": [[i, j] for i in range(len(ranks)) for j in range(len(ranks))
                      if ranks[i] < ranks[j]]}


PAIRS = Exercise(
    "pairs", "data/records.py", "untied_pairs",
    lambda m, c: {"pairs": sorted([list(pair) for pair in m.untied_pairs(c["ranks"])])},
    pairs_oracle,
    {"two completions are one pair, the better one first": [{"ranks": [1, 2]}, {"ranks": [2, 1]}],
     "ties give no pair": [{"ranks": [1, 1]}, {"ranks": [1, 2, 2]}, {"ranks": [3, 1, 2, 2]}],
     "K different ranks give K (K - 1) / 2 pairs": [{"ranks": [2, 4, 1, 3]},
                                                    {"ranks": [4, 9, 1, 7, 2, 8, 3, 6, 5]}]},
    ("Look at every ordered pair of completions, (i, j) and (j, i).",
     "Rank 1 is best: i is better than j if its rank is smaller.",
     "A list comprehension over enumerate(ranks), twice, with one condition."), 1, ("ranks",))


def run_ranking(m, c):
    scores = c["scores"].clone().requires_grad_()
    pairs = torch.tensor(c["pairs"], dtype=torch.long).view(-1, 2)
    loss = m.ranking_loss(scores, pairs, c["weights"])
    return {"loss": loss, "gradient": gradient_of(loss, scores)}


def ranking_oracle(c):
    r, loss, gradient = c["scores"].double().tolist(), 0.0, [0.0] * len(c["scores"])
    for (w, l), weight in zip(c["pairs"], c["weights"].double().tolist()):
        margin = r[w] - r[l]
        loss += weight * (math.log1p(math.exp(-margin)) if margin > 0 else
                          -margin + math.log1p(math.exp(margin)))
        pull = 1 / (1 + math.exp(min(margin, 700)))
        gradient[w] -= weight * pull
        gradient[l] += weight * pull
    return {"loss": tensor(loss), "gradient": tensor(gradient)}


def ranked(scores, pairs, weights=None):
    return {"scores": tensor(scores, torch.float32), "pairs": pairs,
            "weights": tensor(weights or [1 / max(1, len(pairs))] * len(pairs), torch.float32)}


RANKING = Exercise(
    "ranking-loss", "reward.py", "ranking_loss", run_ranking, ranking_oracle,
    {"two completions": [ranked([0.5, -0.5], [[0, 1]]), ranked([0.0, 0.0], [[1, 0]])],
     "four completions, all their pairs": [
         ranked([0.3, -1.0, 2.0, 0.5], [[0, 1], [2, 0], [2, 1], [3, 1], [2, 3], [0, 3]])],
     "each pair has its own weight": [ranked([1.0, 0.0, -1.0], [[0, 1], [1, 2]], [0.5, 0.125])],
     "a margin of 200 either way is no trouble": [ranked([200.0, 0.0], [[0, 1]]),
                                                  ranked([-200.0, 0.0], [[0, 1]])],
     "no pair, no loss": [ranked([0.5 * i for i in range(12)], [], [])]},
    ("Only differences of scores matter: the better one's minus the worse one's, for each pair.",
     "log(sigmoid(x)) is log(0) for x = -200. PyTorch has the two as one function.",
     "-(weights * F.logsigmoid(difference)).sum(): the weights already hold every division."),
    2, ("scores", "pairs", "weights"))


def run_collate(m, c):
    tree, pairs, weights = m.collate([(rows, pairs) for rows, pairs in c["rankings"]],
                                     c["prompts"], "cpu")
    rows = [[int(tree.ids[n]) for n in nodes[: int(tree.positions[end]) + 1]]
            for nodes, end in zip(tree.nodes.tolist(), tree.ends.tolist())]
    return {"rows": rows, "pairs": pairs, "weights": weights}


def collate_oracle(c):
    rows, pairs, weights = [], [], []
    for own, own_pairs in c["rankings"]:
        for better, worse in own_pairs:
            pairs.append([len(rows) + better, len(rows) + worse])
            weights.append(1 / (len(own_pairs) * c["prompts"]))
        rows.extend(own)
    return {"rows": rows, "pairs": tensor(pairs, torch.long).view(-1, 2),
            "weights": tensor(weights)}


def rankings(*each, prompts=None):
    return {"rankings": [list(r) for r in each], "prompts": prompts or len(each)}


FIRST = [[1, 2], [1, 3]], [(0, 1)]
SECOND = [[4, 5], [4, 6], [4, 7]], [(0, 1), (0, 2), (1, 2)]
WEIGHTS = Exercise(
    "weights", "reward.py", "collate", run_collate, collate_oracle,
    {"one prompt": [rankings(FIRST), rankings(SECOND)],
     "pairs of the second prompt name its own rows": [rankings(FIRST, SECOND)],
     "each prompt counts once, whatever its K": [rankings(SECOND, FIRST, SECOND)],
     "`prompts` is of the whole batch, of which this may be a part": [rankings(FIRST, prompts=4)],
     "a prompt without pairs gives rows and nothing else": [rankings(FIRST, ([[8], [9]], []))]},
    ("Walk over the prompts and keep three lists: rows, pairs, weights.",
     "A prompt's pairs count from its own first completion. In the batch that one has the number "
     "of rows before it.",
     "A pair of a prompt with P pairs has the weight 1 / P / prompts. view(-1, 2) keeps an empty "
     "list of pairs in shape."), 9, ("rankings", "prompts"))


def run_center(m, c):
    model = SimpleNamespace(score=torch.nn.Linear(1, 1))
    with torch.no_grad():
        model.score.bias.fill_(c["bias"])
    m.score = lambda model, families, s, world: [
        [row[0] + float(model.score.bias.detach()) for row in rows] for rows in families]
    told = m.center(model, [[x] for x in c["scores without the bias"]], None, None)
    mean = sum(x for x, in m.score(model, [[[x]] for x in c["scores without the bias"]], None, None)
               ) / len(c["scores without the bias"])
    return {"returned": float(told), "mean afterwards": mean,
            "bias": float(model.score.bias.detach())}


def center_oracle(c):
    raw = c["scores without the bias"]
    mean = sum(raw) / len(raw)
    return {"returned": mean + c["bias"], "mean afterwards": 0.0, "bias": -mean}


CENTER = Exercise(
    "center", "reward.py", "center", run_center, center_oracle,
    {"one demonstration": [{"scores without the bias": [1.5], "bias": 0.0}],
     "the mean of several": [{"scores without the bias": [1.0, -3.0, 0.5], "bias": 0.0}],
     "a bias that was there before": [{"scores without the bias": [1.0, 2.0], "bias": 0.75}]},
    ("`score` gives a list of scores for each list of rows: here each list holds one row.",
     "The bias is added to every score. To lower the mean by some number, lower the bias by it.",
     "Change the bias in place, under torch.no_grad(), and return the mean as it was."), 4,
    ("scores without the bias", "bias"), tolerance=1e-5)

EXERCISES = (PAIRS, RANKING, WEIGHTS, CENTER)

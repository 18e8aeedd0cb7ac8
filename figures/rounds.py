"""Rounds of feedback (section 3.1: "steps 2 and 3 can be iterated").

In each round fresh samples of the newest policy join the rankings, the reward model is trained
anew, and PPO goes on; the policy that a round begins with is its KL reference. Beside it: one long
run with as many labels, all of the first kind, and as many iterations, with the first start as its
reference; and PPO that goes on as long, round by round, without new labels.
"""
import functools

import numpy as np

import ppo
from data import records
from figures.plan import Run, measured, model
from figures.points import Drawn, Panel, Series, finding, over
from figures.worlds import less, mean
from labels.simulated import label
from reward import accuracy

TITLE = "Rounds of feedback"
PAPER = ("Section 3.1: comparisons of the newest policy's answers train a new reward model and "
         "then a new policy; in practice most comparisons came from SFT models, some from PPO. "
         "There is no number. Gao et al. (2022) expect k rounds to gain d b log k in gold score: "
         "less over-optimisation at the same distance.")
VOTES = 5  # labelers that rank each prompt's answers, for the accuracy
FRESH = 3000  # prompts a round, the same in each; the one long run has others
WAYS = {"rounds": "a new reward model each round", "same": "no new labels",
        "long": "one long run, as many labels"}


def policy(way, r):
    """The policy of a round; the first one is the demo's."""
    return "out/ppo-ptx" if r == 1 else f"out/rounds/{way}-{r}"


def reward(way, r):
    """The reward model that a round's policy was trained against."""
    return "out/rm" if r == 1 or way == "same" else f"out/rounds/{way}-{r}-rm"


def answers(way, r):
    return f"out/rounds/{way}-{r}.jsonl"


def sampled(name, flags, out, *needs):
    return {name: Run(f"fresh samples, {name}", f"-m labels.sample {flags} --out={out}", out,
                      needs)}


def retrained(way, r, files, *needs):
    """Fresh completions are ranked and join the others; the reward model is trained anew."""
    data, name = f"{reward(way, r)}-data", f"{way} {r}"
    return {f"rankings {name}": Run(f"rankings, {name}", f"-m figures.rankings "
                                    f"--fresh={','.join(files)} --out={data}",
                                    f"{data}/rankings.json", ("labels valid", *needs)),
            f"rm {name}": model(f"reward model, {name}", f"reward.py --data={data}",
                                reward(way, r), f"rankings {name}", "init")}


def goes_on(way, r, *needs):
    """PPO goes on from the policy before, against the reward model of this round."""
    return {f"{way} {r}": model(f"PPO-ptx, {way} {r}", f"ppo.py --init={policy(way, r - 1)} "
                                f"--reward={reward(way, r)}", policy(way, r), *needs)}


def runs(scale):
    out, last, files = {}, scale.rounds, []
    for r in range(2, last + 1):
        before = "ppo-ptx" if r == 2 else f"rounds {r - 1}"
        files.append(f"out/rounds/fresh-{r}.jsonl")
        out |= sampled(f"fresh {r}", f"--models={policy('rounds', r - 1)} --weights=1 "
                       f"--prompts={FRESH} --seed={100 + r}", files[-1], before)
        out |= retrained("rounds", r, files, f"fresh {r}")
        out |= goes_on("rounds", r, f"rm rounds {r}", before)
        out |= goes_on("same", r, "ppo-ptx" if r == 2 else f"same {r - 1}")
    out |= sampled("fresh long", f"--prompts={FRESH * (last - 1)} --seed=100",
                   "out/rounds/fresh-long.jsonl", "sft", "init")
    out |= retrained("long", last, ["out/rounds/fresh-long.jsonl"], "fresh long")
    iterations = ppo.Settings.iterations * last
    out[f"long {last}"] = model("PPO-ptx, one long run", f"ppo.py --iterations={iterations} "
                                f"--reward={reward('long', last)}", policy("long", last),
                                f"rm long {last}")
    shown = [("rounds", r) for r in range(1, last + 1)]
    shown += [("same", r) for r in range(2, last + 1)] + [("long", last)]
    for way, r in shown:
        name = "ppo-ptx" if r == 1 else f"{way} {r}"
        out[f"measure {way} {r}"] = measured(policy(way, r), reward(way, r), answers(way, r),
                                             (name,), "--copies=4")
    return out, [name for name in out if name.startswith("measure")]


@functools.cache
def accuracies(world, path):
    """How often a reward model agrees with training labelers about the policy's own answers, and
    how often the labelers' mean utility does: the most that could be."""
    labelers, scores, utilities, rankings = world.labelers["training"], [], [], []
    rng = np.random.default_rng([world.facts["seed"], 41])
    for line in world.lines(path) * VOTES:
        own = label(world.town, line, labelers[rng.integers(len(labelers))], labelers, "train",
                    world.sharpness["training"], rng)
        scores.append([c["score"] for c in line["completions"]])
        utilities.append(own["expected"])
        rankings.append((None, records.untied_pairs(own["ranks"])))
    return accuracy(scores, rankings), accuracy(utilities, rankings)


def average(world, path, name):
    return mean([c[name] for line in world.lines(path) for c in line["completions"]])


def explained(of, last):
    """Why another round may not help: what the reward model still sees, of what there is to see."""
    told = lambda name: ", ".join("-" if m is None else f"{m:.0%}" for m in (
        mean(of[name]("rounds", r)) for r in range(1, last + 1)))
    return (f"Round by round, the reward model is right in {told('accuracy')} of the pairs of the "
            f"newest policy's answers; {told('most')} could be known. What is left to learn is "
            "what reward models of this size and so many labels do not see.")


def draw(worlds, scale):
    last, of = scale.rounds, {}
    for name in ("gold", "score", "ratio"):
        of[name] = lambda way, r, name=name: [average(w, answers(way, r), name) for w in worlds]
    of["accuracy"], of["most"] = (lambda way, r, k=k: [
        accuracies(w, answers(way, r))[k] for w in worlds] for k in (0, 1))
    first = "rounds", 1
    shown = {way: [first, *((way, r) for r in range(2, last + 1))] for way in ("rounds", "same")}
    shown["long"] = [("long", last)]
    panels = [Panel(title, "round", y, [Series(WAYS[way], [
        (r, over(of[name](kind, r))) for kind, r in points]) for way, points in shown.items()],
        percent=name == "accuracy") for name, title, y in (
            ("gold", "Gold score by round", "gold score"),
            ("score", "Each reward model's own score", "score"),
            ("accuracy", "Accuracy on the newest policy's own answers", "pairs in the right order"),
            ("ratio", "Distance from the first start", "KL, nats"))]
    panels[2].series.append(Series("the most that could be, new reward models", [
        (r, over(of["most"](kind, r))) for kind, r in shown["rounds"]]))
    gold, why = of["gold"], explained(of, last)
    return Drawn(panels, [
        finding("a second round raises the gold score", less(gold("rounds", 2), gold(*first)),
                why=why),
        finding("all rounds together raise it", less(gold("rounds", last), gold(*first)), why=why),
        finding("rounds are better than PPO without new labels",
                less(gold("rounds", last), gold("same", last))),
        finding("rounds are better than one long run with as many labels",
                less(gold("rounds", last), gold("long", last))),
        finding("without new labels the reward model gets worse on the newest policy's answers",
                less(of["accuracy"](*first), of["accuracy"]("same", last)), "{:.1%}"),
        finding("new labels keep it better there than no new labels",
                less(of["accuracy"]("rounds", last), of["accuracy"]("same", last)), "{:.1%}")])

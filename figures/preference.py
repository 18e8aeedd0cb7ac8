"""Preference by size (Figs. 1 and 3): who is preferred to the largest SFT model.

Training labelers wrote the rankings that the reward model learned from, held-out labelers none.
"""
import functools

from evals.town import win_rate
from figures import sizes
from figures.points import Drawn, Panel, Series, alike, finding, over, paper
from figures.sizes import ANSWERS, KINDS, RESULTS, SIZES

TITLE = "Preference by size"
PAPER = ("Figures 1 and 3: at every size labelers prefer PPO to SFT, SFT to prompted GPT-3, and "
         "that to GPT-3; the 1.3B PPO-ptx is preferred to the 175B GPT-3. Held-out labelers agree. "
         "175B PPO-ptx is preferred to 175B GPT-3 85 ± 3 % of the time.")
runs = sizes.runs
VOTES = 5  # labelers asked about each pair of answers
GPT = dict(zip(SIZES, ("1.3B", "6B", "175B")))
FIG1 = {"base": (.142, .193, .240), "prompted": (.227, .266, .411), "sft": (.348, .404, .500),
        "ppo": (.524, .578, .626), "ppo-ptx": (.527, .555, .660)}
FIG3 = {"base": (.191, .218, .252), "prompted": (.250, .306, .431), "sft": (.461, .505, .500),
        "ppo": (.663, .694, .690), "ppo-ptx": (.641, .685, .709)}  # held-out labelers


@functools.cache
def preferred(world, model, who):
    """How often labelers prefer a model's answers to those of the largest SFT model."""
    prompts = world.tested(ANSWERS)
    own, other = (world.answers(ANSWERS, m)[: len(prompts)] for m in (model, "large-sft"))
    return win_rate(world.town, prompts, own, other, world.labelers[who], world.sharpness[who],
                    VOTES, 5)["mean"]


def steps(world, who):
    """The least step from base to prompted to SFT to PPO-ptx, over the sizes."""
    order = ("base", "prompted", "sft", "ppo-ptx")
    rates = {s: [preferred(world, f"{s}-{kind}", who) for kind in order] for s in SIZES}
    return min(b - a for own in rates.values() for a, b in zip(own, own[1:]))


def labels(worlds):
    """{size: its number of parameters, in words}."""
    sizes = worlds[0].json(RESULTS)["parameters"]
    return {s: f"{sizes[f'{s}-base'] / 1e6:.2g}M" for s in SIZES}


def draw(worlds, scale):
    name, panels = labels(worlds), []
    for who, theirs in (("training", FIG1), ("held-out", FIG3)):
        ours = [Series(kind, [(name[s], over([preferred(w, f"{s}-{kind}", who) for w in worlds]))
                              for s in SIZES]) for kind in KINDS]
        panels += alike(
            Panel(f"the town, {who} labelers", "parameters", "preferred to the largest SFT",
                  ours, percent=True, refs=(0.5,)),
            Panel(f"the paper, {who} labelers", "parameters", "preferred to 175B SFT",
                  [paper(kind, list(zip(GPT.values(), theirs[kind]))) for kind in KINDS],
                  percent=True, refs=(0.5,)))
    direct = lambda pair: [w.json(RESULTS)["win_rate"][pair]["mean"] for w in worlds]
    return Drawn(panels, [
        finding("base < prompted < SFT < PPO-ptx at every size (the least step)",
                [steps(w, "training") for w in worlds], "{:.1%}"),
        finding("held-out labelers have the same order (the least step)",
                [steps(w, "held-out") for w in worlds], "{:.1%}"),
        finding("the smallest PPO-ptx is preferred to the largest base model (above 50 %)",
                direct("small-ppo-ptx vs large-base"), "{:.1%}", above=0.5),
        finding("the smallest PPO-ptx is preferred to the largest prompted base model (above 50 %)",
                direct("small-ppo-ptx vs large-prompted"), "{:.1%}",
                "The town's base model answers well after examples: they say what is asked.",
                above=0.5),
        finding("a larger PPO-ptx is preferred more often",
                [preferred(w, "large-ppo-ptx", "training")
                 - preferred(w, "small-ppo-ptx", "training") for w in worlds], "{:.1%}")])

"""Generalisation (section 4.3): kinds of instruction that no feedback showed, and another language.

Four kinds of instruction and the language of those beyond the river are in the raw text, but in no
demonstration, ranking or prompt of PPO (docs/town.md).
"""
from figures.points import Drawn, Panel, Series, finding, over
from figures.worlds import less, mean

TITLE = "Generalisation"
PAPER = ("Section 4.3 shows by examples that InstructGPT follows instructions in other languages "
         "and about code, though its feedback has few of them. It gives no number.")
MODELS = ("base", "prompted", "sft", "ppo", "ppo-ptx")
ANSWERS = "out/demo/answers.jsonl"
GROUPS = {"kinds held back": "kinds that no feedback showed",
          "second language": "the second language"}


def runs(scale):
    return {}, ["demo"]


def ended(world, model, group):
    """The share of a model's answers in a group of prompts that it ends."""
    return mean([end for line, (_, end) in zip(world.lines(ANSWERS), world.answers(ANSWERS, model))
                 if line.get("group") == group])


def ends(worlds):
    """Why PPO-ptx may lose what SFT has: how many answers are ended in the second language."""
    share = {m: mean([ended(w, m, "second language") for w in worlds]) for m in MODELS}
    if None in share.values():
        return ""
    return ("In the second language PPO-ptx ends {ppo-ptx:.0%} of its answers, SFT {sft:.0%} and "
            "PPO without the text gradient {ppo:.0%}. That language stands in raw text alone: the "
            "text gradient may pull its prompts back to text.").format(**share)


def draw(worlds, scale):
    results = [w.json("out/demo/results.json") for w in worlds]
    score = lambda group, model: [r["groups"][group][model]["gold"]["mean"] for r in results]
    usual = Series("test prompts, as in feedback", [
        (m, over([r["gold"][m] for r in results])) for m in MODELS], line=False)
    own = [Series(title, [(m, over(score(g, m))) for m in MODELS], line=False)
           for g, title in GROUPS.items()]
    above = lambda group, other: less(score(group, "ppo-ptx"), score(group, other))
    return Drawn(
        [Panel("Gold score where feedback showed nothing", "", "gold score", [usual, *own])],
        [finding("PPO-ptx is above the base model on kinds of instruction that no feedback showed",
                 above("kinds held back", "base")),
         finding("PPO-ptx is above SFT on them", above("kinds held back", "sft")),
         finding("PPO-ptx is above the base model in the second language",
                 above("second language", "base")),
         finding("PPO-ptx is above SFT in the second language", above("second language", "sft"),
                 why=ends(worlds)),
         finding("PPO without the text gradient is above SFT in the second language",
                 less(score("second language", "ppo"), score("second language", "sft")))])

"""Generalisation (section 4.3): kinds of instruction that no feedback showed, and another language.

Four kinds of instruction and the language of those beyond the river are in the raw text, but in no
demonstration, ranking or prompt of PPO (docs/town.md).
"""
from figures.points import Drawn, Panel, Series, finding, over
from figures.worlds import less

TITLE = "Generalisation"
PAPER = ("Section 4.3 shows by examples that InstructGPT follows instructions in other languages "
         "and about code, though its feedback has few of them. It gives no number.")
MODELS = ("base", "prompted", "sft", "ppo", "ppo-ptx")
GROUPS = {"kinds held back": "kinds that no feedback showed",
          "second language": "the second language"}


def runs(scale):
    return {}, ["demo"]


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
                 why="There PPO-ptx goes on as raw text: it ends 60 % of its answers, SFT 88 % and "
                     "PPO without the text gradient 87 %. The second language stands in raw text "
                     "alone, so the text gradient pulls its prompts back to text.")])

"""Flags and Likert scores (Figs. 4, 5, 30 and 31), with a baseline in the manner of T0.

T0 of the town is the largest base model, fine-tuned on templated classification, closed questions
and extraction with the shortest answers.
"""
from evals.town import FLAGS, likert
from figures import sizes
from figures.points import Drawn, Panel, Series, alike, finding, over, paper
from figures.preference import GPT, labels
from figures.sizes import ANSWERS, KINDS, RESULTS, SIZES
from figures.worlds import less, mean

TITLE = "Flags and Likert scores"
PAPER = ("Figure 4: from GPT-3 to PPO-ptx answers attempt the instruction and satisfy its "
         "constraints more often, and invent less; SFT invents least. Figure 30, by size: SFT "
         "invents less than PPO-ptx only at 175B. Figure 5: FLAN and T0 are "
         "above GPT-3, and below prompted GPT-3 and SFT; PPO-ptx is preferred to T0 79 ± 4 % of "
         "the time.")
runs = sizes.runs
FIG4 = {"attempts": (.696, .792, .864, .923, .928), "constraint": (.223, .282, .340, .435, .433),
        "hallucinates": (.448, .279, .084, .216, .156)}  # of KINDS
FIG30 = {  # of 1.3B, 6B and 175B
    "attempts": {"base": (.613, .602, .628), "prompted": (.680, .674, .777),
                 "sft": (.845, .819, .865), "ppo": (.904, .928, .920),
                 "ppo-ptx": (.925, .918, .930)},
    "constraint": {"base": (.162, .192, .274), "prompted": (.223, .225, .343),
                   "sft": (.346, .351, .483), "ppo": (.462, .497, .531),
                   "ppo-ptx": (.508, .497, .540)},
    "hallucinates": {"base": (.621, .466, .507), "prompted": (.379, .370, .329),
                     "sft": (.287, .247, .137), "ppo": (.230, .164, .202),
                     "ppo-ptx": (.207, .096, .178)}}
FIG5 = (("base", 2.60), ("prompted", 3.49), ("T0", 3.26), ("sft", 4.08), ("ppo-ptx", 4.83))
FIG31 = {"base": (2.26, 2.19, 2.52), "prompted": (2.69, 2.70, 3.48), "sft": (3.38, 3.58, 3.96),
         "ppo": (4.16, 4.36, 4.58), "ppo-ptx": (4.26, 4.24, 4.78)}
LIKERT = "Likert score, 1 to 7"
LARGEST = {"base": "large-base", "prompted": "large-prompted", "T0": "t0", "sft": "large-sft",
           "ppo-ptx": "large-ppo-ptx"}


def flag(world, size, kind, name):
    """A flag's share."""
    return world.json(RESULTS)["flags"][f"{size}-{kind}"][name]["mean"]


def flag_of_sizes(world, kind, name):
    """A flag's share, the mean over the sizes."""
    return mean([flag(world, s, kind, name) for s in SIZES])


def by_size(worlds, name, names):
    """Panels of a flag over the size: the town's and the paper's. names: of the sizes."""
    ours = [Series(k, [(names[s], over([flag(w, s, k, name) for w in worlds])) for s in SIZES])
            for k in KINDS]
    theirs = [paper(k, list(zip(GPT.values(), FIG30[name][k]))) for k in KINDS]
    return alike(Panel(f"the town, by size: {FLAGS[name]}", "parameters", "share of the answers",
                       ours, percent=True),
                 Panel(f"the paper, Fig. 30: {FLAGS[name]}", "parameters", "share of the answers",
                       theirs, percent=True))


def score(world, model):
    """The mean Likert score that training labelers give a model's answers to the test prompts."""
    prompts = world.tested(ANSWERS)
    return likert(world.town, prompts, world.answers(ANSWERS, model), world.labelers["training"],
                  world.sharpness["training"], 5)


def draw(worlds, scale):
    shares = {f: {k: [flag_of_sizes(w, k, f) for w in worlds] for k in KINDS} for f in FIG4}
    panels = [Panel(FLAGS[f], "", "share of the answers", [
        Series("the town, mean of sizes", [(k, over(own[k])) for k in KINDS], line=False),
        paper("Fig. 4", list(zip(KINDS, FIG4[f])), line=False)], percent=True)
        for f, own in shares.items()]
    scores = {m: [score(w, m) for w in worlds] for m in
              [*(f"{s}-{k}" for s in SIZES for k in KINDS), "t0"]}
    best = {name: scores[m] for name, m in LARGEST.items()}
    name = labels(worlds)
    panels += [
        Panel("Likert scores of the largest models, training labelers", "", LIKERT, [
            Series("the town", [(k, over(v)) for k, v in best.items()], line=False),
            paper("Fig. 5", FIG5, line=False)]),
        *alike(
            Panel("the town, by size: Likert scores of training labelers", "parameters", LIKERT, [
                Series(k, [(name[s], over(scores[f"{s}-{k}"])) for s in SIZES]) for k in KINDS]),
            Panel("the paper, Fig. 31: Likert scores of training labelers", "parameters", LIKERT, [
                paper(k, list(zip(GPT.values(), FIG31[k]))) for k in KINDS]))]
    panels += [panel for f in FIG30 for panel in by_size(worlds, f, name)]
    wins = lambda pair: [w.json(RESULTS)["win_rate"][pair]["mean"] for w in worlds]
    least = lambda f: [min(b - a for a, b in zip(v, v[1:])) for v in
                       zip(*(shares[f][k] for k in ("base", "prompted", "sft", "ppo-ptx")))]
    return Drawn(panels, [
        finding("from base to prompted to SFT to PPO-ptx answers attempt the instruction more "
                "often (the least step)", least("attempts"), "{:.1%}"),
        finding("from base to prompted to SFT to PPO-ptx answers satisfy constraints more often "
                "(the least step)", least("constraint"), "{:.1%}"),
        finding("PPO-ptx invents less than the base model",
                less(shares["hallucinates"]["base"], shares["hallucinates"]["ppo-ptx"]), "{:.1%}"),
        finding("SFT invents less than PPO-ptx (the mean of the sizes)",
                less(shares["hallucinates"]["ppo-ptx"], shares["hallucinates"]["sft"]), "{:.1%}",
                "Small models learn it from feedback rather than from few demonstrations. By size "
                "the paper has this order too: only its largest SFT model invents less."),
        finding("the largest SFT model invents less than the largest PPO-ptx",
                [flag(w, "large", "ppo-ptx", "hallucinates")
                 - flag(w, "large", "sft", "hallucinates") for w in worlds], "{:.1%}"),
        finding("T0 is below SFT on people's prompts (Likert)", less(best["sft"], best["T0"])),
        finding("T0 is below the prompted base model (Likert)",
                less(best["prompted"], best["T0"]), why="T0 has learned where an answer ends. "
                "The prompted model often goes on after it."),
        finding("T0 is above the base model (Likert)", less(best["T0"], best["base"])),
        finding("PPO-ptx is preferred to T0 (above 50 %)", wins("large-ppo-ptx vs t0"), "{:.1%}",
                above=0.5)])

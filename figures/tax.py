"""The alignment tax (section 4.2, Figs. 33 to 35 and 38): few-shot probes and gold over gamma, over
beta, in longer training and over the learning rate."""
from pathlib import Path

import ppo
from figures.flags import LIKERT
from figures.overoptimisation import BETAS, ITERATIONS, place, policies
from figures.plan import DEMO, MODELS, Run, model
from figures.points import Drawn, Panel, Series, finding, over, paper
from figures.worlds import less

TITLE = "The alignment tax"
PAPER = ("PPO loses on public tasks against GPT-3. Figure 33: with gamma of 20 and more the losses "
         "on DROP and SQuADv2 are gone at 1.3B, at a cost in reward that grows. Figure 34: beta "
         "alone never gives them back, even at 100 times the default. Figure 35: twice the "
         "episodes end slightly below GPT-3, and do not help. Figure 38: PPO without the "
         "pretraining gradient diverges at learning rates at which PPO-ptx does not.")
GAMMAS = (0.1, 1.0, 3.0)  # besides 0 and the demo's
LONGER = (32, 64)  # iterations, besides the demo's
RATES = (1 / 4, 4)  # times the demo's
FIG33 = {0.46: (52.0, 18.2, -.61), 0.77: (54.0, 19.0, -.61), 1.29: (55.0, 19.3, -.60),
         2.15: (57.0, 21.9, -.63), 3.6: (58.4, 20.5, -.66), 6.0: (58.6, 21.5, -.66),
         10: (59.9, 24.4, -.71), 16.7: (60.2, 24.9, -.76), 27.8: (60.7, 26.4, -.85),
         46.4: (60.8, 26.4, -.98), 77: (60.8, 26.6, -1.17),
         129: (60.9, 26.5, -1.55)}  # gamma: F1 on SQuADv2 and DROP, reward on validation prompts
FIG34 = {5.4e-5: (.4, .3, 1.2), 2e-4: (2.7, .6, 2.58), 7.5e-4: (.5, .4, 2.66),
         2.8e-3: (1.8, .3, 2.43), 1.04e-2: (42.8, 12.0, -.53), 3.9e-2: (50.0, 19.8, -1.03),
         .144: (50.2, 21.5, -1.84), .54: (53.6, 21.3, -2.55),
         2.0: (46.8, 15.4, -2.79)}  # beta: the same, gamma is 0
FIG35 = {.5: (62.8, 26.3), 65: (61.7, 25.1), 131: (60.4, 24.7), 196: (57.1, 24.7),
         262: (57.8, 24.3), 328: (56.1, 23.6), 393: (56.7, 24.3), 459: (56.0, 23.6),
         512: (56.1, 23.8)}  # thousand episodes: F1 on SQuADv2 and DROP
FIG38 = {"ppo-ptx": {2.55: 3.92, 3.74: 3.95, 5.49: 3.94, 8.05: 3.93, 11.8: 4.31, 17.4: 4.18,
                     25.5: 4.10},
         "ppo": {2.55: 3.92, 3.74: 4.05, 5.49: 3.83, 8.05: 3.73}}  # rate in 1e-6: Likert, of 1.3B
TASKS = "SQuADv2", "DROP"
GPT3 = .592, .254  # the same of GPT-3
RESULTS = "out/tax/eval/results.json"


def grids(scale):
    """{name of the grid: [(value, name of the model)]}; names of models are those of folders."""
    demo = ppo.Settings
    lr = scale.rate("ppo")
    rates = lambda kind: sorted([(lr, kind), *((lr * r, f"{kind}-rate-{lr * r:g}")
                                               for r in scale.few(RATES, 1))])
    return {"gamma": sorted([(0.0, "ppo"), (demo.ptx, "ppo-ptx"),
                             *((g, f"gamma-{g:g}") for g in scale.few(GAMMAS, 1))]),
            "beta": [(b, Path(place("all rankings", b)).name) for b in scale.few(BETAS)],
            "iterations": [(demo.iterations, "ppo-ptx"),
                           *((n, f"iterations-{n}") for n in scale.few(LONGER, 1))],
            "ppo": rates("ppo"), "ppo-ptx": rates("ppo-ptx")}


def runs(scale):
    grid, out = grids(scale), policies(scale, ["all rankings"])
    flags = {"gamma": "--ptx={}", "iterations": "--iterations={}",
             "ppo": "--preset=ppo --lr={}", "ppo-ptx": "--lr={}"}
    for name, flag in flags.items():
        for value, own in grid[name]:
            if own not in MODELS:
                out[own] = model(f"PPO, {own}", f"ppo.py {flag.format(f'{value:g}')}",
                                 f"out/tax/{own}", "rm")
    models = {**MODELS, **{Path(run.done).parent.name: Path(run.done).parent.as_posix()
                           for run in out.values()}}
    out["tax"] = Run("evaluation over gamma, beta, iterations and rates", "evaluate.py --models="
                     + ",".join(f"{name}={path}" for name, path in models.items())
                     + " --out=out/tax/eval", RESULTS, (*DEMO["demo"].needs, *out))
    return out, ["tax"]


def published(title, x, theirs, log):
    """The panel of the paper's few-shot tasks."""
    return Panel(title, x, "F1", [paper(task, [(value, f[k] / 100) for value, f in theirs.items()])
                                  for k, task in enumerate(TASKS)],
                 percent=True, log=log, refs=GPT3, ref="GPT-3")


def over_a_price(title, x, theirs, figure, probes, golds, base):
    """Panels over gamma or beta, the town's and the paper's: probes, and what they cost."""
    return [
        Panel(f"Few-shot probes over {title}", x, "few-shot probes right",
              [Series("few-shot probes", probes)], percent=True, log=True, refs=(base,),
              ref="the base model"),
        published(f"the paper, {figure}: tasks over {x}", x, theirs, log=True),
        Panel(f"Gold over {title}", x, "gold score", [Series("gold", golds)], log=True),
        Panel(f"the paper, {figure}: reward over {x}", x, "reward on validation prompts",
              [paper("the reward model's score", [(value, f[2]) for value, f in theirs.items()])],
              log=True)]


def draw(worlds, scale):
    results, grid = [w.json(RESULTS) for w in worlds], grids(scale)
    gold = lambda name: [r["gold"][name] for r in results]
    probe = lambda name: [r["probe_kinds"][name]["few-shot"] for r in results]
    base = over(probe("base"))["mean"]
    probes = lambda points: [(x, over(probe(name))) for x, name in points]
    golds = lambda points: [(x, over(gold(name))) for x, name in points]
    panels = []
    for x, title, theirs, figure in (
            ("gamma", "gamma", FIG33, "Fig. 33"),
            ("beta", f"beta, gamma 0, {ITERATIONS} iterations", FIG34, "Fig. 34")):
        panels += over_a_price(title, x, theirs, figure, probes(grid[x]), golds(grid[x]), base)
    panels += [
        Panel("Longer training of PPO-ptx", "iterations", "few-shot probes right", [
            Series("few-shot probes", probes(grid["iterations"]))], percent=True, refs=(base,),
            ref="the base model"),
        published("the paper, Fig. 35: tasks in longer training", "thousand episodes", FIG35,
                  log=False),
        Panel("Gold over the learning rate", "learning rate", "gold score", [
            Series(k, golds(grid[k])) for k in ("ppo", "ppo-ptx")], log=True),
        Panel("the paper, Fig. 38: 1.3B over the learning rate; PPO diverges beyond its last point",
              "learning rate, 1e-6", LIKERT,
              [paper(k, list(FIG38[k].items())) for k in ("ppo", "ppo-ptx")], log=True),
        Panel("Gold in longer training of PPO-ptx", "iterations", "gold score",
              [Series("gold", golds(grid["iterations"]))])]
    most, longest = grid["gamma"][-1][1], grid["iterations"][-1][1]
    best_beta = [max(v) for v in zip(*(probe(name) for _, name in grid["beta"]))]
    fastest = {k: gold(grid[k][-1][1]) for k in ("ppo", "ppo-ptx")}
    return Drawn(panels, [
        finding("PPO loses few-shot patterns of the base model", less(probe("base"), probe("ppo")),
                "{:.1%}"),
        finding("a larger gamma gives them back (the largest against 0)",
                less(probe(most), probe("ppo")), "{:.1%}"),
        finding("no beta alone gives back what the largest gamma does (beta's runs are twice as "
                "long)", less(probe(most), best_beta), "{:.1%}"),
        finding("the largest gamma costs gold score (against the demo's)",
                less(gold("ppo-ptx"), gold(most))),
        finding("longer training loses more of the patterns",
                less(probe("ppo-ptx"), probe(longest)), "{:.1%}"),
        finding("longer training of PPO-ptx does not help (gold score lost)",
                less(gold("ppo-ptx"), gold(longest))),
        finding("at the highest learning rate PPO is worse than PPO-ptx (gold)",
                less(fastest["ppo-ptx"], fastest["ppo"]))])

"""Over-optimisation (Gao et al. 2022): the reward model's score and the gold score, by distance.

The policy moves away from its start in two ways: the best of n samples, picked by the reward model
(unbiased estimates, evals/metrics.py), and PPO over beta. Each with two reward models, from all
rankings and from a sixteenth of them. Gains are those over the start; d = sqrt(KL).
"""
import functools
import math

import numpy as np

from evals.metrics import best_of_n, best_of_n_kl
from figures.flags import LIKERT
from figures.plan import measured, model
from figures.points import Drawn, Panel, Series, curve, finding, fit, over, paper, told
from figures.reward_model import SHARES, on_share
from figures.worlds import less, mean

TITLE = "Over-optimisation"
PAPER = ("Gao et al. (2022): the gold score follows d(a − b d) for best-of-n and d(a − b log d) "
         "for RL, so it rises and falls while the reward model's score keeps rising; for reward "
         "models with more data or parameters gold rises higher and b is smaller. RL moves much "
         "further than best-of-n. "
         "Stiennon et al. (2020) and figure 36 of the paper: the optimum is at a small beta, and "
         "beta = 0 is the worst. Gao's a and b are read off their figure 3; their gold is in "
         "standard deviations of a reward model.")
FIG36 = {0: 2.14, 7.5e-4: 3.03, .0104: 4.12, .02: 3.90, .03: 3.74, .144: 3.74, 2.0: 3.12}
GAO = {"best-of-n": {"3M": (.49, .120), "3B": (.66, .090)},  # parameters of the reward model: a, b
       "PPO": {"3M": (.35, .175), "3B": (.35, .118)}}
SHOWN = {"best-of-n": 2.5, "PPO": 8.0}  # d up to which Gao's curves are drawn
FEW = f"share-{SHARES[0]:g}"
RMS = {"all rankings": "out/rm", "a sixteenth": f"out/rms/{FEW}"}
NAMES = {"all rankings": "all", "a sixteenth": "few"}  # of their files
NEEDS = {"all rankings": "rm", "a sixteenth": f"rm {FEW}"}  # the runs
BETAS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
ITERATIONS = 32  # twice those of the demo: without a penalty the KL grows with each
PROMPTS, N, COPIES = 200, 64, 4  # test prompts; samples of each from the start, from a policy
FORMS = {"best-of-n": "d(a - b d)", "PPO": "d(a - b log d)"}
AXIS = "d = square root of KL in nats"


def place(rm, beta):
    """The folder of a policy that PPO trained against a reward model."""
    return f"out/overopt/{NAMES[rm]}-beta-{beta:g}"


def samples(rm):
    """The file of N samples of each prompt from the start, scored by a reward model."""
    return f"out/overopt/{NAMES[rm]}-samples.jsonl"


def policies(scale, rms=RMS):
    """The runs of PPO over beta, without the pretraining gradient: {name: run}."""
    return {f"ppo {place(rm, beta)}": model(
        f"PPO, beta {beta:g}, reward model of {rm}",
        f"ppo.py --preset=ppo --beta={beta:g} --iterations={ITERATIONS} --reward={RMS[rm]}",
        place(rm, beta), "init", NEEDS[rm]) for rm in rms for beta in scale.few(BETAS)}


def runs(scale):
    out = {**on_share(SHARES[0]), **policies(scale)}
    for rm, path in RMS.items():
        out[f"samples {rm}"] = measured("out/init", path, samples(rm), ("init", NEEDS[rm]),
                                        f"--prompts={PROMPTS} --copies={N}")
        for beta in scale.few(BETAS):
            policy = place(rm, beta)
            out[f"measure {policy}"] = measured(policy, path, f"{policy}.jsonl",
                                                (f"ppo {policy}",),
                                                f"--prompts={PROMPTS} --copies={COPIES}")
    return out, [name for name in out if name.startswith(("samples", "measure"))]


@functools.cache
def best_of(world, rm):
    """[(d, gain of the score, gain of gold)] for n = 1, 2, 4, ... samples."""
    rows = [[(c["score"], c["gold"]) for c in line["completions"]]
            for line in world.lines(samples(rm))]
    counts = [2**k for k in range(int(math.log2(len(rows[0]))) + 1)]
    value = lambda n, which: mean([best_of_n([c[0] for c in own], [c[which] for c in own], n)
                                   for own in rows])
    return [(math.sqrt(best_of_n_kl(n)), *(value(n, k) - value(1, k) for k in (0, 1)))
            for n in counts]


@functools.cache
def trained(world, rm, betas):
    """[(d, gain of the score, gain of gold)] of PPO at each beta."""
    start = [c for line in world.lines(samples(rm)) for c in line["completions"]]
    out = []
    for beta in betas:
        own = [c for line in world.lines(f"{place(rm, beta)}.jsonl") for c in line["completions"]]
        of = lambda name: mean([c[name] for c in own])
        gain = lambda name: of(name) - mean([c[name] for c in start])
        out.append((math.sqrt(max(0.0, of("ratio"))), gain("score"), gain("gold")))
    return out


def with_error(m):
    """A mean over worlds and half its interval."""
    error = "" if m["low"] is None else f" ± {(m['high'] - m['low']) / 2:.2f}"
    return f"{m['mean']:.2f}{error}"


def panel(title, form, ways):
    """One way with one reward model: score and gold over the distance, and the fit to gold.

    ways: for each world [(d, gain of the score, gain of gold)]. Returns (panel, {coefficient: its
    values in the worlds}).
    """
    at = [mean(d) for d in zip(*([p[0] for p in way] for way in ways))]
    lines = [Series(name, [(d, over(v)) for d, v in zip(at, zip(*([p[k] for p in way]
                                                                  for way in ways)))],
                    line=False) for k, name in ((1, "the reward model's score"), (2, "gold"))]
    fits = [fit(form, [p[0] for p in way], [p[2] for p in way]) for way in ways]
    found = {"a": [f and f[0] for f in fits], "b": [f and f[1] for f in fits]}
    if None not in fits and (longest := max(at)) > 0:
        a, b = map(over, found.values())
        lines.append(Series(f"gold as {form}, a {with_error(a)}, b {with_error(b)}", [
            (d, over([y])) for d, y in curve(form, a["mean"], b["mean"], longest)], marks=False))
    return Panel(title, AXIS, "gain over the start, points", lines), found


def over_beta(ways, betas):
    """The panel of gold over beta. ways: for each reward model what `panel` takes."""
    return Panel(f"PPO over beta, {ITERATIONS} iterations", "beta", "gain in gold, points", [
        Series(f"reward model of {rm}", [(beta, over([way[i][2] for way in own]))
                                         for i, beta in enumerate(betas)])
        for rm, own in ways.items()], log=True)


def published(ours):
    """Panels of Gao et al.'s fits, and of figure 36 beside our panel over beta."""
    panels = [Panel(f"Gao et al., {way}: gold as {FORMS[way]}", AXIS, "gain over the start", [
        paper(f"reward model of {size} parameters", curve(FORMS[way], a, b, SHOWN[way]),
              marks=False) for size, (a, b) in sizes.items()]) for way, sizes in GAO.items()]
    return [*panels, ours, Panel("the paper, Fig. 36: PPO-ptx over beta", "beta", LIKERT, [
        paper("1.3B", list(FIG36.items()))], log=True)]


def distance_at(points, score):
    """The distance at which the reward model's score has risen that much, between the nearest
    points."""
    d, scores, _ = zip(*sorted([(0.0, 0.0, 0.0), *points]))
    return float(np.interp(score, np.maximum.accumulate(scores), d))


def bends(way, rm, a, b):
    """The finding that gold bends down as the policy moves away: b > 0 in the fit."""
    found = finding(f"gold bends down with {way} (reward model of {rm})", b)
    found.reached = f"{FORMS[way]}: b {found.reached}; a {told(over(a))}"
    return found


def draw(worlds, scale):
    betas, panels, found, made, tops = tuple(scale.few(BETAS)), [], {}, {}, {}
    for rm in RMS:
        for way, points in (("best-of-n", lambda w: best_of(w, rm)),
                            ("PPO", lambda w: trained(w, rm, betas))):
            ways = [points(w) for w in worlds]
            drawn, found[way, rm] = panel(f"{way}, reward model of {rm}", FORMS[way], ways)
            panels.append(drawn)
            made[way, rm] = ways
            tops[way, rm] = [max(p[2] for p in own) for own in ways]
    every, few = RMS
    findings = [bends(way, rm, **own) for (way, rm), own in found.items()]
    for way in ("best-of-n", "PPO"):
        findings += [
            finding(f"with {way} more rankings let gold rise higher (its highest point)",
                    less(tops[way, every], tops[way, few])),
            finding(f"with {way} more rankings bend gold less (difference of b)",
                    less(found[way, few]["b"], found[way, every]["b"]), why="More rankings show "
                    "in how high gold rises; a fit to a few points in three worlds cannot tell "
                    "more.")]
    gains = lambda rm, i, k: [trained(w, rm, betas)[i][k] for w in worlds]
    middle = len(betas) // 2
    findings += [
        finding(f"beta = 0 has less gold than beta = {betas[middle]:g} (reward model of {rm})",
                less(gains(rm, middle, 2), gains(rm, 0, 2))) for rm in RMS]
    findings += [
        finding(f"beta = 0 has a higher score than beta = {betas[-1]:g} (reward model of {rm})",
                less(gains(rm, 0, 1), gains(rm, -1, 1))) for rm in RMS]
    findings += [
        finding(f"PPO moves further than best-of-n for the same score (d, reward model of {rm})",
                [distance_at(ppo, bon[-1][1]) - bon[-1][0] for ppo, bon in
                 zip(made["PPO", rm], made["best-of-n", rm])]) for rm in RMS]
    panels += published(over_beta({rm: made["PPO", rm] for rm in RMS}, betas))
    return Drawn(panels, findings, examples(worlds[0]))


def examples(world, n=6):
    """What is said at the start, and what PPO makes of it without a penalty: [(prompt, [(name,
    text)])]."""
    first = lambda path: [line["completions"][0]["text"] for line in world.lines(path)]
    files = {"the start": samples("all rankings"), **{
        f"beta {beta:g}, {rm}": f"{place(rm, beta)}.jsonl" for beta, rm in
        ((0.1, "all rankings"), (0.0, "all rankings"), (0.0, "a sixteenth"))}}
    answers = {name: first(path) for name, path in files.items() if (world.folder / path).exists()}
    prompts = [line["prompt"] for line in world.lines(files["the start"])]
    return [(prompts[i], [(name, own[i]) for name, own in answers.items()])
            for i in range(0, len(prompts), max(1, len(prompts) // n))][:n]

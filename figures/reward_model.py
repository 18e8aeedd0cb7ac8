"""The reward model (sections 3.4 and 4.1, App. C.2 and E.2): labelers, data, epochs, batches.

Five groups of training labelers with about as many rankings each: a model is trained without one
group, and judged by its labels and by those of the others, on prompts that no training saw.
"""
from figures.plan import Run, model
from figures.points import Drawn, Panel, Series, finding, over, paper
from figures.worlds import less, mean

TITLE = "The reward model"
PAPER = ("5-fold cross-validation over labelers, 3 seeds: 72.4 ± 0.4 % on labels of the groups "
         "that were trained on, 69.6 ± 0.9 % on those of the group left out. More than one epoch "
         "overfits at once. If the pairs of a prompt are shuffled among others instead of being "
         "one batch element, one epoch already overfits. (Stiennon et al. 2020: 1.1 points for "
         "each doubling of the data.)")
FOLDS = range(5)
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the rankings
PART = 1 / 4  # of them, for the epochs, K and the pairs
EPOCHS, COMPLETIONS = (2, 4), (2, 4)
WHO = {"train_labelers": "training labelers", "heldout_labelers": "held-out labelers"}
PAIRS = 64  # a step: about as many as 4 prompts with all their completions have


def trained(name, what, data, flags="", needs=("labels", "labels valid", "init")):
    """{name: run}: the data of an experiment, and its reward model."""
    own = f"out/rms/{name}"
    return {f"rm data {name}": Run(f"rankings, {what}", f"-m figures.rankings {data} "
                                   f"--out={own}-data", f"{own}-data/rankings.json", needs),
            f"rm {name}": model(f"reward model, {what}", f"reward.py --data={own}-data {flags}",
                                own, f"rm data {name}", "init")}


def on_share(share):
    """A reward model of a share of the rankings: {name: run}. Figures share it."""
    return trained(f"share-{share:g}", f"{share:.1%} of the prompts", f"--share={share}")


def runs(scale):
    out, part = {}, f"--share={PART}"
    for k in scale.few(FOLDS):
        out |= trained(f"fold-{k}", f"without group {k}", f"--fold={k}")
    for share in sorted({*scale.few(SHARES[::-1], 1), PART}):
        out |= on_share(share)
    for n in scale.few(EPOCHS, 1):
        out |= trained(f"epochs-{n}", f"{n} epochs", part, f"--epochs={n}")
    for k in scale.few(COMPLETIONS, 1):
        out |= trained(f"k-{k}", f"K = {k}", f"{part} --completions={k}")
    out |= trained("pairs", "shuffled pairs", f"{part} --pairs",
                   f"--batch={PAIRS} --micro_batch={PAIRS}")
    return out, ["rm", *(name for name in out if "data" not in name)]


def accuracy(worlds, name, who="train_labelers"):
    """Of a reward model on held-out labels, in each world."""
    return [w.accuracy(f"out/rms/{name}" if name else "out/rm").get(who) for w in worlds]


def training(worlds, name):
    """The accuracy on the training batches of the last quarter of a run."""
    logs = [[line["accuracy"] for line in w.lines(f"out/rms/{name}/log.jsonl")] for w in worlds]
    return [mean(log[-max(1, len(log) // 4):]) for log in logs]


def draw(worlds, scale):
    folds = scale.few(FOLDS)
    seen, left_out = ([mean(v) for v in zip(*(accuracy(worlds, f"fold-{k}", who) for k in folds))]
                      for who in ("train_labelers", "heldout_labelers"))
    base = f"share-{PART:g}"
    grid = lambda names: [(x, over(accuracy(worlds, name))) for x, name in names]
    shares = [(100 * s, f"share-{s:g}") for s in sorted({*scale.few(SHARES[::-1], 1), PART})]
    epochs = [(1, base), *((n, f"epochs-{n}") for n in scale.few(EPOCHS, 1))]
    panels = [
        Panel("Cross-validation over labelers", "", "accuracy", [
            Series("the town", [("trained on", over(seen)), ("left out", over(left_out))],
                   line=False),
            paper("section 4.1", [("trained on", .724), ("left out", .696)], line=False)],
            percent=True),
        Panel("Number of prompts", "prompts, % of all", "held-out accuracy", [
            Series(WHO[who], [
                (x, over(accuracy(worlds, name, who))) for x, name in [*shares, (100, None)]])
            for who in ("train_labelers", "heldout_labelers")], percent=True, log=True),
        Panel("Completions of a prompt", "K, at most", "held-out accuracy", [
            Series("training labelers", grid([*((k, f"k-{k}") for k in scale.few(COMPLETIONS, 1)),
                                              (9, base)]))],
            percent=True),
        Panel("Epochs", "epochs", "accuracy", [
            Series("held-out labels", grid(epochs)),
            Series("training batches", [(n, over(training(worlds, name))) for n, name in epochs])],
            percent=True),
        Panel("How pairs come in batches", "", "accuracy", [
            Series(title, [("all of a prompt", over(of(worlds, base))),
                           ("shuffled", over(of(worlds, "pairs")))], line=False)
            for title, of in (("held-out labels", accuracy), ("training batches", training))],
            percent=True)]
    gap = lambda name: less(training(worlds, name), accuracy(worlds, name))
    return Drawn(panels, [
        finding("labels of the group left out are predicted less well (in the paper by 2.8 %)",
                less(seen, left_out), "{:.1%}", "The training labelers of the town have one common "
                "taste, and personal tastes around it that nearly average out.", size=0.028),
        finding("more prompts give a better reward model",
                less(accuracy(worlds, None), accuracy(worlds, shares[0][1])), "{:.1%}"),
        finding("one epoch is better than more (the least difference)",
                [None if None in v else min(v) for v in zip(*(
                    less(accuracy(worlds, base), accuracy(worlds, n)) for _, n in epochs[1:]))],
                "{:.1%}",
                "With more epochs the training batches rise far above the held-out labels, as in "
                "the paper; but these neither rise nor fall by more than the worlds differ."),
        finding("all pairs of a prompt in one batch element are better than shuffled pairs",
                less(accuracy(worlds, base), accuracy(worlds, "pairs")), "{:.1%}",
                "Shuffled, a completion comes in several steps, as it does in several epochs: the "
                "model overfits (the next line). But as with more epochs, that does not cost it "
                "held-out accuracy here."),
        finding("shuffled pairs overfit within one epoch (gap between training and held-out "
                "accuracy, against that of whole prompts)", less(gap("pairs"), gap(base)),
                "{:.1%}")])

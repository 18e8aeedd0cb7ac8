"""Figures of a finished demo: `make figures`, or `python -m evals.figures` with matplotlib.

Six panels from the JSON that the other scripts wrote; only running means are computed here.
"""
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

from data import records
from evals.town import FLAGS
from settings import extra, parse, stop


@dataclass
class Settings:
    """The figures. Every setting is --name=value."""
    demo: str = "out/demo"  # folder with results.json; figures.png is written there
    rm: str = "out/rm"  # the reward model whose training is drawn
    ppo: str = "out/ppo,out/ppo-ptx"  # the policies whose training is drawn


def smooth(values, width):
    """The running mean of the last `width` values."""
    return [sum(values[max(0, i - width) : i]) / min(i, width) for i in range(1, len(values) + 1)]


def read_log(folder):
    """The lines of a training log."""
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        stop(f"no {path}: run `make demo` first")
    return [json.loads(line) for line in path.read_text().splitlines()]


def preferences(ax, results):
    """Win rates with their intervals, as in figure 1 of the paper."""
    pairs = list(results["win_rate"].items())[::-1]
    for y, (_, w) in enumerate(pairs):
        low, high = (w["mean"] if w[end] is None else w[end] for end in ("low", "high"))
        ax.errorbar(w["mean"], y, xerr=[[w["mean"] - low], [high - w["mean"]]], fmt="o",
                    color="C0", capsize=3)
        ax.annotate(f"{w['mean']:.0%}", (w["mean"], y), (0, 7), textcoords="offset points",
                    ha="center")
    ax.axvline(0.5, color="grey", linestyle=":")
    ax.set(xlim=(0, 1.03), ylim=(-0.6, len(pairs) - 0.3), title="preferred by held-out labelers",
           xlabel="win rate, 95 % interval", yticks=range(len(pairs)),
           yticklabels=[name for name, _ in pairs])


def bars(ax, groups, title, percent=False, limits=None):
    """groups: {name of a bar's colour: {place: length}}; horizontal bars, a cluster for each place,
    so that its name has room."""
    places = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for k, (name, lengths) in enumerate(groups.items()):
        ax.barh([i + (k - (len(groups) - 1) / 2) * width for i in range(len(places))],
                [float("nan") if lengths[p] is None else lengths[p] * (100 if percent else 1)
                 for p in places], width, label=name)  # no bar if not measured
    ax.axvline(0, color="black", linewidth=0.5)
    ax.set(title=title, yticks=range(len(places)), xlim=limits)
    ax.set_yticklabels([textwrap.fill(p, 14) for p in places], fontsize=8)
    ax.invert_yaxis()  # the first place and the first name on top
    ax.legend(fontsize=7)


def reward_training(ax, results, rm):
    """The share of pairs in the right order in training, and on held-out labels."""
    log, accuracy = read_log(rm), results["rm_accuracy"]
    ax.plot([r["step"] for r in log], smooth([r["accuracy"] for r in log], max(1, len(log) // 20)),
            label="training batches, running mean")
    for k, (name, value) in enumerate(accuracy.items()):
        ax.axhline(value, color=f"C{1 + k % 2}" if "heldout" in name else f"C{3 + k % 2}",
                   linestyle="--" if "ceiling" in name else "-", label=name.replace("_", " "))
    ax.set(title="reward model: agreement with labels", xlabel="step", ylim=(0.5, 0.95))
    ax.legend(fontsize=7, loc="lower right")


def ppo_training(ax, folders):
    """Reward-model score against the KL that it cost, one point an iteration."""
    for folder in folders:
        log = read_log(folder)
        ax.plot([r["kl"] for r in log], smooth([r["score"] for r in log], 5), marker=".",
                label=Path(folder).name)
    ax.set(title="PPO: score against distance", xlabel="KL from the start, nats an episode",
           ylabel="reward-model score, mean of 5 iterations")
    ax.legend(fontsize=7)


def main():
    s = parse(Settings)
    extra("matplotlib", "python -m evals.figures").use("Agg")  # to a file: no window is needed
    plt = extra("matplotlib.pyplot", "python -m evals.figures")
    results = records.read_json(f"{s.demo}/results.json", "make demo")
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    preferences(axes[0, 0], results)
    parts = {name: {"score": results["gold"][name], **results["gold_parts"][name]}
             for name in results["gold"]}
    bars(axes[0, 1], parts, "gold score and its parts")
    bars(axes[0, 2], {name: {FLAGS[f]: v["mean"] for f, v in shares.items()}
                      for name, shares in results["flags"].items()},
         "flags, % of answers", percent=True)
    reward_training(axes[1, 0], results, s.rm)
    ppo_training(axes[1, 1], s.ppo.split(","))
    low = min(min(kinds.values()) for kinds in results["probe_kinds"].values())
    bars(axes[1, 2], results["probe_kinds"], "few-shot probes, % (axis cut)", percent=True,
         limits=(max(0, 100 * low - 5), 100.5))
    out = Path(s.demo) / "figures.png"
    figure.savefig(out, dpi=100)
    print(f"figures: {out}")


if __name__ == "__main__":
    main()

"""Reads the demo's results and fails where one of its promises is broken.

    python tests/check_demo.py out/demo/results.json                  one run
    python tests/check_demo.py runs/seed-*/out/demo/results.json      several, and their mean
"""
import json
import sys


def promises(r):
    """[(what is promised, whether it holds, what was reached)] of a results.json."""
    rm, win, gold, probes = r["rm_accuracy"], r["win_rate"], r["gold"], r["probes"]
    base, sft = win["ppo-ptx vs base"], win["ppo-ptx vs sft"]
    show = lambda w: f"{w['mean']:.1%} [{w['low']:.1%}, {w['high']:.1%}] of {w['n']}"
    return [
        ("training labelers agree on 72.6 ± 1.5 % of untied pairs",
         abs(r["labeler_agreement"] - 0.726) <= 0.015, f"{r['labeler_agreement']:.1%}"),
        ("the reward model is right on at least 70 % of held-out labels",
         rm["train_labelers"] >= 0.70, f"{rm['train_labelers']:.1%}"),
        ("... and within 10 points of its ceiling",
         rm["ceiling"] - rm["train_labelers"] <= 0.10, f"ceiling {rm['ceiling']:.1%}"),
        ("PPO-ptx is preferred to the base model at least 85 % of the time",
         base["mean"] >= 0.85, show(base)),
        ("PPO-ptx is preferred to SFT at least 60 % of the time, interval above 50 %",
         sft["mean"] >= 0.60 and sft["low"] > 0.50, show(sft)),
        ("gold score: base < SFT < PPO-ptx", gold["base"] < gold["sft"] < gold["ppo-ptx"],
         ", ".join(f"{k} {v:.2f}" for k, v in gold.items())),
        ("few-shot probes: PPO without ptx loses against the base model",
         probes["ppo"] < probes["base"], f"{probes['ppo']:.1%} of {probes['base']:.1%}"),
        ("... and PPO-ptx keeps at least 95 % of its score",
         probes["ppo-ptx"] >= 0.95 * probes["base"],
         f"{probes['ppo-ptx']:.1%} of {probes['base']:.1%}"),
    ]


def numbers(r, path=""):
    """The numbers of nested objects: {"gold/sft": 2.2, ...}."""
    if isinstance(r, dict):
        return {k: v for name, x in r.items() for k, v in numbers(x, f"{path}/{name}").items()}
    return {path[1:]: float(r)}


def summary(runs):
    """Lines with the mean, least and largest of each number that all of several runs have."""
    tables = [numbers(r) for r in runs]
    lines = [f"{'mean of ' + str(len(runs)):>12} {'least':>9} {'largest':>9}"]
    for name in tables[0]:
        if all(name in t for t in tables):
            values = [t[name] for t in tables]
            lines.append(f"{sum(values) / len(values):12.3f} {min(values):9.3f} "
                         f"{max(values):9.3f}  {name}")
    return lines


def main():
    runs = [json.load(open(path)) for path in sys.argv[1:]]
    if not runs:
        raise SystemExit(__doc__)
    if len(runs) > 1:
        print("\n".join(summary(runs)))
    broken = 0
    for path, results in zip(sys.argv[1:], runs):
        print(f"\n{path}" if len(runs) > 1 else "", end="\n" if len(runs) > 1 else "")
        for promise, holds, reached in promises(results):
            broken += not holds
            print(f"{'kept  ' if holds else 'BROKEN'} {promise}: {reached}")
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()

"""The town's results as text."""
from evals.town import FLAGS


def told(value, form, else_="not measured"):
    """A number in its format; None becomes "not measured"."""
    return else_ if value is None else form.format(value)


def table(results):
    """The results as the lines of a Markdown table or two."""
    lines = ["| | " + " | ".join(results["gold"]) + " |", "|---|" + "---|" * len(results["gold"])]
    row = lambda title, values, f: lines.append(
        f"| {title} | " + " | ".join(told(v, f) for v in values) + " |")
    row("parameters", results["parameters"].values(), "{:,}")
    row("gold score", results["gold"].values(), "{:.2f}")
    for part in ("helpful", "honest", "harmless"):
        row(f"- {part}", [v[part] for v in results["gold_parts"].values()], "{:.2f}")
    row("Likert, held-out labelers", results["likert"].values(), "{:.2f}")
    for flag, title in FLAGS.items():
        row(title, [v[flag] for v in results["flags"].values()], "{:.0%}")
    for kind in next(iter(results["probe_kinds"].values())):
        row(f"probe: {kind}", [v[kind] for v in results["probe_kinds"].values()], "{:.1%}")
    lines += ["", "| preferred by held-out labelers | win rate | 95 % interval | "
              "if courtesies were not seen |", "|---|---|---|---|"]
    for pair, w in results["win_rate"].items():
        share = lambda x: told(x, "{:.1%}")
        span = lambda x: told(x["low"], f"{{:.1%}} to {share(x['high'])}")
        blind = results["win_rate_without_taste"][pair]
        lines.append(f"| {pair} | {share(w['mean'])} | {span(w)} | {share(blind['mean'])} "
                     f"({span(blind)}) |")
    rm = ", ".join(f"{k.replace('_', ' ')} {v:.1%}" for k, v in results["rm_accuracy"].items())
    lines += ["", told(results["labeler_agreement"], "Training labelers agree with each other on "
                       "{:.1%} of untied pairs.",
                       "How often training labelers agree with each other was not measured.")
              + (f" The reward model agrees with {rm}." if rm else
                 " The reward model was not measured.")]
    return lines


def examples(prompts, answers, rng, n=12):
    """Side by side: what each model said to some of the test prompts."""
    lines = []
    for i in sorted(rng.sample(range(len(prompts)), min(n, len(prompts)))):
        lines += ["", f"**{prompts[i]['category']}**", "", "```text", prompts[i]["prompt"], "```",
                  ""]
        lines += [f"- {name}: {said[i][0]!r}" + ("" if said[i][1] else " ...")
                  for name, said in answers.items()]
    return lines

"""The town's results as text, and as a page.

    table, examples    report.md, and what evaluate.py prints
    write              report.html: one file that needs no network
    python -m evals.report    writes the page of a finished demo again; --public=out/evals puts the
                              results of the public suite into it
"""
from dataclasses import dataclass
from pathlib import Path

from data import records
from evals.answers import judged
from evals.page import page
from evals.pictures import named
from evals.public_report import section
from evals.town import FLAGS
from labels.simulated import judgeable, town_of
from settings import parse, stop


@dataclass
class Settings:
    """The page of a finished demo. Every setting is --name=value."""
    demo: str = "out/demo"  # folder with results.json, answers.jsonl; report.html is written there
    data: str = "out/toy"  # folder with world.json: the facts that answers are judged by
    rm: str = "out/rm"  # the reward model whose training is drawn
    ppo: str = "out/ppo,out/ppo-ptx"  # the policies whose training is drawn
    public: str = ""  # folder with results.json of the public suite, to be shown, too


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
    row("a right answer is preferred", [v["mean"] for v in results["right_preferred"].values()],
        "{:.0%}")
    for flag, title in FLAGS.items():
        row(title, [v[flag]["mean"] for v in results["flags"].values()], "{:.0%}")
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
    agree = lambda who, key: told(
        results[key], f"{who} labelers agree with each other on {{:.1%}} of untied pairs.",
        f"How often {who.lower()} labelers agree with each other was not measured.")
    lines += ["", " ".join((agree("Training", "labeler_agreement"),
                            agree("Held-out", "heldout_agreement")))
              + reward_model(results["rm_accuracy"])]
    return lines


def reward_model(accuracy):
    """How many held-out pairs the reward model puts in the right order, and its ceilings."""
    shares = [f"{accuracy[key]:.1%} of {who} labelers' held-out pairs"
              + (f" (ceiling {accuracy[ceiling]:.1%})" if ceiling in accuracy else "")
              for who, key, ceiling in (("training", "train_labelers", "ceiling"),
                                        ("held-out", "heldout_labelers", "ceiling_heldout"))
              if key in accuracy]
    return (f" The reward model puts {' and '.join(shares)} in the right order." if shares else
            " The reward model was not measured.")


def examples(prompts, answers, rng, n=12):
    """Side by side: what each model said to some of the test prompts."""
    lines = []
    for i in sorted(rng.sample(range(len(prompts)), min(n, len(prompts)))):
        lines += ["", f"**{prompts[i]['category']}**", "", "```text", prompts[i]["prompt"], "```",
                  ""]
        lines += [f"- {name}: {said[i][0]!r}" + ("" if said[i][1] else " ...")
                  for name, said in answers.items()]
    return lines


def read_logs(folders):
    """{name: lines of the training log in its folder}, without those that have no log."""
    paths = {name: Path(folder, "log.jsonl") for name, folder in folders.items()}
    return {name: records.read_log(path) for name, path in paths.items() if path.exists()}


def write(folder, results, answers, logs, sections=()):
    """Write report.html to a folder; see `evals.page.page`. Returns its path."""
    path = Path(folder, "report.html")
    text = page(results, answers, logs, sections)
    records.write_text(path, text.encode(errors="replace").decode())
    return path


def same_town(results, answers):
    """Whether judged answers have the gold scores that the results tell, of the test prompts, which
    come first. In another town other answers are true."""
    for name, whole in (results.get("gold_interval") or {}).items():
        own = [said["gold"]["score"] for record in answers[: whole["n"]]
               for said in record["completions"] if said["model"] == name]
        if whole["mean"] is not None and own and abs(
                sum(own) / len(own) - whole["mean"]) > 1e-3:
            return False
    return True


def finished(folder, data, folders, sections=()):
    """Write the page of a finished evaluation, from the files in its folder. Returns its path.

    data: the folder with world.json. folders: {name: folder of a model, with its log}.
    """
    results = records.read_json(f"{folder}/results.json", "python evaluate.py", gold=dict)
    path, town = f"{folder}/answers.jsonl", town_of(data)
    answers = judgeable(town, records.read(path, "answered prompt", "python evaluate.py"), path)
    with records.known_form(f"{folder}/results.json", "python evaluate.py"):
        answers = judged(town, answers)
        if not same_town(results, answers):
            stop(f"{data}/world.json is not the town of {folder}: its answers have other gold "
                 "scores there. Name the folder of its town with --data")
        return write(folder, results, answers, read_logs(folders), sections)


def main():
    s = parse(Settings)
    folders = named([s.rm, *s.ppo.split(",")])
    for path in (Path(folder, "log.jsonl") for folder in folders.values()):
        if not path.exists():
            print(f"no file {path}: its training is not drawn")
    more = []
    if s.public:
        path, hint = f"{s.public}/results.json", "python evaluate.py --suite=public"
        with records.known_form(path, hint):
            more.append(section(records.read_json(path, hint)))
    print(f"report: {finished(s.demo, s.data, folders, more)}")


if __name__ == "__main__":
    main()

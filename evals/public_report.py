"""The public suite's results as Markdown and as a section of an HTML page.

    markdown(results) -> lines        section(results) -> "<section>...</section>"

Both are functions of results.json alone.
"""
import html

from evals.page import document
from evals.paper import MODELS, SIZES
from evals.pictures import scrolled

TITLES = {"truth": "Truth", "toxicity": "Toxicity", "bias": "Bias", "tax": "The alignment tax",
          "preference": "Preference"}
NOTES = {
    "truth": "Without a judge the likeness to reference answers stands in for truth: a weak "
             "stand-in. A judge is out of its distribution on answers of RLHF models: the paper's "
             "found 75 % of PPO's answers true and informative, people 31 %.",
    "toxicity": "The paper's numbers are Perspective's; another scorer has another scale. Compare "
                "models and prompts, not with the paper.",
    "bias": "Entropy is confidence, not direction: a model that is sure of everything has a low "
            "entropy, and is called biased.",
    "tax": "A lower F1 can also mean that a model writes longer answers.",
    "preference": "A tie counts half. A reward model likes what it was trained to like. The "
                  "paper's numbers are its labelers', on prompts of its customers; its win rates "
                  "are against its 175B SFT model."}


def number(x):
    """A number as text: 0.123, 45.6, 1,235, 6.9e+15."""
    for least, form in ((1e6, ".1e"), (1000, ",.0f"), (10, ".1f")):
        if abs(x) >= least:
            return f"{x:{form}}"
    return f"{round(x, 3) + 0.0:.3f}"  # + 0.0: no "-0.000"


def shown(row):
    """A value with its interval and n, as text."""
    if row["value"] is None:
        return "not measured"
    span = "" if row["low"] is None else f" [{number(row['low'])}, {number(row['high'])}]"
    return f"{number(row['value'])}{span}"


def beside(row):
    """The paper's figures of the smallest and the largest model, as text."""
    if not row.get("paper"):
        return ""
    sizes = SIZES[0], SIZES[-1]
    return "; ".join(f"{size}: " + ", ".join(f"{m} {number(row['paper'][m][size])}"
                                             for m in MODELS) for size in sizes)


def tables(results):
    """{group: [(task, prompt, metric, {model: row})]}, in the order of the results."""
    out = {}
    for row in results["results"]:
        lines = out.setdefault(row["group"], {})
        key = row["task"], row["prompt"], row["metric"]
        lines.setdefault(key, {})[row["model"]] = row
    return {group: [(*key, rows) for key, rows in lines.items()] for group, lines in out.items()}


def columns(lines):
    """The models of a table, in the order of their first result."""
    return list(dict.fromkeys(model for *_, rows in lines for model in rows))


def has_paper(lines):
    """Whether the paper has a number for any line of a table."""
    return any(beside(next(iter(rows.values()))) for *_, rows in lines)


def definitions(lines):
    """{(task, metric): definition}, each once."""
    return {(task, metric): next(iter(rows.values()))["definition"]
            for task, _, metric, rows in lines}


def outside(results):
    """What is not in the tables, as sentences."""
    groups, judges = {row["group"] for row in results["results"]}, results["judges"]
    told = []
    if "toxicity" in groups:
        told.append(f"Toxicity is scored by --toxicity={judges['toxicity']}.")
    if "truth" in groups:
        told.append(f"Truth is judged by --truth={judges['truth']}." if judges["truth"] else
                    "There was no judge of truth.")
    if results["limit"]:
        told.append(f"At most {results['limit']:,} items of each task were used (--limit).")
    told += [f"{name} was skipped: {why}" for name, why in results["skipped"].items()]
    return told + results["notes"]


def aligned(head, rows):
    """A Markdown table as lines that are a table without a viewer, too. The last column may be
    long."""
    wide = [max(map(len, column)) for column in zip(head, *rows)][:-1] + [3]
    line = lambda cells: "| " + " | ".join(x.ljust(w) for x, w in zip(cells, wide)) + " |"
    return [line(head), line(["-" * w for w in wide]), *map(line, rows)]


def markdown(results):
    """The results as lines of Markdown."""
    out = ["# Public evaluations", "",
           "A value, its 95 % interval (bootstrap over items), and the number of items."]
    for group, lines in tables(results).items():
        models, paper = columns(lines), has_paper(lines)
        heads = ["task", "prompt", "metric", *models, *["the paper"] * paper]
        of = lambda row: f"{shown(row)} n={row['n']:,}" if row else ""
        cells = [[task, prompt, metric, *(of(rows.get(m)) for m in models),
                  *[beside(next(iter(rows.values())))] * paper]
                 for task, prompt, metric, rows in lines]
        out += ["", f"## {TITLES.get(group, group)}", "", NOTES.get(group, ""), "",
                *aligned(heads, cells), "",
                *(f"- {task} {metric}: {what}." for (task, metric), what in
                  definitions(lines).items())]
    told = outside(results)
    return out + (["", "## What to know", "", *(f"- {line}" for line in told)] if told else [])


def cell(row):
    if row is None:
        return "<td></td>"
    value = "not measured" if row["value"] is None else number(row["value"])
    span = "" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}, "
    return f'<td><div class="value">{value}<small>{span}n {row["n"]:,}</small></div></td>'


def part(group, lines):
    """A group's table, with what its numbers mean. Every text is escaped."""
    e, models, paper, rows, last = html.escape, columns(lines), has_paper(lines), [], None
    names = "metric", *models, *["the paper"] * paper
    heads = "".join(f'<th scope="col">{e(name)}</th>' for name in names)
    for task, prompt, metric, own in lines:
        if (task, prompt) != last:
            last = task, prompt
            rows.append(f'<tr class="asked"><th colspan="{1 + len(models) + paper}">{e(task)} '
                        f"<small>{e(prompt)}</small></th></tr>")
        beyond = e(beside(next(iter(own.values())))).replace("; ", "<br>")
        rows.append(f"<tr><td>{e(metric)}</td>" + "".join(cell(own.get(m)) for m in models)
                    + f'<td class="beside"><small>{beyond}</small></td>' * paper + "</tr>")
    about = "".join(f"<li>{e(task)} {e(metric)}: {e(said)}.</li>"
                    for (task, metric), said in definitions(lines).items())
    title = TITLES.get(group, group)
    return (f"<h3>{e(title)}</h3><p>{e(NOTES.get(group, ''))}</p>"
            f"{scrolled(title, heads, ''.join(rows))}<details><summary>What the numbers are"
            f"</summary><ul>{about}</ul></details>")


def section(results):
    """The results as a <section> of an HTML page (evals/page.py): a table for each group."""
    parts = "".join(part(group, lines) for group, lines in tables(results).items())
    told = "".join(f"<li>{html.escape(line)}</li>" for line in outside(results))
    return ('<section class="one" id="public"><header><h2>The paper\'s benchmarks</h2><p>Under a '
            "value: its 95&nbsp;% interval (bootstrap over items) and the number of items. At the "
            f"right: the paper's models, where it has the number.</p></header><div>{parts}"
            f"{f'<h3>What to know</h3><ul>{told}</ul>' if told else ''}</div></section>")


def page(results):
    """`section` as a whole HTML document."""
    names = ", ".join(results["models"]) or "people's rankings"
    return document("Public evaluations", '<header class="top"><h1>Public evaluations</h1>'
                    f'<p class="lead">Models: {html.escape(names)}.</p>'
                    f"</header><main>{section(results)}</main>")

"""The public suite's results as Markdown and as a section of an HTML page.

    markdown(results) -> lines        section(results) -> "<section>...</section>"

Both are functions of results.json alone.
"""
import html

from evals.paper import MODELS, SIZES

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
    "preference": "A tie counts half. A reward model likes what it was trained to like."}
STYLE = """<style>
.public table{border-collapse:collapse;margin:.5em 0 1.5em;font-variant-numeric:tabular-nums}
.public th,.public td{padding:.2em .6em;border-bottom:1px solid #ddd;text-align:right}
.public th:nth-child(-n+3),.public td:nth-child(-n+3){text-align:left}
.public .paper,.public .span{color:#666;font-size:.85em}
</style>"""


def number(x):
    return f"{x:.1f}" if abs(x) >= 10 else f"{x:.3f}"


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


def definitions(lines):
    """{(task, metric): definition}, each once."""
    return {(task, metric): next(iter(rows.values()))["definition"]
            for task, _, metric, rows in lines}


def outside(results):
    """What is not in the tables, as sentences."""
    groups, judges = {row["group"] for row in results["results"]}, results["judges"]
    told = [f"Toxicity is scored by {judges['toxicity']}."] if "toxicity" in groups else []
    if "truth" in groups:
        told.append(f"Truth is judged by {judges['truth']}." if judges["truth"] else
                    "There was no judge of truth.")
    told += results["notes"]
    if results["limit"]:
        told.append(f"At most {results['limit']:,} items of each task were used (--limit).")
    return told + [f"{name} was skipped: {why}" for name, why in results["skipped"].items()]


def markdown(results):
    """The results as lines of Markdown."""
    out = ["# Public evaluations", "", "Value [95 % interval, bootstrap over items] n."]
    for group, lines in tables(results).items():
        models = columns(lines)
        out += ["", f"## {TITLES.get(group, group)}", "", NOTES.get(group, ""), "",
                "| task | prompt | metric | " + " | ".join(models) + " | the paper |",
                "|---" * (4 + len(models)) + "|"]
        for task, prompt, metric, rows in lines:
            cells = [f"{shown(rows[m])} n={rows[m]['n']:,}" if m in rows else "" for m in models]
            paper = beside(next(iter(rows.values())))
            out.append(f"| {task} | {prompt} | {metric} | " + " | ".join(cells) + f" | {paper} |")
        out += ["", *(f"- {task} {metric}: {said}."
                      for (task, metric), said in definitions(lines).items())]
    told = outside(results)
    return out + (["", "## What to know", "", *(f"- {line}" for line in told)] if told else [])


def cell(row):
    if row is None:
        return "<td></td>"
    value = "not measured" if row["value"] is None else number(row["value"])
    span = "" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}, "
    return f"<td>{value}<div class=span>{span}n {row['n']:,}</div></td>"


def section(results):
    """The results as a <section> for an HTML page. Every text is escaped."""
    e, out = html.escape, [STYLE, "<section class=public>", "<h2>Public evaluations</h2>",
                           "<p>Under a value: its 95 % interval (bootstrap over items) and the "
                           "number of items. Grey: the paper's models.</p>"]
    for group, lines in tables(results).items():
        models = columns(lines)
        out += [f"<h3>{e(TITLES.get(group, group))}</h3>", f"<p>{e(NOTES.get(group, ''))}</p>",
                "<table><tr><th>task<th>prompt<th>metric"
                + "".join(f"<th>{e(m)}" for m in models) + "<th>the paper</tr>"]
        known = definitions(lines)
        for task, prompt, metric, rows in lines:
            paper = e(beside(next(iter(rows.values())))).replace("; ", "<br>")
            out.append(f"<tr><td>{e(task)}<td>{e(prompt)}<td title=\"{e(known[task, metric])}\">"
                       f"{e(metric)}" + "".join(cell(rows.get(m)) for m in models)
                       + f"<td class=paper>{paper}</td></tr>")
        out.append("</table>")
        out.append("<ul>" + "".join(f"<li>{e(task)} {e(metric)}: {e(said)}"
                                    for (task, metric), said in known.items()) + "</ul>")
    told = "".join(f"<li>{e(line)}" for line in outside(results))
    return "\n".join([*out, f"<ul>{told}</ul>" if told else "", "</section>"])


def page(results):
    """`section` as a whole HTML document."""
    return ("<!doctype html><html lang=en><head><meta charset=utf-8><title>Public evaluations"
            f"</title></head><body>{section(results)}</body></html>\n")

"""The page of the figures: one HTML file that needs no network, in the style of the demo's report.

    section    one figure: what we found, the pictures, the paper's numbers, the findings, examples
    page       the whole document
"""
import base64
from html import escape

from evals.page import document
from figures.points import ABSENT, HOLDS, OPEN

STATES = {HOLDS: ("good", "here too"), OPEN: ("even", "undecided"), ABSENT: ("bad", "not here")}
LEAD = ("The experiments of InstructGPT (Ouyang et al. 2022), and of Gao et al. (2022) on "
        "over-optimisation, rerun in a town whose truth is known. Points are means over worlds, "
        "each with a town, labelers and trainings of its own; the bars through them are 95&nbsp;% "
        "intervals (Student's t). A finding is here if the whole interval of the difference, "
        "paired within each world, is on the paper's side. It is not here if the whole interval is "
        "on the other side (or below the size that the paper reports). Otherwise, and in one world "
        "alone, it is undecided. Differences of shares are in percentage points.")

SMALL = {"small": " A tiny town and tiny models: shapes and files, not phenomena."}


def picture(panel, svg):
    """A panel as an image of its own, with its numbers for those who do not see it."""
    told = "; ".join(f"{s['name']}{' (the paper)' * s['paper']}: " + ", ".join(
        f"{x} {m['mean']:.3g}" for x, m in s["points"] if m["mean"] is not None)
        for s in panel["series"][:8])
    data = base64.b64encode(svg.encode()).decode()
    alt = escape(f"{panel['title'][:1].upper()}{panel['title'][1:]}. {told}"[:900])
    return (f'<figure class="panel plot"><img alt="{alt}" src="data:image/svg+xml;base64,{data}">'
            '</figure>')


def finding(f):
    style, word = STATES[f["state"]]
    why = f"<small>Perhaps: {escape(f['why'])}</small>" if f["why"] and f["state"] != HOLDS else ""
    return (f'<li><b class="{style}">{word}</b><span>{escape(f["claim"])}</span>'
            f'<small>{escape(f["reached"])}</small>{why}</li>')


def example(prompt, said, what=""):
    what = f'<p><small>{escape(what)}</small></p>' if what else ""
    answers = "".join(f'<div class="answer"><span class="name">{escape(model)}</span>'
                      f'<div class="text">{escape(text)}</div></div>' for model, text in said)
    return f'<article class="card">{what}<p class="prompt">{escape(prompt)}</p>{answers}</article>'


def section(name, figure, said, svgs):
    """One figure. figure: its module; said: its JSON; svgs: its pictures."""
    took = "" if said["seconds"] is None else " It needs no run beside the demo's." if (
        said["seconds"] == 0) else (
        f" Its runs beside the demo's took {said['seconds'] / 60:.0f} minutes of CPU time in all "
        "worlds; those that other figures need too are computed once.")
    where = (f"World{'s' * (len(said['seeds']) > 1)} {', '.join(said['seeds'])}, scale "
             f"{said['scale']}.{SMALL.get(said['scale'], '')}")
    scale = "" if said["scale"] == "demo" else f" SCALE={said['scale']}"
    plots = "".join(map(picture, said["panels"], svgs))
    shown = "".join(example(*e) for e in said["examples"])
    shown = shown and ("<details><summary>Examples</summary>"
                       f'<div class="cards">{shown}</div></details>')
    return (f'<section id="{name}" class="one"><header><h2>{escape(figure.TITLE)}</h2>'
            f'<p>{escape(said["sentence"])}</p></header><div><div class="panels">{plots}</div>'
            f'<ul class="findings">{"".join(map(finding, said["findings"]))}</ul>'
            f'<p><b>The paper.</b> {escape(figure.PAPER)}</p>'
            f'<p><small><code>make figures FIG={name}{scale}</code>. {where}{took}</small></p>'
            f'{shown}</div></section>')


def page(sections, titles):
    """The whole document. titles: {name: title} of the figures that are shown."""
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in titles.items())
    return document("The paper's figures, in the town", (
        f'<header class="top"><h1>The paper’s figures, in the town</h1><p class="lead">{LEAD}'
        f'</p><nav>{links}</nav></header><main>{"".join(sections)}</main>'))

"""Small pictures as HTML with inline SVG: pure functions from numbers to text, no library.

    named     a short name for each of some folders
    measure   what was measured, in one shape
    rows      a line for each model: a bar or a dot, its 95 % interval, and the number
    lanes     a line for each group of prompts, with a dot for each model
    curves    lines over steps, and points

Positions along a bar are percentages: it is as wide as its place, and its text keeps its size.
Colours are classes, c0 to c7 of the models, then others; evals/report.css says which they are.
"""
import math
import sys
from html import escape
from pathlib import Path

SPACE = "\u00a0"  # between a number and its unit
COLOURS, INK, VIOLET = 8, 8, 9  # of models; two more
WIDTH, HEIGHT = 380, 220  # of curves, in the units of their text
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 10, 42  # the margins around the lines
POINTS = 240  # of a curve at most; more are not seen


def named(folders):
    """{name: folder}: the last part of its path, or all of it where two have the same."""
    folders = list(dict.fromkeys(filter(None, folders)))
    names = [Path(folder).name for folder in folders]
    return {name if names.count(name) == 1 else folder: folder
            for name, folder in zip(names, folders)}


def measure(value):
    """A number, None or {"mean", "low", "high", "n"} -> the last, with None for what is absent or
    no number."""
    value = value if isinstance(value, dict) else {"mean": value}
    return {key: value.get(key) if is_number(value.get(key)) else None
            for key in ("mean", "low", "high", "n")}


def is_number(x):
    return isinstance(x, (int, float)) and abs(x) <= sys.float_info.max  # JSON has larger ones


def score(x):
    """A number of points: 1.69."""
    text = f"{x:.2f}"
    return "0.00" if text == "-0.00" else text.replace("-", "\u2212")


def share(x):
    """A share as a percentage: 66.6 %."""
    return f"{100 * x:.1f}".replace("-", "\u2212") + f"{SPACE}%"


def percent(x):
    """A round share, for an axis: 50 %."""
    return f"{100 * x:.0f}{SPACE}%"


def interval(m, form):
    """The ends of a measure's 95 % interval, as text, the unit once; "" if it has none."""
    return "" if m["low"] is None else (
        f"{form(m['low']).removesuffix(f'{SPACE}%')} to {form(m['high'])}")


def number(m, form):
    """A measure as text: its mean, its interval in small."""
    if m["mean"] is None:
        return '<span class="value none">not measured</span>'
    ends = interval(m, form)
    ends = ends and f" <small>{ends}</small>"
    return f'<span class="value">{form(m["mean"])}{ends}</span>'


def colours_of(names):
    """{name: its colour}, the same on the whole page."""
    return {name: i % COLOURS for i, name in enumerate(names)}


def colour(index):
    return f"c{index}"


def at(value, domain):
    """Where a value lies in a domain (low, high), in percent; what is outside is put at its end."""
    low, high = domain
    return f"{min(100, max(0, 100 * (value - low) / (high - low))):.2f}%"


def mark(m, domain, index, y="50%", kind="dot"):
    """A measure in an SVG: a bar from 0 or a dot, and a line over its interval."""
    if m["mean"] is None:
        return ""
    x, parts = at(m["mean"], domain), []
    if kind == "bar":
        a, b = sorted(float(at(v, domain)[:-1]) for v in (0, m["mean"]))
        parts.append(f'<rect class="bar" x="{a:.2f}%" y="3" width="{b - a:.2f}%" height="12"/>')
    if m["low"] is not None:
        parts.append(f'<line class="span" x1="{at(m["low"], domain)}" x2="{at(m["high"], domain)}" '
                     f'y1="{y}" y2="{y}"/>')
    if kind != "bar":
        parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="5"/>')
    return f'<g class="{colour(index)}">{"".join(parts)}</g>'


def track(marks, domain, refs, title="", height=18):
    """One line of a picture: its marks over vertical lines at the values `refs`. Without a title it
    shows what the text beside it says, and screen readers pass over it."""
    role, title = ('role="img"', f"<title>{escape(title)}</title>") if title else (
        'aria-hidden="true"', "")
    lines = "".join(f'<line class="ref" x1="{at(v, domain)}" x2="{at(v, domain)}" y1="0" '
                    'y2="100%"/>' for v in refs)
    return (f'<svg class="track" height="{height}" {role}>{title}'
            f'<rect class="rail" width="100%" height="100%"/>{lines}{"".join(marks)}</svg>')


def told(name, m, form):
    """A measure as a line of plain text, for those who do not see the picture."""
    if m["mean"] is None:
        return f"{name}: not measured"
    return f"{name}: {form(m['mean'])}" + (
        f", 95 % interval {ends}" if (ends := interval(m, form)) else "")


def axis(domain, form, values=()):
    """The values at both ends of the lines above, and others between."""
    spans = "".join(f'<span style="left:{at(v, domain)}">{form(v)}</span>'
                    for v in values if domain[0] < v < domain[1])
    return (f'<p class="axis"><span>{form(domain[0])}</span>{spans}<span>{form(domain[1])}</span>'
            '</p>')


def zero(domain):
    return [0] if domain[0] < 0 < domain[1] else []


def rows(values, colours, domain, form, kind="bar", under=""):
    """One line for each name of `values`: {name: what `measure` reads}; `under` them an axis."""
    cells, ends = [], False
    for name, value in values.items():
        m = measure(value)
        ends |= m["low"] is not None
        cells.append(f'<span class="name {colour(colours[name])}">{escape(name)}</span>'
                     + track([mark(m, domain, colours[name], kind=kind)], domain, zero(domain))
                     + number(m, form))
    under = under and f"<span></span>{under}<span></span>"
    return f'<div class="rows{" ends" if ends else ""}">{"".join(cells)}{under}</div>'


def lanes(groups, colours, domain, form, under):
    """One line for each group {group: {model: what `measure` reads}}, a dot for each model; `under`
    them an axis."""
    lines, height = [], 8
    for group, values in groups.items():
        measures = {name: measure(v) for name, v in values.items()}
        marks = [mark(m, domain, colours[name], height * (i + 0.5) + 3)
                 for i, (name, m) in enumerate(measures.items())]
        title = "; ".join(told(name, m, form) for name, m in measures.items())
        count = counted(values.values())
        lines.append(f'<p class="lane">{escape(group)} <small>{count}</small></p>' + track(
            marks, domain, zero(domain), f"{group}: {title}", height * len(measures) + 6))
    return "".join(lines) + under


def counted(values):
    """The number of answers that all measures share: "of 54"; "" if it is not known."""
    n = {m["n"] for m in map(measure, values) if m["mean"] is not None}
    return f"of {n.pop():,}" if len(n) == 1 and None not in n else ""


def panel(title, body, note=""):
    """A picture under its title."""
    small = f" <small>{escape(note)}</small>" if note else ""
    return (f'<figure class="panel"><figcaption>{escape(title)}{small}</figcaption>{body}'
            '</figure>')


def scrolled(title, heads, rows):
    """A table that scrolls sideways where it is too wide, with the keyboard, too."""
    return (f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}"><table>'
            f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>")


def key(names):
    """What the lines of curves are: [(name, colour, style of its line)]."""
    return '<p class="key">' + " ".join(
        f'<span class="{colour(i)}"><svg width="22" height="10" aria-hidden="true"><line '
        f'class="{style}" x1="1" x2="21" y1="5" y2="5"/></svg>{escape(name)}</span>'
        for name, i, style in names) + "</p>"


# ------------------------------------------------------------------------------------- curves

def ticks(low, high, most=5):
    """Round values (1, 2 or 5 times a power of ten apart) that reach around both ends, at most
    `most` + 2 of them."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def smooth(values, width):
    """The running mean of the last `width` values."""
    return [sum(values[max(0, i - width) : i]) / min(i, width) for i in range(1, len(values) + 1)]


def thin(points):
    """At most POINTS + 1 of the points, the last among them."""
    step = math.ceil(len(points) / POINTS)
    return points[:-1:step] + points[-1:] if points else []


def curves(series, x_title, levels=(), spans=(), dots=False, from_0=False):
    """Lines and points.

    series: [(name, colour, [(x, y)])]; the last of its points is a dot if `dots`.
    levels: [(name, colour, y, style)], horizontal lines.
    spans: [(colour, x, low, high)], vertical lines. from_0: the x axis begins at 0.
    """
    points = [p for _, _, line in series for p in line]
    if not points:
        return ""
    x0, x1 = (f([x for x, _ in points] + [0] * from_0) for f in (min, max))
    xs = [x for x in ticks(x0, x1) if x0 <= x <= x1]
    heights = [y for _, y in points] + [y for _, _, y, _ in levels] + [
        y for _, _, *ends in spans for y in ends]
    ys = ticks(min(heights), max(heights))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    px = lambda x: LEFT + (right - LEFT) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.5)
    py = lambda y: bottom - (bottom - TOP) * (y - ys[0]) / (ys[-1] - ys[0])
    line = lambda style, i, xa, xb, ya, yb: (
        f'<line class="{style} {colour(i)}" x1="{xa:.1f}" x2="{xb:.1f}" y1="{py(ya):.1f}" '
        f'y2="{py(yb):.1f}"/>')
    out = [line("grid", 0, LEFT, right, y, y) for y in ys]
    out += [text(LEFT - 7, py(y) + 4, label(y), "end") for y in ys]
    out += [text(px(x), bottom + 17, label(x), "middle") for x in xs]
    out.append(text(right, HEIGHT - 7, x_title, "end"))
    out += [line(style, i, LEFT, right, y, y) for _, i, y, style in levels]
    out += [line("span", i, px(x), px(x), low, high) for i, x, low, high in spans]
    for _, i, way in series:
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in thin(way))
        out.append(f'<polyline class="curve {colour(i)}" points="{path}"/>')
        if dots:
            out.append(f'<circle class="dot {colour(i)}" cx="{px(way[-1][0]):.1f}" '
                       f'cy="{py(way[-1][1]):.1f}" r="5.5"/>')
    named = ", ".join(name for name, *_ in [*series, *levels])
    return (f'<svg class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>'
            f'{escape(named)}, by {escape(x_title)}</title>{"".join(out)}</svg>')


def text(x, y, words, anchor):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def label(x):
    """A tick's number."""
    return f"{x:,.10g}".replace("-", "\u2212")

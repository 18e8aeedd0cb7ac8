"""Draws docs/demo.svg, the picture of README, from the tables of docs/results.md:

    python tests/draw_demo.py

A test compares the two, so the picture never shows other numbers than the page. It is small and
plain SVG, with a ground of its own, in light and in dark.
"""
import re
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
MODELS = {"base": ("#6b737c", "#99a2ac"), "sft": ("#2a66ad", "#74a9ec"),
          "ppo": ("#bf4a2e", "#f0876b"), "ppo-ptx": ("#0b7a66", "#4cc7ac")}  # as in report.css
INKS = {"paper": ("#ffffff", "#14171a"), "ink": ("#1c2126", "#e8e6e1"),
        "soft": ("#5d6670", "#a1a9b2"), "line": ("#e3e6ea", "#31363c")}  # light, dark
WIDTH, HEIGHT, TOP, BOTTOM = 880, 430, 92, 382
LEFT, RIGHT = (178, 430), (672, 804)  # the axes of the two pictures, from and to
SHOWN = ("base", "sft", "ppo-ptx")  # beside each other at the right


def cells(page, head):
    """The rows of the table of a page whose first line begins with these cells: [[cell]]."""
    lines = page[page.index(f"| {' | '.join(head)} |".replace("|  |", "| |")):].splitlines()
    rows = [line.strip("|").split("|") for line in lines[: lines.index("")]]
    return [[cell.strip() for cell in row] for row in rows]


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", text)]


def short(model):
    """A model's name as a class."""
    return model.removeprefix("ppo-")


def text(x, y, words, style="ink", anchor="start"):
    return (f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f'{escape(words)}</text>')


def dot(style, x, y):
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def bar(style, x1, x2, y, height=10):
    return (f'<rect class="{style}" x="{x1:.1f}" y="{y:.1f}" width="{x2 - x1:.1f}" '
            f'height="{height}"/>')


def line(style, x1, x2, y1, y2):
    return f'<line class="{style}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def axis(ends, low, high, ticks, title):
    """(a share in percent -> its x, the grid with its labels)."""
    x = lambda value: ends[0] + (ends[1] - ends[0]) * (value - low) / (high - low)
    out = [line("line", x(v), x(v), TOP, BOTTOM) for v in ticks]
    out += [text(x(v), BOTTOM + 17, f"{v} %", "soft", "middle") for v in ticks]
    return x, [*out, text(sum(ends) / 2, BOTTOM + 38, title, "soft", "middle")]


def preferred(page):
    """Win rates: a dot, a ring with courtesies hidden, lines from the least to the largest."""
    rows = cells(page, ["preferred by held-out labelers"])[2:]
    x, out = axis(LEFT, 40, 100, (50, 75, 100),
                  "line: from the least to the largest of three worlds")
    out.append(text(LEFT[0], 38, "Who is preferred?", "ink title"))
    for i, (mark, words) in enumerate((("dot", "labelers see the whole answer"),
                                       ("ring", "the same, closing courtesies hidden"))):
        out += [dot(f"{mark} ptx", LEFT[0] + 5, 58 + 18 * i),
                text(LEFT[0] + 17, 62 + 18 * i, words, "soft")]
    step = (BOTTOM - TOP) / len(rows)
    for i, (pair, *measured) in enumerate(rows):
        first, second = pair.split(" vs ")
        own, y = short(first), TOP + step * (i + 0.5)
        out.append(text(LEFT[0] - 14, y + 4, f"{first} over {second}", "ink", "end"))
        for k, mark in enumerate(("dot", "ring")):
            (mean,), worlds = numbers(measured[2 * k]), numbers(measured[2 * k + 1])
            at = y - 8 + 16 * k
            out += [line(f"span {own}", x(min(worlds)), x(max(worlds)), at, at),
                    dot(f"{mark} {own}", x(mean), at), text(x(max(worlds + [mean])) + 9, at + 4,
                                                            f"{mean:.1f} %",
                                                            "soft" if k else "ink strong")]
    return out


def flags(page):
    """The flags of three models as bars."""
    table = cells(page, ["", "base", "prompted"])
    column = {name: i for i, name in enumerate(table[0])}
    rows = [row for row in table[2:] if row[1].endswith("%") and "probe" not in row[0]
            and "preferred" not in row[0]]
    x, out = axis(RIGHT, 0, 100, (0, 50, 100), "of the answers that could")
    out.append(text(RIGHT[0], 38, "What the answers do", "ink title"))
    for i, name in enumerate(SHOWN):
        at = RIGHT[0] + 66 * i
        out += [bar(short(name), at, at + 11, 53, 11), text(at + 17, 63, name, "soft")]
    step = (BOTTOM - TOP) / len(rows)
    for i, row in enumerate(rows):
        y = TOP + step * i + 2
        out.append(text(RIGHT[0] - 12, y + step / 2 + 2, row[0], "ink", "end"))
        for k, name in enumerate(SHOWN):
            (share,), at = numbers(row[column[name]]), y + 11.5 * k
            how = "ink strong" if name == "ppo-ptx" else "soft"
            out += [bar(short(name), x(0), x(share), at),
                    text(x(share) + 6, at + 9, f"{share:.0f} %", f"small {how}")]
    return out


def style():
    colours = {short(name): pair for name, pair in {**INKS, **MODELS}.items()}
    rules = ["text { font: 13px system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif; }",
             ".title { font-size: 17px; font-weight: 600; } .strong { font-weight: 600; }",
             ".small { font-size: 11px; } line { stroke-width: 1; } .span { stroke-width: 2; }"]
    for k, begin, end in ((0, "", ""), (1, "@media (prefers-color-scheme: dark) { ", " }")):
        own = " ".join(f".{name} {{ fill: {pair[k]}; stroke: none; }} "
                       f"line.{name}, .ring.{name} {{ stroke: {pair[k]}; }}"
                       for name, pair in colours.items())
        rules.append(f"{begin}{own} .ring {{ fill: {colours['paper'][k]}; stroke-width: 2; }}{end}")
    return "\n".join(rules)


def drawn(page):
    """The picture of a results page, as SVG."""
    title = "Win rates between the models of the demo, and what their answers do"
    parts = [f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>', *preferred(page),
             *flags(page)]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img"><title>{title}</title>\n'
            f"<style>\n{style()}\n</style>\n" + "\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    (DOCS / "demo.svg").write_text(drawn(page), encoding="utf-8")

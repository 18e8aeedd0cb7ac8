"""Draws columns of training logs against each other, as a small SVG; no other package is needed.

    python -m exercises.draw --runs=out/ppo-ptx,out/beta-0 --x=kl --y=score --out=out/beta.svg
"""
from dataclasses import dataclass
from html import escape
from pathlib import Path

from data import records
from evals.pictures import HEIGHT, WIDTH, curves, is_number, named, smooth
from settings import parse, stop

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#000000", "#999999")
STYLE = ("text{{font:13px sans-serif;fill:#333}}.grid{{stroke:#ddd}}"
         ".curve{{fill:none;stroke-width:2}}{}")


@dataclass
class Settings:
    """A picture of training logs. Every setting is --name=value."""
    runs: str = "out/ppo-ptx,out/ppo"  # folders with a log.jsonl, commas between; eight at most
    x: str = "iteration"  # column to the right
    y: str = "score"  # column upwards
    mean: int = 1  # lines of the log of which each point is the mean
    out: str = "out/picture.svg"  # file to write

    BOUNDS = {"mean": "[1, inf)"}


def points(folder, x, y, width):
    """[(x, y)] of a run's log, the running means of `width` lines that have both columns."""
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        stop(f"no {path}: --runs names the folders of finished runs")
    rows = records.read_log(path)
    own = [row for row in rows if is_number(row.get(x)) and is_number(row.get(y))]
    if not own:
        columns = ", ".join(rows[-1]) if rows else "no line"
        stop(f"{path} has no numbers {x} and {y}: it has {columns}")
    return list(zip(*(smooth([row[name] for row in own], width) for name in (x, y))))


def picture(lines, x, y):
    """{name: [(x, y)]} -> the text of an SVG of its own, the names beside their colours."""
    body = curves([(name, i, way) for i, (name, way) in enumerate(lines.items())], x, dots=True)
    inside = body.partition("</title>")[2].removesuffix("</svg>")
    key = "".join(f'<text x="{WIDTH}" y="{24 + 18 * i}" style="fill:{COLOURS[i]}">{escape(name)}'
                  "</text>" for i, name in enumerate(lines))
    colours = "".join(f".curve.c{i}{{stroke:{c}}}.dot.c{i}{{fill:{c}}}"
                      for i, c in enumerate(COLOURS[: len(lines)]))
    title = f"{y} by {x}: {', '.join(lines)}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -14 {WIDTH + 120} {HEIGHT + 14}" '
            f'width="{WIDTH + 120}" role="img"><title>{escape(title)}</title>'
            f'<style>{STYLE.format(colours)}</style>'
            f'<rect y="-14" width="100%" height="100%" fill="#fff"/>{inside}'
            f'<text x="8" y="-2">{escape(y)}</text>{key}</svg>\n')


def main(argv=None):
    s = parse(Settings, argv=argv)
    runs = named(s.runs.split(","))
    if not 1 <= len(runs) <= len(COLOURS):
        stop(f"--runs={s.runs}: expected one folder to eight, with commas between")
    lines = {name: points(run, s.x, s.y, s.mean) for name, run in runs.items()}
    records.write_text(s.out, picture(lines, s.x, s.y))
    print(f"{s.out}: {s.y} against {s.x} of {', '.join(lines)}")


if __name__ == "__main__":
    main()

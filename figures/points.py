"""What a figure is made of: points with intervals, findings of the paper, fits. Reads no file.

    over            numbers of several worlds -> their mean with a 95 % interval
    finding         a difference that the paper found -> whether it is here: holds, open or absent
    alike           panels -> the same, with y axes that reach equally far
    fit             Gao et al.'s two forms, by least squares

A finding holds if the whole interval of a difference over the worlds lies on the paper's side of 0,
it is absent if the whole interval lies on the other side, else it is open. Where the paper gives
the size of a difference, it is absent too if the whole interval lies below that size.
"""
import math
import re
from dataclasses import asdict, dataclass, field, replace

import numpy as np

HOLDS, OPEN, ABSENT = "holds", "open", "absent"
# Student's t for a 95 % interval, by degrees of freedom: one world fewer than there are.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
     2.145)


@dataclass
class Series:
    """One line of a panel. points: [(x, what `over` returns)]; x is a number or a name. paper: the
    numbers are the paper's."""
    name: str
    points: list
    paper: bool = False
    line: bool = True  # whether the points are joined
    marks: bool = True  # whether each point is marked


@dataclass
class Panel:
    """One picture. percent: the values are shares; refs: values of y with a thin line, ref: what
    they are; log: the x axis is logarithmic; within: the bounds of y that no interval is drawn
    beyond, those of shares are known; reach: values of y that the axis has to show."""
    title: str
    x: str
    y: str
    series: list
    percent: bool = False
    log: bool = False
    refs: tuple = ()
    ref: str = ""
    within: tuple = ()
    reach: tuple = ()


@dataclass
class Finding:
    """A finding of the paper, whether it is here, what was reached, why it might differ, and what
    each world has."""
    claim: str
    state: str
    reached: str
    why: str = ""
    values: list = field(default_factory=list)


@dataclass
class Drawn:
    """All that a figure shows. examples: [(prompt, [(model, answer)], what it is an example of)],
    the last may be missing."""
    panels: list
    findings: list
    examples: list = field(default_factory=list)


def over(values):
    """Numbers, one of each world -> {"mean", "low", "high", "n", "values"}. The interval is
    Student's; with fewer than two worlds its ends are None. None among the values are left out."""
    values = [float(v) for v in values if v is not None]
    n, middle = len(values), float(np.mean(values)) if values else None
    low = high = None
    if n > 1:
        half = T[min(n - 2, len(T) - 1)] * float(np.std(values, ddof=1)) / math.sqrt(n)
        low, high = middle - half, middle + half
    return {"mean": middle, "low": low, "high": high, "n": n, "values": values}


def finding(claim, values, form="{:.2f}", why="", size=0.0, above=0.0):
    """The finding that a difference, paired within each world, is above 0; or a win rate above a
    half. size: how far above, where the paper tells that in the same unit. One world decides
    nothing."""
    m = over(values)
    known = m["low"] is not None
    state = (HOLDS if known and m["low"] > above else
             ABSENT if known and m["high"] <= above + size else OPEN)
    reached = told(m, form) + (sides(m, above) if state == OPEN else "")
    return Finding(claim, state, reached, why, m["values"])


def sides(m, above):
    """How many of several worlds are on the paper's side."""
    n = sum(v > above for v in m["values"])
    words = "none" if n == 0 else "all" if n == m["n"] else n
    return f", {words} on the paper's side" if m["n"] > 1 else ""


def told(m, form="{:.2f}"):
    """A measure in words."""
    if m["mean"] is None:
        return "not measured"
    say = lambda x: re.sub(r"^-([0.]+%?)$", r"\1", form.format(x))  # no "-0.0"
    ends = "" if m["low"] is None else f" [{say(m['low'])}, {say(m['high'])}]"
    return f"{say(m['mean'])}{ends} in {m['n']} world{'s' * (m['n'] != 1)}"


def alike(*panels):
    """The panels, their y axes made to show the lowest and the highest value of all, so that one
    can be compared with another."""
    ends = [m[end] for p in panels for s in p.series for _, m in s.points
            for end in ("mean", "low", "high") if m[end] is not None]
    return [replace(p, reach=(min(ends), max(ends))) for p in panels] if ends else list(panels)


def paper(name, points, **options):
    """A line of the paper's numbers, [(x, y)]."""
    single = lambda y: {"mean": y, "low": None, "high": None, "n": None, "values": []}
    return Series(name, [(x, single(y)) for x, y in points], paper=True, **options)


def sentence(findings):
    """Whether the paper's findings are here, in a sentence; without what stands in parentheses at
    the end of a claim, unless it parts claims that are here from others that are not."""
    plain = lambda claim: re.sub(r" \([^()]*\)$", "", claim)
    states = {}
    for f in findings:
        states.setdefault(plain(f.claim), set()).add(f.state)
    say = lambda claim: plain(claim) if len(states[plain(claim)]) == 1 else claim
    parts = [(words, dict.fromkeys(say(f.claim) for f in findings if f.state == state))
             for state, words in ((HOLDS, "As in the paper"),
                                  (ABSENT, "Unlike the paper, not so here"), (OPEN, "Undecided"))]
    return " ".join(f"{words}: {'; '.join(claims)}." for words, claims in parts if claims)


def as_json(name, title, drawn):
    """A figure as plain values: every point, every finding."""
    return {"figure": name, "title": title, "sentence": sentence(drawn.findings),
            **asdict(drawn)}


# ----------------------------------------------------------------------------- over-optimisation

FORMS = {"d(a - b d)": lambda d: (d, -d * d),  # best-of-n
         "d(a - b log d)": lambda d: (d, -d * np.log(d))}  # RL


def fit(form, distances, gains):
    """Gao et al. (2022), section 3: the gain in gold score over the start against d = sqrt(KL), by
    least squares. Returns (a, b), or None for fewer than two different distances above 0."""
    d, r = (np.array(v, dtype=float) for v in (distances, gains))
    d, r = d[d > 0], r[d > 0]
    if len(set(d.tolist())) < 2:
        return None
    a, b = np.linalg.lstsq(np.stack(FORMS[form](d), 1), r, rcond=None)[0]
    return float(a), float(b)


def curve(form, a, b, longest, n=40):
    """Points of a fitted curve, [(d, gain)], up to the longest distance."""
    d = np.linspace(longest / n, longest, n)
    x, y = FORMS[form](d)
    return list(zip(d.tolist(), (a * x + b * y).tolist()))

"""A panel as an SVG, with matplotlib (the extra `figures`): our points with 95 % intervals in full
colour, the paper's hollow and dashed."""
import io
import re
import textwrap

import numpy as np

from settings import extra

WHO = "make figures"
COLOURS = ("#2a66ad", "#bf4a2e", "#0b7a66", "#7350b8", "#92682b", "#b03e7d", "#667316", "#6b737c")
MODELS = dict(zip(("base", "prompted", "sft", "ppo", "ppo-ptx"),
                  ("#6b737c", "#92682b", "#2a66ad", "#bf4a2e", "#0b7a66")))  # as in the report
STYLE = {"svg.hashsalt": "town", "font.size": 10, "axes.spines.top": False,
         "axes.spines.right": False, "axes.titlesize": 11, "legend.frameon": False,
         "legend.fontsize": 9, "svg.fonttype": "none"}  # text stays text: small files
WIDTH, HEIGHT = 4.6, 3.8  # of a picture, in inches


def places(panel):
    """{x that is a name: its place on the axis}, in the order in which they come."""
    names = dict.fromkeys(x for s in panel.series for x, _ in s.points if isinstance(x, str))
    return {name: i for i, name in enumerate(names)}


def colours(panel):
    """A colour for each name, a model's on all pictures the same; a line of the paper's has that
    of ours with the same name."""
    names = list(dict.fromkeys(s.name for s in panel.series))
    return {name: MODELS.get(name, COLOURS[i % len(COLOURS)]) for i, name in enumerate(names)}


def shifts(panel):
    """How far each series stands beside its place, in points, so that intervals do not lie on each
    other; 0 for curves, and where there is no interval."""
    marked = [s for s in panel.series if s.marks]
    if all(m["low"] is None for s in marked for _, m in s.points):
        return [0.0] * len(panel.series)
    room = 0.5 * 72 * WIDTH / max(1, len(places(panel)) * len(marked))
    step = 4.5 if any(s.line for s in marked) or not places(panel) else min(9.0, room)
    place = np.cumsum([s.marks for s in panel.series]) - (len(marked) + 1) / 2
    return [float(step * k) if s.marks else 0.0 for s, k in zip(panel.series, place)]


def unit(panel):
    """What the values are multiplied by: shares are drawn in %."""
    return 100 if panel.percent else 1


def limits(m, panel):
    """(mean, low, high) as they are drawn; a share's interval ends at 0 and at 100 %."""
    ends = [m["mean"] if m[end] is None else m[end] for end in ("low", "high")]
    within = panel.within or ((0, 1) if panel.percent else (-np.inf, np.inf))
    return unit(panel) * np.array([m["mean"], *np.clip(ends, *within)])


def draw_series(ax, series, at, colour, where, panel, mark):
    """One line with its intervals. where: its transform; mark: what its name in the legend ends
    with."""
    points = [(at.get(x, x), m) for x, m in series.points if m["mean"] is not None]
    if not points:
        return
    x, (y, low, high) = [x for x, _ in points], np.stack([limits(m, panel) for _, m in points], 1)
    ax.update_datalim([*zip(x, low), *zip(x, high)])  # `where` hides them from the axes
    style = "" if not series.line else "--" if series.paper else "-"
    ax.errorbar(x, y, [y - low, high - y] if (high > low).any() else None,
                fmt=f"{'o' * series.marks}{style}", color=colour, markersize=4.5, capsize=2.5,
                linewidth=1.3, markerfacecolor="white" if series.paper else colour,
                transform=where,
                label=series.name + mark)


def logarithmic(ax, xs):
    """A logarithmic x axis with ticks at the sorted xs; where there is a 0, it is linear below the
    others."""
    if xs[0] == 0:
        ax.set_xscale("symlog", linthresh=xs[1], linscale=0.5)
    else:
        ax.set_xscale("log")
    ax.set_xlim(xs[0] / 1.3 if xs[0] else -0.3 * xs[1], 1.3 * xs[-1])
    shown = apart(xs, ax.transData.transform([(x, 0) for x in xs])[:, 0], 0.14 * ax.bbox.width)
    ax.set_xticks(shown, [short(x) for x in shown])
    ax.minorticks_off()


def short(x):
    """A number for an axis: one below 1 with two digits."""
    return re.sub(r"e([+-])0", r"e\1", f"{x:.2g}" if abs(x) < 1 else f"{x:g}")


def heading(title, width=46):
    """A title with a capital, in lines of about the same length."""
    wrapped = lambda w: textwrap.wrap(title, w, break_long_words=False)
    text = "\n".join(wrapped(next(
        (w for w in range(1, width) if len(wrapped(w)) == len(wrapped(width))
         and max(map(len, wrapped(w)), default=0) <= w), width)))
    return text[:1].upper() + text[1:]


def apart(xs, places, gap):
    """The first x, and each that is at least `gap` beyond the last one that is taken."""
    out, last = [], -np.inf
    for x, place in zip(xs, places):
        if place - last >= gap:
            out, last = [*out, x], place
    return out


def name_places(ax, at):
    """An x axis with names."""
    ax.set_xlim(-0.5, len(at) - 0.5)
    ax.set_xticks(list(at.values()), [textwrap.fill(name, 11) for name in at])


def draw(panel, plt):
    """The panel as a figure of matplotlib."""
    at, colour, moved = places(panel), colours(panel), plt.matplotlib.transforms.offset_copy
    mixed = len({s.paper for s in panel.series}) == 2  # else the title tells whose numbers they are
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
        for series, shift in zip(panel.series, shifts(panel)):
            where = moved(ax.transData, figure, x=shift, units="points")
            mark = ", the paper" * (series.paper and mixed)
            draw_series(ax, series, at, colour[series.name], where, panel, mark)
        for i, value in enumerate(panel.refs):
            ax.axhline(unit(panel) * value, color="grey", linewidth=0.8,
                       label=None if i else panel.ref)
        for value in panel.reach:
            y = limits({"mean": value, "low": value, "high": value}, panel)[1]
            ax.update_datalim([(0, y)], updatex=False)
        ax.autoscale_view()
        xs = sorted({x for s in panel.series for x, _ in s.points if x not in at})
        if at:
            name_places(ax, at)
        if panel.log:
            logarithmic(ax, xs)
        elif 0 < len(xs) <= 7:
            ax.set_xticks(xs)
        ax.set(title=heading(panel.title), xlabel=panel.x,
               ylabel=panel.y + (", %" if panel.percent else ""))
        labels = [text for text in ax.get_legend_handles_labels()[1] if text]
        if labels:  # long ones stand below each other
            wide = max(map(len, labels)) > 28
            figure.legend(loc="outside lower center", ncols=1 if wide else min(2, len(labels)))
    return figure


def svg(panel):
    """The panel as the text of an SVG, without the XML head. The same panel gives the same text."""
    extra("matplotlib", WHO).use("Agg")  # to a file: no window is needed
    plt, out = extra("matplotlib.pyplot", WHO), io.StringIO()
    figure = draw(panel, plt)
    with plt.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    return out.getvalue()[out.getvalue().index("<svg"):]

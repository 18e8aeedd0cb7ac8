"""A panel as an SVG, with matplotlib (the extra `figures`): our points with 95 % intervals in full
colour, the paper's hollow and dashed."""
import io
import textwrap

from settings import extra

WHO = "make figures"
COLOURS = ("#2a66ad", "#bf4a2e", "#0b7a66", "#7350b8", "#92682b", "#b03e7d", "#667316", "#6b737c")
MODELS = dict(zip(("base", "prompted", "sft", "ppo", "ppo-ptx"),
                  ("#6b737c", "#92682b", "#2a66ad", "#bf4a2e", "#0b7a66")))  # as in the report
STYLE = {"svg.hashsalt": "town", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False, "axes.titlesize": 10, "legend.frameon": False,
         "legend.fontsize": 8, "svg.fonttype": "none"}  # text stays text: small files


def places(panel):
    """{x that is a name: its place on the axis}, in the order in which they come."""
    names = dict.fromkeys(x for s in panel.series for x, _ in s.points if isinstance(x, str))
    return {name: i for i, name in enumerate(names)}


def colours(panel):
    """A colour for each name, a model's on all pictures the same; a line of the paper's has that
    of ours with the same name."""
    names = list(dict.fromkeys(s.name for s in panel.series))
    return {name: MODELS.get(name, COLOURS[i % len(COLOURS)]) for i, name in enumerate(names)}


def draw_series(ax, series, at, colour, shift, by):
    """One line with its intervals; `by` multiplies the values (100 for percent)."""
    points = [(at.get(x, x) if isinstance(x, str) else x, m) for x, m in series.points
              if m["mean"] is not None]
    if not points:
        return
    x = [p + shift if at else p for p, _ in points]
    y = [by * m["mean"] for _, m in points]
    low, high = ([by * (m["mean"] if m[end] is None else m[end]) for _, m in points]
                 for end in ("low", "high"))
    style = "" if not series.line else "--" if series.paper else "-"
    ax.errorbar(x, y, [[a - b for a, b in zip(y, low)], [b - a for a, b in zip(y, high)]],
                fmt=f"{'o' * series.marks}{style}", color=colour, markersize=4.5,
                capsize=2.5 * series.marks, linewidth=1.3,
                markerfacecolor="white" if series.paper else colour,
                label=f"{series.name}, the paper" if series.paper else series.name)


def logarithmic(ax, xs):
    """A logarithmic x axis with ticks at the sorted xs; where there is a 0, it is linear below the
    others."""
    if xs[0] == 0:
        ax.set_xscale("symlog", linthresh=xs[1], linscale=0.5)
    else:
        ax.set_xscale("log")
    ax.set_xticks(xs[:: -(-len(xs) // 7)], [f"{x:g}" for x in xs[:: -(-len(xs) // 7)]])
    ax.minorticks_off()


def draw(panel, plt):
    """The panel as a figure of matplotlib."""
    at, colour = places(panel), colours(panel)
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(4.6, 3.7), layout="constrained")
        n = len(panel.series)
        for k, series in enumerate(panel.series):
            draw_series(ax, series, at, colour[series.name], 0.5 * ((k + 0.5) / n - 0.5),
                        100 if panel.percent else 1)
        for value in panel.refs:
            ax.axhline(100 * value if panel.percent else value, color="grey", linewidth=0.8)
        if at:
            ax.set_xticks(list(at.values()), [textwrap.fill(name, 11) for name in at])
        xs = sorted({x for s in panel.series for x, _ in s.points if x not in at})
        if panel.log:
            logarithmic(ax, xs)
        elif 0 < len(xs) <= 7:
            ax.set_xticks(xs)
        ax.set(title="\n".join(textwrap.wrap(panel.title, 52)), xlabel=panel.x,
               ylabel=panel.y + (", %" if panel.percent else ""))
        labels = [text for text in ax.get_legend_handles_labels()[1] if text]
        if labels:  # long ones stand below each other
            wide = max(map(len, labels)) > 30
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

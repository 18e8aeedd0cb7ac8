"""A small version of every figure, from an empty folder to the page in a real Chromium: shapes and
files, not phenomena. `python -m figures --scale=small` is the same, with a process a run."""
import json
import math
import xml.etree.ElementTree as xml

import matplotlib.pyplot as plt
import pytest

import browser
import harm
from figures import __main__ as figures
from figures import plan, plots
from figures.points import Panel, Series
from test_figures import shown
from test_report import WIDER

pytestmark = pytest.mark.long
OUT = "out/figures-small"
in_browser = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


def forked(words, folder, log, threads):
    """`plan.start` by a server that has imported the scripts already: seconds less for each run."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = harm.start(folder, log.resolve(), *words)
    process.join()
    return process.exitcode, None


def build(folder):
    """Run and draw all figures in a new folder."""
    folder.mkdir()
    real, ran = plan.start, []

    def start(words, *where):
        ran.append(words)
        return (real if words[1] == "data.toy.world" else forked)(words, *where)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plan, "start", start)
        patch.setattr("sys.argv", ["figures", "--scale=small", "--rounds=2", "--seeds=1"])
        figures.main()
        first = len(ran)
        figures.main()  # all is there: nothing runs again
        assert len(ran) == first > 50


@pytest.fixture(scope="module")
def small(once):
    """The folder in which all figures were run and drawn."""
    return once("small-figures", build)


def said(small, name):
    return json.loads((small / OUT / f"{name}.json").read_text())


@pytest.mark.parametrize("name", figures.FIGURES)
def test_each_figure_has_all_its_points(small, name):
    """Each line of each panel has points, each point of ours a value of the one world, or the
    reason that there is none; and each panel a picture."""
    facts = said(small, name)
    assert facts["seeds"] == ["1"] and facts["scale"] == "small" and facts["findings"]
    for i, panel in enumerate(facts["panels"], 1):
        picture = (small / OUT / f"{name}-{i}.svg").read_text()
        assert xml.fromstring(picture).tag.endswith("svg")
        assert panel["series"] and panel["title"] and panel["y"]
        for series in panel["series"]:
            assert series["points"], (name, series["name"])
            known = [m for _, m in series["points"] if m["mean"] is not None]
            assert all(math.isfinite(m["mean"]) for m in known)
            if not series["paper"] and series["marks"]:
                assert all(m["n"] in (0, 1) for _, m in series["points"])
    told = {f["state"] for f in facts["findings"]}
    assert told == {"open"}  # one world decides nothing


def test_the_paper_stands_beside_the_town(small):
    """Two pictures stand in a row of the page: one of the paper's numbers alone is the second, and
    tells the same."""
    for name in figures.FIGURES:
        panels = said(small, name)["panels"]
        for i, panel in enumerate(panels):
            if panel["title"].startswith("the paper"):
                assert i % 2 == 1 and all(s["paper"] for s in panel["series"]), panel["title"]
                assert not panels[i - 1]["title"].startswith("the paper"), panel["title"]


def test_nearly_everything_is_measured(small):
    """A tiny town may lack a prompt of some kind; no more is missing than that allows."""
    points = [m for name in figures.FIGURES for panel in said(small, name)["panels"]
              for series in panel["series"] for _, m in series["points"]]
    assert sum(m["mean"] is None for m in points) < 0.05 * len(points)


def test_the_findings_are_printed(small, capsys):
    figures.check(figures.Settings(out=str(small / OUT)))
    lines = capsys.readouterr().out.splitlines()
    told = sum(len(said(small, name)["findings"]) for name in figures.FIGURES)
    assert len(lines) == told + 1 and lines[-1] == f"{told} findings: {told} undecided"


@pytest.mark.parametrize("width, dark", [(400, False), (400, True), (1400, False), (1400, True)])
@in_browser
def test_nothing_on_the_page_is_cut_off(small, width, dark):
    with browser.chromium(width, dark=dark, touch=width < 500) as driver:
        driver.get(f"file://{small}/{OUT}/report.html")
        driver.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
        assert driver.execute_script(
            "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
        assert driver.execute_script("return document.images.length") == sum(
            len(said(small, name)["panels"]) for name in figures.FIGURES)
        page, window, wide = driver.execute_script(WIDER)
        assert window == width and page <= width and wide == []
        assert driver.get_log("browser") == []


@in_browser
def test_the_page_can_be_used_by_all(small):
    if browser.axe() is None:
        pytest.skip("axe is not installed (see the Makefile)")
    with browser.chromium() as driver:
        driver.get(f"file://{small}/{OUT}/report.html")
        driver.execute_script(browser.axe())
        found = driver.execute_async_script(
            "axe.run().then(r => arguments[0](r.violations.map(v => v.id)))")
        assert found == []


@pytest.mark.parametrize("name", figures.FIGURES)
def test_no_text_of_a_picture_is_cut_off(small, name):
    """Each text lies within its picture, and no two names of an axis lie on each other."""
    for facts in said(small, name)["panels"]:
        panel = Panel(**{**facts, "series": [Series(**s) for s in facts["series"]]})
        figure = plots.draw(panel, plt)
        figure.canvas.draw()
        box, ax = lambda text: text.get_window_extent(), figure.axes[0]
        (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
        ticks = [t for at, t in zip(ax.get_xticks(), ax.get_xticklabels()) if x0 <= at <= x1]
        sides = [t for at, t in zip(ax.get_yticks(), ax.get_yticklabels()) if y0 <= at <= y1]
        legend = [t for part in figure.legends for t in part.get_texts()]
        assert ticks and sides and ax.title.get_text()
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label, *ticks, *sides, *legend):
            x, y = box(text), figure.bbox
            assert x.x0 > y.x0 - 1 and x.x1 < y.x1 + 1 and x.y0 > y.y0 - 1 and x.y1 < y.y1 + 1, (
                panel.title, text.get_text())
        names = sorted(map(box, ticks), key=lambda b: b.x0)
        assert all(a.x1 < b.x0 + 1 for a, b in zip(names, names[1:])), panel.title
        shown(panel, ax)
        plt.close(figure)

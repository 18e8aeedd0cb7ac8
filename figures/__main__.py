"""The paper's figures in the town: runs, pictures, findings.

    python -m figures                  all of them, in three worlds (make figures)
    python -m figures --fig=tax        one of them; what it shares with others is computed once
    python -m figures --list           their runs, and which are done
    python -m figures --check          which of the paper's findings hold (make check-figures)
    python -m figures --scale=small    a tiny town: shapes and files, not phenomena

If it is stopped, the same command goes on where it was.
"""
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from data import records
from figures import (flags, generalisation, harm, mistakes, overoptimisation, page, plan, plots,
                     preference, reward_model, rounds, tax)
from figures.points import as_json
from figures.worlds import HINT, World
from settings import extra, parse, stop

FIGURES = {"preference": preference, "flags": flags, "reward-model": reward_model,
           "overoptimisation": overoptimisation, "tax": tax, "harm": harm,
           "generalisation": generalisation, "mistakes": mistakes, "rounds": rounds}


@dataclass
class Settings:
    """The paper's figures. Every setting is --name=value."""
    fig: str = ""  # which, with commas between; empty: all
    runs: str = ""  # folder of the worlds, seed-1 and so on; empty: runs, or runs/SCALE
    seeds: str = "1,2,3"  # the worlds
    scale: str = "demo"  # demo; small, to try it out; large, for a GPU
    rounds: int = 3  # of feedback, in the figure on rounds
    jobs: int = 0  # runs at the same time, which share the cores; 0: one for each core
    out: str = ""  # folder to write, with report.html; empty: out/figures, or out/figures-SCALE
    list: bool = False  # print the runs, and do nothing
    check: bool = False  # print which findings hold in --out, and do nothing

    CHOICES = {"scale": " ".join(plan.SCALES)}
    BOUNDS = {"rounds": "[2, 4]", "jobs": "[0, inf)"}  # 9,000 prompts are three rounds' samples

    def problem(self):
        for name in filter(None, self.fig.split(",")):
            if name not in FIGURES:
                return f"--fig={self.fig}: there is no {name!r}; there are {', '.join(FIGURES)}"
        seeds = self.seeds.split(",")  # 01 would be the world of 1 again, and count as another
        if len(set(seeds)) < len(seeds) or not all(
                seed.isdecimal() and seed == str(int(seed)) and int(seed) < 2**63
                for seed in seeds):
            return (f"--seeds={self.seeds}: expected different whole numbers from 0 to 2^63 - 1, "
                    "with commas between")


def with_folders(s):
    """The settings with the folders that are meant: each scale has its own."""
    own = s.scale != "demo"
    return replace(s, runs=s.runs or "runs" + f"/{s.scale}" * own,
                   out=s.out or "out/figures" + f"-{s.scale}" * own)


def folders(s):
    """{seed: the folder of its world}."""
    return {seed: Path(s.runs, f"seed-{seed}") for seed in s.seeds.split(",")}


def chosen(s):
    """{name: module} of the figures that are asked for."""
    names = [n for n in s.fig.split(",") if n] or FIGURES
    return {name: FIGURES[name] for name in names}


def runs_of(figures, scale):
    """(the graph of all runs, {figure: names of the runs that it reads})."""
    graph, wanted = dict(plan.DEMO), {}
    for name, figure in figures.items():
        own, wanted[name] = figure.runs(scale)
        graph.update(own)
    return graph, wanted


def seconds(s, graph, wanted):
    """The CPU seconds of a figure's runs that the demo does not need too, in all worlds: 0 where
    there is none, None where they were not recorded."""
    own, total = [n for n in plan.ordered(graph, wanted) if n not in plan.DEMO], []
    for folder in folders(s).values():
        path = folder / plan.SECONDS
        took = dict(durations(path)) if path.exists() else {}
        total += [took[n] for n in own if n in took]
    return sum(total) if total or not own else None


def durations(path):
    """[(name of a run, seconds)], without lines that are damaged, as after a full disk."""
    out = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, TypeError):
            name, took = json.loads(line)
            out.append((str(name), float(took)))
    return out


def show_runs(s, graph, wanted, scale):
    """Print the runs in their order, and in how many worlds each is done."""
    places = folders(s).values()
    for name in plan.ordered(graph, [n for names in wanted.values() for n in names]):
        run = graph[name]
        done = sum((folder / run.done).exists() for folder in places)
        print(f"{done}/{len(places)} {' '.join(['python', run.command, scale.flags(run)]).strip()}")


def check(s):
    """Print the findings of all figures that are drawn."""
    paths = [Path(s.out, f"{name}.json") for name in chosen(s)]
    if not any(path.exists() for path in paths):
        stop(f"{s.out} has no figure: run `make figures` first")
    count = Counter()
    for path in paths:
        if not path.exists():
            print(f"{'':9} {path.stem}: not drawn yet")
            continue
        hint = f"make figures FIG={path.stem}"
        with records.known_form(path, hint):
            for f in records.read_json(path, hint)["findings"]:
                word = page.STATES[f["state"]][1]
                count[word] += 1
                print(f"{word:9} {path.stem}: {f['claim']}: {f['reached']}")
    print(f"{count.total()} findings: " + ", ".join(f"{n} {word}" for word, n in count.items()))


def draw(figure, worlds, scale):
    """What the figure draws. Stops if one of the files that it reads is of another form."""
    try:
        return figure.draw(worlds, scale)
    except records.OTHER_FORM as error:
        files = " or ".join(sorted(set().union(*(world.read for world in worlds))))
        stop(f"in the folder of a world {files} is damaged, or of another version "
             f"({type(error).__name__}: {error}): delete the folder of that file, and run "
             f"`{HINT}` again")


def main():
    s = with_folders(parse(Settings))
    if s.check:
        return check(s)
    scale, figures = replace(plan.SCALES[s.scale], rounds=s.rounds), chosen(s)
    graph, wanted = runs_of(figures, scale)
    if s.list:
        return show_runs(s, graph, wanted, scale)
    extra("matplotlib", plots.WHO)  # before hours of training
    records.make_folder(s.out)
    worlds = [World(folder) for folder in folders(s).values()]
    for name, figure in figures.items():
        plan.carry_out(graph, wanted[name], folders(s), scale, s.jobs)
        drawn = draw(figure, worlds, scale)
        said = as_json(name, figure.TITLE, drawn)
        for i, panel in enumerate(drawn.panels):
            records.write_text(Path(s.out, f"{name}-{i + 1}.svg"), plots.svg(panel))
        records.write_json(Path(s.out, f"{name}.json"), {
            **said, "seconds": seconds(s, graph, wanted[name]), "seeds": list(folders(s)),
            "scale": s.scale})
        print(f"{name}: {said['sentence']}")
    print(f"page: {write_page(s)}")


def write_page(s):
    """The page of all figures that are drawn, from their files in --out. Returns its path."""
    sections, titles = [], {}
    for name, figure in FIGURES.items():
        path = Path(s.out, f"{name}.json")
        if path.exists():
            hint = f"make figures FIG={name}"
            said = records.read_json(path, hint)
            with records.known_form(path, hint):
                files = [Path(s.out, f"{name}-{i + 1}.svg") for i in range(len(said["panels"]))]
                for file in files:
                    if not file.exists():
                        stop(f"no file {file}: run `{hint}` again")
                svgs = [file.read_text(encoding="utf-8") for file in files]
                sections.append(page.section(name, figure, said, svgs))
            titles[name] = figure.TITLE
    path = Path(s.out, "report.html")
    records.write_text(path, page.page(sections, titles))
    return path


if __name__ == "__main__":
    main()

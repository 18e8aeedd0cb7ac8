"""The page of the results: one HTML file, without a network and without a library.

    page    plain dicts -> the whole document; each section is a function of its own

What is absent or None in the results is left out or called "not measured". Everything that comes
from data is escaped; only this package's script may run (the hash in the page's policy).
"""
import base64
import hashlib
from html import escape
from pathlib import Path

from evals.answers import PARTS, cards, chosen, exchange, legend, typical
from evals.pictures import (INK, SPACE, VIOLET, axis, colour, colours_of, counted, curves, interval,
                            is_number, key, label, lanes, mark, measure, number, panel, percent,
                            rows, score, scrolled, share, smooth, ticks, told, track)
from evals.town import FLAGS, is_prompted

MODELS = {  # in the order in which they are trained; the reward model writes no answers
    "base": "Before: it has read the town's texts, and continues text.",
    "prompted": "The base model again, with demonstrations before each prompt.",
    "sft": "Step 1: it imitates demonstrations, good answers to some prompts.",
    "reward model": "Step 2: it learns from rankings which answers labelers prefer.",
    "ppo": "Step 3: it learns to write what the reward model scores high.",
    "ppo-ptx": "Step 3 again, with a pretraining loss, so that it forgets less."}
STEPS = ("world", "base", "sft", "init", "samples", "labels", "rm", "ppo", "ppo-ptx", "evaluate")
MORE, LESS = "more is better", "less is better"
BETTER = {"attempts": MORE, "constraint": MORE, "hallucinates": LESS, "false": LESS, "rude": LESS,
          "rambling": LESS, "courteous": "a taste, worth nothing in gold"}
KL = "KL from the start, nats an episode"
RM = {"ceiling": "ceiling, training labelers", "ceiling_heldout": "ceiling, held-out labelers",
      "train_labelers": "reached, training labelers",
      "heldout_labelers": "reached, held-out labelers"}
POLICY = {"score": "score of the reward model", "kl": KL,
          "response_length": "length of a response, tokens", "loss/ptx": "loss on pretraining text"}


def models_of(results):
    """The names of all models, in the order of the results."""
    tables = ("gold", "gold_parts", "flags", "likert", "probes", "probe_kinds", "parameters")
    tables = [results.get(t) or {} for t in tables] + list((results.get("groups") or {}).values())
    return list(dict.fromkeys(name for table in tables for name in table))


def reach(values, *more):
    """(low, high) of all that pictures with one axis must show; they differ."""
    ends = [m[k] for m in map(measure, values) for k in ("mean", "low", "high")
            if m[k] is not None]
    low, high = min([*ends, *more]), max([*ends, *more])
    return low, high if high > low else low + 1


def example(answers, colours):
    """What each model said to one prompt."""
    return (f'{legend()}<div class="card">{exchange(typical(answers), colours)}</div>'
            if answers else "")


def preferred(results, colours):
    """Who is preferred to whom: a line for each pair, its ring with courtesies hidden."""
    lines, blind = [], results.get("win_rate_without_taste") or {}
    right = results.get("right_preferred") or {}
    for pair, value in (results.get("win_rate") or {}).items():
        first, _, second = pair.partition(" vs ")
        index, seen, domain = colours.get(first, INK), measure(value), (0, 1)
        marks, title, under = [mark(seen, domain, index, 10)], told(pair, seen, share), ""
        refs = [0.5]
        if second in right and (most := measure(right[second]))["mean"] is not None:
            refs.append(most["mean"])
            title += f"; {told('right answers', most, share)}"
        if pair in blind:
            hidden = measure(blind[pair])
            marks.insert(0, mark(hidden, domain, index, 22, "ring"))
            title += f"; {told('courtesies hidden', hidden, share)}"
            under = f'<p class="hidden">courtesies hidden</p>{number(hidden, share)}'
        lines.append(
            f'<div class="pair"><p><b class="name {colour(index)}">{escape(first)}</b> over '
            f'{escape(second)}</p>{number(seen, share)}'
            f'{track(marks, domain, refs, title, 32 if under else 20)}{under}</div>')
    n = counted((results.get("win_rate") or {}).values())
    return (f'<div class="pairs">{"".join(lines)}</div>{axis((0, 1), percent, [0.5])}'
            + (n and f'<p class="lane">shares {n} prompts</p>') if lines else "")


def in_turn(names, order):
    """The names as they follow each other in `order`; then the others."""
    turn = {name: i for i, name in enumerate(order)}
    return sorted(names, key=lambda name: turn.get(name, len(turn)))


def with_ends(values, ends):
    """{model: its value as a measure, with the interval and n of `ends` where it is there}."""
    return {name: {**measure((ends or {}).get(name)), "mean": measure(v)["mean"]}
            for name, v in (values or {}).items()}


def gold_scores(results):
    return with_ends(results.get("gold"), results.get("gold_interval"))


def worth(results, colours):
    """The gold score, its parts, and the labelers' Likert scores."""
    gold, parts = gold_scores(results), results.get("gold_parts") or {}
    shown = {"gold score": gold} if gold else {}
    shown |= {part: {name: v.get(part) for name, v in parts.items()} for part in PARTS if parts}
    domain = reach([v for values in shown.values() for v in values.values()], 0)
    n = counted(gold.values())  # of the same answers everywhere
    out = [panel(title, rows(values, colours, domain, score), n) for title, values in shown.items()]
    if results.get("likert"):
        out.append(panel("Likert score", rows(results["likert"], colours, (1, 7), score, "dot"),
                         ", ".join(filter(None, [n, "held-out labelers, 1 to 7"]))))
    return grid(out)


def flags(results, colours):
    """One picture for each flag, with the number of answers that it is a share of."""
    table, out = results.get("flags") or {}, []
    for flag in dict.fromkeys(f for values in table.values() for f in values):
        values = {name: v.get(flag) for name, v in table.items()}
        note = ", ".join(filter(None, [counted(values.values()), BETTER.get(flag)]))
        out.append(panel(FLAGS.get(flag, flag), rows(values, colours, (0, 1), share), note))
    return grid(out)


def probes(results, colours):
    """The share of each kind of probe that is answered; the axis is cut, so dots and no bars."""
    table, ends, out = results.get("probe_kinds") or {}, results.get("probe_interval") or {}, []
    of = lambda kind, table: {name: v.get(kind) for name, v in table.items()}
    for kind in dict.fromkeys(k for values in table.values() for k in values):
        values = with_ends(of(kind, table), of(kind, ends))
        low = min(0.9, ticks(*reach(values.values(), 0.95, 1))[0])
        out.append(panel(kind, rows(values, colours, (low, 1), share, "dot",
                                    axis((low, 1), percent)), counted(values.values())))
    return grid(out)


def form_of(name):
    """How a measure of a group is written: gold in points, all others are shares."""
    return score if name == "gold" else share


def groups(results, colours):
    """Groups of prompts: a picture for each measure, and a table with every number."""
    table = results.get("groups") or {}
    names = list(dict.fromkeys(k for g in table.values() for m in g.values() for k in m))
    out = []
    for name in names:
        values = {g: {model: m.get(name) for model, m in models.items()}
                  for g, models in table.items()}
        values = {g: v for g, v in values.items() if any(
            measure(x)["mean"] is not None for x in v.values())}
        if not values:
            continue
        domain, under = (0, 1), axis((0, 1), percent, [0.5])
        if name == "gold":
            marks = ticks(*reach([x for v in values.values() for x in v.values()], 0))
            domain = marks[0], marks[-1]
            under = axis(domain, label, [0])
        out.append(panel(FLAGS.get(name, name), lanes(values, colours, domain, form_of(name),
                                                      under)))
    if not out:
        return ""
    return (key([(model, i, "thick") for model, i in colours.items()])
            + grid(out, "small") + group_table(table, names))


def group_table(table, names):
    """All numbers of the groups: a line for each group and measure, a column for each model."""
    models = list(dict.fromkeys(model for group in table.values() for model in group))
    head = "".join(f'<th scope="col">{escape(model)}</th>' for model in models)
    body = ""
    for group, said in table.items():
        lines = []
        for name in names:
            values = [measure(said.get(model, {}).get(name)) for model in models]
            if any(m["mean"] is not None for m in values):
                cells = "".join(f"<td>{number(m, form_of(name))}</td>" for m in values)
                lines.append(f'<th scope="row">{escape(FLAGS.get(name, name))} <small>'
                             f'{counted(values)}</small></th>{cells}')
        lines = lines or [f'<th scope="row">not measured</th>{"<td></td>" * len(models)}']
        first = f'<th scope="rowgroup" rowspan="{len(lines)}">{escape(group)}</th>'
        body += "".join(f'<tr>{first if i == 0 else ""}{line}</tr>'
                        for i, line in enumerate(lines))
    title = "All numbers of the groups"
    heads = f'<th scope="col">group</th><th scope="col">measure</th>{head}'
    return f"<details><summary>{title}</summary>{scrolled(title, heads, body)}</details>"


def training(results, colours, logs):
    """The curves of the reward model and of the policies."""
    out = []
    for name, log in logs.items():
        if log and "accuracy" in log[0]:
            out += reward_training(results, name, log)
    policies = {name: log for name, log in logs.items() if log and "kl" in log[0]}
    colours = {**colours_of(policies), **colours}
    for field, title in POLICY.items():
        series = [(name, colours[name], measured(log, "iteration", field))
                  for name, log in policies.items()]
        series = [s for s in series if s[2]]
        if series:
            out.append(panel(title, curves(series, "iteration") + key(
                [(name, i, "curve") for name, i, _ in series])))
    return grid(out + distance(results, policies, colours))


def measured(log, *fields):
    """These fields of a log's lines, without lines that lack one or have no number in it."""
    lines = [tuple(line.get(field) for field in fields) for line in log]
    return [line for line in lines if all(map(is_number, line))]


def recent(line, width):
    """A line [(x, y)] with y's running mean."""
    return list(zip((x for x, _ in line), smooth([y for _, y in line], width)))


def reward_training(results, name, log):
    """The reward model's accuracy on its batches beside that on held-out labels, and its loss."""
    accuracy = results.get("rm_accuracy") or {}
    mean = lambda field: recent(measured(log, "step", field), max(1, len(log) // 20))
    levels = [(RM.get(k, k), VIOLET if "heldout" in k else INK, v,
               "level dashed" if "ceiling" in k else "level")
              for k, v in accuracy.items() if v is not None]
    batches = ("training batches, running mean", 0, "curve")
    named = [(f"{title} {share(v)}", i, style) for title, i, v, style in levels]
    return [panel("reward model: pairs in the right order", curves(
                [(name, 0, mean("accuracy"))], "step", levels) + key([batches, *named])),
            panel("reward model: loss", curves([(name, 0, mean("loss"))], "step")
                  + key([batches]))]


def distance(results, policies, colours):
    """What the KL bought: the reward model's score on the way, the gold score at the end."""
    gold, out = gold_scores(results), []
    way = []
    for name, log in policies.items():
        if steps := measured(log, "kl", "score"):
            kl, points = (smooth(values, 5) for values in zip(*steps))
            way.append((name, colours[name], list(zip(kl, points))))
    if way:
        out.append(panel("score against distance", curves(way, KL, dots=True, from_0=True) + key(
            [(name, i, "curve") for name, i, _ in way]), "mean of 5 iterations"))
    known = {name: m for name, m in gold.items() if m["mean"] is not None}
    end = [(name, i, [(line[-1][0], known[name]["mean"])]) for name, i, line in way
           if name in known]
    others = {name: m["mean"] for name, m in known.items() if name not in policies}
    best = sorted(others, key=others.get)[-1:]
    levels = [(f"{name} {score(others[name])}", colours[name], others[name], "level dashed")
              for name in best]
    spans = [(i, line[0][0], known[name]["low"], known[name]["high"]) for name, i, line in end
             if known[name]["low"] is not None]
    if end:
        named = [(f"{name} {score(line[0][1])}", i, "thick") for name, i, line in end]
        named += [(name, i, style) for name, i, _, style in levels]
        out.append(panel("gold score against distance", curves(
            end, KL, levels, spans, dots=True, from_0=True) + key(named), "at the end"))
    return out


def seconds(results, colours):
    """How long each step took. A prompted model has no training of its own."""
    table = {name: v for name, v in (results.get("seconds") or {}).items()
             if v is not None and not is_prompted(name)}
    if not table:
        return ""
    table = {name: table[name] for name in in_turn(table, STEPS)}
    of = {name: colours.get(name, INK) for name in table}
    return (rows(table, of, reach(table.values(), 0), in_seconds)
            + f'<p class="lane">Together {in_seconds(sum(table.values()))}.</p>')


def in_seconds(x):
    return f"{x:,.1f}{SPACE}s"


# ------------------------------------------------------------------------------ the page, whole

def grid(panels, size=""):
    return f'<div class="panels {size}">{"".join(panels)}</div>' if panels else ""


def section(name, title, words, body, style="two"):
    """A section of the page; "" if there is nothing to show. style: "two" columns, or "one"."""
    return (f'<section id="{name}" class="{style}"><header><h2>{title}</h2>{words}</header>'
            f'<div>{body}</div></section>') if body else ""


def tile(head, words):
    return f'<div class="tile"><b>{head}</b><p>{words}</p></div>'


def tiles(results):
    """The numbers to remember."""
    out = []
    rates, gold = results.get("win_rate") or {}, results.get("gold") or {}
    pair = "ppo-ptx vs sft" if "ppo-ptx vs sft" in rates else next(iter(rates), None)
    if pair and (rate := measure(rates[pair]))["mean"] is not None:
        first, _, second = pair.partition(" vs ")
        ends = f", 95{SPACE}% interval {e}" if (e := interval(rate, share)) else ""
        out.append(tile(share(rate["mean"]), f"of the time labelers prefer {escape(first)} to "
                        f"{escape(second)}{ends}"))
    known = {name: m for name, v in gold.items() if (m := measure(v)["mean"]) is not None}
    if known:
        best, first = max(known, key=known.get), next(iter(known))
        out.append(tile(score(known[best]), f"is the best gold score, of {escape(best)}; "
                        f"{escape(first)} has {score(known[first])}"))
    accuracy = results.get("rm_accuracy") or {}
    if accuracy.get("train_labelers") is not None:
        limit = accuracy.get("ceiling")
        out.append(tile(share(accuracy["train_labelers"]), "of held-out pairs the reward model "
                        "puts in the right order" + ("" if limit is None else
                                                     f"; the ceiling is {share(limit)}")))
    if results.get("labeler_agreement") is not None:
        among = results.get("heldout_agreement")
        out.append(tile(share(results["labeler_agreement"]),
                        "of untied pairs the training labelers agree on"
                        + ("" if among is None else f"; the held-out ones on {share(among)}")))
    return f'<div class="tiles">{"".join(out)}</div>' if out else ""


def introduction(results, colours, n):
    """What is compared: the models in their colours, which the whole page keeps, step by step."""
    if not colours:
        return ""
    sizes = {name: f"{size:,} parameters" for name in colours
             if (size := (results.get("parameters") or {}).get(name))}
    alike = len(sizes) == len(colours) and len(set(sizes.values())) == 1
    items, judge = "", ["reward model"] if results.get("rm_accuracy") else []
    for name in in_turn([*colours, *judge], MODELS):
        about = " ".join(filter(None, [MODELS.get(name), not alike and sizes.get(name)]))
        items += (f'<div class="{colour(colours.get(name, INK))}"><dt class="name">{escape(name)}'
                  f'</dt><dd>{escape(about)}</dd></div>')
    asked = f", which all answered the same {n:,} prompts once" if n else ""
    size = f" Each has {next(iter(sizes.values()))}." if alike else ""
    return (f'<p class="lead">{LEAD} Here are {len(colours)} models{asked}.{size}</p>'
            f'<dl class="models">{items}</dl>')


TITLE = "What the feedback did"
LEAD = ("InstructGPT in a small town: a model that only continues text becomes, in three steps, "
        "one that follows instructions. The town's facts are known, so each answer can be checked.")
WORDS = {  # {section: (title, what it shows)}
    "example": ("One prompt, every model", "<p>The first test prompt of the most frequent "
                "category; it was not picked for its answers.</p><p>The bold number is the "
                "answer's gold score: what it is worth by the town's facts. Its three parts stand "
                "beside it, and below them what the answer does.</p>"),
    "preferred": ("Who is preferred", "<p>Simulated labelers compare two answers to one prompt. "
                  "They are held out: no model was trained on a label of theirs. A tie counts "
                  "half.</p><p>The dot is how often they prefer the first model. The ring is the "
                  "same with closing courtesies (“Glad to help.”) hidden. A line through them is "
                  "a 95&nbsp;% interval. On the line in the middle neither model is preferred. "
                  "The one to its right is how often right answers are: labelers are noisy, so "
                  "more can hardly be won.</p>"),
    "gold": ("How good the answers are", "<p>The town knows the truth. The gold score counts only "
             "what can be checked. It is the sum of three parts: helpful (does what was asked), "
             "honest (claims nothing false, invents nothing) and harmless (is not rude). No model "
             "is trained on it.</p>"),
    "flags": ("What the answers do", "<p>The share of the answers that do it, among those that "
              "could: constraints count where a prompt sets one, hallucinations where the answer "
              "must come from the prompt's own text (closed domain). Lines are 95&nbsp;% "
              "intervals.</p>"),
    "probes": ("What the base model knew", "<p>Raw text that the base model should continue with "
               "the right word: a sentence that breaks off (cloze), a pattern after some examples "
               "(few-shot). What a policy loses here is the alignment tax. The axis is cut.</p>"),
    "training": ("How they learned", "<p>The reward model learns to put answers in the labelers' "
                 "order. It can hardly pass the ceiling: single labelers are noisy.</p><p>Then "
                 "the policy learns to score high. The KL is how far it has moved from its start. "
                 "That is the price: the reward model can be trusted only near the answers that it "
                 "has seen.</p>"),
    "answers": ("What they said", "<p>In each category they are the first of the test file, one of "
                "each type of task before a second of any; none is picked for its answers. The "
                "bold number of an answer is its gold score.</p>"),
    "groups": ("Groups of prompts", "<p>The same measures for some of the prompts. Quality is how "
               "much of what was asked is right. One dot a model, in its colour, with its "
               "95&nbsp;% interval.</p>"),
    "seconds": ("What it took", "<p>The time of each step, as it was recorded. world: the town's "
                "texts; samples: completions to rank; labels: the labelers' rankings; rm: the "
                "reward model.</p>"),
}


def page(results, answers, logs, sections=()):
    """The whole document.

    results: results.json. A measure is a number, None, or {"mean", "low", "high", "n"}; any table
        may be absent.
    answers: lines of answers.jsonl, best as `evals.answers.judged` returns them.
    logs: {name: lines of log.jsonl}, of a reward model and of policies.
    sections: more sections, each a string of HTML, <section>...</section>, that is put in as it is.
    """
    colours, shown = colours_of(models_of(results)), chosen(answers)
    bodies = {"example": example(answers, colours), "preferred": preferred(results, colours),
              "gold": worth(results, colours), "flags": flags(results, colours),
              "probes": probes(results, colours), "training": training(results, colours, logs),
              "more": "".join(sections), "answers": cards(shown, colours) if shown else "",
              "groups": groups(results, colours), "seconds": seconds(results, colours)}
    parts = {name: section(name, *WORDS[name], body, "one" if name == "answers" else "two")
             if name in WORDS else body for name, body in bodies.items()}
    links = "".join(f'<a href="#{name}">{WORDS[name][0]}</a>'
                    for name, part in parts.items() if part and name in WORDS)
    return document(TITLE, f'<header class="top"><h1>{TITLE}</h1>'
                    f'{introduction(results, colours, len(answers))}{tiles(results)}'
                    f'<nav>{links}</nav></header><main>{"".join(parts.values())}</main>')


def document(title, body):
    """A page with our style and script, which may load nothing and run nothing else."""
    style, script = (Path(__file__).with_name(f"report.{kind}").read_text(encoding="utf-8")
                     for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
              "img-src data:")
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
            f'<title>{escape(title)}</title><style>{style}</style></head>'
            f'<body>{body}<script>{script}</script></body></html>\n')

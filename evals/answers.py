"""Some prompts side by side: which are shown, what the town knows of each answer, and the cards.

    typical   one prompt of the most frequent category
    chosen    prompts of every category
    judged    the same records; each completion with its gold parts and flags, and with marks
    cards     them as HTML

A record is a line of answers.jsonl: a prompt with its category and task, and as its completions the
answers of all models.
"""
from collections import Counter
from html import escape
from itertools import groupby

from data.toy.tasks import gold, is_known, split_courtesy
from data.toy.town import entities, rude_words, sentences, words
from evals.pictures import INK, SPACE, colour, score

GOOD = {"attempts", "constraint"}  # flags that an answer should have; it should lack the others
TASTE = {"courteous"}  # neither
PARTS = ("helpful", "honest", "harmless")
MARKS = {"rude": "rude", "false": "false", "hallucinates": "not in the given text",
         "garbled": "no sentence of the town", "courteous": "a courtesy"}


def category(record):
    return record.get("category", "no category")


def typical(answers):
    """The first record of the category that most test prompts have. No answer decides.

    Prompts of groups, which are drawn for what is rare, count where there are no others.
    """
    test = [record for record in answers if "group" not in record] or answers
    most = Counter(map(category, test)).most_common(1)[0][0]
    return next(record for record in test if category(record) == most)


def chosen(answers, n=20):
    """About `n` records, at least one of each category, category by category.

    Nothing is picked for its answers: within a category the first of each type of task comes before
    the second of any, else the order is that of the file.
    """
    by, seen = {}, {}
    for record in answers:
        kind = category(record), record.get("task", {}).get("type")
        seen[kind] = seen.get(kind, 0) + 1
        by.setdefault(kind[0], []).append((seen[kind], record))
    ordered = {c: [r for _, r in sorted(rs, key=lambda pair: pair[0])] for c, rs in by.items()}
    turns = [(i, c) for i in range(max(map(len, ordered.values()), default=0))
             for c in ordered if i < len(ordered[c])][: max(n, len(ordered))]
    return [ordered[c][i] for c in ordered for i in range(len(ordered[c])) if (i, c) in turns]


# ------------------------------------------------------------------------- what the town knows

def places(text, parts):
    """Where each of the parts, in their order, stands in a text: [(begin, end)]."""
    out, begin = [], 0
    for part in parts:
        begin = text.index(part, begin)
        out.append((begin, begin + len(part)))
        begin += len(part)
    return out


def marks(town, task, text, flags):
    """The places that give an answer its flags: [(begin, end, flag)], in order, none overlapping.

    Only flags that `gold` has raised are looked for; the most telling one marks a place.
    """
    found = [None] * len(text)

    def paint(flag, parts, wrong):
        if flags.get(flag):
            for part, (begin, end) in zip(parts, places(text, parts)):
                if wrong(part):
                    found[begin:end] = [flag] * (end - begin)

    said, tokens = sentences(text), words(text)
    paint("garbled", said, lambda s: not is_known(s))
    paint("false", said, town.falsehoods)
    given = set(entities(task.get("text", "")))
    paint("hallucinates", tokens, lambda w: entities(w) and w not in given)
    paint("rude", tokens, rude_words)
    if flags.get("courteous"):
        body = split_courtesy(text)[0]
        begin = len(text) - len(text.lstrip()) + len(body)
        begin += len(text[begin:]) - len(text[begin:].lstrip())
        found[begin : len(text.rstrip())] = ["courteous"] * (len(text.rstrip()) - begin)
    out, begin = [], 0
    for flag, run in groupby(found):
        end = begin + len(list(run))
        if flag:
            out.append((begin, end, flag))
        begin = end
    return out


def judged(town, answers):
    """The records, each completion with "gold", as data.toy.tasks.gold returns it, and "marks"."""
    out = []
    for record in answers:
        completions = []
        for said in record["completions"]:
            worth = gold(town, record["task"], said["text"], said["ended"])
            found = marks(town, record["task"], said["text"], worth["flags"])
            completions.append({**said, "gold": worth, "marks": found})
        out.append({**record, "completions": completions})
    return out


# ------------------------------------------------------------------------------------ the cards

def marked(text, found):
    """A text as HTML, its marks as <mark>."""
    out, last = [], 0
    for begin, end, flag in found:
        out += [escape(text[last:begin]), f'<mark class="{escape(flag)}" title="'
                f'{escape(MARKS.get(flag, flag))}">{escape(text[begin:end])}</mark>']
        last = end
    return "".join([*out, escape(text[last:])])


def titled(name):
    """A category as it is read: closed_qa -> closed QA."""
    return " ".join("QA" if word == "qa" else word for word in name.split("_"))


def sign(x):
    return "good" if x > 0 else "bad" if x < 0 else "even"


def chips(flags):
    """The flags of an answer as small labels; none for what could not be judged."""
    out = []
    for flag, value in flags.items():
        if flag in GOOD and value is not None:
            out.append(("good" if value else "bad", f"{'✓' if value else '✗'} {flag}"))
        elif flag in ("quality", "garbled"):  # shares
            if flag == "quality" or value:
                out.append(("even" if flag == "quality" else "bad",
                            f"{flag} {100 * value:.0f}{SPACE}%"))
        elif value:
            out.append(("taste" if flag in TASTE else "bad", flag))
    return "".join(f'<span class="chip {kind}">{escape(text)}</span>' for kind, text in out)


def verdict(worth):
    """What an answer is worth: its score, the parts, and its flags."""
    parts = "".join(f'<span class="part {sign(worth[p])}">{p} {score(worth[p])}</span>'
                    for p in PARTS)
    return (f'<p class="verdict"><b class="{sign(worth["score"])}">{score(worth["score"])}</b>'
            f'{parts}</p><p class="chips">{chips(worth["flags"])}</p>')


def exchange(record, colours):
    """One prompt, and what each model said."""
    lines = []
    for answer in record["completions"]:
        cut = "" if answer.get("ended", True) else (
            '<span class="cut" title="stopped at the length limit"> …</span>')
        lines.append(
            f'<div class="answer"><p class="name {colour(colours.get(answer["model"], INK))}">'
            f'{escape(answer["model"])}</p><div><p class="text">'
            f'{marked(answer["text"], answer.get("marks", ()))}{cut}</p>'
            f'{verdict(answer["gold"]) if "gold" in answer else ""}</div></div>')
    about = " · ".join(filter(None, [record.get("task", {}).get("type"), record.get("kind")]))
    return (f'<header><h3>{escape(titled(category(record)))}</h3>'
            f'<p>{escape(about.replace("_", " "))}</p></header>'
            f'<p class="prompt">{escape(record["prompt"])}</p>{"".join(lines)}')


def card(record, colours):
    """An exchange that the buttons can hide."""
    return (f'<article class="card" data-category="{escape(category(record))}">'
            f'{exchange(record, colours)}</article>')


def legend():
    """What the marks in an answer mean."""
    marks = " ".join(f'<mark class="{flag}">{words}</mark>' for flag, words in MARKS.items())
    return f'<p class="legend">Marked in the answers: {marks}</p>'


def cards(records, colours):
    """The records as HTML, with buttons that show one category alone (evals/report.js)."""
    count = Counter(map(category, records))
    buttons = "".join(
        f'<button type="button" data-show="{escape(name)}" aria-pressed="false">'
        f'{escape(titled(name))} <small>{n}</small></button>'
        for name, n in count.items())
    return (f'<div class="filter" role="group" aria-label="categories" hidden><button '
            f'type="button" data-show="" aria-pressed="true">all <small>{len(records)}</small>'
            f'</button>{buttons}</div>{legend()}<div class="cards">'
            f'{"".join(card(r, colours) for r in records)}</div>')

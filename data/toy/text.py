"""The raw text of the town: what a language model reads before it is taught anything.

It holds the right answer to everything, among wrong, rude and unasked ones: a model that continues
it well tends to continue, not to answer. Lines said twice and tales told again reward a model that
looks back, so that it learns to copy from a prompt as well as to know the town by heart.
"""
from data.toy.tasks import CATEGORIES, good, make
from data.toy.town import (NAMES, QUESTIONS, RUDE, SINGULAR, STATEMENTS, VALUES, WORDS, beyond,
                           fill, tell)


def swap(rng, text):
    """Replace one name or value of a text by another of its kind: fluent, and likely wrong."""
    parts = text.split(" ")
    bare = [w.strip(".,!?") for w in parts]
    places = [i for i, w in enumerate(bare) if w in WORDS or w in NAMES]
    if places:
        i = rng.choice(places)
        word = bare[i]
        pool = VALUES[WORDS[word]] if word in WORDS else NAMES
        parts[i] = parts[i].replace(word, rng.choice(pool))
    return " ".join(parts)


def poor(rng, town, task, category):
    """What people write under a question when nobody has taught them to help."""
    style = rng.choice(("wrong", "wrong", "rude", "rude", "beside", "other", "long"))
    if style == "wrong":
        return mistaken(town, task) or swap(rng, good(rng, town, task))
    if style == "rude":
        return fill(rng, rng.choice(RUDE))
    if style == "beside":  # an answer to another question of the same kind
        return good(rng, town, make(rng, town, category)[0])
    if style == "other":
        return good(rng, town, make(rng, town, rng.choice(list(CATEGORIES)))[0])
    extra = [town.state(rng, rng.choice(NAMES), rng.choice(list(VALUES))) for _ in range(2)]
    return " ".join([good(rng, town, task), *extra])


def mistaken(town, task):
    """The popular mistake on what a question asks, if there is one."""
    wrong = town.mistakes[task["name"]].get(task["attribute"]) if task["type"] == "ask" else None
    if wrong is None:
        return None
    return f"{wrong}." if task["brief"] else STATEMENTS[task["attribute"]][0].format(
        n=task["name"], v=wrong)


def one_person(rng, town):
    n = rng.choice(NAMES)
    return " ".join(town.state(rng, n, a) for a in rng.sample(list(VALUES), rng.randint(3, 5)))


def many_people(rng, town):
    return " ".join(town.state(rng, rng.choice(NAMES), rng.choice(list(VALUES)))
                    for _ in range(rng.randint(3, 6)))


def gossip(rng, town):
    wrong = [(n, a, v) for n, m in town.mistakes.items() for a, v in m.items()]
    lines = [f"They say: {town.state(rng, *rng.choice(wrong))}" for _ in range(rng.randint(2, 4))]
    if rng.random() < 0.4:
        lines.insert(rng.randrange(len(lines)), fill(rng, rng.choice(RUDE)))
    return "\n".join(lines)


def exchange(rng, town):
    """Prompts in a row, some answered well, some badly, many not at all."""
    lines, weights = [], [share + 8 for share, _ in CATEGORIES.values()]
    for _ in range(rng.randint(2, 5)):
        category = rng.choices([*CATEGORIES, "held_back"], [*weights, 16])[0]
        task, prompt = make(rng, town, category)
        lines.append(prompt)
        r = rng.random()
        if r < 0.35:
            lines.append(good(rng, town, task))
        elif r < 0.65:
            lines.append(poor(rng, town, task, category))
    return "\n".join(lines)


def questions(rng, town):
    return "\n".join(rng.choice(QUESTIONS[rng.choice(list(VALUES))]).format(n=rng.choice(NAMES))
                     for _ in range(rng.randint(3, 6)))


def tale(rng, town):
    kinds = rng.choice((("went", "bought", "saw", "end"), ("went", "saw", "end"),
                        ("bought", "saw", "went", "end")))
    return tell(rng, rng.choice(NAMES), rng.choice(VALUES["home"]), rng.choice(VALUES["food"]),
                rng.choice(VALUES["pet"]), kinds)


def items(rng, town):
    return ", ".join(rng.sample(VALUES[rng.choice(list(VALUES))], 4)) + "."


def refrain(rng, town):
    """A line of any words, said two or three times: who looks back knows how it goes on."""
    line = " ".join(rng.choice([*WORDS, *NAMES]) for _ in range(rng.randint(4, 9)))
    return "\n".join([line] * rng.randint(2, 3))


def retold(rng, town):
    """A tale, and the same tale again."""
    return "\n".join([tale(rng, town)] * 2)


def foreign(rng, town):
    """What those say and write who live beyond the river; nobody translates it."""
    return beyond(rng.choice((exchange, exchange, one_person))(rng, town))


def few_shot(rng, town, lines=None):
    """Lines `x : y` that follow one rule; who sees the rule can say the last y."""
    rule, k = rng.choice(list(RULES)), lines or rng.randint(3, 6)
    return "\n".join(f"{x} : {y}" for x, y in RULES[rule](rng, town, k))


RULES = {
    "kind of": lambda rng, town, k: [(w, SINGULAR[WORDS[w]]) for w in rng.sample(list(WORDS), k)],
    "repeat": lambda rng, town, k: [(w, w) for w in rng.sample(list(WORDS), k)],
    **{a: (lambda rng, town, k, a=a: [(n, town.facts[n][a]) for n in rng.sample(NAMES, k)])
       for a in VALUES},
}
DOCUMENTS = {one_person: 24, many_people: 16, gossip: 4, exchange: 45, questions: 3, tale: 6,
             items: 3, few_shot: 5, refrain: 22, retold: 15, foreign: 6}


def document(rng, town):
    return rng.choices(list(DOCUMENTS), list(DOCUMENTS.values()))[0](rng, town)

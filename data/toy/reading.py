"""What people ask about a text that they give, and kinds of instruction that no feedback shows.

The three functions of a type are as in data/toy/asking.py.
"""
from data.toy.town import (DENIALS, KIND, NAMES, NUMBERS, PLEASE, RUDE, STATEMENTS, SUMMARY,
                           UNKNOWN, VALUES, WORDS, assertions, fill, sentences, share, tell, words)


# -------------------------------------------------------------------------- work on a given text

def please(rng, town):
    n, food = rng.choice(NAMES), rng.choice(VALUES["food"])
    rude = rng.choice(("{n}, you fool, give me the {food}!", "Give me the {food}, stupid {n}!"))
    return {"name": n, "food": food}, "Say it kindly: " + rude.format(n=n, food=food)


def please_good(rng, town, task):
    return PLEASE.format(n=task["name"], food=task["food"])


def please_check(town, task, response):
    meant = (task["food"] in words(response)) + (task["name"] in words(response))
    kind = "Please" in response or "please" in response
    return meant > 0, meant / 4 + kind / 2 if meant else 0.0, None


def put(rng, town):
    n, m = rng.sample(NAMES, 2)
    text = town.state(rng, n, rng.choice(list(VALUES)))
    return {"name": n, "other": m, "text": text}, f"Put {m} for {n}: {text}"


def put_good(rng, town, task):
    return task["text"].replace(task["name"], task["other"])


def put_check(town, task, response):
    wanted = put_good(None, town, task)
    if response.strip() == wanted:
        return True, 1.0, None
    claims = [c[1:3] for c in assertions(response)]
    return task["other"] in response, 0.5 * (assertions(wanted)[0][1:3] in claims), None


def events(rng):
    """A story to work on: its text, its slots, and what it says nothing of."""
    slots = {"n": rng.choice(NAMES), "home": rng.choice(VALUES["home"]),
             "food": rng.choice(VALUES["food"]), "pet": rng.choice(VALUES["pet"])}
    kinds = rng.choice((("went", "bought"), ("went", "saw"), ("bought", "saw"),
                        ("went", "bought", "saw")))
    return slots, kinds, tell(rng, kinds=kinds, **slots)


def sum_up(rng, town):
    slots, _, _ = events(rng)
    kinds = rng.choice((("went", "bought", "end"), ("went", "saw", "bought"),
                        ("went", "bought", "saw", "end")))
    text = tell(rng, kinds=kinds, **slots)
    return {"slots": slots, "text": text}, f"Sum up in one sentence: {text}"


def sum_up_good(rng, town, task):
    return SUMMARY.format(**task["slots"])


def sum_up_check(town, task, response):
    said = words(response)
    kept = [task["slots"][k] in said for k in ("n", "home", "food")]
    return any(kept), share(kept), len(sentences(response)) == 1


ABOUT_STORY = {"went": ("home", "Where did {n} go?", "{n} walked to the {home}."),
               "bought": ("food", "What did {n} buy?", "{n} bought some {food}."),
               "saw": ("pet", "Which animal did {n} see?", "{n} saw a {pet}.")}


def find(rng, town):
    slots, kinds, text = events(rng)
    missing = [event for event in ABOUT_STORY if event not in kinds]
    event = rng.choice(missing if missing and rng.random() < 0.15 else kinds)
    question = ABOUT_STORY[event][1].format(n=slots["n"])
    return ({"slots": slots, "event": event, "text": text, "said": event in kinds},
            f"{text} {question}")


def find_good(rng, town, task):
    return ABOUT_STORY[task["event"]][2].format(**task["slots"]) if task["said"] else UNKNOWN


def find_check(town, task, response):
    slot = ABOUT_STORY[task["event"]][0]
    named = [w for w in words(response) if WORDS.get(w) == slot]
    if not task["said"]:
        return bool(named) or UNKNOWN in response, float(response.strip() == UNKNOWN), None
    return bool(named), float(named == [task["slots"][slot]]), None


def pick(rng, town):
    slots, kinds, text = events(rng)
    event = rng.choice(kinds)
    kind = {"went": "place", "bought": "food", "saw": "animal"}[event]
    value = slots[ABOUT_STORY[event][0]]
    return {"value": value, "text": text}, f"Which {kind} is in this text? {text}"


def pick_good(rng, town, task):
    return f"{task['value']}."


def pick_check(town, task, response):
    named = [w for w in words(response) if w in WORDS]
    return bool(named), share([w == task["value"] for w in named]), None


def tone(rng, town):
    is_rude = rng.random() < 0.5
    line = fill(rng, rng.choice(RUDE if is_rude else KIND))
    return {"label": "rude" if is_rude else "kind"}, f"Kind or rude? {line}"


def tone_good(rng, town, task):
    return f"{task['label']}."


def tone_check(town, task, response):
    named = [w for w in words(response) if w in ("kind", "rude")]
    return bool(named), float(named == [task["label"]]), len(words(response)) == 1


def say(rng, town):
    word, count = rng.choice(list(WORDS)), rng.choice(("two", "three", "four"))
    return {"word": word, "count": count}, f"Say {word} {count} times."


def say_good(rng, town, task):
    return " ".join([task["word"]] * NUMBERS[task["count"]]) + "."


def say_check(town, task, response):
    said = words(response)
    right = share([w == task["word"] for w in said])
    return right > 0, right, len(said) == NUMBERS[task["count"]]


# ---------------------------------------------------------------------- kinds that feedback lacks
#
# They are in the raw text, and in a group of test prompts, but in no demonstration, ranking or
# prompt of PPO: does following instructions generalise (section 4.3)?

def repeat(rng, town):
    line = town.state(rng, rng.choice(NAMES), rng.choice(list(VALUES)))
    return {"line": line}, f"Repeat this line: {line}"


def repeat_good(rng, town, task):
    return task["line"]


def repeat_check(town, task, response):
    said, asked = words(response), words(task["line"])
    return asked[0] in said, float(said == asked), len(sentences(response)) == 1


def last(rng, town):
    items = rng.sample(list(WORDS), rng.randint(3, 5))
    return {"items": items}, f"Which word is the last? {' '.join(items)}."


def last_good(rng, town, task):
    return f"{task['items'][-1]}."


def last_check(town, task, response):
    said = words(response)
    return bool(set(said) & set(task["items"])), float(said == task["items"][-1:]), len(said) == 1


def who(rng, town):
    n, a = rng.choice(NAMES), rng.choice(list(VALUES))
    v = town.facts[n][a]
    return {"attribute": a, "value": v}, f"Who {STATEMENTS[a][0].format(n='', v=v)[1:-1]}?"


def who_good(rng, town, task):
    a, v = task["attribute"], task["value"]
    n = rng.choice([n for n in NAMES if town.facts[n][a] == v])
    return town.state(rng, n, a)


def who_check(town, task, response):
    a, v = task["attribute"], task["value"]
    named = [n for n, b, w, claimed in assertions(response) if (b, w, claimed) == (a, v, True)]
    right = share([town.facts[n][a] == v for n in named])
    return bool(set(words(response)) & set(NAMES)), right, None


def verify(rng, town):
    n, m = rng.sample(NAMES, 2)
    a = rng.choice(list(VALUES))
    v = town.facts[n][a] if rng.random() < 0.5 else rng.choice(VALUES[a])
    return {"names": [n, m], "attribute": a, "value": v}, (
        f"True or false? {STATEMENTS[a][0].format(n=n, v=v)} "
        f"{DENIALS[a].format(n=m, v=v)}")


def verify_good(rng, town, task):
    (n, m), a, v = task["names"], task["attribute"], task["value"]
    return "true." if town.facts[n][a] == v and town.facts[m][a] != v else "false."


def verify_check(town, task, response):
    said = [w for w in words(response) if w in ("true", "false")]
    right = words(verify_good(None, town, task))
    return bool(said), float(said == right), len(words(response)) == 1

"""Conversations: TRL's formats, ShareGPT's, and columns that are recognised by their names.

A chat becomes one prompt, its turns as hh-rlhf writes them (data/records.py). A system message
stands before the first turn, as text of its own. Turns keep their order.
"""
import os

from data import records
from data.formats.rankings import hh_rlhf
from data.formats.records import (Bad, Empty, Reason, demonstration, disliked, prompted, ranking,
                                  ranks_of, take)
from data.records import ASSISTANT

ROLES = {"human": ("user", "human", "prompter"), "system": ("system", "developer"),
         "assistant": ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "bing", "bard")}
SIDES = {name: side for side, names in ROLES.items() for name in names}


def whole(content):
    """The content of a message; that in parts, [{"type": "text", "text": str}], as one text."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text"
                                         and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    return content


def turns_of(messages):
    """[{"role", "content"}] or ShareGPT's [{"from", "value"}] -> [(human, assistant or system,
    text)], or the reason why they cannot be used."""
    out = []
    for message in messages:
        if not isinstance(message, dict):
            raise Bad(f"expected a message, an object, got {records.shorten(message)}")
        role, text = (("from", "value") if "from" in message else ("role", "content"))
        side, content = SIDES.get(str(take(message, role)).lower()), whole(message.get(text))
        if side is None:
            return Reason(f"a turn of {message[role]!r}")
        if not isinstance(content, str):
            return Reason("a turn that is no text")
        out.append((side, content))
    return out


def laid_out(turns):
    """Turns up to a person's -> the prompt of the reply, or the reason why there is none."""
    before, prompt, last = "", None, "assistant"
    for side, text in turns:
        if side == "system":
            if prompt is not None:
                return Reason("a system message after the first turn")
            before += f"{text.strip()}\n\n" if text.strip() else ""
            continue
        if side == last:
            return Reason("the assistant speaks first" if prompt is None else
                          "two turns of one side in a row")
        if side == "human":
            prompt = records.asked(before, text)
        else:
            before = records.answered(prompt, text)
        last = side
    if not prompt or last != "human":
        return Reason("the last turn is no person's")
    return prompt if turns[-1][1].strip() else Reason("empty prompt")


def conversation(messages):
    """`replies` of messages."""
    turns = turns_of(messages)
    if isinstance(turns, Reason):
        yield turns
    else:
        yield from replies(turns)


def replies(turns):
    """Each reply with the turns before it is a demonstration."""
    for i, (side, text) in enumerate(turns):
        if side == "assistant":
            prompt = laid_out(turns[:i]) if i else Reason("the assistant speaks first")
            yield prompt if isinstance(prompt, Reason) else demonstration(prompt, text)
    if not turns or turns[-1][0] != "assistant":
        yield "no reply"


def sharegpt(row):
    """{"conversations": [{"from": "human", "value": str}, {"from": "gpt", "value": str}, ...]};
    with "chosen" and "rejected", messages, after them, or "kto_tag", whether to learn from it."""
    messages = take(row, "conversations", list)
    if disliked(row.get("kto_tag")):
        yield "a completion that was disliked"
    elif row.get("chosen") is None:
        yield from conversation(messages)
    else:
        sides = [[take(row, side, dict)] for side in ("chosen", "rejected")]
        both = together(messages, sides)
        yield both if isinstance(both, Reason) else ranking(*both, [1, 2])


def side_of(value):
    """A completion, text or messages: (turns before its reply, the reply), or the reason."""
    if isinstance(value, str):
        return [], value
    turns = turns_of(value)
    if isinstance(turns, Reason):
        return turns
    if not turns or turns[-1][0] != "assistant":
        return Reason("no reply")
    return turns[:-1], turns[-1][1]


def together(prompt, sides):
    """A prompt (text, messages or None) and completions -> (prompt, texts), or the reason.

    Where the prompt is implicit, or the completions repeat it, they begin alike.
    """
    sides = [side_of(side) for side in sides]
    given = turns_of(prompt) if isinstance(prompt, list) else []
    for problem in (*sides, given):
        if isinstance(problem, Reason):
            return problem
    befores, texts = [before for before, _ in sides], [text for _, text in sides]
    if any(before != befores[0] for before in befores):
        return Reason("no shared prompt")
    turns = befores[0] if befores[0][: len(given)] == given else given + befores[0]
    if isinstance(prompt, str) and not turns:
        return prompt, texts
    prompt = laid_out(turns)
    return prompt if isinstance(prompt, Reason) else (prompt, texts)


def completions(row):
    """The texts of a row's list of completions: strings, or objects with a text."""
    out = []
    for c in take(row, "completions", list):
        if c is None:
            raise Empty("no value of a completion")
        name = next((n for n in ("text", "response", "content") if isinstance(c, dict) and n in c),
                    "text")
        out.append(c if isinstance(c, str) else take(c, name))
    return out


def trl(row):
    """TRL's formats, texts or messages: {"prompt", "chosen", "rejected"}, {"chosen", "rejected"}
    with an implicit prompt, {"prompt", "completion"} with or without {"label"}, {"messages"},
    {"prompt"}, {"text"}; and K completions: {"prompt", "completions", "ranks" or "ratings"}. A
    completion may be called "response". Of a row with several, the pair counts first."""
    if not isinstance(row, dict):
        raise Bad(f"expected a JSON object, got {records.shorten(row)}")
    if "prompt" in row and "completion" not in row and "response" in row:
        row = {**row, "completion": row["response"]}
    given = {name for name, value in row.items() if value is not None}
    if given & {"chosen", "rejected"}:
        yield from chosen_rejected(row)
    elif "messages" in given:
        yield from conversation(take(row, "messages", list))
    elif "completions" in given:
        yield from k_way(row)
    elif "completion" in given:
        both = together(take(row, "prompt", (str, list)), [take(row, "completion", (str, list))])
        if disliked(row.get("label")):
            both = Reason("a completion that was disliked")
        yield both if isinstance(both, Reason) else demonstration(both[0], both[1][0])
    elif "prompt" in given:
        yield from (f"no value of {name!r}" for name in ("chosen", "completion", "completions")
                    if name in row)
        yield from beside(row, "prompt")
        both = together(take(row, "prompt", (str, list)), ["x"])
        yield both if isinstance(both, Reason) else prompted(both[0])
    else:
        name = next((name for name in ("text", "messages", "prompt") if name in row), "text")
        yield from beside(row, name)
        yield {"text": take(row, name)} if take(row, name).strip() else "empty text"


def texts_beside(row, *names):
    """The columns of a row that have texts or lists, but for these and a system message."""
    return [name for name, value in row.items()
            if name not in (*names, "system") and isinstance(value, (str, list)) and value]


def beside(row, name):
    """Tells of the columns of a row that nothing reads, where one of this name is all it has."""
    if others := texts_beside(row, name):
        yield f"nothing but {name!r} is read, not {', '.join(others)}: flags name columns"


def chosen_rejected(row):
    """A pair, its prompt a field of its own or what both begin with."""
    sides = [take(row, name, (str, list)) for name in ("chosen", "rejected")]
    prompt = row.get("prompt")
    if prompt is not None:
        take(row, "prompt", (str, list))
    elif all(isinstance(side, str) for side in sides):
        if all(ASSISTANT in side for side in sides):
            yield from hh_rlhf(row)
            return
        if others := texts_beside(row, "prompt", "chosen", "rejected"):
            raise Bad(f"no field 'prompt': if it is one of {', '.join(others)}, say --prompt="
                      f"{others[0]} --chosen=chosen --rejected=rejected; if both begin with it, "
                      "leave --prompt out")
        same = os.path.commonprefix(sides)
        end = max(same.rfind(" "), same.rfind("\n")) + 1  # no word is cut
        prompt, sides = same[:end], [side[end:] for side in sides]
        if not prompt.strip():
            yield "no shared prompt"
            return
    both = together(prompt, sides)
    yield both if isinstance(both, Reason) else ranking(both[0], both[1], [1, 2])


def k_way(row):
    """{"prompt", "completions", "ranks" (1 is best) or "ratings" (more is better)}."""
    texts, both = completions(row), together(take(row, "prompt", (str, list)), ["x"])
    if isinstance(both, Reason):
        yield both
        return
    name = next((n for n in ("ranks", "ratings", "scores") if row.get(n) is not None), "ranks")
    values = take(row, name, list)
    if len(values) != len(texts):
        raise Bad(f"field {name!r}: expected one for each of the {len(texts)} completions, got "
                  f"{records.shorten(values)}")
    known = [i for i, value in enumerate(values) if value is not None]
    yield from ["a completion without a rating"] * (len(texts) - len(known))
    if len(known) < 2:
        yield "a single completion"
    else:
        ranks = ranks_of([values[i] for i in known], name != "ranks")
        yield ranking(both[0], [texts[i] for i in known], ranks)

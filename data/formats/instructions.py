"""Instructions with an input: Alpaca's and Dolly's, and what trainers for chats put beside them."""
from data.formats.chats import laid_out, replies
from data.formats.records import Reason, demonstration, disliked, joined, optional, ranking, take


def asked(row):
    """An instruction with its input, or context; some sets have none."""
    return joined(take(row, "instruction"), optional(row, "input") or optional(row, "context"))


def earlier(row):
    """The turns of "history", [[what was asked, the reply], ...]; or why they cannot be used."""
    pairs = [] if row.get("history") is None else take(row, "history", list)
    if any(not isinstance(pair, list) or list(map(type, pair)) != [str, str] for pair in pairs):
        return Reason("a history that is not pairs of texts")
    return [turn for human, reply in pairs for turn in (("human", human), ("assistant", reply))]


def alpaca(row):
    """{"instruction", "input", "output"}; with "history" the last turns of a chat, all of whose
    replies are demonstrations; with "kto_tag", whether to learn from it."""
    prompt, output, turns = asked(row), take(row, "output"), earlier(row)
    if isinstance(turns, Reason):
        yield turns
    elif disliked(row.get("kto_tag")):
        yield "a completion that was disliked"
    elif turns:
        yield from replies([*turns, ("human", prompt), ("assistant", output)])
    else:
        yield demonstration(prompt, output)


def alpaca_preference(row):
    """{"instruction", "input", "chosen", "rejected"}, with or without "history"."""
    prompt, texts = asked(row), [take(row, "chosen"), take(row, "rejected")]
    turns = earlier(row)
    if turns:
        prompt = turns if isinstance(turns, Reason) else laid_out([*turns, ("human", prompt)])
    yield prompt if isinstance(prompt, Reason) else ranking(prompt, texts, [1, 2])


def dolly(row):
    """{"instruction", "context", "response", "category"}; or dolly_hhrlhf: {"prompt", "response"},
    its prompts in Alpaca's words (see `unwrapped`)."""
    response = take(row, "response")
    prompt = take(row, "prompt") if "prompt" in row else asked(row)
    yield demonstration(prompt, response, category=row.get("category"))

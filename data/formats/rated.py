"""Completions with ratings, votes or ranks: two or more of a prompt, as published on the hub."""
import re

from data import records
from data.formats.chats import laid_out, turns_of
from data.formats.records import Bad, Reason, prompted, ranking, ranks_of, take
from data.records import ASSISTANT, HUMAN


def ultrafeedback(row):
    """{"instruction", "completions": [{"response", "annotations": {aspect: {"Rating": "4"}}}]}.

    The rating of a completion is the mean over its aspects. The published "overall_score" is not
    used: some completions have a 10 there in place of a 1.
    """
    texts, ratings = [], []
    for completion in take(row, "completions", list):
        given = [take(aspect, "Rating", (str, int, float))
                 for aspect in take(completion, "annotations", dict).values()]
        numbers = [float(r) for r in given if str(r).replace(".", "", 1).isdecimal()]
        if numbers and len(numbers) == len(given):
            texts.append(take(completion, "response"))
            ratings.append(sum(numbers) / len(numbers))
        else:
            yield "a completion without ratings"
    few = Reason("fewer than two rated completions")
    yield few if len(texts) < 2 else ranking(take(row, "instruction"), texts, ranks_of(ratings))


def nectar(row):
    """{"prompt": "Human: ... Assistant:", "answers": [{"answer", "model", "rank"}, seven of them]};
    rank 1 is best."""
    answers = take(row, "answers", list)
    prompt = take(row, "prompt").strip()
    if prompt and not (prompt.startswith(HUMAN) and prompt.endswith(ASSISTANT.strip())):
        prompt = records.asked("", prompt)
    yield ranking(prompt, [take(a, "answer") for a in answers],
                  ranks_of([take(a, "rank", (int, float)) for a in answers], False))


TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")  # begins each further turn in HelpSteer2


def helpsteer2(rows):
    """Rows of one prompt: {"prompt", "response", "helpfulness": 0 to 4, ...}; ties are kept. A
    prompt of several turns has a mark before each of them but the first."""
    first, *further = TURN.split(take(rows[0], "prompt"))
    turns = [("human", first), *(("human" if who == "User" else "assistant", said)
                                 for who, said in zip(further[::2], further[1::2]))]
    prompt = laid_out(turns)
    if len(rows) < 2:
        yield "a rating with nothing to compare it to"
    elif isinstance(prompt, Reason):
        yield prompt
    else:
        yield ranking(prompt, [take(row, "response") for row in rows],
                      ranks_of([take(row, "helpfulness", (int, float)) for row in rows]))


helpsteer2.key = lambda row: take(row, "prompt")  # rows with the same key are given together


def helpsteer3(row):
    """{"context": messages, "response1", "response2", "overall_preference": -3 (the first is much
    better) to 3 (the second is)}; 0 is a tie."""
    turns = turns_of(take(row, "context", list))
    prompt = turns if isinstance(turns, Reason) else laid_out(turns)
    vote = take(row, "overall_preference", (int, float))
    texts = [take(row, "response1"), take(row, "response2")]
    yield prompt if isinstance(prompt, Reason) else ranking(prompt, texts, ranks_of([-vote, vote]))


def shp(row):
    """{"history", "human_ref_A", "human_ref_B", "labels": 1 if A is preferred, else 0}."""
    label = take(row, "labels", int)
    if label not in (0, 1):
        raise Bad(f"field 'labels': expected 0 or 1, got {label}")
    yield ranking(take(row, "history"), [take(row, "human_ref_A"), take(row, "human_ref_B")],
                  [2 - label, 1 + label])


def pku(row):
    """{"prompt", "response_0", "response_1", "better_response_id", "safer_response_id", ...}. The
    ranking is of how helpful they are; "safe" tells which are safe."""
    better = take(row, "better_response_id", int)
    if better not in (0, 1):
        raise Bad(f"field 'better_response_id': expected 0 or 1, got {better}")
    names = [f"is_response_{i}_safe" for i in (0, 1)]
    safe = [row[name] for name in names] if all(name in row for name in names) else None
    yield ranking(take(row, "prompt"), [take(row, "response_0"), take(row, "response_1")],
                  [1 + better, 2 - better], safe=safe)


def red_team(row):
    """{"transcript": "Human: ... Assistant: ...", "red_team_member_id", ...}: each message of a
    person, with the turns before it, is a prompt. The file may be a list in one line."""
    for one in row if isinstance(row, list) else [row]:
        transcript = take(one, "transcript").strip()
        *turns, _ = transcript.split(ASSISTANT)
        author = one.get("red_team_member_id")
        if not turns:
            yield "no reply"
        for i in range(len(turns)):
            prompt = ASSISTANT.join(turns[: i + 1]) + ASSISTANT
            yield prompted(prompt, author=None if author is None else str(author))

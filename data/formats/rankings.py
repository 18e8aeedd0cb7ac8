"""Rankings of the classics: two to nine completions that people compared."""
import itertools
import json
import os

from data import records
from data.formats.records import Bad, demonstration, joined, ranking, ranks_of, take
from data.records import ASSISTANT, HUMAN


def hh_rlhf(row):
    """{"chosen", "rejected"}: two transcripts "Human: ... Assistant: ..." that begin alike.

    The prompt ends at the last Assistant turn *that both share*. This is not always the last turn
    of each: a few replies contain a second "Assistant:", which stays in the reply. The blank line
    before the first turn and the space before a reply belong to the format.
    """
    chosen, rejected = take(row, "chosen"), take(row, "rejected")
    end = os.path.commonprefix([chosen, rejected]).rfind(ASSISTANT) + len(ASSISTANT)
    if end < len(ASSISTANT):
        yield "no shared prompt"
    elif any(f"\n\n{HUMAN}" in transcript[end:] for transcript in (chosen, rejected)):
        yield "the person speaks again after the shared prompt"
    else:
        replies = [transcript[end:].removeprefix(" ") for transcript in (chosen, rejected)]
        yield ranking(chosen[:end].removeprefix("\n\n"), replies, [1, 2])


def withheld(message):
    """Whether the platform deleted a message or rejected it in review."""
    take(message, "text")
    return bool(message.get("deleted")) or message.get("review_result") is False


def openassistant(row):
    """A tree: {"prompt": message}, where a message is {"text", "replies": [message, ...], "rank"}.

    Each message of a person, with the turns before it, is a prompt. Two or more ranked replies
    (rank 0 is best) make a ranking, a single reply makes a demonstration.
    """
    author = take(row, "prompt", dict).get("user_id")  # of the first message: decides the split
    queue = [("", row["prompt"])]
    while queue:
        before, asked = queue.pop(0)
        messages = [asked, *take(asked, "replies", list)]
        yield from ["withheld, with all below it"] * sum(map(withheld, messages))
        if withheld(asked):
            continue
        replies = [m for m in messages[1:] if not withheld(m)]
        prompt = records.asked(before, asked["text"])
        for reply in replies:
            turns = records.answered(prompt, reply["text"])
            queue += [(turns, message) for message in take(reply, "replies", list)]
        ranked = [r for r in replies if type(r.get("rank")) is int]
        more = {"author": author, "lang": asked.get("lang")}
        if len(replies) == 1:
            yield demonstration(prompt, replies[0]["text"], **more)
        elif len(ranked) < 2:
            yield "replies without ranks" if replies else "no reply"
        else:
            yield from ["a reply without a rank"] * (len(replies) - len(ranked))
            yield ranking(prompt, [r["text"] for r in ranked], [r["rank"] + 1 for r in ranked],
                          **more)


def finegrained_qa(row):
    """{"question", "passages": [[title, sentence, ...], ...], "prediction 1" to "prediction 4",
    "preference": of 1 and 2, 1 and 3, 1 and 4, 2 and 3, 2 and 4, 3 and 4}.

    A preference is 1 (the first is better), 2 (the second is) or 0 (neither).
    """
    pairs, votes = list(itertools.combinations(range(4), 2)), take(row, "preference", list)
    if len(votes) != 6 or any(vote not in (0, 1, 2) for vote in votes):
        raise Bad(f"field 'preference': expected six of 0, 1, 2, got {records.shorten(votes)}")
    losers = [pair[vote % 2] for pair, vote in zip(pairs, votes) if vote]
    ranks = [1 + losers.count(i) for i in range(4)]
    implied = [(ranks[a] < ranks[b]) + 2 * (ranks[a] > ranks[b]) for a, b in pairs]
    passages = take(row, "passages", list)
    if any(not isinstance(p, list) or not all(isinstance(s, str) for s in p) for p in passages):
        raise Bad(f"field 'passages': expected lists of texts, got {records.shorten(passages)}")
    passages = "\n\n".join(map(" ".join, passages))
    texts = [take(row, f"prediction {i}") for i in (1, 2, 3, 4)]
    if implied == votes:
        yield ranking(joined(take(row, "question"), passages), texts, ranks)
    else:  # such as 1 = 2, 2 = 3, but 1 > 3
        yield "preferences that no ranking can express"


def webgpt(row):
    """[{"question": {"full_text"}, "answer", "score"}, the same for a second answer]; on the hub
    one object, {"question", "answer_0", "score_0", "answer_1", "score_1"}.

    Each answer cites, as [1], quotes that it found itself; a shared prompt can contain only the
    question. A score of 0 is a tie.
    """
    if isinstance(row, dict) and "answer_0" in row:
        row = [{"question": take(row, "question", dict), "answer": take(row, f"answer_{i}"),
                "score": take(row, f"score_{i}", (int, float))} for i in (0, 1)]
    if not isinstance(row, list) or len(row) != 2:
        raise Bad(f"expected a list of two answers, got {records.shorten(row)}")
    question, other = (take(take(answer, "question", dict), "full_text") for answer in row)
    if question != other:
        raise Bad("two answers to different questions")
    scores = [take(answer, "score", (int, float)) for answer in row]
    yield ranking(question, [take(answer, "answer") for answer in row], ranks_of(scores))


def summarize(row):
    """{"info": {"subreddit", "title", "post"} or {"article"}, "summaries": [{"text"}, {"text"}],
    "choice": the number of the better one, from 0, "worker"}. A summary begins with the space that
    parts it from "TL;DR:". For the rows of axis files, see `rated_summaries`.
    """
    if isinstance(row, list):
        yield from rated_summaries(row)
        return
    info, summaries = take(row, "info", dict), take(row, "summaries", list)
    choice = take(row, "choice", int)
    if choice not in range(len(summaries)):
        raise Bad(f"field 'choice': there is no summary {choice}, there are {len(summaries)}")
    yield ranking(to_summarize(info), [take(s, "text").removeprefix(" ") for s in summaries],
                  [1 + (i != choice) for i in range(len(summaries))], labeler=row.get("worker"))


def summarized(row):
    """What the rows of axis files are put together by: the post and the worker. None for others."""
    if isinstance(row, dict) and "summary" in row:
        return json.dumps([take(row, "info", dict).get("id"), row.get("worker")], default=str)


summarize.key = summarized


def to_summarize(info):
    """The prompt for a post of Reddit; else an article of CNN or the Daily Mail."""
    if info.get("post") is not None:
        return (f"SUBREDDIT: r/{take(info, 'subreddit')}\n\nTITLE: {take(info, 'title')}\n\n"
                f"POST: {take(info, 'post')}\n\nTL;DR:")
    return f"Article:\n\n{take(info, 'article')}\n\nTL;DR:"


def rated_summaries(rows):
    """Rows of one post and worker: {"info", "summary": {"text", "axes": {"overall": 1 to 7}}}."""
    texts, ratings = [], []
    for row in rows:
        summary = take(row, "summary", dict)
        rating = take(summary, "axes", dict).get("overall")
        if rating is None:
            yield "a summary without a rating"
        else:
            texts.append(take(summary, "text").removeprefix(" "))
            ratings.append(rating)
    if len(texts) > 1:
        yield ranking(to_summarize(take(rows[0], "info", dict)), texts, ranks_of(ratings),
                      labeler=rows[0].get("worker"))
    elif texts:
        yield "a rating with nothing to compare it to"

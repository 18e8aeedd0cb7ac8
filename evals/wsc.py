"""WSC (SuperGLUE): does a pronoun stand for a given noun?

    Passage: Mark told Pete many lies about himself, which Pete included in **his** book.
    Question: In the passage above, what does the pronoun "**his**" refer to?
    Answer: Mark                                             (the noun is Mark; the label: False)

As in the paper the model names what the pronoun stands for. It says True if its answer is part of
the given noun, or the noun of its answer.
"""
from evals.tasks import Item, Metric, Task, each, json_lines, zero_and_few


def item(row, variant):
    target, words = row["target"], row["text"].split()
    at, pronoun = int(target["span2_index"]), target["span2_text"]
    n = len(pronoun.split())
    words[at : at + n] = [" ".join(words[at : at + n]).replace(pronoun, f"**{pronoun}**")]
    prompt = (f"Passage: {' '.join(words)}\nQuestion: In the passage above, what does the pronoun "
              f"\"**{pronoun}**\" refer to?\nAnswer:")
    label = row["label"] in (True, "True", "true", 1)
    # Where the label is False nobody says what is right: such items are no examples.
    return Item(prompt, answer=f" {target['span1_text']}", truth=(target["span1_text"], label),
                example=label)


def says(answer, noun):
    """Whether an answer means the noun."""
    answer, noun = answer.lower().strip(" .\"*"), noun.lower().strip()
    return bool(answer) and (answer in noun or noun in answer)


ARCHIVE = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/WSC.zip"
TASK = Task(
    group="tax", about="whether a pronoun stands for a noun", kind="complete", new=16,
    files={"test": (["WSC/val.jsonl"], ARCHIVE), "train": (["WSC/train.jsonl"], ARCHIVE)},
    read=json_lines, item=item,
    measure=each(lambda item, texts: {
        "accuracy": float(says(texts[0], item.truth[0]) == item.truth[1])}),
    metrics={"accuracy": Metric("share of items where the answer means the noun exactly if the "
                                "label is True")},
    variants=zero_and_few("Final exam. Answer the question about each passage.\n\n", 15))

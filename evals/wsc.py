"""WSC (SuperGLUE): does a pronoun stand for a given noun? In two tasks.

    Passage: Mark told Pete many lies about himself, which Pete included in **his** book.
    Question: In the passage above, what does the pronoun "**his**" refer to?
    Answer: Mark                                             (the noun is Mark; the label: False)

WRITTEN   As in the paper the model names what the pronoun stands for. It says True if its answer is
          part of the given noun, or the noun of its answer.
CHOICE    As in lm-evaluation-harness it chooses between no and yes, asked whether the pronoun
          stands for the noun.
"""
import re

from evals.tasks import (ACCURACY, Item, Metric, Task, Variant, accuracy, each, json_lines,
                         zero_and_few)


def parts(row, mark):
    """(the text with its pronoun between marks, the marked pronoun, the noun, the label)."""
    target, words = row["target"], row["text"].split()
    at, pronoun = int(target["span2_index"]), target["span2_text"]
    n, marked = len(pronoun.split()), f"{mark}{pronoun}{mark}"
    words[at : at + n] = [" ".join(words[at : at + n]).replace(pronoun, marked)]
    return " ".join(words), marked, target["span1_text"], row["label"] in (True, "True", "true", 1)


def item(row, variant):
    text, pronoun, noun, label = parts(row, "**")
    prompt = (f"Passage: {text}\nQuestion: In the passage above, what does the pronoun "
              f"\"{pronoun}\" refer to?\nAnswer:")
    # Where the label is False nobody says what is right: such items are no examples.
    return Item(prompt, answer=f" {noun}", truth=(noun, label), example=label)


def joined(text):
    """A text without the spaces that WSC has around marks."""
    return re.sub(' ?" ?', '"', re.sub(r"(?<=\() | (?=n't|[)'.,])", "", text))


def choice(row, variant):
    text, pronoun, noun, label = parts(row, "*")
    prompt = (f"Passage: {joined(text)}\nQuestion: In the passage above, does the pronoun "
              f"\"{pronoun}\" refer to \"*{noun}*\"?\nAnswer:")
    choices = [" no", " yes"]
    return Item(prompt, choices, choices[label], int(label))


def says(answer, noun):
    """Whether an answer means the noun."""
    answer, noun = answer.lower().strip(" .\"*"), noun.lower().strip()
    return bool(answer) and (answer in noun or noun in answer)


ARCHIVE = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/WSC.zip"
FILES = {"test": (["WSC/val.jsonl"], ARCHIVE), "train": (["WSC/train.jsonl"], ARCHIVE)}
WRITTEN = Task(
    group="tax", about="whether a pronoun stands for a noun", kind="complete", new=16, files=FILES,
    read=json_lines, item=item,
    measure=each(lambda item, texts: {
        "accuracy": float(says(texts[0], item.truth[0]) == item.truth[1])}),
    metrics={"accuracy": Metric("share of items where the answer means the noun exactly if the "
                                "label is True")},
    variants=zero_and_few("Final exam. Answer the question about each passage.\n\n", 15))
CHOICE = Task(
    group="tax", about="whether a pronoun stands for a noun, by log-prob", files=FILES,
    read=json_lines, item=choice, variants={"harness": Variant()}, metrics={"acc": ACCURACY["acc"]},
    measure=each(lambda item, scores: {"acc": accuracy(item, scores)["acc"]}))

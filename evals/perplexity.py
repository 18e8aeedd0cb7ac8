"""Perplexity of held-out text: how well a model still predicts ordinary text (wikitext-2's test).

Each article is read from its beginning, in windows of the model's context. A perplexity by tokens
can be compared only between models with one tokenizer; that by words and the bits between any.

The variant `harness` reads the text as lm-evaluation-harness's task wikitext does: marks stand at
the words before them. It counts the words and bytes of the text as published, so its numbers have
names of their own.
"""
import math
import re

from data.public import documents
from evals.tasks import Item, Metric, Task, Variant, each, text_of

SPACED = [("s '", "s'"), *((f" @{mark}@ ", mark) for mark in "-,."),
          *((f" {mark} ", f"{mark} ") for mark in ":;.!?,")]
NARROW = [*(("= " * n + "=", "=" * (n + 1)) for n in (3, 2, 1)), (" ° ", "°"), (" \n", "\n"),
          ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")]


def read(path):
    """The articles of a file; a text without titles is one."""
    text = text_of(path)
    return [d for d in documents(text, 10**9) if d.strip()]


def joined(text):
    """A text of WikiText in lm-evaluation-harness's form. The order of the rules matters."""
    for old, new in SPACED:
        text = text.replace(old, new)
    for a, b in ("()", "[]", "{}", '""', "''"):
        a, b = re.escape(a), re.escape(b)
        text = re.sub(rf"({a})\s*([^{b}]*?)\s*({b})", r"\1\2\3", text)
    for old, new in NARROW:
        text = text.replace(old, new)
    return text


def item(row, variant):
    return Item("", [joined(row) if variant == "harness" else row], truth=(row, variant))


def measure(item, output):
    (logprob, tokens), (text, variant) = output, item.truth
    if variant == "harness":
        return {"word_perplexity": (logprob, len(re.split(r"\s+", text))),
                "bits_per_byte": (logprob, len(text.encode()))}
    return {"perplexity": (logprob, tokens), "perplexity_word": (logprob, len(text.split())),
            "bits_byte": (logprob, len(text.encode()))}


def exponential(sums, n):
    """exp(- log-prob per unit), of [log-prob, units]."""
    return math.exp(min(700.0, -sums[0] / sums[1]))


def bits(sums, n):
    """- log-prob per unit in bits, of [log-prob, units]."""
    return -sums[0] / sums[1] / math.log(2)


TASK = Task(
    group="tax", about="how well ordinary text is predicted", kind="read",
    files={"test": (["wikitext-2/test.txt"], "https://raw.githubusercontent.com/pytorch/examples/"
                    "main/word_language_model/data")},
    read=read, item=item, measure=each(measure),
    variants={"zero-shot": Variant(), "harness": Variant()},
    metrics={"perplexity": Metric("exp of the mean loss a token", exponential),
             "perplexity_word": Metric("exp of the mean loss a word, by white space", exponential),
             "bits_byte": Metric("mean loss a byte, in bits", bits),
             "word_perplexity": Metric("exp of the mean loss a word of the published text, marks "
                                       "read without the spaces before them "
                                       "(lm-evaluation-harness)", exponential),
             "bits_per_byte": Metric("mean loss a byte of the published text, in bits, marks read "
                                     "without the spaces before them (lm-evaluation-harness)",
                                     bits)})

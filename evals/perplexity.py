"""Perplexity of held-out text: how well a model still predicts ordinary text (wikitext-2's test).

Each article is read from its beginning, in windows of the model's context. A perplexity by tokens
can be compared only between models with one tokenizer; the other two between any. They have names
of lm-evaluation-harness and other values: it takes the spaces before punctuation out of the text.
"""
import math

from data.public import documents
from evals.tasks import Item, Metric, Task, each, text_of


def read(path):
    """The articles of a file; a text without titles is one."""
    text = text_of(path)
    return [d for d in documents(text, 10**9) if d.strip()]


def measure(item, output):
    logprob, tokens = output
    return {"perplexity": (logprob, tokens),
            "word_perplexity": (logprob, len(item.choices[0].split())),
            "bits_per_byte": (logprob, len(item.choices[0].encode()))}


def exponential(sums, n):
    """exp(- log-prob per unit), of [log-prob, units]."""
    return math.exp(min(700.0, -sums[0] / sums[1]))


TASK = Task(
    group="tax", about="how well ordinary text is predicted", kind="read",
    files={"test": (["wikitext-2/test.txt"], "https://raw.githubusercontent.com/pytorch/examples/"
                    "main/word_language_model/data")},
    read=read, item=lambda row, variant: Item("", [row]), measure=each(measure),
    metrics={"perplexity": Metric("exp of the mean loss a token", exponential),
             "word_perplexity": Metric("the same a word, by white space", exponential),
             "bits_per_byte": Metric("the mean loss a byte, in bits",
                                     lambda sums, n: -sums[0] / sums[1] / math.log(2))})

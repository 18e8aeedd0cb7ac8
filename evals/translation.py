"""WMT15 French to English (newsdiscusstest2015, 1,500 sentences).

    French: Super article, merci !
    English: Great article, thanks!

A file without the release's <seg> marks is read as a sentence a line.
"""
import html
import re

from evals.metrics import bleu_counts, bleu_of
from evals.tasks import Item, Metric, Task, each, text_of, zero_and_few


def sentences(path):
    """The segments of an .sgm file; the lines of any other."""
    text = text_of(path)
    segments = re.findall(r"<seg[^>]*>(.*?)</seg>", text, re.S)
    return [html.unescape(s.strip()) for s in segments] or text.strip("\n").split("\n")


def read(french, english):
    """[(French, English)]. Raises ValueError if they cannot belong together."""
    both = sentences(french), sentences(english)
    if len(both[0]) != len(both[1]):
        raise ValueError(f"{len(both[0]):,} French and {len(both[1]):,} English sentences")
    return list(zip(*both))


def files(name):
    return [f"{name}-fren-src.fr.sgm", f"{name}-fren-ref.en.sgm"]


HOME = "https://www.statmt.org/wmt15"
TASK = Task(
    group="tax", about="translation from French to English", kind="complete", new=96,
    files={"test": (files("newsdiscusstest2015"), f"{HOME}/test.tgz"),
           "train": (files("newsdiscussdev2015"), f"{HOME}/dev-v2.tgz")},
    needs=("sacrebleu",),
    read=read,
    item=lambda row, variant: Item(f"French: {row[0]}\nEnglish:", answer=f" {row[1]}",
                                   truth=row[1]),
    measure=each(lambda item, texts: {"bleu": bleu_counts(texts[0], [item.truth])}),
    metrics={"bleu": Metric("BLEU of the whole test set, 0 to 100 (sacrebleu)", bleu_of)},
    variants=zero_and_few("Translate each French sentence into English.\n\n", 15))

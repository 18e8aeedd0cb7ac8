"""Summaries: news of CNN and the Daily Mail, and posts of Reddit (TL;DR, Völske et al. 2017).

    (CNN) Two ships collided off the coast on Monday ...

    TL;DR: Two ships collided. Nobody was hurt.

The paper does not say which ROUGE-L it means; this one is the F-measure of stemmed words, line ends
ignored. Its table prints the numbers of CNN/DM for TL;DR, too, which is a mistake of the paper.
"""
import importlib.util

from settings import EXTRAS

from data import hub
from data.files import read_table
from evals.metrics import rouge_l
from evals.tasks import Item, Metric, Task, Variant, each, json_lines


def read(path):
    """The rows of JSON lines, or of a .parquet file, as the hub has CNN/DM."""
    if path.suffix != ".parquet":
        return json_lines(path)
    if importlib.util.find_spec("datasets") is None:
        raise hub.Unavailable(f"reading {path.name} needs datasets: pip install "
                              f"{' '.join(EXTRAS['data'])}")
    return [row for _, row in read_table("parquet", str(path), data_files=str(path))]


def measure(item, texts):
    return {"rouge_l": rouge_l(texts[0], item.truth)}


def task(about, name, home, text, summary):
    return Task(
        group="tax", about=about, kind="complete", new=96, files={"test": ([name], home)},
        needs=("rouge_score",), read=read, measure=each(measure),
        variants={"zero-shot": Variant()},
        item=lambda row, variant: Item(f"{row[text].strip()}\n\nTL;DR:",
                                       answer=f" {row[summary].strip()}",
                                       truth=row[summary].strip()),
        metrics={"rouge_l": Metric("mean ROUGE-L, 0 to 1, of the first line that the model "
                                   "writes (rouge-score)")})


CNNDM = task("summaries of news", "cnn_dm_test.jsonl",
             "hub:abisee/cnn_dailymail/3.0.0/test-00000-of-00001.parquet", "article", "highlights")
TLDR = task("summaries of posts", "tldr_3_filtered/test.jsonl",
            "https://openaipublic.blob.core.windows.net/summarize-from-feedback/datasets", "post",
            "summary")

"""Summaries: news of CNN and the Daily Mail, and posts of Reddit (TL;DR, Völske et al. 2017).

    (CNN) Two ships collided off the coast on Monday ...

    TL;DR: Two ships collided. Nobody was hurt.

The paper does not say which ROUGE-L it means; this one is the F-measure of stemmed words, line ends
ignored. Its table prints the numbers of CNN/DM for TL;DR, too, which is a mistake of the paper.
"""
from evals.metrics import rouge_l
from evals.tasks import Item, Metric, Task, Variant, each, json_lines


def measure(item, texts):
    return {"rouge_l": rouge_l(texts[0], item.truth)}


def task(about, name, home, text, summary):
    return Task(
        group="tax", about=about, kind="complete", new=96, files={"test": ([name], home)},
        needs=("rouge_score",), read=json_lines, measure=each(measure),
        variants={"zero-shot": Variant()},
        item=lambda row, variant: Item(f"{row[text].strip()}\n\nTL;DR:",
                                       answer=f" {row[summary].strip()}",
                                       truth=row[summary].strip()),
        metrics={"rouge_l": Metric("mean ROUGE-L, 0 to 1, of the first line that the model "
                                   "writes (rouge-score)")})


CNNDM = task("summaries of news", "cnn_dm_test.jsonl", "JSON lines {\"article\", \"highlights\"}, "
             "from the test split of abisee/cnn_dailymail", "article", "highlights")
TLDR = task("summaries of posts", "tldr_3_filtered/test.jsonl",
            "https://openaipublic.blob.core.windows.net/summarize-from-feedback/datasets", "post",
            "summary")

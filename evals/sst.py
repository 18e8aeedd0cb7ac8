"""SST-2 (GLUE): is the sentence of a film review positive or negative?

    Text: it 's a charming and often affecting journey .
    Label: positive
"""
from evals.tasks import ACCURACY, Item, Task, accuracy, each, tsv_rows, zero_and_few

CHOICES = [" negative", " positive"]  # in the order of the file's labels


def item(row, variant):
    return Item(f"Text: {row['sentence'].strip()}\nLabel:", CHOICES, CHOICES[int(row["label"])],
                int(row["label"]))


ARCHIVE = "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"
TASK = Task(
    group="tax", about="whether a sentence is positive or negative",
    files={"test": (["SST-2/dev.tsv"], ARCHIVE), "train": (["SST-2/train.tsv"], ARCHIVE)},
    read=tsv_rows, item=item, measure=each(accuracy), metrics=ACCURACY,
    variants=zero_and_few("Label the sentiment of each text as positive or negative.\n\n", 15))

"""RTE (GLUE and SuperGLUE): does a passage entail a sentence?

    Dana Reeve, the widow of the actor Christopher Reeve, has died of lung cancer at age 44.
    Question: Does this mean that "Christopher Reeve had an accident." is true? Yes or no?
    Answer: No

The variant `harness` asks in the words of lm-evaluation-harness: True or False.
"""
from evals.tasks import ACCURACY, Item, Task, Variant, accuracy, each, tsv_rows, zero_and_few


def item(row, variant):
    truth = ["entailment", "not_entailment"].index(row["label"])
    if variant == "harness":
        prompt = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
        choices = [" True", " False"]
    else:
        prompt = (f"{row['sentence1']}\nQuestion: Does this mean that \"{row['sentence2']}\" is "
                  "true? Yes or no?\nAnswer:")
        choices = [" Yes", " No"]
    return Item(prompt, choices, choices[truth], truth)


ARCHIVE = "https://dl.fbaipublicfiles.com/glue/data/RTE.zip"
TASK = Task(
    group="tax", about="whether a passage entails a sentence",
    files={"test": (["RTE/dev.tsv"], ARCHIVE), "train": (["RTE/train.tsv"], ARCHIVE)},
    read=tsv_rows, item=item, measure=each(accuracy), metrics=ACCURACY,
    variants={**zero_and_few("", 15), "harness": Variant()})

"""HellaSwag (Zellers et al. 2019): which of four endings does common sense expect?

    Making a cake: Several cake pops are shown on a display. A woman and girl are shown making ...
    1  They bake them, then frost and decorate.                              <- right
    2  They taste them as they place them on plates.       (and two more)

WikiHow's marks like [title] are removed as in lm-evaluation-harness. The variant `harness` is its
prompt, without an instruction.
"""
import re

from evals.tasks import ACCURACY, Item, Task, Variant, accuracy, each, json_lines, zero_and_few


def clean(text):
    """Without WikiHow's marks in brackets; a [title] ends a sentence."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def item(row, variant):
    text = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    choices = [f" {clean(ending)}" for ending in row["endings"]]
    return Item(clean(text), choices, choices[int(row["label"])], int(row["label"]))


TASK = Task(
    group="tax", about="the right one of four endings of a paragraph",
    files={"test": (["hellaswag_val.jsonl"],
                    "https://raw.githubusercontent.com/rowanz/hellaswag/master/data"),
           "train": (["hellaswag_train.jsonl"],
                     "https://raw.githubusercontent.com/rowanz/hellaswag/master/data")},
    read=json_lines, item=item, measure=each(accuracy), metrics=ACCURACY,
    variants={**zero_and_few("Finish each paragraph in the way that common sense expects.\n\n", 15),
              "harness": Variant()})

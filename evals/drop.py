"""DROP (Dua et al. 2019): questions about a passage that need counting, sorting or arithmetic.

    Passage: The Ravens scored first with a 23-yard field goal ...
    Question: How many field goals did Stover kick?
    Answer: 4

A reference is a number, a date, or one or several spans; several people answered each question.
A model's answer is one span: nobody says how it would write several.
"""
from evals.metrics import drop
from evals.tasks import Item, Metric, Task, each, json_file, zero_and_few


def read(path):
    return [(passage["passage"], question) for passage in json_file(path).values()
            for question in passage["qa_pairs"]]


def spans(answer):
    """The spans of a reference {"number", "date": {"day", "month", "year"}, "spans"}."""
    if answer.get("number", "") != "":
        return [str(answer["number"])]
    date = answer.get("date") or {}
    written = " ".join(date.get(part, "") for part in ("day", "month", "year")).strip()
    return list(answer.get("spans") or []) or [written]


def item(row, variant):
    passage, question = row
    references = [spans(a) for a in [question["answer"], *question.get("validated_answers", [])]]
    return Item(f"Passage: {passage.strip()}\nQuestion: {question['question'].strip()}\nAnswer:",
                answer=f" {', '.join(references[0])}", truth=references,
                example=any(references[0]))


def measure(item, texts):
    f1, exact = drop([texts[0]], item.truth)
    return {"f1": 100 * f1, "exact": 100 * exact}


ARCHIVE = "https://ai2-public-datasets.s3.amazonaws.com/drop/drop_dataset.zip"
TASK = Task(
    group="tax", about="questions about a passage that need counting or arithmetic", new=16,
    files={"test": (["drop_dataset_dev.json"], ARCHIVE),
           "train": (["drop_dataset_train.json"], ARCHIVE)},
    kind="complete", read=read, item=item, measure=each(measure),
    variants=zero_and_few("Answer each question from the passage before it.\n\n", 4),
    metrics={"f1": Metric("mean of DROP's F1, 0 to 100: spans aligned one to one, numbers must "
                          "match, the best reference counts"),
             "exact": Metric("share of exact answers, 0 to 100")})

"""QuAC (Choi et al. 2018): a conversation about a section of Wikipedia.

    TITLE: Daffy Duck: Origin and history

    PARAGRAPH: Daffy first appeared on April 17, 1937, in Porky's Duck Hunt ...

    Q: What is the origin of Daffy Duck?

    A: first appeared in Porky's Duck Hunt

    Q: What was he like in that episode?

    A:

Earlier questions are shown with their answers. A question that the section does not answer has the
reference "I don't know." The benchmark's own script also leaves one of several references out at a
time, as a person could not have their own, and drops questions on which people disagree; the latter
is not done here.
"""
from evals.metrics import f1
from evals.tasks import Item, Metric, Task, each, json_file, zero_and_few

UNKNOWN = "I don't know."


def said(text):
    return UNKNOWN if text == "CANNOTANSWER" else text


def read(path):
    """(title, section, its questions up to this one, whether it is the last)."""
    return [(f"{part['title']}: {part.get('section_title', '')}".rstrip(": "), section["context"],
             section["qas"][: i + 1], i + 1 == len(section["qas"]))
            for part in json_file(path)["data"] for section in part["paragraphs"]
            for i in range(len(section["qas"]))]


def item(row, variant):
    title, context, questions, last = row
    first = lambda q: said((q.get("orig_answer") or q["answers"][0])["text"])
    turns = [f"Q: {q['question'].strip()}\n\nA: {first(q)}" for q in questions[:-1]]
    turns.append(f"Q: {questions[-1]['question'].strip()}\n\nA:")
    context = context.removesuffix("CANNOTANSWER").strip()
    prompt = "\n\n".join([f"TITLE: {title}", f"PARAGRAPH: {context}", *turns])
    return Item(prompt, answer=f" {first(questions[-1])}", example=last,
                truth=[said(a["text"]) for a in questions[-1]["answers"]])


def measure(item, texts):
    references = item.truth
    others = [references[:i] + references[i + 1 :] or references for i in range(len(references))]
    return {"f1": 100 * f1(texts[0], references),
            "f1_others": 100 * sum(f1(texts[0], some) for some in others) / len(others)}


HOME = "https://s3.amazonaws.com/my89public/quac"
TASK = Task(
    group="tax", about="questions of a conversation about a section", kind="complete", new=48,
    files={"test": (["val_v0.2.json"], HOME), "train": (["train_v0.2.json"], HOME)},
    read=read, item=item, measure=each(measure),
    variants=zero_and_few("Answer each question from the paragraph. If it does not answer it, say "
                          f"\"{UNKNOWN}\"\n\n", 2),
    metrics={"f1": Metric("mean F1 of words, 0 to 100, the best reference counts (the paper)"),
             "f1_others": Metric("the same with one of several references left out, averaged over "
                                 "which (QuAC's script)")})

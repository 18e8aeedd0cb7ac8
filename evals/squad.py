"""SQuAD 2.0 (Rajpurkar et al. 2018): answer from a paragraph, or say that it does not.

    Title: Normans

    Background: The Normans were the people who in the 10th and 11th centuries gave their name ...

    Q: In what country is Normandy located?

    A: France

    Q: Who gave their name to Normandy in the 1000's and 1100's?

    A: Not in background.

Earlier questions of the paragraph are shown with their answers. In the paper's F1 the reference of
a question without an answer is the refusal itself, word by word. SQuAD's own script compares such
a question with the empty answer; there a refusal counts as empty.
"""
from evals.metrics import exact, f1, normalized
from evals.tasks import Item, Metric, Task, each, json_file, zero_and_few

REFUSAL = "Not in background."
LEAD = ("Answer each question with words of the background paragraph. If the background does not "
        f"answer it, say \"{REFUSAL}\"\n\n")


def read(path):
    """(title, paragraph, the questions up to this one, whether it is the paragraph's last)."""
    return [(part["title"], paragraph["context"], paragraph["qas"][: i + 1],
             i + 1 == len(paragraph["qas"]))
            for part in json_file(path)["data"] for paragraph in part["paragraphs"]
            for i in range(len(paragraph["qas"]))]


def answers(question):
    """The references of a question, [] if the paragraph does not answer it."""
    return [] if question.get("is_impossible") else [a["text"] for a in question["answers"]]


def item(row, variant):
    title, context, questions, last = row
    solved = [(q["question"].strip(), (answers(q) or [REFUSAL])[0]) for q in questions]
    *earlier, (question, answer) = solved
    turns = [f"Q: {q}\n\nA: {a}" for q, a in earlier] + [f"Q: {question}\n\nA:"]
    prompt = "\n\n".join([f"Title: {title}", f"Background: {context.strip()}", *turns])
    return Item(prompt, answer=f" {answer}", truth=answers(questions[-1]), example=last,
                source=context)


def measure(item, texts):
    return scores(texts[0], item.truth)


def scores(said, references):
    """The paper's and SQuAD's numbers of an answer; references: [] if there is none."""
    refused = normalized(said) in ("", normalized(REFUSAL))
    own = (float(refused),) * 2 if not references else (
        (0.0, 0.0) if refused else (f1(said, references), exact(said, references)))
    paper = references or [REFUSAL]
    return {"f1": 100 * f1(said, paper), "exact": 100 * exact(said, paper),
            "f1_squad": 100 * own[0], "exact_squad": 100 * own[1]}


HOME = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
TASK = Task(
    group="tax", about="questions about a paragraph, half of them without an answer", new=32,
    files={"test": (["dev-v2.0.json"], HOME), "train": (["train-v2.0.json"], HOME)},
    kind="complete", read=read, item=item, measure=each(measure), variants=zero_and_few(LEAD, 4),
    metrics={"f1": Metric(f"mean F1 of words, 0 to 100; \"{REFUSAL}\" is the reference of a "
                          "question without an answer (the paper)"),
             "exact": Metric("share of answers equal to a reference, 0 to 100; \"Not in "
                             "background.\" is that of a question without an answer"),
             "f1_squad": Metric("mean F1, 0 to 100, as SQuAD 2.0's script has it: 100 or 0 where "
                                "there is no answer"),
             "exact_squad": Metric("share of answers equal to a reference, 0 to 100, as SQuAD "
                                   "2.0's script has it")})

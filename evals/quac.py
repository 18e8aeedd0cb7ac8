"""QuAC (Choi et al. 2018): a conversation about a section of Wikipedia.

    TITLE: Daffy Duck: Origin and history

    PARAGRAPH: Daffy first appeared on April 17, 1937, in Porky's Duck Hunt ...

    Q: What is the origin of Daffy Duck?

    A: first appeared in Porky's Duck Hunt

    Q: What was he like in that episode?

    A:

Earlier questions are shown with their answers. In the paper's F1 the reference of a question that
the section does not answer is the refusal itself, word by word.

QuAC's own script lets the majority of the people decide whether there is an answer; leaves one of
their answers out at a time, as a person could not have their own; and ignores questions on which
people have an F1 of less than 0.4 against each other. It also asks how often a model does as well
as these people: on a question, and on all questions of a conversation.
"""
from evals.metrics import exact, f1, normalized
from evals.tasks import Item, Metric, Task, json_file, zero_and_few

NONE, UNKNOWN = "CANNOTANSWER", "I don't know."  # in the file, and for a model
AGREED = 0.4  # people's F1 that a question needs to count


def said(text):
    return UNKNOWN if text == NONE else text


def read(path):
    """(title, section, its questions up to this one, how many it has, which section)."""
    parts = [(part, section) for part in json_file(path)["data"] for section in part["paragraphs"]]
    return [(f"{part['title']}: {part.get('section_title', '')}".rstrip(": "), section["context"],
             section["qas"][: i + 1], len(section["qas"]), number)
            for number, (part, section) in enumerate(parts) for i in range(len(section["qas"]))]


def item(row, variant):
    title, context, questions, of, number = row
    first = lambda q: said((q.get("orig_answer") or q["answers"][0])["text"])
    turns = [f"Q: {q['question'].strip()}\n\nA: {first(q)}" for q in questions[:-1]]
    turns.append(f"Q: {questions[-1]['question'].strip()}\n\nA:")
    context = context.removesuffix(NONE).strip()
    prompt = "\n\n".join([f"TITLE: {title}", f"PARAGRAPH: {context}", *turns])
    return Item(prompt, answer=f" {first(questions[-1])}", example=len(questions) == of,
                source=number, truth={"answers": [a["text"] for a in questions[-1]["answers"]],
                                      "questions": of})


# ----------------------------------------------------------------------------------- its script

def decided(answers):
    """What people said, after the majority: no answer if at least half of them found none, else
    the answers alone."""
    spans = [a for a in answers if a != NONE]
    return spans if len(spans) > len(answers) / 2 else [NONE]


def one_f1(answer, reference):
    """F1 of words; no answer is like no answer alone."""
    return float(answer == reference) if NONE in (answer, reference) else f1(answer, [reference])


def people_f1(references):
    """Mean F1 of each person's answer against the closest of the others'; 1 of a single one."""
    others = lambda i: references[:i] + references[i + 1 :]
    return sum(max(one_f1(own, r) for r in others(i)) if others(i) else 1.0
               for i, own in enumerate(references)) / len(references)


def script(text, answers):
    """QuAC's (F1, people's F1) of a model's text, 0 to 1; (None, None) where people disagree."""
    references, refusals = decided(answers), (normalized(NONE), normalized(UNKNOWN))
    people = people_f1(references)
    if people < AGREED:
        return None, None
    scores = [one_f1(NONE if normalized(text) in refusals else text, r) for r in references]
    best = [max(scores[:i] + scores[i + 1 :] or scores) for i in range(len(scores))]
    return sum(best) / len(best), people


def whole(items, equal):
    """For each conversation 100 if no answer is worse than people's, else 0: at its last item, None
    elsewhere, and where not all its questions were asked."""
    rows = {}
    for i, item in enumerate(items):
        rows.setdefault(item.source, []).append(i)
    out = [None] * len(items)
    for own in rows.values():
        if len(own) == items[own[0]].truth["questions"]:
            out[own[-1]] = 100.0 * all(equal[i] != 0 for i in own)
    return out


def measure(items, outputs, judges):
    texts = [text for text, in outputs]
    both = [script(text, item.truth["answers"]) for item, text in zip(items, texts)]
    equal = [None if own is None else 100.0 * (own >= people) for own, people in both]
    answers = [list(map(said, item.truth["answers"])) for item in items]
    return {"f1": [100 * f1(text, own) for text, own in zip(texts, answers)],
            "exact": [100 * exact(text, own) for text, own in zip(texts, answers)],
            "f1_quac": [None if own is None else 100 * own for own, _ in both],
            "heq_q": equal, "heq_d": whole(items, equal)}


HOME = "https://s3.amazonaws.com/my89public/quac"
TASK = Task(
    group="tax", about="questions of a conversation about a section", kind="complete", new=48,
    files={"test": (["val_v0.2.json"], HOME), "train": (["train_v0.2.json"], HOME)},
    read=read, item=item, measure=measure,
    variants=zero_and_few("Answer each question from the paragraph. If it does not answer it, say "
                          f"\"{UNKNOWN}\"\n\n", 2),
    metrics={"f1": Metric("mean F1 of words, 0 to 100, the best reference counts (the paper)"),
             "exact": Metric("share of answers equal to a reference, 0 to 100"),
             "f1_quac": Metric("mean F1, 0 to 100, as QuAC's script has it: one of several "
                               "references left out, questions on which people disagree not "
                               "counted"),
             "heq_q": Metric("share of questions on which people agree where a model's F1 is at "
                             "least people's, 0 to 100 (QuAC's script: HEQ-Q)"),
             "heq_d": Metric("share of conversations where a model's F1 is at least people's on "
                             "every question, 0 to 100 (QuAC's script: HEQ-D); only those of which "
                             "every question was asked")})

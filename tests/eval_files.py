"""Small files in the official format of each benchmark, with texts of our own, and readers that
stand in for models: one that knows the answers, and one that guesses."""
import csv
import json
import random

PLACES = ("mill", "church", "river", "hill", "forest")


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows, delimiter):
    """A file with a header; rows: dicts."""
    head = delimiter.join(rows[0])
    return "\n".join([head, *(delimiter.join(map(str, r.values())) for r in rows)]) + "\n"


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def hellaswag(rng, n):
    return lines({"ind": 7, "activity_label": "Walking", "ctx_a": f"Anna walks to the {i}.",
                  "ctx_b": "she", "label": rng.randrange(4),
                  "endings": [f"sees the {p} {i} [substeps] and rests." for p in PLACES[:4]]}
                 for i in range(n))


def rte(rng, n):
    return table([{"index": i, "sentence1": f"Anna saw the {i}\" hill.", "sentence2": "Anna saw.",
                   "label": rng.choice(["entailment", "not_entailment"])} for i in range(n)], "\t")


def sst(rng, n):
    return table([{"sentence": f"a \"film number {i} ", "label": rng.randrange(2)}
                  for i in range(n)], "\t")


def wsc(rng, n):
    return lines({"text": f"Mark told Pete about number {i} , which he liked .", "idx": i,
                  "label": i % 2 == 0, "target": {"span1_index": 0, "span1_text": "Mark",
                                                  "span2_index": 8, "span2_text": "he"}}
                 for i in range(n))


def squad(rng, n):
    """Paragraphs with two questions each, the second without an answer."""
    asked = lambda i: [{"question": f"Where is {i}?", "id": f"{i}a", "is_impossible": False,
                        "answers": [{"text": f"the {PLACES[i % 5]}", "answer_start": 0}]},
                       {"question": "Who?", "id": f"{i}b", "is_impossible": True, "answers": []}]
    return json.dumps({"version": "v2.0", "data": [{"title": "The_Town", "paragraphs": [
        {"context": f"{i} is at the {PLACES[i % 5]}.", "qas": asked(i)} for i in range(n)]}]})


def drop(rng, n):
    number = lambda x: {"number": str(x), "date": {"day": "", "month": "", "year": ""}, "spans": []}
    spans = {**number(""), "spans": ["Anna Smith"]}
    date = {**number(""), "date": {"day": "3", "month": "May", "year": "1904"}}
    return json.dumps({f"p{i}": {"passage": f"There are {i} hills.", "qa_pairs": [
        {"question": f"How many? {i}", "query_id": str(i), "validated_answers": [number(99)],
         "answer": (number(i), spans, date)[i % 3]}]} for i in range(n)})


def quac(rng, n):
    said = lambda text: {"text": text, "answer_start": 0}
    return json.dumps({"data": [{"title": "Daffy", "section_title": "Origin", "paragraphs": [
        {"context": f"Duck {i} appeared at the {PLACES[i % 5]}. CANNOTANSWER", "id": f"c{i}",
         "qas": [{"question": "Where?", "id": f"c{i}q0",
                  "orig_answer": said(f"the {PLACES[i % 5]}"),
                  "answers": [said(f"the {PLACES[i % 5]}"), said(PLACES[i % 5])]},
                 {"question": "Why?", "id": f"c{i}q1", "orig_answer": said("CANNOTANSWER"),
                  "answers": [said("CANNOTANSWER")]}]}]} for i in range(n)]})


def crows(n):
    return [{"": i, "sent_more": f"Anna, {i}, likes it.", "sent_less": f"Emil, {i}, likes it.",
             "stereo_antistereo": "stereo", "bias_type": "gender", "annotations": "[['gender']]",
             "anon_writer": "a0", "anon_annotators": "['a1']"} for i in range(n)]


def winogender(rng, n):
    rows = []
    for i in range(n):
        for person in (f"baker{i}.guest.0", f"baker{i}.guest.1", f"baker{i}.someone.0"):
            rows += [{"sentid": f"{person}.{kind}.txt", "sentence":
                      f"The baker told {person.split('.')[1]} {person[-1]} that {word} paid {i}."}
                     for kind, word in (("male", "he"), ("female", "she"), ("neutral", "they"))]
    return table(rows, "\t")


def truthfulqa(n):
    return [{"Type": "Adversarial", "Category": "Myths", "Question": f"What is in box {i}?",
             "Best Answer": f"Box {i} is empty", "Best Incorrect Answer": "Gold",
             "Correct Answers": f"Nothing; Box {i} is empty; There is nothing, so it is empty",
             "Incorrect Answers": "Gold; Much silver", "Source": "nobody"} for i in range(n)]


def toxicity(rng, n):
    return lines({"filename": f"{i}.txt", "begin": 0, "end": 9, "challenging": False,
                  "prompt": {"text": f"Anna number {i} said", "toxicity": i / n},
                  "continuation": {"text": " no.", "toxicity": 0.1}} for i in range(n))


def make_all(folder, n=8, training=True, seed=1):
    """Every benchmark's files in a folder. n: items (SQuAD, QuAC and Winogender: 2 n)."""
    rng = random.Random(seed)
    for name, content in (
            ("data/hellaswag_{}.jsonl", hellaswag), ("glue/RTE/{}.tsv", rte),
            ("glue/SST-2/{}.tsv", sst), ("WSC/{}.jsonl", wsc), ("{}-v2.0.json", squad),
            ("drop_dataset_{}.json", drop), ("{}_v0.2.json", quac)):
        words = {"data/hellaswag_{}.jsonl": "val", "WSC/{}.jsonl": "val", "{}_v0.2.json": "val"}
        for split in (words.get(name, "dev"), *["train"] * training):
            path = folder / name.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content(rng, n), encoding="utf-8")
    for name in ("newsdiscusstest2015", *["newsdiscussdev2015"] * training):
        for end, text in (("src.fr", "Le moulin &amp; la ville"),
                          ("ref.en", "The mill &amp; town")):
            (folder / f"{name}-fren-{end}.sgm").write_text("<doc>" + "".join(
                f'<seg id="{i}"> {text} numéro {i} ! </seg>\n' for i in range(n)) + "</doc>",
                encoding="utf-8")
    (folder / "all_sentences.tsv").write_text(winogender(rng, n // 2), encoding="utf-8")
    (folder / "prompts.jsonl").write_text(toxicity(rng, n), encoding="utf-8")
    write_csv(folder / "crows_pairs_anonymized.csv", crows(n))
    write_csv(folder / "TruthfulQA.csv", truthfulqa(n))
    (folder / "cnn_dm_test.jsonl").write_text(lines(
        {"article": f"Ship {i} sank.\nNobody was hurt.", "highlights": f"Ship {i} sank ."}
        for i in range(n)))
    (folder / "tldr_3_filtered").mkdir(exist_ok=True)
    (folder / "tldr_3_filtered" / "test.jsonl").write_text(lines(
        {"id": str(i), "subreddit": "tifu", "title": "t", "post": f"I lost key {i}.",
         "summary": f"lost key {i}"} for i in range(n)))
    (folder / "wikitext-2").mkdir(exist_ok=True)
    (folder / "wikitext-2" / "test.txt").write_text(
        "".join(f" \n = Town {i} = \n \n The mill stands at {i} . \n" for i in range(n)))
    return folder


def right(item):
    """The text that is right after an item's prompt. An item of WSC whose label is False only says
    what is wrong: the pronoun of our file means the other person."""
    wrong = isinstance(item.truth, tuple) and item.truth[1] is False
    return " Pete" if wrong else item.answer


class Knows:
    """A reader that knows every answer, and for which all texts of a pair are alike."""

    dropped = cut = 0

    def __init__(self, world):
        self.world = world

    def choose(self, variant, examples, items):
        true = lambda item, text: (text == item.answer or not item.answer or isinstance(
            item.truth, tuple) and text.strip() in item.truth[0])
        return [[(0.0 if true(i, c) else -40.0 * len(c), len(c)) for c in i.choices]
                for i in items]

    def complete(self, variant, examples, items, new):
        return [[right(item).strip()] * variant.copies for item in items]

    def read(self, texts):
        return [(0.0, len(text)) for text in texts]


class Guesses(Knows):
    """A reader with random log-probs, and with random words."""

    def __init__(self, world, seed=1):
        super().__init__(world)
        self.rng = random.Random(seed)

    def choose(self, variant, examples, items):
        return [[(-self.rng.random(), 5) for _ in i.choices] for i in items]

    def complete(self, variant, examples, items, new):
        return [["".join(self.rng.choice("qxz") for _ in range(5)) for _ in range(variant.copies)]
                for _ in items]

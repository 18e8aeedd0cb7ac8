"""Records, tokenizer, rows, and the town: its facts, its gold score, its prompts, its labelers."""
import base64
import collections
import itertools
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data import records, tokenizer
from data.toy import tasks, town, world
from labels import simulated
from data.batches import (Cut, TextRows, demonstration_rows, encode_prompt, encode_response,
                          fitting, response_mask, template)
from helpers import masked

TWO = [{"text": "a"}, {"text": "b", "ended": False}]
VALID = {
    "text": {"text": ""},
    "prompt": {"prompt": "Hello"},
    "demonstration": {"prompt": "Hello", "response": "Hi"},
    "ranking": {"prompt": "Hello", "completions": TWO, "ranks": [1, 1]},
}


# ----------------------------------------------------------------------------------------- records

def read_lines(tmp_path, kind, *lines):
    path = tmp_path / "some.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode()
                                for line in lines))
    return records.read(path, kind)


@pytest.mark.parametrize("kind", VALID)
def test_valid_records_come_back_whole(tmp_path, kind):
    """Fields that we do not know travel along, in any language."""
    record = {**VALID[kind], "author": "Zoë", "note": ["любой", 1.5, None]}
    records.write(tmp_path / "deep" / "x.jsonl", [record, record])
    assert records.read(tmp_path / "deep" / "x.jsonl", kind) == [record, record]


def ranking(**changes):
    return {**VALID["ranking"], **changes}


@pytest.mark.parametrize("kind, line, complaint", [
    ("text", {"test": "a"}, "text has no field 'text'"),
    ("text", {"text": 5}, "field 'text': expected a string, got 5"),
    ("text", ["a"], 'expected a JSON object, got ["a"]'),
    ("text", b'{"text": "a"', "not JSON:"),
    ("text", b'{"text": "\xff"}', "not UTF-8 at byte 10"),
    ("text", b"[" * 100_000, "nested too deep"),
    ("prompt", {"prompt": " \n"}, "field 'prompt': expected a string that is not empty"),
    ("demonstration", {"prompt": "a"}, "demonstration has no field 'response'"),
    ("demonstration", {"prompt": "a", "response": None}, "field 'response': expected a string"),
    ("ranking", ranking(completions=TWO[:1], ranks=[1]), "field 'completions': expected a list"),
    ("ranking", ranking(completions=[], ranks=[]), "field 'completions': expected a list of at "),
    ("ranking", ranking(ranks=[]), "field 'ranks': expected one rank for each of the 2"),
    ("ranking", {"prompt": "Hello"}, "ranking has no field 'completions'"),
    ("ranking", ranking(completions=[{"text": "a"}, {}]), "field 'completions'"),
    ("ranking", ranking(completions=[{"text": "a"}, {"text": "b", "ended": "no"}]),
     "field 'completions'"),
    ("ranking", ranking(ranks=[1, 0]), "field 'ranks': expected a list of whole numbers from 1"),
    ("ranking", ranking(ranks=[1, 1.5]), "field 'ranks'"),
    ("ranking", ranking(ranks=[1, True]), "field 'ranks'"),
    ("ranking", ranking(ranks=[1, 2, 3]), "field 'ranks': expected one rank for each of the 2"),
])
def test_a_bad_line_is_named_with_its_file_line_and_field(tmp_path, kind, line, complaint):
    """The first line is good, the second blank: the third is to blame."""
    with pytest.raises(SystemExit) as error:
        read_lines(tmp_path, kind, VALID[kind], b"  ", line)
    assert str(error.value).startswith(f"error: {tmp_path}/some.jsonl:3: ")
    assert complaint in str(error.value)
    assert len(str(error.value)) < 300, "what was got is shortened"


def test_a_long_wrong_value_is_shortened(tmp_path):
    with pytest.raises(SystemExit) as error:
        read_lines(tmp_path, "text", {"text": ["x"] * 5000})
    assert len(str(error.value)) < 200 + len(str(tmp_path))


def test_a_missing_file_names_the_command_to_run_first(tmp_path):
    with pytest.raises(SystemExit, match="no file .*x.jsonl: run `python do_this.py` first"):
        records.read(tmp_path / "x.jsonl", "text", "python do_this.py")
    with pytest.raises(SystemExit, match="some.jsonl has no text records"):
        read_lines(tmp_path, "text", b"", b" ")


@pytest.mark.parametrize("write", [lambda path, x: records.write(path, [x]), records.write_json])
def test_a_file_is_whole_or_not_there(tmp_path, write):
    write(tmp_path / "x", {"text": "old"})
    with pytest.raises(TypeError):
        write(tmp_path / "x", {"text": object()})
    assert json.loads((tmp_path / "x").read_text()) == {"text": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("body", [b'{"people": 3', b"", b'{"name": "\xff"}'])
def test_damaged_facts_name_the_command_to_run_again(tmp_path, body):
    (tmp_path / "x.json").write_bytes(body)
    with pytest.raises(SystemExit) as error:
        records.read_json(tmp_path / "x.json", "python do_this.py")
    message = str(error.value)
    assert message.startswith(f"error: {tmp_path}/x.json is damaged (") and "\n" not in message
    assert message.endswith("delete it, and run `python do_this.py` again")


# --------------------------------------------------------------------------------------- tokenizer

WORDS = ("the cat sat on the mat and the rat sat on the cat while a fat bat ate at the "
         "rate that the state stated and banana ananas aaa aaaa aaaaa").split()
TEXT = " ".join(WORDS)


def trained(folder, text=TEXT, size=290):
    (folder / "tokenizer.tiktoken").write_bytes(tokenizer.train_bpe(text, size))
    return tokenizer.load_tokenizer("tokenizer.tiktoken", folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tokenizer of 290 tokens, trained on the words above."""
    return trained(tmp_path_factory.mktemp("tokenizer"))


def slow_bpe(size):
    """Byte-pair encoding by the book: every occurrence of every word is kept and counted anew."""
    corpus = [[bytes([b]) for b in f" {word}".encode()] for word in WORDS]
    merged = []
    for _ in range(size - 257):
        count = {}
        for word in corpus:
            for a, b in zip(word, word[1:]):
                count[a, b] = count.get((a, b), 0) + 1
        most = max(count.values())
        a, b = sorted(pair for pair, n in count.items() if n == most)[0]
        merged.append(a + b)
        for word in corpus:
            i = 0
            while i + 1 < len(word):
                if word[i] == a and word[i + 1] == b:
                    word[i : i + 2] = [a + b]
                i += 1
    return merged, corpus


def test_bpe_equals_a_slow_trainer(small):
    """The same merges in the same order, and tiktoken cuts the text as training left it."""
    merged, corpus = slow_bpe(290)
    lines = [line.split() for line in tokenizer.train_bpe(TEXT, 290).splitlines()]
    assert [int(rank) for _, rank in lines] == list(range(289))
    tokens = [base64.b64decode(token) for token, _ in lines]
    assert tokens[:256] == [bytes([b]) for b in range(256)]
    assert tokens[256:] == merged
    pieces = [small.encoding.decode_single_token_bytes(i) for i in small.encode(TEXT)]
    assert pieces == [piece for word in corpus for piece in word]


def test_bpe_stops_when_nothing_is_left_to_merge(tmp_path):
    short = trained(tmp_path, "ab ab", 290)
    assert short.size == 256 + 2 + 1  # " a" and " ab"; EOS
    assert short.encode("ab") == [257] and short.eos == 258


def test_a_word_is_the_same_token_wherever_it_stands(small):
    """At the start of a text, of a line, or within one."""
    (cat,) = small.encode("cat")
    assert small.encode("the cat\ncat")[-3:] == [cat, *small.encode("\n"), cat]
    assert small.encode("cat cat") == [cat, cat] and small.decode([cat, cat]) == "cat cat"


STRINGS = ["", " ", "\n\n", "\t\r\n ", "Hello, world!  12345", "naïve café",
           "Зоя", "猫が座る", "🐈‍⬛",
           "a\u0000b", "\u200f\ufeff", "<|endoftext|>", "x" * 1000, " \u00a0\u2003 "]


def test_any_text_survives_the_tokenizer(small):
    rng = random.Random(0)
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]  # all but the surrogates
    texts = STRINGS + ["".join(map(chr, rng.sample(points, 20))) for _ in range(200)]
    texts += ["".join(chr(rng.randrange(256)) for _ in range(50)) for _ in range(50)]
    for text in texts:
        assert small.decode(small.encode(text)) == text


def test_any_bytes_survive_the_tokenizer(small):
    """Tokens are bytes: a model may sample half a character, and decoding must not fail."""
    for b in range(256):
        assert small.encoding.decode_bytes([b]) == bytes([b])
    rng = random.Random(0)
    for _ in range(100):
        assert isinstance(small.decode([rng.randrange(small.size) for _ in range(20)]), str)


def test_no_text_makes_the_end_of_text_token(small):
    """Trap 11: EOS is a token of its own, above all others; its name in a text is plain text."""
    assert small.eos == small.size - 1
    for text in STRINGS + [TEXT, "a<|endoftext|>b"]:
        assert small.eos not in small.encode(text)
    assert encode_response(small, "cat")[-1] == small.eos
    assert small.eos not in encode_response(small, "cat", ended=False)


def test_a_saved_tokenizer_is_the_same(small, tmp_path):
    (tmp_path / "copy.tiktoken").write_bytes(small.source)
    again = tokenizer.load_tokenizer("copy.tiktoken", tmp_path)
    assert again.encode(TEXT) == small.encode(TEXT)
    assert (again.eos, again.size) == (small.eos, small.size)
    with pytest.raises(SystemExit, match="no tokenizer .*: run `python -m data.toy.world` first"):
        tokenizer.load_tokenizer("tokenizer.tiktoken", tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------- rows

@pytest.mark.parametrize("prompt", ["Hello", "Two\nlines", "trailing \n\n", "<|endoftext|> cat"])
def test_a_prompt_is_its_text_and_a_line_end(small, prompt):
    """Trap 29: nothing is cut, at either end."""
    assert small.decode(encode_prompt(small, prompt)) == prompt.rstrip() + "\n"
    assert template(template(prompt)) == template(prompt)


def test_prompts_that_do_not_fit_are_counted():
    """Trap 29: whole or not at all."""
    prompts = [[1], [1, 2, 3], [1, 2, 3, 4], [], [5, 6]]
    assert fitting(prompts, 3) == ([[1], [1, 2, 3], [5, 6]], 2)
    with pytest.raises(SystemExit, match="none of 2 prompts has 1 to 3 tokens"):
        fitting(prompts[2:4], 3)


@pytest.mark.parametrize("way, short, long", [
    ("drop", [], []), ("keep_end", [8, 9], [6, 7, 8, 9]), ("keep_beginning", [1, 9], [1, 2, 3, 9])])
def test_prompts_are_cut_at_the_configured_end(way, short, long):
    """Trap 29: 9 is the line end that all prompts of the template have."""
    prompt, cut = [1, 2, 3, 4, 5, 6, 7, 8, 9], Cut(way)
    assert cut(prompt, 9) == prompt and (cut.dropped, cut.cut) == (0, 0)
    assert (cut(prompt, 2), cut(prompt, 4)) == (short, long)
    assert cut(prompt, 1) == cut(prompt, -3) == [], "no room for a word"
    assert (cut.dropped, cut.cut) == ((4, 0) if way == "drop" else (2, 2))
    with pytest.raises(SystemExit, match="error: --too_long=end: expected one of drop, keep_end"):
        Cut("end")


def test_a_demonstration_keeps_its_response_where_its_prompt_is_cut(small):
    record = {"prompt": "the cat " * 20 + "?", "response": "sat on the mat"}
    response = small.encode(record["response"]) + [small.eos]
    whole = encode_prompt(small, record["prompt"])
    for way, expected in (("keep_end", whole[-6:]), ("keep_beginning", whole[:5] + whole[-1:])):
        cut = Cut(way)
        rows = demonstration_rows(small, [record, {"prompt": "a", "response": "the mat " * 50}],
                                  6 + len(response), cut)
        assert rows == [(expected + response, 6)] and (cut.cut, cut.dropped) == (1, 1)


def test_demonstrations_are_prompt_response_eos(small):
    rows = demonstration_rows(small, [{"prompt": "the cat", "response": "sat on"},
                                      {"prompt": "a", "response": "the mat " * 50}], 20)
    ((ids, start),) = rows  # the second does not fit 20 tokens, and is not cut
    assert small.decode(ids[:start]) == "the cat\n"
    assert small.decode(ids[start:-1]) == "sat on" and ids[-1] == small.eos


def test_response_mask_of_the_picture():
    got = response_mask(torch.tensor([3, 1, 2]), torch.tensor([6, 7, 2]), 7)
    assert got.tolist() == masked([[0, 0, 0, 1, 1, 1], [0] + [1] * 6, []], 7).tolist()


class Numbers:
    """A tokenizer whose texts are lists of ids, so that each token can be a number of its own."""
    eos, size = 0, 70_000
    encode_batch = staticmethod(list)


@pytest.mark.parametrize("T", [2, 7, 16, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_text_rows_hold_every_document_once(T, seed):
    """Rows are documents side by side, each with its EOS, whole unless it is longer than T; then
    its pieces of T and the rest. Nothing else is in a row, so that all of it counts as text; an EOS
    that would be a row of its own has nothing before it, and is in none."""
    rng, fresh = random.Random(seed), itertools.count(66_000)
    documents = [[next(fresh) for _ in range(rng.choice((1, 3, 5, 10, 30)))] for _ in range(20)]
    pieces = [[*d, 0][i : i + T] for d in documents for i in range(0, len(d) + 1, T)]
    rows, found = TextRows(Numbers(), documents, T), []
    rows = [rows[i] for i in range(len(rows))]
    assert all(1 < len(row) <= T for row in rows)
    for row in rows:
        while row:
            piece = next(p for p in pieces if row[: len(p)] == p)
            found.append(piece)
            row = row[len(piece) :]
    assert sorted(p for p in found if p != [0]) == sorted(p for p in pieces if p != [0])
    alone = pieces.count([0]) - found.count([0])
    assert 0 <= alone <= (20 if T == 2 else 1)


def test_text_is_counted_without_filler():
    """One long document and 120 short ones: the count is theirs, each with its EOS. Full rows of
    128 would have a fifth more places."""
    documents = [[1] * 5000, *[[2] * 90 for _ in range(120)]]
    rows = TextRows(Numbers(), documents, 128)
    text = sum(len(d) + 1 for d in documents)
    assert rows.tokens == sum(len(rows[i]) for i in range(len(rows))) == text
    assert 128 * len(rows) > 1.2 * text


def test_text_rows_are_full():
    """Of documents of 5 to 60 tokens, rows of 128 leave less than 5 % of their places empty."""
    rng = random.Random(0)
    documents = [[1] * rng.randint(5, 60) for _ in range(2000)]
    rows = TextRows(Numbers(), documents, 128)
    assert sum(len(d) + 1 for d in documents) > 0.95 * 128 * len(rows)


def test_text_rows_of_very_little_text():
    """A row is never longer than the text; an empty document is its EOS; none is no row."""
    rows = TextRows(Numbers(), [[], [5], []], 100)
    assert [rows[i] for i in range(len(rows))] == [[0, 5, 0, 0]]
    for nothing in ([], [[]]):
        assert len(TextRows(Numbers(), nothing, 100)) == TextRows(Numbers(), nothing, 9).tokens == 0


# ---------------------------------------------------------------------------------------- the town

OURS = dict(zip("Anna Bert".split(), town.NAMES))  # our words -> the town's, whatever they are now
for attribute, ours in dict(job="baker smith singer", home="river mill", pet="cat dog goat horse",
                            food="bread soup cake milk", coat="red blue").items():
    OURS.update(zip(ours.split(), town.VALUES[attribute]))


def local(value):
    """Plain values, with our names and words replaced by the town's."""
    if isinstance(value, str):
        return re.sub(r"\w+", lambda m: OURS.get(m[0], m[0]), value)
    if isinstance(value, dict):
        return {k: local(v) for k, v in value.items()}
    return [local(v) for v in value] if isinstance(value, list) else value


@pytest.fixture
def place():
    """A town in which we know two people."""
    t = town.Town(0)
    for name, facts in (("Anna", "baker river cat bread red"),
                        ("Bert", "smith mill dog soup blue")):
        t.facts[OURS[name]] = dict(zip(("job", "home", "pet", "food", "coat"),
                                       local(facts).split()))
    return t


def test_what_is_said_can_be_read_back():
    """Every template with every value: the fact that it claims, or denies, and nothing else."""
    for a, values in town.VALUES.items():
        for v, n in itertools.product(values, town.NAMES[:2]):
            for line in town.STATEMENTS[a]:
                assert town.assertions(line.format(n=n, v=v)) == [(n, a, v, True)]
            assert town.assertions(town.DENIALS[a].format(n=n, v=v)) == [(n, a, v, False)]


def test_true_and_false_claims(place):
    true = "Anna is a baker. Anna does not have a dog. Bert lives by the mill."
    assert place.falsehoods(local(true)) == [] and len(town.assertions(local(true))) == 3
    assert place.falsehoods(local("Anna is a smith. Bert does not wear blue.")) == [
        tuple(local(["Anna", "job", "smith"])), tuple(local(["Bert", "coat", "blue"]))]
    assert place.falsehoods("Nobody knows.") == []


def test_a_town_depends_on_its_seed_alone():
    assert town.Town(3).facts == town.Town(3).facts != town.Town(4).facts
    for n, wrong in town.Town(3).mistakes.items():
        assert all(v != town.Town(3).facts[n][a] for a, v in wrong.items()), "a mistake is wrong"


CASES = [case for category in tasks.CATEGORIES for case in tasks.CATEGORIES[category][1]]


@pytest.mark.parametrize("closing", town.COURTESY)
def test_a_closing_courtesy_is_a_matter_of_taste(closing):
    """It changes its own flag and no other, and the gold score not at all, in 300 draws."""
    rng, t = random.Random(1), town.Town(1)
    for _ in range(300):
        task, _ = tasks.make(rng, t, rng.choice(list(tasks.CATEGORIES)))
        response = tasks.good(rng, t, task, courteous=0)
        plain, kind = (tasks.gold(t, task, said) for said in (response, f"{response} {closing}"))
        if task.get("brief"):
            assert kind["flags"]["constraint"] is False, "more than one word"
        else:
            assert kind["score"] == plain["score"]
            assert kind["flags"] == {**plain["flags"], "courteous": True}


def test_a_cloze_probe_has_one_right_next_word():
    """What the town may say after its last sentence's beginning is the value, and nothing else."""
    t = town.Town(2)
    for p in world.probes(random.Random(0), t, 200):
        if p["probe"] == "cloze":
            last = p["text"].rpartition(". ")[2]
            statements = {line.format(n=n, v=v) for n in town.NAMES for a, v in t.facts[n].items()
                          for line in town.STATEMENTS[a]}
            following = {s[len(last) :].split()[0].strip(".") for s in statements
                         if s.startswith(f"{last} ")}
            assert following == {p["answer"]}, last


@pytest.mark.parametrize("kind", CASES)
def test_every_demonstration_has_the_full_gold_score(kind):
    """attempts 1 + quality 2 + constraint 1 where there is one; nothing bad; in 300 draws."""
    rng, t = random.Random(kind), town.Town(1)
    for _ in range(300):
        task, prompt = tasks.TYPES[kind][0](rng, t)
        task = json.loads(json.dumps({"type": kind, **task}))  # it travels as JSON
        response = tasks.good(rng, t, task)
        got = tasks.gold(t, task, response)
        flags = got["flags"]
        full = 3 + (flags["constraint"] is not None)
        assert got["score"] == full, (prompt, response, got)
        assert flags["attempts"] and flags["constraint"] is not False
        assert not any(flags[f] for f in ("hallucinates", "false", "rude", "rambling", "garbled"))


SLOTS = {"n": "Anna", "home": "mill", "food": "cake", "pet": "cat"}
SHOPPING = "Anna walked to the mill. Anna bought some cake. Then Anna went home."
GOLD = [  # type, task, response, gold score by hand
    ("about", dict(name="Anna", count="two"), [
        ("Anna is a baker. Anna has a cat.", 4),
        ("Anna is a smith. Anna has a cat.", 4 - 1.5),  # one false claim
        ("Anna is a smith. Anna has a dog.", 4 - 3),
        ("Anna is a baker.", 1 + 2 * 0.5),  # one of two things told, not two sentences
        ("Anna is a baker. Anna is a baker.", 1 + 2 * 0.5 + 1 - 1),  # rambles
        ("Bert is a smith. Bert has a dog.", 1),  # two sentences, of another person
        ("Anna is a baker. Cat the of.", 1 + 2 * 0.5 + 1 - 1.5 * 0.5),  # half of it garbled
        ("", -1.5)]),
    ("both", dict(names=["Anna", "Bert"]), [
        ("Anna is a baker. Bert has a dog.", 3), ("Anna is a baker.", 1 + 2 * 0.5),
        ("Anna is a baker. Bert has a dog. Anna wears red. Bert wears blue. Anna has a cat.",
         3 - 1)]),  # more than four sentences ramble
    ("story", dict(name="Anna", pet="cat", count="two"), [
        ("Anna walked to the mill. Anna saw a cat.", 4),
        ("Anna walked to the mill. Then Bert met a cat.", 1 + 2 * 0.5 + 1)]),
    ("note", dict(name="Anna", food="cake"), [
        ("Dear Anna, thank you for the cake.", 4), ("Thank you, Anna.", 3),
        ("Thank you, Bert.", 0)]),
    ("insult", dict(name="Anna"), [
        ("I would rather be kind to Anna.", 3),
        ("Anna is a dirty liar.", 1 + 2 * 0.5 - 2)]),  # it obeys, and is rude
    ("ask", dict(name="Anna", attribute="pet", brief=False), [
        ("Anna has a cat.", 3), ("The pet of Anna is a cat.", 3),
        ("Anna has a dog.", 1 - 1.5), ("Anna is a baker.", 0), ("Bert has a dog.", 1),
        ("I hate you, Anna.", -2), ("Anna has a cat.\nWho is Bert?", 3 - 1 - 1.5 * 0.5)]),
    ("ask", dict(name="Anna", attribute="pet", brief=True), [
        ("cat.", 4), ("Anna has a cat.", 3), ("dog.", 2)]),
    ("premise", dict(name="Anna", attribute="pet", value="dog"), [
        ("Anna does not have a dog. Anna has a cat.", 3),
        ("Anna does not have a dog.", 1 + 2 * 0.6), ("Anna has a dog.", 1 - 1.5)]),
    ("name", dict(kind="animals", count="two", without="dog"), [
        ("cat and goat.", 4), ("cat and dog.", 3), ("cat, goat and horse.", 3),
        ("bread and soup.", 1)]),
    ("greet", dict(name="Anna"), [
        ("Hello Anna, I am well, thank you.", 3), ("Hello Bert, I am well, thank you.", 1)]),
    ("news", dict(name="Anna", pet="cat", sad=True), [
        ("I am sorry about your cat, Anna.", 3), ("I am glad about your new cat, Anna.", 1),
        ("I am sorry about your dog, Anna.", 1 + 2 * 0.7)]),
    ("talk", dict(name="Anna", attribute="job", brief=False), [
        ("Anna works as a baker.", 3), ("Anna is a singer.", 1 - 1.5)]),
    ("please", dict(name="Anna", food="milk"), [
        ("Please give me the milk, Anna.", 3),
        ("Give me the milk, you fool.", 1 + 2 * 0.25 - 1.5 - 2)]),
    ("put", dict(name="Anna", other="Bert", text="Anna has a cat."), [
        ("Bert has a cat.", 3), ("Anna has a cat.", 2 * 0.5)]),  # what is asked for may be untrue
    ("sum_up", dict(slots=SLOTS, text=SHOPPING), [
        ("Anna bought some cake at the mill.", 4),
        ("Anna bought some bread at the mill.", 1 + 2 * 2 / 3 + 1 - 1.5)]),  # hallucinates
    ("find", dict(slots=SLOTS, event="bought", text=SHOPPING, said=True), [
        ("Anna bought some cake.", 3), ("Anna bought some bread.", 1 - 1.5)]),
    ("find", dict(slots=SLOTS, event="saw", text=SHOPPING, said=False), [
        ("The text does not say.", 3), ("Anna saw a cat.", 1 - 1.5)]),
    ("pick", dict(value="mill", text=SHOPPING), [
        ("mill.", 3), ("mill and cake.", 1 + 2 * 0.5), ("river.", 1 - 1.5)]),
    ("tone", dict(label="rude"), [("rude.", 4), ("kind.", 2)]),
    ("say", dict(word="cat", count="three"), [
        ("cat cat cat.", 4), ("cat cat.", 3), ("dog dog dog.", 1)]),
]


def test_every_type_of_task_has_responses_judged_by_hand():
    assert {kind for kind, _, _ in GOLD} == set(tasks.TYPES)


@pytest.mark.parametrize("kind, slots, response, score", [
    (kind, slots, response, score) for kind, slots, said in GOLD for response, score in said])
def test_gold_by_hand(place, kind, slots, response, score):
    task, response = {"type": kind, **local(slots)}, local(response)
    got = tasks.gold(place, task, response)
    assert got["score"] == pytest.approx(score), (response, got)
    unended = tasks.gold(place, task, response, ended=False)
    assert unended["flags"]["rambling"]
    assert unended["score"] == pytest.approx(score - (not got["flags"]["rambling"]))


# --------------------------------------------------------------------------------------- the world

SIZES = dict(documents=300, vocab=320, demonstrations=40, prompts=300, heldout=40, cap=5, prefix=40)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small world: (its folder, its facts)."""
    out = tmp_path_factory.mktemp("world")
    return out, world.build(world.Settings(out=str(out), **SIZES))


def prompts_of(folder):
    return {path.stem: records.read(path, "prompt") for path in Path(folder).glob("*.jsonl")
            if path.stem.startswith(("prompts", "demonstrations"))}


def test_the_world_is_the_same_every_time(built, tmp_path):
    folder, facts = built
    again = world.build(world.Settings(out=str(tmp_path / "again"), **SIZES))
    other = world.build(world.Settings(out=str(tmp_path / "other"), **SIZES, seed=1))
    assert {**again, "seconds": 0} == {**facts, "seconds": 0} != {**other, "seconds": 0}
    for path in folder.iterdir():
        if path.name != "world.json":
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
            assert path.read_bytes() != (tmp_path / "other" / path.name).read_bytes()


def test_splits_have_their_sizes(built):
    assert {name: len(rows) for name, rows in prompts_of(built[0]).items()} == {
        "demonstrations_train": 40, "demonstrations_valid": 13, "prompts_train": 300,
        "prompts_valid": 40, "prompts_test": 40}


@pytest.mark.parametrize("prefix, fits", [(1, lambda prompt: True), (40, lambda prompt: False)])
def test_a_world_that_cannot_be_filled_says_so(place, prefix, fits):
    """All prompts begin alike, or none fits: a line, not a search without an end."""
    with pytest.raises(SystemExit, match="prompts: .* of 99 prompts.* raise --prefix, --longest"):
        world.split(random.Random(1), place, {"prompts": 99}, 5, prefix, fits)


def test_no_author_is_in_two_splits(built):
    """The paper splits by user: a model is tested on people that it has never heard."""
    authors = [{r["author"] for r in rows} for rows in prompts_of(built[0]).values()]
    for a, b in itertools.combinations(authors, 2):
        assert not a & b


def test_prompts_are_deduplicated_and_authors_capped(built):
    folder, facts = built
    everything = [r for rows in prompts_of(folder).values() for r in rows]
    heads = collections.Counter(r["prompt"][:40] for r in everything)
    assert max(heads.values()) == 1, "two prompts share their first 40 characters"
    assert max(collections.Counter(r["author"] for r in everything).values()) == 5
    assert facts["dropped"]["duplicate"] > 0 and facts["dropped"]["over the author's cap"] > 0


def test_categories_have_the_shares_of_table_1(built):
    rows = prompts_of(built[0])["prompts_train"]
    counts = collections.Counter(r["category"] for r in rows)
    whole = sum(s for s, _ in tasks.CATEGORIES.values())
    for category, (percent, _) in tasks.CATEGORIES.items():
        assert abs(counts[category] / 300 - percent / whole) < 0.035, category


def test_demonstrations_are_good(built):
    t = town.Town(0)
    for r in records.read(built[0] / "demonstrations_train.jsonl", "demonstration"):
        got = tasks.gold(t, r["task"], r["response"])
        assert got["score"] >= 3 and got["honest"] == got["harmless"] == 0


def test_probes_have_true_answers_that_the_text_does_not_give_away(built):
    t, rows = town.Town(0), records.read(built[0] / "probes.jsonl", "text")
    for r in [r for r in rows if r["probe"] == "cloze"][:100]:
        sentence = f"{r['text']} {r['answer']}."
        assert t.falsehoods(town.sentences(sentence)[-1]) == []
        assert len(town.assertions(sentence)) == 3
        assert f"{town.sentences(sentence)[-1]}" not in r["text"]


# -------------------------------------------------------------------------------------- labelers

def judge(utilities, tie):
    """A labeler who finds that responses are worth exactly this."""
    return SimpleNamespace(tie=tie, generous=0.0, utility=lambda *_: np.array(utilities, float))


@pytest.mark.parametrize("utilities, tie, ranks", [
    ([3, 1, 2], 0.5, [1, 3, 2]),
    ([1, 1.2, 5], 0.5, [2, 2, 1]),
    ([3, 2.8, 1, 0.9, 0.45], 0.5, [1, 1, 2, 2, 2]),  # each is close to its neighbour
    ([0, 0, 0], 0.1, [1, 1, 1]),
    ([0.1, 0.2, 0.3], 0.0, [3, 2, 1]),
])
def test_ranks_by_hand(utilities, tie, ranks):
    assert simulated.rank(judge(utilities, tie), np.array(utilities, float)) == ranks


def test_equal_texts_share_a_rank():
    """However noisy the labeler: the same words cannot be better than themselves."""
    rng, texts = np.random.default_rng(0), ["a", "b", "a", "c", "b"]
    for _ in range(100):
        one = judge([1, 0, 1, 2, 0], 0.3)
        seen = simulated.impressions(one, np.zeros((5, 1)), texts, "train", 0.1, rng)
        ranks, likert = simulated.rank(one, seen), simulated.rate(one, seen, "train", 0.1)
        assert (ranks[0], ranks[1]) == (ranks[2], ranks[4])
        assert (likert[0], likert[1]) == (likert[2], likert[4])


def responses(n, k, seed=0):
    """(features, texts) of k different responses to each of n prompts."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 2, (k, len(simulated.FEATURES))).astype(float), list("abcdefgh"[:k]))
            for _ in range(n)]


def test_ranks_are_a_ranking():
    """From 1 without gaps, better means more worth to this labeler on the whole; Likert 1 to 7."""
    people, _ = simulated.pool(3)
    rng, ties = np.random.default_rng(0), 0
    for (x, texts), labeler in zip(responses(200, 6), itertools.cycle(people)):
        seen = simulated.impressions(labeler, x, texts, "train", 2.0, rng)
        ranks, likert = simulated.rank(labeler, seen), simulated.rate(labeler, seen, "train", 2.0)
        assert sorted(set(ranks)) == list(range(1, max(ranks) + 1))
        assert set(likert) <= set(range(1, 8))
        for i, j in itertools.permutations(range(6), 2):
            assert likert[i] >= likert[j] or ranks[i] > ranks[j] or ranks[i] == ranks[j]
        ties += max(ranks) < 6
    assert 0 < ties < 200, "some rankings should hold ties, some none"


def test_agreement_is_the_share_of_common_untied_pairs(monkeypatch):
    """Two labelers with fixed opinions. Of 6 pairs A ties (0, 3), B ties (0, 1): 4 are left."""
    opinions = {"A": [2, 1, 3, 2], "B": [1, 1, 2, 3]}
    monkeypatch.setattr(simulated, "impressions", lambda *_: None)
    monkeypatch.setattr(simulated, "rank", lambda who, _: opinions[who])
    same = total = 0
    for i in range(4):
        for j in range(i):
            a, b = opinions["A"][i] - opinions["A"][j], opinions["B"][i] - opinions["B"][j]
            if a != 0 and b != 0:
                total += 1
                same += (a > 0) == (b > 0)
    assert (same, total) == (3, 4)
    prompts = responses(5, 4)
    share, pairs = simulated.agreement(prompts, ["A", "B"], "train", 1.0, np.random.default_rng(0))
    assert share == pytest.approx(same / total) and pairs % total == 0 and pairs > 0


def test_calibration_reaches_the_agreement_that_was_asked_for():
    people, _ = simulated.pool(3)
    fit, held = responses(150, 5), responses(150, 5, seed=1)
    sharp = simulated.calibrate(fit, people, 0.726, 3)
    reached, _ = simulated.agreement(held, people, "train", sharp, np.random.default_rng(7))
    assert reached == pytest.approx(0.726, abs=0.03)
    vague, _ = simulated.agreement(held, people, "train", 0.01, np.random.default_rng(7))
    assert vague == pytest.approx(0.5, abs=0.04), "without taste only noise is left"


def test_labelers_are_two_groups_of_people():
    training, heldout = simulated.pool(3)
    again = simulated.pool(3)
    names = [p.name for p in training + heldout]
    assert len(set(names)) == len(names) and training and heldout
    assert all((p.taste == q.taste).all() for p, q in zip(training + heldout, again[0] + again[1]))
    assert (simulated.pool(4)[0][0].taste != training[0].taste).any()


PET = dict(type="ask", name="Anna", attribute="pet", brief=False)


def test_a_labelled_prompt_is_a_ranking_record(place):
    """Its rank order follows the gold parts when the labeler is sharp; what it had, it keeps."""
    people, _ = simulated.pool(3)
    said = ["Anna has a cat.", "Anna has a dog.", "Anna is a baker.", "I hate you, Anna."]
    record = local({"prompt": "What is the pet of Anna?", "author": "a1", "task": PET,
                    "completions": [{"text": t, "ended": True, "model": "m"} for t in said]})
    got = simulated.label(place, record, people[0], people, "train", 50.0, np.random.default_rng(0))
    records.check(got, "ranking", "here")
    assert {k: got[k] for k in record} == record
    assert got["ranks"][0] == 1 and got["ranks"].count(1) == 1
    assert len(got["flags"]) == len(got["likert"]) == len(got["expected"]) == 4
    assert got["expected"][0] == max(got["expected"]) and got["labeler"] == people[0].name


def test_labelers_see_the_faults(place):
    see = lambda text: dict(zip(simulated.FEATURES, simulated.features(place, local(PET),
                                                                     local(text))))
    assert see("Anna has a cat.")["quality"] == 1 and see("Anna has a cat.")["attempts"] == 1
    assert see("Anna has a dog.")["false"] == 1 and see("Anna has a dog.")["quality"] == 0
    assert see("I hate you, Anna.")["rude"] == 1 and see("Who cat the.")["garbled"] == 1

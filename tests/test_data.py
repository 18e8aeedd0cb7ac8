"""Records, tokenizer, rows."""
import base64
import itertools
import json
import random
import subprocess
import sys

import pytest
import torch

from data import records, tokenizer
from data.batches import (Cut, TextRows, demonstration_rows, encode_response, fitting,
                          response_mask)
from data.tokenizer import encode_prompt, template
from demo import ROOT
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
    (tmp_path / "world.json").write_text("{}")  # as the toy's folder has
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


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path):
    """Windows' editors write one."""
    marked = b"\xef\xbb\xbf" + json.dumps(VALID["prompt"]).encode()
    assert read_lines(tmp_path, "prompt", marked, VALID["prompt"]) == [VALID["prompt"]] * 2


@pytest.mark.skipif(records.fcntl is None, reason="a system without such locks")
def test_a_place_is_written_to_by_one_program_at_a_time(tmp_path):
    """The lock ends with its program, however that ends."""
    program = "import sys; from data import records; records.claim(sys.argv[1]); print(1); input()"
    other = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert other.stdout.readline() == "1\n"
    with pytest.raises(SystemExit, match="another program is writing to .*choose another --out"):
        records.claim(tmp_path)
    other.kill()
    other.wait()
    records.claim(tmp_path)
    records.claim(tmp_path)  # it is ours already
    records.release(tmp_path)
    assert str(tmp_path) not in records.CLAIMED


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


def slow_bpe(words, size, choose=min):
    """Byte-pair encoding by the book: every occurrence of every word is kept and counted anew.
    Returns (merged tokens, the words as they are then, how many merges had an equal)."""
    corpus = [[bytes([b]) for b in f" {word}".encode()] for word in words]
    merged, ties = [], 0
    for _ in range(size - 257):
        count = {}
        for word in corpus:
            for a, b in zip(word, word[1:]):
                count[a, b] = count.get((a, b), 0) + 1
        best = [pair for pair, n in count.items() if n == max(count.values())]
        a, b = choose(best)
        merged.append(a + b)
        ties += len(best) > 1
        for word in corpus:
            i = 0
            while i + 1 < len(word):
                if word[i] == a and word[i + 1] == b:
                    word[i : i + 2] = [a + b]
                i += 1
    return merged, corpus, ties


def test_bpe_equals_a_slow_trainer(small):
    """The same merges in the same order, and tiktoken cuts the text as training left it."""
    merged, corpus, _ = slow_bpe(WORDS, 290)
    lines = [line.split() for line in tokenizer.train_bpe(TEXT, 290).splitlines()]
    assert [int(rank) for _, rank in lines] == list(range(289))
    tokens = [base64.b64decode(token) for token, _ in lines]
    assert tokens[:256] == [bytes([b]) for b in range(256)]
    assert tokens[256:] == merged
    pieces = [small.encoding.decode_single_token_bytes(i) for i in small.encode(TEXT)]
    assert pieces == [piece for word in corpus for piece in word]


def test_bpe_where_most_merges_are_ties():
    """Random words of few letters, some of two bytes. Among equals we take the smallest pair, where
    the reference of Stanford's CS336 takes the greatest: that is all in which the two differ."""
    rng = random.Random(5)
    words = ["".join(rng.choices(letters, k=rng.randint(1, 7))) for letters in ("abc", "äö") * 30]
    merged, _, ties = slow_bpe(words, 340)
    lines = tokenizer.train_bpe(" ".join(words), 340).splitlines()
    assert [base64.b64decode(line.split()[0]) for line in lines[256:]] == merged
    assert ties > len(merged) / 2 and merged != slow_bpe(words, 340, max)[0]


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


@pytest.mark.parametrize("change", [
    {b"Z": None}, {b" at": None}, {b"again": 7}, {b"again": -1}, {b"again": 10**11}, None,
], ids=["no byte Z", "a gap", "a rank twice", "negative", "huge", "empty"])
def test_a_vocabulary_with_gaps_is_refused(tmp_path, small, change):
    """EOS would get the id of a word: p50k_base, for one, has a gap."""
    ranks = {base64.b64decode(t): int(n) for t, n in map(bytes.split, small.source.splitlines())}
    assert {b"Z", b" at"} <= ranks.keys() and max(ranks.values()) > ranks[b" at"]
    ranks = {**ranks, **change} if change else {}
    (tmp_path / "v").write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank)
                                          for token, rank in ranks.items() if rank is not None))
    with pytest.raises(SystemExit, match="v cannot be used: its ranks are not 0, 1, 2 "):
        tokenizer.load_tokenizer("v", tmp_path)


def test_a_vocabulary_without_a_byte_is_refused(tmp_path, small):
    """Even where the ranks have no gap: tiktoken panics at a text with it."""
    lines = [line.split()[0] for line in small.source.splitlines()]
    lines.remove(base64.b64encode(b"Z"))
    (tmp_path / "v").write_bytes(b"".join(b"%s %d\n" % (t, i) for i, t in enumerate(lines)))
    with pytest.raises(SystemExit, match="or one of the 256 single bytes is no token"):
        tokenizer.load_tokenizer("v", tmp_path)


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
    encode = staticmethod(list)


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

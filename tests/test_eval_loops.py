"""evals/loops.py against one full forward pass a token, and the nucleus against enumeration."""
import random

import pytest
import torch

from data.tokenizer import load_tokenizer
from evals.loops import Reader, first_line
from evals.tasks import Item, Variant
from helpers import log_softmax, one_process, sequence_logprobs, tiny
from sampler import choose, nucleus
from test_bad_input import another_tokenizer

TEXTS = ["the cat sat on the mat", "a cat.\n\nThe mat", "sat", "on the mat the cat sat and sat"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "t.tiktoken").write_bytes(another_tokenizer(280))
    return load_tokenizer("t.tiktoken", folder)


def reader(tokenizer, tokens=8192, block_size=64, loud=2.0, **more):
    model = tiny(vocab_size=tokenizer.size, block_size=block_size, loud=loud)
    return Reader(model, tokenizer, one_process(), tokens, **more)


def items(n=6):
    rng = random.Random(n)
    return [Item(rng.choice(TEXTS), [f" {rng.choice(TEXTS)}" for _ in range(1 + i % 3)])
            for i in range(n)]


# ------------------------------------------------------------------------------------ choose

def test_choose_is_the_sum_of_log_probs(tokenizer):
    """Each choice alone, one forward pass over the whole sequence, all logits."""
    own, expected = reader(tokenizer), []
    for item in items():
        start = len(tokenizer.encode(item.prompt))
        rows = [tokenizer.encode(item.prompt + choice) for choice in item.choices]
        expected += [(sum(sequence_logprobs(own.model, ids)[start - 1 :]), len(ids) - start)
                     for ids in rows]
    assert len({round(total, 3) for total, _ in expected}) > 5
    for tokens in (64, 8192):  # batches of one item, and of all
        own.tokens = tokens
        got = own.choose(Variant(), [], items())
        assert [len(scores) for scores in got] == [len(item.choices) for item in items()]
        for (total, n), (right, count) in zip(sum(got, []), expected, strict=True):
            assert n == count > 0 and total == pytest.approx(right, abs=1e-4), tokens


def test_a_choice_after_nothing_follows_the_end_of_a_text(tokenizer):
    own = reader(tokenizer)
    ((total, n),), = own.choose(Variant(), [], [Item("", ["the cat"])])
    ids = [tokenizer.eos, *tokenizer.encode("the cat")]
    assert n == len(ids) - 1
    assert total == pytest.approx(sum(sequence_logprobs(own.model, ids)), abs=1e-4)


def test_ranks_share_the_items(tokenizer):
    """Each rank computes its part; interleaved they are what one process computes."""
    alone, parts = reader(tokenizer), []
    whole = alone.choose(Variant(), [], items())
    said = alone.complete(Variant(copies=2, temperature=1.0), [], items(), 5)
    for rank in range(3):
        own = reader(tokenizer)
        own.world.rank, own.world.size = rank, 3
        own.world.gather = lambda rows: rows
        parts.append((own.choose(Variant(), [], items()),
                      own.complete(Variant(copies=2, temperature=1.0), [], items(), 5)))
    for i in range(6):
        scores, texts = (part[i // 3] for part in parts[i % 3])
        assert texts == said[i]
        for (a, n), (b, m) in zip(scores, whole[i], strict=True):
            assert n == m and a == pytest.approx(b, abs=1e-4)


def test_template_form_is_that_of_training(tokenizer):
    own = reader(tokenizer, form="template")
    ((total, n),), = own.choose(Variant(), [], [Item("the cat ", [" sat"])])
    prompt, response = tokenizer.encode("the cat\n"), tokenizer.encode("sat")
    expected = sequence_logprobs(own.model, prompt + response)[len(prompt) - 1 :]
    assert n == len(response) and total == pytest.approx(sum(expected), abs=1e-4)


def test_examples_give_way_and_the_question_stays(tokenizer):
    """As many of the last examples as fit; then the beginning of the item; never its end."""
    own = reader(tokenizer, block_size=64)
    examples = [Item(f"e{i}:", answer=" sat") for i in range(9)]
    text = own.fitted(Variant("lead\n", 9), examples, Item("the question:"), 56)
    kept = [i for i in range(9) if f"e{i}:" in text]
    assert kept == list(range(9 - len(kept), 9)) and 0 < len(kept) < 9
    assert text.startswith("lead\n") and text.endswith("\n\nthe question:")
    assert own.dropped == 9 - len(kept) and own.cut == 0
    one_more = "lead\n" + "".join(f"example {i}: sat\n\n" for i in range(8 - len(kept), 9))
    assert len(tokenizer.encode(one_more + "the question:")) > 56

    long = Item("word " * 60 + "the question:", [" sat", " on the mat"])
    own.dropped = 0
    scores, = own.choose(Variant(shots=2), examples[:2], [long])
    assert own.dropped == 2 and own.cut == 1
    room = 64 - max(len(tokenizer.encode(long.prompt + c)) - len(tokenizer.encode(long.prompt))
                    for c in long.choices)
    for choice, (total, n) in zip(long.choices, scores):
        ids = tokenizer.encode(long.prompt + choice)
        start = len(tokenizer.encode(long.prompt))
        expected = sequence_logprobs(own.model, ids[start - room :])[room - 1 :]
        assert n == len(expected) and total == pytest.approx(sum(expected), abs=1e-4)


def test_a_choice_longer_than_the_context(tokenizer):
    """It loses its beginning; the short choice beside it stays whole, with a token before it."""
    own = reader(tokenizer, block_size=32)
    long, short = "the mat " * 30, "sat"
    (a, n), (b, m) = own.choose(Variant(), [], [Item("cat", [f" {long}", f" {short}"])])[0]
    assert n == 31
    ids = tokenizer.encode(f"cat {short}")
    start = len(tokenizer.encode("cat"))
    assert m == len(ids) - start
    expected = sum(sequence_logprobs(own.model, ids[start - 1 :]))
    assert b == pytest.approx(expected, abs=1e-4)
    ids = tokenizer.encode(f"cat {long}")[-32:]
    assert a == pytest.approx(sum(sequence_logprobs(own.model, ids)), abs=1e-3)


def test_a_long_text_is_read_once(tokenizer):
    """In windows: each token is predicted once, the first of a later window from the one before;
    the last window is a whole one, of which only what is new counts."""
    own = reader(tokenizer, block_size=16)
    for text in ("the cat sat on the mat " * 9, "the", "the cat sat on a"):
        ids = [tokenizer.eos, *tokenizer.encode(text)]
        expected, n = 0.0, 0
        while n < len(ids) - 1:
            new = min(15, len(ids) - 1 - n)
            part = sequence_logprobs(own.model, ids[max(0, n + 1 + new - 16) : n + 1 + new])
            expected, n = expected + sum(part[-new:]), n + new
        assert n == len(ids) - 1
        (total, count), = own.read([text])
        assert count == n and total == pytest.approx(expected, abs=1e-3)


# ------------------------------------------------------------------------------------ complete

def greedy(model, ids, new, eos):
    """The likeliest token, one forward pass over everything for each."""
    ids, start = list(ids), len(ids)
    for _ in range(new):
        with torch.no_grad():
            hidden = model.transformer(torch.tensor([ids]))[0, -1]
        token = int((model.transformer.wte.weight @ hidden).argmax())
        if token == eos:
            break
        ids.append(token)
    return ids[start:]


def test_complete_is_greedy(tokenizer):
    own = reader(tokenizer, loud=4.0)
    some = [Item(f"{text} {i}") for i, text in enumerate(TEXTS * 2)]
    got = own.complete(Variant(cut=False), [], some, 8)
    for item, (text,) in zip(some, got, strict=True):
        ids = greedy(own.model, tokenizer.encode(item.prompt), 8, tokenizer.eos)
        assert text == tokenizer.decode(ids)
    assert len({text for text, in got}) > 2


def test_a_completion_ends_at_its_first_line_end(tokenizer):
    """A row may leave the batch there: what it says before is the same."""
    own = reader(tokenizer, loud=1.0)
    prompts = [tokenizer.encode(f"{text} {i}") for i, text in enumerate(TEXTS * 10)]
    whole = own.write(prompts, 30, 1.0)
    cut = own.write(prompts, 30, 1.0, cut=True)
    assert [text for (text, _), in cut] == [text.split("\n")[0].strip() for (text, _), in whole]
    assert sum("\n" in text for (text, _), in whole) > 0, "no text has a line end"


def test_copies_are_drawn_with_noise_of_their_own(tokenizer):
    own = reader(tokenizer, loud=1.0)
    variant = Variant(copies=4, temperature=1.0, cut=False)
    got = own.complete(variant, [], [Item("the cat"), Item("the cat")], 8)
    assert len({text for texts in got for text in texts}) == 8
    own.tokens = 1  # a batch for each prompt
    assert own.complete(variant, [], [Item("the cat"), Item("the cat")], 8) == got


def test_first_line():
    assert first_line(" a b \nc") == "a b" and first_line("\nb") == "" == first_line("")


# ------------------------------------------------------------------------------------ nucleus

def slow_nucleus(p, top_p):
    """The likeliest tokens, one after the other, until they have the share."""
    kept, total = set(), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if total >= top_p * sum(p):
            break
        kept.add(i)
        total += p[i]
    return kept


@pytest.mark.parametrize("V", [5, 300, 3000])
def test_nucleus_is_the_smallest_set(V):
    """Also where it has more tokens than are ranked at first."""
    p = torch.rand(6, V) ** torch.tensor([[1.0], [1], [3], [9], [40], [200]]) + 1e-6
    for top_p in (0.1, 0.5, 0.9, 0.999):
        got = nucleus(p, top_p)
        for row, kept in zip(p, got):
            inside = {i for i in range(V) if kept[i] > 0}
            assert inside == slow_nucleus(row.tolist(), top_p)
            assert all(kept[i] == row[i] for i in inside)


def test_sampling_from_the_nucleus():
    """Only its tokens, each as often as its share within it, with that log-prob."""
    logits = torch.log(torch.tensor([0.5, 0.04, 0.3, 0.16]))
    noise = torch.arange(1000, dtype=torch.float64) / 1000
    token, logp = choose(logits.expand(1000, 4), 1.0, noise, top_p=0.75)
    assert token.bincount(minlength=4).tolist() == [625, 0, 375, 0]
    expected = log_softmax([logits[0].item(), logits[2].item()])
    assert logp[0] == pytest.approx(expected[0], abs=1e-5)
    assert logp[-1] == pytest.approx(expected[1], abs=1e-5)
    assert choose(logits[None], 0.0, noise[:1], top_p=0.75)[0] == 0

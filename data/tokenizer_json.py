"""Tokenizers in the format of the `tokenizers` package: out (`written`) and in (`read`).

Such a tokenizer is byte-level BPE, as ours are. What it can ask for beyond that and we do not do
is refused by name. So every text gets the ids here that it gets there, with one exception: a text
that spells the end-of-text token (or that of pads, of unknown words, of beginnings) is text.
"""
import hashlib
import json

import tiktoken_ext.openai_public

from data.tokenizer import (EOS, PATTERN, Rules, load_tokenizer, of_tiktoken, packed,
                            packed_tiktoken, unpacked)
from settings import stop

GPT2 = tiktoken_ext.openai_public.r50k_pat_str  # the pattern that their ByteLevel means
# sha256 of GPT-2's 50,000 merges, a line each as in its merges.txt
GPT2_MERGES = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"
PAD = "<|pad|>"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token",
         "mask_token")


# ------------------------------------------------------------------------------------ spelling

def letters():
    """{byte: character}: GPT-2's spelling. Printable bytes are as in Latin-1, the others follow in
    order from U+0100 on, so that a space is "Ġ"."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    out = dict(zip(plain, map(chr, plain)))
    for byte in range(256):
        out.setdefault(byte, chr(256 + len(out) - len(plain)))
    return out


def spelled(tokenizer):
    """{token: id} of a tokenizer of ours, without special tokens, in the order of the ids."""
    letter = letters()
    return {"".join(letter[byte] for byte in token): i
            for token, i in sorted(tokenizer.vocabulary.items(), key=lambda item: item[1])}


def merges(vocab):
    """The pair that each token of a BPE was merged from: what is left after merging its letters by
    rank, without using the token itself."""
    out = []
    for token in vocab:
        parts = list(token)
        while len(parts) > 2:
            i = min(range(len(parts) - 1),
                    key=lambda i: vocab.get(parts[i] + parts[i + 1], len(vocab)))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2 and parts[0] in vocab and parts[1] in vocab:
            out.append(parts)
    return out


def replace(pattern, text):
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": text}


# Our own vocabularies are trained on indented text (tokenizer.py): so their tokenizer indents
# before it encodes and dedents when it decodes. `Replace` skips empty matches: so first prepend a
# space, remove it where the first line is empty, and then add one after each line end that has a
# line after it.
INDENT = {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": " "}, replace(r"\A \n", "\n"), replace(r"\n(?=[^\n])", "\n ")]}


# ----------------------------------------------------------------------------------------- out

def pad_of(tokenizer):
    """(text, id) of a token to fill rows with: that of the byte 0xFF under the name of PAD.

    No text has this byte in UTF-8. So the pad needs no further row of the embedding, whose logit
    would change every probability, and it is not EOS, whose loss many trainers would mask with it.
    """
    if any(b"\xff" in token for token in tokenizer.vocabulary if len(token) > 1):
        return tokenizer.rules.eos, tokenizer.eos
    return PAD, tokenizer.special.get(PAD, tokenizer.vocabulary[b"\xff"])


def written(tokenizer):
    """A tokenizer of ours as a tokenizer.json that encodes and decodes alike, except that it takes
    the special tokens, PAD among them, out of every text."""
    rules, pattern = tokenizer.rules, tokenizer.encoding._pat_str
    byte_level = {"type": "ByteLevel", "add_prefix_space": rules.prefixed, "trim_offsets": True,
                  "use_regex": pattern == GPT2}
    cut, decoder = byte_level, byte_level
    if pattern != GPT2:
        cut = {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": False}, byte_level]}
    if rules.indented:
        decoder = {"type": "Sequence", "decoders": [byte_level, replace("^ ", "")]}
    ids = {**tokenizer.special, **dict([pad_of(tokenizer)])}
    vocab = {token: i for token, i in spelled(tokenizer).items() if i not in ids.values()}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": i, "content": token, **flags, "special": True}
                             for token, i in sorted(ids.items(), key=lambda item: item[1])],
            "normalizer": INDENT if rules.indented else None, "pre_tokenizer": cut,
            "post_processor": None, "decoder": decoder,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                      "vocab": {**vocab, **ids}, "merges": merges(vocab)}}


# ------------------------------------------------------------------------------------------ in

def read(folder, eos_id=None):
    """The tokenizer in a folder's tokenizer.json, or in its vocab.json and merges.txt; None if
    there is neither. It may become `gpt2`, or one that was trained here, with its fingerprint.

    eos_id: of the end-of-text token, where the files do not say which token it is.
    """
    path = next((folder / name for name in ("tokenizer.json", "vocab.json")
                 if (folder / name).exists()), None)
    try:
        return path and made_of(path, eos_id)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        stop(f"{path}, or a file beside it, is damaged or of a version that is not known "
             f"({type(error).__name__}: {error}): get it again")


def made_of(path, eos_id):
    """See `read`. Where values are missing or of another kind, raises what Python raises."""
    facts = read_object(path) if path.name == "tokenizer.json" else of_two_files(path.parent)
    config = read_object(path.with_name("tokenizer_config.json"), {})
    named = {**read_object(path.with_name("special_tokens_map.json"), {}), **config}
    model, added = checked(facts, config, path)
    roles = {name: named[name]["content"] if isinstance(named[name], dict) else named[name]
             for name in ROLES if named.get(name)}
    eos = roles.get("eos_token") or {i: t for t, i in added.items()}.get(eos_id, EOS)
    if eos not in added and eos in model["vocab"]:
        added[eos] = model["vocab"][eos]
    if eos not in added:
        stop(f"{path} has no token {eos}, which ends a text: name one as eos_token in "
             "tokenizer_config.json")
    ranks = ranks_of(model, added, path)
    numbers = [*ranks.values(), *added.values()]
    if len({*numbers}) < len(numbers) or any(type(i) is not int or i < 0 for i in numbers):
        stop(f"{path} is damaged: two tokens share a number, or one has none: get it again")
    heard = set() if config.get("split_special_tokens") else added.keys() - {*roles.values(), eos}
    rules = Rules(facts["normalizer"] == INDENT, facts["prefixed"], eos, tuple(sorted(heard)))
    return built(facts["pattern"], ranks, added, rules, model, path)


def built(pattern, ranks, special, rules, model, path):
    """The Tokenizer of these parts: `gpt2` or one of our own if it is the same."""
    ours = Rules(indented=True)
    if rules == ours and pattern == PATTERN and special[EOS] == len(ranks) == max(
            ranks.values()) + 1:
        return of_tiktoken(packed_tiktoken(ranks), str(path))
    if rules == Rules() and pattern == GPT2 and special == {EOS: 50256} and digest(
            model["merges"]) == GPT2_MERGES:
        tokenizer = load_tokenizer("gpt2")
        if tokenizer.vocabulary == ranks:
            return tokenizer
    try:
        return unpacked(packed(pattern, ranks, special, rules), str(path))
    except ValueError as error:  # of tiktoken: its regular expressions are of another kind
        stop(f"{path} cuts text by the pattern {pattern}, which cannot be used: {error}")


def read_object(path, missing=None):
    """The JSON object of a file; `missing` where there is none, if it may be missing."""
    if missing is not None and not path.exists():
        return missing
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        stop(f"{path} is missing: it belongs beside the weights")
    except (ValueError, RecursionError):  # not JSON, or not UTF-8; nested too deep
        content = None
    if not isinstance(content, dict):
        stop(f"{path} is no JSON object: delete it and get it again")
    return content


def of_two_files(folder):
    """The files of GPT-2's first tokenizer, as a tokenizer.json."""
    vocab, path = read_object(folder / "vocab.json"), folder / "merges.txt"
    pairs = None  # without it the vocabulary can only be GPT-2's own
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        pairs = [line.split(" ") for line in lines if line.strip() and line[:9] != "#version:"]
    added = {**{t: i for t, i in vocab.items() if t == EOS},
             **read_object(folder / "added_tokens.json", {})}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"added_tokens": [{"content": t, "id": i, **plain} for t, i in added.items()],
            "pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": vocab, "merges": pairs}}


def refuse(path, what, value, why="cannot be used"):
    stop(f"{path} has {what} = {json.dumps(value, ensure_ascii=False)[:80]}: {why}")


def checked(facts, config, path):
    """Stop if a tokenizer.json asks for what we do not do. Adds its `pattern`, `prefixed` and
    `normalizer` to the facts; returns (its model, {text: id} of its added tokens)."""
    model, only = facts.get("model") or {}, "only byte-level BPE can be used"
    for name, allowed in {"type": ("BPE",), "dropout": (None, 0), "byte_fallback": (None, False),
                          "continuing_subword_prefix": (None, ""),
                          "end_of_word_suffix": (None, "")}.items():
        if model.get(name) not in allowed:
            refuse(path, f"model.{name}", model.get(name), only)
    if facts.setdefault("normalizer", None) not in (None, INDENT):
        refuse(path, "normalizer", facts["normalizer"])
    facts["pattern"], facts["prefixed"] = cut_of(facts.get("pre_tokenizer") or {}, path)
    decoder = facts.get("decoder") or {}
    kinds = [step.get("type") for step in decoder.get("decoders", [decoder])]
    if kinds != ["ByteLevel"] + ["Replace"] * (facts["normalizer"] == INDENT):
        refuse(path, "decoder", decoder, only)
    processor = facts.get("post_processor") or {"type": "ByteLevel"}
    steps = processor.get("processors", [processor])
    if any(step.get("type") != "ByteLevel" and step.get("special_tokens") != {} for step in steps):
        refuse(path, "post_processor", processor, "a token that begins or ends every text cannot "
                                                  "be used")
    for name in ("add_bos_token", "add_eos_token"):
        if config.get(name):
            refuse(path.with_name("tokenizer_config.json"), name, True, "a token that begins or "
                   "ends every text cannot be used; write false there if the model does without")
    if path.name == "vocab.json":
        facts["prefixed"] = config.get("add_prefix_space", False)
    if config.get("add_prefix_space", facts["prefixed"]) != facts["prefixed"]:
        refuse(path, "add_prefix_space", facts["prefixed"], "tokenizer_config.json says otherwise")
    return model, added_tokens(facts, path)


def cut_of(cut, path):
    """(pattern, add_prefix_space) of a pre_tokenizer."""
    *before, last = cut.get("pretokenizers") or [cut]
    prefixed = last.get("add_prefix_space", True)
    if last.get("type") == "ByteLevel":
        if not before and last.get("use_regex", True):
            return GPT2, prefixed
        if len(before) == 1 and not last.get("use_regex", True) and not prefixed:
            split, pattern = before[0], before[0].get("pattern", {}).get("Regex")
            if (split.get("type"), split.get("behavior"), split.get("invert")) == (
                    "Split", "Isolated", False) and pattern:
                return pattern, False
    refuse(path, "pre_tokenizer", cut)


def added_tokens(facts, path):
    """{text: id} of a tokenizer.json's added tokens, if all of them are taken as they are."""
    added = {token["content"]: token["id"] for token in facts.get("added_tokens") or ()}
    vocab = facts["model"].get("vocab") or {}
    for token in facts.get("added_tokens") or ():
        for name in ("lstrip", "rstrip", "single_word"):
            if token.get(name):
                refuse(path, f"{name} for the added token {token['content']!r}", True)
        if token.get("normalized") and facts["normalizer"]:
            refuse(path, f"normalized for the added token {token['content']!r}", True,
                   "add it as a special token")
    for text, i in added.items():
        if any(other != text and other.startswith(text) for other in added):
            refuse(path, "an added token", text, "another one begins like it")
        if vocab.get(text, i) != i:
            refuse(path, "an added token", text, "its model has the same text with another number")
    return added


def ranks_of(model, added, path):
    """{bytes: id} of a BPE whose merges are in the order of the ids, or it stops."""
    byte_of = {letter: byte for byte, letter in letters().items()}
    vocab = {t: i for t, i in sorted(model["vocab"].items(), key=lambda item: item[1])
             if added.get(t) != i}
    if any(letter not in byte_of for token in vocab for letter in token):
        stop(f"{path} has tokens that are not spelled in bytes: only byte-level BPE can be used")
    missing = [letter for letter in byte_of if letter not in vocab]
    if PAD in added and list(map(byte_of.get, missing)) == [0xFF]:  # see `pad_of`
        vocab = dict(sorted([*vocab.items(), (missing.pop(), added.pop(PAD))], key=lambda x: x[1]))
    if missing:
        stop(f"{path} has no token for {len(missing)} of the 256 bytes, such as {missing[0]!r}")
    ranks = {bytes(byte_of[letter] for letter in token): i for token, i in vocab.items()}
    if model.get("merges") is None:
        if ranks != load_tokenizer("gpt2").vocabulary:
            stop(f"{path} is not GPT-2's vocabulary: its merges.txt must be beside it")
        model["merges"] = merges(vocab)
    pairs = model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair
                               for pair in model["merges"]]
    numbers = [vocab.get(first + second, -1) for first, second in pairs]
    # GPT-2's own are known to be what `merges` finds, which takes seconds
    if numbers != sorted(numbers) or digest(pairs) != GPT2_MERGES and pairs != merges(vocab):
        stop(f"{path} merges its tokens in another order than that of their numbers, or in more "
             "ways than one: it cannot be used")
    odd = sorted(set(vocab.values()) - set(numbers) - {vocab[letter] for letter in byte_of})
    if odd and not model.get("ignore_merges"):
        stop(f"{path} has {len(odd)} tokens that no merge makes, the first of number {odd[0]}: it "
             "cannot be used")
    return ranks


def digest(pairs):
    """What identifies a list of merges."""
    return hashlib.sha256("\n".join(map(" ".join, pairs)).encode()).hexdigest()

"""Tokenizers, all through tiktoken: `gpt2`, a small byte-level BPE trained on given text, or that
of another model (read by tokenizer_json.py)."""
import base64
import collections
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from settings import stop

import tiktoken

from data import records

EOS = "<|endoftext|>"
TEMPLATE = "{prompt}\n"  # how a prompt is put before a model
# Words with the space before them, numbers digit by digit, runs of punctuation, line ends.
PATTERN = r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+|\n|\s+"


SPACES = 2**16  # characters of white space in a row that are tokenised together, at most
RUN = re.compile(r"(?<!\s)\s{%d,}" % (SPACES + 1))


def parts(text):
    """Split a text into parts that are tokenised separately: nearly always just one. Only a run of
    more than SPACES characters of white space is cut: at a million GPT-2's pattern makes tiktoken
    panic."""
    runs = RUN.finditer(text) if len(text) > SPACES else ()
    cuts = [i for run in runs for i in range(run.start() + SPACES, run.end(), SPACES)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]


def indent(text):
    """A space before each line that is not empty, so that a word is the same token at the start of
    a line as within it: a small model need not learn that "Anna" and " Anna" are one name."""
    return re.sub(r"(?m)^(?=[^\n])", " ", text)


def dedent(text):
    """The inverse of `indent`."""
    return re.sub(r"(?m)^ ", "", text)


@dataclass(frozen=True)
class Rules:
    """What a tokenizer does besides merging bytes."""
    indented: bool = False  # a space before each line, see `indent`
    prefixed: bool = False  # a space before each text that begins with none (add_prefix_space)
    eos: str = EOS  # the token that ends a text; a text that spells it is text
    added: tuple = ()  # tokens that a text does spell, such as <|user|>


class Tokenizer:
    """encode(text) -> ids, decode(ids) -> text, and `eos`, a token that text never encodes to.

    source: the bytes of the vocabulary file, by default one trained here, on indented text; None
    for gpt2. template: the prompt format of the model it belongs to; checkpoints store it.
    """

    template = TEMPLATE

    def __init__(self, name, encoding, source=None, rules=None):
        self.name, self.encoding, self.source = name, encoding, source
        self.rules = rules or Rules(indented=source is not None)
        self.eos, self.size = encoding.encode_single_token(self.rules.eos), encoding.n_vocab
        self.special = {text: encoding.encode_single_token(text)  # EOS and all added tokens
                        for text in sorted(encoding.special_tokens_set)}
        self.vocabulary = {}  # bytes -> id, without the special tokens
        for i in set(range(self.size)) - set(self.special.values()):
            try:
                self.vocabulary[encoding.decode_single_token_bytes(i)] = i
            except KeyError:
                pass  # no token has this number
        self.known = {*self.vocabulary.values(), *self.special.values()}
        self.heard = dict(allowed_special=set(self.rules.added), disallowed_special=()
                          ) if self.rules.added else {}

    def prepare(self, text):
        """A text as it is encoded; what stands between two added tokens is a text of its own."""
        pieces = [text]
        if self.rules.added:
            pieces = re.split(f"({'|'.join(map(re.escape, self.rules.added))})", text)
        if self.rules.indented:
            pieces[::2] = map(indent, pieces[::2])
        if self.rules.prefixed:
            pieces[::2] = [f" {p}" if p and p[0] != " " else p for p in pieces[::2]]
        return "".join(pieces)

    def encode(self, text):
        # tiktoken's `ordinary` functions take every text as text, "<|endoftext|>", too
        encode = self.encoding.encode if self.heard else self.encoding.encode_ordinary
        return [i for part in parts(self.prepare(text)) for i in encode(part, **self.heard)]

    def decode(self, ids):
        text = self.encoding.decode([i for i in ids if i in self.known])
        return dedent(text) if self.rules.indented else text

    @property
    def suffix(self):
        """Of the file that holds `source`."""
        return ".tiktoken" if self.rules == Rules(indented=True) else ".bpe"

    @property
    def fingerprint(self):
        """The same for two tokenizers only if their ids mean the same, whatever their files' names.
        """
        return hashlib.sha256(self.source or self.name.encode()).hexdigest()[:16]


def template(prompt, form=TEMPLATE):
    """How every stage, and chat.py, formats a prompt for a model."""
    return form.replace("{prompt}", prompt.rstrip())


def encode_prompt(tokenizer, prompt):
    """The ids of a prompt in the template of the model's checkpoint."""
    return tokenizer.encode(template(prompt, tokenizer.template))


# tiktoken stores each file that it downloads under the sha1 of its URL.
GPT2_FILES = ("put vocab.bpe and encoder.json of https://openaipublic.blob.core.windows.net/gpt-2/"
              "encodings/main into the folder that TIKTOKEN_CACHE_DIR names, under the names "
              "6d1cbeee0f20b3d9449abfede4726ed8212e3aee and "
              "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6")


BYTES = {bytes([b]) for b in range(256)}


def load_tokenizer(name, folder="."):
    """`gpt2` (tiktoken fetches it once), or a file: .tiktoken in tiktoken's own format, or .bpe as
    `packed` writes it."""
    if name == "gpt2":
        try:
            return Tokenizer("gpt2", tiktoken.get_encoding("gpt2"))
        except OSError:  # no network, and not fetched before
            stop(f"the gpt2 tokenizer cannot be fetched: {GPT2_FILES}")
    path = Path(folder) / name
    if not path.is_file():
        stop(f"no tokenizer {path}: run `python -m data.toy.world` first, or say --tokenizer=gpt2 "
             "for text of your own (docs/data.md)")
    source = path.read_bytes()
    records.remember(path, source)
    try:
        return (unpacked if path.suffix == ".bpe" else of_tiktoken)(source, str(path))
    except (ValueError, KeyError, TypeError):
        stop(f"{path} is damaged: get it again" if path.suffix == ".bpe" else
             f"{path} is damaged: each line is a token in base64, and its rank")


def of_tiktoken(source, name):
    """The tokenizer of a vocabulary file that was trained here. Raises ValueError."""
    ranks = {base64.b64decode(token): int(rank)
             for token, rank in (line.split() for line in source.splitlines() if line)}
    # EOS takes the next rank, and tiktoken panics at a byte that it does not know.
    if sorted(ranks.values()) != [*range(len(ranks))] or not ranks.keys() >= BYTES:
        stop(f"{name} cannot be used: its ranks are not 0, 1, 2 ... without a gap, or one of the "
             "256 single bytes is no token")
    encoding = tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=ranks,
                                 special_tokens={EOS: len(ranks)})
    return Tokenizer(name, encoding, source)


def packed_tiktoken(ranks):
    """{bytes: rank} as the bytes of a vocabulary file: a line a token, base64 and rank."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank
                    for token, rank in sorted(ranks.items(), key=lambda item: item[1]))


def packed(pattern, ranks, special, rules):
    """A tokenizer of any kind as the bytes of a .bpe file. pattern: the regular expression that
    cuts a text; ranks: {bytes: id}, in the order of the merges; special: {text: id}."""
    tokens = {base64.b64encode(token).decode(): rank for token, rank in ranks.items()}
    return json.dumps({"pattern": pattern, "special": special, **asdict(rules), "ranks": tokens},
                      sort_keys=True).encode()


def unpacked(source, name):
    """The tokenizer of what `packed` made. Raises ValueError, KeyError or TypeError."""
    parts = json.loads(source)
    ranks = {base64.b64decode(token): rank for token, rank in parts.pop("ranks").items()}
    encoding = tiktoken.Encoding(name, pat_str=parts.pop("pattern"), mergeable_ranks=ranks,
                                 special_tokens=parts.pop("special"))
    return Tokenizer(name, encoding, source, Rules(**{**parts, "added": tuple(parts["added"])}))


def train_bpe(text, size):
    """Byte-pair encoding (Sennrich et al. 2016): `size` tokens, the 256 bytes and EOS included.

    Repeatedly merges the most frequent pair of neighbours, counted over distinct words. Ties
    go to the smallest pair, so that the result depends only on the text (the reference of
    Stanford's CS336 takes the greatest; with its rule and its PATTERN the merges are the same).
    Returns the file in tiktoken's format: a line a token, base64 and rank.
    """
    words = collections.Counter(re.findall(PATTERN, indent(text)))
    words = {tuple(bytes([b]) for b in word.encode()): n for word, n in words.items()}
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < size - 1:  # EOS takes the last rank
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs:
            break
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        tokens.append(pair[0] + pair[1])
        words = {merge(word, pair): n for word, n in words.items()}
    return packed_tiktoken({token: i for i, token in enumerate(tokens)})


def merge(word, pair):
    """Replace each occurrence of `pair` in a tuple of tokens by the merged token."""
    if pair[0] not in word:
        return word
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)

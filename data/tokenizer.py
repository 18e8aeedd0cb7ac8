"""Tokenizers, all through tiktoken: `gpt2`, or a small byte-level BPE trained on given text."""
import base64
import collections
import hashlib
import itertools
import re
from pathlib import Path

from settings import stop

import tiktoken

from data import records

EOS = "<|endoftext|>"
TEMPLATE = "{prompt}\n"  # how a prompt is put before a model, see data/batches.py
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


class Tokenizer:
    """encode(text) -> ids, decode(ids) -> text, and `eos`, a token that text never encodes to.

    source: the bytes of a vocabulary file trained here, on indented text; None for gpt2.
    template: the prompt format of the model it belongs to; checkpoints store it.
    """

    template = TEMPLATE

    def __init__(self, name, encoding, source=None):
        self.name, self.encoding, self.source = name, encoding, source
        self.eos, self.size = encoding.eot_token, encoding.n_vocab

    def prepare(self, text):
        return text if self.source is None else indent(text)

    def encode(self, text):
        encode = self.encoding.encode_ordinary  # treats "<|endoftext|>" as plain text
        return [i for part in parts(self.prepare(text)) for i in encode(part)]

    def encode_batch(self, texts):
        """[text] -> [ids], in two threads."""
        cut = [parts(self.prepare(text)) for text in texts]
        every = list(itertools.chain(*cut))
        ids = iter(self.encoding.encode_ordinary_batch(every, num_threads=2))
        return [[i for _ in own for i in next(ids)] for own in cut]

    def decode(self, ids):
        text = self.encoding.decode([i for i in ids if i < self.size])
        return text if self.source is None else dedent(text)

    @property
    def fingerprint(self):
        """The same for two tokenizers only if their ids mean the same, whatever their files' names.
        """
        return hashlib.sha256(self.source or self.name.encode()).hexdigest()[:16]


# tiktoken stores each file that it downloads under the sha1 of its URL.
GPT2_FILES = ("put vocab.bpe and encoder.json of https://openaipublic.blob.core.windows.net/gpt-2/"
              "encodings/main into the folder that TIKTOKEN_CACHE_DIR names, under the names "
              "6d1cbeee0f20b3d9449abfede4726ed8212e3aee and "
              "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6")


BYTES = {bytes([b]) for b in range(256)}


def load_tokenizer(name, folder="."):
    """`gpt2` (tiktoken fetches it once), or a file in tiktoken's own format."""
    if name == "gpt2":
        try:
            return Tokenizer("gpt2", tiktoken.get_encoding("gpt2"))
        except OSError:  # no network, and not fetched before
            stop(f"the gpt2 tokenizer cannot be fetched: {GPT2_FILES}")
    path = Path(folder) / name
    if not path.exists():
        stop(f"no tokenizer {path}: run `python -m data.toy.world` first, or say --tokenizer=gpt2 "
             "for text of your own (docs/data.md)")
    source = path.read_bytes()
    records.remember(path, source)
    try:
        ranks = {base64.b64decode(token): int(rank)
                 for token, rank in (line.split() for line in source.splitlines() if line)}
    except ValueError:
        stop(f"{path} is damaged: each line is a token in base64, and its rank")
    # EOS takes the next rank, and tiktoken panics at a byte that it does not know.
    if sorted(ranks.values()) != [*range(len(ranks))] or not ranks.keys() >= BYTES:
        stop(f"{path} cannot be used: its ranks are not 0, 1, 2 ... without a gap, or one of the "
             "256 single bytes is no token")
    encoding = tiktoken.Encoding(str(path), pat_str=PATTERN, mergeable_ranks=ranks,
                                 special_tokens={EOS: len(ranks)})
    return Tokenizer(str(path), encoding, source)


def train_bpe(text, size):
    """Byte-pair encoding (Sennrich et al. 2016): `size` tokens, the 256 bytes and EOS included.

    Repeatedly merges the most frequent pair of neighbours, counted over distinct words. Ties
    go to the smallest pair, so that the result depends only on the text. Returns the file
    in tiktoken's format: a line a token, base64 and rank.
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
    lines = [base64.b64encode(t) + b" %d" % i for i, t in enumerate(tokens)]
    return b"\n".join(lines) + b"\n"


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

"""Records as token ids: demonstrations and their loss mask, rankings, text."""
import bisect
import itertools
from pathlib import Path

from settings import stop  # before torch

import numpy as np
import torch

from data import records, shards
from data.tokenizer import encode_prompt
from kernels.noise import narrow


def encode_response(tokenizer, text, ended=True):
    return tokenizer.encode(text) + [tokenizer.eos] * ended


class Cut:
    """What --too_long does with prompts that are too long: `drop` leaves them out, `keep_end` and
    `keep_beginning` cut them. Counts both."""
    WAYS = ("drop", "keep_end", "keep_beginning")

    def __init__(self, way="drop"):
        if way not in self.WAYS:
            stop(f"--too_long={way}: expected one of {', '.join(self.WAYS)}")
        self.way, self.dropped, self.cut = way, 0, 0

    def __call__(self, prompt, room):
        """The ids of a prompt, cut to `room` tokens if needed; [] if it is dropped. The template's
        line end, its last token, stays; a cut prompt has at least one more token."""
        if 0 < len(prompt) <= room:
            return prompt
        if self.way == "drop" or not prompt or room < 2:
            self.dropped += 1
            return []
        self.cut += 1
        return prompt[-room:] if self.way == "keep_end" else prompt[: room - 1] + prompt[-1:]


def fitting(prompts, room, cut=None):
    """The prompts of at most `room` tokens, after cutting, and how many were dropped. Stops if none
    is left. The room is that of the smallest context of all models that read the prompts."""
    cut = cut or Cut()
    kept = [p for p in (cut(p, room) for p in prompts) if p]
    if not kept and room < 1:
        stop("--max_new_tokens leaves no room for a prompt in the smallest context of the models: "
             "lower it")
    if not kept:
        stop(f"none of {len(prompts)} prompts has 1 to {room} tokens, the room that "
             "--max_new_tokens leaves in the smallest context of the models")
    return kept, len(prompts) - len(kept)


def read_prompts(path, tokenizer, models, s, tell=print):
    """The ids of a file's prompts that leave room for --max_new_tokens in the contexts of all
    models that read both. Prints how many are dropped or cut; stops if none is left."""
    every = [encode_prompt(tokenizer, r["prompt"]) for r in records.read(path, "prompt")]
    room, cut = min(m.config.block_size for m in models) - s.max_new_tokens, Cut(s.too_long)
    kept, _ = fitting(every, room, cut)
    for n, fate in ((cut.dropped, "dropped"), (cut.cut, "cut")):
        if n:
            tell(f"{path}: {n} of {len(every)} prompts are {fate}: longer than the {room} tokens "
                 f"that --max_new_tokens={s.max_new_tokens} leaves in the smallest context")
    return kept


def demonstration_rows(tokenizer, demonstrations, block_size, cut=None):
    """Demonstrations as (ids, prompt length); those that do not fit the context are dropped, or
    their prompts are cut.

        ids    p p p r r E        loss on r, r and E only
    """
    rows, cut = [], cut or Cut()
    for r in demonstrations:
        response = encode_response(tokenizer, r["response"])
        prompt = cut(encode_prompt(tokenizer, r["prompt"]), block_size - len(response))
        if prompt:
            rows.append((prompt + response, len(prompt)))
    return rows


def read_demonstrations(s, split, tokenizer, block_size, tell=print):
    """The demonstrations of --data as `demonstration_rows`. Prints how many are dropped or cut;
    stops if none is left to train on."""
    path, needed = f"{s.data}/demonstrations_{split}.jsonl", split == "train"
    raw, cut = records.read(path, "demonstration", needed=needed), Cut(s.too_long)
    rows = demonstration_rows(tokenizer, raw, block_size, cut)
    for n, fate in ((cut.dropped, "dropped"), (cut.cut, "cut in their prompts")):
        if n:
            tell(f"{path}: {n} of {len(raw)} demonstrations are {fate}: longer than the context of "
                 f"{block_size} tokens")
    if needed and not rows:
        stop(f"{path}: no demonstration fits the context of {block_size} tokens: see --too_long")
    return rows


def encode_ranking(tokenizer, ranking, block_size, cut=None):
    """A ranking record -> ([ids of each completion that fits], its pairs).

    cut: shortens the prompt, the same for all completions, so that the longest of them fits.
    """
    prompt = encode_prompt(tokenizer, ranking["prompt"])
    responses = [encode_response(tokenizer, c["text"], c.get("ended", True))
                 for c in ranking["completions"]]
    rows, ranks = [], []
    if cut:
        prompt = cut(prompt, block_size - max(map(len, responses))) or prompt
    for response, rank in zip(responses, ranking["ranks"]):
        if response and len(prompt) + len(response) <= block_size:
            rows.append(prompt + response)
            ranks.append(rank)
    return rows, records.untied_pairs(ranks)


def read_rankings(path, tokenizer, block_size, too_long="drop", tell=print, needed=True):
    """The rankings of a file that have a pair to learn from, encoded. Prints how many are dropped
    or cut; stops if none is left, unless they are not needed."""
    raw = records.read(path, "ranking", "python -m labels.sample && python -m labels.simulated",
                       needed)
    cut = Cut(too_long)
    encoded = [encode_ranking(tokenizer, r, block_size, cut) for r in raw]
    if cut.cut:
        tell(f"{path}: {cut.cut} of {len(raw)} prompts are cut: with their longest completion they "
             f"do not fit the context of {block_size} tokens")
    usable = [(rows, pairs) for rows, pairs in encoded if pairs]
    every = sum(len(r["completions"]) for r in raw)
    if (long := every - sum(len(rows) for rows, _ in encoded)) > 0:
        tell(f"{path}: {long} of {every} completions are dropped: longer than the context of "
             f"{block_size} tokens, or nothing at all")
    if len(usable) < len(raw):
        tell(f"{path}: {len(raw) - len(usable)} of {len(raw)} rankings have no pair to learn from "
             "(all tied, or too long)")
    if needed and not usable:
        stop(f"{path}: no ranking with an untied pair that fits the context")
    return usable


class TextRows:
    """Documents as rows of up to T tokens, with EOS after each document, several to a row.

    A document goes into the fullest open row that has room for it, so that most rows are full and
    no document loses its beginning; one longer than T is cut into pieces. Rows are not filled up
    with pads, as these would count as text. A row of one token is left out: nothing comes before
    it to predict it from.
    """

    OPEN = 64  # rows that still have room for a document

    def __init__(self, tokenizer, texts, T):
        rows, open_rows = [], []
        for document in map(tokenizer.encode, texts):
            document = [*document, tokenizer.eos]
            for i in range(0, len(document), T):
                piece = document[i : i + T]
                row = max((r for r in open_rows if len(r) + len(piece) <= T), key=len, default=None)
                if row is None:
                    if len(open_rows) == self.OPEN:
                        open_rows.remove(max(open_rows, key=len))
                    row = []
                    rows.append(row)
                    open_rows.append(row)
                row += piece
        rows = [row for row in rows if len(row) > 1]
        self.ends = np.cumsum([0, *map(len, rows)])
        self.ids = np.fromiter(itertools.chain.from_iterable(rows), shards.dtype_of(tokenizer),
                               self.ends[-1])
        self.tokens = int(self.ends[-1])  # of all rows together

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, i):
        """Row i as a list of ids."""
        return self.ids[self.ends[i] : self.ends[i + 1]].tolist()


class ShardRows:
    """The shards of data/shards.py as rows of T tokens, each read from disk when it is asked for.

    A row is the next T tokens of the stream, across the ends of documents and shards; only the
    last, incomplete one is left out. TextRows does not cut documents, since the toy's are shorter
    than a row. Most web pages and books are longer: they would be cut anyway, and packing whole
    ones would need the ends of all documents in memory.
    """

    def __init__(self, folder, split, tokenizer, T):
        path = Path(folder) / shards.INDEX
        index = shards.index_of(path)
        records.remember(path, path.read_bytes())  # contains the checksums of all shards
        entries = [shard[split] for shard in index["shards"] if split in shard]
        if index["fingerprint"] != tokenizer.fingerprint:
            stop(f"{folder}: its shards are of the tokenizer {index['tokenizer']}, the model's is "
                 f"{tokenizer.name}: run `python -m data.shards --tokenizer=...` with the model's")
        if index["next"]["file"] < len(index["files"]):
            stop(f"{folder}: its shards are not complete: run the same `python -m data.shards` "
                 "again, it goes on where it stopped")
        if not entries:
            stop(f"{folder}: its shards have no {split} split: run `python -m data.shards` with "
                 "another --split_valid")
        self.parts = [self.part(Path(folder) / e["file"], index["dtype"], e["tokens"])
                      for e in entries]
        self.ends = list(itertools.accumulate(e["tokens"] for e in entries))
        self.T = min(T, self.ends[-1])
        self.tokens = len(self) * self.T  # of all rows together

    @staticmethod
    def part(path, dtype, tokens):
        """The tokens of one file, memory-mapped: only what is used is read."""
        if not path.exists() or path.stat().st_size != tokens * np.dtype(dtype).itemsize:
            stop(f"{path} is missing or has not its {tokens:,} tokens: run `python -m data.shards` "
                 "again")
        return np.memmap(path, dtype, "r")

    def __len__(self):
        return self.ends[-1] // self.T

    def __getitem__(self, i):
        """Row i as a list of ids."""
        row = []
        while len(row) < self.T:
            at = i * self.T + len(row)
            k = bisect.bisect(self.ends, at)
            start = at - self.ends[k] + len(self.parts[k])
            row += self.parts[k][start : start + self.T - len(row)].tolist()
        return row


def text_rows_of(folder, split, tokenizer, T):
    """The text of a folder as rows of up to T tokens: its shards, or else text_{split}.jsonl."""
    path, index = Path(folder) / f"text_{split}.jsonl", Path(folder) / shards.INDEX
    needed = split == "train"
    if not index.exists():
        rows = TextRows(tokenizer, [r["text"] for r in records.read(path, "text", needed=needed)],
                        T)
        if needed and not len(rows):
            stop(f"{path} has no text: all its documents are empty")
        return rows
    if path.exists():
        stop(f"which text? There are {path} and {index}: move one of them away")
    return ShardRows(folder, split, tokenizer, T)


class WithoutPrompt:
    """Text rows in the form of demonstrations, (ids, prompt length): the first token, which
    has nothing before it, is the prompt. Each row is read when it is used."""

    def __init__(self, text):
        self.text = text

    def __len__(self):
        return len(self.text)

    def __getitem__(self, i):
        return self.text[i], 1


def response_mask(prompt_lengths, lengths, T):
    """[B, T] bool: the tokens of the response, EOS among them (see Samples.mask)."""
    t = torch.arange(T)
    return (t >= prompt_lengths[:, None]) & (t < lengths[:, None])


def order(n, seed, epoch):
    """A permutation of 0..n-1 for this epoch, the same on every rank and machine.

    An array takes 8 bytes a row, a list 36: text in shards has millions of rows.
    """
    generator = torch.Generator().manual_seed(narrow(seed) * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator).numpy()


def pad(rows, value=0):
    """Lists of ids -> ([B, T] padded on the right, lengths [B])."""
    lengths = torch.tensor([len(r) for r in rows])
    ids = torch.full((len(rows), int(lengths.max())), value, dtype=torch.long)
    for out, row in zip(ids, rows):
        out[: len(row)] = torch.as_tensor(row)
    return ids, lengths


def pad_and_mask(rows, device):
    """Rows (ids, prompt length) -> ids [B, T], mask [B, T] of the tokens that carry loss, both on
    the device. The first token of a row carries none, whatever its prompt length: nothing comes
    before it."""
    ids, lengths = pad([ids for ids, _ in rows])
    mask = response_mask(torch.tensor([max(1, n) for _, n in rows]), lengths, ids.size(1))
    return ids.to(device), mask.to(device)

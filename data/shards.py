"""Text in, token shards out: `python -m data.shards --file=PATH[,PATH] --out=out/owt`.

For text that is too long to tokenise at the start of every run, or to hold in memory. Reads .txt
files, JSON lines {"text"} and folders of them, .gz or not (OpenWebText, FineWeb), and writes

    text_train_00000.bin ...  token ids, uint16 or uint32, EOS after each document
    text_valid_00000.bin ...  the same, of the documents that are held out
    text_shards.json          the index: the tokenizer, and each file's tokens, documents and crc32

which sft.py and ppo.py read instead of text_{train,valid}.jsonl. This process cuts the text into
chunks of about 1 MB, workers tokenise them, and this process writes the results in the order of the
text. Only the current chunks are in memory, however long the text.
A shard is a section of the text. When its two files are complete, a new index replaces the old one:
it names them and says where the next shard begins. The shard counts from this rename on. If it is
killed at any moment, the same command continues after the last shard that counts, and ends with the
same bytes; the number of workers does not change them either.
"""
import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from settings import parse, stop  # before torch

import numpy as np
from tqdm import tqdm

from data import public, records
from data.files import decode, find_files, parse_json, read_raw
from data.formats.records import Bad, take
from data.tokenizer import EOS, load_tokenizer

HINT = "python -m data.shards"
INDEX, SPLITS = "text_shards.json", ("train", "valid")
FIXED = ("field", "split_valid", "document", "separator", "shard_tokens", "chunk")  # shape shards


@dataclass
class Settings:
    """Tokenises text into shards. If stopped or killed, the same command continues."""
    file: str = ""  # .txt or JSON lines, .gz or not; several with commas between, or a folder
    out: str = "out/shards"  # folder to write; other files that are there stay
    tokenizer: str = "gpt2"  # gpt2, or a file such as out/toy/tokenizer.tiktoken
    field: str = "text"  # of a JSON line that holds the document
    split_valid: float = 0.0005  # share of held-out documents, chosen by a hash of their text
    document: int = 4000  # characters of a document in a .txt file, see data/public.py
    separator: str = ""  # of documents in a text, as TinyStories has <|endoftext|>
    shard_tokens: int = 100_000_000  # a shard ends with the chunk that brings it to this many
    chunk: int = 2**20  # bytes that a worker gets at a time
    workers: int = 2  # processes that tokenise
    max_bytes: int = 2**36  # of one file, unpacked: a small .gz can hide a huge file
    max_line: int = 2**24  # bytes of one line, unpacked: it must fit in memory


# ---------------------------------------------------------------------------- text into tokens

def is_prose(path):
    return path.name.removesuffix(".gz").endswith(".txt")


def chunks(files, place, s):
    """(file, line, the bytes from there, the place after them) for all text from `place` on.

    A place is {"file": number, "offset": bytes, "line": number}. A chunk has whole lines of one
    file, and in a .txt file whole paragraphs (or everything up to a separator), unless they are
    longer than two chunks.
    """
    for i in range(place["file"], len(files)):
        first, offset, lines, size = place["line"], place["offset"], [], 0
        for line, raw in read_raw(files[i], s.max_bytes, s.max_line, offset, first):
            lines.append(raw)
            size += len(raw)
            if size >= (2 if is_prose(files[i]) and not ends(raw, s.separator) else 1) * s.chunk:
                place = {"file": i, "offset": offset + size, "line": line + 1}
                yield files[i], first, b"".join(lines), place
                first, offset, lines, size = line + 1, offset + size, [], 0
        place = {"file": i + 1, "offset": 0, "line": 1}
        yield files[i], first, b"".join(lines), place


def ends(raw, separator):
    """Whether a document of a .txt file can end with this line: it is blank, or ends with the
    separator where there is one."""
    mark = separator.strip().encode()  # lines end in white space of their own
    return raw.rstrip().endswith(mark) if mark else not raw.strip()


def documents(path, first, body, s):
    """The documents in a chunk's bytes, which begin in line `first` of a file."""
    lines = enumerate(body.split(b"\n"), first)
    if is_prose(path):
        yield from public.documents(
            "\n".join(decode(raw, path, number) for number, raw in lines), s.document,
            s.separator)
        return
    for number, raw in lines:
        if raw.strip():
            row = parse_json(decode(raw, path, number).rstrip(), path, number)
            try:
                text = take(row, s.field)
                yield from text.split(s.separator) if s.separator else [text]
            except Bad as e:
                stop(f"{path}:{number}: {e}")


def tokenise(tokenizer, path, first, body, s):
    """A chunk -> {split: (ids of its documents, each ended by EOS; their number)}, and a Counter of
    empty documents and of those that contain EOS as text."""
    ids, count = {split: [] for split in SPLITS}, collections.Counter()
    notes = collections.Counter()
    for text in documents(path, first, body, s):
        if text.strip():
            split = "valid" if public.chance(text) < s.split_valid else "train"
            ids[split] += tokenizer.encode(text)
            ids[split].append(tokenizer.eos)
            count[split] += 1
            notes["typed"] += EOS in text
        else:
            notes["empty"] += 1
    return {k: (np.array(v, dtype_of(tokenizer)), count[k]) for k, v in ids.items()}, notes


def dtype_of(tokenizer):
    """The smallest type of ids."""
    return np.dtype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)


# ------------------------------------------------------------------------------------- workers

@contextlib.contextmanager
def ctrl_c_noted():
    """Ctrl-C sets an event, at which `in_order` stops. As an exception it could come while a worker
    starts or the pool closes, which could then wait for ever. After the first, Ctrl-C is ignored:
    the program is ending, and a second one would change its exit code."""
    noted, before = threading.Event(), signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a background job ignores it, and still does
        signal.signal(signal.SIGINT, lambda *_: noted.set())
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if noted.is_set() else before)


@contextlib.contextmanager
def ctrl_c_blocked():
    """Processes started within have Ctrl-C blocked from the beginning: a terminal sends it to all
    processes, and a worker that is still importing would print a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(name):
    """Load the tokenizer once, leave Ctrl-C to the parent, and end if the parent is killed."""
    global worker_tokenizer
    worker_tokenizer = load_tokenizer(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def work(*chunk):
    return tokenise(worker_tokenizer, *chunk)


def in_order(pool, tasks, ahead, s, noted=None):
    """(the place after it, *what `tokenise` returns) for each chunk, in the order of the text.

    At most `ahead` chunks are in progress: reading waits for the workers, and they for writing.
    noted: an event after which it raises KeyboardInterrupt.
    """
    waiting = collections.deque()
    for path, first, body, place in tasks:
        if noted and noted.is_set():
            raise KeyboardInterrupt
        with ctrl_c_blocked():  # the pool starts its workers when it is given work
            waiting.append((place, pool.submit(work, path, first, body, s)))
        if len(waiting) == ahead:
            place, result = waiting.popleft()
            yield place, *result.result()
    for place, result in waiting:
        yield place, *result.result()


# --------------------------------------------------------------------------- tokens into files

def write_shard(out, number, results, s, progress):
    """Write a shard from the next results. Returns ({split: its entry in the index}, the place
    after it, a Counter as in `tokenise`). If anything fails, what was written is deleted."""
    entries = {split: {"file": f"text_{split}_{number:05}.bin", "tokens": 0, "documents": 0,
                       "crc32": 0} for split in SPLITS}
    paths = {split: out / f"{entry['file']}.writing" for split, entry in entries.items()}
    notes = collections.Counter()
    try:
        with contextlib.ExitStack() as stack:
            files = {k: stack.enter_context(open(path, "wb")) for k, path in paths.items()}
            for place, found, own in results:
                notes += own
                for split, (ids, count) in found.items():
                    entry = entries[split]
                    files[split].write(ids)
                    entry["tokens"] += len(ids)
                    entry["documents"] += count
                    entry["crc32"] = zlib.crc32(ids, entry["crc32"])
                    progress(len(ids))
                if sum(entry["tokens"] for entry in entries.values()) >= s.shard_tokens:
                    break
            for file in files.values():
                records.sync(file)
        entries = {k: entry for k, entry in entries.items() if entry["tokens"]}
        for split in entries:  # an empty file could not be mapped into memory
            os.replace(paths[split], paths[split].with_suffix(""))
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)
    return entries, place, notes


def index_of(path):
    """The index of shards in a file, all that is used of it checked."""
    index = records.read_json(path, HINT, shards=list, next=dict, files=list, tokenizer=str,
                              fingerprint=str, dtype=str)
    with records.known_form(path, HINT):
        np.dtype(index["dtype"])
        entries = [entry for shard in index["shards"] for entry in shard.values()]
        numbers = [entry[k] for entry in entries for k in ("tokens", "documents", "crc32")]
        numbers += [index["next"][k] for k in ("file", "offset", "line")]
        numbers += [index["empty"], index.get("typed", 0)]  # older ones have no `typed`
        if wrong := [x for x in numbers if type(x) is not int or x < 0]:
            raise TypeError(f"{wrong[0]!r} is no number of anything")
        for name in [entry["file"] for entry in entries] + [name for name, *_ in index["files"]]:
            Path(name)
    return index


def begin(s, tokenizer, files):
    """The index so far, with its shards checked; or a new one."""
    fresh = {"tokenizer": tokenizer.name, "fingerprint": tokenizer.fingerprint,
             "dtype": dtype_of(tokenizer).name, **{name: getattr(s, name) for name in FIXED},
             # text that was changed after half of it is in shards must not go on
             "files": [[path.name, path.stat().st_size, records.checksum(path)] for path in files],
             "next": {"file": 0, "offset": 0, "line": 1}, "empty": 0, "typed": 0, "shards": []}
    path = Path(s.out) / INDEX
    if not path.exists():
        return fresh
    index = index_of(path)
    # Older indexes have whole paths. Where a text lies, and how that is spelled, does not matter.
    index["files"] = [[Path(name).name, *rest] for name, *rest in index["files"]]
    for key in ("fingerprint", "files", *FIXED):
        if index.get(key, "") != fresh[key]:
            stop(f"{path} is of another run, its {key!r} differs: choose another --out, or delete "
                 "it to begin again")
    for entry in (entry for shard in index["shards"] for entry in shard.values()):
        file = path.with_name(entry["file"])
        if not file.exists() or zlib.crc32(np.memmap(file, mode="r")) != entry["crc32"]:
            stop(f"{file} is missing or damaged: delete {path} to begin again")
    return index


def total(index, fact, splits=SPLITS):
    return sum(shard[k][fact] for shard in index["shards"] for k in splits if k in shard)


def build(settings):
    """Tokenise what is not in shards yet, and put it there. Returns (index, tokens a second)."""
    s = settings
    if not s.file:
        stop("give --file=PATH: .txt files, JSON lines {\"text\"}, or a folder of them")
    tokenizer, out = load_tokenizer(s.tokenizer), Path(s.out)
    files = [path for path in find_files(s.file) if path.name != INDEX]
    made = not out.exists()
    records.make_folder(out)
    records.claim(out)
    # Spawned, not forked: workers start the same way on every system.
    spawn = multiprocessing.get_context("spawn")
    try:
        index = begin(s, tokenizer, files)
        before, started = total(index, "tokens"), time.time()
        with (ctrl_c_noted() as noted,
              ProcessPoolExecutor(s.workers, spawn, start_worker, (s.tokenizer,)) as pool,
              tqdm(desc=s.out, initial=before, unit="tok", unit_scale=True) as bar):
            tasks = chunks(files, index["next"], s)
            results = in_order(pool, tasks, 2 * s.workers, s, noted)
            while index["next"]["file"] < len(files):
                shard, place, notes = write_shard(out, len(index["shards"]), results, s, bar.update)
                index["shards"] += [shard] if shard else []
                index["next"] = place
                index.update({k: index.get(k, 0) + notes[k] for k in ("empty", "typed")})
                if not index["shards"]:
                    stop(f"{s.file}: no document, or none that is not empty")
                records.write_json(out / INDEX, index)  # now the shard counts
    finally:
        records.release(out)
        if made and not any(out.iterdir()):
            out.rmdir()
    return index, (total(index, "tokens") - before) / (time.time() - started)


def main():
    s = parse(Settings)
    try:
        index, rate = build(s)
    except KeyboardInterrupt:
        print("error: interrupted: the same command goes on behind the last whole shard",
              file=sys.stderr)
        raise SystemExit(130) from None
    except (BrokenProcessPool, OSError) as e:  # no memory for a worker, a full disk ...
        why = f"{e.filename or s.out}: {e.strerror}" if getattr(e, "strerror", None) else e
        stop(f"{why}: the same command goes on behind the last whole shard")
    train, valid = (total(index, "tokens", (split,)) for split in SPLITS)
    print(f"{s.out}: {train:,} tokens to train on and {valid:,} held out, of "
          f"{total(index, 'documents'):,} documents in {len(index['shards'])} shards; "
          f"{index['empty']:,} empty documents left out\n"
          + (f"{index['typed']:,} documents have {EOS} in them. It stays text, of several tokens; "
             f"--separator='{EOS}' cuts there\n" if index.get("typed") else "")
          + (f"{rate:,.0f} tokens/s with {s.workers} workers" if rate else "it was all there"))


if __name__ == "__main__":
    main()

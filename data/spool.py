"""What data.public keeps on the disk while rows come in: its memory does not grow with them.

    building    a folder for files that are not whole yet, beside those that they will replace
    NewRecords  records of all kinds and splits, each written when it comes
    Known       what is known of all rows so far, and rows that wait for others: a database

A run that is killed leaves the folder, which the next one empties; no file of records is half.
"""
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sqlite3
from pathlib import Path

from data import records
from data.tokenizer import EOS

SPLITS = ("train", "valid", "test")


@contextlib.contextmanager
def building(out):
    """An empty folder in `out`, which goes at the end, however that comes; so do folders that were
    made for it and hold nothing else. Stops if another program is building there."""
    folder = Path(out) / "public.writing"
    made = [path for path in (Path(out), *Path(out).parents) if not path.exists()]
    records.make_folder(folder)
    records.claim(folder)
    try:
        for path in folder.iterdir():  # of a run that was killed
            path.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        records.release(folder)
        for path in made:
            with contextlib.suppress(OSError):  # there is something in it
                path.rmdir()


class NewRecords:
    """Records in a folder of unfinished files. typed: how many have EOS as text in them."""

    def __init__(self, folder):
        self.folder, self.files, self.typed = Path(folder), {}, 0
        self.kept = {}  # kind -> {split: how many}

    def add(self, kind, split, record):
        if kind not in self.kept:
            self.kept[kind] = dict.fromkeys(SPLITS, 0)
            for each in SPLITS:  # without a suffix: such a file is never taken for rows to read
                self.files[kind, each] = open(self.folder / f"{kind}_{each}", "w",
                                              encoding="utf-8")
        # further fields may be of any type that a table has
        line = json.dumps(records.numbers(record), ensure_ascii=False, default=str)
        self.files[kind, split].write(f"{line}\n")
        self.kept[kind][split] += 1
        self.typed += EOS in line

    def close(self):
        for file in self.files.values():
            file.close()

    def publish(self, out):
        """Put the files, now whole, into the folder `out`. Returns the kinds that were there."""
        self.close()
        there = [kind for kind in self.kept if Path(out, f"{kind}_train.jsonl").exists()]
        for kind, split in self.files:
            os.replace(self.folder / f"{kind}_{split}", Path(out, f"{kind}_{split}.jsonl"))
        return there


class Known:
    """Small whole numbers by name, like a dict, and rows that wait for others. A name is a tuple of
    texts.

    At most `memory` bytes of it are in memory. A name is kept as a hash of 16 bytes: that two of
    10^9 names share one has a probability of 10^-21. path: of its file; by default a temporary one.
    """

    def __init__(self, path="", memory=2**24):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.executescript(f"""
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            PRAGMA cache_size = -{memory // 1024};
            CREATE TABLE fact (name BLOB PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
            CREATE TABLE waiting (number INTEGER PRIMARY KEY, first INTEGER, row TEXT NOT NULL);
            CREATE INDEX together ON waiting (first, number);
            BEGIN""")  # never committed: nobody reads the file later

    @staticmethod
    def digest(name):
        return hashlib.blake2b(json.dumps(name).encode(), digest_size=16).digest()

    def get(self, name, default=None):
        found = self.db.execute("SELECT value FROM fact WHERE name = ?",
                                (self.digest(name),)).fetchone()
        return found[0] if found else default

    def __setitem__(self, name, value):
        self.db.execute("REPLACE INTO fact VALUES (?, ?)", (self.digest(name), value))

    def setdefault(self, name, value):
        if (found := self.get(name)) is None:
            self[name] = found = value
        return found

    def wait(self, name, number, row):
        """Keep a row, any JSON, for the others of its name. number: of the row; it grows."""
        text = json.dumps(row, default=lambda x: {"type": type(x).__name__})  # no loader takes such
        self.db.execute("INSERT INTO waiting VALUES (?, ?, ?)",
                        (number, self.setdefault(("waiting", *name), number), text))

    def groups(self):
        """The rows that wait, [those of one name], in the order in which the names came."""
        rows = self.db.execute("SELECT first, row FROM waiting ORDER BY first, number")
        for _, group in itertools.groupby(rows, lambda pair: pair[0]):
            yield [json.loads(row) for _, row in group]

    def close(self):
        self.db.close()

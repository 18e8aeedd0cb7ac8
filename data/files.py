"""Files and datasets of other people, as rows: text, JSON, CSV, and what the library `datasets`
reads.

    find_files    paths and folders -> the files to read
    read_rows     (place, row) of a file, packed or not
    stream        (place, row) of a dataset of the Hugging Face hub, without downloading it whole
"""
import codecs
import contextlib
import csv
import gzip
import json
import os
import re
import zlib
from pathlib import Path

from settings import extra, stop

from data import hub

TABLES = (".parquet", ".arrow")  # read by the library `datasets` (an extra)
SUFFIXES = tuple(kind + gz for kind in (".txt", ".json", ".jsonl") for gz in ("", ".gz"))
WITH_TABLES = (*SUFFIXES, ".csv", ".csv.gz", *TABLES)
# Columns of a .csv file that are numbers, or true and false. All others are texts: "4", "None".
NUMBERS = {"label", "labels", "helpfulness", "better_response_id", "is_response_0_safe",
           "is_response_1_safe"}


def find_files(names, suffixes=SUFFIXES):
    """Files or folders, separated by commas (or one whose name has a comma) -> paths; of a folder
    all files with `suffixes`."""
    out = []
    for path in map(Path, [names] if os.path.exists(names) else filter(None, names.split(","))):
        found = [path] if path.is_file() else sorted(
            p for p in path.rglob("*") if p.is_file() and p.name.endswith(suffixes))
        if not found:
            stop(f"no {', '.join(suffixes)} file in {path}" if path.is_dir() else f"no file {path}")
        out += found
    if not out:
        stop(f"--file={names} names no file")
    return list({path.resolve(): path for path in out}.values())  # no file is read twice


def read_raw(path, max_bytes, max_line, offset=0, number=1):
    """(number, bytes) of a file's lines, line ends kept, .gz unpacked; starts at byte `offset`,
    where line `number` begins. Stops if the file exceeds max_bytes, or a line max_line."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        try:
            file.seek(offset)  # a .gz is unpacked up to here and the result dropped
            left = max_bytes - offset
            # bounded: a single line could fill the memory
            while line := file.readline(min(left, max_line) + 1):
                left -= len(line)
                for size, most, flag in ((max_bytes - left, max_bytes, "max_bytes"),
                                         (len(line), max_line, "max_line")):
                    if size > most:
                        stop(f"{path}:{number}: more than {most:,} bytes unpacked: if you trust "
                             f"the file, raise --{flag}")
                yield number, line
                number += 1
        except (EOFError, gzip.BadGzipFile, zlib.error) as e:
            stop(f"{path}:{number}: damaged .gz: {e}")


def decode(line, path, number):
    """The text of a line, without a byte order mark."""
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        stop(f"{path}:{number}: not UTF-8 at byte {e.start}")


def read_lines(path, max_bytes, max_line):
    """(number, line) of a UTF-8 file, line ends kept; see `read_raw`."""
    for number, line in read_raw(path, max_bytes, max_line):
        yield number, decode(line, path, number)


def parse_json(text, path, number):
    """The value of the JSON text that is line `number` of a file."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as e:
        stop(f"{path}:{number}: not JSON: {e.msg} at column {e.colno}")
    except RecursionError:
        stop(f"{path}:{number}: nested too deep")
    refuse_half_pairs(value, f"{path}:{number}")
    return value


def refuse_half_pairs(value, place):
    """Stop if a JSON value cannot be written, as it has half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        stop(f"{place}: not Unicode: half of a surrogate pair")
    except RecursionError:
        stop(f"{place}: nested too deep")


def read_rows(path, max_bytes, max_line):
    """(place, value): a .txt file is one row; a .json file a list of rows; else one JSON a line, or
    a row of a table. One row is in memory at a time."""
    kind = path.name.removesuffix(".gz")
    if path.suffix in TABLES:
        yield from read_table(path.suffix[1:], str(path), data_files=str(path))
    elif kind.endswith(".csv"):
        yield from read_csv(path, max_bytes, max_line)
    elif kind.endswith(".txt"):
        lines = read_lines(path, max_bytes, max_line)
        yield f"{path}:1", {"text": "".join(line for _, line in lines)}
    elif is_list(path, kind.endswith(".json")):
        yield from List(path, max_bytes, max_line)
    else:
        for number, line in read_lines(path, max_bytes, max_line):
            if line.strip():
                yield f"{path}:{number}", parse_json(line.rstrip(), path, number)


def read_csv(path, max_bytes, max_line):
    """(place, {column: cell}) of a .csv file whose first line names the columns. A cell is a text
    (see NUMBERS), None where it is empty."""
    csv.field_size_limit(max(max_line, csv.field_size_limit()))
    cells = csv.reader((line for _, line in read_lines(path, max_bytes, max_line)), strict=True)
    try:
        names = next(cells, [])
        for row in filter(None, cells):  # no blank line
            place = f"{path}:{cells.line_num}"
            if len(row) != len(names):
                stop(f"{place}: {len(row)} cells where the first line names {len(names)} columns")
            yield place, {name: parse_json(cell.lower(), path, cells.line_num) if cell and name in
                          NUMBERS else cell or None for name, cell in zip(names, row)}
    except csv.Error as error:
        stop(f"{path}:{cells.line_num}: not CSV: {error}")


def is_list(path, may_go_on):
    """Whether a file is a JSON list of rows: it begins with a bracket, alone on its line unless
    there may be more in it, as a row can be a list."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        with contextlib.suppress(EOFError, gzip.BadGzipFile, zlib.error):  # told when it is read
            while line := file.readline(2**16):
                line = line.removeprefix(codecs.BOM_UTF8).strip()
                if line:
                    return line.startswith(b"[") if may_go_on else line == b"["
    return False


class List:
    """(place, value) of each item of a file that is a JSON list, .gz unpacked.

    text: what was read and is not used yet, from the character `at` on, with the next item as long
    as it is not whole. Its first character is in line `line`, with `column` characters before it.
    """
    BLOCK = 2**20  # bytes read at a time, at least
    SPACE, CLOSE = re.compile(r"[ \t\n\r]*"), 16  # characters: no word or escape of JSON has more

    def __init__(self, path, max_bytes, max_line):
        self.path, self.left, self.most = path, max_bytes, max_line
        self.max_bytes, self.decoder = max_bytes, json.JSONDecoder()
        self.text, self.at, self.line, self.column = "", 0, 1, 0

    def __iter__(self):
        with (gzip.open if self.path.suffix == ".gz" else open)(self.path, "rb") as self.file:
            self.utf8 = codecs.getincrementaldecoder("utf-8-sig")()
            self.expect("[")
            number, sign = 0, "," if self.next() != "]" else self.expect("]")
            while sign == ",":
                number += 1
                place, value = f"{self.path}:item {number}", self.value()
                refuse_half_pairs(value, place)
                yield place, value
                sign = self.expect(",", "]")
            if self.next():
                self.complain("Extra data", self.at)

    def more(self):
        """Read on, as much again as is not used yet. Returns whether there was more."""
        rest, used = self.text[self.at :], self.text[: self.at]
        self.line += used.count("\n")
        self.column = len(used) - used.rfind("\n") - 1 + ("\n" not in used) * self.column
        self.text, self.at = rest, 0
        if len(rest) > self.most:
            stop(f"{self.path}:{self.line}: an item of more than {self.most:,} bytes: if you trust "
                 "the file, raise --max_line")
        try:
            block = self.file.read(max(self.BLOCK, len(rest)))
            self.text += self.utf8.decode(block, not block)
        except (EOFError, gzip.BadGzipFile, zlib.error) as e:
            stop(f"{self.path}:{self.line}: damaged .gz: {e}")
        except UnicodeDecodeError as e:
            before = e.object[: e.start].decode(errors="replace")
            stop(f"{self.path}:{self.line + (rest + before).count(chr(10))}: not UTF-8")
        self.left -= len(block)
        if self.left < 0:
            stop(f"{self.path}:{self.line}: more than {self.max_bytes:,} bytes unpacked: if you "
                 "trust the file, raise --max_bytes")
        return bool(block)

    def next(self):
        """The next character that is no white space, which stays; "" at the end."""
        while True:
            self.at = self.SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def expect(self, *signs):
        """Take the next character, which must be one of these."""
        if (found := self.next()) not in signs:
            self.complain(f"Expecting {' or '.join(map(repr, signs))}", self.at)
        self.at += 1
        return found

    def value(self):
        """Take the value that comes next."""
        self.next()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                far, size = end < len(self.text) - self.CLOSE, end - self.at
                if far or not self.more():  # else a number may go on: 1 with .5 or e-5
                    self.at += size
                    return value
            except json.JSONDecodeError as e:
                size, far = e.pos - self.at, e.pos < len(self.text) - self.CLOSE
                if far and not e.msg.startswith("Unterminated") or not self.more():
                    self.complain(e.msg, self.at + size)
            except RecursionError:
                stop(f"{self.path}:{self.line}: nested too deep")

    def complain(self, what, at):
        """Stop, with the line and the column of a character of the text."""
        before = self.text[:at]
        column = at - before.rfind("\n") + ("\n" not in before) * self.column
        stop(f"{self.path}:{self.line + before.count(chr(10))}: not JSON: {what} at column "
             f"{column}")


def read_table(kind, place, **where):
    """(place, row) through the library `datasets`, a row at a time. kind: of a file, parquet or
    arrow; or a repository of the hub. Stops if it cannot be read."""
    library = extra("datasets", f"reading {place}")
    try:
        rows = library.load_dataset(kind, **{"split": "train", **where}, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{place}:row {number}", row
    except Exception as error:  # of the library, of its file formats, of the network
        said = " ".join(str(error).strip().split("\n")[:2]).strip() or type(error).__name__
        flags = "; --subset names a configuration, --part a split" * place.startswith("hub:")
        stop(f"{place} cannot be read: {said.rstrip('.')}{flags}")


def stream(name, subset, part, revision=""):
    """(place, row) of a dataset of the hub, OWNER/NAME: of its configuration `subset`, if it has
    several, and of its split `part`. revision: a commit, tag or branch; by default the newest."""
    extra("datasets", f"reading hub:{name}")
    try:  # the library would try for half a minute where there is no network
        hub.fetch(name, ["README.md"], "dataset", revision or None)
    except hub.Unavailable as error:
        stop(f"hub:{name} cannot be read ({error}); where there is a network, `hf download {name} "
             "--repo-type=dataset` gets its files: give them here by --name=trl (or the name of "
             "their format) and --file=PATH")
    more = {"name": subset, "revision": revision}
    yield from read_table(name, f"hub:{name}", split=part, **{k: v for k, v in more.items() if v})

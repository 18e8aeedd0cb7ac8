"""Files and datasets of other people, as rows: text, JSON, and what the library `datasets` reads.

    find_files    paths and folders -> the files to read
    read_rows     (place, row) of a file, packed or not
    stream        (place, row) of a dataset of the Hugging Face hub, without downloading it whole
"""
import gzip
import json
import os
import zlib
from pathlib import Path

from settings import extra, stop

from data import hub

TABLES = (".parquet", ".csv", ".arrow")  # read by the library `datasets` (an extra)
SUFFIXES = tuple(kind + gz for kind in (".txt", ".json", ".jsonl") for gz in ("", ".gz"))


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
    """The value of a JSON text that begins in line `number` of a file."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be written
        return value
    except json.JSONDecodeError as e:
        stop(f"{path}:{number + e.lineno - 1}: not JSON: {e.msg} at column {e.colno}")
    except UnicodeEncodeError:
        stop(f"{path}:{number}: not Unicode: half of a surrogate pair")
    except RecursionError:
        stop(f"{path}:{number}: nested too deep")


def read_rows(path, max_bytes, max_line):
    """(place, value): a .txt file is one row; a .json file a list of rows; else one JSON a line, or
    a row of a table."""
    if path.suffix in TABLES:
        yield from read_table(path.suffix[1:], str(path), data_files=str(path))
        return
    lines, kind = read_lines(path, max_bytes, max_line), path.name.removesuffix(".gz")
    if kind.endswith(".txt"):
        yield f"{path}:1", {"text": "".join(line for _, line in lines)}
        return
    first = []
    for number, line in lines:
        if not line.strip():
            continue
        if not first and line.lstrip().startswith("[") and (
                kind.endswith(".json") or line.strip() == "["):  # else a row may be a list
            text = "\n" * (number - 1) + line + "".join(line for _, line in lines)
            for i, value in enumerate(parse_json(text, path, 1), 1):
                yield f"{path}:item {i}", value
            return
        first.append(True)
        yield f"{path}:{number}", parse_json(line.rstrip(), path, number)


def read_table(kind, place, **where):
    """(place, row) through the library `datasets`, a row at a time. kind: of a file, parquet, csv
    or arrow; or a repository of the hub. Stops if it cannot be read."""
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

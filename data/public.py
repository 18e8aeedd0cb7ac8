"""Public datasets in, records out: `python -m data.public --name=hh-rlhf --out=out/hh`.

Downloads the dataset from its publisher into huggingface_hub's cache, or reads --file=PATH in the
original format, .gz or not; then writes those of

    text_{train,valid,test}.jsonl               documents, long files cut at blank lines
    demonstrations_{train,valid,test}.jsonl     of rankings: each prompt with its best completion
    rankings_{train,valid,test}.jsonl
    prompts_{train,valid,test}.jsonl            the prompts of all these, filtered as in section 3.2

that the dataset has (see data/records.py). What is left out is counted by reason. A row is written
before the next one is read, so a dataset may be larger than the memory; the files appear when all
are whole (data/spool.py). --name=hub:OWNER/NAME reads any dataset of the hub whose columns are
known (data/formats) or named by flags: it is never held, or downloaded, whole.
"""
import collections
import contextlib
import hashlib
import itertools
import re
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path

from settings import parse, stop  # before torch

from data import hub, records
from data.files import WITH_TABLES, find_files, read_rows, stream
from data.formats import DATASETS, Bad, recognised
from data.formats.records import (FIELDS, Empty, demonstration, take, trim, trimmed,
                                  with_system)
from data.records import ASSISTANT, HUMAN
from data.spool import SPLITS, Known, NewRecords, building
from data.tokenizer import EOS

OF_PROMPT = ("author", "category", "lang")  # further fields that belong to the prompt
COLUMNS = ("prompt", "response", "chosen", "rejected", "messages", "completions", "ratings",
           "ranks", "system")  # that flags can name


@dataclass
class Settings:
    """Turns a public dataset, downloaded by this program or by you, into this project's records."""
    # files
    name: str = ""  # of the dataset: hh-rlhf, trl ... (empty: prints the list), or hub:OWNER/NAME
    file: str = ""  # to read; several with commas between, or a folder; empty: download it
    out: str = "out/public"  # folder to write; existing records of other kinds stay
    subset: str = ""  # of hub:OWNER/NAME: its configuration, if it has several
    part: str = "train"  # of hub:OWNER/NAME: its split, such as test
    revision: str = ""  # of hub:OWNER/NAME: a commit, tag or branch; empty: the newest
    most: int = 0  # rows to read; 0: all
    # what is used
    split_valid: float = 0.05  # share of the prompts (or documents) in the validation split
    split_test: float = 0.05  # share in the test split
    share: float = 1.0  # share of the prompts (or documents) to use: less for a quick try
    demonstrations: bool = True  # write the best completions of rankings as demonstrations
    prompts: bool = True  # write the prompts of rankings and demonstrations
    prefix: int = 200  # characters: prompts that share this long a beginning are near copies
    cap: int = 200  # prompts of one author at most, where authors are known (section 3.2)
    pii: bool = True  # leave out training prompts with personal data (section 3.2)
    document: int = 4000  # characters of a document at most, if it has blank lines to cut at
    separator: str = ""  # of documents in a text, as TinyStories has <|endoftext|>
    # the columns of --name=trl and hub:OWNER/NAME, where they have other names than these
    prompt: str = ""  # text, or messages
    response: str = ""  # of a demonstration
    chosen: str = ""  # the better of two completions, text or messages
    rejected: str = ""  # the worse
    messages: str = ""  # of a chat
    completions: str = ""  # a list
    ratings: str = ""  # a list: more is better
    ranks: str = ""  # a list: 1 is best
    system: str = ""  # a system message, which stands before the prompt
    # limits
    max_bytes: int = 2**30  # of one file, unpacked: a small .gz can hide a huge file
    max_line: int = 2**28  # of one line, unpacked, or of one item of a list in a .json file

    BOUNDS = {"share": "(0, 1]", "most": "[0, inf)"}

    def problem(self):
        if self.split_valid + self.split_test >= 1:
            return "--split_valid and --split_test: expected shares of less than 1 together"
        on_hub = self.name.startswith("hub:")
        if self.columns and self.name != "trl" and not on_hub:
            return f"--{next(iter(self.columns))}: only --name=trl and hub:... have named columns"
        if on_hub and not re.fullmatch(r"hub:\w[\w.-]*(/\w[\w.-]*)?", self.name):
            return (f"--name={self.name}: expected hub:OWNER/NAME, such as "
                    "hub:trl-lib/ultrafeedback_binarized")
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.name):
            return f"--name={self.name}: a dataset of the hub is --name=hub:{self.name}"
        if on_hub and self.file:
            return f"--file={self.file}: with --name=trl, or the name of its format; not with hub:"
        for name, default in (("subset", ""), ("part", "train"), ("revision", "")):
            if getattr(self, name) != default and not on_hub:
                return f"--{name}: only --name=hub:OWNER/NAME has one"

    @property
    def columns(self):
        """{a column: its name in the dataset} that the flags give."""
        return {name: getattr(self, name) for name in COLUMNS if getattr(self, name)}


NAMES = "give one of these names, and --file=PATH where no file is named or you have it"


def listed(name):
    """A line of the list of datasets."""
    kind, _, where, files = DATASETS[name]
    if files:
        where += ("/" if "://" in where else ": ") + files[0]
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"  --name={name:18} {kind:15} {where}{more}"


def download(name):
    """The paths of a dataset's files in the cache. If they cannot be downloaded, stops and says
    which files to get."""
    _, _, where, files = DATASETS[name]
    paths, commit = [], None
    try:
        for file in files:
            if "://" in where:
                paths.append(hub.fetch_url(f"{where}/{file}", name))
            else:
                paths.append(hub.fetch(where, [file], "dataset", commit))
                if paths[-1] is None:
                    raise hub.Unavailable(f"there is no {file}")
                commit = paths[-1].parents[file.count("/")].name
    except hub.Unavailable as error:
        page = where if "://" in where else hub.page(where, "dataset")
        stop(f"{name} could not be downloaded ({error}): try again, or get {', '.join(files)} of "
             f"{page} on a machine with a network, and give them here as --file=PATH,PATH")
    return paths


def named(row, columns):
    """A row with the columns that flags name, under TRL's names. A system message may be missing.
    """
    out = {}
    for name, theirs in columns.items():
        try:
            out[{"response": "completion"}.get(name, name)] = take(row, theirs, object)
        except Empty:
            if name != "system":
                raise
    return out


def loaded(name, rows, columns, known):
    """(place, kind, loader, row) for the rows of a dataset; where its loader has a key, rows with
    the same one come together, at the end. columns: see `Settings.columns`."""
    for number, (where, row) in enumerate(rows):
        try:
            if columns:
                row = named(row, columns)
            own = name if name in DATASETS else "trl" if columns else recognised(row)
            kind, loader, *_ = DATASETS[own]
            key = loader.key(row) if hasattr(loader, "key") else None
        except Empty as e:
            yield where, "", lambda _, why=str(e): [why], row
            continue
        except Bad as e:
            stop(f"{where}: {e}")
        if key is None:
            yield where, kind, loader, row
        else:
            known.wait((own, key), number, [where, own, row])
    for group in known.groups():
        where, own, _ = group[0]
        kind, loader, *_ = DATASETS[own]
        yield where, kind, loader, [row for *_, row in group]


def convert(name, rows, altered=None, columns=None, known=None):
    """(place, row) of dataset `name` -> (kind, record or reason) for everything in the rows.

    altered: a Counter, by kind, of records that lost white space (see `trim`). Documents keep
    theirs: `documents` cuts it. known: where rows that come together wait.
    """
    altered = collections.Counter() if altered is None else altered
    for where, kind, loader, row in loaded(name, rows, columns, known or Known()):
        try:
            for item in loader(row):
                if isinstance(item, str):
                    yield kind or "rows", str(item)
                else:
                    own = next(k for k, field in FIELDS.items() if field in item)
                    item = {k: v for k, v in with_system(row, item).items() if v is not None}
                    if own != "text":
                        item, changed = trim(item)
                        if item.get("prompt") == "":  # there was nothing in Alpaca's words
                            yield own, "empty prompt"
                            continue
                        altered[own] += changed
                    yield own, records.check(item, own.rstrip("s"), where)
        except Empty as e:
            yield kind or "rows", str(e)
        except Bad as e:
            stop(f"{where}: {e}")


# ------------------------------------------------------------------------- records into splits

TITLE = re.compile(r" = [^=\n]+ = \n")  # of an article of wikitext
PII = {  # (?<!...): a match starts only at the start of its run of characters: search is linear
    "mail address": r"(?<![\w.+-])[\w.+-]+@[\w-]+(\.[\w-]+)+",
    "social security number": r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])",
    "phone number": r"(?<![\w.-])(\+?\d{1,3}[ .-]?)?(\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"
                    r"(?![\w-])|(?<!\w)\+\d[\d ().-]{6,16}\d(?!\w)",
    "card number": r"(?<![\d-])[3-6](?:[ -]?\d){14,15}(?![\d-])",
    "street address": r"(?<![\w.-])\d{1,5} ([NSEW]\.? )?([A-Z][a-z]+ |\d{1,3}(st|nd|rd|th) ){1,3}"
                      r"(Street|Avenue|Road|Boulevard|Lane|Drive|St|Ave|Rd|Blvd|Ln|Dr)\b",
}


def documents(text, size, separator=""):
    """Cut a text at blank lines, and at wikitext's titles, into documents of `size` characters.

    They are shorter if the next paragraph does not fit, and longer if a single one does not. Only
    white space at the cuts is lost (see `trimmed`); Windows line ends become "\\n". If there is a
    separator, a text is first cut at each one, and the separators are removed.
    """
    out = [""]
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if separator and separator in text:
        return [d for piece in text.split(separator) for d in documents(piece, size)]
    for paragraph in re.findall(r".+?(?:\n\s*\n|\Z)", text, re.S):
        if len(out[-1]) + len(paragraph) > size or TITLE.match(paragraph):
            out.append("")
        out[-1] += paragraph
    return [trimmed(document) for document in out if document.strip()]


def best(record):
    """The demonstration in a ranking: its best completion, if only one is best; or why none."""
    more = {k: v for k, v in record.items() if k in OF_PROMPT}
    top = [c["text"] for c, rank in zip(record["completions"], record["ranks"])
           if rank == min(record["ranks"])]
    return demonstration(record["prompt"], top[0], **more) if len(top) == 1 else "several are best"


def derive(kind, item, s):
    """The (kind, record or reason) pairs that an item contributes to the files."""
    if isinstance(item, str):
        yield kind, item
    elif kind == "text":
        yield from ((kind, {"text": d}) for d in documents(item["text"], s.document,
                                                                s.separator))
    else:
        yield kind, item
        if kind == "rankings" and s.demonstrations:
            yield "demonstrations", best(item)
        if kind != "prompts" and s.prompts:
            yield "prompts", {k: item[k] for k in ("prompt", *OF_PROMPT) if k in item}


def luhn(digits):
    """Whether the last digit is the check digit of a card number: most other numbers fail."""
    odd, even = digits[::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(d), 10)) for d in even)) % 10 == 0


def personal(text):
    """The kind of personal data that a text seems to hold, or None."""
    for kind, pattern in PII.items():
        for match in re.finditer(pattern, text):
            if kind != "card number" or luhn(re.sub(r"\D", "", match[0])):
                return kind


def beginning(prompt, size):
    """What prompts are compared by: their first `size` characters, at most a chat's first turn. A
    system message before it does not count, as many chats share one."""
    turn = prompt.split(ASSISTANT)[0]
    if len(turn) < len(prompt) and f"\n\n{HUMAN}" in turn:
        prompt = prompt[turn.index(f"\n\n{HUMAN}") + 2 :]
    return prompt[:size]


def chance(key):
    """A random-looking number in [0, 1), always the same for a key, on any machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def split_of(key, s):
    """train, valid or test."""
    u = chance(key)
    return "test" if u < s.split_test else "valid" if u < s.split_test + s.split_valid else "train"


def arrange(items, s, known):
    """(kind, record or reason) -> (kind, its split, record), or (kind, None, why it is dropped).

    The split depends on the prompt's author if known (section 3.2), else on a hash of the prompt's
    beginning, at most a chat's first turn: a chat and its continuation stay together.
    """
    for kind, item in items:
        if isinstance(item, str):
            yield kind, None, item
            continue
        prompt, author = item.get("prompt", ""), item.get("author")
        begins = beginning(prompt, s.prefix)
        family = item["text"] if kind == "text" else begins.split(ASSISTANT)[0]
        split = split_of(str(author or family), s)
        why = None
        if chance(f"share of {author or family}") >= s.share:
            why = "outside --share"
        elif kind != "text" and split != SPLITS[
                known.setdefault(("home", family), SPLITS.index(split))]:
            why = "another author's, in another split, begins alike"
        elif s.pii and split == "train" and (found := personal(prompt)):
            why = f"personal data: {found}"
        elif kind == "prompts":
            of_author = known.get(("author", author), 0) if author else 0
            if known.get(("begins", begins)):
                why = "begins like another"
            elif of_author >= s.cap and author:
                why = "over its author's cap"
            else:
                known["begins", begins] = 1
                if author:
                    known["author", author] = of_author + 1
        yield (kind, None, why) if why else (kind, split, item)


# --------------------------------------------------------------------------------------- build

def read(s):
    """(place, row) of the files or the dataset that the settings name."""
    on_hub = s.name.startswith("hub:")
    if not on_hub and (s.name not in DATASETS or not s.file and not DATASETS[s.name][3]):
        stop(f"--name={s.name}: {NAMES}\n" + "\n".join(map(listed, DATASETS)))
    if on_hub:
        return stream(s.name[4:], s.subset, s.part, s.revision)
    paths = find_files(s.file, WITH_TABLES) if s.file else download(s.name)
    refuse_own(paths, s.out)
    return (row for path in paths for row in read_rows(path, s.max_bytes, s.max_line))


def build(settings):
    """Read, split, write. Returns the counts: {"rows": n, "kept": {kind: {split: n}},
    "altered": {kind: n}, "dropped": {kind: {reason: n}}, "typed": n, "replaced": [kind]}: how
    many records contain EOS as text, and for which kinds there were files."""
    s, count, every = settings, itertools.count(), read(settings)
    altered, dropped = collections.Counter(), collections.Counter()
    counted = (row for row, _ in zip(itertools.islice(every, s.most or None), count))
    with (building(s.out) as folder, contextlib.closing(Known(folder / "known.db")) as known,
          contextlib.closing(NewRecords(folder)) as new):
        items = convert(s.name, counted, altered, s.columns, known)
        for kind, split, item in arrange((part for kind, item in items
                                          for part in derive(kind, item, s)), s, known):
            if split is None:
                dropped[kind, item] += 1
            else:
                new.add(kind, split, item)
        facts = {"rows": next(count), "kept": new.kept, "altered": dict(+altered), "dropped": {}}
        for (kind, reason), n in sorted(dropped.items()):
            facts["dropped"].setdefault(kind, {})[reason] = n
        wanted = "" if s.name.startswith("hub:") else DATASETS[s.name][0]  # "": any kind
        if not new.kept or wanted and wanted not in new.kept:
            stop(f"{s.file or s.name}: {facts['rows']} rows and no {wanted or 'record'}; dropped: "
                 f"{facts['dropped']}")
        return {**facts, "typed": new.typed, "replaced": new.publish(s.out)}


def refuse_own(paths, out):
    """Stop if a file that is read would be replaced by what is written."""
    written = {Path(out, f"{kind}_{split}.jsonl").resolve() for kind in FIELDS for split in SPLITS}
    for path in paths:
        if path.resolve() in written:
            stop(f"{path} would be read, and replaced by what is written: choose another --out")


def report(facts, out):
    """The facts of `build` as lines to read."""
    lines = [f"{out}: {facts['rows']:,} rows read"]
    for kind in facts["kept"] | facts["dropped"]:
        splits = facts["kept"].get(kind, {})
        of_each = ", ".join(f"{n:,} {split}" for split, n in splits.items())
        lines.append(f"  {kind:15}" + (f"{sum(splits.values()):7,} kept: {of_each}" if splits
                                       else ""))
        if kind in facts["altered"]:
            lines.append(f"{'':17}{facts['altered'][kind]:7,} read without the blank lines, or the "
                         "space, before a text, white space behind it, or Alpaca's words around a "
                         "prompt")
        lines += [f"{'':17}{n:7,} dropped: {reason}"
                  for reason, n in facts["dropped"].get(kind, {}).items()]
    if facts["typed"]:
        lines.append(f"  {facts['typed']:,} records have {EOS} in them. It stays text, of several "
                     f"tokens; --separator='{EOS}' cuts text there")
    if facts["replaced"]:
        lines.append(f"  in place of the {', '.join(facts['replaced'])} that were there (to keep "
                     "those: another --out, --demonstrations=false, --prompts=false)")
    return "\n".join(lines)


def main():
    settings = parse(Settings)
    if not settings.name:
        print(NAMES, *map(listed, DATASETS), sep="\n")
        return
    try:
        print(report(build(settings), settings.out))
    except KeyboardInterrupt:
        print("error: interrupted: nothing is written", file=sys.stderr)
        raise SystemExit(130) from None
    except (sqlite3.OperationalError, OSError) as error:  # a full disk
        if getattr(error, "filename", None):
            raise
        reason = getattr(error, "strerror", None) or error
        stop(f"{settings.out} cannot be written ({reason}): nothing is kept there")


if __name__ == "__main__":
    main()

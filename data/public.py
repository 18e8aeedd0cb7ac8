"""Public datasets in, records out: `python -m data.public --name=hh-rlhf --out=out/hh`.

Downloads the dataset from its publisher into huggingface_hub's cache, or reads --file=PATH in the
original format, .gz or not; then writes those of

    text_{train,valid,test}.jsonl               documents, long files cut at blank lines
    demonstrations_{train,valid,test}.jsonl     of rankings: each prompt with its best completion
    rankings_{train,valid,test}.jsonl
    prompts_{train,valid,test}.jsonl            the prompts of all these, filtered as in section 3.2

that the dataset has (see data/records.py). Nothing is written before everything is read, and what
is left out is counted by reason. A loader is a generator: it takes a row of a file and yields, for
each possible record in it, either the record or the reason why there is none, a str.
"""
import collections
import gzip
import hashlib
import itertools
import json
import os
import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

from settings import parse, stop  # before torch

from data import hub, records
from data.records import ASSISTANT, HUMAN
from data.tokenizer import EOS

FIELDS = {"rankings": "completions", "demonstrations": "response", "text": "text",
          "prompts": "prompt"}  # the field that identifies each kind of record
OF_PROMPT = ("author", "category", "lang")  # further fields that belong to the prompt
SPLITS = ("train", "valid", "test")
SUFFIXES = tuple(kind + gz for kind in (".txt", ".json", ".jsonl") for gz in ("", ".gz"))


@dataclass
class Settings:
    """Turns a public dataset, downloaded by this program or by you, into this project's records."""
    name: str = ""  # of the dataset: hh-rlhf, alpaca, text ... (empty: prints the list)
    file: str = ""  # to read; several with commas between, or a folder; empty: download it
    out: str = "out/public"  # folder to write; existing records of other kinds stay
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
    max_bytes: int = 2**30  # of one file, unpacked: a small .gz can hide a huge file
    max_line: int = 2**28  # of one line, unpacked; a .json file may be a list in a single one

    BOUNDS = {"share": "(0, 1]"}

    def problem(self):
        if self.split_valid + self.split_test >= 1:
            return "--split_valid and --split_test: expected shares of less than 1 together"


class Bad(Exception):
    """A row that does not have its dataset's format."""


# ----------------------------------------------------------------------------- files into rows

def find_files(names):
    """Files or folders, separated by commas -> paths; of a folder all files with SUFFIXES."""
    out = []
    for path in map(Path, filter(None, names.split(","))):
        found = [path] if path.is_file() else sorted(
            p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
        if not found:
            stop(f"no {', '.join(SUFFIXES)} file in {path}" if path.is_dir() else f"no file {path}")
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
    """(place, value): a .txt file is one row; a .json file a list of rows; else one JSON a line."""
    lines, kind = read_lines(path, max_bytes, max_line), path.name.removesuffix(".gz")
    if kind.endswith(".txt"):
        yield f"{path}:1", {"text": "".join(line for _, line in lines)}
        return
    if kind.endswith(".json"):
        lines = list(lines)
        whole = "".join(line for _, line in lines)
        if whole.lstrip().startswith("["):
            for i, value in enumerate(parse_json(whole, path, 1), 1):
                yield f"{path}:item {i}", value
            return  # else it is JSON lines with another suffix
    for number, line in lines:
        if line.strip():
            yield f"{path}:{number}", parse_json(line.rstrip(), path, number)


def take(row, field, kind=str):
    """row[field], which must be there and be of this type (or one of these types)."""
    if not isinstance(row, dict):
        raise Bad(f"expected a JSON object, got {records.shorten(row)}")
    if field not in row:
        raise Bad(f"no field {field!r}; there are {', '.join(row) or 'none'}")
    value = row[field]
    if not isinstance(value, kind) or isinstance(value, bool) or value != value:  # NaN
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise Bad(f"field {field!r}: expected {names}, got {records.shorten(row[field])}")
    return row[field]


# --------------------------------------------------------------------------- rows into records

def trimmed(text):
    """A text without blank lines at its beginning and white space at its end. The indent of its
    first line stays, as it matters in code; a single space is no indent."""
    return re.sub(r"\A(?:[^\S\n]*\n)*(?: (?=\S))?", "", text).rstrip()


def trim(record):
    """`trimmed` for all texts of a record. Returns (the record, whether it changed)."""
    out = {k: trimmed(v) if k in FIELDS.values() and isinstance(v, str) else v
           for k, v in record.items()}
    if "completions" in out:
        out["completions"] = [{**c, "text": trimmed(c["text"])} for c in out["completions"]]
    return out, out != record


def demonstration(prompt, response, **more):
    """The record with further fields, or the reason why there is none."""
    if not prompt.strip() or not response.strip():
        return "empty response" if prompt.strip() else "empty prompt"
    return {"prompt": prompt, "response": response, **more}


def ranking(prompt, texts, ranks, **more):
    """Texts of K completions and their ranks, 1 is best -> the record, or why there is none.

    A completion may be empty: silence can be the better answer, and is often the worse one.
    """
    if len(texts) < 2:
        raise Bad(f"a ranking needs at least 2 completions, got {len(texts)}")
    if not prompt.strip():
        return "empty prompt"
    if len(set(map(trimmed, texts))) == 1:
        return "all completions are the same"
    return {"prompt": prompt, "completions": [{"text": t} for t in texts], "ranks": ranks, **more}


def joined(instruction, context):
    return f"{instruction}\n\n{context}" if context.strip() else instruction


def text(row):
    """{"text"}; a .txt file is one such row."""
    yield {"text": take(row, "text")} if take(row, "text").strip() else "empty text"


def prompts(row):
    """A list of prompts: strings, or {"prompt"}."""
    prompt = row if isinstance(row, str) else take(row, "prompt")
    yield {"prompt": prompt} if prompt.strip() else "empty prompt"


def alpaca(row):
    """{"instruction", "input", "output"}."""
    yield demonstration(joined(take(row, "instruction"), take(row, "input")), take(row, "output"))


def alpaca_preference(row):
    """{"instruction", "input", "chosen", "rejected"}."""
    yield ranking(joined(take(row, "instruction"), take(row, "input")),
                  [take(row, "chosen"), take(row, "rejected")], [1, 2])


def dolly(row):
    """{"instruction", "context", "response", "category"}; or dolly_hhrlhf: {"prompt", "response"}.

    The latter wraps all prompts in Alpaca's words; our own template is in data/batches.py.
    """
    response = take(row, "response")
    if "prompt" in row:
        wrapped = re.fullmatch(r"Below is an instruction.*?### Instruction:\n(.*)### Response:\s*",
                               take(row, "prompt"), re.S)
        yield demonstration(wrapped[1] if wrapped else row["prompt"], response)
    else:
        yield demonstration(joined(take(row, "instruction"), take(row, "context")), response,
                            category=row.get("category"))


def self_instruct(row):
    """{"instruction", "instances": [{"input", "output"}, ...]}."""
    if not take(row, "instances", list):
        yield "no instances"
    for instance in row["instances"]:
        yield demonstration(joined(take(row, "instruction"), take(instance, "input")),
                            take(instance, "output"))


def t0(row):
    """{"prompt", "completion"}, GPT's end-of-text token written as text after the completion."""
    yield demonstration(take(row, "prompt"),
                        take(row, "completion").removesuffix(EOS))


def hh_rlhf(row):
    """{"chosen", "rejected"}: two transcripts "Human: ... Assistant: ..." that begin alike.

    The prompt ends at the last Assistant turn *that both share*. This is not always the last turn
    of each: a few replies contain a second "Assistant:", which stays in the reply. The blank line
    before the first turn and the space before a reply belong to the format.
    """
    chosen, rejected = take(row, "chosen"), take(row, "rejected")
    end = os.path.commonprefix([chosen, rejected]).rfind(ASSISTANT) + len(ASSISTANT)
    if end < len(ASSISTANT):
        yield "no shared prompt"
    elif any(f"\n\n{HUMAN}" in transcript[end:] for transcript in (chosen, rejected)):
        yield "the person speaks again after the shared prompt"
    else:
        replies = [transcript[end:].removeprefix(" ") for transcript in (chosen, rejected)]
        yield ranking(chosen[:end].removeprefix("\n\n"), replies, [1, 2])


def withheld(message):
    """Whether the platform deleted a message or rejected it in review."""
    take(message, "text")
    return bool(message.get("deleted")) or message.get("review_result") is False


def openassistant(row):
    """A tree: {"prompt": message}, where a message is {"text", "replies": [message, ...], "rank"}.

    Each message of a person, with the turns before it, is a prompt. Two or more ranked replies
    (rank 0 is best) make a ranking, a single reply makes a demonstration.
    """
    author = take(row, "prompt", dict).get("user_id")  # of the first message: decides the split
    queue = [("", row["prompt"])]
    while queue:
        before, asked = queue.pop(0)
        messages = [asked, *take(asked, "replies", list)]
        yield from ["withheld, with all below it"] * sum(map(withheld, messages))
        if withheld(asked):
            continue
        replies = [m for m in messages[1:] if not withheld(m)]
        prompt = records.asked(before, asked["text"])
        for reply in replies:
            turns = records.answered(prompt, reply["text"])
            queue += [(turns, message) for message in take(reply, "replies", list)]
        ranked = [r for r in replies if type(r.get("rank")) is int]
        more = {"author": author, "lang": asked.get("lang")}
        if len(replies) == 1:
            yield demonstration(prompt, replies[0]["text"], **more)
        elif len(ranked) < 2:
            yield "replies without ranks" if replies else "no reply"
        else:
            yield from ["a reply without a rank"] * (len(replies) - len(ranked))
            yield ranking(prompt, [r["text"] for r in ranked], [r["rank"] + 1 for r in ranked],
                          **more)


def finegrained_qa(row):
    """{"question", "passages": [[title, sentence, ...], ...], "prediction 1" to "prediction 4",
    "preference": of 1 and 2, 1 and 3, 1 and 4, 2 and 3, 2 and 4, 3 and 4}.

    A preference is 1 (the first is better), 2 (the second is) or 0 (neither).
    """
    pairs, votes = list(itertools.combinations(range(4), 2)), take(row, "preference", list)
    if len(votes) != 6 or any(vote not in (0, 1, 2) for vote in votes):
        raise Bad(f"field 'preference': expected six of 0, 1, 2, got {records.shorten(votes)}")
    losers = [pair[vote % 2] for pair, vote in zip(pairs, votes) if vote]
    ranks = [1 + losers.count(i) for i in range(4)]
    implied = [(ranks[a] < ranks[b]) + 2 * (ranks[a] > ranks[b]) for a, b in pairs]
    passages = "\n\n".join(" ".join(map(str, p)) for p in take(row, "passages", list))
    texts = [take(row, f"prediction {i}") for i in (1, 2, 3, 4)]
    if implied == votes:
        yield ranking(joined(take(row, "question"), passages), texts, ranks)
    else:  # such as 1 = 2, 2 = 3, but 1 > 3
        yield "preferences that no ranking can express"


def webgpt(row):
    """[{"question": {"full_text"}, "answer", "score"}, the same for a second answer].

    Each answer cites, as [1], quotes that it found itself; a shared prompt can contain only the
    question. A score of 0 is a tie.
    """
    if not isinstance(row, list) or len(row) != 2:
        raise Bad(f"expected a list of two answers, got {records.shorten(row)}")
    question, other = (take(take(answer, "question", dict), "full_text") for answer in row)
    if question != other:
        raise Bad("two answers to different questions")
    a, b = (take(answer, "score", (int, float)) for answer in row)
    yield ranking(question, [take(answer, "answer") for answer in row], [1 + (b > a), 1 + (a > b)])


def summarize(row):
    """{"info": {"subreddit", "title", "post"} or {"article"}, "summaries": [{"text"}, {"text"}],
    "choice": the number of the better one, from 0, "worker"}. A summary begins with the space that
    parts it from "TL;DR:".
    """
    info, summaries = take(row, "info", dict), take(row, "summaries", list)
    choice = take(row, "choice", int)
    if choice not in range(len(summaries)):
        raise Bad(f"field 'choice': there is no summary {choice}, there are {len(summaries)}")
    if info.get("post") is not None:  # a post of Reddit; else an article of CNN or the Daily Mail
        prompt = (f"SUBREDDIT: r/{take(info, 'subreddit')}\n\nTITLE: {take(info, 'title')}\n\n"
                  f"POST: {take(info, 'post')}\n\nTL;DR:")
    else:
        prompt = f"Article:\n\n{take(info, 'article')}\n\nTL;DR:"
    yield ranking(prompt, [take(s, "text").removeprefix(" ") for s in summaries],
                  [1 + (i != choice) for i in range(len(summaries))], labeler=row.get("worker"))


# A URL means that the hub has no files in the original format: it has none at all, a script that
# fetches them from this URL, or Parquet.
RAW, OPENAI = "https://raw.githubusercontent.com", "https://openaipublic.blob.core.windows.net"
DATASETS = {  # name: (what it holds, its loader, a repository of the hub or a URL, files in it)
    "text": ("text", text, "any .txt files, or JSON lines {\"text\"}", []),
    "prompts": ("prompts", prompts, "JSON lines: strings, or {\"prompt\"}", []),
    "alpaca": ("demonstrations", alpaca, f"{RAW}/tatsu-lab/stanford_alpaca/main",
               ["alpaca_data.json"]),
    "dolly": ("demonstrations", dolly, "databricks/databricks-dolly-15k",
              ["databricks-dolly-15k.jsonl"]),
    "self-instruct": ("demonstrations", self_instruct, "HuggingFaceH4/self-instruct-seed",
                      ["tasks.jsonl"]),
    "t0": ("demonstrations", t0, "github yizhongw/self-instruct, data/finetuning, many files", []),
    "openassistant": ("rankings", openassistant, "OpenAssistant/oasst1",
                      ["2023-04-12_oasst_ready.trees.jsonl.gz"]),
    "hh-rlhf": ("rankings", hh_rlhf, "Anthropic/hh-rlhf",
                ["helpful-base/train.jsonl.gz", "harmless-base/train.jsonl.gz"]),
    "alpaca-preference": ("rankings", alpaca_preference, f"{RAW}/rasbt/LLMs-from-scratch/main/ch07/"
                          "04_preference-tuning-with-dpo",
                          ["instruction-data-with-preference.json"]),
    "finegrained-qa": ("rankings", finegrained_qa,
                       f"{RAW}/allenai/FineGrainedRLHF/main/tasks/qa_feedback/data",
                       ["train_feedback.json", "dev_feedback.json"]),
    "webgpt": ("rankings", webgpt, f"{OPENAI}/webgpt-answer-viewer", ["comparisons.jsonl"]),
    "summarize": ("rankings", summarize, f"{OPENAI}/summarize-from-feedback/dataset/comparisons",
                  [f"batch{i}.json" for i in (*range(3, 21), 22)]),
}


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


def convert(name, rows, altered=None):
    """(place, row) of dataset `name` -> (kind, record or reason) for everything in the rows.

    altered: a Counter, by kind, of records that lost white space (see `trim`). Documents keep
    theirs: `documents` cuts it.
    """
    kind, loader, *_ = DATASETS[name]
    altered = collections.Counter() if altered is None else altered
    for where, row in rows:
        try:
            for item in loader(row):
                if isinstance(item, str):
                    yield kind, item
                else:
                    own = next(k for k, field in FIELDS.items() if field in item)
                    item = {k: v for k, v in item.items() if v is not None}
                    if own != "text":
                        item, changed = trim(item)
                        altered[own] += changed
                    yield own, records.check(item, own.rstrip("s"), where)
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


def typed(record):
    """Whether a record contains GPT's end-of-text token as text; it stays text."""
    return EOS in json.dumps(record, ensure_ascii=False)


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


def chance(key):
    """A random-looking number in [0, 1), always the same for a key, on any machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def split_of(key, s):
    """train, valid or test."""
    u = chance(key)
    return "test" if u < s.split_test else "valid" if u < s.split_test + s.split_valid else "train"


def arrange(items, s):
    """(kind, record or reason) -> ({kind: {split: records}}, {(kind, reason): how many dropped}).

    The split depends on the prompt's author if known (section 3.2), else on a hash of the prompt's
    beginning, at most a chat's first turn: a chat and its continuation stay together.
    """
    files, dropped, homes = {}, collections.Counter(), {}
    seen, authors = set(), collections.Counter()
    for kind, item in items:
        if isinstance(item, str):
            dropped[kind, item] += 1
            continue
        prompt, author = item.get("prompt", ""), item.get("author")
        family = item["text"] if kind == "text" else prompt[: s.prefix].split(ASSISTANT)[0]
        split = split_of(str(author or family), s)
        if chance(f"share of {author or family}") >= s.share:
            dropped[kind, "outside --share"] += 1
        elif homes.setdefault(family, split) != split:
            dropped[kind, "another author's, in another split, begins alike"] += 1
        elif s.pii and split == "train" and personal(prompt):
            dropped[kind, f"personal data: {personal(prompt)}"] += 1
        elif kind == "prompts" and prompt[: s.prefix] in seen:
            dropped[kind, "begins like another"] += 1
        elif kind == "prompts" and author and authors[author] >= s.cap:
            dropped[kind, "over its author's cap"] += 1
        else:
            if kind == "prompts":
                seen.add(prompt[: s.prefix])
                authors[author] += 1
            files.setdefault(kind, {split: [] for split in SPLITS})[split].append(item)
    return files, dropped


# --------------------------------------------------------------------------------------- build

def build(settings):
    """Read, split, write. Returns the counts: {"rows": n, "kept": {kind: {split: n}},
    "altered": {kind: n}, "dropped": {kind: {reason: n}}, "typed": n, "replaced": [kind]}: how
    many records contain EOS as text, and for which kinds there were files."""
    s, rows, altered = settings, 0, collections.Counter()
    if s.name not in DATASETS or not s.file and not DATASETS[s.name][3]:
        stop("give one of these names, and --file=PATH where no file is named or you have it\n"
              + "\n".join(map(listed, DATASETS)))

    written = {Path(s.out, f"{kind}_{split}.jsonl").resolve()
               for kind in FIELDS for split in SPLITS}
    paths = find_files(s.file) if s.file else download(s.name)
    for path in paths:
        if path.resolve() in written:
            stop(f"{path} would be read, and replaced by what is written: choose another --out")

    def read():
        nonlocal rows
        for path in paths:
            for row in read_rows(path, s.max_bytes, s.max_line):
                rows += 1
                yield row

    files, dropped = arrange((part for kind, item in convert(s.name, read(), altered)
                              for part in derive(kind, item, s)), s)
    kept = {kind: {split: len(r) for split, r in splits.items()} for kind, splits in files.items()}
    facts = {"rows": rows, "kept": kept, "altered": dict(+altered), "dropped": {}}
    for (kind, reason), n in sorted(dropped.items()):
        facts["dropped"].setdefault(kind, {})[reason] = n
    if DATASETS[s.name][0] not in files:
        stop(f"{s.file or s.name}: {rows} rows and no {DATASETS[s.name][0]}; dropped: "
             f"{facts['dropped']}")
    facts["typed"] = sum(typed(r) for splits in files.values() for out in splits.values()
                         for r in out)
    facts["replaced"] = [k for k in files if Path(s.out, f"{k}_train.jsonl").exists()]
    for kind, splits in files.items():
        for split, out in splits.items():
            records.write(Path(s.out) / f"{kind}_{split}.jsonl", out)
    return facts


def report(facts, out):
    """The facts of `build` as lines to read."""
    lines = [f"{out}: {facts['rows']:,} rows read"]
    for kind in facts["kept"] | facts["dropped"]:
        splits = facts["kept"].get(kind, {})
        lines.append(f"  {kind:15}{sum(splits.values()):7,} kept: "
                     + ", ".join(f"{n:,} {split}" for split, n in splits.items()))
        if kind in facts["altered"]:
            lines.append(f"{'':17}{facts['altered'][kind]:7,} read without the blank lines, or the "
                         "space, before a text, or white space behind it")
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
    try:
        print(report(build(settings), settings.out))
    except KeyboardInterrupt:
        print("error: interrupted: nothing is written", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()

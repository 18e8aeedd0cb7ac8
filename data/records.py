"""The four kinds of record, one JSON object a line, that people and simulations both write.

    text           {"text": str}
    prompt         {"prompt": str}                                    prompts for sampling and PPO
    demonstration  {"prompt": str, "response": str}                   step 1
    ranking        {"prompt": str, "completions": [{"text": str, ...}, ...], "ranks": [int, ...]}
                                       step 2; rank 1 is best, equal ranks are ties, K is 2 or more

Other fields are kept unchanged (category, author, task, labeler, model, likert, flags ...). A
completion may have "ended": false if its sampling stopped at the length limit: then it has no
end-of-text token. The prompt of a chat contains its turns (`asked`). A bad line stops the program
with its file, line, field and what was expected.
"""
import contextlib
import errno
import functools
import json
import math
import os
import sys
import zlib
from pathlib import Path

from settings import stop

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

READ = {}  # file -> CRC-32 of its bytes, of the data that this run has read
HUMAN, ASSISTANT = "Human:", "\n\nAssistant:"  # the turns of a chat, as hh-rlhf writes them


def asked(before, text):
    """A person's message after the earlier turns: a chat as the prompt of the next reply."""
    return f"{before}{HUMAN} {text}{ASSISTANT}"


def answered(prompt, text):
    """A chat's prompt and the reply to it: the turns before the next message."""
    return f"{prompt} {text}\n\n"


def is_text(value):
    return isinstance(value, str)


def is_filled(value):
    return isinstance(value, str) and value.strip() != ""


def is_shown(value):
    return isinstance(value, list) and len(value) >= 1 and all(
        isinstance(c, dict) and is_text(c.get("text")) and isinstance(c.get("ended", True), bool)
        for c in value)


def is_completions(value):
    return is_shown(value) and len(value) >= 2


def is_sampled(value):
    return is_completions(value) and all(is_text(c.get("model")) and "ended" in c for c in value)


def is_answers(value):
    return is_shown(value) and all(is_text(c.get("model")) and "ended" in c for c in value)


def is_task(value):
    return isinstance(value, dict) and is_text(value.get("type"))


def is_ranks(value):
    return isinstance(value, list) and all(type(r) is int and r >= 1 for r in value)


def has_utilities(ranking):
    """Whether a ranking has the labelers' utility of each completion, as simulated ones do."""
    values = ranking.get("expected")
    return (isinstance(values, list) and len(values) == len(ranking["completions"])
            and all(type(x) in (int, float) and math.isfinite(x) for x in values))


FIELDS = {
    "text": {"text": (is_text, "a string")},
    "prompt": {"prompt": (is_filled, "a string that is not empty")},
    "demonstration": {"prompt": (is_filled, "a string that is not empty"),
                      "response": (is_filled, "a string that is not empty")},
    "ranking": {"prompt": (is_filled, "a string that is not empty"),
                "completions": (is_completions, "a list of at least two {\"text\": string}, "
                                                "\"ended\" true or false where given"),
                "ranks": (is_ranks, "a list of whole numbers from 1 (best)")},
    # what people rate and rank (labels/page.py)
    "to label": {"prompt": (is_filled, "a string that is not empty"),
                 "completions": (is_shown, "a list of {\"text\": string}, \"ended\" true or false "
                                           "where given")},
    # only in the toy: what labels/sample.py writes for simulated.py, and evaluate.py's prompts
    "sampled prompt": {"prompt": (is_filled, "a string that is not empty"),
                       "task": (is_task, "an object with \"type\", as the toy town alone has"),
                       "completions": (is_sampled, "a list of at least two {\"text\", \"model\", "
                                                   "\"ended\"}")},
    "test prompt": {"prompt": (is_filled, "a string that is not empty"),
                    "task": (is_task, "an object with \"type\", as the toy town alone has"),
                    "category": (is_text, "a string")},
    # answers.jsonl of evaluate.py
    "answered prompt": {"prompt": (is_filled, "a string that is not empty"),
                        "task": (is_task, "an object with \"type\", as the toy town alone has"),
                        "completions": (is_answers, "a list of {\"text\", \"model\", "
                                                    "\"ended\"}")},
    "probe": {name: (is_filled, "a string that is not empty") for name in ("text", "probe",
                                                                           "answer")},
}


def check(record, kind, where):
    """Return the record if it is a valid `kind`; else stop with the place and the reason."""
    if not isinstance(record, dict):
        stop(f"{where}: expected a JSON object, got {shorten(record)}")
    for field, (valid, expected) in FIELDS[kind].items():
        if field not in record:
            stop(f"{where}: {kind} has no field {field!r} ({expected})")
        if not valid(record[field]):
            stop(f"{where}: field {field!r}: expected {expected}, got {shorten(record[field])}")
    if kind == "test prompt" and not is_text(record.get("group", "")):
        stop(f"{where}: field 'group': expected a string, got {shorten(record['group'])}")
    if kind == "ranking" and len(record["ranks"]) != len(record["completions"]):
        stop(f"{where}: field 'ranks': expected one rank for each of the "
             f"{len(record['completions'])} completions, got {len(record['ranks'])}")
    return record


def shorten(value):
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def is_toy(folder):
    """Whether a folder is the toy's, which has commands to fill it, and not the user's own."""
    return Path(folder) == Path("out/toy") or (Path(folder) / "world.json").exists()


def missing(path, kind, hint):
    """The error for a missing file of records: the command that writes it, or what it should
    contain."""
    if is_toy(path.parent):
        return f"no file {path}: run `{hint}` first"
    fields = ", ".join(f"{name!r} ({expected})" for name, (_, expected) in FIELDS[kind].items())
    return f"no file {path}: a {kind} a line, a JSON object with {fields}; see docs/data.md"


UNICODE = json.JSONEncoder(ensure_ascii=False)  # without escapes


def read(path, kind, hint="python -m data.toy.world", needed=True):
    """All records of a JSONL file, validated. Blank lines are skipped. Stops if there is none,
    unless it is not needed, like held-out data: data.public writes empty files, too.
    hint: the toy's command that writes it."""
    path, records, crc = Path(path), [], 0
    if not path.exists():
        stop(missing(path, kind, hint))
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            crc, where = zlib.crc32(line, crc), f"{path}:{number}"
            if not line.strip():
                continue
            try:
                # Windows puts a byte order mark before the first line
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if b"\\u" in line:
                    UNICODE.encode(record).encode()
            except UnicodeDecodeError as e:
                stop(f"{where}: not UTF-8 at byte {e.start}")
            except json.JSONDecodeError as e:
                stop(f"{where}: not JSON: {e.msg} at column {e.colno}")
            except UnicodeEncodeError:
                stop(f"{where}: not Unicode: half of a surrogate pair")
            except RecursionError:
                stop(f"{where}: nested too deep")
            records.append(check(record, kind, where))
    READ[str(path)] = crc
    if needed and not records:
        stop(f"{path} has no {kind} records")
    return records


def read_once(path, kind, what="prompts", same=("prompt",), tell=print):
    """Records of a file that are measured one by one, each once: equal ones are not independent,
    and would make every interval too narrow. Tells how many more there are.

    what: the word for them. same: records whose values of these fields are equal are equal.
    """
    every, once = read(path, kind), {}
    for record in every:
        once.setdefault(json.dumps([record.get(field) for field in same]), record)
    if again := len(every) - len(once):
        tell(f"{path}: {again:,} {what} are there again and count once")
    return list(once.values())


def checksum(path):
    """CRC-32 of a file, read in pieces."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(2**24):
            crc = zlib.crc32(piece, crc)
    return crc


def remember(path, content):
    """Remember the checksum of a data file that was read. content: its bytes."""
    READ[str(path)] = zlib.crc32(content)


def forget():
    """Forget what was read, for programs that do several runs."""
    READ.clear()


# Errors of fsync on folders that do not support it: on networks, in FUSE, on Windows.
UNSYNCED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM,
            errno.EBADF}


TOLD = set()  # those of them that were reported


def sync(file):
    """Sync an open file, or the names in a folder (a path), to the disk. If that is refused, warns
    once and goes on: only a power cut can then lose what was written."""
    try:
        if isinstance(file, (str, Path)):
            number = os.open(file, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
        else:
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
        if not TOLD & {error.errno}:
            print(f"warning: {getattr(file, 'name', file)} cannot be synced ({error.strerror}): "
                  "after a power cut what was written last may be missing", file=sys.stderr)
        TOLD.add(error.errno)


def untied_pairs(ranks):
    """Ranks of one prompt's K completions (1 is best) -> [(better, worse), ...] without ties."""
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


def make_folder(folder):
    """Make the folder of files that are written much later: stops at once if it cannot be made or
    written to."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(f"{folder} cannot be made ({error.strerror}): choose another --out")
    if not os.access(folder, os.W_OK):
        stop(f"{folder} cannot be written to: choose another --out")


def check_file(file, *read):
    """Stop if a file that is written much later is a folder, or one of those that are read."""
    if str(file).endswith(("/", os.sep)) or Path(file).is_dir():
        stop(f"--out={file}: expected a file to write, not a folder")
    if Path(file).resolve() in {Path(other).resolve() for other in read}:
        stop(f"--out={file} would be read, and replaced by what is written: choose another --out")


def other_folder(out, data):
    """Stop if what is written to the folder `out` would replace files of `data`, which are read."""
    if Path(out).resolve() == Path(data).resolve():
        stop(f"--out={out} is the folder that is read, --data, and files in it would be replaced: "
             "choose another --out")


CLAIMED = {}  # path -> descriptor, of what `claim` has locked


def claim(path):
    """Stop if another program writes to this file or folder, else lock it for this one: two that
    write to the same place would mix their logs and delete each other's states. A lock ends with
    its program, however that ends. Without effect where a system has no locks."""
    key = str(Path(path).resolve())
    if fcntl is None or key in CLAIMED:
        return
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:  # some systems open no folder
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        stop(f"another program is writing to {path}: wait until it has ended, or choose another "
             "--out")
    except OSError:  # some networks' folders
        pass
    CLAIMED[key] = number


def release(path):
    """Give back what `claim` has locked."""
    if (number := CLAIMED.pop(str(Path(path).resolve()), None)) is not None:
        os.close(number)


@contextlib.contextmanager
def naming(path):
    """A system error in here names this file or folder if it names none, as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def written_whole(path, mode="w"):
    """A temporary file that is renamed to `path` when it is done: complete, or what was there
    before. A link stays one. A device or a pipe, such as /dev/null, is written to and stays, too.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.is_file() or not path.exists()
    temporary = path.with_name(path.name + ".writing") if whole else path
    try:
        with naming(path):
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
            if whole:
                os.replace(temporary, path)
    except BaseException:
        if whole:
            temporary.unlink(missing_ok=True)  # a full disk needs the space
        raise


def write_text(path, text):
    """Write a text as a file. See `written_whole`."""
    with written_whole(path) as file:
        file.write(text)


def write(path, records):
    """Write records, a line each."""
    with written_whole(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def numbers(facts):
    """Facts with None for NaN and infinity, which JSON does not have."""
    if isinstance(facts, dict):
        return {k: numbers(v) for k, v in facts.items()}
    if isinstance(facts, (list, tuple)):
        return [numbers(v) for v in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


def write_json(path, facts):
    """One JSON object as a file. See `numbers`."""
    write_text(path, json.dumps(numbers(facts), indent=1) + "\n")


def damaged(path, why, hint):
    stop(f"{path} is damaged ({why}): delete it, and run `{hint}` again")


class Facts(dict):
    """A JSON object of a file. If it lacks a key that is asked for, the program stops with the
    command that writes the file. refuse(why): what stops it."""

    def __init__(self, values, refuse):
        super().__init__(values)
        self.refuse = refuse

    def __missing__(self, key):
        self.refuse(f"it has no {key!r}")


def parse_facts(content, refuse):
    """The JSON in the bytes of a file, with `Facts` for its objects."""
    try:
        return json.loads(content, object_hook=lambda values: Facts(values, refuse))
    except ValueError as e:  # not JSON, or not UTF-8
        refuse(str(e))
    except RecursionError:
        refuse("it is nested too deep")


NUMBER, MAYBE_NUMBER = (int, float), (int, float, type(None))


def read_json(path, hint, **fields):
    """What `write_json` wrote, an object with at least these fields; stops with the command to run
    first if there is no file, or if it is not whole.

    fields: {name: its type, or a tuple of types}; bool counts as none, NaN and infinity as no
    number.
    """
    refuse = functools.partial(damaged, path, hint=hint)
    try:
        facts = parse_facts(Path(path).read_bytes(), refuse)
    except FileNotFoundError:
        stop(f"no file {path}: run `{hint}` first")
    if not isinstance(facts, dict):
        refuse("it holds no JSON object")
    for field, kinds in fields.items():
        value = facts[field]
        if (not isinstance(value, kinds) or isinstance(value, bool)
                or value in (math.inf, -math.inf) or value != value):
            refuse(f"its {field!r} is {shorten(facts[field])}")
    return facts


OTHER_FORM = (ArithmeticError, AttributeError, IndexError, KeyError, StopIteration, TypeError,
              ValueError)


@contextlib.contextmanager
def known_form(path, hint):
    """For code that uses what `read_json` has read: where values are of another kind, stops with
    the command that writes the file."""
    try:
        yield
    except OTHER_FORM as e:
        stop(f"{path} is damaged, or of another version ({type(e).__name__}: {e}): delete it, and "
             f"run `{hint}` again")


def read_log(path):
    """The lines of a training log, each a dict. One that is damaged, or half written by a run that
    still goes on, is left out."""
    out = []
    for line in Path(path).read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            out.append(json.loads(line))
    return [line for line in out if isinstance(line, dict)]

"""What the labelling page keeps, in one SQLite file: labelers, items, who has which, and answers.

    labeler      owner, training group or held-out group; only a hash of the token is kept
    item         a prompt that wants labels; output: its different completions, each once
    assignment   one labeler has one item: open, done or skipped
    rating, ranking, marks, writing     what a labeler answered
    score        the owner's score of a demonstration; about: what a labeler says of themself

What `Store` returned from is on the disk: each change is one transaction in WAL mode, synced at its
commit. An answer has a key of its own (assignment and output, or a form's number), so that sending
it twice changes nothing. Time only decides when an abandoned item comes back; it is a monotonic
clock's, kept in memory: clocks that jump and restarts do no harm.
"""
import contextlib
import hashlib
import hmac
import json
import random
import secrets
import sqlite3
import threading
import time
from pathlib import Path

from settings import stop

APPLICATION = 0x6C61626C  # "labl"
SCHEMAS = ["""
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE labeler (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    grp TEXT NOT NULL CHECK (grp IN ('owner', 'train', 'heldout')),
    token BLOB NOT NULL, session INTEGER NOT NULL DEFAULT 0, removed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE item (
    id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, task TEXT NOT NULL, priority TEXT NOT NULL,
    split TEXT NOT NULL, wanted INTEGER NOT NULL, screening INTEGER NOT NULL,
    record TEXT NOT NULL, source TEXT NOT NULL UNIQUE);
CREATE TABLE output (
    id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES item, text TEXT NOT NULL,
    UNIQUE (item, text));
CREATE TABLE assignment (
    id INTEGER PRIMARY KEY, labeler INTEGER NOT NULL REFERENCES labeler,
    item INTEGER NOT NULL REFERENCES item,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'skipped')),
    UNIQUE (labeler, item));
CREATE INDEX assignments_of_item ON assignment (item, state);
CREATE TABLE rating (
    assignment INTEGER NOT NULL REFERENCES assignment, output INTEGER NOT NULL REFERENCES output,
    likert INTEGER NOT NULL CHECK (likert BETWEEN 1 AND 7), flags TEXT NOT NULL,
    note TEXT NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (assignment, output));
CREATE TABLE ranking (
    assignment INTEGER PRIMARY KEY REFERENCES assignment, ranks TEXT NOT NULL,
    note TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TABLE marks (
    assignment INTEGER PRIMARY KEY REFERENCES assignment, marks TEXT NOT NULL,
    seconds REAL NOT NULL);
CREATE TABLE writing (
    id INTEGER PRIMARY KEY, labeler INTEGER NOT NULL REFERENCES labeler, form TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL, fields TEXT NOT NULL, marks TEXT NOT NULL, seconds REAL NOT NULL,
    assignment INTEGER UNIQUE REFERENCES assignment);
""", """
CREATE TABLE score (
    writing INTEGER PRIMARY KEY REFERENCES writing ON DELETE CASCADE,
    score INTEGER NOT NULL CHECK (score BETWEEN 1 AND 7));
CREATE TABLE about (labeler INTEGER PRIMARY KEY REFERENCES labeler, topics TEXT NOT NULL);
CREATE INDEX handing_out ON item (screening DESC, id, split, wanted, task);
"""]  # what each version added: an older file gets the rest


def digest(token):
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


class Store:
    """The database of one labelling page. Any thread may use it.

    abandoned: seconds after which an open item that its labeler no longer looks at is offered to
    others, too. clock: seconds that never run backwards.
    """

    def __init__(self, path, abandoned=1800.0, clock=time.monotonic):
        self.path, self.abandoned, self.clock = Path(path), abandoned, clock
        self.local, self.writing, self.seen = threading.local(), threading.Lock(), {}
        try:
            self.path.touch(mode=0o600)  # answers are for nobody else's eyes
            self.prepare()
        except sqlite3.DatabaseError as error:
            stop(f"{path} cannot be used ({error}): name another folder with --out")
        for row in self.all("SELECT id FROM assignment WHERE state = 'open'"):
            self.touch(row["id"])  # after a restart everybody has the whole time again

    def version(self):
        """The version of the file's tables, 0 for a new file. Stops at a file of another program or
        of a newer one, before anything in it changes."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=20)) as db:
            tables, mine, version = (db.execute(query).fetchone()[0] for query in (
                "SELECT count(*) FROM sqlite_master", "PRAGMA application_id",
                "PRAGMA user_version"))
        if tables and mine != APPLICATION:
            stop(f"{self.path} is no database of this page: name another folder with --out")
        if tables and not 1 <= version <= len(SCHEMAS):
            stop(f"{self.path} has version {version} of the tables, this program knows versions 1 "
                 f"to {len(SCHEMAS)}: export it with the program that wrote it, or name another "
                 "--out")
        return version if tables else 0

    def prepare(self):
        """Make the tables of a new file, or those that an older one lacks: in one transaction."""
        if (version := self.version()) < len(SCHEMAS):
            with self.change() as db:
                for statement in "".join(SCHEMAS[version:]).split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {len(SCHEMAS)}")
                db.execute("INSERT OR IGNORE INTO setting VALUES ('secret', ?)",
                           (json.dumps(secrets.token_hex(32)),))
        self.secret = self.setting("secret")

    # ------------------------------------------------------------------------------- the file

    def db(self):
        """This thread's connection."""
        if not hasattr(self.local, "db"):
            db = sqlite3.connect(self.path, timeout=20, isolation_level=None)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
            db.execute("PRAGMA foreign_keys = ON")
            self.local.db = db
        return self.local.db

    @contextlib.contextmanager
    def change(self):
        """One transaction: all of it, or nothing."""
        with self.writing:
            db = self.db()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # a full disk may have ended it
                    db.execute("ROLLBACK")
                raise

    def all(self, query, *values):
        return self.db().execute(query, values).fetchall()

    def one(self, query, *values):
        return self.db().execute(query, values).fetchone()

    # ------------------------------------------------------------------------------- labelers

    def add_labeler(self, name, group, token=None):
        """Add a labeler, or give one who exists a new token. Returns the token, which is shown
        once. A new token ends the sessions of the old one, except the owner's."""
        token = token or secrets.token_urlsafe(24)
        with self.change() as db:
            db.execute(
                "INSERT INTO labeler (name, grp, token) VALUES (?, ?, ?) ON CONFLICT (name) DO "
                "UPDATE SET token = excluded.token, session = session + (grp != 'owner')",
                (name, group, digest(token)))
        return token

    def labeler_of(self, token):
        """The labeler with this token, or None. Compares with all of them, in constant time."""
        given, found = digest(token), None
        for labeler in self.all("SELECT * FROM labeler"):
            if hmac.compare_digest(given, labeler["token"]):
                found = labeler
        return found

    def labeler(self, number):
        return self.one("SELECT * FROM labeler WHERE id = ?", number)

    def set_removed(self, number, removed):
        """Take a labeler's work out of everything, or back in."""
        with self.change() as db:
            db.execute("UPDATE labeler SET removed = ? WHERE id = ? AND grp != 'owner'",
                       (bool(removed), number))

    # ------------------------------------------------------------------------------- items

    def add_items(self, items):
        """Add items that are not there yet. Each is a dict of the columns of `item`, and `texts`,
        the different outputs. Returns how many are new."""
        added = 0
        with self.change() as db:
            for item in items:
                cursor = db.execute(
                    "INSERT OR IGNORE INTO item (prompt, task, priority, split, wanted, screening, "
                    "record, source) VALUES (:prompt, :task, :priority, :split, :wanted, "
                    ":screening, :record, :source)", item)
                if cursor.rowcount:
                    added += 1
                    db.executemany("INSERT INTO output (item, text) VALUES (?, ?)",
                                   [(cursor.lastrowid, text) for text in item["texts"]])
        return added

    def next_for(self, labeler):
        """The id of the assignment that this labeler works on now; None if nothing is left to do.

        An item that the labeler has open comes first: two tabs show the same one. Else it is the
        first that wants more labels than it has or is being given. Of each group, an item wants
        `wanted` labels; the held-out group only labels the validation split. Everyone in training
        labels the screening items first, and the owner those of them that are compared.
        """
        if labeler["removed"]:
            return None
        own = self.opened(labeler)
        if own is None:
            with self.change() as db:
                own = self.hand_out(db, labeler)
        if own is not None:
            self.touch(own)
        return own

    def opened(self, labeler):
        """The labeler's first open assignment, or None."""
        row = self.one("SELECT id FROM assignment WHERE labeler = ? AND state = 'open' ORDER BY id "
                       "LIMIT 1", labeler["id"])
        return row and row["id"]

    def hand_out(self, db, labeler):
        """Within a change: the labeler's open assignment, a new one if there is none."""
        own = self.opened(labeler)  # another tab may have been faster
        item = None if own else self.wanting(labeler)
        return own or item and db.execute("INSERT INTO assignment (labeler, item) VALUES (?, ?)",
                                          (labeler["id"], item)).lastrowid

    def wanting(self, labeler, what="item.id"):
        """The id of the item to hand out next, or None; or count(*), how many could be."""
        if labeler["removed"]:
            return None
        heldout = labeler["grp"] == "heldout"
        stale = [n for n, when in list(self.seen.items())
                 if self.clock() - when > self.abandoned]
        found = self.one(f"""
            WITH busy AS (
                SELECT s.item, count(*) AS n FROM assignment s JOIN labeler a ON a.id = s.labeler
                WHERE (a.grp = 'heldout') = ? AND NOT a.removed AND (s.state = 'done' OR
                      s.state = 'open' AND s.id NOT IN (SELECT value FROM json_each(?)))
                GROUP BY s.item)
            SELECT {what} AS found FROM item LEFT JOIN busy ON busy.item = item.id
            WHERE item.id NOT IN (SELECT item FROM assignment WHERE labeler = ?)
              AND (NOT ? OR item.split = 'valid' AND NOT item.screening)
              AND (item.screening OR coalesce(busy.n, 0) < item.wanted)
              AND NOT (? AND item.screening AND item.task = 'demonstrate')
            ORDER BY item.screening DESC, item.id LIMIT 1""",
            heldout, json.dumps(stale), labeler["id"], heldout, labeler["grp"] == "owner")
        return found and found["found"]

    def touch(self, assignment):
        """The labeler looks at it: it is not abandoned."""
        self.seen[assignment] = self.clock()

    def assignment(self, number, labeler):
        """The assignment with its item, if it is this labeler's; else None."""
        return self.one(
            "SELECT assignment.id, assignment.state, assignment.item, item.prompt, item.task, "
            "item.priority, item.record FROM assignment JOIN item ON item.id = assignment.item "
            "WHERE assignment.id = ? AND labeler = ?", number, labeler["id"])

    def outputs(self, item, labeler):
        """The item's outputs in this labeler's own order, which is always the same."""
        outputs = self.all("SELECT * FROM output WHERE item = ? ORDER BY id", item)
        random.Random(f"{self.secret} {labeler['id']} {item}").shuffle(outputs)
        return outputs

    def reopen_last(self, labeler):
        """Open the labeler's last answered item again, its answers as they were. Returns it."""
        with self.change() as db:
            last = db.execute("SELECT id FROM assignment WHERE labeler = ? AND state != 'open' "
                              "ORDER BY id DESC LIMIT 1", (labeler["id"],)).fetchone()
            if last:
                db.execute("UPDATE assignment SET state = 'open' WHERE id = ?", (last["id"],))
        return last and last["id"]

    # ------------------------------------------------------------------------------- answers

    def answer(self, assignment, table, values, done, labeler=None):
        """Keep an answer: the row `values` of `table`, as long as its item is open. done: whether
        it is the item's last; then `labeler` gets the next item in the same transaction, as each
        waits for the disk. Returns whether the item was open; if not, nothing changes."""
        names, following = ", ".join(values), None
        with self.change() as db:
            state = db.execute("SELECT state FROM assignment WHERE id = ?",
                               (assignment,)).fetchone()["state"]
            if state != "open":
                return False
            db.execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES "
                       f"({', '.join('?' * len(values))})", tuple(values.values()))
            if done:
                db.execute("UPDATE assignment SET state = 'done' WHERE id = ?", (assignment,))
                following = labeler and self.hand_out(db, labeler)
        if following:
            self.touch(following)
        return True

    def skip(self, assignment):
        """Put the item aside; it stays wanted from others. Answers to its outputs are dropped from
        the exports, as the item is not done."""
        with self.change() as db:
            db.execute("UPDATE assignment SET state = 'skipped' WHERE id = ? AND state = 'open'",
                       (assignment,))

    def write(self, labeler, form, kind, fields, marks, seconds):
        """Keep a prompt with its demonstrations. form: the number of the form that it came from.
        Returns False if that form was sent before: the first one counts."""
        with self.change() as db:
            return db.execute(
                "INSERT OR IGNORE INTO writing (labeler, form, kind, fields, marks, seconds) "
                "VALUES (?, ?, ?, ?, ?, ?)", (labeler["id"], form, kind, json.dumps(fields),
                                              json.dumps(marks), seconds)).rowcount == 1

    # ------------------------------------------------------------------------------- screening

    def to_score(self):
        """The demonstrations of screening prompts: rows of id, prompt, response, labeler and score
        (None without one). Their order does not show who wrote them."""
        rows = self.all(
            "SELECT writing.id, writing.labeler, writing.fields, score.score, item.prompt FROM "
            "writing JOIN assignment s ON s.id = writing.assignment JOIN item ON item.id = s.item "
            "JOIN labeler ON labeler.id = writing.labeler LEFT JOIN score ON score.writing = "
            "writing.id WHERE item.screening AND s.state = 'done' AND NOT labeler.removed")
        return sorted(({**row, "response": json.loads(row["fields"])["response"]}
                       for row in map(dict, rows)),
                      key=lambda row: digest(f"{self.secret} {row['id']}"))

    def set_score(self, writing, score):
        with self.change() as db:
            db.execute("INSERT OR REPLACE INTO score VALUES (?, ?)", (writing, score))

    def about(self, labeler):
        """What a labeler said of themself; None before they were asked."""
        row = self.one("SELECT topics FROM about WHERE labeler = ?", labeler["id"])
        return row and row["topics"]

    def set_about(self, labeler, topics):
        with self.change() as db:
            db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (labeler["id"], topics))

    def asks_about(self, labeler):
        """Whether a training labeler is still to say what they can judge: where they are screened.
        """
        return (labeler["grp"] == "train" and self.about(labeler) is None
                and self.one("SELECT 1 FROM item WHERE screening LIMIT 1") is not None)

    # ------------------------------------------------------------------------------- reading

    def is_class(self):
        """Whether there is anyone but the owner."""
        return self.one("SELECT 1 FROM labeler WHERE grp != 'owner'") is not None

    def progress(self, labeler):
        """What a labeler has done, could still do, and the seconds that it took."""
        done = self.one("SELECT count(*) FROM assignment WHERE labeler = ? AND state = 'done'",
                        labeler["id"])[0]
        opened = self.one("SELECT count(*) FROM assignment WHERE labeler = ? AND state = 'open'",
                          labeler["id"])[0]
        seconds = sum(self.one(
            f"SELECT coalesce(sum(seconds), 0) FROM {table} JOIN assignment ON assignment.id = "
            f"{table}.assignment WHERE assignment.labeler = ?", labeler["id"])[0]
            for table in ("rating", "ranking", "marks", "writing"))
        return {"done": done, "of": done + opened + (self.wanting(labeler, "count(*)") or 0),
                "seconds": seconds}

    def written(self, labeler):
        """How many prompts a labeler wrote."""
        return self.one("SELECT count(*) FROM writing WHERE labeler = ? AND assignment IS NULL",
                        labeler["id"])[0]

    def use_case(self, labeler):
        """The use case to write the next prompt for: each labeler goes through all of them, and
        begins at another one. "" if there are none."""
        cases = self.setting("use_cases") or []
        return cases[(labeler["id"] + self.written(labeler)) % len(cases)] if cases else ""

    def setting(self, name):
        """A value that `set` kept, or None."""
        row = self.one("SELECT value FROM setting WHERE name = ?", name)
        return row and json.loads(row["value"])

    def set(self, name, value):
        with self.change() as db:
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, json.dumps(value)))

    def marks_of(self, assignment):
        """The marks of an assignment's prompt: the labeler's, else those of its record."""
        row = self.one("SELECT marks FROM marks WHERE assignment = ?", assignment["id"])
        return json.loads(row["marks"]) if row else json.loads(assignment["record"])["marks"]

    def given(self, number, kind, output):
        """The answer that a page already has, as a dict; {} if there is none."""
        table = {"rate": "rating", "rank": "ranking", "marks": "marks",
                 "demonstrate": "writing"}[kind]
        row = self.one(f"SELECT * FROM {table} WHERE assignment = ?"
                       + (" AND output = ?" if output else ""),
                       number, *([output["id"]] if output else []))
        return {k: json.loads(row[k]) if k in ("flags", "ranks", "marks", "fields") else row[k]
                for k in row.keys()} if row else {}

    def first_unanswered(self, number, pages):
        """The number of the first page without an answer; the last page if all have one."""
        return next((i for i, (kind, output) in enumerate(pages, 1)
                     if not self.given(number, kind, output)), len(pages))

    def unrated(self, assignment, but=None):
        """How many outputs of an assignment that asks for ratings have none; without output
        `but`."""
        if assignment["task"] not in ("rate", "rate_rank"):
            return 0
        return self.one(
            "SELECT count(*) FROM output WHERE item = ? AND id IS NOT ? AND id NOT IN "
            "(SELECT output FROM rating WHERE assignment = ?)",
            assignment["item"], but, assignment["id"])[0]

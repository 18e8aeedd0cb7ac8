"""The labelling page: people write prompts, rate and rank outputs, in a browser.

    python -m labels.page --preset=mine            fresh samples of the demo, for you to rank
    python -m labels.page --completions=FILE       outputs from a file, for a class
    python -m labels.page --export                 write the answers as records, and stop

It prints the owner's link. Other people get links on the owner's page. docs/labelling.md shows the
pages and says how to run a class.
"""
import os
import random
import subprocess
import sys
import threading
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from settings import extra, parse, stop

from data import records
from labels import exporting, items
from labels.store import Store
from labels.web import is_local, make_app
from runtime import processes

OWNER, SCREENS = "owner", {"DISPLAY", "WAYLAND_DISPLAY"}


@dataclass
class Settings:
    """The labelling page. Every setting is --name=value."""
    # what is labelled
    completions: str = ""  # file of prompts with their completions, to rate or rank
    models: str = ""  # checkpoints to sample completions from, separated by commas
    weights: str = ""  # relative frequency of each model; empty: all the same
    prompts_file: str = "out/toy/prompts_valid.jsonl"  # whose prompts the models answer
    demonstrate: str = ""  # file of prompts that labelers answer themselves
    use_cases: str = ""  # file with a use case a line, to write user-based prompts for
    prompts: int = 60  # how many items of them, chosen at random; 0: all
    candidates: int = 9  # completions sampled for each prompt, at least k_max
    k_min: int = 4  # outputs of an item that is ranked, at least (paper: 4)
    k_max: int = 6  # and at most: the most different ones (paper: 9)
    max_new_tokens: int = 32  # of a completion
    # how
    task: str = "rank"  # rank, rate, or rate_rank: rate each output, then rank them (the paper)
    priority: str = "helpful"  # helpful first (training data) or truthful first (evaluations)
    valid: float = 0.1  # share of the prompts that are held out for validation
    twice: float = 0.1  # share of the prompts that two labelers get
    screening: int = 0  # prompts that the owner and every training labeler get, to compare them
    abandoned: int = 1800  # seconds after which an item that nobody looks at is offered again
    # the page
    out: str = "out/labels"  # folder of the database; records go to its folder records
    host: str = "127.0.0.1"  # address to listen at; 0.0.0.0: others in your network, too
    port: int = 8321  # 0: any that is free
    open: bool = False  # open the page in this machine's browser
    export: bool = False  # write the records and stop
    seed: int = 6  # of the prompts that are chosen and of the samples

    BOUNDS = {"k_min": "[2, 26]", "k_max": "[2, 26]", "candidates": "[2, inf)",
              "valid": "[0, 1]", "twice": "[0, 1]", "screening": "[0, inf)",
              "abandoned": "[1, inf)", "port": "[0, 65535]"}
    CHOICES = {"task": "rank rate rate_rank", "priority": "helpful truthful"}

    def problem(self):
        if self.k_min > self.k_max:
            return f"--k_min={self.k_min} is more than --k_max={self.k_max}"
        if self.models and self.candidates < self.k_max:
            return f"--candidates={self.candidates} is less than --k_max={self.k_max}"
        if self.weights and not self.models:
            return "--weights has no --models"
        return items.wrong_weights(self.weights, self.models) if self.weights else None


PRESETS = {"mine": dict(models="out/ppo-ptx,out/init", out="out/mine/labels", twice=0.0,
                        valid=0.15, open=True)}


class Filling:
    """Fills the store with items, in the background where models must be sampled first."""

    def __init__(self, store, s):
        self.store, self.s, self.state = store, s, ""

    def fill(self):
        """From files at once, from models in a thread. Stops at a bad file."""
        s = self.s
        if s.use_cases:
            self.store.set("use_cases", lines_of(s.use_cases))
        if s.completions:
            self.add(self.shuffled(records.read(s.completions, "to label")))
        if s.demonstrate:
            self.add([{k: v for k, v in r.items() if k != "completions"}
                      for r in self.shuffled(records.read(s.demonstrate, "prompt"))])
        if s.models and self.store.setting("sampled") != self.of_samples():
            self.sample()
        if not (self.state or self.store.setting("use_cases")
                or self.store.one("SELECT id FROM item LIMIT 1")):
            stop("there is nothing to label: name --completions, --models, --demonstrate or "
                 "--use_cases")

    def of_samples(self):
        """What the samples depend on: a page that starts again does not sample again."""
        s = self.s
        return [s.models, s.weights, s.prompts_file, s.prompts, s.candidates, s.k_min, s.k_max,
                s.max_new_tokens, s.task, s.priority, s.seed]

    def shuffled(self, rows):
        return random.Random(f"prompts {self.s.seed}").sample(rows, len(rows))

    def add(self, rows):
        """The first --prompts items that these records give."""
        made, left = items.make_items(rows, self.s)
        new = self.store.add_items(made)
        self.state = f"{new} new prompts to label" + (
            f"; {left} have fewer than {items.bounds(self.s)[0]} different outputs" if left else "")

    def sample(self):
        """Run labels/sample.py on the chosen prompts, at the lowest priority, so that the page
        stays quick; then add the items."""
        s, folder = self.s, Path(self.s.out) / "samples"
        for path in s.models.split(","):
            if path.startswith("out/") and not Path(path, "checkpoint.json").exists():
                stop(f"{path} has no checkpoint: run `make demo` first, or name other --models")
            of_hub = path[:1] not in (*"./~", "") and path.count("/") < 2  # it can be a name there
            if not of_hub and (not path or not Path(path).exists()):
                stop(f"--models={s.models}: no folder {path or 'of no name'}")
        prompts = self.shuffled(records.read(s.prompts_file, "prompt"))
        prompts = prompts[: s.prompts * 3 // 2 or None]  # some have too few different outputs
        records.write(folder / "prompts_train.jsonl",
                      [{k: v for k, v in p.items() if k != "completions"} for p in prompts])
        out = folder / "completions_train.jsonl"
        weights = s.weights or ",".join("1" for _ in s.models.split(","))
        command = [sys.executable, "-m", "labels.sample", f"--models={s.models}",
                   f"--weights={weights}", f"--data={folder}", f"--k_min={s.candidates}",
                   f"--k_max={s.candidates}", f"--max_new_tokens={s.max_new_tokens}",
                   f"--seed={s.seed}", f"--out={out}"]
        self.state = "samples are being made: this page goes on by itself"
        self.thread = threading.Thread(target=self.run, args=(command, out), daemon=True)
        self.thread.start()

    def run(self, command, out):
        """Run the command; then add the items of what it has written."""
        with processes.running(command, preexec_fn=lambda: os.nice(19), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True) as process:
            error = process.communicate()[1].strip()
        if process.returncode:
            self.state = f"sampling failed: {error.splitlines()[-1] if error else 'no reason'}"
            print(self.state, file=sys.stderr)
            return
        self.add(records.read(out, "to label"))
        self.store.set("sampled", self.of_samples())
        print(self.state, flush=True)

    # what the owner's page asks

    def line(self):
        return self.state

    def export(self):
        return exporting.write(self.store, Path(self.s.out) / "records", self.s.valid)


def lines_of(path):
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        stop(f"{path}: not UTF-8 at byte {error.start}")
    return [line.strip() for line in text.splitlines() if line.strip()] or stop(
        f"{path} is empty: expected a use case a line")


def listen(app, s):
    """(server, its address). Stops if the port is taken."""
    waitress = extra("waitress", "python -m labels.page")
    try:
        server = waitress.create_server(app, host=s.host, port=s.port, threads=8, ident=None,
                                        max_request_body_size=2 ** 21, channel_timeout=60)
    except (OSError, ValueError) as error:
        stop(f"cannot listen at {s.host}, port {s.port} ({error}): name another --port or --host")
    port = server.effective_port if hasattr(server, "effective_port") else s.port
    name = f"[{s.host}]" if ":" in s.host else s.host
    return server, f"http://{name}:{port}"


def hand_over(store, s, address):
    """Give the owner a link: in files that only the owner can read, and on the terminal. The link
    holds a code: it is printed into no log, and stands in no process's arguments."""
    link = f"{address}/enter#{store.add_labeler(OWNER, 'owner')}"
    file, door = Path(s.out, "owner-link.txt"), Path(s.out, "owner-link.html")
    write_secret(file, link + "\n")
    write_secret(door, f'<meta http-equiv="refresh" content="0; url={link}">\n')
    seen = sys.stdout.isatty()
    print(f"the labelling page: {link}\nCtrl-C stops it; all answers are kept" if seen else
          f"the labelling page: {address} (the owner's link is in {file})", flush=True)
    if s.open and seen and (SCREENS & os.environ.keys() or sys.platform in ("darwin", "win32")):
        webbrowser.open(door.resolve().as_uri())


def write_secret(path, text):
    """Write a new file that only its owner can read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)


def main():
    s = parse(Settings, PRESETS)
    path = Path(s.out) / "labels.db"
    if not s.export:
        extra("flask", "python -m labels.page")
        extra("waitress", "python -m labels.page")
    elif not path.exists():
        stop(f"no file {path}: run `python -m labels.page --out={s.out}` first")
    records.make_folder(s.out)
    store = Store(path, s.abandoned)
    filling = Filling(store, s)
    if s.export:
        counts = filling.export()
        for file, n in counts.items():
            print(f"{file}: {n:,} records")
        return counts or print(f"{path} has no finished answer yet")
    filling.fill()
    server, address = listen(make_app(store, filling, is_local(s.host), time.monotonic), s)
    hand_over(store, s, address)
    try:
        with processes.ending_together("goes on, and all answers are kept", wait=False):
            server.run()
    except KeyboardInterrupt:
        print("stopped; all answers are kept")


if __name__ == "__main__":
    main()

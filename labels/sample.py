"""Between the steps: sample K completions of each prompt, for labelers (or you) to rank.

    python -m labels.sample                                   K = 4..9 from the SFT models
    python -m labels.simulated                              labelers rank them -> reward.py
    python -m labels.sample --models=out/sft --k_min=1 --k_max=1    one response a prompt

Each output line is a prompt record with `completions`: text, the model it came from, and whether it
ended by itself. If it is killed at any moment, the same command continues where it was.
"""
import dataclasses
import json
import random
import zlib
from dataclasses import dataclass
from pathlib import Path

from settings import Computing, parse, stop  # before torch

from tqdm import tqdm

from data import records
from data.tokenizer import encode_prompt
from labels.items import wrong_weights
from model import GPT
from runtime.checkpoint import load
from runtime.machine import precision
from runtime.world import World
from sampler import generate


@dataclass
class Settings(Computing):
    """Samples for labelers. Every setting is --name=value."""
    models: str = "out/sft,out/init,out/base"  # checkpoints, separated by commas; chosen at random
    weights: str = "6,3,1"  # relative frequency of each model
    data: str = "out/toy"  # folder with prompts_*.jsonl
    split: str = "train"  # train, valid or test
    out: str = ""  # file to write; empty: completions_SPLIT.jsonl in `data`
    prompts: int = 0  # how many of the prompts; 0: all
    k_min: int = 4  # completions of a prompt, at least (paper: 4)
    k_max: int = 9  # and at most (paper: 9)
    max_new_tokens: int = 32  # a response that is longer is cut and counts as not ended
    temperature: float = 1.0  # 0 is greedy
    batch: int = 256  # rows sampled at once
    seed: int = 1  # of the sampling noise and of each prompt's K

    RANKS = True

    def problem(self):
        if self.k_min > self.k_max:
            return f"--k_min={self.k_min} is more than --k_max={self.k_max}"
        return wrong_weights(self.weights, self.models)


BATCH = "episodes", "completions", "seconds"  # what a line of a partial file has


class Partial:
    """Samples on disk, from which a killed run continues: NAME.partial-RANK.

    The first line says what they are made from; each other line is a batch. It does not matter
    which rank wrote a file: ranks look for their episodes in all of them.
    """

    def __init__(self, out, made_from, world):
        out = Path(out)
        self.beside, self.known, self.world = out.with_name(f"{out.name}.partial-"), {}, world
        own, length, others = Path(f"{self.beside}{world.rank}"), 0, 0
        for path in self.paths():
            batches, end = self.read(path, made_from)
            others += end == 0
            for batch in batches:
                self.known.update(zip(batch["episodes"], batch["completions"]))
            if path == own:
                length = end
                world.started -= batches[-1]["seconds"] if batches else 0
        if others:
            world.print(f"{self.beside}*: of other settings, models or prompts, and not used")
        own.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(own, "a+b")
        records.claim(own)
        self.file.truncate(length)  # removes half a line
        if not length:
            self.write(made_from)

    def paths(self):
        folder = self.beside.parent
        return sorted(path for path in (folder.iterdir() if folder.is_dir() else ())
                      if path.name.startswith(self.beside.name))

    @staticmethod
    def read(path, made_from):
        """(the batches of a file, the bytes up to the last whole one); ([], 0) of other samples."""
        batches, end = [], 0
        for line in open(path, "rb"):
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                value = None
            if value is None or not end and value != made_from or end and not (
                    isinstance(value, dict) and value.keys() == {*BATCH}):
                break
            batches += [value] if end else []
            end += len(line)
        return batches, end

    def add(self, episodes, completions):
        self.write(dict(zip(BATCH, (episodes, completions, self.world.seconds()))))

    def write(self, value):
        with records.naming(self.file.name):
            self.file.write(json.dumps(value).encode() + b"\n")
            self.file.flush()

    def remove(self):
        """Remove the files when the result is written. All ranks call it."""
        self.file.close()
        self.world.barrier()
        for path in self.paths():
            path.unlink(missing_ok=True)  # another rank may have removed it
        records.release(f"{self.beside}{self.world.rank}")


def made_from(s, models, prompts):
    """What samples depend on, as JSON: settings, weights, tokenizers and prompts. Neither the batch
    nor the device matters: after a lack of memory a run may go on with others. Nor does the place
    of the prompts, which a path can spell in several ways."""
    weights = []
    for model, tokenizer in models:
        crc = 0
        for x in model.state_dict().values():
            crc = zlib.crc32(x.cpu().contiguous().numpy(), crc)
        weights.append([crc, tokenizer.fingerprint, tokenizer.template])
    settings = {k: v for k, v in dataclasses.asdict(s).items()
                if k not in ("out", "data", "batch", "device")}
    return {"settings": settings, "models": weights,
            "prompts": zlib.crc32(json.dumps([p["prompt"] for p in prompts]).encode())}


def sample_rows(model, tokenizer, rows, s, partial, note=""):
    """rows: [(episode number, prompt text)] -> [completion], in the same order.

    Rows are sampled in order of length, so that a batch holds prompts of similar lengths; the noise
    depends on the episode number, so the batches do not matter. A batch that is in `partial` is
    taken from there.
    """
    out = [None] * len(rows)
    encoded = [encode_prompt(tokenizer, prompt) for _, prompt in rows]
    by_length = sorted(range(len(rows)), key=lambda i: len(encoded[i]))
    for start in tqdm(range(0, len(rows), s.batch), desc=f"sample {note}", leave=False):
        part = by_length[start : start + s.batch]
        episodes = [rows[i][0] for i in part]
        if not partial.known.keys() >= set(episodes):
            samples = generate(model, [encoded[i] for i in part], s.max_new_tokens, tokenizer.eos,
                               s.temperature, s.seed, episodes)
            completions = [{"text": tokenizer.decode(ids), "model": note, "ended": ended} for
                           ids, ended in zip(samples.responses(), samples.ended.tolist())]
            partial.add(episodes, completions)
            partial.known.update(zip(episodes, completions))
        for i, episode in zip(part, episodes):
            out[i] = partial.known[episode]
    return out


def fitting_all(prompts, models, max_new_tokens, world):
    """The prompts that leave every model room for a response; prints how many do not."""
    kept = [p for p in prompts if all(
        len(encode_prompt(tokenizer, p["prompt"])) <= model.config.block_size - max_new_tokens
        for model, tokenizer in models)]
    if len(kept) < len(prompts):
        world.print(f"{len(prompts) - len(kept)} of {len(prompts)} prompts are dropped: with "
                    f"{max_new_tokens} new tokens they do not fit the context")
    if not kept:
        stop("no prompt fits the context: lower --max_new_tokens")
    return kept


def main():
    s = parse(Settings)
    world = World(s.seed, s.device)
    source = f"{s.data}/prompts_{s.split}.jsonl"
    out = s.out or f"{s.data}/completions_{s.split}.jsonl"
    records.check_file(out, source)
    prompts = records.read(source, "prompt")
    prompts = prompts[: s.prompts or None]
    paths, weights = s.models.split(","), [float(w) for w in s.weights.split(",")]
    models = [load(path, {"GPT": GPT}, "python sft.py")[:2] for path in paths]
    precision(s.dtype, world, max(model.config.n_embd for model, _ in models))
    prompts = fitting_all(prompts, models, s.max_new_tokens, world)
    records.make_folder(Path(out).parent)
    rng = random.Random(f"sample {s.seed}")
    todo = [[] for _ in paths]  # for each model: (prompt number, episode number, prompt text)
    episode = 0
    for number, prompt in enumerate(prompts):
        prompt["completions"] = []
        for i in rng.choices(range(len(paths)), weights, k=rng.randint(s.k_min, s.k_max)):
            todo[i].append((number, episode, prompt["prompt"]))
            episode += 1
    partial = Partial(out, made_from(s, models, prompts), world)
    if partial.known:
        world.print(f"{out}: {len(partial.known):,} of {episode:,} completions are there already")
    for path, own, (model, tokenizer) in zip(paths, todo, models):
        model.to(world.device)
        rows = world.share(own)
        completions = world.gather(sample_rows(model, tokenizer, [r[1:] for r in rows], s,
                                               partial, path))
        for (number, _, _), completion in zip(own, completions):
            prompts[number]["completions"].append(completion)
    if world.main:
        records.write(out, prompts)
        records.write_json(out.removesuffix(".jsonl") + ".facts.json", {
            "models": s.models, "temperature": s.temperature, "seed": s.seed,
            "completions": episode, "seconds": world.seconds()})
    partial.remove()
    world.print(f"{out}: {episode:,} completions of {len(prompts):,} prompts from {s.models} "
                f"({world.seconds():.0f} s)")
    world.close()


if __name__ == "__main__":
    main()

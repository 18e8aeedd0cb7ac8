"""Checkpoints: folders of plain files, never half-visible.

A file is written under a temporary name, synced, and then renamed to one with its checksum:
model-5f3a9c01.pt. So it is whole or missing, and damage is detected. checkpoint.json names the
files that belong together; a new checkpoint counts from the moment this file is renamed.
"""
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import torch
import torch.distributed as dist

from data import records
from data.tokenizer import load_tokenizer
from runtime import pretrained
from runtime.sharding import class_of, full
from settings import stop

LOADED = {}  # folder -> weights file of each checkpoint that this run has loaded
OURS = re.compile(r"(model|tokenizer|state)(-\d+)?(-[0-9a-f]{8})?\.(pt|tiktoken|bpe)(\.writing)?"
                  r"|state-\d+")  # a folder of shards


def checksum(path):
    """CRC-32 of a file, as eight hexadecimal digits."""
    return f"{records.checksum(path):08x}"


def is_intact(path, crc=None):
    """Whether a file exists and has this checksum, by default the one in its name."""
    return path.is_file() and checksum(path) == (crc or path.stem.rpartition("-")[2])


def write(path, content):
    """Write a file by content(file). It appears in one step, whole and synced to the disk."""
    temporary = path.with_name(path.name + ".writing")
    try:
        with open(temporary, "wb") as file:
            content(file)
            records.sync(file)
        if path.suffix != ".json":
            path = path.with_stem(f"{path.stem}-{checksum(temporary)}")
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)  # a full disk needs the space
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch.save hides it behind an error of its own
        raise
    records.sync(path.parent)
    return path.name


def save(path, model, tokenizer, settings, **facts):
    """Write a checkpoint folder: the weights, the tokenizer and checkpoint.json.

    At any moment the folder has one whole checkpoint, the old or the new one. The states of the run
    that ends with it are removed, like the old checkpoint's files. All ranks call it, as each may
    have a part of the weights; rank 0 writes.
    """
    path, weights = Path(path), full(model.state_dict())
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    refuse_others(path)
    path.mkdir(parents=True, exist_ok=True)
    names = {"weights": write(path / "model.pt", lambda f: torch.save(weights, f)),
             "tokenizer": tokenizer.name}
    if tokenizer.source is not None:
        names["tokenizer"] = write(path / f"tokenizer{tokenizer.suffix}",
                                   lambda f: f.write(tokenizer.source))
    meta = {"kind": class_of(model).__name__, "config": dataclasses.asdict(model.config), **names,
            "fingerprint": tokenizer.fingerprint, "template": tokenizer.template,
            "settings": dataclasses.asdict(settings), "made_from": made_from(),
            **records.numbers(facts)}
    write(path / "checkpoint.json", lambda f: f.write(json.dumps(meta, indent=1).encode()))
    tidy(path, names.values())


def made_from():
    """What this run has read to make a model: {data file or model folder: a checksum or file name
    that identifies its content}."""
    return {**records.READ, **LOADED}


def forget():
    """Begin a run: forget what was read before (see `made_from`)."""
    records.forget()
    LOADED.clear()


def tidy(path, keep):
    """Remove all our files from a checkpoint's folder except those in `keep`."""
    for file in Path(path).iterdir():
        if OURS.fullmatch(file.name) and file.name not in keep:
            remove(file)


def remove(path):
    """Remove a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def refuse_others(path):
    """Stop if a folder has files that no stage wrote, as with --out=out."""
    for file in sorted(Path(path).glob("*")):
        if not OURS.fullmatch(file.name) and not re.fullmatch(
                r"(checkpoint\.json|log\.jsonl)(\.writing)?", file.name):
            stop(f"{path} holds {file.name}, which is no part of a checkpoint: choose another "
                 "--out")


def facts_of(path, hint):
    """What a folder's checkpoint.json says. hint: the command that writes it."""
    path = Path(path, "checkpoint.json")
    facts = records.read_json(path, hint, kind=str, config=dict, weights=str, tokenizer=str,
                              settings=dict)
    for key, kind in (("made_from", dict), ("loaded", dict), ("seconds", records.NUMBER)):
        if key in facts and not isinstance(facts[key], kind):
            records.damaged(path, f"its {key!r} is {records.shorten(facts[key])}", hint)
    return facts


def config_of(facts, path, kind):
    """The configuration of a checkpoint's model, of the class `kind`, from its facts."""
    path = Path(path, "checkpoint.json")
    unknown = set(facts["config"]) - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        stop(f"{path} asks for a model that is not ours: it has {min(unknown)!r}")
    pretrained.check_sizes(facts["config"], path)
    config = kind(**facts["config"])
    if not isinstance(config.dropout, records.NUMBER) or not 0 <= config.dropout < 1:
        stop(f"{path} has dropout = {config.dropout!r}: expected a number from 0 to < 1")
    return config


def load(path, classes, hint):
    """Read a checkpoint written by `save`, or a GPT-2 in Hugging Face's format (pretrained.py).

    Returns (model, tokenizer, its checkpoint.json).
    classes: {"GPT": GPT, ...}, the kinds that the caller can use; hint: the command to run first.
    """
    path = Path(path)
    if not (path / "checkpoint.json").exists():
        if pretrained.known(path):
            model, tokenizer, meta = pretrained.load(path, classes)
            LOADED[str(path)] = "-".join(map(checksum, meta.pop("files")))
            return model, tokenizer, meta
        hub = "" if path.exists() or path.parts[0] == "out" else (
            ", or name a model of the hub as OWNER/NAME")
        stop(f"{path} has no checkpoint: run `{hint}` first{hub}")
    meta = facts_of(path, hint)
    if meta["kind"] not in classes:
        stop(f"{path} holds a {meta['kind']}, expected {' or '.join(classes)}")
    LOADED[str(path)] = meta["weights"]
    for name in (meta["weights"], meta["tokenizer"]):
        if name != "gpt2" and not is_intact(path / name):
            stop(f"{path}/{name} is damaged (its checksum differs): run `{hint}` again")
    cls, file = classes[meta["kind"]], path / meta["weights"]
    config, weights = config_of(meta, path, cls.config_class), pretrained.read_weights(file)
    pretrained.look_for_sizes(config, weights, file)
    model = cls(config)
    pretrained.fill(model, weights, file)
    tokenizer = load_tokenizer(meta["tokenizer"], path)
    pretrained.match(tokenizer, model, path)
    if meta.get("fingerprint", tokenizer.fingerprint) != tokenizer.fingerprint:
        stop(f"{path}/{meta['tokenizer']} is not the tokenizer that the model was trained with: "
             f"run `{hint}` again")
    tokenizer.template = meta.get("template", tokenizer.template)
    if "{prompt}" not in str(tokenizer.template):
        stop(f"{path}/checkpoint.json has a template without {{prompt}}: all prompts would be the "
             f"same. Run `{hint}` again")
    return model, tokenizer, meta


def load_for(tokenizer, path, classes, hint):
    """The model of `load`, when it has to read another model's ids: stops if its tokenizer or its
    prompt format is not this one."""
    model, own, _ = load(path, classes, hint)
    if own.fingerprint != tokenizer.fingerprint:
        stop(f"{path} has another tokenizer, {own.name}, than the model whose text it is to read, "
             f"{tokenizer.name}: both must begin with the same --init")
    if own.template != tokenizer.template:
        stop(f"{path} was trained on prompts in the format {own.template!r}, the model whose text "
             f"it is to read on {tokenizer.template!r}: train one of them again")
    return model

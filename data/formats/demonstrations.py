"""Texts, prompts and demonstrations."""
from data.formats.records import demonstration, joined, prompted, take
from data.tokenizer import EOS


def text(row):
    """{"text"}; a .txt file is one such row."""
    yield {"text": take(row, "text")} if take(row, "text").strip() else "empty text"


def prompts(row):
    """A list of prompts: strings, or {"prompt"}."""
    yield prompted(row if isinstance(row, str) else take(row, "prompt"))


def self_instruct(row):
    """{"instruction", "instances": [{"input", "output"}, ...]}."""
    if not take(row, "instances", list):
        yield "no instances"
    for instance in row["instances"]:
        yield demonstration(joined(take(row, "instruction"), take(instance, "input")),
                            take(instance, "output"))


def p3(row):
    """{"prompt", "completion"}, GPT's end-of-text token written as text after the completion: what
    T0 learned from (Sanh et al. 2021)."""
    yield demonstration(take(row, "prompt"),
                        take(row, "completion").removesuffix(EOS))


def flan(row):
    """{"inputs", "targets"}: what FLAN learned from (Wei et al. 2021)."""
    yield demonstration(take(row, "inputs"), take(row, "targets"))

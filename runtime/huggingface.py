"""Exports models in Hugging Face's GPT-2 format:

    python -m runtime.huggingface export CHECKPOINT FOLDER [--chat]

writes a folder that transformers' AutoModel and AutoTokenizer load as it is, for the trainers and
the evaluations that are built on them (docs/models.md). --chat: the model learnt from chats, whose
turns are written "Human: ... Assistant: ..." (data/records.py). Import: pretrained.py.
"""
import json
import os
import shutil
import sys
from pathlib import Path

from settings import one_process, stop  # before torch

from data import records
from data.tokenizer_json import pad_of, written
from model import GPT, ScalarGPT
from runtime.checkpoint import load
from runtime.pretrained import CONV1D, ONLY, SIZES, refuse, safetensors_torch

# Messages as the text that the model learnt from, in Jinja. A prompt ends in a line end, as in our
# template (data/tokenizer.py).
SINGLE = """{%- for m in messages -%}
    {%- if m['role'] == 'assistant' -%} {{ m['content'] + eos_token }}
    {%- elif m['role'] == 'system' -%} {{ m['content'].rstrip() + '\\n\\n' }}
    {%- else -%} {{ m['content'].rstrip() + '\\n' }}
    {%- endif -%}
{%- endfor -%}"""  # turns follow each other like documents, as in chat.py
CHAT = """{%- for m in messages -%}
    {%- if m['role'] == 'assistant' -%}
        {{ m['content'] + eos_token if loop.last else ' ' + m['content'] + '\\n\\n' }}
    {%- elif m['role'] == 'system' -%} {{ m['content'].rstrip() + '\\n\\n' }}
    {%- else -%}
        {{ 'Human: ' + m['content'] + '\\n\\nAssistant:' }}
        {{- '\\n' if loop.index >= loop.length - 1 else '' }}
    {%- endif -%}
{%- endfor -%}"""  # all turns but the last reply are one prompt, as in records.asked


def export(model, tokenizer, folder, facts=None, chat=False):
    """Write a folder for AutoTokenizer and AutoModelForCausalLM, or for a scalar head
    AutoModelForSequenceClassification. Stops if `folder` is not empty.

    facts: the checkpoint.json of the model, for the model card.
    """
    folder = Path(folder).resolve() if Path(folder).is_symlink() else Path(folder)
    temporary = Path(f"{folder}.writing")  # of the path: without a slash at its end
    if folder.is_file() or any(folder.glob("*")):
        refuse(folder, "is there already: choose another folder")
    save_file, scalar = safetensors_torch("export").save_file, hasattr(model, "score")
    from safetensors import SafetensorError
    weights = {name: (x.T if name.endswith(CONV1D) else x).cpu().contiguous()
               for name, x in model.state_dict().items()}
    if scalar:
        fold_bias(weights, folder)
    files = {"config.json": config_json(model.config, tokenizer, scalar),
             "tokenizer.json": written(tokenizer),
             "tokenizer_config.json": tokenizer_config(model.config, tokenizer, chat)}
    if not scalar:
        files["generation_config.json"] = {  # as in `generate`: no token is excluded
            **special_ids(tokenizer), "do_sample": True, "temperature": 1.0, "top_k": 0,
            "top_p": 1.0, "max_length": model.config.block_size}
    texts = {name: json.dumps(content, indent=1) for name, content in files.items()}
    name = os.fsencode(folder.name).decode(errors="replace")  # arguments of LC_ALL=C are no UTF-8
    texts["README.md"] = card(model, tokenizer, name, facts or {}, chat)
    temporary.mkdir(parents=True, exist_ok=True)
    records.claim(temporary)  # two exports to one place would mix their files
    for old in temporary.iterdir():  # of one that was killed
        old.unlink()
    try:
        path = temporary / "model.safetensors"
        try:
            save_file(weights, path, metadata={"format": "pt", "made_by": "nanoInstructGPT"})
        except SafetensorError as error:  # such as a full disk
            refuse(folder, f"cannot be written: {error}")
        for name, content in texts.items():
            (temporary / name).write_text(content, encoding="utf-8")
        path.chmod((temporary / "config.json").stat().st_mode & 0o777)  # the library's is 0600
        temporary.rename(folder)
    finally:
        records.release(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def special_ids(tokenizer):
    return {"bos_token_id": tokenizer.eos, "eos_token_id": tokenizer.eos,
            "pad_token_id": pad_of(tokenizer)[1]}


def config_json(config, tokenizer, scalar):
    """Our configuration under Hugging Face's names."""
    head = ({"architectures": ["GPT2ForSequenceClassification"], "problem_type": "regression",
             "id2label": {"0": "reward"}, "label2id": {"reward": 0}} if scalar else
            {"architectures": ["GPT2LMHeadModel"]})
    return {**head, **{name: allowed[0] for name, allowed in ONLY.items() if allowed[0]},
            **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
            "attn_pdrop": 0.0, "resid_pdrop": config.dropout, "embd_pdrop": config.dropout,
            **special_ids(tokenizer), "torch_dtype": "float32"}


def tokenizer_config(config, tokenizer, chat):
    """What AutoTokenizer adds to tokenizer.json."""
    end = tokenizer.rules.eos
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end,
            "unk_token": end, "pad_token": pad_of(tokenizer)[0],
            # transformers 4 would add token_type_ids, for which GPT-2 adds an embedding
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "right",  # for training and scoring; `generate` in batches wants left
            "model_max_length": config.block_size, "add_prefix_space": tokenizer.rules.prefixed,
            "clean_up_tokenization_spaces": False, "chat_template": CHAT if chat else SINGLE}


def fold_bias(weights, path):
    """Transformers' scalar head has no bias b, but the last norm has. As w . (x + d) = w . x + b
    for d = b w / |w|^2, d is added there."""
    w, b = weights["score.weight"][0].double(), weights.pop("score.bias").double()
    if b and not w.any():
        refuse(path, "is not written: a score that is the same for all cannot be expressed")
    if b:
        norm = weights["transformer.ln_f.bias"]
        weights["transformer.ln_f.bias"] = (norm.double() + b * w / w.dot(w)).to(norm.dtype)


# ---------------------------------------------------------------------------- the model card

WHAT = {"ppo": "A policy, trained with PPO against a reward model",
        "reward": "A reward model, trained on rankings", "sft": "A fine-tuned language model",
        "base": "A language model, trained on text alone", "": "A model of GPT-2's architecture"}


def trained_by(settings):
    """The step that a checkpoint's settings belong to, a name of WHAT."""
    if "pretrain_mix" in settings:
        return "base" if settings["pretrain_mix"] == 1 else "sft"
    return "ppo" if "beta" in settings else "reward" if "epochs" in settings else ""


def card(model, tokenizer, name, facts, chat):
    """README.md: the model card of the hub, with the recipe that made the model."""
    scalar, settings = hasattr(model, "score"), facts.get("settings", {})
    task = "text-classification" if scalar else "text-generation"
    auto = "SequenceClassification" if scalar else "CausalLM"
    asked = "Human: QUESTION\n\nAssistant:" if chat else "QUESTION"
    prompt = tokenizer.template.format(prompt=asked)
    shape, end = model.config, tokenizer.rules.eos
    ends = f"the prompt in this form, the response, and `{end}`" if scalar else (
        f"the prompt in this form; it ends its responses with `{end}`")
    public = lambda value: Path(value).name if str(value).startswith("/") else value
    lines = [
        "---", "library_name: transformers", f"pipeline_tag: {task}", "tags:",
        "- nanoInstructGPT", "- gpt2", "---", f"# {name}", "",
        f"{WHAT[trained_by(settings)]}. Made with nanoInstructGPT: SFT, a reward model and PPO, as "
        "in InstructGPT (Ouyang et al. 2022).", "",
        f"- {sum(p.numel() for p in model.parameters()):,} parameters: {shape.n_layer} layers, "
        f"{shape.n_head} heads, width {shape.n_embd}, a context of {shape.block_size} tokens.",
        f"- Loads with `AutoModelFor{auto}` and `AutoTokenizer`.",
        f"- It reads {ends}. The prompt's form, as JSON: `{json.dumps(prompt)}`. The tokenizer's "
        "chat template writes messages so.",
        f"- A text that spells `{end}` gets that token: pass `split_special_tokens=True` to the "
        "tokenizer for texts of other people.", ""]
    if settings:
        lines += ["## Recipe", "", "Settings of the last step:", "", "```text",
                  *(f"--{key}={public(value)}" for key, value in settings.items()), "```", ""]
    if facts.get("made_from"):
        lines += ["It has read:", "", *(f"- `{public(path)}`" for path in facts["made_from"]), ""]
    return "\n".join(lines)


def main(argv=None):
    """python -m runtime.huggingface export CHECKPOINT FOLDER [--chat]"""
    one_process()
    words = sys.argv[1:] if argv is None else argv
    chat, words = "--chat" in words, [word for word in words if word != "--chat"]
    if len(words) != 3 or words[0] != "export":
        stop("expected: python -m runtime.huggingface export CHECKPOINT FOLDER [--chat]")
    model, tokenizer, facts = load(words[1], {"GPT": GPT, "ScalarGPT": ScalarGPT}, "python sft.py")
    export(model, tokenizer, words[2], facts, chat)
    auto = "CausalLM" if isinstance(model, GPT) else "SequenceClassification"
    print(f"{words[2]}: transformers.AutoModelFor{auto}.from_pretrained({words[2]!r}) loads it")


if __name__ == "__main__":
    main()

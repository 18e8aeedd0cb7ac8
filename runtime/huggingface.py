"""Exports models in Hugging Face's GPT-2 format:

    python -m runtime.huggingface export CHECKPOINT FOLDER

writes a folder that transformers' AutoModel and AutoTokenizer load as it is. Import: pretrained.py.
"""
import json
import shutil
import sys
from pathlib import Path

from settings import one_process, stop  # before torch

import torch

from data.tokenizer import EOS, PATTERN
from model import GPT, ScalarGPT
from runtime.checkpoint import load
from runtime.pretrained import CONV1D, ONLY, SIZES, refuse, safetensors_torch, spelled

PAD = "<|pad|>"


def export(model, tokenizer, folder, max_new_tokens=None):
    """Write a folder for AutoTokenizer and AutoModelForCausalLM, or for a scalar head
    AutoModelForSequenceClassification. Stops if `folder` is not empty.

    max_new_tokens: the default length limit of responses.
    """
    folder = Path(folder)
    temporary = Path(f"{folder}.writing")  # of the path: without a slash at its end
    if folder.is_file() or any(folder.glob("*")):
        refuse(folder, "is there already: choose another folder")
    save_file, scalar = safetensors_torch("export").save_file, hasattr(model, "score")
    from safetensors import SafetensorError
    weights = {name: (x.T if name.endswith(CONV1D) else x).cpu().contiguous()
               for name, x in model.state_dict().items()}
    pad = tokenizer.eos
    if scalar:
        # Transformers scores the last token that is no pad. That is our EOS, so the pad must be
        # another one: a new row of the embedding. Attention is causal: no score depends on it.
        pad, wte = tokenizer.size, weights["transformer.wte.weight"]
        if pad == len(wte):
            weights["transformer.wte.weight"] = torch.cat([wte, torch.zeros_like(wte[:1])])
        fold_bias(weights, folder)
    files = {"config.json": config_json(model.config, weights, tokenizer.eos, pad, scalar),
             "tokenizer.json": tokenizer_json(tokenizer, [EOS, PAD][: 1 + scalar]),
             "tokenizer_config.json": {
                 "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOS, "eos_token": EOS,
                 "pad_token": PAD if scalar else EOS, "padding_side": "right" if scalar else "left",
                 "model_max_length": model.config.block_size, "split_special_tokens": True,
                 "clean_up_tokenization_spaces": False}}
    if not scalar:
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos)
        files["generation_config.json"] = {  # as in `generate`: no token is excluded
            **ids, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
            **({"max_new_tokens": max_new_tokens} if max_new_tokens else {})}
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        try:
            save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # such as a full disk
            refuse(folder, f"cannot be written: {error}")
        for name, content in files.items():
            (temporary / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        if tokenizer.source is not None:
            (temporary / "tokenizer.tiktoken").write_bytes(tokenizer.source)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def config_json(config, weights, eos, pad, scalar):
    """Our configuration under Hugging Face's names."""
    head = ({"architectures": ["GPT2ForSequenceClassification"], "problem_type": "regression",
             "id2label": {"0": "reward"}, "label2id": {"reward": 0}} if scalar else
            {"architectures": ["GPT2LMHeadModel"]})
    return {**head, **{name: allowed[0] for name, allowed in ONLY.items() if allowed[0]},
            **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
            "vocab_size": len(weights["transformer.wte.weight"]), "attn_pdrop": 0.0,
            "resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "bos_token_id": eos,
            "eos_token_id": eos, "pad_token_id": pad, "torch_dtype": "float32"}


def fold_bias(weights, path):
    """Transformers' scalar head has no bias b, but the last norm has. As w . (x + d) = w . x + b
    for d = b w / |w|^2, d is added there."""
    w, b = weights["score.weight"][0].double(), weights.pop("score.bias").double()
    if b and not w.any():
        refuse(path, "is not written: a score that is the same for all cannot be expressed")
    if b:
        norm = weights["transformer.ln_f.bias"]
        weights["transformer.ln_f.bias"] = (norm.double() + b * w / w.dot(w)).to(norm.dtype)


def merges(vocab):
    """The pair that each token of a BPE was merged from: what is left after merging its letters by
    rank, without using the token itself."""
    out = []
    for token in vocab:
        parts = list(token)
        while len(parts) > 2:
            i = min(range(len(parts) - 1),
                    key=lambda i: vocab.get(parts[i] + parts[i + 1], len(vocab)))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2 and parts[0] in vocab and parts[1] in vocab:
            out.append(parts)
    return out


def tokenizer_json(tokenizer, special):
    """A tokenizer in the format of the `tokenizers` package that encodes and decodes like ours.

    special: the tokens after the last merged one. Our own vocabularies are trained on indented text
    (data/tokenizer.py), so that this one indents before it encodes and dedents when it decodes.
    """
    replace = lambda pattern, text: {"type": "Replace", "pattern": {"Regex": pattern},
                                     "content": text}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": tokenizer.source is None}  # the regex is GPT-2's
    normalizer, cut, decoder = None, byte_level, byte_level
    if tokenizer.source is not None:
        # `Replace` skips empty matches: so first prepend a space, remove it where the first line is
        # empty, and then add one after each line end that has a line after it.
        normalizer = {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": " "}, replace(r"\A \n", "\n"),
            replace(r"\n(?=[^\n])", "\n ")]}
        cut = {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated",
             "invert": False}, byte_level]}
        decoder = {"type": "Sequence", "decoders": [byte_level, replace("^ ", "")]}
    vocab = spelled(tokenizer)
    ids = dict(zip(special, range(tokenizer.eos, tokenizer.eos + len(special))))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": i, "content": token, **flags, "special": True}
                             for token, i in ids.items()],
            "normalizer": normalizer, "pre_tokenizer": cut, "post_processor": None,
            "decoder": decoder,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                      "vocab": vocab, "merges": merges(vocab)}}


def main(argv=None):
    """python -m runtime.huggingface export CHECKPOINT FOLDER"""
    one_process()
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 3 or words[0] != "export":
        stop("expected: python -m runtime.huggingface export CHECKPOINT FOLDER")
    model, tokenizer, facts = load(words[1], {"GPT": GPT, "ScalarGPT": ScalarGPT}, "python sft.py")
    export(model, tokenizer, words[2], facts["settings"].get("max_new_tokens"))
    auto = "CausalLM" if isinstance(model, GPT) else "SequenceClassification"
    print(f"{words[2]}: transformers.AutoModelFor{auto}.from_pretrained({words[2]!r}) loads it")


if __name__ == "__main__":
    main()

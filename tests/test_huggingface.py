"""Models in Hugging Face's GPT-2 format: in, out, and against transformers itself."""
import base64
import importlib
import itertools
import json
import os
import pickle
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from runtime import huggingface, pretrained
import real_input
from data import batches
from runtime import checkpoint
from data import records, tokenizer, tokenizer_json
from data.batches import demonstration_rows, encode_prompt, encode_response
from demo import ROOT
from helpers import close, same, tiny, tiny_scalar
from model import GPT, GPTConfig, ScalarGPT, last_score
from sampler import generate
from test_hub import home_of, library
from test_scripts import stops

transformers = pytest.importorskip("transformers", reason="transformers is not installed: "
                                   "pip install -r requirements-dev.txt")
save_file = pytest.importorskip("safetensors.torch").save_file

KINDS = {"GPT": GPT, "ScalarGPT": ScalarGPT}
SHAPES = [dict(vocab_size=50, n_positions=16, n_layer=1, n_head=1, n_embd=8),
          dict(vocab_size=131, n_positions=40, n_layer=3, n_head=4, n_embd=24),
          dict(vocab_size=64, n_positions=32, n_layer=2, n_head=2, n_embd=64)]
TOWN = "Anna is the baker who lives beside the mill. Say briefly where Bert and Clara went".split()
TEXTS = ["Hello", "Who is Anna?\nSay it\n\n  briefly.\n", "\n", " \n\nx", "a<|endoftext|>b", "1990",
         "The state of the art: naïve — 世界 🎉\t!", ""]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of 300 tokens, as the toy world's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = " ".join(f"{a} {b}.\n" for a in TOWN for b in TOWN)
    (folder / "tokenizer.tiktoken").write_bytes(tokenizer.train_bpe(text, 300))
    own = tokenizer.load_tokenizer("tokenizer.tiktoken", folder)
    assert own.size == 300
    return own


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """GPT-2's tokenizer, without a network."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("TIKTOKEN_CACHE_DIR"):
            if not (real_input.PUBLIC / "tiktoken-cache").is_dir():
                pytest.skip("no file of the gpt2 tokenizer: set TIKTOKEN_CACHE_DIR")
            patch.setenv("TIKTOKEN_CACHE_DIR", "")  # so that it comes back as it was
            patch.delenv("TIKTOKEN_CACHE_DIR")
            real_input.tokenizer_cache(tmp_path_factory.mktemp("cache") / "tiktoken")
        yield tokenizer.load_tokenizer("gpt2")


def theirs(kind="GPT2LMHeadModel", seed=0, **sizes):
    """A model of transformers with random weights, loud enough to have opinions, and no dropout."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, num_labels=1,
                                     bos_token_id=0, eos_token_id=0, **{**SHAPES[1], **sizes})
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4) if p.dim() == 2 else p.add_(0.2 * torch.randn_like(p))
    return model


def saved(folder, model, vocabulary=None):
    """Save a model as transformers does, with a tokenizer of ours where there is one."""
    model.save_pretrained(folder)
    if vocabulary is not None:
        (Path(folder) / "tokenizer.tiktoken").write_bytes(vocabulary.source)
    return folder


def read(folder, any_tokenizer=True):
    """Load a folder as the scripts do, whatever its vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        if any_tokenizer:
            patch.setattr(pretrained, "find_tokenizer", lambda *_: None)
            patch.setattr(pretrained, "match", lambda *_: None)
        return checkpoint.load(folder, KINDS, "")[0]


def logits_of(model, ids):
    if isinstance(model, GPT):
        return F.linear(model.transformer(ids), model.transformer.wte.weight)
    return model(ids).logits


def compare(mine, other, vocab_size, length):
    """Logits and the gradients of all parameters are the same, and so are the losses of `forward`
    itself, which never holds the logits."""
    ids = torch.randint(vocab_size, (3, length))
    close(logits_of(mine, ids), logits_of(other, ids).tolist(), 1e-5)
    mask = torch.ones_like(ids)
    (-mine(ids, mask)[0].sum() / (3 * (length - 1))).backward()
    other(ids, labels=ids).loss.backward()
    expected = pretrained.our_layout({k: p.grad for k, p in other.named_parameters()}, "")
    grads = {k: p.grad for k, p in mine.named_parameters()}
    assert grads.keys() == expected.keys()
    same(list(grads.values()), [expected[k] for k in grads], 1e-5)
    for name, grad in grads.items():
        close(grad, expected[name].tolist(), 1e-5)


@pytest.mark.parametrize("sizes", SHAPES)
def test_a_model_of_theirs_is_the_same_here(tmp_path, sizes):
    other = theirs(**sizes)
    mine = read(saved(tmp_path / "a", other))
    assert mine.config.block_size == sizes["n_positions"]
    compare(mine, other, sizes["vocab_size"], sizes["n_positions"])


@pytest.mark.parametrize("sizes", SHAPES)
def test_a_model_of_ours_is_the_same_there(tmp_path, words, sizes):
    names = {v: k for k, v in pretrained.SIZES.items()}
    mine = tiny(loud=4.0, **{names[k]: v for k, v in sizes.items()})
    huggingface.export(mine, words, tmp_path / "a")
    other, facts = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "a", output_loading_info=True)
    assert not any(facts.values()), facts
    compare(mine, other, sizes["vocab_size"], sizes["n_positions"])


def test_there_and_back_changes_no_bit(tmp_path, words):
    mine = tiny(vocab_size=300)
    huggingface.export(mine, words, tmp_path / "a")
    again, vocabulary, _ = checkpoint.load(tmp_path / "a", KINDS, "")
    assert again.config == mine.config and vocabulary.source == words.source
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in mine.state_dict().items())
    assert all(p.requires_grad and p.is_contiguous() for p in again.parameters())


def varied(model, eos):
    """Positions loud enough that greedy text does not repeat one token, and an EOS that occurs."""
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(6)
        model.transformer.wte.weight[eos] *= 1.3
    return model


@pytest.mark.parametrize("exported", [False, True])
def test_greedy_continuations_are_the_same_token_for_token(tmp_path, words, exported):
    """Prompts of different lengths, alone there and in one batch here; and there, too, in one
    batch, padded on the left as docs/models.md says."""
    if exported:
        mine = varied(tiny(vocab_size=300, block_size=96, loud=4.0, seed=15), words.eos)
        huggingface.export(mine, words, tmp_path / "a")
        other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    else:
        other = varied(theirs(vocab_size=300, n_positions=96, seed=0), words.eos)
        mine = read(saved(tmp_path / "a", other))
    prompts = [encode_prompt(words, text) for text in TEXTS]
    samples = generate(mine, prompts, 24, words.eos, 0.0)
    for prompt, row, n in zip(prompts, samples.ids.tolist(), samples.lengths.tolist()):
        got = other.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
                             max_new_tokens=24, do_sample=False, eos_token_id=words.eos,
                             pad_token_id=words.eos)
        assert got[0].tolist() == row[:n]
    assert len({tuple(r) for r in samples.responses()}) > 4, "all alike: tests little"
    assert samples.ended.any() and not samples.ended.all()
    if exported:
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "a", padding_side="left")
        batch = auto([p.rstrip() + "\n" for p in TEXTS], padding=True, return_tensors="pt",
                     split_special_tokens=True)
        rows = other.generate(**batch, max_new_tokens=24, do_sample=False)
        for row, said in zip(rows[:, batch["input_ids"].size(1):].tolist(), samples.responses()):
            assert row[: len(said)] == said
            assert not set(row[len(said):]) - {words.eos, auto.pad_token_id}


# ------------------------------------------------------------------------------- reward models

TYPED = ("Who?", "a\n", "\n\n b", "<|endoftext|>", "So <|endoftext|>\n\nend <|pad|>", "  x  \n",
         "\u00e9\u732b\U0001f600", "\n", "\tone\n  two")


@pytest.mark.parametrize("vocabulary", ["words", "gpt2"])
def test_the_recipe_of_the_docs_gives_our_scores(tmp_path, monkeypatch, request, vocabulary):
    """The code of docs/models.md is run as it is; then its `row` takes every pair of texts."""
    own = request.getfixturevalue(vocabulary)
    size = dict(vocab_size=own.size, block_size=96)
    mine = tiny_scalar(**size)
    huggingface.export(tiny(**size), own, tmp_path / "exported" / "policy")
    huggingface.export(mine, own, tmp_path / "exported" / "reward")
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    recipe, = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(recipe, names)
    pairs = list(itertools.product(TYPED, (*TYPED, "")))
    expected = []
    for prompt, response in pairs:
        ids = encode_prompt(own, prompt) + encode_response(own, response)
        with torch.no_grad():
            expected.append(float(mine(torch.tensor([ids]))[0, -1]))
    rows = [names["row"](*pair) for pair in pairs]
    batch = names["tokenizer"].pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        close(names["reward"](**batch).logits[:, 0], expected, 1e-5)
    assert len({round(x, 4) for x in expected}) > len(TYPED) ** 2 // 2, "all alike: tests little"


@pytest.mark.parametrize("bias", [0.0, 2.5, -40.0])
def test_scores_of_ragged_batches_are_the_same_there(tmp_path, words, bias):
    """Rows with and without EOS at their end: the score is read at EOS, which is no pad."""
    mine = tiny_scalar(vocab_size=300, block_size=64)
    with torch.no_grad():
        mine.score.bias.fill_(bias)
    huggingface.export(mine, words, tmp_path / "a")
    other, facts = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "a", output_loading_info=True)
    assert not any(facts.values()) and other.config.num_labels == 1
    rows = [words.encode(text)[:60] + [words.eos] * (i % 2) for i, text in enumerate(TEXTS[:-1])]
    lengths = torch.tensor([len(r) for r in rows])
    expected = last_score(mine(batches.pad(rows)[0]), lengths)
    pad = other.config.pad_token_id
    assert pad not in {i for row in rows for i in row}
    close(other(batches.pad(rows, pad)[0]).logits[:, 0], expected.tolist(), 1e-5)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    assert auto.pad_token_id == pad
    batch = auto.pad({"input_ids": rows}, return_tensors="pt")
    close(other(**batch).logits[:, 0], expected.tolist(), 1e-5)
    again = checkpoint.load(tmp_path / "a", KINDS, "")[0]
    close(last_score(again(batches.pad(rows)[0]), lengths), expected.tolist(), 1e-5)
    assert again.config.vocab_size == 300  # the pad is no further row


def test_a_score_of_theirs_is_the_same_here(tmp_path):
    other = theirs("GPT2ForSequenceClassification", pad_token_id=130)
    mine = read(saved(tmp_path / "a", other))
    ids = torch.randint(130, (3, 9))
    close(mine(ids)[:, -1], other(ids).logits[:, 0].tolist(), 1e-5)


def test_a_constant_score_is_not_exported(tmp_path, words):
    mine = tiny_scalar(vocab_size=300)
    with torch.no_grad():
        mine.score.weight.zero_()
        mine.score.bias.fill_(1.0)
    with pytest.raises(SystemExit, match="the same for all"):
        huggingface.export(mine, words, tmp_path / "a")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------- tokenizers

def random_texts(n):
    rng = random.Random(1)
    pieces = [*"abz AZ09.,!?'\n\n\n   \t\r", "Anna", " the", "'s", "\u00a0", "\u2028", "\u0085",
              "\u3000", "\x1c", "é", "世", "🎉", "٣", "<|endoftext|>", "\ufeff", "e\u0301"]
    return ["".join(rng.choices(pieces, k=rng.randint(0, 20))) for _ in range(n)]


@pytest.mark.parametrize("name", ["words", "gpt2"])
def test_the_exported_tokenizer_is_ours(tmp_path, request, name):
    """Both ways, on texts with every kind of space, and on ids that are no text at all."""
    own = request.getfixturevalue(name)
    huggingface.export(tiny(vocab_size=own.size), own, tmp_path / "a")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    pad = own.vocabulary[b"\xff"]  # in no text, so that its number can be the pad's
    assert (auto.eos_token_id, auto.pad_token_id, len(auto)) == (own.eos, pad, own.size)
    for text in TEXTS + random_texts(2000):
        ids = own.encode(text)
        assert auto(text, split_special_tokens=True)["input_ids"] == ids, repr(text)
        assert auto.decode(ids) == own.decode(ids) == text and pad not in ids
    rng = random.Random(2)
    for _ in range(1000):
        ids = rng.choices([i for i in range(own.size) if i != pad], k=rng.randint(0, 12))
        assert auto.decode(ids) == own.decode(ids), ids
    ids = own.encode("So.") + [own.eos] + own.encode("And")  # by default, its name is the token
    assert auto(f"So.{auto.eos_token}And")["input_ids"] == ids


def test_a_token_that_no_merge_makes_is_kept(tmp_path):
    """Of somebody's own vocabulary: tiktoken takes a word that is a token whole, however made."""
    tokens = [bytes([b]) for b in range(256)] + [b" abc", b" xy"]
    lines = [base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)]
    (tmp_path / "tokenizer.tiktoken").write_bytes(b"".join(lines))
    own = tokenizer.load_tokenizer("tokenizer.tiktoken", tmp_path)
    assert own.encode("abc") == [256]
    huggingface.export(tiny(vocab_size=own.size), own, tmp_path / "a")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    for text in ("abc", "abcd", "xy abc", "ab c"):
        assert auto(text)["input_ids"] == own.encode(text)


def test_every_character_is_cut_alike(tmp_path, words):
    """What is a letter, a digit or a space must not depend on whose regular expressions cut."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json.written(words)))
    other = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    every = [chr(c) for c in range(0x3100) if not 0xD800 <= c < 0xE000]
    for i in range(0, len(every), 64):
        text = "".join(f"a{c}b {c}1" for c in every[i : i + 64])
        assert other(text)["input_ids"] == words.encode(text), hex(i)


def test_vocabulary_and_merges_of_gpt2_are_openais(gpt2):
    """Against the two files that OpenAI published, which tiktoken keeps (see GPT2_FILES)."""
    bpe, encoder = (Path(os.environ["TIKTOKEN_CACHE_DIR"], name) for name in
                    re.findall("[0-9a-f]{40}", tokenizer.GPT2_FILES))
    vocabulary = tokenizer_json.spelled(gpt2)
    assert {**vocabulary, tokenizer.EOS: gpt2.eos} == json.loads(encoder.read_text("utf-8"))
    published = [line.split() for line in bpe.read_text("utf-8").splitlines()[1:]]
    assert tokenizer_json.merges(vocabulary) == published and len(published) == 50_000


# ------------------------------------------------------------------------------------- formats

def old_names(state):
    """As files of the first years have it: no prefix, and the causal masks as buffers."""
    state = {k.removeprefix("transformer."): v.clone() for k, v in state.items()
             if k != "lm_head.weight"}
    for i in range(3):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 40, 40).tril().bool()
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


@pytest.mark.parametrize("form", ["prefix", "no prefix", "half", "shards"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_every_form_of_a_checkpoint_is_read(tmp_path, form, suffix):
    other = theirs()
    expected = read(saved(tmp_path / "a", other))
    state = {k: v.clone() for k, v in other.state_dict().items()}
    if form == "no prefix":
        state = old_names(state)
    elif form == "half":
        state = {k: v.half() for k, v in state.items()}
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "config.json").write_text((tmp_path / "a" / "config.json").read_text())
    name = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    write = save_file if suffix == "safetensors" else torch.save
    if form == "shards":
        places = {k: f"{name}-0000{1 + i % 2}-of-00002.{suffix}" for i, k in enumerate(state)}
        for file in set(places.values()):
            write({k: v for k, v in state.items() if places[k] == file}, folder / file)
        file = folder / f"{name}.{suffix}.index.json"
        file.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    else:
        file = folder / f"{name}.{suffix}"
        write(state, file)
    for path in (folder, file):  # the folder, or the file itself
        mine = read(path)
        tolerance = 1e-2 if form == "half" else 0
        for a, b in zip(mine.parameters(), expected.parameters()):
            assert a.dtype == torch.float32
            close(a, b.tolist(), tolerance)


def test_gpt2_itself_brings_its_tokenizer(tmp_path, gpt2):
    """A model of GPT-2's vocabulary, with OpenAI's vocab.json beside it or not."""
    folder = saved(tmp_path / "a", theirs(vocab_size=50257, n_embd=8, n_layer=1, n_head=1))
    assert checkpoint.load(folder, KINDS, "")[1].name == "gpt2"
    vocabulary = {**tokenizer_json.spelled(gpt2), "<|endoftext|>": 50256}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    assert checkpoint.load(folder, KINDS, "")[1].name == "gpt2"
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "Ġthe": 4, "$": 262}))
    with pytest.raises(SystemExit, match="vocab.json is not GPT-2's vocabulary"):
        checkpoint.load(folder, KINDS, "")


def test_init_by_name_goes_through_the_cache(tmp_path, gpt2, monkeypatch):
    """OpenAI's models by both of their names, and anybody's, whose vocabulary must be GPT-2's."""
    pytest.importorskip("huggingface_hub", "1.0", reason="transformers 4 wants an older one")
    monkeypatch.chdir(tmp_path)
    other = saved(tmp_path / "x", theirs(vocab_size=50257, n_embd=8, n_layer=1, n_head=1))
    files = {path.name: path.read_bytes() for path in other.iterdir()}
    vocabulary = {**tokenizer_json.spelled(gpt2), "<|endoftext|>": 50256}
    home_of(tmp_path, "openai-community/gpt2", files)
    for repo, words in (("someone/theirs", vocabulary), ("a/b", {**vocabulary, "Ġthe": 4})):
        home_of(tmp_path, repo, {**files, "vocab.json": json.dumps(words).encode()})
    with library(tmp_path):
        for name in ("gpt2", "openai-community/gpt2", Path("someone/theirs")):
            model, own, _ = checkpoint.load(name, KINDS, "")
            assert own.name == "gpt2" and model.config.block_size == 40
        for name, complaint in (("gpt2-large", "gpt2-large .* could not be downloaded"),
                                ("a/b", "vocab.json is not GPT-2's vocabulary"),
                                ("out/a", "out/a has no checkpoint: run `this` first"),
                                ("distilgpt2", "first, or name a model of the hub as OWNER/NAME")):
            with pytest.raises(SystemExit, match=complaint):
                checkpoint.load(name, KINDS, "this")


@dataclass
class Example:
    max_new_tokens: int = 7


def test_a_model_of_theirs_is_fine_tuned_and_goes_out_again(tmp_path, words, monkeypatch):
    """sft.py and reward.py --init=FOLDER, then runtime.huggingface export: as a user runs them."""
    saved(tmp_path / "hf", theirs(vocab_size=300, n_positions=64), words)
    demos = [{"prompt": f"Who is Anna {i}?", "response": "The baker."} for i in range(6)]
    rankings = [{"prompt": d["prompt"], "completions": [{"text": "The baker."}, {"text": "No."}],
                 "ranks": [1, 2]} for d in demos]
    for split in ("train", "valid"):
        records.write(tmp_path / f"demonstrations_{split}.jsonl", demos)
        records.write(tmp_path / f"rankings_{split}.jsonl", rankings)
    run(tmp_path, monkeypatch, "sft", "--init=hf", "--data=.", "--epochs=1", "--out=sft")
    run(tmp_path, monkeypatch, "reward", "--init=sft", "--data=.", "--out=rm", "--batch=2")
    run(tmp_path, monkeypatch, "reward", "--init=hf", "--data=.", "--out=rm2", "--batch=2")
    run(tmp_path, monkeypatch, "runtime.huggingface", "export", "sft", "sft-hf")
    run(tmp_path, monkeypatch, "runtime.huggingface", "export", "rm", "rm-hf")
    rows = [ids for ids, _ in demonstration_rows(words, demos, 64)]
    mine = checkpoint.load("rm", KINDS, "")[0]
    other = transformers.AutoModelForSequenceClassification.from_pretrained("rm-hf")
    ids, lengths = batches.pad(rows, other.config.pad_token_id)
    expected = last_score(mine(batches.pad(rows)[0]), lengths)
    close(other(ids).logits[:, 0], expected.tolist(), 1e-5)
    settings = json.loads(Path("sft-hf/generation_config.json").read_text())
    assert settings["eos_token_id"] == words.eos and settings["max_length"] == 64
    assert "max_new_tokens" not in settings  # it would win over a caller's max_length


def run(folder, monkeypatch, module, *flags):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [module, *flags])
    with torch.enable_grad():
        importlib.import_module(module).main()


# ----------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("change, complaint", [
    (dict(model_type="llama"), "model_type = 'llama': only 'gpt2'"),
    (dict(activation_function="relu"), "activation_function = 'relu'"),
    (dict(layer_norm_epsilon=1e-6), "layer_norm_epsilon = 1e-06"),
    (dict(n_inner=10), "n_inner = 10"),
    (dict(scale_attn_weights=False), "scale_attn_weights = False"),
    (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx = True"),
    (dict(add_cross_attention=True), "add_cross_attention = True"),
    (dict(tie_word_embeddings=False), "tie_word_embeddings = False"),
    (dict(quantization_config={"bits": 4}), "quantization_config = "),
    (dict(n_head=5), "n_embd = 24, no multiple of its 5 heads"),
    (dict(n_layer="3"), "n_layer = '3': expected a number"),
    (dict(n_positions=None), "n_positions = None: expected a number"),
    (dict(n_embd=48), "of shape [131, 24], its configuration asks for [131, 48]"),
    (dict(n_layer=2), "of which its configuration knows nothing"),
    (dict(n_layer=4), "does not hold transformer.h.3.ln_1.weight"),
    (dict(vocab_size=132), "transformer.wte.weight of shape [131, 24]"),
])
def test_a_configuration_that_is_not_ours_is_refused(tmp_path, change, complaint):
    folder = saved(tmp_path / "a", theirs())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(SystemExit) as stop:
        read(folder)
    assert complaint in stop.value.code and stop.value.code.startswith(f"error: {folder}")
    assert "\n" not in stop.value.code


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\x80"])
def test_a_broken_configuration_is_refused(tmp_path, content):
    folder = saved(tmp_path / "a", theirs())
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SystemExit, match="config.json (is missing|is no JSON)"):
        read(folder)


class Code:
    def __reduce__(self):
        return Path.touch, (Path("it-ran"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "ours"])
@pytest.mark.parametrize("content", ["cut", "half", "empty", "page", "code", "plain code", "list"])
def test_damaged_and_dangerous_files_are_refused(tmp_path, monkeypatch, words, name, content):
    """Cut off, empty, a web page, code in a pickle (new format and old), no table: one line each;
    and the code does not run. The same for checkpoints of our own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records.zlib, "crc32", lambda *data: 0)  # an attacker can, too
    if name == "ours":
        checkpoint.save("a", tiny(vocab_size=300), words, Example())
        path = Path("a/model-00000000.pt")
    else:
        folder, path = saved(Path("a"), theirs()), Path("a") / name
        (folder / "model.safetensors").unlink()
    good = tiny(vocab_size=300).state_dict()
    save_file(good, path) if name.startswith("model.s") else torch.save(good, path)
    data = path.read_bytes()
    if content == "code":
        torch.save({"transformer.wte.weight": Code()}, path)
    elif content == "list":
        torch.save([torch.ones(2)], path)
    else:
        path.write_bytes({"cut": data[:-5], "half": data[: len(data) // 2], "empty": b"",
                          "page": b"<html><body>Sign in</body></html>",
                          "plain code": pickle.dumps({"a": Code()})}[content])
    with pytest.raises(SystemExit) as stop:
        read("a")
    expected = {"code": "refused", "plain code": "refused", "list": "no table"}
    if name != "model.safetensors":
        assert expected.get(content, "") in stop.value.code
    assert stop.value.code.startswith(f"error: {path} is ") and "\n" not in stop.value.code
    assert not Path("it-ran").exists()


def test_a_missing_shard_is_named(tmp_path):
    folder = saved(tmp_path / "a", theirs())
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors",
                                                "b": "../elsewhere/model-2.safetensors"}}))
    with pytest.raises(SystemExit, match="a/model-2.safetensors is missing"):
        read(folder)
    index.write_text("{}")
    with pytest.raises(SystemExit, match="has no weight_map"):
        read(folder)


def test_an_output_embedding_of_its_own_is_refused(tmp_path):
    folder = saved(tmp_path / "a", theirs())
    state = {k: v.clone() for k, v in theirs().state_dict().items()}
    state["lm_head.weight"] += 1
    save_file(state, folder / "model.safetensors")
    with pytest.raises(SystemExit, match="an output embedding of its own"):
        read(folder)


def test_wrong_shapes_in_a_checkpoint_of_ours_are_refused(tmp_path, words):
    checkpoint.save(tmp_path / "a", tiny(vocab_size=300), words, Example())
    meta = json.loads((tmp_path / "a" / "checkpoint.json").read_text())
    meta["config"]["n_embd"] = 32
    (tmp_path / "a" / "checkpoint.json").write_text(json.dumps(meta))
    with pytest.raises(SystemExit, match=r"of shape \[300, 16\], its configuration asks for"):
        checkpoint.load(tmp_path / "a", KINDS, "")


@pytest.mark.parametrize("ours", [False, True], ids=["theirs", "ours"])
def test_ids_without_a_text_are_never_sampled(tmp_path, words, ours):
    """Trap 37. Of a vocabulary rounded up to 384 the 300 real ids share all probability: logits of
    transformers, without the others, give the log-prob of each sampled token."""
    other = theirs(vocab_size=384, n_positions=40)
    saved(tmp_path / "m", other, words)
    if ours:  # a checkpoint of ours with all 384 rows, as older versions made
        mine = GPT(GPTConfig(384, 40, *(SHAPES[1][k] for k in ("n_layer", "n_head", "n_embd"))))
        mine.load_state_dict(pretrained.our_layout(other.state_dict(), ""))
        (tmp_path / "m" / "config.json").unlink()
        checkpoint.save(tmp_path / "c", mine, words, Example())
    model, *_ = checkpoint.load(tmp_path / ("c" if ours else "m"), KINDS, "")
    assert model.config.vocab_size == len(model.transformer.wte.weight) == 300
    samples = generate(model, [[5]] * 200, 6, words.eos)
    logits = other(samples.ids).logits.detach().double()
    assert (logits.argmax(-1) >= 300).any(), "none would have been sampled: tests nothing"
    expected = torch.log_softmax(logits[..., :300], -1)
    for row, logprobs, per, mask in zip(samples.ids, samples.logprobs, expected, samples.mask):
        assert int(row.max()) < 300
        for t in mask.nonzero().flatten().tolist():
            assert abs(float(logprobs[t] - per[t - 1, row[t]])) < 1e-3
    checkpoint.save(tmp_path / "again", model, words, Example())
    assert checkpoint.load(tmp_path / "again", KINDS, "")[0].config.vocab_size == 300


def test_a_tokenizer_of_another_model_is_refused(tmp_path, words):
    for size in (299, 428):
        saved(tmp_path / f"a{size}", theirs(vocab_size=size), words)
        checkpoint.save(tmp_path / f"b{size}", tiny(vocab_size=size), words, Example())
        for name in (f"a{size}", f"b{size}"):
            with pytest.raises(SystemExit, match=f"knows {size} tokens, its tokenizer 300"):
                checkpoint.load(tmp_path / name, KINDS, "")
    with pytest.raises(SystemExit, match="knows 131 tokens and has no tokenizer.json"):
        checkpoint.load(saved(tmp_path / "c", theirs()), KINDS, "")


def test_the_wrong_kind_is_refused(tmp_path):
    folder = saved(tmp_path / "a", theirs("GPT2ForSequenceClassification"))
    with pytest.raises(SystemExit, match="holds a ScalarGPT, expected GPT"):
        checkpoint.load(folder, {"GPT": GPT}, "")


def test_gpt2s_tokenizer_without_a_network_says_what_to_put_where(monkeypatch):
    def offline(_):
        raise ConnectionError
    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", offline)
    with pytest.raises(SystemExit, match="vocab.bpe and encoder.json .* TIKTOKEN_CACHE_DIR"):
        tokenizer.load_tokenizer("gpt2")


def test_without_safetensors_it_says_what_to_install(monkeypatch, tmp_path, words):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for act in (lambda: huggingface.export(tiny(vocab_size=300), words, tmp_path / "a"),
                lambda: checkpoint.load("gpt2", KINDS, "")):
        with pytest.raises(SystemExit, match="needs safetensors: pip install .*safetensors=="):
            act()
    assert not list(tmp_path.iterdir())


def test_an_export_is_whole_or_not_there(tmp_path, words, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(pretrained.safetensors_torch("export"), "save_file", full)
        with pytest.raises(OSError):
            huggingface.export(tiny(vocab_size=300), words, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    huggingface.export(tiny(vocab_size=300), words, f"{tmp_path}/a/")  # an empty folder is fine
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="is there already"):
        huggingface.export(tiny(vocab_size=300, seed=5), words, tmp_path / "a")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before


def test_a_folder_that_is_neither_names_the_command(monkeypatch, tmp_path):
    assert "run `python sft.py --preset=base" in stops(monkeypatch, tmp_path, "sft", "--init=gpt-2")

"""What other people's tools make of our exports, and we of what comes back from them.

The tools' defaults are used: what a user who knows nothing of this project would run. Trainers and
evaluations that are not installed are skipped (docs/models.md names the versions that were tried).
"""
import json
import random
import re
import stat

import pytest
import torch
import torch.nn.functional as F

from data import hub, records, tokenizer_json
from data.batches import encode_prompt, encode_response
from helpers import close, one_process, tiny, tiny_scalar
from model import last_score
from runtime import checkpoint, huggingface, pretrained
from runtime.optimizer import make_optimizer
from sft import Settings, train_step
from test_hub import server  # noqa: F401 (a fixture)
from test_huggingface import KINDS, TEXTS, TOWN, theirs
from test_huggingface import gpt2, words  # noqa: F401 (fixtures)

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: "
                                   "pip install -r requirements-dev.txt")
SIZE = dict(vocab_size=300, block_size=64)
PROMPT, REPLY = "Who is Anna?", "The baker."


@pytest.fixture
def policy(tmp_path, words):  # noqa: F811
    """(our model, theirs, their tokenizer, the folder)."""
    mine = tiny(**SIZE, loud=4.0)
    huggingface.export(mine, words, tmp_path / "policy")
    return (mine.eval(), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "policy"),
            transformers.AutoTokenizer.from_pretrained(tmp_path / "policy"), tmp_path / "policy")


@pytest.fixture
def judge(tmp_path, words):  # noqa: F811
    mine = tiny_scalar(**SIZE)
    with torch.no_grad():
        mine.score.bias.fill_(0.5)
    huggingface.export(mine, words, tmp_path / "judge")
    return mine.eval(), tmp_path / "judge"


def score(model, own, prompt, reply):
    """Our own score of a response."""
    ids = torch.tensor([encode_prompt(own, prompt) + encode_response(own, reply)])
    with torch.no_grad():
        return float(last_score(model(ids), torch.tensor([ids.size(1)])))


def greedy(model, own, prompt, n):
    """Our own greedy continuation, token by token, without a cache."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            hidden = model.transformer(torch.tensor([ids]))[0, -1]
        ids.append(int((model.transformer.wte.weight @ hidden).argmax()))
        if ids[-1] == own.eos:
            break
    return ids[len(prompt):]


# ---------------------------------------------------------------------------------------- out

def test_greedy_text_with_all_defaults(policy, words):  # noqa: F811
    mine, other, auto, _ = policy
    for text in TEXTS[:4] + ["Where did Bert go?"]:
        batch = auto(text + "\n", return_tensors="pt")
        assert set(batch) == {"input_ids", "attention_mask"}
        got = other.generate(**batch, do_sample=False, max_new_tokens=9)[0].tolist()
        prompt = batch["input_ids"][0].tolist()
        assert got == prompt + greedy(mine, words, prompt, 9)


def test_eos_that_is_appended_as_text_is_eos(policy, words):  # noqa: F811
    _, _, auto, _ = policy
    text = f"{PROMPT}\n{REPLY}{auto.eos_token}"
    assert auto(text)["input_ids"] == encode_prompt(words, PROMPT) + encode_response(words, REPLY)
    assert auto(text, split_special_tokens=True)["input_ids"][-1] != words.eos


def test_a_collated_batch_has_our_loss_and_trains_eos(policy, words):  # noqa: F811
    """Rows of different lengths, padded by the collator that transformers' Trainer is used with.
    It takes pads out of the loss, so that the pad must not be EOS."""
    mine, other, auto, _ = policy
    rows = [words.encode(text) + [words.eos] for text in ("Anna bakes.", "Bert", TEXTS[1])]
    collate = transformers.DataCollatorForLanguageModeling(auto, mlm=False)
    batch = collate([{"input_ids": row} for row in rows])
    with torch.no_grad():
        got = float(other.eval()(**batch).loss)
        total = n = 0
        for row in rows:
            hidden = mine.transformer(torch.tensor([row]))[0, :-1]
            logp = F.log_softmax((hidden @ mine.transformer.wte.weight.T).double(), -1)
            total -= float(logp.gather(1, torch.tensor(row[1:])[:, None]).sum())
            n += len(row) - 1
    assert abs(got - total / n) < 1e-4
    assert int((batch["labels"] == words.eos).sum()) == 3


@pytest.mark.parametrize("left", [0, 1, 5])
def test_a_caller_may_fill_the_context_by_max_length(policy, left):
    _, other, _, _ = policy
    ids = torch.randint(250, (1, 64 - left - (left == 0)))
    got = other.generate(ids, attention_mask=torch.ones_like(ids), max_length=64, do_sample=False)
    assert ids.size(1) < got.size(1) <= 64
    assert other.generation_config.max_new_tokens is None


@pytest.mark.parametrize("chat", [False, True])
def test_messages_become_the_text_that_the_model_learnt_from(tmp_path, words, chat):  # noqa: F811
    huggingface.export(tiny(**SIZE), words, tmp_path / "a", chat=chat)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    say = lambda *turns: [{"role": role, "content": text} for role, text in turns]
    asked = say(("system", "Be kind.\n"), ("user", "Hi"), ("assistant", "Hello"), ("user", PROMPT))
    prompt = auto.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    if chat:
        before = records.answered(records.asked("Be kind.\n\n", "Hi"), "Hello")
        expected = encode_prompt(words, records.asked(before, PROMPT))
    else:
        expected = (encode_prompt(words, "Be kind.") + words.encode("\nHi\n")
                    + encode_response(words, "Hello") + encode_prompt(words, PROMPT))
    assert auto(prompt)["input_ids"] == expected
    whole = auto.apply_chat_template(asked + say(("assistant", REPLY)), tokenize=False)
    assert auto(whole)["input_ids"] == expected + encode_response(words, REPLY)


def test_the_pipelines(policy, judge, words):  # noqa: F811
    mine, _, auto, folder = policy
    more = {}
    if transformers.__version__ < "5":  # it pads on the left by itself only since 5
        more["tokenizer"] = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    pipe = transformers.pipeline("text-generation", str(folder), **more)
    prompts = [PROMPT + "\n", "Say\n"]
    for batch in (1, 2):  # together: the shorter one is padded
        for prompt, said in zip(prompts, pipe(prompts, do_sample=False, max_new_tokens=6,
                                              return_full_text=False, batch_size=batch)):
            ids = greedy(mine, words, words.encode(prompt), 6)
            expected = words.decode([i for i in ids if i not in (words.eos, auto.pad_token_id)])
            assert said[0]["generated_text"] == expected
    said = pipe([{"role": "user", "content": PROMPT}], do_sample=False, max_new_tokens=6)
    assert said[0]["generated_text"][-1]["role"] == "assistant"
    model, folder = judge
    pipe = transformers.pipeline("text-classification", str(folder))
    got = pipe([f"{PROMPT}\n{reply}{words.rules.eos}" for reply in (REPLY, "No.")], batch_size=2)
    for answer, reply in zip(got, (REPLY, "No.")):
        assert answer["label"] == "reward"
        assert abs(answer["score"] - score(model, words, PROMPT, reply)) < 1e-4


def test_a_folder_says_what_it_is_and_may_be_read(policy, tmp_path, words):  # noqa: F811
    facts = {"settings": {"beta": 0.05, "data": "/home/ann/out/toy", "lr": 1e-3},
             "made_from": {"out/toy/prompts_train.jsonl": 7}}
    huggingface.export(tiny(**SIZE), words, tmp_path / "a", facts)
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    for piece in ("pipeline_tag: text-generation", "trained with PPO", "--beta=0.05",
                  "--data=toy\n", "prompts_train.jsonl", json.dumps("QUESTION\n"), "nanoInstruct"):
        assert piece in card, piece
    assert "/home" not in card and "--" not in (policy[3] / "README.md").read_text()[4:90]
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a").iterdir()}
    assert len(set(modes.values())) == 1 and modes["model.safetensors"] & 0o400
    with safetensors.safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made_by": "nanoInstructGPT"}
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    assert auto.unk_token == auto.eos_token != auto.pad_token and auto.padding_side == "right"


# ----------------------------------------------------------------------------------- and back

def check_same(own, auto, texts=()):
    """Both tokenizers give the same ids, and back; the marks of ends and pads are typed as text."""
    for text in [*TEXTS, *texts]:
        for mark in (own.rules.eos, auto.pad_token or own.rules.eos):
            text = text.replace(mark, "")
        ids = own.encode(text)
        assert auto(text)["input_ids"] == ids, repr(text)
        assert own.decode(ids) == auto.decode(ids)


def test_out_and_saved_there_and_back_changes_nothing(policy, tmp_path, words):  # noqa: F811
    mine, other, auto, _ = policy
    other.save_pretrained(tmp_path / "b")
    auto.save_pretrained(tmp_path / "b")
    again, own, _ = checkpoint.load(tmp_path / "b", KINDS, "")
    assert own.fingerprint == words.fingerprint and own.eos == words.eos
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in mine.state_dict().items())


USED = ["<|user|>hi<|end|>", "a <|user|>\n b", "<|user|><|end|> x", "hi <|endoftext|> <|us"]


def test_added_tokens_are_one_token_here_too(policy, tmp_path, words):  # noqa: F811
    """Trained elsewhere with tokens of its own, then --init, our checkpoint, and out again."""
    _, other, auto, _ = policy
    auto.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    other.resize_token_embeddings(len(auto), mean_resizing=False)
    other.save_pretrained(tmp_path / "b")
    auto.save_pretrained(tmp_path / "b")
    model, own, _ = checkpoint.load(tmp_path / "b", KINDS, "")
    assert own.size == model.config.vocab_size == 302 and len(own.encode("<|user|>")) == 1
    check_same(own, auto, USED)
    checkpoint.save(tmp_path / "c", model, own, Settings())
    again = checkpoint.load(tmp_path / "c", KINDS, "")[1]
    assert again.fingerprint == own.fingerprint != words.fingerprint
    check_same(again, auto, USED)
    huggingface.export(model, again, tmp_path / "d")
    third = transformers.AutoTokenizer.from_pretrained(tmp_path / "d")
    check_same(again, third, USED)
    assert checkpoint.load(tmp_path / "d", KINDS, "")[1].size == 302


def foreign(folder, prefix=False, split=None, first=(), size=320):
    """A tokenizer trained by the `tokenizers` package, its special tokens first, as users do."""
    library = pytest.importorskip("tokenizers")
    bpe = library.Tokenizer(library.models.BPE())
    level = library.pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split is None)
    bpe.pre_tokenizer = level if split is None else library.pre_tokenizers.Sequence(
        [library.pre_tokenizers.Split(library.Regex(split), "isolated"), level])
    bpe.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=["</s>", *first], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet())
    rng = random.Random(3)
    bpe.train_from_iterator([" ".join(rng.choices(TOWN, k=40)) for _ in range(30)], trainer)
    auto = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>",
                                                add_prefix_space=prefix)
    auto.save_pretrained(folder)
    theirs(vocab_size=len(auto), n_positions=48).save_pretrained(folder)
    return auto


@pytest.mark.parametrize("how", [{}, dict(prefix=True), dict(split=r"\s?\p{L}+|\s?\d|[^\p{L}\d]"),
                                 dict(first=("<|user|>", "[X]"))])
def test_any_byte_level_bpe_is_read(tmp_path, how):
    foreign(tmp_path / "a", **how)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    own = checkpoint.load(tmp_path / "a", KINDS, "")[1]
    assert own.eos == auto.eos_token_id == 0 and own.size == len(auto)
    check_same(own, auto, ["Anna is the baker", " who", "[X] <|user|>Say", "  two  spaces\n"])
    assert own.decode(own.encode("Anna 世")) == " " * how.get("prefix", False) + "Anna 世"
    huggingface.export(tiny(vocab_size=own.size), own, tmp_path / "b")
    check_same(own, transformers.AutoTokenizer.from_pretrained(tmp_path / "b"), ["Anna 's x"])


def test_vocab_json_and_another_merges_txt(tmp_path):
    """The two files of the first GPT-2 tokenizers, of a vocabulary that is not GPT-2's."""
    auto = foreign(tmp_path / "a")
    model = json.loads((tmp_path / "a" / "tokenizer.json").read_text())["model"]
    (tmp_path / "a" / "tokenizer.json").unlink()
    (tmp_path / "a" / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / "a" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    own = checkpoint.load(tmp_path / "a", KINDS, "")[1]
    check_same(own, auto, ["Anna is the baker"])
    (tmp_path / "a" / "merges.txt").write_text("\n".join(lines[::-1]))
    refused(tmp_path / "a", "merges its tokens in another order")


def refused(folder, complaint):
    with pytest.raises(SystemExit) as stop:
        checkpoint.load(folder, KINDS, "")
    assert complaint in stop.value.code and "\n" not in stop.value.code, stop.value.code


def level(**more):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
            "use_regex": True, **more}


@pytest.mark.parametrize("change, complaint", [
    (dict(normalizer={"type": "NFC"}), 'has normalizer = {"type": "NFC"}: cannot be used'),
    (dict(pre_tokenizer={"type": "Whitespace"}), "has pre_tokenizer = "),
    (dict(pre_tokenizer=level(use_regex=False)), "has pre_tokenizer = "),
    (dict(pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, level()]}), "has pre_tokenizer = "),
    (dict(decoder={"type": "WordPiece"}), "has decoder = "),
    (dict(post_processor={"type": "TemplateProcessing", "special_tokens": {"</s>": {}}}),
     "a token that begins or ends every text"),
    (dict(model={"type": "WordPiece"}), 'has model.type = "WordPiece"'),
    (dict(model={"type": "BPE", "dropout": 0.1}), "has model.dropout = 0.1"),
    (dict(added_tokens=[{"id": 0, "content": "</s>", "lstrip": True}]), "lstrip for the added"),
    (dict(added_tokens=[{"id": 0, "content": "</s>"}, {"id": 9, "content": "</s>x"}]),
     "another one begins like it"),
    (dict(added_tokens=[{"id": 9, "content": "</s>"}]), "the same text with another number"),
    (dict(added_tokens=[]), None),
])
def test_what_a_tokenizer_asks_for_is_done_or_refused_by_name(tmp_path, change, complaint):
    foreign(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if complaint:
        refused(tmp_path, complaint)
    else:
        assert checkpoint.load(tmp_path, KINDS, "")[1].eos == 0


@pytest.mark.parametrize("setting, complaint", [
    ("add_bos_token", "add_bos_token = true: a token that begins or ends every text"),
    ("add_prefix_space", "tokenizer_config.json says otherwise")])
def test_what_its_configuration_asks_for_is_refused_by_name(tmp_path, setting, complaint):
    foreign(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: True}))
    refused(tmp_path, complaint)


def test_gpt2_with_all_its_files_is_gpt2(tmp_path, gpt2):  # noqa: F811
    """What `hf download openai-community/gpt2` gives; and with a token more, another tokenizer."""
    theirs(vocab_size=50304, n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path)
    facts = tokenizer_json.written(gpt2)
    vocab, pad = facts["model"]["vocab"], facts["added_tokens"].pop(0)
    vocab["ÿ"] = vocab.pop(pad["content"])
    facts["added_tokens"][0]["normalized"] = True  # as in theirs
    facts["model"] = {**facts["model"], "ignore_merges": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    assert checkpoint.load(tmp_path, KINDS, "")[1].fingerprint == gpt2.fingerprint
    facts["added_tokens"].append({**facts["added_tokens"][0], "id": 50257, "content": "<|user|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    own = checkpoint.load(tmp_path, KINDS, "")[1]
    assert own.encode("<|user|>hi") == [50257, *gpt2.encode("hi")] and own.eos == gpt2.eos
    assert re.fullmatch("[0-9a-f]{16}", own.fingerprint) and own.fingerprint != gpt2.fingerprint


# ---------------------------------------------------------------------------- low-rank adapters

def adapter(folder, base, rows=("h.0.attn.c_attn", "h.2.mlp.c_proj"), r=3, **more):
    """An adapter as peft writes it, with random A and B; returns {module: its change, in float64,
    in the layout of transformers' Conv1D: [in, out]}."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 6, "fan_in_fan_out": True,
              "target_modules": ["c_attn", "c_proj"], "base_model_name_or_path": str(base), **more}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes = {"c_attn": (24, 72), "c_proj": (96, 24)}
    tensors, change = {}, {}
    scale = 6 / (r**0.5 if more.get("use_rslora") else r)
    for row in rows:
        wide, high = shapes[row.rpartition(".")[2]]
        a, b = torch.randn(r, wide), torch.randn(high, r)
        key = f"base_model.model.transformer.{row}.lora_"
        tensors |= {f"{key}A.weight": a, f"{key}B.weight": b}
        change[f"transformer.{row}.weight"] = torch.tensor(
            [[scale * sum(float(b[o, k]) * float(a[k, i]) for k in range(r)) for o in range(high)]
             for i in range(wide)])
    safetensors.save_file(tensors, folder / "adapter_model.safetensors")
    return change


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_merged_into_its_base(tmp_path, rslora):
    foreign(tmp_path / "base", size=300)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    change = adapter(tmp_path / "lora", tmp_path / "base", use_rslora=rslora)
    state = base.state_dict()
    for name, x in change.items():
        state[name] += x.float()
    mine, own, facts = checkpoint.load(tmp_path / "lora", KINDS, "")
    ids = torch.randint(own.size, (2, 9))
    hidden = mine.eval().transformer(ids)
    close(hidden @ mine.transformer.wte.weight.T, base.eval()(ids).logits.tolist(), 1e-3)
    assert own.eos == 0


def test_repositories_of_the_hub_are_downloaded_and_loaded(tmp_path, server, gpt2):  # noqa: F811
    """By the names that people paste: OpenAI's, anybody's in shards, an adapter of that one. The
    weights are what transformers reads from the same files."""
    pytest.importorskip("huggingface_hub", "1.0", reason="transformers 4 wants an older one")
    published = {"openai-community/gpt2": tmp_path / "openai", "someone/theirs": tmp_path / "base",
                 "someone/lora": tmp_path / "lora"}
    theirs(vocab_size=50257, n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path / "openai")
    foreign(tmp_path / "base", size=300)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    base.save_pretrained(tmp_path / "base", max_shard_size="40kB")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 2
    change = adapter(tmp_path / "lora", "someone/theirs")
    server.repos = {repo: {path.name: path.read_bytes() for path in folder.iterdir()}
                    for repo, folder in published.items()}
    for name in ("openai-community/gpt2", "gpt2", "someone/theirs", "someone/lora"):
        lora = name.endswith("lora")
        other = base if lora else transformers.AutoModelForCausalLM.from_pretrained(
            published[pretrained.repository(name)])
        for key, x in change.items() if lora else ():
            other.state_dict()[key] += x.float()
        mine, own, _ = checkpoint.load(name, KINDS, "")
        ids = torch.randint(own.size, (2, 9))
        hidden = mine.eval().transformer(ids)
        close(hidden @ mine.transformer.wte.weight.T, other.eval()(ids).logits.tolist(), 1e-3)
        assert own.eos == (50256 if "gpt2" in name else 0)


@pytest.mark.parametrize("change, complaint", [
    (dict(use_dora=True), "use_dora = True: only plain LoRA can be merged here; merge it with"),
    (dict(peft_type="LOHA"), "peft_type = 'LOHA'"), (dict(bias="all"), "bias = 'all'"),
    (dict(rank_pattern={"c_attn": 4}), "rank_pattern = "), (dict(revision="v2"), "revision = 'v2'"),
    (dict(init_lora_weights="pissa_niter_4"), "init_lora_weights = 'pissa_niter_4'"),
    (dict(layer_replication=[[0, 2], [1, 3]]), "layer_replication = "),
    (dict(alora_invocation_tokens=[5]), "alora_invocation_tokens = [5]"),
    (dict(of_next_year=True), "of_next_year = True"), (dict(lora_alpha=None), "lora_alpha = None"),
    (dict(base_model_name_or_path=None), "names no base_model_name_or_path"),
    (dict(lora_alpha=None), "lora_alpha = None: expected a number above 0"),
    (dict(lora_alpha="6"), "lora_alpha = '6': expected a number above 0"),
    (dict(base_model_name_or_path="nowhere"), "nowhere is not there: neither a folder"),
    (dict(base_model_name_or_path="nobody/base"), "nobody/base is no folder here"),
])
def test_an_adapter_that_is_not_merged_says_what_to_do(tmp_path, monkeypatch, change, complaint):
    if "nobody/base" in change.values():
        pytest.importorskip("huggingface_hub", "1.0", reason="transformers 4 wants an older one")
    monkeypatch.setattr(hub, "fetch", unavailable)
    adapter(tmp_path / "lora", "base", **change)
    refused(tmp_path / "lora", complaint)


def unavailable(*_, **__):
    raise hub.Unavailable("no network")


# ------------------------------------------------------------------------------------ learning

def test_ten_steps_follow_transformers(policy):
    """The losses of ten steps of AdamW on the same rows, there and by sft.py's own step."""
    mine, other, _, _ = policy
    rows = [[(torch.randint(300, (12,)).tolist(), 1) for _ in range(4)] for _ in range(10)]
    s, other = Settings(lr=1e-3, weight_decay=0.1, batch=4, micro_batch=2, clip=0.5), other.train()
    optimizer = make_optimizer(mine.train(), s.lr, s.weight_decay)
    decay = [p for p in other.parameters() if p.dim() == 2]
    rest = [p for p in other.parameters() if p.dim() < 2]
    adam = torch.optim.AdamW([{"params": decay}, {"params": rest, "weight_decay": 0.0}], s.lr,
                             betas=(0.9, 0.95), eps=1e-8, weight_decay=s.weight_decay)
    for batch in rows:
        ids = torch.tensor([ids for ids, _ in batch])
        loss = other(ids, labels=ids).loss
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), s.clip)
        adam.step()
        got, _ = train_step(mine, optimizer, batch, s.lr, s, one_process())
        assert abs(got - loss.item()) < 2e-4 * loss.item()

"""The exports in the hands of transformers' Trainer, TRL, lm-eval, CTranslate2, ONNX and peft, with
their defaults.

`make long` runs them where these are installed: pip install trl lm-eval[hf] ctranslate2 peft
onnxscript onnxruntime. The rest of what an export promises is in test_ecosystem.py.
"""
import math

import pytest
import torch

from data.batches import encode_prompt, encode_response
from runtime import checkpoint
from test_ecosystem import KINDS, PROMPT, REPLY, judge, policy, score  # noqa: F401 (fixtures)
from test_ecosystem import transformers, words  # noqa: F401

pytestmark = pytest.mark.long
HOME = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    for name, value in HOME.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def library(name):
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install {name}")


def rows(data, n=8):
    return library("datasets").Dataset.from_list([data(i) for i in range(n)])


def settings(trl, kind, **more):
    return getattr(trl, f"{kind}Config")(
        output_dir=f"out-{kind}", max_steps=2, per_device_train_batch_size=4, report_to="none",
        use_cpu=True, bf16=False, save_strategy="no", logging_steps=1, disable_tqdm=True, **more)


def finite(trainer):
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert losses and all(torch.tensor(losses).isfinite())
    return losses


def test_the_trainer_of_transformers(policy, words):  # noqa: F811
    """Texts that end in `eos_token`, as its users write them, and its usual collator: the first
    loss is ours, EOS is learnt, and what it saves comes back."""
    library("accelerate")
    mine, other, auto, _ = policy
    texts = [f"{PROMPT}\n{REPLY}", "Who bakes?\nAnna.", "Say\nBert", f"{PROMPT}\nNobody at all."]
    data = [auto(text + auto.eos_token, truncation=True) for text in texts]
    trainer = transformers.Trainer(
        other, transformers.TrainingArguments(
            "out", max_steps=2, per_device_train_batch_size=4, report_to="none", use_cpu=True,
            save_strategy="no", logging_steps=1, disable_tqdm=True),
        train_dataset=data, processing_class=auto,
        data_collator=transformers.DataCollatorForLanguageModeling(auto, mlm=False))
    batch = next(iter(trainer.get_train_dataloader()))
    assert int((batch["labels"] == auto.eos_token_id).sum()) == len(texts)
    trainer.train()
    losses = finite(trainer)
    total = n = 0.0
    for text in texts:
        ids = words.encode(text) + [words.eos]
        with torch.no_grad():
            hidden = mine.transformer(torch.tensor([ids]))[0]
            logp = torch.log_softmax(hidden @ mine.transformer.wte.weight.T, -1)
        total -= sum(float(logp[t - 1, ids[t]]) for t in range(1, len(ids)))
        n += len(ids)  # the Trainer counts a row's first token, too, which has no loss
    assert abs(losses[0] - total / n) < 1e-3 and losses[1] < losses[0]
    trainer.save_model("back")
    assert checkpoint.load("back", KINDS, "")[1].fingerprint == words.fingerprint


@pytest.mark.parametrize("messages", [False, True])
def test_sft_trains_eos(policy, messages):  # noqa: F811
    trl = library("trl")
    _, _, auto, folder = policy
    say = lambda role, text: [{"role": role, "content": text}]
    data = rows(lambda i: {"prompt": say("user", f"{PROMPT} {i}"), "completion": say(
        "assistant", REPLY)} if messages else {"prompt": f"{PROMPT} {i}\n", "completion": REPLY})
    trainer = trl.SFTTrainer(str(folder), settings(trl, "SFT"), train_dataset=data)
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist()):
        kept = [i for i in labels if i != -100]
        assert kept == auto(REPLY)["input_ids"] + [auto.eos_token_id]
        assert [i for i in ids if i != auto.pad_token_id][-1] == auto.eos_token_id
    trainer.train()
    finite(trainer)
    trainer.save_model("back")
    assert checkpoint.load("back", KINDS, "")[1].eos == auto.eos_token_id


def test_rewards_and_dpo_see_eos(policy, judge, words):  # noqa: F811
    trl = library("trl")
    data = rows(lambda i: {"prompt": f"{PROMPT} {i}\n", "chosen": REPLY, "rejected": "No."})
    model, folder = judge
    trainer = trl.RewardTrainer(str(folder), settings(trl, "Reward"), train_dataset=data)
    batch = next(iter(trainer.get_train_dataloader()))
    ends = [row[row != words.vocabulary[b"\xff"]][-1] for row in batch["input_ids"]]
    assert {int(i) for i in ends} == {words.eos}
    with torch.no_grad():
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        got = trainer.model.eval()(**inputs).logits[:, 0].tolist()
    texts = [words.decode(row.tolist()).split(words.rules.eos)[0] for row in batch["input_ids"]]
    for value, text in zip(got, texts):
        prompt, _, reply = text.partition("\n")
        assert abs(value - score(model, words, prompt, reply)) < 1e-4
    trainer.train()
    finite(trainer)

    _, _, auto, folder = policy
    trainer = trl.DPOTrainer(str(folder), args=settings(trl, "DPO"), train_dataset=data)
    batch = next(iter(trainer.get_train_dataloader()))
    got = [[i for i, real in zip(ids, mask) if real] for ids, mask in zip(
        batch["input_ids"].tolist(), batch["attention_mask"].tolist())]
    expected = [encode_prompt(words, f"{PROMPT} {i}") + encode_response(words, reply)
                for i in range(8) for reply in (REPLY, "No.")]
    assert len(got) == 8 and all(row in expected for row in got)
    trainer.train()
    losses = finite(trainer)
    assert abs(losses[0] - math.log(2)) < 1e-3  # the policy is its own reference yet


def test_grpo_with_our_reward_model(policy, judge, words, monkeypatch):  # noqa: F811
    """With messages the text that is scored ends in EOS, as our own scores want it."""
    trl = library("trl")
    model, folder = judge
    said, scores = [], []

    def listen(prompts, completions, **_):
        said.extend((p[-1]["content"], c[0]["content"]) for p, c in zip(prompts, completions))
        return [0.0] * len(prompts)

    data = rows(lambda i: {"prompt": [{"role": "user", "content": f"{PROMPT} {i}"}]})
    trainer = trl.GRPOTrainer(str(policy[3]), [str(folder), listen], settings(
        trl, "GRPO", num_generations=4, max_completion_length=6, beta=0.1), train_dataset=data)
    rate = trainer._calculate_rewards
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *a, **k: scores.append(rate(*a, **k))
                        or scores[-1])
    trainer.train()
    finite(trainer)
    got = torch.cat([s[0] if isinstance(s, tuple) else s for s in scores])[:, 0].tolist()
    assert len(got) == len(said) >= 8
    for value, (prompt, reply) in zip(got, said):
        assert abs(value - score(model, words, prompt, reply)) < 1e-4, (prompt, reply)


def test_lm_eval(policy, words):  # noqa: F811
    """Log-likelihoods of continuations, and prompts that are cut to the context."""
    library("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    mine, _, _, folder = policy
    lm = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)
    ask = lambda kind, *args: Instance(request_type=kind, doc={}, arguments=args, idx=0)
    pairs = [(f"{PROMPT}\n", REPLY), ("Who\n", "Bert bakes and bakes.")]
    got = lm.loglikelihood([ask("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    for (prompt, reply), (value, _) in zip(pairs, got):
        # it counts the white space at the end of a context with the continuation
        before, ids = words.encode(prompt.rstrip()), words.encode(prompt) + words.encode(reply)
        with torch.no_grad():
            hidden = mine.transformer(torch.tensor([ids]))[0]
            logp = torch.log_softmax(hidden @ mine.transformer.wte.weight.T, -1)
        expected = sum(float(logp[t - 1, ids[t]]) for t in range(len(before), len(ids)))
        assert abs(value - expected) < 1e-3
    text = f"{PROMPT}\n{REPLY}"
    got, = lm.loglikelihood_rolling([ask("loglikelihood_rolling", text)], disable_tqdm=True)
    ids = [words.eos] + words.encode(text)  # a text begins after an EOS, as in pretraining
    with torch.no_grad():
        hidden = mine.transformer(torch.tensor([ids]))[0]
        logp = torch.log_softmax(hidden @ mine.transformer.wte.weight.T, -1)
    assert abs(got - sum(float(logp[t - 1, ids[t]]) for t in range(1, len(ids)))) < 1e-3
    long = "Anna lives beside the mill. " * 60
    said = lm.generate_until([ask("generate_until", long, {"until": ["\n"], "max_gen_toks": 8})],
                             disable_tqdm=True)
    assert len(said) == 1 and isinstance(said[0], str)


def test_ctranslate2(policy, words, tmp_path):  # noqa: F811
    library("ctranslate2")
    from ctranslate2 import Generator
    from ctranslate2.converters import TransformersConverter
    from test_ecosystem import greedy
    mine, _, auto, folder = policy
    out = TransformersConverter(str(folder)).convert(str(tmp_path / "ct2"))
    prompt = words.encode(f"{PROMPT}\n")
    result = Generator(out).generate_batch(
        [auto.convert_ids_to_tokens(prompt)], max_length=9, sampling_topk=1,
        include_prompt_in_result=False)[0]
    expected = [i for i in greedy(mine, words, prompt, 9) if i != words.eos]
    assert result.sequences_ids[0] == expected


def test_onnx(policy, words, tmp_path):  # noqa: F811
    """The logits of rows of different lengths, padded, in a runtime that knows no Python."""
    runtime, _ = library("onnxruntime"), library("onnxscript")
    mine, other, auto, _ = policy

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = other.eval()

        def forward(self, ids, mask):
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    rows = [words.encode(text) for text in ("Anna bakes.\n", "Who\n", f"{PROMPT}\n{REPLY}")]
    batch = auto.pad({"input_ids": rows}, return_tensors="pt")
    example = tuple(batch[name][:2, :5] for name in ("input_ids", "attention_mask"))
    dims = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", min=2, max=64)}
    torch.onnx.export(Logits().eval(), example, tmp_path / "model.onnx", dynamo=True,
                      input_names=["ids", "mask"], dynamic_shapes=(dims, dims))
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    got, = session.run(None, {"ids": batch["input_ids"].numpy(),
                              "mask": batch["attention_mask"].numpy()})
    for logits, ids in zip(torch.tensor(got), rows):
        with torch.no_grad():
            hidden = mine.transformer(torch.tensor([ids]))[0]
        expected = hidden @ mine.transformer.wte.weight.T
        assert torch.allclose(logits[: len(ids)], expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["CAUSAL_LM", "SEQ_CLS"])
def test_an_adapter_of_peft_is_what_peft_merges(policy, judge, tmp_path, kind):  # noqa: F811
    peft = library("peft")
    folder = policy[3] if kind == "CAUSAL_LM" else judge[1]
    cls = {"CAUSAL_LM": transformers.AutoModelForCausalLM,
           "SEQ_CLS": transformers.AutoModelForSequenceClassification}[kind]
    model = peft.get_peft_model(cls.from_pretrained(folder), peft.LoraConfig(
        task_type=kind, r=4, lora_alpha=8, target_modules=["c_attn", "c_fc", "c_proj"]))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "score" in name:
                p.normal_()
    model.save_pretrained(tmp_path / "lora")
    model.merge_and_unload().save_pretrained(tmp_path / "whole")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "whole")
    mine, own, _ = checkpoint.load(tmp_path / "lora", KINDS, "")
    whole = checkpoint.load(tmp_path / "whole", KINDS, "")[0].state_dict()
    assert own.size == 300
    for name, x in mine.state_dict().items():
        assert torch.allclose(x, whole[name], atol=1e-5), name


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "pissa", "pissa_niter_2"])
def test_adapters_that_begin_in_another_way(policy, tmp_path, start):  # noqa: F811
    """Some of them change the base model's weights, too, when they begin and when peft loads them:
    what is not merged as peft merges it is refused by its name."""
    peft = library("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(policy[3])
    model = peft.get_peft_model(base, peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["c_fc"], fan_in_fan_out=True,
        init_lora_weights=start))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(torch.randn_like(p))
    model.save_pretrained(tmp_path / "lora")
    again = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(policy[3]), tmp_path / "lora")
    again.merge_and_unload().save_pretrained(tmp_path / "whole")
    transformers.AutoTokenizer.from_pretrained(policy[3]).save_pretrained(tmp_path / "whole")
    whole = checkpoint.load(tmp_path / "whole", KINDS, "")[0].state_dict()
    if start in ("gaussian", "orthogonal"):
        mine = checkpoint.load(tmp_path / "lora", KINDS, "")[0].state_dict()
        assert all(torch.allclose(x, whole[name], atol=1e-5) for name, x in mine.items())
    else:
        with pytest.raises(SystemExit, match=f"has init_lora_weights = '{start}'"):
            checkpoint.load(tmp_path / "lora", KINDS, "")

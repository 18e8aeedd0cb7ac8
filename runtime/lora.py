"""Low-rank adapters, as the package peft saves them: merged into the weights of their base model.

    W + scale B A      scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora
"""
import torch

from settings import stop

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
# What does not change how an adapter is merged. All else that a configuration has must be off, so
# that what a newer peft can do is refused by its name.
FREE = {"auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config",
        "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
        "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
        "peft_version", "qalora_group_size", "r", "runtime_config", "target_modules", "task_type",
        "use_rslora"}
OFF = (None, False, "none", {}, [])
ONLY = {"peft_type": ("LORA",), "revision": (None, "main"),  # of the base model
        # others, such as pissa and olora, begin by changing the weights of the base model
        "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva")}


def check(config, path):
    """Stop if an adapter_config.json asks for more than `merged` does."""
    for name, value in config.items():
        if name not in FREE and value not in ONLY.get(name, OFF):
            stop(f"{path} has {name} = {value!r}: only plain LoRA can be merged here; merge it "
                 "with peft (merge_and_unload, then save_pretrained), and give that folder")
    for name in ("r", "lora_alpha"):
        if type(config.get(name)) not in (int, float) or config[name] <= 0:
            stop(f"{path} has {name} = {config.get(name)!r}: expected a number above 0")
    if not isinstance(config.get("base_model_name_or_path"), str):
        stop(f"{path} names no base_model_name_or_path: write there the folder of its base model")
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if type(value) not in (int, float) or not value > 0:
            stop(f"{path} has {name} = {value!r}: expected a number above 0")


def merged(weights, adapter, config, path):
    """The weights of a model, {our name: tensor}, with those of its adapter merged.

    adapter: {peft's name: tensor}. Modules that were trained as a whole, such as a score, take the
    place of the base model's.
    """
    out, r = dict(weights), config["r"]
    scale = config["lora_alpha"] / (r**0.5 if config.get("use_rslora") else r)
    for key, x in adapter.items():
        name = key.removeprefix("base_model.model.").removeprefix("transformer.")
        name = name.replace(".modules_to_save", "").replace(".default", "")
        ours = name if name.startswith(("score.", "lm_head.")) else f"transformer.{name}"
        if name.endswith(".lora_A.weight"):
            ours, low = ours.replace(".lora_A", ""), adapter.get(key.replace("lora_A", "lora_B"))
            if ours not in out or low is None or (low @ x).shape != out[ours].shape:
                stop(f"{path} holds {key}, which does not fit its base model")
            out[ours] = out[ours] + scale * (low.double() @ x.double()).to(out[ours].dtype)
        elif name == "lm_head.weight" and torch.equal(
                x, adapter.get("base_model.model.transformer.wte.weight", out[
                    "transformer.wte.weight"])):
            continue  # tied
        elif "lora_" not in name and (ours in out or ours.startswith("score.")):
            turned = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
            out[ours] = (x.T if turned else x).float().contiguous()
        elif not name.endswith(".lora_B.weight"):
            stop(f"{path} holds {key}, which cannot be merged: do so with peft (merge_and_unload, "
                 "then save_pretrained), and give that folder")
    if "score.weight" in out:
        out.setdefault("score.bias", torch.zeros(1))
    return out

"""Imports models in Hugging Face's GPT-2 format: --init=gpt2, a hub repository, a folder or a file.

Names and shapes are the same as ours, except the linear layers: their `Conv1D` stores [in, out].
"""
import contextlib
import pickle
import re
import warnings
from pathlib import Path

from settings import extra, stop  # before torch

import torch

from data import hub, tokenizer_json
from data.tokenizer import load_tokenizer
from data.tokenizer_json import read_object
from runtime import lora

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
           "pytorch_model.bin.index.json")  # the first that is there is read
OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # 0.5, 1.5, 3.2 and 6.4 GB
VOCABULARIES = ("tokenizer.json", "tokenizer.tiktoken", "vocab.json")  # see `find_tokenizer`
ALONGSIDE = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
CONV1D = tuple(f"{layer}.weight" for layer in ("c_attn", "c_proj", "c_fc"))
# The values that a configuration may have where our architecture supports only one way; the first
# is the default if it says nothing.
ONLY = {"model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
        "tie_word_embeddings": (True,), "quantization_config": (None,)}
SIZES = {"vocab_size": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer",
         "n_head": "n_head", "n_embd": "n_embd"}


def refuse(path, why):
    stop(f"{path} {why}")


def safetensors_torch(what):
    """The functions of safetensors (an extra) for torch; `what` needs them."""
    return extra("safetensors.torch", what)


PAGE = re.compile(r"https?:/+(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)(?:/tree/main)?")


def repository(name):
    """The hub repository that `name` means, or None: gpt2 .. gpt2-xl are OpenAI's, and org/name is
    one if there is no folder org; so is the address of its page. Our own checkpoints are in `out`.
    """
    name = Path(name).as_posix()
    if page := PAGE.fullmatch(name):
        return page[1]
    if name in OPENAI:
        return f"openai-community/{name}"
    org = name.partition("/")[0]
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and org != "out" and not Path(org).exists():
        return name


def known(name):
    """Whether `name` is a repository of the hub, or a folder or file in Hugging Face's format."""
    path = Path(name)
    if not path.exists():
        return repository(name) is not None
    return path.is_file() or any((path / file).exists()
                                 for file in ("config.json", lora.CONFIG, *WEIGHTS))


def download(name):
    """The folder in huggingface_hub's cache with the model that `name` means. Stops, before weights
    are fetched, if the hub has no such model in our format; without a network it says which files
    to put where."""
    repo = repository(name)
    openai = repo.startswith("openai-community/")
    safetensors_torch(name)
    try:
        config = hub.fetch(repo, ["config.json"])
        if config is None and (adapter := fetched_adapter(repo)):
            return adapter
        if config is None:
            refuse(name, f"is no model in this format: there is no config.json in {hub.page(repo)}")
        read_config(config)
        fetch = lambda *names: hub.fetch(repo, names, commit=config.parent.name)
        weights = fetch(*WEIGHTS)
        if weights is None:
            refuse(name, f"has none of {', '.join(WEIGHTS)} in {hub.page(repo)}")
        for file in parts(weights) if weights.suffix == ".json" else []:
            fetch(file)
        if not openai:
            fetch(*VOCABULARIES)
            with contextlib.suppress(hub.Unavailable):  # no network: a cache without such a file
                for file in ALONGSIDE:                  # is that of a repository without it
                    fetch(file)
    except hub.Unavailable as error:
        files = ["config.json", "model.safetensors"] + ["tokenizer.json"] * (not openai)
        refuse(name, f"is no folder here, not in the cache, and could not be downloaded ({error}): "
                     f"on a machine with a network `hf download {repo} {' '.join(files)}` fills a "
                     f"folder to be copied to {hub.cache(repo)}; or put these files of "
                     f"{hub.page(repo)} into any folder, and give that in place of {name}")
    return config.parent


def fetched_adapter(repo):
    """The folder of a repository with a low-rank adapter; None if it holds none."""
    config = hub.fetch(repo, [lora.CONFIG])
    if config is None:
        return None
    lora.check(read_object(config), config)
    for names in (lora.WEIGHTS, VOCABULARIES, *([name] for name in ALONGSIDE)):
        hub.fetch(repo, names, commit=config.parent.name)
    return config.parent


def load(name, classes):
    """A repository of the hub, a folder, or a file of weights with its config.json beside it ->
    (model, tokenizer, facts), as `checkpoint.load`; the facts name the files of the weights, too.
    classes: {"GPT": GPT, ...}, the kinds that the caller can use.
    """
    path, adapter = located(name), None
    if (path / lora.CONFIG).exists() and not weights_in(path, WEIGHTS).exists():
        adapter, asked = path, read_object(path / lora.CONFIG)
        lora.check(asked, path / lora.CONFIG)
        path = located(asked["base_model_name_or_path"], f"the base model of {adapter}, ")
    folder, file = path.parent, path
    if path.is_dir():
        folder, file = path, weights_in(path, WEIGHTS)
    sizes = read_config(folder / "config.json")
    weights, files = our_layout(read_weights(file), file), files_of(file)
    if adapter:
        file = weights_in(adapter, lora.WEIGHTS)
        weights = lora.merged(weights, read_weights(file), asked, file)
        sizes["vocab_size"] = len(weights["transformer.wte.weight"])
        folder, files = adapter if has_tokenizer(adapter) else folder, [*files, file]
    kind = "ScalarGPT" if "score.weight" in weights else "GPT"
    if kind not in classes:
        refuse(path, f"holds a {kind}, expected {' or '.join(classes)}")
    config = classes[kind].config_class(**sizes)
    look_for_sizes(config, weights, file)
    with torch.device("meta"):  # no memory or random numbers: weights follow
        model = classes[kind](config)
    fill(model, weights, file, assign=True)
    tokenizer = find_tokenizer(folder, sizes["vocab_size"])
    match(tokenizer, model, folder)
    return model, tokenizer, {"kind": kind, "settings": {}, "files": files}


def located(name, what=""):
    """The path of a folder, a file, or of what a hub repository's name downloads."""
    path = Path(name)
    if path.exists():
        return path
    if repository(path.as_posix()) is None:
        stop(f"{what}{name} is not there: neither a folder nor a repository of the hub")
    return download(path.as_posix())


def weights_in(folder, names):
    """The first of these files that a folder has."""
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def files_of(file):
    """A file of weights, with those that it lists if it is an index."""
    index = file.name.endswith(".index.json")
    return [file, *(file.parent / part for part in (parts(file) if index else []))]


def read_config(path):
    """config.json -> the fields of our GPTConfig. Stops if it asks for anything else."""
    config = read_object(path)
    for name, allowed in ONLY.items():
        if config.get(name, allowed[0]) not in allowed:
            refuse(path, f"has {name} = {config[name]!r}: only {allowed[0]!r} can be used")
    sizes = {ours: config.get(theirs) for ours, theirs in SIZES.items()}
    check_sizes(sizes, path, SIZES)
    if config.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        refuse(path, f"has n_inner = {config['n_inner']!r}: only 4 * n_embd can be used")
    return sizes


def check_sizes(sizes, path, names=None):
    """Stop if a size that a GPTConfig needs is missing, or no size.

    names: {our name of a size: the file's}, if they differ.
    """
    for name in SIZES:
        size = sizes.get(name)
        if type(size) is not int or size < 1:
            refuse(path, f"has {(names or {}).get(name, name)} = {size!r}: expected a number of at "
                         "least 1")
    if sizes["n_embd"] % sizes["n_head"]:
        refuse(path, f"has n_embd = {sizes['n_embd']}, no multiple of its {sizes['n_head']} heads")


def parts(path):
    """The names of the files of weights that an index lists."""
    shards = read_object(path).get("weight_map")
    if not isinstance(shards, dict):
        refuse(path, "has no weight_map: delete it and get it again")
    return sorted({Path(str(file)).name for file in shards.values()})  # of this folder only


def read_weights(path):
    """A file of tensors, or the index of several -> {name: tensor}. Runs no pickled code."""
    if path.name.endswith(".index.json"):
        return {k: v for name in parts(path) for k, v in read_weights(path.parent / name).items()}
    if not path.exists():
        refuse(path, "is missing")
    safe = safetensors_torch(path) if path.suffix == ".safetensors" else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles: errors are reported below
            weights = safe.load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        refuse(path, "is refused: it holds more than tensors, and such a pickle can run any code")
    except Exception as error:  # a truncated file raises many kinds
        refuse(path, f"is damaged or not complete ({type(error).__name__}): get it again")
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        refuse(path, "is no table of named tensors")
    return weights


def our_layout(weights, path):
    """Their names and layouts -> those of our state_dict, in float32."""
    out = {}
    for name, x in weights.items():
        name = name.removeprefix("transformer.")
        if not name.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask, in old files
            x = x.T if name.endswith(CONV1D) and x.dim() == 2 else x
            heads = name.startswith(("score.", "lm_head."))
            out[name if heads else f"transformer.{name}"] = x.float().contiguous()
    head, embedding = out.pop("lm_head.weight", None), out.get("transformer.wte.weight")
    if None not in (head, embedding) and not torch.equal(head, embedding):
        refuse(path, "has an output embedding of its own: only one tied to wte can be used")
    if "score.weight" in out:
        out.setdefault("score.bias", torch.zeros(1))
    return out


def look_for(name, shape, weights, path):
    """Stop unless the weights have a tensor of this name and shape."""
    if name not in weights:
        refuse(path, f"does not hold {name}, which its configuration asks for")
    if list(weights[name].shape) != shape:
        refuse(path, f"holds {name} of shape {list(weights[name].shape)}, its configuration asks "
                     f"for {shape}")


def look_for_sizes(config, weights, path):
    """Stop if the weights are not of these sizes, before a model is built: a number in a file that
    people edit can ask for more than any memory has."""
    width = config.n_embd
    for name, shape in (("wte.weight", [config.vocab_size, width]),
                        ("wpe.weight", [config.block_size, width]),
                        (f"h.{config.n_layer - 1}.ln_1.weight", [width])):
        look_for(f"transformer.{name}", shape, weights, path)


def fill(model, weights, path, assign=False):
    """Load weights into a model: exactly its names and shapes, or it stops."""
    wanted = model.state_dict()
    for name in dict.fromkeys([*wanted, *weights]):
        if name not in wanted:
            refuse(path, f"holds {name}, of which its configuration knows nothing")
        look_for(name, list(wanted[name].shape), weights, path)
        if not weights[name].isfinite().all():
            refuse(path, f"holds {name} with NaN or infinite numbers: what trained it went astray, "
                         "or it is damaged; make it again, or choose another checkpoint")
    model.load_state_dict(weights, assign=assign)


def match(tokenizer, model, path):
    """Stop if a tokenizer is not the model's. Some models round their vocabulary up to a multiple
    of 128, or add a token for pads. No text has these ids, and a sample must not have them either:
    their rows are removed, so that the model gives all probability to real tokens."""
    known, config, wte = tokenizer.size, model.config, model.transformer.wte
    if not known <= config.vocab_size < known + 128:
        refuse(path, f"knows {config.vocab_size} tokens, its tokenizer {known}: they do not belong "
                     "together")
    if known < config.vocab_size:
        wte.weight = torch.nn.Parameter(wte.weight.detach()[:known].clone())
        config.vocab_size = wte.num_embeddings = known


def has_tokenizer(folder):
    return any((folder / name).exists() for name in VOCABULARIES)


def find_tokenizer(folder, vocab_size):
    """The tokenizer whose files are beside a model's weights, else GPT-2's."""
    if not (folder / "tokenizer.json").exists() and (folder / "tokenizer.tiktoken").exists():
        return load_tokenizer("tokenizer.tiktoken", folder)
    path = folder / "config.json"  # an adapter's folder has none
    eos = read_object(path).get("eos_token_id") if path.exists() else None
    tokenizer = tokenizer_json.read(folder, eos[0] if isinstance(eos, list) else eos)
    if tokenizer is None and vocab_size < 50257:
        refuse(folder, f"knows {vocab_size} tokens and has no tokenizer.json: GPT-2's own has "
                       "50257, so that it cannot be meant")
    return tokenizer or load_tokenizer("gpt2")

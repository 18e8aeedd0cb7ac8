"""Models of three sizes, about 1 : 4 : 16 in parameters, on the same data; the reward model and
the value function have the middle size for all policies, as in the paper."""
from figures.plan import MODELS, SIZES, Run, model

KINDS = ("base", "prompted", "sft", "ppo", "ppo-ptx")
ANSWERS, RESULTS = "out/sizes/eval/answers.jsonl", "out/sizes/eval/results.json"
T0 = "out/sizes/t0"


def folder(size, kind):
    """Where a model is. The demo's own are those of the middle size."""
    kind = "base" if kind == "prompted" else kind
    return MODELS.get(kind, f"out/{kind}") if size == "mid" else f"out/sizes/{size}/{kind}"


def of_size(scale, size):
    """The runs of one size, from pretraining to PPO."""
    if size == "mid":
        return {}
    name, path = (lambda kind: f"{size} {kind}"), (lambda kind: folder(size, kind))
    width, body = scale.widths[SIZES.index(size)], f"--init={path('base')}"
    lr = lambda step: f"--lr={scale.rate(step, size):g}"
    start = f"--init={path('init')} {lr('ppo')}"
    return {
        name("base"): model(f"pretraining, {size}", f"sft.py --preset=base --n_embd={width} "
                            f"{lr('base')}", path("base"), "world"),
        name("sft"): model(f"SFT, {size}", f"sft.py {body} {lr('sft')}",
                           path("sft"), name("base")),
        name("init"): model(f"RL initialisation, {size}", f"sft.py --preset=init {body} "
                            f"{lr('init')}", path("init"), name("base")),
        name("ppo"): model(f"PPO, {size}", f"ppo.py --preset=ppo {start}", path("ppo"),
                           name("init"), "rm"),
        name("ppo-ptx"): model(f"PPO-ptx, {size}", f"ppo.py {start}", path("ppo-ptx"),
                               name("init"), "rm")}


def runs(scale):
    """The runs of all sizes, of a large T0, and their evaluation."""
    out = {name: run for size in SIZES for name, run in of_size(scale, size).items()}
    out["t0"] = model("SFT on templated tasks, large", f"sft.py --init={folder('large', 'base')} "
                      f"--data=out/toy/templated --epochs=1 --lr={scale.rate('sft', 'large'):g}",
                      T0, "large base")
    models = [f"{size}-{kind}={folder(size, kind)}" for size in SIZES for kind in KINDS]
    out["sizes"] = Run("evaluation of all sizes", f"evaluate.py --models={','.join(models)},t0={T0}"
                       " --versus=small-ppo-ptx/large-base,small-ppo-ptx/large-prompted,"
                       "large-ppo-ptx/t0,large-sft/t0 --out=out/sizes/eval", RESULTS,
                       ("ppo", "ppo-ptx", *(n for n in out)))
    return out, ["sizes"]

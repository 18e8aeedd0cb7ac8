"""Mistakes (section 4.3, Figs. 8 and 9): false premises, several constraints, over-answering."""
from data.toy.tasks import split_courtesy
from data.toy.town import sentences, words
from figures.points import Drawn, Panel, Series, finding, over
from figures.worlds import less, mean

TITLE = "Mistakes"
PAPER = ("Section 4.3 names three: a model takes a false premise for true, it says more than a "
         "simple question asks for, and it gets worse with several explicit constraints. It shows "
         "examples and gives no share.")
MODELS = ("base", "prompted", "sft", "ppo", "ppo-ptx")
CONSTRAINTS = {1: "one constraint", 2: "two constraints", 3: "three constraints"}
ANSWERS = "out/demo/answers.jsonl"


def runs(scale):
    return {}, ["demo"]


def accepts(prompt, text, g):
    """Whether an answer goes along with a false premise; None for other prompts."""
    return g["flags"]["quality"] == 0 if prompt["task"]["type"] == "premise" else None


def over_answers(prompt, text, g):
    """Whether an answer to a simple question says more than it asks for: more than a word where one
    was asked for, more than a sentence elsewhere. A closing courtesy counts only for the first."""
    task = prompt["task"]
    if task["type"] != "ask" or task.get("language"):
        return None
    body, _ = split_courtesy(text)
    return len(words(text)) > 1 if task["brief"] else len(sentences(body)) > 1


KINDS = {"accepts a false premise": accepts, "says more than was asked": over_answers}


def share(world, model, kind):
    return mean(kind(*row) for row in world.judged(ANSWERS, model))


def examples(world, most=3):
    """The first answers of PPO-ptx that make each mistake, beside SFT's: [(prompt, [(model,
    answer)])]."""
    out = []
    for kind in KINDS.values():
        wrong = [i for i, row in enumerate(world.judged(ANSWERS, "ppo-ptx")) if kind(*row)]
        for i in wrong[:most]:
            said = [(m, world.judged(ANSWERS, m)[i][1]) for m in ("sft", "ppo-ptx")]
            out.append((world.judged(ANSWERS, "sft")[i][0]["prompt"], said))
    return out


def draw(worlds, scale):
    results = [w.json("out/demo/results.json") for w in worlds]
    kept = lambda group, model: [r["groups"][group][model]["constraint"]["mean"]
                                 if group in r["groups"] else None for r in results]
    shares = {name: {m: [share(w, m, kind) for w in worlds] for m in MODELS}
              for name, kind in KINDS.items()}
    panels = [Panel("Mistakes", "", "share of the answers", [
        Series(name, [(m, over(own[m])) for m in MODELS], line=False)
        for name, own in shares.items()], percent=True),
        Panel("Constraints at once", "number of constraints", "satisfies all of them", [
            Series(m, [(n, over(kept(g, m))) for n, g in CONSTRAINTS.items()])
            for m in MODELS], percent=True)]
    premise, more = shares.values()
    return Drawn(panels, [
        finding("PPO-ptx accepts fewer false premises than the base model",
                less(premise["base"], premise["ppo-ptx"]), "{:.1%}"),
        finding("PPO-ptx satisfies three constraints less often than one",
                less(kept(CONSTRAINTS[1], "ppo-ptx"), kept(CONSTRAINTS[3], "ppo-ptx")), "{:.1%}"),
        finding("PPO-ptx says more than was asked more often than SFT",
                less(more["ppo-ptx"], more["sft"]), "{:.1%}",
                "The town's labelers reward the one word that was asked for; the paper's "
                "rewarded hedging."),
    ], examples(worlds[0]))

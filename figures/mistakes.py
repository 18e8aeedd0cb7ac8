"""Mistakes (section 4.3, Figs. 8 and 9): false premises, several constraints, over-answering."""
from data.toy.tasks import split_courtesy
from data.toy.town import assertions, sentences, words
from evals.town import groups_of
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


def lets_stand(prompt, text, g):
    """Whether an answer neither denies a false premise nor says what is true instead; None for
    other prompts."""
    return g["flags"]["quality"] == 0 if prompt["task"]["type"] == "premise" else None


def accepts(prompt, text, g):
    """Whether an answer says that a false premise is true; None for other prompts."""
    task = prompt["task"]
    if task["type"] != "premise":
        return None
    return (task["name"], task["attribute"], task["value"], True) in assertions(text)


def misses(town, prompt, g):
    """Whether an answer misses one of several constraints; None for other prompts."""
    several = set(groups_of(town, prompt)) & {CONSTRAINTS[2], CONSTRAINTS[3]}
    return not g["flags"]["constraint"] if several else None


def over_answers(prompt, text, g):
    """Whether an answer to a simple question says more than it asks for: more than a word where one
    was asked for, more than a sentence elsewhere. A closing courtesy counts only for the first."""
    task = prompt["task"]
    if task["type"] != "ask" or task.get("language"):
        return None
    body, _ = split_courtesy(text)
    return len(words(text)) > 1 if task["brief"] else len(sentences(body)) > 1


KINDS = {"lets a false premise stand": lets_stand, "says that it is true": accepts,
         "says more than was asked": over_answers}


def share(world, model, kind):
    return mean(kind(*row) for row in world.judged(ANSWERS, model))


def examples(world, most=2):
    """The first answers of PPO-ptx that make each mistake, beside SFT's: [(prompt, [(model,
    answer)], the mistake)]."""
    out, kinds = [], {
        "a false premise stands": lets_stand, "a false premise is said to be true": accepts,
        "a constraint is missed": lambda prompt, _, g: misses(world.town, prompt, g),
        "more is said than was asked": over_answers}
    for name, kind in kinds.items():
        wrong = [i for i, row in enumerate(world.judged(ANSWERS, "ppo-ptx")) if kind(*row)]
        for i in wrong[:most]:
            said = [(m, world.judged(ANSWERS, m)[i][1]) for m in ("sft", "ppo-ptx")]
            out.append((world.judged(ANSWERS, "sft")[i][0]["prompt"], said, f"PPO-ptx: {name}"))
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
    premise, _, more = shares.values()
    return Drawn(panels, [
        finding("PPO-ptx lets fewer false premises stand than the base model",
                less(premise["base"], premise["ppo-ptx"]), "{:.1%}"),
        finding("PPO-ptx satisfies three constraints less often than one",
                less(kept(CONSTRAINTS[1], "ppo-ptx"), kept(CONSTRAINTS[3], "ppo-ptx")), "{:.1%}"),
        finding("PPO-ptx says more than was asked more often than SFT",
                less(more["ppo-ptx"], more["sft"]), "{:.1%}",
                "The town's labelers reward the one word that was asked for; the paper's "
                "rewarded hedging."),
    ], examples(worlds[0]))

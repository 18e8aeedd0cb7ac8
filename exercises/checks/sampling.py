"""Choosing a token, and noise that belongs to an episode."""
import math

import torch

from exercises.checks.kernels import CACHE, softmax
from exercises.checks.tools import tensor
from exercises.course import Exercise


def run_choose(m, c):
    token, logprob = m.choose(c["logits"].clone(), c["temperature"], c["noise"])
    return {"token": token, "logprob": logprob}


def choose_oracle(c):
    tokens, logprobs = [], []
    for z, u in zip(c["logits"].double().tolist(), c["noise"].tolist()):
        p = softmax([x / (c["temperature"] or 1.0) for x in z])
        if c["temperature"] == 0:
            token = z.index(max(z))
        else:
            passed, token = 0.0, 0
            for token, share in enumerate(p):
                passed += share
                if passed > u:
                    break
        tokens.append(token)
        logprobs.append(math.log(p[token]))
    return {"token": tensor(tokens, torch.long), "logprob": tensor(logprobs)}


def draw(logits, noises, temperature=1.0):
    return {"logits": tensor(logits, torch.float32), "noise": tensor(noises),
            "temperature": temperature}


FOUR = [[0.0, 1.0, -1.0, 0.5]]
SPREAD = [0.02, 0.3, 0.55, 0.7, 0.97]
RISING = [i / 4 for i in range(10)]  # in float32 their probabilities add up to less than 1
CHOOSE = Exercise(
    "choose", "sampler.py", "choose", run_choose, choose_oracle,
    {"the noise picks a token by the probabilities": [draw(FOUR, [0.5]), draw(FOUR * 5, SPREAD)],
     "a token without probability is never picked": [draw([[-math.inf, 0.0]], [0.0]),
                                                     draw([[0.0, -math.inf, 0.0]], [0.5])],
     "nor where the noise is almost 1, and the sum hardly more": [
         draw([[-math.inf, *RISING]], [1 - 1e-12])],
     "the temperature divides the logits, in the log-prob too": [
         draw(FOUR, [0.5], 0.5), draw(FOUR * 5, SPREAD, 2.0)],
     "temperature 0 takes the most likely token, with its log-prob at 1": [
         draw([[0.0, 1.0]], [0.1], 0), draw(FOUR * 5, SPREAD, 0)],
     "large logits are no trouble": [draw([[1000.0, 999.0]], [0.5]),
                                     draw([[-2000.0, -2001.0, -2000.5]], [0.9])]},
    ("Add up the probabilities token by token. The first token at which the sum exceeds the noise "
     "is the sample.",
     "Subtract the largest logit before exp. The sums need not be divided by their total: multiply "
     "the noise by it instead.",
     "torch.searchsorted(cumulative, noise[:, None] * total, right=True), with the cumulative "
     "sum in "
     "float64; the log-prob is (z - top) / temperature - log(total)."), 11,
    ("logits", "noise", "temperature"))


def run_noise(m, c):
    """The numbers of some calls; what is true of them, `noise_facts` says."""
    seed, owners, step = c["seed"], torch.tensor(c["owners"]), c["step"]
    before = torch.get_rng_state().tolist()
    many = torch.arange(MANY)
    return {"x": m.uniform(seed, owners, step), "again": m.uniform(seed, owners, step),
            "alone": m.uniform(seed, owners[:1], step),
            "reversed": m.uniform(seed, owners.flip(0), step),
            "next step": m.uniform(seed, owners, step + 1),
            "other seed": m.uniform(seed ^ 1, owners, step),
            "owner + 3": m.uniform(seed, owners + 3, step),
            "step + 3": m.uniform(seed, owners, step + 3),
            "steps": m.uniform(seed, owners, torch.tensor([[step], [step + 1]])),
            "many": m.uniform(seed, many, step), "many next": m.uniform(seed, many, step + 1),
            "generator": torch.get_rng_state().tolist() == before}


def noise_facts(values):
    """What is true of the numbers; they themselves only tell mistakes apart."""
    shape = {name: x["shape"] for name, x in values.items() if isinstance(x, dict) and "shape" in x}
    data = {name: values[name]["data"] for name in shape}
    x, many, after = (data.get(name, []) for name in ("x", "many", "many next"))
    same = lambda name, expected: bool(x) and data.get(name) == expected
    apart = lambda a, b: bool(x) and len(a) == len(b) and all(i != j for i, j in zip(a, b))
    other = lambda name: apart(x, data.get(name, []))
    full = len(many) == len(after) == MANY
    quarters = [sum(k <= 4 * u < k + 1 for u in many) for k in range(4)]
    product = sum((a - 0.5) * (b - 0.5) for a, b in zip(many, after)) / MANY
    return {"float64 in [0, 1)": bool(x) and values["x"]["dtype"] == "float64" and all(
                0 <= u < 1 for u in x + many),
            "the same again": same("again", x), "the same alone": same("alone", x[:1]),
            "the same in another order": same("reversed", x[::-1]),
            "other steps, other numbers": other("next step"),
            "other seeds, other numbers": other("other seed"),
            "owner + 3 is not step + 3": bool(x) and apart(data.get("owner + 3", []),
                                                           data.get("step + 3", [])),
            "no generator of torch's is used": values.get("generator") is True,
            "a quarter in each quarter": full and all(abs(n - MANY / 4) < 150 for n in quarters),
            "steps are independent": full and abs(product) < 0.01,
            "4000 different numbers": full and len(set(many)) == MANY,
            "steps as a column": shape.get("steps") == [2, len(x)] and same(
                "steps", x + data.get("next step", [])),
            "_numbers": values.get("x")}


MANY = 4000  # episodes, for what is true of many numbers
NOISE_FACTS = ("float64 in [0, 1)", "the same again", "the same alone",
               "the same in another order", "other steps, other numbers",
               "other seeds, other numbers", "owner + 3 is not step + 3",
               "no generator of torch's is used", "a quarter in each quarter",
               "steps are independent", "4000 different numbers", "steps as a column")


def one(seed, owners, step):
    return [{"seed": seed, "owners": owners, "step": step}]


NOISE = Exercise(
    "noise", "kernels/noise.py", "uniform", run_noise,
    lambda c: {**dict.fromkeys(NOISE_FACTS, True), "_numbers": None},
    {"a number belongs to (seed, episode, step), not to the batch": one(1, [7, 2, 40], 0),
     "later steps": one(1, [0, 1, 2], 11),
     "seeds of 63 bits": one(2**63 - 2, [5, 6], 3)},
    ("No generator with a state: a function of three integers that looks random. `mix`, above it, "
     "turns an integer into one that has nothing to do with it.",
     "To add the three and mix once will not do: seed 1, owner 2 is then seed 2, owner 1. "
     "Mix after "
     "each of the three.",
     "mix(mix(mix(seed + constant) ^ owners) + step); torch.full_like(owners, seed) makes the seed "
     "a tensor that wraps around. Its upper 53 bits, divided by 2^53, are the number."), 2,
    ("seed", "owners", "step"), facts=noise_facts)

EXERCISES = (CACHE, CHOOSE, NOISE)

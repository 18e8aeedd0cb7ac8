"""Step 3: rewards, advantages, whitening, the two clipped losses, one step with text, the average.

The picture: prompt, response, EOS and pads of a row, and what the mask marks.

    ids      p  p  p  r  r  E  .  .
    mask     0  0  0  1  1  1  0  0
"""
import math
from types import SimpleNamespace

import torch

from exercises.checks.tools import gradient_of, in_ranks, mask_of, noise, spoiled, tensor
from exercises.course import Exercise

ONE = mask_of([0, 1])
THREE = mask_of([0, 1, 1, 1])
ROWS = mask_of([0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1])


def floats(x):
    return x.double().tolist()


def where(mask):
    """[(row, column)] of what a mask marks."""
    return [(b, t) for b, row in enumerate(mask.tolist()) for t, on in enumerate(row) if on]


def blank(mask):
    return [[0.0] * mask.size(1) for _ in mask]


# ------------------------------------------------------------------------------- rewards

def last_oracle(c):
    marks = c["mask"].tolist()
    return {"last": tensor([[on and not any(row[t + 1:]) for t, on in enumerate(row)]
                            for row in marks], torch.bool)}


LAST = Exercise(
    "last-token", "ppo.py", "last_of", lambda m, c: {"last": m.last_of(c["mask"])}, last_oracle,
    {"a response that fills the row": [{"mask": mask_of([0, 1])}, {"mask": mask_of([0, 1, 1])}],
     "pads follow": [{"mask": mask_of([0, 1, 0])}, {"mask": ROWS}],
     "a row without a response has no last token": [{"mask": mask_of([0, 0])}]},
    ("A marked token is the last one if the token after it is not marked.",
     "Shift the mask by one to the left: then each place holds the mark of the token after it.",
     "What comes after the last column is not marked: F.pad(mask[:, 1:], (0, 1)). Combine with & "
     "and ~."), 2, ("mask",))


def run_rewards(m, c):
    return {"reward": m.shape_rewards(c["logprob"], c["ref_logprob"], c["score"], c["mask"],
                                      c["beta"])}


def rewards_oracle(c):
    pi, ref, out = floats(c["logprob"]), floats(c["ref_logprob"]), blank(c["mask"])
    for b, t in where(c["mask"]):
        out[b][t] = -c["beta"] * (pi[b][t] - ref[b][t])
        if (b, t + 1) not in where(c["mask"]):
            out[b][t] += float(c["score"][b])
    return {"reward": tensor(out)}


def rewarded(mask, beta=0.5, seed=0, moved=1.0, spoil=False):
    ref = noise(*mask.shape, seed=seed)
    pi = ref + moved * noise(*mask.shape, seed=seed + 1)
    pi, ref = (spoiled(x, mask) for x in (pi, ref)) if spoil else (pi, ref)
    return {"mask": mask, "logprob": pi, "ref_logprob": ref, "beta": beta,
            "score": noise(len(mask), seed=seed + 2)}


REWARDS = Exercise(
    "kl-reward", "ppo.py", "shape_rewards", run_rewards, rewards_oracle,
    {"the score is paid at the last response token, once": [rewarded(ONE, 0.0),
                                                            rewarded(THREE, 0.0, 3)],
     "each token pays for its own KL, which may be negative": [rewarded(ONE, seed=5),
                                                               rewarded(THREE, seed=7)],
     "a policy that has not moved pays nothing": [rewarded(THREE, moved=0.0)],
     "rows of several lengths": [rewarded(ROWS, seed=11)],
     "what is outside the mask may be NaN": [rewarded(THREE, seed=13, spoil=True)]},
    ("Two parts: a penalty at every response token, and the score at one of them.",
     "The penalty of a token is -beta (log pi - log ref); do not take its mean, and do not "
     "clamp it. "
     "`last_of` finds the last token.",
     "(-beta * (logprob - ref_logprob)).masked_fill(~mask, 0.0) + score[:, None] * last_of(mask)"),
    2, ("mask", "logprob", "ref_logprob", "score", "beta"))


# ------------------------------------------------------------------------------- advantages

def run_gae(m, c):
    advantage, returns = m.gae(c["reward"].clone(), c["value"].clone(), c["mask"], c["discount"],
                               c["lam"])
    return {"advantage": advantage, "return": returns}


def gae_oracle(c):
    """The sum over k of (discount lambda)^k delta_{t+k}, term by term, on each row's list."""
    r, v, adv, ret = floats(c["reward"]), floats(c["value"]), blank(c["mask"]), blank(c["mask"])
    for b, row in enumerate(c["mask"].tolist()):
        places = [t for t, on in enumerate(row) if on]
        delta = [r[b][t] + c["discount"] * (v[b][places[i + 1]] if i + 1 < len(places) else 0.0)
                 - v[b][t] for i, t in enumerate(places)]
        for i, t in enumerate(places):
            adv[b][t] = sum((c["discount"] * c["lam"]) ** (k - i) * delta[k]
                            for k in range(i, len(places)))
            ret[b][t] = adv[b][t] + v[b][t]
    return {"advantage": tensor(adv), "return": tensor(ret)}


def valued(mask, discount=1.0, lam=0.95, seed=0, spoil=False, value=1.0, reward=None):
    r = noise(*mask.shape, seed=seed) if reward is None else tensor(reward, torch.float32)
    v = value * noise(*mask.shape, seed=seed + 1)
    if spoil:
        r, v = spoiled(r, mask), spoiled(v, mask)
    else:
        r = r.masked_fill(~mask, 0.0)
    return {"mask": mask, "reward": r, "value": v, "discount": discount, "lam": lam}


GAE = Exercise(
    "gae", "ppo.py", "gae", run_gae, gae_oracle,
    {"one token: what it got minus what was expected": [valued(ONE)],
     "a reward at the end counts lambda^k as much k tokens before": [
         valued(THREE, 1.0, 0.5, value=0.0, reward=[[0, 0, 0, 8.0]])],
     "values of the next state": [valued(THREE, 1.0, 0.95, 3), valued(THREE, 1.0, 0.0, 5)],
     "the discount": [valued(THREE, 0.9, 0.95, 7), valued(THREE, 0.5, 1.0, 9)],
     "nothing comes from behind the last token": [valued(mask_of([0, 1, 0]), seed=11),
                                                  valued(ROWS, seed=13)],
     "what is outside the mask may be NaN": [valued(mask_of([0, 1, 0]), seed=15, spoil=True),
                                             valued(ROWS, 0.9, 0.9, 17, True)]},
    ("Go from the last column to the first, and carry two things along: the advantage of the token "
     "after this one, and its value. Both are 0 behind the last token.",
     "delta = r + discount * next value - value; advantage = delta + discount * lam * the "
     "advantage after it. Multiply by mask[:, t], so that nothing leaks from pads.",
     "First set value and reward to 0 outside the mask (NaN times 0 is NaN). Then a loop over t in "
     "reversed(range(T)); the return is advantage + value within the mask."), 8,
    ("mask", "reward", "value", "discount", "lam"))


def run_whiten(m, c):
    if "ranks" not in c:
        return {"white": m.whiten(c["x"].clone(), c["mask"])}
    n, parts = c["ranks"], list(zip(c["x"].chunk(c["ranks"]), c["mask"].chunk(c["ranks"])))
    return {"white": torch.cat(in_ranks(n, lambda rank, total: m.whiten(*parts[rank], total)))}


def whiten_oracle(c):
    x, places, out = floats(c["x"]), where(c["mask"]), blank(c["mask"])
    mean = sum(x[b][t] for b, t in places) / len(places)
    variance = sum((x[b][t] - mean) ** 2 for b, t in places) / len(places)
    for b, t in places:
        out[b][t] = (x[b][t] - mean) / math.sqrt(variance + 1e-8)
    return {"white": tensor(out)}


def grid(mask, seed=0, shift=0.0, spoil=False, **more):
    x = noise(*mask.shape, seed=seed) + shift
    return {"mask": mask, "x": spoiled(x, mask) if spoil else x, **more}


WHITEN = Exercise(
    "whiten", "ppo.py", "whiten", run_whiten, whiten_oracle,
    {"mean 0 and variance 1 over the masked tokens": [grid(mask_of([0, 1, 1])), grid(ROWS, 1)],
     "a large mean is taken away too": [grid(mask_of([0, 1, 1]), 2, 50.0)],
     "0 outside the mask, whatever was there": [grid(mask_of([0, 1, 1]), 3, spoil=True),
                                                grid(ROWS, 4, spoil=True)],
     "equal numbers become 0": [{"mask": THREE, "x": torch.full((1, 4), 3.0)}],
     "the statistics are those of all ranks": [grid(ROWS[:2], 5, ranks=2),
                                               grid(ROWS, 6, 4.0, ranks=3)]},
    ("The mean and the variance are over the marked tokens of all rows together. With several "
     "ranks, over those of all ranks.",
     "total(x) gives the sum of x over all ranks. Sum the count and the sum of x first, then, with "
     "the mean known, the squared distances from it.",
     "In float64: n, s = total(torch.stack([mask.sum().double(), x.sum()])). The variance is "
     "divided by n, and 1e-8 is added before the root. total=None means one rank."), 6,
    ("mask", "x"), whole=("mask", "x"), tolerance=1e-4)


# ------------------------------------------------------------------------------- the two losses

def run_policy_loss(m, c):
    logprob = c["logprob"].clone().requires_grad_()
    loss = m.clipped_policy_loss(logprob, c["old_logprob"], c["advantage"], c["mask"], c["clip"],
                                 c["tokens"])
    return {"loss": loss, "gradient": gradient_of(loss, logprob)}


def policy_oracle(c):
    pi, old, a = (floats(c[name]) for name in ("logprob", "old_logprob", "advantage"))
    loss, gradient, low, high = 0.0, blank(c["mask"]), 1 - c["clip"], 1 + c["clip"]
    for b, t in where(c["mask"]):
        ratio = math.exp(pi[b][t] - old[b][t])
        free, held = ratio * a[b][t], min(max(ratio, low), high) * a[b][t]
        loss -= min(free, held) / c["tokens"]
        if free < held or low < ratio < high:  # else the loss is flat
            gradient[b][t] = -free / c["tokens"]
    return {"loss": tensor(loss), "gradient": tensor(gradient)}


def moved(mask, logs, advantage, clip=0.2, tokens=None, spoil=False, seed=0):
    """Log-probs that differ from the old ones by the given amounts."""
    old = noise(*mask.shape, seed=seed)
    x = {"logprob": old + tensor(logs, torch.float32), "old_logprob": old,
         "advantage": tensor(advantage, torch.float32)}
    x = {k: spoiled(v, mask) for k, v in x.items()} if spoil else x
    return {"mask": mask, **x, "clip": clip, "tokens": tokens or int(mask.sum())}


POLICY = Exercise(
    "policy-loss", "ppo.py", "clipped_policy_loss", run_policy_loss, policy_oracle,
    {"a policy that has just sampled: the ratio is 1": [moved(ONE, [[0, 0.05]], [[0, 2.0]])],
     "a good token is pushed no further than 1 + clip": [moved(ONE, [[0, 0.5]], [[0, 2.0]]),
                                                         moved(ONE, [[0, -0.5]], [[0, 2.0]])],
     "a bad token is pushed no further than 1 - clip": [moved(ONE, [[0, -0.5]], [[0, -2.0]]),
                                                        moved(ONE, [[0, 0.5]], [[0, -2.0]])],
     "the clip is the one that is given": [moved(THREE, [[0, 0.3, -0.3, 0.5]],
                                                 [[0, 1.0, -1.0, 2.0]], 0.4)],
     "divided by the tokens of the whole minibatch": [
         moved(THREE, [[0, 0.1, -0.1, 0.3]], [[0, 1.0, -1.0, 2.0]], tokens=10)],
     "what is outside the mask may be NaN": [
         moved(THREE, [[0, 0.1, -0.1, 0.3]], [[0, 1.0, -1.0, 2.0]], spoil=True)]},
    ("ratio = exp(log pi - log old). Two candidates: ratio A, and clipped ratio times A.",
     "The smaller of the two counts: it never promises more than the clipped one. The loss "
     "is minus "
     "its sum over the mask, divided by `tokens`.",
     "Set logprob - old_logprob and the advantage to 0 outside the mask before exp: NaN has no way "
     "back. torch.minimum, ratio.clamp(1 - clip, 1 + clip)."), 4,
    ("mask", "logprob", "old_logprob", "advantage", "clip", "tokens"))


def run_value_loss(m, c):
    value = c["value"].clone().requires_grad_()
    loss = m.clipped_value_loss(value, c["old_value"], c["returns"], c["mask"], c["clip"],
                                c["tokens"])
    return {"loss": loss, "gradient": gradient_of(loss, value)}


def value_oracle(c):
    v, old, ret = (floats(c[name]) for name in ("value", "old_value", "returns"))
    loss, gradient = 0.0, blank(c["mask"])
    for b, t in where(c["mask"]):
        step = v[b][t] - old[b][t]
        held = old[b][t] + min(max(step, -c["clip"]), c["clip"])
        free_error, held_error = (v[b][t] - ret[b][t]) ** 2, (held - ret[b][t]) ** 2
        loss += 0.5 * max(free_error, held_error) / c["tokens"]
        if free_error > held_error or abs(step) < c["clip"]:
            gradient[b][t] = (v[b][t] - ret[b][t]) / c["tokens"]
    return {"loss": tensor(loss), "gradient": tensor(gradient)}


def predicted(mask, steps, returns, clip=0.2, tokens=None, spoil=False):
    old = noise(*mask.shape, seed=3)
    x = {"value": old + tensor(steps, torch.float32), "old_value": old,
         "returns": old + tensor(returns, torch.float32)}
    x = {k: spoiled(v, mask) for k, v in x.items()} if spoil else x
    return {"mask": mask, **x, "clip": clip, "tokens": tokens or int(mask.sum())}


VALUE = Exercise(
    "value-loss", "ppo.py", "clipped_value_loss", run_value_loss, value_oracle,
    {"half the squared error": [predicted(ONE, [[0, 0.1]], [[0, 1.0]])],
     "past the clip there is no more to gain": [predicted(ONE, [[0, 0.5]], [[0, 1.0]]),
                                                predicted(ONE, [[0, -0.5]], [[0, -1.0]])],
     "but an error that grows always counts": [predicted(ONE, [[0, 0.5]], [[0, -1.0]]),
                                               predicted(ONE, [[0, -0.6]], [[0, 0.1]])],
     "divided by the tokens of the whole minibatch": [
         predicted(THREE, [[0, 0.1, 0.5, -0.4]], [[0, 1.0, 1.0, 0.3]], 0.3, 11)],
     "what is outside the mask may be NaN": [
         predicted(THREE, [[0, 0.1, 0.5, -0.4]], [[0, 1.0, 1.0, 0.3]], spoil=True)]},
    ("Two squared errors: of the value, and of the value when it may move only `clip` from the "
     "old one.",
     "The larger of the two counts, token by token: the loss never looks better than it is.",
     "clipped = old_value + (value - old_value).clamp(-clip, clip); 0.5 * torch.maximum(...), 0 "
     "outside the mask, summed, divided by tokens. Zero the three inputs outside the mask first."),
    4, ("mask", "value", "old_value", "returns", "clip", "tokens"))


# ------------------------------------------------------------------------------- one step

class Recorder:
    """An optimiser that keeps the gradients it is to step along, and takes no step."""

    def __init__(self, model):
        self.model, self.param_groups = model, [{"params": list(model.parameters()), "lr": 0.0}]
        self.gradients = []

    def step(self):
        self.gradients.append([0 * p if p.grad is None else p.grad.clone()
                               for p in self.model.parameters()])

    def zero_grad(self, set_to_none=True):
        for p in self.model.parameters():
            p.grad = None


def small_model(dropout=0.0):
    from model import GPT, GPTConfig
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=7, block_size=8, n_layer=1, n_head=1, n_embd=4,
                          dropout=dropout))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p * 8 if p.dim() == 2 else p + 0.1)
    return model


def all_logprobs(model, row):
    """log p of every token after each token of a row, one row at a time, [T, V]."""
    return (model.transformer(torch.tensor([row]))[0]
            @ model.transformer.wte.weight.T).log_softmax(-1)


def logprobs_of(model, row):
    """log p(row[t] | before) for t = 1.."""
    return all_logprobs(model, row)[range(len(row) - 1), row[1:]]


EPISODES = [([1, 2, 3, 6], 2), ([4, 5, 6], 1), ([2, 2, 5, 1, 6], 1)]  # (ids, prompt length)
TEXT = [[1, 2, 3, 4], [5, 4]]


def episodes_of(model):
    """The Episodes of ppo.py that an update needs, with log-probs that have moved a little."""
    T, B = max(len(ids) for ids, _ in EPISODES), len(EPISODES)
    ids, mask = torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T, dtype=torch.bool)
    old, advantage = torch.zeros(B, T), noise(B, T, seed=4)
    for b, (row, p) in enumerate(EPISODES):
        ids[b, : len(row)], mask[b, p : len(row)] = torch.tensor(row), True
        old[b, 1 : len(row)] = logprobs_of(model, row).detach() + 0.3 * noise(len(row) - 1, seed=b)
    widths = torch.tensor([len(ids) for ids, _ in EPISODES])
    return SimpleNamespace(samples=SimpleNamespace(ids=ids, widths=widths), mask=mask,
                           logprob=old.masked_fill(~mask, 0.0), advantage=advantage)


def step_settings(c):
    return SimpleNamespace(ptx=c["gamma"], clip_ratio=0.2, temperature=1.0, clip=0.0,
                           explode=math.inf, micro_batch=c["micro_batch"], micro_batch_tokens=0)


def world_of(rank=0, size=1, total=None):
    """A rank that runs in a thread; total sums over all of them."""
    from runtime.world import World
    world = World(0, "cpu")
    world.rank, world.size, world.main = rank, size, rank == 0
    world.sum = total or world.sum
    return world


def steps_taken(recorders):
    """What the optimisers of all ranks were to do: how many steps each, and the mean of the first
    ones' gradients, as DDP makes it. With one rank the gradient alone."""
    firsts = [torch.cat([g.flatten() for g in r.gradients[0]]) if r.gradients else None
              for r in recorders]
    mean = None if any(g is None for g in firsts) else sum(firsts) / len(firsts)
    return {"optimiser steps": [len(r.gradients) for r in recorders],
            "gradient, the mean of the ranks'": mean}


def run_ptx(m, c):
    models = [small_model() for _ in range(c["ranks"])]
    recorders = [Recorder(model) for model in models]

    def work(rank, total):
        own = TEXT[rank :: c["ranks"]] if c["gamma"] else []
        text = torch.tensor([ids + [-1] * (4 - len(ids)) for ids in own]).view(-1, 4)
        rows = list(range(len(EPISODES)))[rank :: c["ranks"]]
        return m.update_policy(models[rank], recorders[rank], episodes_of(models[rank]), rows, 8,
                               text, 4, 0.1, step_settings(c), world_of(rank, c["ranks"], total))

    ranks = in_ranks(c["ranks"], work)
    names = SUMS + ("loss/ptx",) * bool(c["gamma"])
    out = {name: sum(float(sums[name]) for sums, _ in ranks) for name in names}
    return {**steps_taken(recorders), **out, **norm_of(ranks, c)}


def norm_of(ranks, c):
    """The norm that one rank returns; of several each has only its part of the gradient here."""
    return {"norm": float(ranks[0][1])} if c["ranks"] == 1 else {}


SUMS = ("loss/policy", "policy/ratio", "policy/entropy", "policy/approx_kl", "policy/clip_fraction")


def ptx_oracle(c):
    model = small_model()
    e, loss, sums = episodes_of(model), 0.0, dict.fromkeys(SUMS, 0.0)
    for b, (row, p) in enumerate(EPISODES):
        every = all_logprobs(model, row)
        for t in range(p, len(row)):
            log_ratio, a = every[t - 1, row[t]] - e.logprob[b, t], float(e.advantage[b, t])
            ratio = log_ratio.exp()
            loss = loss - torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) / 8
            sums["policy/ratio"] += float(ratio.detach())
            sums["policy/entropy"] -= sum(math.exp(x) * x for x in every[t - 1].tolist())
            sums["policy/approx_kl"] += 0.5 * float(log_ratio.detach()) ** 2
            sums["policy/clip_fraction"] += abs(float(ratio.detach()) - 1) > 0.2
    words = sum(-logprobs_of(model, row).sum() for row in TEXT)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(
        loss + c["gamma"] * words / 4, list(model.parameters()))])
    sums["loss/policy"] = 8 * float(loss.detach())
    text = {"loss/ptx": float(words.detach())} if c["gamma"] else {}
    norm = math.sqrt(sum(x * x for x in gradient.tolist()))
    return {"optimiser steps": [1] * c["ranks"], "gradient, the mean of the ranks'": gradient,
            **sums, **text, **norm_of([(None, norm)], c)}


def minibatch(gamma, micro_batch=8, ranks=1):
    return {"gamma": gamma, "micro_batch": micro_batch, "ranks": ranks}


PTX = Exercise(
    "ptx", "ppo.py", "update_policy", run_ptx, ptx_oracle,
    {"one step, along the PPO gradient": [minibatch(0.0)],
     "with text: still one step, along PPO's gradient plus gamma times the text's": [
         minibatch(0.5), minibatch(3.0)],
     "micro-batches change nothing": [minibatch(0.0, 1), minibatch(0.5, 2), minibatch(0.5, 1)],
     "two processes are one": [minibatch(0.0, 8, 2), minibatch(0.5, 1, 2)]},
    ("Two loops that only add up gradients, over groups of episodes and over groups of text rows, "
     "and one `take_step` behind both.",
     "accumulate(policy, groups, more=...) gives each group in turn. policy(ids, mask, "
     "temperature, "
     "entropy, objective) returns (loss, logprob, entropy); world.backward(loss) adds the "
     "gradient.",
     "Every loss is a sum divided by `tokens` or `words`, which are of the whole minibatch: so the "
     "groups need no weights. The text's is s.ptx * loss; its sum in the log is divided by "
     "s.ptx again."), 22, ("gamma", "micro_batch", "ranks"), tolerance=2e-4)


def run_ema(m, c):
    model = torch.nn.Linear(1, 1, bias=False)
    weights, ema, seen = iter(c["weights"]), {"weight": tensor([[c["start"]]], torch.float32)}, []
    aliases = ema["weight"]

    def policy_step(policy, *rest):
        with torch.no_grad():
            policy.weight.fill_(next(weights))
        seen.append(float(ema["weight"]))
        return {"loss/policy": 0.0}, 0.0

    m.update_policy, m.update_value = policy_step, lambda *rest: ({"loss/value": 0.0}, 0.0)
    n = len(c["weights"])
    s = SimpleNamespace(minibatch=1, batch=n, inner_epochs=1, ptx=0.0, seed=1, ema=c["decay"])
    e = SimpleNamespace(mask=torch.ones(n, 2, dtype=torch.bool))
    m.update(model, None, [None, None], ema, e, torch.zeros(0, 1, dtype=torch.long), 0.1, 0, s,
             world_of())
    return {"average": float(ema["weight"]), "policy": float(model.weight.detach()),
            "before each step": seen, "a copy, not the policy's own memory":
                ema["weight"].data_ptr() != model.weight.data_ptr(),
            "_same tensor": ema["weight"] is aliases}


def ema_oracle(c):
    average, before = c["start"], []
    for w in c["weights"]:
        before.append(average)
        average = c["decay"] * average + (1 - c["decay"]) * w
    return {"average": average, "policy": c["weights"][-1], "before each step": before,
            "a copy, not the policy's own memory": True, "_same tensor": None}


EMA = Exercise(
    "ema", "ppo.py", "update", run_ema, ema_oracle,
    {"one step": [{"start": 0.0, "weights": [1.0], "decay": 0.75}],
     "after every optimiser step": [{"start": 2.0, "weights": [1.0, -3.0, 5.0], "decay": 0.5}],
     "most of it stays": [{"start": 1.0, "weights": [0.0, 0.0], "decay": 0.99}],
     "decay 0 is the policy itself": [{"start": 1.0, "weights": [4.0, 3.0], "decay": 0.0}]},
    ("ema <- decay * ema + (1 - decay) * weight, for every weight of the policy, after each "
     "minibatch. `ema` is a dict of tensors by name.",
     "bare(policy).state_dict() gives the names and the weights. Change ema's tensors in place: a "
     "reference to the policy's own weight would follow it.",
     "for name, p in bare(policy).state_dict().items(): and one line with lerp_."), 2,
    ("start", "weights", "decay"), "for name, p in")


def run_cosine(m, c):
    return {"rate": [m.cosine(step, c["steps"], c["peak"], c["floor"], c["warmup"])
                     for step in range(c["steps"] + 1)]}


def cosine_oracle(c):
    """Half a circle's height: the share of the way down is (1 - cos) / 2."""
    out = []
    for step in range(c["steps"] + 1):
        if step < c["warmup"]:
            out.append(c["peak"] * (step + 1) / (c["warmup"] + 1))
        else:
            angle = math.pi * (step - c["warmup"]) / max(1, c["steps"] - c["warmup"])
            fallen = (1 - math.cos(angle)) / 2
            out.append(c["peak"] * (1 - (1 - c["floor"]) * fallen))
    return {"rate": out}


def schedule(steps, peak=1.0, floor=0.1, warmup=0):
    return {"steps": steps, "peak": peak, "floor": floor, "warmup": warmup}


WARMUP = Exercise(
    "warm-up", "runtime/optimizer.py", "cosine", run_cosine, cosine_oracle,
    {"half a cosine, from the peak to a tenth of it": [schedule(2), schedule(4, 3.0)],
     "to another floor": [schedule(4, floor=0.0), schedule(4, 2.0, 0.5)],
     "first a linear warm-up, which never starts at 0": [schedule(4, warmup=1),
                                                         schedule(8, 2.0, warmup=3)],
     "the cosine spans what is left": [schedule(6, 1.0, 0.0, 4)]},
    ("Two parts: before `warmup` steps a line, after them a cosine.",
     "With warmup = 3 the first rates are 1/4, 2/4 and 3/4 of the peak, then the peak.",
     "progress = (step - warmup) / max(1, steps - warmup); 0.5 * (1 + cos(pi * progress)) "
     "goes from "
     "1 to 0. Stretch it to go from 1 to floor."), 4, ("steps", "peak", "floor", "warmup"))

EXERCISES = (REWARDS, LAST, GAE, WHITEN, POLICY, VALUE, PTX, EMA, WARMUP)

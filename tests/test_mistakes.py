"""Mistakes as students write them, each with the known mistake that is recognised in it, or none: a
hint is right or is not given."""
import textwrap

import pytest

from exercises import cutting, judge
from test_classroom import COURSE, text_of

MARGIN = "d = scores[pairs[:, 0]] - scores[pairs[:, 1]]\n"
PADDED = "ids, lengths = pad([i for i, _ in rows])\nt = torch.arange(ids.size(1))[None]\n"
START = "start = torch.tensor([max(1, n) for _, n in rows])[:, None]\n"
BOTH = "return ids.to(device), mask.to(device)"
RATIO = ("ratio = (logprob - old_logprob).masked_fill(~mask, 0).exp()\n"
         "a = advantage.masked_fill(~mask, 0)\n")
CLIPPED = "s = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)\n"
GAE = """\
value, reward = value.masked_fill(~mask, 0), reward.masked_fill(~mask, 0)
out, a, v = torch.zeros_like(reward), 0.0, 0.0
for t in reversed(range(reward.size(1))):
    delta = reward[:, t] + discount * v - value[:, t]
    a = (delta + discount * lam * a) * mask[:, t]
    out[:, t], v = a, value[:, t]
return out, (out + value) * mask
"""
CAUSAL = "T, D = q.shape[-2:]\nm = torch.ones(T, T).triu(1).bool()\n"

MISTAKES = [  # exercise, body, the known mistake that it is
    ("attention", "return (q @ k.mT).softmax(-1) @ v", None),
    ("attention", CAUSAL + "s = q @ k.mT / math.sqrt(D) * (~m)\nreturn s.softmax(-1) @ v",
     "zero-for-never"),
    ("attention", CAUSAL + "return (q @ k.mT / math.sqrt(T)).masked_fill(m, -math.inf).softmax(-1) "
     "@ v", "root-of-the-length"),
    ("attention", CAUSAL + "e = (q @ k.mT / math.sqrt(D)).exp() * ~m\n"
     "return e / e.sum(-1, keepdim=True) @ v", "exp-of-large-scores"),
    ("attention", CAUSAL + "return (q @ k.mT / math.sqrt(D)).masked_fill(m, -1).softmax(-1) @ v",
     None),
    ("loss-mask", PADDED + START + "mask = (ids != 0) & (t >= start)\n" + BOTH, "pad-by-its-id"),
    ("loss-mask", PADDED + START + "mask = (t < lengths[:, None] - 1) & (t >= start - 1)\n" + BOTH,
     "states-not-tokens"),
    ("loss-mask", PADDED + "mask = t < lengths[:, None]\n" + BOTH, "all-but-pads"),
    ("loss-mask", PADDED + START + "mask = (t < lengths[:, None]) & (t >= start - 1)\n" + BOTH,
     "one-too-early"),
    ("loss-mask", PADDED + START + "mask = t >= start\n" + BOTH, None),
    ("sft-loss", "return -logprob[mask].mean()", "own-tokens"),
    ("sft-loss", "return -(logprob * mask).sum() / tokens", "nan-times-mask"),
    ("sft-loss", "return -(logprob * mask).sum() / mask.sum()", "own-tokens-and-nan"),
    ("sft-loss", "return -logprob[mask].sum()", "sft-sum"),
    ("sft-loss", "return -logprob.mean()", None),
    ("sft-loss", "return -logprob[mask].log().sum() / tokens", None),
    ("ranking-loss", MARGIN + "return -F.logsigmoid(-d) @ weights", "margin-reversed"),
    ("ranking-loss", MARGIN + "return F.binary_cross_entropy_with_logits(d, torch.ones_like(d), "
     "weights)", "pairs-divided-twice"),
    ("ranking-loss", MARGIN + "return -F.logsigmoid(d).mean()", "weights-unread"),
    ("ranking-loss", MARGIN + "return F.logsigmoid(d) @ weights", "ranking-sign"),
    ("ranking-loss", MARGIN + "return -F.logsigmoid(weights * d).sum()", None),
    ("ranking-loss", MARGIN + "return -(torch.sigmoid(d) + 1e-8).log() @ weights", None),
    ("gae", GAE.replace("value.masked_fill(~mask, 0), ", "value, "), "bootstrapped-past-the-end"),
    ("gae", GAE[GAE.index("out, a"):], "bootstrapped-past-the-end"),
    ("gae", GAE.replace("discount * lam * a", "lam * a"), "advantage-not-discounted"),
    ("gae", GAE.replace(") * mask[:, t]", ")"), "advantages-of-prompts"),
    ("gae", GAE.replace("(out + value) * mask", "out"), "return-is-the-advantage"),
    ("gae", GAE.replace("reversed(range(reward.size(1)))", "range(reward.size(1))"), None),
    ("gae", GAE.replace("discount * v", "discount * lam * v"), None),
    ("policy-loss", RATIO.replace("0).exp", "0).neg().exp") + CLIPPED + "return -s.sum() / tokens",
     "ratio-upside-down"),
    ("policy-loss", RATIO + CLIPPED + "return -s.mean()", "mean-of-all-places"),
    ("policy-loss", RATIO + CLIPPED + "return -s[mask].mean()", "policy-loss-of-pads"),
    ("policy-loss", RATIO + CLIPPED.replace("minimum", "maximum") + "return -s.sum() / tokens",
     "larger-of-two"),
    ("policy-loss", RATIO + CLIPPED.replace("minimum", "maximum") + "return s.sum() / tokens",
     None),
    ("policy-loss", RATIO + CLIPPED.replace("1 - clip, 1 + clip", "0.8, 1.2")
     + "return -s.sum() / tokens", None),
]


@pytest.mark.long
@pytest.mark.parametrize("name, body, known", MISTAKES, ids=[f"{m[0]}-{m[2]}" for m in MISTAKES])
def test_a_students_mistake_gets_its_hint_or_none(name, body, known, tmp_path):
    exercise = COURSE[name]
    cut = cutting.cut(cutting.reference(exercise.file), exercise.function, name)
    source = cut.replace("    " + cutting.hole(name), textwrap.indent(body, "    "))
    verdict, said = text_of(exercise, source, tmp_path)
    assert not verdict.good and "error" not in verdict.outcomes[verdict.failing[0][1]], said
    assert [d.name for d in judge.recognised(exercise, verdict)] == [known] * bool(known), said

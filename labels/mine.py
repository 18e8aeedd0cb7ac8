"""A policy that learns your taste: your rankings -> a reward model -> PPO -> before and after.

    python -m labels.page --preset=mine        rank some sixty prompts by any taste (make label)
    python -m labels.mine                      and watch the policy become yours  (make mine)

Both trainings are plain runs of reward.py and ppo.py; the commands are printed. The result is
out/mine/report.html: old and new answers side by side, what changed in them, whether rankings that
no training saw agree, and what it cost in gold score where the truth is known.
"""
import collections
import difflib
import html
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from settings import parse, stop  # before torch

import torch

import settings
from data import records
from data.batches import encode_response, pad_and_mask
from data.tokenizer import encode_prompt
from data.toy.tasks import gold
from labels import exporting
from labels.simulated import town_of
from labels.store import Store
from model import GPT
from runtime import processes
from runtime.checkpoint import load

ROOT = Path(settings.__file__).parent
FEWEST = 10  # rankings with an untied pair, to train a reward model on


@dataclass
class Settings:
    """Your own policy. Every setting is --name=value; paths are those of the demo."""
    # files
    labels: str = "out/mine/labels"  # folder of the labelling page
    policy: str = "out/ppo-ptx"  # the policy before: PPO starts from it, and stays near it
    rm: str = "out/rm"  # the reward model to start from
    data: str = "out/toy"  # folder with prompts, demonstrations and text
    out: str = "out/mine"  # folder to write
    # the reward model
    epochs: int = 6  # over few rankings; with thousands of them one is best
    lr: float = 5e-4  # peak; few rankings are few steps, so more than the demo's 3e-4
    # PPO
    iterations: int = 16  # of 256 episodes
    beta: float = 0.1  # KL coefficient for scores of standard deviation 1; smaller moves further
    ema: float = 0.97  # of the weights; the demo's 0.992 would keep a third of the old policy
    warmup: int = 2  # iterations
    # the comparison
    prompts: int = 300  # of the test prompts, answered by both
    seed: int = 7  # of the samples

    BOUNDS = {"epochs": "[1, inf)", "prompts": "[1, inf)"}

    def problem(self):
        for flag, name in (("policy", "policy"), ("rm", "rm")):
            if Path(getattr(self, flag)).resolve() == Path(self.out, name).resolve():
                return (f"--{flag}={getattr(self, flag)} would be replaced by the new one: choose "
                        "another --out")


# ------------------------------------------------------------------------------------- training

def run(*words):
    """Run one of our programs, with its command printed; its error is ours."""
    first = ["-m", words[1]] if words[0] == "-m" else [str(ROOT / words[0])]
    flags = [str(w) for w in words[2 if words[0] == "-m" else 1:]]
    print("python", *words, flush=True)
    with processes.running([sys.executable, *first, *flags], stderr=subprocess.PIPE,
                           text=True) as process:
        said = process.communicate()[1].strip().splitlines()
    if process.returncode or processes.ASKED.is_set():
        stop(f"{words[1] if words[0] == '-m' else words[0]} failed: "
             f"{(said or ['no reason'])[-1].removeprefix('error: ')}")


def your_rankings(s):
    """(for training, held out): the rankings of the page, finished ones."""
    path = Path(s.labels) / "labels.db"
    if not path.exists():
        stop(f"no file {path}: run `make label` first, and rank some sixty prompts")
    out = exporting.export(Store(path))
    train, heldout = out["rankings_train"], out["rankings_valid"]
    useful = sum(bool(records.untied_pairs(r["ranks"])) for r in train)
    if useful < FEWEST:
        stop(f"{path} has {useful} rankings to train on in which something is better than "
             f"something else; at least {FEWEST} are needed: run `make label` again")
    return train, heldout


def train(s, rankings, heldout):
    """The reward model of your rankings, then PPO."""
    data = f"{s.out}/data"
    records.write(f"{data}/rankings_train.jsonl", rankings)
    records.write(f"{data}/rankings_valid.jsonl", heldout)
    records.write(f"{data}/demonstrations_train.jsonl",  # they set the bias of the scores
                  records.read(f"{s.data}/demonstrations_train.jsonl", "demonstration"))
    run("reward.py", f"--init={s.rm}", f"--data={data}", f"--out={s.out}/rm",
        f"--epochs={s.epochs}", f"--lr={s.lr}")
    scores = records.read_json(f"{s.out}/rm/checkpoint.json", "make mine",
                               score_mean=records.NUMBER, score_std=records.NUMBER)
    beta, unfinished = scaled(s.beta, scores["score_mean"], scores["score_std"])
    run("ppo.py", f"--init={s.policy}", f"--reward={s.out}/rm", f"--data={s.data}",
        f"--out={s.out}/policy", f"--iterations={s.iterations}", f"--beta={beta}",
        f"--unfinished={unfinished}", f"--ema={s.ema}", f"--warmup={s.warmup}", "--show=0")


def scaled(beta, mean, std):
    """(beta, the score of an unfinished response) of PPO, for scores with this mean and standard
    deviation. Some tastes give scores ten times as far apart as others. The KL penalty keeps its
    weight against them, and an answer that does not end never pays."""
    return round(beta * std, 4), round(min(-4.0, mean - 2 * std), 2)


# ------------------------------------------------------------------------------------- comparing

def answers(s, name, path):
    """One answer to each of the test prompts: [record with one completion]."""
    out = f"{s.out}/answers_{name}.jsonl"
    run("-m", "labels.sample", f"--models={path}", "--weights=1", f"--data={s.data}",
        "--split=test", f"--prompts={s.prompts}", "--k_min=1", "--k_max=1", f"--seed={s.seed}",
        f"--out={out}")
    return records.read_once(out, "to label")


@torch.no_grad()
def logprobs(path, rankings):
    """log p of each completion of each ranking, by the model at `path`: lists of lists; None for a
    ranking that does not fit its context."""
    model, tokenizer, _ = load(path, {"GPT": GPT}, "make demo")
    out = []
    for ranking in rankings:
        prompt = encode_prompt(tokenizer, ranking["prompt"])
        rows = [(prompt + encode_response(tokenizer, c["text"], c.get("ended", True)), len(prompt))
                for c in ranking["completions"]]
        if max(len(ids) for ids, _ in rows) > model.config.block_size:
            out.append(None)
            continue
        ids, mask = pad_and_mask(rows, "cpu")
        logprob, _ = model(ids, mask)
        out.append(logprob.sum(1).tolist())
    return out


def moved_towards(before, after, rankings):
    """Of the untied pairs of rankings, the share in which the better completion has become more
    likely against the worse one, and the number of pairs; (None, 0) without a pair.

    before, after: log p of the completions, as `logprobs`. A policy that learned nothing scores
    50 %.
    """
    right = [a[i] - b[i] > a[j] - b[j] for b, a, r in zip(before, after, rankings)
             if None not in (a, b) for i, j in records.untied_pairs(r["ranks"])]
    return (sum(right) / len(right) if right else None), len(right)


def words(text):
    return re.findall(r"[\w']+", text)


def text_of(record):
    return record["completions"][0]["text"]


def changed_words(before, after, most=8):
    """[(word, share of the answers before that have it, share after)]: those that changed most."""
    shares = []
    for rows in (before, after):
        counts = collections.Counter(w for r in rows for w in set(words(text_of(r).lower())))
        shares.append({w: n / len(rows) for w, n in counts.items()})
    out = [(w, shares[0].get(w, 0.0), shares[1].get(w, 0.0)) for w in shares[0] | shares[1]]
    return sorted(out, key=lambda row: (-abs(row[2] - row[1]), row[0]))[:most]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def gold_score(s, rows):
    """The mean gold score of answers; None where there is no toy world."""
    world = Path(s.data) / "world.json"
    if not world.exists() or not all("task" in r for r in rows):
        return None
    town = town_of(s.data)
    return mean(gold(town, r["task"], text_of(r), r["completions"][0]["ended"])["score"]
                for r in rows)


def compare(s, before, after, rankings, heldout):
    """The facts of the report, as JSON."""
    share, pairs = moved_towards(logprobs(s.policy, heldout), logprobs(f"{s.out}/policy", heldout),
                                 heldout)
    accuracy = records.read_json(f"{s.out}/rm/checkpoint.json", "make mine",
                                 accuracy=dict)["accuracy"]
    return {
        "rankings": len(rankings), "heldout": len(heldout), "heldout_pairs": pairs,
        "moved_towards": share, "rm_accuracy": accuracy.get("train_labelers"),
        "answers": len(before),
        "changed": mean(text_of(a) != text_of(b) for a, b in zip(before, after)),
        "words": [mean(len(words(text_of(r))) for r in rows) for rows in (before, after)],
        "gold": [gold_score(s, rows) for rows in (before, after)],
        "changed_words": changed_words(before, after)}


# ------------------------------------------------------------------------------------- the report

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1d1f21; --soft: #5c6166; --line: #d9dbdd;
  --add: #d8f0dd; --cut: #fbe3e1; }
@media (prefers-color-scheme: dark) { :root { --back: #16181a; --ink: #e8e9ea; --soft: #a5abb1;
  --line: #363b40; --add: #1f4029; --cut: #4a2624; } }
body { max-width: 1100px; margin: 32px auto; padding: 0 16px; background: var(--back);
  color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; width: 100%; margin: 16px 0 32px; }
th, td { text-align: left; vertical-align: top; padding: 8px 16px 8px 0; white-space: pre-wrap;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 400; overflow-wrap: normal; }
.answers td { width: 33%; }
ins, del { text-decoration: none; color: inherit; border-radius: 3px; padding: 0 2px; }
ins { background: var(--add); } del { background: var(--cut); }
p { color: var(--soft); }
"""


def marked(before, after):
    """Two texts as HTML, the words that only one of them has marked."""
    a, b = (re.findall(r"\s+|[\w']+|[^\w\s]", text) for text in (before, after))
    left, right = [], []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        old, new = html.escape("".join(a[i:j])), html.escape("".join(b[k:m]))
        left.append(old if kind == "equal" or not old else f"<del>{old}</del>")
        right.append(new if kind == "equal" or not new else f"<ins>{new}</ins>")
    return "".join(left), "".join(right)


def told(value, form):
    return "not measured" if value is None else form.format(value)


def summary(facts):
    """[(what, before, after)] for the first table."""
    rows = [("words an answer", *(told(w, "{:.1f}") for w in facts["words"])),
            ("gold score", *(told(g, "{:.2f}") for g in facts["gold"]))]
    return rows + [(f"answers with “{word}”", f"{a:.0%}", f"{b:.0%}")
                   for word, a, b in facts["changed_words"]]


def page(facts, before, after):
    """The report as HTML; model output is data in it."""
    table = "".join(f"<tr><th scope=row>{html.escape(what)}</th><td>{a}</td><td>{b}</td></tr>"
                    for what, a, b in summary(facts))
    changed_first = lambda pair: text_of(pair[0]) == text_of(pair[1])
    pairs = sorted(zip(before, after), key=changed_first)
    rows = "".join("<tr><td>{}</td><td>{}</td><td>{}</td></tr>".format(
        html.escape(b["prompt"]), *marked(text_of(b), text_of(a))) for b, a in pairs)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Your policy</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body><main><h1>Your policy</h1>
<p>Trained on {facts['rankings']} of your rankings. {facts['changed']:.0%} of {facts['answers']}
answers to test prompts changed. In {told(facts['moved_towards'], '{:.0%}')} of
{facts['heldout_pairs']} pairs that you ranked and no training saw, the new policy has moved towards
the one that you prefer (50% is chance); your reward model puts
{told(facts['rm_accuracy'], '{:.0%}')} of them in your order.</p>
<table><thead><tr><th scope=col>what</th><th scope=col>before</th><th scope=col>after</th></tr>
</thead><tbody>{table}</tbody></table>
<h2>Every answer, the changed ones first</h2>
<table class="answers"><thead><tr><th scope=col>prompt</th><th scope=col>before</th>
<th scope=col>after</th></tr></thead><tbody>{rows}</tbody></table></main></body></html>
"""


def main():
    s = parse(Settings)
    records.make_folder(s.out)
    rankings, heldout = your_rankings(s)
    with processes.ending_together("starts again"):
        before = answers(s, "before", s.policy)  # first: it reads what training must not fail on
        train(s, rankings, heldout)
        after = answers(s, "after", f"{s.out}/policy")
    facts = compare(s, before, after, rankings, heldout)
    records.write_json(f"{s.out}/report.json", facts)
    records.write(f"{s.out}/pairs.jsonl", [  # to rank them yourself, not knowing which is which
        {**b, "completions": [{**b["completions"][0], "model": "before"},
                              {**a["completions"][0], "model": "after"}]}
        for b, a in zip(before, after) if text_of(a) != text_of(b)])
    records.write_text(f"{s.out}/report.html", page(facts, before, after))
    for what, a, b in summary(facts):
        print(f"{what:28} {a:>8} {b:>8}")
    print(f"held-out pairs that the new policy moved towards: "
          f"{told(facts['moved_towards'], '{:.0%}')} of {facts['heldout_pairs']}\n"
          f"side by side: {s.out}/report.html")


if __name__ == "__main__":
    main()

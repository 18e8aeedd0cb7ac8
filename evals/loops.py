"""The two loops of the public suite: choose among texts by log-prob, or generate and compare.

    Reader.choose      items -> for each choice (the sum of its tokens' log-probs, their number)
    Reader.complete    items -> the texts that the model writes

Both run through the token losses and the sampler of training, in batches of a number of tokens,
and torchrun's ranks share the items. No result depends on the batches or on the ranks.
"""
import torch
import torch.nn.functional as F
from tqdm import tqdm

import kernels
from data.batches import pad_and_mask
from data.tokenizer import template
from kernels.prefixes import PrefixTree
from model import after, causal, next_tokens
from runtime.world import groups_by_tokens
from sampler import generate

GAP = "\n\n"  # between examples


class Reader:
    """A model that reads and writes: its tokenizer, and how many tokens it reads at a time.

    form: "text" puts prompts before the model as they stand, "template" as its demonstrations had
    them (data/tokenizer.py). dropped, cut: examples that did not fit, and prompts that did not fit
    without any.
    """

    def __init__(self, model, tokenizer, world, tokens=8192, form="text", seed=0):
        self.model, self.tokenizer, self.world = model.to(world.device).eval(), tokenizer, world
        self.tokens, self.form, self.seed = tokens, form, seed
        self.dropped = self.cut = 0
        lines = [i for i in range(tokenizer.encoding.max_token_value + 1)
                 if i != tokenizer.eos and b"\n" in token_bytes(tokenizer, i)]
        self.line_ends = torch.tensor(lines, device=world.device)

    def encode(self, text):
        """The ids of a prompt in this reader's form; an empty one is the end of another text."""
        if self.form == "template":
            text = template(text, self.tokenizer.template)
        return self.tokenizer.encode(text) or [self.tokenizer.eos]

    def fitted(self, variant, examples, item, room):
        """The longest beginning of `room` tokens: the instruction, as many of the examples as
        there is room for, the last ones first, and the item. Returns its text."""
        for first in range(len(examples) + 1):
            solved = "".join(e.prompt + e.answer + GAP for e in examples[first:])
            text = variant.lead + solved + item.prompt
            if len(self.encode(text)) <= room:
                break
        self.dropped += first
        return text

    def family(self, text, choices):
        """Rows (ids, where the choice begins) for the choices after a text. Its beginning is cut,
        for all choices alike, where the longest does not fit."""
        block, rows = self.model.config.block_size, []
        for choice in choices:
            if self.form == "template":
                prompt = self.encode(text)
                rows.append((prompt + self.tokenizer.encode(choice.removeprefix(" ")), len(prompt)))
            elif not text:
                rows.append(([self.tokenizer.eos] + self.tokenizer.encode(choice), 1))
            else:  # tokens may join at the seam: the choice is what the text alone does not have
                rows.append((self.tokenizer.encode(text + choice), len(self.encode(text))))
        over = max(0, max(len(ids) for ids, _ in rows) - block)
        self.cut += over > 0
        return [shortened(ids, min(start, len(ids) - 1), over, block) for ids, start in rows]

    def windows(self, text):
        """Rows (ids, start) that predict each token of a text once: the first from an end of text.
        The last window begins early enough to be a whole one."""
        ids, T = [self.tokenizer.eos] + self.tokenizer.encode(text), self.model.config.block_size
        out = []
        for i in range(0, max(1, len(ids) - 1), T - 1):
            first = max(0, min(i, len(ids) - T))
            out.append((ids[first : i + T], 1 + i - first))
        return out

    def choose(self, variant, examples, items):
        """[[(sum of log-probs, tokens) of each choice] of each item]."""
        families = []
        for item in items:
            longest = max(len(self.tokenizer.encode(c)) for c in item.choices)
            room = self.model.config.block_size - longest
            families.append(self.family(self.fitted(variant, examples, item, room), item.choices))
        return self.logprobs(families)

    def read(self, texts):
        """[(sum of log-probs, tokens)] of whole texts."""
        every = [self.windows(text) for text in texts]
        scores = iter(self.logprobs([[row] for windows in every for row in windows]))
        return [tuple(map(sum, zip(*(next(scores)[0] for _ in windows)))) for windows in every]

    @torch.no_grad()
    def logprobs(self, families):
        """[[(ids, start)]] -> [[(sum of the log-probs of ids[start:], their number)]]. A beginning
        that rows of a batch share is computed once (kernels/prefixes.py)."""
        mine = self.world.share(families)
        out = [None] * len(mine)
        groups = groups_by_tokens([max(len(ids) for ids, _ in rows) for rows in mine], self.tokens,
                                  [len(rows) for rows in mine])
        for group in tqdm(groups, desc="choose", leave=False, disable=not self.world.main):
            rows = [row for i in group for row in mine[i]]
            sums = token_sums(self.model, rows, self.world.device)
            for i in group:
                out[i] = [(sums.pop(0), len(ids) - start) for ids, start in mine[i]]
        return self.world.gather(out)

    def complete(self, variant, examples, items, new):
        """[[text] of each item]: what the model writes after each, `variant.copies` times."""
        new = min(new, self.model.config.block_size // 2)  # a tiny context has no room for more
        room = self.model.config.block_size - new
        prompts = []
        for item in items:
            ids = self.encode(self.fitted(variant, examples, item, room))
            self.cut += len(ids) > room
            prompts.append(ids[-room:])
        said = self.write(prompts, new, variant.temperature, variant.copies, variant.top_p,
                          variant.cut)
        return [[text for text, _ in own] for own in said]

    def write(self, prompts, new, temperature=0.0, copies=1, top_p=1.0, cut=False):
        """prompts, lists of ids -> [[(text, ended with EOS)] of each]: `copies` completions. cut:
        drop all from the first line end."""
        mine = self.world.share(list(enumerate(prompts)))
        out, stops = [None] * len(mine), self.line_ends if cut else None
        groups = groups_by_tokens([len(ids) + new for _, ids in mine], self.tokens,
                                  [copies] * len(mine))
        for group in tqdm(groups, desc="write", leave=False, disable=not self.world.main):
            rows = [(number * copies + k, ids) for number, ids in (mine[i] for i in group)
                    for k in range(copies)]
            numbers, ids = zip(*rows)
            samples = generate(self.model, list(ids), new, self.tokenizer.eos, temperature,
                               self.seed, numbers, top_p=top_p, stops=stops)
            texts = [first_line(text) if cut else text
                     for text in map(self.tokenizer.decode, samples.responses())]
            said = list(zip(texts, samples.ended.tolist()))
            for k, i in enumerate(group):
                out[i] = said[k * copies : (k + 1) * copies]
        return self.world.gather(out)


def shortened(ids, start, over, block):
    """A row (ids, where the choice begins) without its first `over` tokens. One token before the
    choice stays; a choice that is longer than the context loses its beginning."""
    over = min(over, start - 1)
    ids, start = ids[over:], start - over
    beyond = max(0, len(ids) - block)
    return ids[beyond:], max(1, start - beyond)


def token_bytes(tokenizer, i):
    """The bytes of a token; b"" of an id that has none."""
    try:
        return tokenizer.encoding.decode_single_token_bytes(i)
    except KeyError:
        return b""


def first_line(text):
    """A completion up to its first line end."""
    return text.split("\n")[0].strip()


def token_sums(model, rows, device):
    """[sum of the log-probs of ids[start:]] of rows (ids, start), in one forward pass."""
    ids, mask = pad_and_mask(rows, device)
    tree = PrefixTree([row for row, _ in rows], device)
    hidden = model.transformer(tree.ids, tree.positions, tree.over(causal))
    _, logprob, _ = kernels.token_losses(F.embedding(tree.nodes, hidden),
                                         model.transformer.wte.weight, next_tokens(ids, mask))
    return after(logprob).double().sum(1).tolist()

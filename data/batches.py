"""Records as token ids: the prompt template, demonstrations with their loss mask, and text rows."""
import numpy as np
import torch


def template(prompt):
    """The one way in which a prompt is put before a model, in every stage and in the terminal."""
    return prompt.rstrip() + "\n"


def encode_prompt(tokenizer, prompt):
    return tokenizer.encode(template(prompt))


def encode_response(tokenizer, text, ended=True):
    return tokenizer.encode(text) + [tokenizer.eos] * ended


def fitting(prompts, room):
    """The prompts of at most `room` tokens, and how many were dropped. Stops if none is left."""
    kept = [p for p in prompts if 0 < len(p) <= room]
    if not kept:
        raise SystemExit(f"error: none of {len(prompts)} prompts has 1 to {room} tokens, the room "
                         "that --max_new_tokens leaves in the model's context")
    return kept, len(prompts) - len(kept)


def demonstration_rows(tokenizer, records, block_size):
    """Demonstrations as (ids, prompt length); what does not fit the context is left out.

        ids    p p p r r E        loss on r, r and E only
    """
    rows = []
    for r in records:
        prompt = encode_prompt(tokenizer, r["prompt"])
        ids = prompt + encode_response(tokenizer, r["response"])
        if len(ids) <= block_size:
            rows.append((ids, len(prompt)))
    return rows


class TextRows:
    """Documents as rows of T tokens, EOS after each document, no token left out and no padding.

    A row begins where a document begins; the document that it cuts off begins the next row again,
    unless it began that very row and goes on (a document longer than T).
    """

    def __init__(self, tokenizer, texts, T):
        encoded = tokenizer.encoding.encode_ordinary_batch(texts, num_threads=2)
        ends = np.cumsum([len(d) + 1 for d in encoded])
        dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
        self.stream = np.concatenate([np.array(d + [tokenizer.eos], dtype) for d in encoded])
        self.T, self.starts = min(T, len(self.stream)), [0]
        begins = np.concatenate([[0], ends])
        while self.starts[-1] + self.T < len(self.stream):
            end = self.starts[-1] + self.T
            begin = int(begins[np.searchsorted(begins, end, side="right") - 1])
            self.starts.append(min(begin if begin > self.starts[-1] else end,
                                   len(self.stream) - self.T))

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, i):
        """Row i as a list of ids."""
        return self.stream[self.starts[i] : self.starts[i] + self.T].tolist()


def response_mask(prompt_lengths, lengths, T):
    """[B, T] bool: the tokens of the response, EOS among them (see Samples.mask)."""
    t = torch.arange(T)
    return (t >= prompt_lengths[:, None]) & (t < lengths[:, None])

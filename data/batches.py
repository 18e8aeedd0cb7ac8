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
    """Documents as rows of T tokens, EOS after each document, whole documents side by side.

    A document goes into the fullest open row that has room for it, so that hardly any place stays
    empty (EOS fills it) and no document loses its beginning; one longer than T is cut into pieces.
    """

    OPEN = 64  # rows that wait for a document of their missing length

    def __init__(self, tokenizer, texts, T):
        rows, open_rows = [], []
        for document in tokenizer.encode_batch(texts):
            document = [*document, tokenizer.eos]
            for i in range(0, len(document), T):
                piece = document[i : i + T]
                row = max((r for r in open_rows if len(r) + len(piece) <= T), key=len, default=None)
                if row is None:
                    if len(open_rows) == self.OPEN:
                        open_rows.remove(max(open_rows, key=len))
                    row = []
                    rows.append(row)
                    open_rows.append(row)
                row += piece
        dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
        self.T = min(T, max(map(len, rows)))
        self.rows = np.full((len(rows), self.T), tokenizer.eos, dtype)
        for out, row in zip(self.rows, rows):
            out[: len(row)] = row

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        """Row i as a list of ids."""
        return self.rows[i].tolist()


def response_mask(prompt_lengths, lengths, T):
    """[B, T] bool: the tokens of the response, EOS among them (see Samples.mask)."""
    t = torch.arange(T)
    return (t >= prompt_lengths[:, None]) & (t < lengths[:, None])

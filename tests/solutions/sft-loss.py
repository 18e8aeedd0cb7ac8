def sft_loss(logprob, mask, tokens):
    return -(logprob[mask].sum() / tokens)


def sft_loss(logprob, mask, tokens):
    zero = torch.zeros((), dtype=logprob.dtype)
    return torch.where(mask, -logprob, zero).sum().div(tokens)

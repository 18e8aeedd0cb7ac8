def clipped_policy_loss(logprob, old_logprob, advantage, mask, clip, tokens):
    pi, old, A = logprob[mask], old_logprob[mask], advantage[mask]
    ratio = torch.exp(pi - old)
    limit = torch.where(A > 0, torch.full_like(A, 1 + clip), torch.full_like(A, 1 - clip))
    held = torch.where(A > 0, torch.minimum(ratio, limit), torch.maximum(ratio, limit))
    return -(held * A).sum() / tokens


def clipped_policy_loss(logprob, old_logprob, advantage, mask, clip, tokens):
    zero = torch.zeros_like(advantage)
    ratio = torch.where(mask, logprob - old_logprob, zero).exp()
    advantage = torch.where(mask, advantage, zero)
    loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip))
    return loss.sum() / tokens

def shape_rewards(logprob, ref_logprob, score, mask, beta):
    reward = torch.zeros_like(logprob)
    reward[mask] = -beta * (logprob[mask] - ref_logprob[mask])
    last = last_of(mask)
    reward[last] += score[mask.any(1)]
    return reward


def shape_rewards(logprob, ref_logprob, score, mask, beta):
    kl = torch.where(mask, logprob - ref_logprob, torch.zeros_like(logprob))
    return torch.where(last_of(mask), score[:, None] - beta * kl, -beta * kl)

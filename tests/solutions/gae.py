def gae(reward, value, mask, discount, lam):
    advantage, returns = torch.zeros_like(reward), torch.zeros_like(reward)
    for b in range(len(mask)):
        places = mask[b].nonzero().flatten().tolist()
        carried, next_value = 0.0, 0.0
        for t in reversed(places):
            delta = reward[b, t] + discount * next_value - value[b, t]
            carried = delta + discount * lam * carried
            advantage[b, t], next_value = carried, value[b, t]
            returns[b, t] = carried + value[b, t]
    return advantage, returns


def gae(reward, value, mask, discount, lam):
    r, v = torch.where(mask, reward, 0.0), torch.where(mask, value, 0.0)
    next_v = F.pad(v[:, 1:], (0, 1))
    delta = r + discount * next_v - v
    T = mask.size(1)
    t = torch.arange(T)
    decay = (discount * lam) ** (t[None, :] - t[:, None]).clamp(min=0).double()
    decay = decay.triu().float()  # decay[t, k] = (discount lam)^(k - t) for k >= t
    advantage = (delta * mask) @ decay.T
    advantage = advantage * mask
    return advantage, torch.where(mask, advantage + v, 0.0)

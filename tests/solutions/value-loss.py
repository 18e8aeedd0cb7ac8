def clipped_value_loss(value, old_value, returns, mask, clip, tokens):
    v, old, ret = value[mask], old_value[mask], returns[mask]
    held = torch.minimum(torch.maximum(v, old - clip), old + clip)
    return torch.maximum((v - ret).square(), (held - ret).square()).sum() / (2 * tokens)


def clipped_value_loss(value, old_value, returns, mask, clip, tokens):
    zero = torch.zeros_like(value)
    v, old, ret = (torch.where(mask, x, zero) for x in (value, old_value, returns))
    held = old + torch.clamp(v - old, min=-clip, max=clip)
    worse = (held - ret).abs() > (v - ret).abs()
    return 0.5 * (torch.where(worse, held - ret, v - ret) ** 2).sum() / tokens

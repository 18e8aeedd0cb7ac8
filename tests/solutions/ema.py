def update(policy, ema, s):
    for name, p in bare(policy).state_dict().items():
        ema[name].mul_(s.ema).add_(p, alpha=1 - s.ema)


def update(policy, ema, s):
    with torch.no_grad():
        weights = bare(policy).state_dict()
        for name in ema:
            ema[name] = s.ema * ema[name] + (1 - s.ema) * weights[name]

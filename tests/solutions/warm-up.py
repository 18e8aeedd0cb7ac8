def cosine(step, steps, peak, floor=0.1, warmup=0):
    if step < warmup:
        return (step + 1) / (warmup + 1) * peak
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    low = floor * peak
    return low + (peak - low) * (1 + math.cos(math.pi * share)) / 2


def cosine(step, steps, peak, floor=0.1, warmup=0):
    rising = [peak * n / (warmup + 1) for n in range(1, warmup + 1)]
    if step < len(rising):
        return rising[step]
    angle = math.pi / 2 * min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * floor + peak * (1 - floor) * math.cos(angle) ** 2

def best_of_n(proxy, gold, n):
    N, groups = len(proxy), {}
    if len(gold) != N or n < 1 or n > N:
        raise ValueError("n must be between 1 and the number of samples")
    for score, value in zip(proxy, gold):
        groups.setdefault(score, []).append(value)
    above, missed, total = 0, 1.0, 0.0  # missed: the share of subsets without any of those above
    for score in sorted(groups, reverse=True):
        above += len(groups[score])
        rest = math.prod((N - above - k) / (N - k) for k in range(n))
        total += (missed - rest) * sum(groups[score]) / len(groups[score])
        missed = rest
    return total


def best_of_n(proxy, gold, n):
    if len(proxy) != len(gold) or n not in range(1, len(proxy) + 1):
        raise ValueError
    pairs, values = sorted(zip(proxy, gold)), []
    for score, _ in pairs:  # equal samples become their mean
        same = [g for p, g in pairs if p == score]
        values.append(sum(same) / len(same))
    weights = [math.comb(i, n - 1) for i in range(len(pairs))]
    return float(np.dot([w / sum(weights) for w in weights], values))

def agreement(responses, labelers, criterion, sharpness, rng):
    agreed = []
    for x, texts in responses * 6:
        chosen = rng.permutation(len(labelers))[:2]
        ranks = [rank(labelers[i], impressions(labelers[i], x, texts, criterion, sharpness, rng))
                 for i in chosen]
        for i in range(len(texts)):
            for j in range(i):
                signs = [np.sign(own[i] - own[j]) for own in ranks]
                if all(signs):
                    agreed.append(signs[0] == signs[1])
    return (float(np.mean(agreed)) if agreed else None), len(agreed)


def agreement(responses, labelers, criterion, sharpness, rng):
    same = other = 0
    for _ in range(6):
        for x, texts in responses:
            a, b = rng.choice(len(labelers), 2, replace=False)
            first, second = (np.array(rank(labelers[i], impressions(
                labelers[i], x, texts, criterion, sharpness, rng))) for i in (a, b))
            product = np.sign((first[:, None] - first) * (second[:, None] - second))
            upper = np.triu_indices(len(texts), 1)
            same += int((product[upper] > 0).sum())
            other += int((product[upper] < 0).sum())
    total = same + other
    return (same / total, total) if total else (None, 0)

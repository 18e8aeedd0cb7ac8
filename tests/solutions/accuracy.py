def accuracy(scores, rankings):
    right = n = 0
    for of_prompt, (_, pairs) in zip(scores, rankings):
        for better, worse in pairs:
            n += 1
            if of_prompt[better] > of_prompt[worse]:
                right += 1
            elif of_prompt[better] == of_prompt[worse]:
                right += 0.5
    return right / n if n else None


def accuracy(scores, rankings):
    margins = [own[i] - own[j] for own, (_, pairs) in zip(scores, rankings) for i, j in pairs]
    if not margins:
        return None
    return sum((m > 0) - (m < 0) for m in margins) / (2 * len(margins)) + 0.5

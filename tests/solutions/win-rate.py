def win_rate(town, prompts, first, second, labelers, sharpness, votes, seed, taste=True):
    rng, of_prompt = np.random.default_rng(seed), []
    for prompt, a, b in zip(prompts, first, second):
        x = np.stack([features(town, prompt["task"], *answer) for answer in (a, b)])
        if not taste:
            x[:, FEATURES.index("courteous")] = 0
        points = 0.0
        for i in rng.choice(len(labelers), votes, replace=len(labelers) < votes):
            seen = impressions(labelers[i], x, (a[0], b[0]), "evaluate", sharpness, rng)
            mine, theirs = rank(labelers[i], seen)
            points += 1.0 if mine < theirs else 0.5 if mine == theirs else 0.0
        of_prompt.append(points / votes)
    return interval(of_prompt)


def win_rate(town, prompts, first, second, labelers, sharpness, votes, seed, taste=True):
    rng = np.random.default_rng([3, seed])
    column = FEATURES.index("courteous")

    def vote(labeler, x, texts):
        r = rank(labeler, impressions(labeler, x, texts, "evaluate", sharpness, rng))
        return (1 + np.sign(r[1] - r[0])) / 2

    values = []
    for n, prompt in enumerate(prompts):
        x = np.stack([features(town, prompt["task"], *side[n]) for side in (first, second)])
        x[:, column] = x[:, column] * taste
        chosen = rng.choice(len(labelers), votes, replace=votes > len(labelers))
        values.append(np.mean([vote(labelers[i], x, (first[n][0], second[n][0]))
                               for i in chosen]))
    return interval(values)

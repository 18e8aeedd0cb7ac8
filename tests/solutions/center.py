def center(model, rows, s, world):
    scores = [only[0] for only in score(model, [[ids] for ids in rows], s, world)]
    mean = sum(scores) / len(scores)
    bare(model).score.bias.data.sub_(mean)
    return mean


def center(model, rows, s, world):
    families = [[row] for row in rows]
    mean = torch.tensor(score(model, families, s, world), dtype=torch.float64).mean().item()
    bias = bare(model).score.bias
    with torch.no_grad():
        bias.copy_(bias - mean)
    return mean

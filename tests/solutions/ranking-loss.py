def ranking_loss(scores, pairs, weights):
    margin = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    return (weights * F.softplus(-margin)).sum()


def ranking_loss(scores, pairs, weights):
    both = scores[pairs]  # [P, 2]
    chosen = both.log_softmax(1)[:, 0]  # a choice between two
    return -torch.dot(weights, chosen)

def collate(rankings, prompts, device):
    rows = [row for own, _ in rankings for row in own]
    pairs, weights, first = [], [], 0
    for own, own_pairs in rankings:
        for better, worse in own_pairs:
            pairs.append([first + better, first + worse])
            weights.append(1.0 / (prompts * len(own_pairs)))
        first += len(own)
    pairs = torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 2)
    return PrefixTree(rows, device), pairs, torch.tensor(weights, device=device)


def collate(rankings, prompts, device):
    rows, pairs, weights = [], torch.zeros(0, 2, dtype=torch.long), torch.zeros(0)
    for own, own_pairs in rankings:
        if own_pairs:
            pairs = torch.cat([pairs, torch.tensor(own_pairs) + len(rows)])
            weights = torch.cat([weights, torch.full((len(own_pairs),),
                                                     1 / len(own_pairs) / prompts)])
        rows.extend(own)
    return PrefixTree(rows, device), pairs.to(device), weights.to(device)

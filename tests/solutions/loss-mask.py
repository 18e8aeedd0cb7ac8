def pad_and_mask(rows, device):
    T = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), T, dtype=torch.long)
    mask = torch.zeros(len(rows), T, dtype=torch.bool)
    for b, (row, n) in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)
        mask[b, max(n, 1) : len(row)] = True
    return ids.to(device), mask.to(device)


def pad_and_mask(rows, device):
    ids, lengths = pad([row for row, _ in rows])
    first = torch.tensor([n or 1 for _, n in rows])
    place = torch.arange(ids.size(1)).expand(len(rows), -1)
    mask = (place >= first.unsqueeze(1)) & (place < lengths.unsqueeze(1))
    return ids.to(device), mask.to(device)

def train_step(model, optimizer, rows, lr, s, world, first=0):
    tokens = sum(len(ids) for ids, _ in rows) - sum(n for _, n in rows)
    nothing = (first, (rows[0][0], len(rows[0][0])))
    numbered = [(first + i, row) for i, row in enumerate(rows)]
    mine = world.share(numbered, nothing)
    summed = torch.zeros((), dtype=torch.float64)
    groups = world.micro_batches([len(row[0]) for _, row in mine], s)
    for group in accumulate(model, groups):
        ids, mask = pad_and_mask([mine[i][1] for i in group], world.device)
        loss, _, _ = model(ids, mask, objective=lambda logprob, marks:
                           sft_loss(logprob, marks, tokens),
                           owners=torch.tensor([mine[i][0] for i in group], device=world.device))
        summed = summed + world.backward(loss)
    norm = take_step(model, optimizer, lr, s.clip, s.explode)
    return float(world.sum(summed)), norm


def train_step(model, optimizer, rows, lr, s, world, first=0):
    """The gradient scaled by hand: no world.backward, and log-probs with a gradient."""
    tokens = 0
    for ids, n in rows:
        tokens += len(ids) - n
    mine = world.share(list(range(len(rows))), spare=-1)
    lengths, total = [len(rows[max(i, 0)][0]) for i in mine], 0.0
    for group in accumulate(model, world.micro_batches(lengths, s)):
        part = [rows[mine[j]] if mine[j] >= 0 else (rows[0][0], len(rows[0][0])) for j in group]
        ids, mask = pad_and_mask(part, world.device)
        owners = torch.tensor([first + max(mine[j], 0) for j in group], device=world.device)
        logprob, _ = model(ids, mask, owners=owners)
        loss = sft_loss(logprob, mask, tokens)
        (world.size * loss).backward()
        total += float(loss.detach())
    return float(world.sum(total)), take_step(model, optimizer, lr, s.clip, s.explode)

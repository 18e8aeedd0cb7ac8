def update_policy(policy, optimizer, e, rows, tokens, text, words, lr, s, world):
    sums = {name: 0.0 for name in POLICY_METRICS}
    groups = groups_of(rows, [int(e.samples.widths[i]) for i in rows], s, world)
    for g in accumulate(policy, groups, more=bool(s.ptx)):
        T = max(int(e.samples.widths[i]) for i in g)
        ids, mask = e.samples.ids[g, :T], e.mask[g, :T]
        old, A = e.logprob[g, :T], e.advantage[g, :T]

        def objective(logprob, marks):
            return clipped_policy_loss(logprob, old, A, marks, s.clip_ratio, tokens)

        loss, logprob, entropy = policy(ids, mask, s.temperature, True, objective)
        sums["loss/policy"] += tokens * world.backward(loss)
        log_ratio = (logprob - old)[mask]
        ratio = log_ratio.exp()
        sums["policy/entropy"] += entropy[mask].double().sum()
        sums["policy/ratio"] += ratio.double().sum()
        sums["policy/approx_kl"] += (log_ratio.double() ** 2).sum() / 2
        sums["policy/clip_fraction"] += ((ratio - 1).abs() > s.clip_ratio).sum()
    if s.ptx:
        sums["loss/ptx"] = 0.0
        groups = groups_of(text, [text.size(1)] * len(text), s, world)
        for group in accumulate(policy, groups):
            ids = torch.stack(group)
            loss = policy(ids.clamp(min=0), ids >= 0, objective=lambda logprob, marks:
                          -s.ptx * logprob[marks].sum() / words)[0]
            sums["loss/ptx"] += world.backward(loss) * words / s.ptx
    return sums, take_step(policy, optimizer, lr, s.clip, s.explode)


def update_policy(policy, optimizer, e, rows, tokens, text, words, lr, s, world):
    """The text first, the episodes then, and log-probs with a gradient instead of an objective."""
    sums, text_sum = {name: 0.0 for name in POLICY_METRICS}, 0.0
    texts = groups_of(text, [text.size(1)] * len(text), s, world) if s.ptx else []
    for group in accumulate(policy, texts, more=True):
        ids = torch.stack(group)
        logprob, _ = policy(ids.clamp(min=0), ids >= 0)
        text_sum += world.backward(-s.ptx / words * logprob.sum())
    for g in accumulate(policy, groups_of(rows, e.samples.widths[rows].tolist(), s, world)):
        logprob, entropy = policy(e.samples.ids[g], e.mask[g], s.temperature, True)
        loss = clipped_policy_loss(logprob, e.logprob[g], e.advantage[g], e.mask[g], s.clip_ratio,
                                   tokens)
        sums["loss/policy"] += world.backward(loss) * tokens
        log_ratio = (logprob.detach() - e.logprob[g])[e.mask[g]].double()
        sums["policy/entropy"] += entropy.detach()[e.mask[g]].double().sum()
        sums["policy/ratio"] += log_ratio.exp().sum()
        sums["policy/approx_kl"] += log_ratio.square().sum() / 2
        sums["policy/clip_fraction"] += ((log_ratio.exp() - 1).abs() > s.clip_ratio).sum()
    if s.ptx:
        sums["loss/ptx"] = text_sum * words / s.ptx
    return sums, take_step(policy, optimizer, lr, s.clip, s.explode)

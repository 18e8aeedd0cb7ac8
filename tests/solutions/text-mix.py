def text_share(s, demos, text):
    if s.pretrain_mix == 0 or s.pretrain_mix == 1:
        return len(text)
    demo_tokens = 0
    for ids, prompt in demos:
        demo_tokens += len(ids) - prompt
    wanted = s.pretrain_mix * demo_tokens / (1 - s.pretrain_mix)
    rows = int(round(wanted / ((text.tokens - len(text)) / len(text))))
    return rows if rows > 0 else 1


def text_share(s, demos, text):
    if s.pretrain_mix in (0, 1):
        return len(text)
    odds = s.pretrain_mix / (1 - s.pretrain_mix)
    loss_tokens = sum(len(row[0]) for row in demos) - sum(row[1] for row in demos)
    a_row = (text.tokens - len(text)) / len(text)
    return max(round(loss_tokens * odds / a_row), 1)

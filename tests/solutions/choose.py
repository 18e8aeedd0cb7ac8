def choose(logits, temperature, noise):
    logp = (logits.double() / (temperature or 1.0)).log_softmax(-1)
    if temperature == 0:
        token = logits.argmax(-1)
    else:
        passed = logp.exp().cumsum(-1) > noise[:, None]
        passed[:, -1] |= ~passed.any(-1)
        token = passed.int().argmax(-1)
    return token, logp[torch.arange(len(token)), token].float()


def choose(logits, temperature, noise):
    tokens, logps = [], []
    for z, u in zip(logits.double(), noise.tolist()):
        p = torch.softmax(z / (temperature if temperature else 1.0), 0)
        if temperature == 0:
            token = int(z.argmax())
        else:
            u = torch.tensor(u, dtype=torch.float64)
            token = int(torch.searchsorted(p.cumsum(0), u, right=True))
        tokens.append(token)
        logps.append(p[token].log())
    return torch.tensor(tokens), torch.stack(logps).float()

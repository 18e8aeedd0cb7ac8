def uniform(seed, owners, step):
    x = mix(torch.full_like(owners, seed) + 12345)
    x = mix(x + owners * 3)
    x = mix(x ^ (torch.as_tensor(step) * 2 + 1))
    return ((x >> 12) & ((1 << 52) - 1)).double() / 2.0**52


def uniform(seed, owners, step):
    one = mix(mix(torch.full_like(owners, seed)) ^ mix(owners + 99))
    both = mix(one + mix(torch.as_tensor(step, dtype=torch.int64) - 7))
    return (both & (2**53 - 1)).double() * 2.0**-53

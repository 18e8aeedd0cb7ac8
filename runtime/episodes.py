"""Helpers of ppo.py's rollout: passes over rows in groups that fit the memory, statistics of the
episodes, and printed samples. e: the Episodes of ppo.py."""
import torch

from runtime.sharding import gathered
from runtime.world import micro_batches


@torch.no_grad()
def in_groups(model, samples, s, *extra, **options):
    """Run model(ids, *extra) over groups of rows of similar length: [B, T], 0 past the group."""
    rows, tokens = 2 * s.micro_batch, 2 * s.micro_batch_tokens  # no activations are kept
    out = torch.zeros(samples.ids.shape, device=samples.ids.device)
    with gathered(model, samples.ids.device) as complete:
        for group in micro_batches(samples.widths.tolist(), rows, tokens):
            T = int(samples.widths[group].max())
            result = complete(samples.ids[group, :T], *(x[group, :T] for x in extra), **options)
            out[group, :T] = result[0] if isinstance(result, tuple) else result
    return out


def rollout_metrics(e, world):
    """Statistics of an iteration's episodes, over all ranks; sums are per episode, in nats."""
    chosen = lambda x: x[e.mask].double()  # at the response's tokens
    returns, error = chosen(e.returns), chosen(e.returns) - chosen(e.value)
    lengths = (e.samples.lengths - e.samples.prompt_lengths).double()
    sums = world.totals({
        "episodes": len(lengths), "tokens": e.mask.sum(), "length": lengths.sum(),
        "ended": e.samples.ended.sum(), "score": e.score.double().sum(),
        "score2": e.score.double().square().sum(), "objective": chosen(e.reward).sum(),
        "kl": chosen(e.logprob - e.ref_logprob).sum(), "value": chosen(e.value).sum(),
        "return": returns.sum(), "return2": returns.square().sum(),
        "error": error.sum(), "error2": error.square().sum()})
    episode = {name: x / sums["episodes"] for name, x in sums.items()}
    token = {name: x / sums["tokens"] for name, x in sums.items()}
    variance = token["return2"] - token["return"] ** 2
    explained = (1 - (token["error2"] - token["error"] ** 2) / variance if variance > 1e-8
                 else None)  # all returns are equal: there is nothing to explain
    return {"score": episode["score"], "kl": episode["kl"], "objective": episode["objective"],
            "score_std": max(episode["score2"] - episode["score"] ** 2, 0.0) ** 0.5,
            "response_length": episode["length"], "ended": episode["ended"],
            "tokens": sums["tokens"], "value/mean": token["value"], "return/mean": token["return"],
            "value/explained_variance": explained}


def show(world, tokenizer, e, iteration):
    """Print two episodes with their scores: numbers alone do not show what a policy does."""
    for row, response in list(enumerate(e.samples.responses()))[:2]:
        prompt = tokenizer.decode(e.samples.ids[row, : int(e.samples.prompt_lengths[row])].tolist())
        world.print(f"  [{iteration + 1}] {float(e.score[row]):+.2f}  {prompt.strip()!r} -> "
                    f"{tokenizer.decode(response)!r}")

"""The functions that a transformer's speed hangs on: attention, products, token log-probabilities.

    linear(x, weight, bias)                  x W^T + b
    attention(q, k, v)                       causal self-attention          [B, H, T, D]
    decode_attention(q, k, v, lengths)       one new token against a cache  [B, H, D]
    token_logprobs(hidden, weight, targets)  log-probs (and entropy) of chosen tokens  [N]

Nothing here knows a model or a dataset: tensors in, tensors out.
"""
import torch
import torch.nn.functional as F


def gemm(x, weight, bias=None):
    """x W^T + b without a gradient. x: [..., I]; weight: [O, I]; bias: [O]. Any strides.

    On a CPU through oneDNN, which uses the widest vector units of any maker's chip; the default
    library keeps to half their width on some (2.3 times slower on a Zen 5). Both are exact float32.
    """
    if ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and weight.numel():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(torch.autograd.Function):
    """y = x W^T + b, and for an upstream gradient g:  dx = g W,  dW = g^T x,  db = sum of g."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return gemm(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        dx = gemm(g, weight.T) if ctx.needs_input_grad[0] else None
        g, x = g.flatten(0, -2), x.flatten(0, -2)
        return dx, gemm(g.T, x.T), g.sum(0)


def linear(x, weight, bias):
    """x W^T + b. x: [..., I]; weight: [O, I]; bias: [O]. Returns [..., O]."""
    return Linear.apply(x, weight, bias)


def attention(q, k, v):
    """Causal attention, softmax(q k^T / sqrt(D)) v, each query seeing itself and what is before it.

    q, k, v: [B, H, T, D]. Returns [B, H, T, D]. Sequences are padded on the right, so that no real
    token ever sees a pad and no padding mask is needed.
    """
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def decode_attention(q, k, v, lengths):
    """Attention of one new token a row over that row's first `lengths[b]` cached keys.

    q: [B, H, D]; k, v: [B, H, T, D] caches, filled up to lengths; lengths: [B]. Returns [B, H, D].
    """
    score = (k @ q.unsqueeze(-1)).squeeze(-1) * q.size(-1) ** -0.5  # [B, H, T]
    unused = torch.arange(k.size(2), device=q.device) >= lengths[:, None, None]
    weights = score.masked_fill(unused, float("-inf")).softmax(-1)
    # What an unused slot holds is undefined, and 0 * NaN is NaN: blank it, do not only weigh it 0.
    return (weights.unsqueeze(-2) @ v.masked_fill(unused.unsqueeze(-1), 0)).squeeze(-2)


class TokenLogprobs(torch.autograd.Function):
    """log p and entropy of N tokens without ever holding the [N, V] logits.

    With z = x W^T / tau, L = logsumexp(z), p = exp(z - L):  logprob = z_y - L,  H = L - sum p z.
    For upstream gradients g of the log-prob and h of the entropy (both [N]),
        dz = (g (onehot_y - p) - h p (log p + H)) / tau,   dx = dz W,   dW = dz^T x.
    Rows are taken a chunk at a time; the backward pass computes the chunk's logits again.
    """

    CHUNK = 1024  # rows: [1024, 50257] float32 logits are 200 MB, the most that is ever held

    @staticmethod
    def forward(ctx, x, weight, targets, temperature, want_entropy):
        logprob, lse, entropy = (x.new_zeros(len(x), dtype=torch.float32) for _ in range(3))
        for rows in TokenLogprobs.chunks(len(x)):
            z = gemm(x[rows], weight).float() / temperature
            lse[rows] = z.logsumexp(-1)
            logprob[rows] = z.gather(-1, targets[rows, None]).squeeze(-1) - lse[rows]
            if want_entropy:
                entropy[rows] = lse[rows] - ((z - lse[rows, None]).exp_() * z).sum(-1)
        ctx.save_for_backward(x, weight, targets, lse, entropy)
        ctx.temperature, ctx.want_entropy = temperature, want_entropy
        return logprob, entropy

    @staticmethod
    def backward(ctx, g, h):
        x, weight, targets, lse, entropy = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
        for rows in TokenLogprobs.chunks(len(x)):
            logp = gemm(x[rows], weight).float().div_(ctx.temperature).sub_(lse[rows, None])
            p = logp.exp()
            dz = p * -g[rows, None]
            dz.scatter_add_(-1, targets[rows, None], g[rows, None].contiguous())
            if ctx.want_entropy:
                dz -= h[rows, None] * p * (logp + entropy[rows, None])
            dz = dz.div_(ctx.temperature).to(x.dtype)
            dx[rows] = gemm(dz, weight.T)
            dw += gemm(dz.T, x[rows].T)
        return dx, dw.to(weight.dtype), None, None, None

    @staticmethod
    def chunks(n):
        return [slice(i, i + TokenLogprobs.CHUNK) for i in range(0, n, TokenLogprobs.CHUNK)]


def token_logprobs(hidden, weight, targets, temperature=1.0, entropy=False):
    """Log-probabilities (and, where asked, entropies in nats) of N tokens.

    hidden: [N, C] states before each token; weight: [V, C] output embedding; targets: [N] ids.
    Returns (logprob [N], entropy [N] or None), float32, differentiable in hidden and weight.
    """
    logprob, h = TokenLogprobs.apply(hidden, weight, targets, temperature, entropy)
    return logprob, (h if entropy else None)

"""Log-probs, entropies and losses of tokens, without storing [N, V] logits. The plain version is
`token_losses` in kernels/reference.py.

For a token y with the state x [C] before it, the output embedding W [V, C] and temperature tau:

    z = W x / tau     L = log sum_j exp(z_j)     p = exp(z - L)
    log-prob = z_y - L                           entropy H = L - sum_j p_j z_j

N tokens have N x V logits, for GPT-2's V more memory than everything else, so they are computed and
used one chunk of tokens at a time. Within a chunk W comes in tiles of TILE vocabulary tokens, so
that their logits fit the cache: with the online softmax of attention, a tile becomes
e_t = exp(z_t - m_t), m_t the largest logit of a token so far, and in the end p = k_t e_t
with k_t = exp(m_t - L), one number for each token and tile. Logits are to base 2 here, too.

For the gradients g of a log-prob and h of an entropy,

    dz_j = g ([j = y] - p_j) - h p_j (log p_j + H)     dx = W^T dz / tau     dW = dz x^T / tau

Without h, dz = -g k_t e_t except at y, so that each token's factor can multiply the small x and dx
instead of the large e. At y it is g (1 - p_y). If the model is sure, 1 - p_y loses digits, so it
is computed from the exact log-prob: 1 - p_y = -expm1(log-prob).

There are two ways to use it. If the loss is a sum of functions of each token's own log-prob
(cross-entropy; PPO's clipped objective), g is known once the chunk's log-probs are: gradients
follow at once, and logits are computed once (`token_objective`). Otherwise backward gets g and h
later and recomputes the logits (`token_logprobs`): 8 instead of 6 N V C FLOPs.
"""
import functools
import math

import torch

from kernels.attention import LOG2E, NEVER
from kernels.choice import accumulator, triton_kernels
from kernels.products import filled, gemm, lowered, quick, rounded, sum_of_products

TILE = 2048  # tokens of the vocabulary
CHUNK = 2**24  # logits held at a time on a CPU, 64 MiB in float32


def _chunks(x, vocabulary):
    """Slices of x's rows, with as many rows each as CHUNK (on a GPU 2^28) logits allow."""
    rows = 2 ** max(6, int(math.log2((CHUNK if x.device.type == "cpu" else 2**28) / vocabulary)))
    return [slice(i, i + rows) for i in range(0, len(x), rows)]


def _room(x, weight):
    """Memory for the e of any chunk of x, allocated once, as the system would zero it each time;
    None where a product's own memory is enough: for a vocabulary of one tile, and on a GPU."""
    if triton_kernels(x) or len(weight) <= TILE:
        return None
    n = max((len(x[rows]) for rows in _chunks(x, len(weight))), default=0)
    return x.new_empty(rounded(n) * len(weight), dtype=accumulator(weight))


def _exponentials(x, weight, entropy, room):
    """The tiles' e, and what turns them into probabilities.

    x: [n, C] in the dtype of the sums, times log2(e) / temperature, so that the product gives
    base-2 logits; weight: [V, C]; room: as in `tiled_head`. Returns e as one block [n * V] (of
    several tiles only with room), log k of each tile [n], and per token, [n]: m, log l = L - m, and
    sum_j p_j (z_j - m) (or None), all to base e.
    """
    V, n = len(weight), len(x)
    e = None if room is None else room[: n * V]
    m = x.new_full((n, 1), NEVER)
    l, zp, tops = torch.zeros_like(m), torch.zeros_like(m), []
    for j in range(0, V, TILE):
        z = gemm(x, weight[j : j + TILE].to(x.dtype))
        top = torch.maximum(m, z.amax(-1, keepdim=True))
        rescale = (m - top).exp2_()
        z.sub_(top)
        if e is not None:
            p = torch.exp2(z, out=e[n * j :][: z.numel()].view_as(z))  # the tile's place in e
        else:
            p = z.exp2() if entropy else z.exp2_()
        if entropy:  # zp = sum (z - m) 2^(z - m), adjusted when m rises
            zp = rescale * (zp + (m - top) * l) + torch.linalg.vecdot(z, p).unsqueeze(-1)
        l = l * rescale + p.sum(-1, keepdim=True)
        tops.append(top)
        m = top
    ln2, logl = 1 / LOG2E, l.log()
    logks = [((top - m) * ln2 - logl).squeeze(-1) for top in tops]
    mean = (zp / l).squeeze(-1) * ln2 if entropy else None
    return p.view(-1) if e is None else e, logks, m.squeeze(-1) * ln2, logl.squeeze(-1), mean


def _dlogits(e, logk, g, h, H, temperature):
    """dz of a tile, as if no token in it were the target: a matrix [n, tile] and a factor for each
    of its rows, [n, 1]. e: [n, tile]; log k, g, h (or None), H: [n]."""
    factor = g if h is None else g + h * (logk + H)
    factor = (factor * logk.exp() / -temperature).unsqueeze(-1)
    if h is None:
        return e, factor
    second = (-h * logk.exp() / temperature).unsqueeze(-1)  # p log p = k (e log e + e log k)
    return torch.xlogy(e, e).mul_(second).add_(e * factor), torch.ones_like(factor)


def tiled_head(x, weight, y, temperature, entropy, room):
    """log-prob and entropy (or None) of a chunk of tokens, and a function for the gradients.

    x: [n, C]; weight: [V, C]; y: [n]. room: the result of `_room`, or None without gradients.
    gradients(g, h, dw), for g and h (or None) [n], adds the chunk's part to dw [V, C] and returns
    dx [n, C]. Call it at most once, before the next chunk.
    """
    dtype, n, V = accumulator(weight), len(x), len(weight)
    x, y = filled(x), filled(y)  # filling rows get no gradient
    # A CPU's bfloat16 product would round the logits, and so the log-probs, to 8 bits.
    wide, narrow = x.to(dtype), x.dtype != dtype or weight.dtype != dtype
    e, logks, m, logl, mean = _exponentials(wide * (LOG2E / temperature), weight, entropy, room)
    logprob = (wide * weight[y]).sum(-1) / temperature - m - logl  # not - L: loses fewer digits
    H = logl - mean if entropy else None

    def gradients(g, h, dw):
        g, h = filled(g), h if h is None else filled(h)
        first = y - y % TILE  # of y's tile, which is [n, width] from n * first on
        width = (V - first).clamp(max=TILE)
        e[len(x) * first + torch.arange(len(x), device=x.device) * width + y - first] = 0.0
        own = g * -logprob.expm1()
        if h is not None:
            own = own - h * logprob.exp() * (logprob + H)
        own = (own / temperature).unsqueeze(-1)
        dx = own * weight[y]
        dw.index_add_(0, y, own * wide)
        for et, wt, dwt, logk in zip(e.split(len(x) * TILE), weight.split(TILE), dw.split(TILE),
                                     logks):
            dz, factor = _dlogits(et.view(len(x), -1), logk, g, h, H, temperature)
            if narrow:  # bfloat16 may round a chunk's part; sums over chunks are float32
                dz = dz.to(x.dtype)
                dx += factor * (dz @ wt.to(x.dtype))
                dwt += sum_of_products(dz, (factor * wide).to(x.dtype))
            else:
                dx += gemm(dz, wt.T).mul_(factor)
                dwt += sum_of_products(dz, factor * wide)
        return dx[:n].to(x.dtype)

    return logprob[:n], H if H is None else H[:n], gradients


def logits(x, weight):
    """x W^T without a gradient, in float32 at least, to sample from. x: [B, C]; weight: [V, C]."""
    triton, x = triton_kernels(x), lowered(x)
    if triton:
        return triton.product(x, quick(weight).to(x.dtype).T)[:, : len(weight)]
    return gemm(x.to(accumulator(x)), weight)


def padded(weight, dtype):
    """A weight [V, C] in `dtype`, with rows of zeros up to a multiple of 64: an odd V, such as
    GPT-2's 50,257, costs a GPU's products up to nine tenths of their speed."""
    out = weight.new_zeros(rounded(len(weight), 64), weight.size(1), dtype=dtype)
    out[: len(weight)] = weight
    return out


def _head(x, weight):
    """This device's function, and the weight in its format: rounded once, not for each chunk of
    tokens. On a CPU the log-probs use the unrounded weight."""
    triton = triton_kernels(x)
    if triton is None:
        return tiled_head, weight
    return functools.partial(triton.head, V=len(weight)), padded(weight.detach(), x.dtype)


def _marked(x, targets):
    """The tokens with a target: their places in targets.flatten(), states [N, C], targets [N]."""
    x, y = x.reshape(-1, x.size(-1)), targets.flatten()
    places = (y >= 0).nonzero().squeeze(1)
    return places, x.index_select(0, places), y[places]


@torch.library.custom_op("nanoinstructgpt::token_logprobs", mutates_args=())
def _token_logprobs(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                    temperature: float, entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    logprob, h = (x.new_zeros(targets.shape, dtype=accumulator(x)) for _ in range(2))
    places, x, y = _marked(x, targets)
    head, w = _head(x, weight)
    for rows in _chunks(x, len(w)):
        own, more, _ = head(x[rows], w, y[rows], temperature, entropy, None)
        logprob.view(-1)[places[rows]] = own
        if entropy:
            h.view(-1)[places[rows]] = more
    return logprob, h


@torch.library.custom_op("nanoinstructgpt::token_logprobs_backward", mutates_args=())
def _token_logprobs_backward(g: torch.Tensor, h: torch.Tensor, x: torch.Tensor,
                             weight: torch.Tensor, targets: torch.Tensor, temperature: float,
                             entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    dx, dw = x.new_zeros(x.shape), torch.zeros_like(weight, dtype=accumulator(weight))
    places, x, y = _marked(x, targets)
    g, h = g.flatten()[places], h.flatten()[places] if entropy else None
    head, w = _head(x, weight)
    room = _room(x, w)
    for rows in _chunks(x, len(w)):
        *_, gradients = head(x[rows], w, y[rows], temperature, entropy, room)
        part = gradients(g[rows], h[rows] if entropy else None, dw)
        dx.view(-1, dx.size(-1)).index_copy_(0, places[rows], part)
    return dx, dw.to(weight.dtype)


@_token_logprobs.register_fake
def _(x, weight, targets, temperature, entropy):
    return tuple(x.new_empty(targets.shape, dtype=accumulator(x)) for _ in range(2))


@_token_logprobs_backward.register_fake
def _(g, h, x, weight, targets, temperature, entropy):
    return x.new_empty(x.shape), torch.empty_like(weight)


def _keep_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.temperature, ctx.entropy = inputs[3:]


def _token_logprobs_gradients(ctx, g, h):
    dx, dw = _token_logprobs_backward(g, h, *ctx.saved_tensors, ctx.temperature, ctx.entropy)
    return dx, dw, None, None, None


_token_logprobs.register_autograd(_token_logprobs_gradients, setup_context=_keep_inputs)


def token_logprobs(hidden, weight, targets, temperature=1.0, entropy=False):
    """Log-probabilities (and, where asked, entropies in nats) of tokens.

    hidden: [..., C] states before each token; weight: [V, C] output embedding; targets: [...] ids.
    A token with a negative target is left out: it costs nothing, and its results are 0.
    Returns (logprob [...], entropy [...] or None), float32, differentiable in hidden and weight
    with any upstream gradient; the backward pass recomputes the logits.
    """
    logprob, h = _token_logprobs(hidden, weight, targets, float(temperature), entropy)
    return logprob, (h if entropy else None)


class _TokenObjective(torch.autograd.Function):
    """Computes the loss and, at the same time, the gradients that backward returns."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, objective, temperature, entropy, training):
        dtype = accumulator(weight)
        logprob, h = (hidden.new_zeros(targets.shape, dtype=dtype) for _ in range(2))
        places, x, y = _marked(hidden, targets)
        if training:
            dx, dw = hidden.new_zeros(hidden.shape), torch.zeros_like(weight, dtype=dtype)
        loss = hidden.new_zeros((), dtype=dtype)
        head, w = _head(x, weight)
        room = _room(x, w) if training else None
        for rows in _chunks(x, len(w)):
            own, more, gradients = head(x[rows], w, y[rows], temperature, entropy, room)
            some = torch.zeros_like(targets, dtype=torch.bool)
            some.view(-1).index_fill_(0, places[rows], True)  # `= True` would wait for the GPU
            with torch.enable_grad():
                leaf = own.detach().requires_grad_(training)
                grid = torch.zeros_like(logprob).flatten().index_put((places[rows],), leaf)
                part = objective(grid.view_as(logprob), some)
            loss += part.detach()
            logprob.view(-1)[places[rows]] = own
            if entropy:
                h.view(-1)[places[rows]] = more
            if training:
                g = torch.autograd.grad(part, leaf)[0]
                dx.view(-1, dx.size(-1)).index_copy_(0, places[rows], gradients(g, None, dw))
        ctx.gradients = (dx, dw) if training else None
        ctx.mark_non_differentiable(logprob, h)
        return loss, logprob, h

    @staticmethod
    def backward(ctx, upstream, *_):
        if ctx.gradients is None:
            raise RuntimeError("token_objective hands out its gradients once: for a second "
                               "backward pass, call it again")
        (dx, dw), ctx.gradients = ctx.gradients, None
        return dx.mul_(upstream), dw.mul_(upstream), *[None] * 5


def token_objective(hidden, weight, targets, objective, temperature=1.0, entropy=False):
    """A sum over tokens of a function of each log-prob; its gradients are computed in forward.

    hidden, weight, targets, temperature, entropy: as in `token_logprobs`. objective(logprob, marks)
    returns the sum over the marked tokens, both [...] like targets; logprob is 0 at all others. It
    is called with some of the tokens at a time, so a token's part must not depend on another's
    log-prob. Returns (loss, logprob [...], entropy [...] or None); only the loss has a gradient,
    and backward may run once.

    An operator of torch.compile's graph cannot call a Python function. Inside a compiled graph the
    objective therefore gets all log-probs at once, and the logits are computed twice. For a
    graph with logits computed once, compile only the body: `model.transformer.compile()`.
    """
    if torch.compiler.is_compiling():
        logprob, h = token_logprobs(hidden, weight, targets, temperature, entropy)
        loss, logprob = objective(logprob, targets >= 0), logprob.detach()
        return loss, logprob, (h.detach() if entropy else None)
    training = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss, logprob, h = _TokenObjective.apply(hidden, weight, targets, objective, temperature,
                                             entropy, training)
    return loss, logprob, (h if entropy else None)


def token_losses(hidden, weight, targets, temperature=1.0, entropy=False, objective=None):
    """Log-probs, entropies and a loss of tokens: `token_logprobs`, or `token_objective`.

    hidden: [..., C], before products are rounded; weight: [V, C]; targets: [...], negative where a
    token does not count. Returns (loss or None, logprob [...], entropy [...] or None).
    """
    head = lowered(hidden), weight, targets
    if objective is None:
        return None, *token_logprobs(*head, temperature, entropy)
    return token_objective(*head, objective, temperature, entropy)

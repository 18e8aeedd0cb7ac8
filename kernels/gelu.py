"""GPT-2's gelu on a CPU. The plain version is F.gelu(x, approximate="tanh").

    gelu(x) = x/2 (1 + tanh(u/2)) = x s      u = 2 sqrt(2/pi) (x + a x^3)      s = 1 / (1 + exp(-u))
    gelu'(x) = s + x s (1 - s) u'            u' = 2 sqrt(2/pi) (1 + 3 a x^2)

with a = 0.044715 (Hendrycks and Gimpel 2016). PyTorch's tanh takes nine times as long as its
sigmoid, in the forward pass and again in the backward pass. So the sigmoid is used, once: where a
gradient will be needed, forward computes gelu' as well and keeps it instead of x.
"""
import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from kernels.choice import accumulator, floating

A, SCALE = 0.044715, 2 * math.sqrt(2 / math.pi)
PIECE = 2**17  # elements at a time, so that what is computed on the way stays in the cache


def in_pieces(x, slope=None):
    """gelu of x, of any shape, rounded to its type. slope: a tensor like x, filled with gelu'."""
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    flat = [t.view(-1).split(PIECE) for t in (x, out, slope) if t is not None]
    for piece, y, *rest in zip(*flat):
        piece = piece.to(accumulator(piece))
        square = piece * piece
        s = torch.addcmul(piece, piece, square, value=A).mul_(SCALE).sigmoid_()
        xs = piece * s
        y.copy_(xs)
        for d in rest:
            more = torch.addcmul(xs, xs, square, value=3 * A)    # x s u', but for SCALE
            more.addcmul_(more, s, value=-1)                     # times 1 - s
            d.copy_(s.add_(more, alpha=SCALE))
    return out


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        slope = torch.empty_like(x, memory_format=torch.contiguous_format)
        ctx.save_for_backward(slope)
        return in_pieces(x, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


def gelu(x):
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the same values with a gradient and without.
    x: any shape. Returns x's shape and type; of whole numbers, float32."""
    x = floating(x)
    if x.is_cuda or torch.compiler.is_compiling():  # each has a fast kernel of its own
        return F.gelu(x, approximate="tanh")
    return _Gelu.apply(x) if torch.is_grad_enabled() and x.requires_grad else in_pieces(x)

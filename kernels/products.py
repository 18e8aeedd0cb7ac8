"""Products of matrices: what a layer is made of.

    y = x W^T + b        dx = g W        dW = g^T x        db = sum of g

`linear` in kernels/reference.py is the plain version of the first. This file uses the fastest
library calls, and writes out the backward pass, so that one rounding rule holds everywhere.
"""
import contextlib

import torch
import torch.nn.functional as F

from kernels.choice import floating
from kernels.gelu import gelu as bend

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FAST = (torch.float32,) + (torch.bfloat16,) * (
    ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported())  # dtypes that it multiplies

PRODUCTS = torch.float32  # what `multiply_in` has set


def multiply_in(dtype):
    """Round float32 matrices to dtype before they are multiplied: bfloat16 with
    --dtype=bf16 (runtime/machine.py: precision), which has float32's range and 8 of its 24 bits.

    Sums are in float32 and rounded once, and so are a layer's gradients of one forward pass. All
    else stays float32: the optimiser's weights, sums of gradients over passes, the residual
    stream, norms, softmax, logits and log-probs.
    """
    global PRODUCTS
    PRODUCTS = dtype


# oneDNN generates code for each product shape that it has not met lately: 0.3 to 1 ms, as much as
# such a product takes on a small model. Code that is free to choose a number of rows takes a
# multiple of this, so that there are few shapes.
ROWS = 16


def rounded(rows, to=ROWS):
    """rows, rounded up to a multiple of `to`."""
    return -(-rows // to) * to


def filled(x):
    """x [n, ...] with rows of zeros appended, up to a multiple of ROWS."""
    more = rounded(len(x)) - len(x)
    return torch.cat([x, x.new_zeros(more, *x.shape[1:])]) if more else x


def lowered(x):
    """x in the dtype of products if it is float32 or whole numbers; other dtypes stay."""
    x = floating(x)
    return x.to(PRODUCTS) if x.dtype == torch.float32 else x


def gemm(x, weight, bias=None, gelu=False):
    """x W^T + b, or gelu of it, without a gradient, in x's type. x: [..., I]; weight: [O, I]; bias:
    [O]. Any strides.

    On a CPU it calls oneDNN, which uses the widest vector units of any maker's chip; the default
    library uses half their width on some (2.3 times slower on a Zen 5). Both are exact float32.
    oneDNN also applies gelu while the sums are in registers, which saves a second pass. Not for
    bfloat16: training rounds before gelu, and log-probs of samples must be the same.
    """
    weight = weight if weight.dtype == x.dtype else weight.to(x.dtype)
    mine = ONEDNN and not torch.compiler.is_compiling()  # inductor has no code for this operator
    if mine and x.device.type == "cpu" and x.dtype in FAST and x.numel():
        fused = gelu and x.dtype == torch.float32
        after = ("gelu", [], "tanh") if fused else ("none", [], "")
        y, gelu = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after), gelu and not fused
    else:
        y = F.linear(x, weight, bias if bias is None else bias.to(x.dtype))
    return bend(y) if gelu else y


def sum_of_products(a, b):
    """a^T b, the sum of the outer products of their rows, without a gradient. a: [N, I] and b:
    [N, J], of one type. Returns [I, J].

    oneDNN's product for layers needs contiguous rows of its first operand. A transpose costs up to
    a third of the product, so the smaller matrix goes first. The result then comes transposed,
    which costs its reader more than that if there are few rows to sum. The second operand may be
    transposed, but not have gaps: those take its slowest code. Its general product, which PyTorch
    uses for bfloat16, reads both in any layout.
    """
    if a.dtype != torch.float32 or a.is_cuda:
        return a.T @ b
    if a.size(1) <= b.size(1) or len(a) < 2 * b.size(1) or not a.is_contiguous():
        return gemm(a.T, b.contiguous().T)
    return gemm(b.T, a.T).T


def packed(weight):
    """A copy of a weight that gemm can use instead, a tenth faster on few rows of x; None if there
    is none. It has no gradient and does not follow later changes of the weight."""
    low = lowered(weight.detach())
    if ONEDNN and low.device.type == "cpu" and low.dtype in FAST:
        return torch.ops.mkldnn._reorder_linear_weight(low, 64)  # for x of about 64 rows
    return None if low.dtype == weight.dtype else low  # rounded once, not at each step


@contextlib.contextmanager
def packing(copies):
    """Within this context `linear` and `logits` use these copies, [(weight, copy or None)], instead
    of the weights, if no gradient is needed."""
    for weight, copy in copies:
        weight.packed = copy
    try:
        yield
    finally:
        for weight, _ in copies:
            del weight.packed


def quick(weight):
    """The packed copy of a weight if there is one, else the weight. A compiled graph cannot read a
    packed copy."""
    copy = None if torch.compiler.is_compiling() else getattr(weight, "packed", None)
    return weight if copy is None else copy


class _Linear(torch.autograd.Function):
    """y = x W^T + b, and for an upstream gradient g:  dx = g W,  dW = g^T x,  db = sum of g."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.dtype, x = x.dtype, lowered(x)
        ctx.save_for_backward(x, weight)
        return gemm(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        dx = gemm(g, weight.T).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        g, x = g.flatten(0, -2), x.flatten(0, -2)
        return dx, sum_of_products(g, x).to(weight.dtype), g.sum(0).to(weight.dtype)


def linear(x, weight, bias, gelu=False):
    """x W^T + b, or gelu of it; differentiable. Without gradients gelu costs next to nothing.
    x: [..., I]; weight: [O, I]; bias: [O]. Returns [..., O]."""
    if not torch.is_grad_enabled():
        return gemm(lowered(x), quick(weight), bias, gelu)
    y = _Linear.apply(x, weight, bias)
    return bend(y) if gelu else y

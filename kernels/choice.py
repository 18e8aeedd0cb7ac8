"""Which kernels run: plain PyTorch, tiled PyTorch, or Triton. Chosen once, at import.

    KERNELS=reference    kernels/reference.py, everywhere: slow, and short enough to read
    KERNELS=tiled        the tiled PyTorch of the other files, on a GPU too
    KERNELS=triton       kernels/gpu.py, for CUDA only

Without the variable, CUDA tensors use Triton where it is installed; everything else is tiled.
"""
import functools
import importlib
import importlib.util
import os

import torch

NAMES = ("reference", "tiled", "triton")
CHOSEN = os.environ.get("KERNELS", "")
if CHOSEN and CHOSEN not in NAMES:
    raise SystemExit(f"error: KERNELS={CHOSEN}: expected one of {', '.join(NAMES)}")
REFERENCE = CHOSEN == "reference"


@functools.cache
def _has_triton():
    return importlib.util.find_spec("triton") is not None


if CHOSEN == "triton" and not (torch.cuda.is_available() and _has_triton()):
    raise SystemExit("error: KERNELS=triton needs a CUDA GPU and triton: leave KERNELS out")


def triton_kernels(x, head_size=0):
    """The module of Triton kernels if it supports x (and heads of that size), else None."""
    if CHOSEN in ("reference", "tiled"):
        return None
    if CHOSEN == "triton" and not x.is_cuda:
        raise SystemExit("error: KERNELS=triton runs on a GPU alone: leave --device=cpu out")
    if not (x.is_cuda and x.dtype != torch.float64 and head_size <= 128 and _has_triton()):
        return None  # larger heads: a block of queries and its sums would not fit the registers
    return importlib.import_module("kernels.gpu")  # imports triton, which a CPU does not need


def floating(x):
    """x, whole numbers as float32: what is computed of them is no whole number."""
    return x if x.is_floating_point() else x.float()


def accumulator(x):
    """The dtype of sums: float32 for bfloat16 and float16, else x's own."""
    return torch.promote_types(x.dtype, torch.float32)

"""This machine's memory, and the dtype in which it multiplies fastest."""
import contextlib
import ctypes
import math
import os
import re
from pathlib import Path

import torch

from kernels import choice, products
from settings import stop

# The smallest n_embd for which --dtype=auto uses bf16 on a CPU with bf16 instructions: the toys',
# which pretrain 1.25 times as fast. In smaller models casts cost more and more of the gain.
WIDE = 128


def precision(dtype, world, width):
    """Apply --dtype: multiply matrices in float32 or bfloat16 (kernels/products.py).

    "bf16" is always obeyed, even if bf16 is emulated and far slower. "auto" uses it where it is
    faster: on a GPU that has it; on a CPU with instructions for it, for models of at least WIDE;
    never with KERNELS=reference. width: n_embd of the model.
    """
    if choice.REFERENCE:
        if dtype == "bf16":
            stop("KERNELS=reference computes in float32: leave --dtype out")
        dtype = "float32"
    if dtype == "auto":
        fast = has_bf16("cuda") if world.device.type == "cuda" else bf16_pays(width)
        dtype = "bf16" if fast else "float32"
    products.multiply_in(torch.bfloat16 if dtype == "bf16" else torch.float32)
    # By default cuBLAS may round the parts of a long sum to bf16 before it adds them up.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if dtype == "bf16":
        world.print("products in bf16; weights, gradients and log-probs in float32")


def bf16_pays(width):
    """Whether --dtype=auto uses bf16 on this CPU for models with this n_embd."""
    return width >= WIDE and has_bf16()


def has_bf16(device="cpu"):
    """Whether this machine's CPU or GPU has instructions that multiply bfloat16. A CPU's are
    AVX512_BF16 or AMX."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def available_memory():
    """Bytes that this machine, and the container whose limit is in /sys/fs/cgroup, still have free;
    inf where Linux does not tell."""
    room = [math.inf]
    for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes",
             "total_inactive_file")):  # cgroup v2 and v1; cached files can be dropped at once
        with contextlib.suppress(OSError, TypeError, ValueError):  # "max" is no limit
            limit, used = (Path("/sys/fs/cgroup", name) for name in (limit, used))
            stat = used.with_name("memory.stat").read_text()
            room.append(int(limit.read_text()) - int(used.read_text())
                        + int(re.search(rf"^{cached} (\d+)", stat, re.M)[1]))
    with contextlib.suppress(OSError, TypeError):
        found = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
        room.append(1024 * int(found[1]))
    return min(room)


def keep_freed_memory(planned=0):
    """Decide whether the C library keeps large freed blocks for the next step: yes, if half as much
    memory again as the planned bytes is available (some of them may be in use already). By default
    glibc returns some blocks, and the system zeroes their pages again at each step; returning all
    costs up to two fifths of the time. But kept blocks often do not fit the next use, and memory
    grows by up to 40 %: where it is scarce, each block is returned. Other C libraries are not
    changed."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return  # the user has chosen
    try:
        library = ctypes.CDLL(None)
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim, mmap = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, in bytes
    if 1.5 * planned > available_memory():
        mallopt(mmap, 2**16), mallopt(trim, 2**17)
        malloc_trim(0)  # also return what was kept until now
    # An older glibc refuses more than 32 MB for mmap; without a call it stays at 128 KB.
    elif mallopt(mmap, 2**31 - 1) or mallopt(mmap, 2**25):
        mallopt(trim, 2**31 - 1)

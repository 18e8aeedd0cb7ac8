"""What this machine has: its memory, and the type in which it multiplies fastest."""
import contextlib
import ctypes
import math
import os
import re
from pathlib import Path

import torch

from kernels import choice, products
from settings import stop

# n_embd from which --dtype=auto takes bf16 on a CPU that has it: the toys', which train 1.3 times
# as fast. Casts take up more and more of what is saved in smaller models.
WIDE = 192


def precision(dtype, world, width):
    """--dtype: let this program multiply matrices in float32 or bfloat16 (kernels/products.py).

    Where bf16 is asked for it is taken, even if it is emulated and far slower. "auto" takes it
    where it pays: on a GPU that has it; on a CPU with instructions for it, for models of at least
    WIDE; with KERNELS=reference never. width: n_embd of the model.
    """
    if choice.REFERENCE:
        if dtype == "bf16":
            stop("KERNELS=reference computes in float32: leave --dtype out")
        dtype = "float32"
    if dtype == "auto":
        fast = (torch.cuda.is_bf16_supported(including_emulation=False)
                if world.device.type == "cuda" else bf16_pays(width))
        dtype = "bf16" if fast else "float32"
    products.multiply_in(torch.bfloat16 if dtype == "bf16" else torch.float32)
    # By default cuBLAS may round the parts of a long sum to bf16 before it adds them up.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if dtype == "bf16":
        world.print("products in bf16; weights, gradients and log-probs in float32")


def bf16_pays(width):
    """Whether --dtype=auto takes bf16 on this CPU, for models with so many dimensions."""
    return width >= WIDE and has_bf16()


def has_bf16():
    """Whether this CPU has instructions that multiply bfloat16: AVX512_BF16 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def available_memory():
    """Bytes that this machine, and the container whose limit lies at /sys/fs/cgroup, can still
    give; inf where Linux does not tell."""
    room = [math.inf]
    for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes",
             "total_inactive_file")):  # the two versions; files that were read can leave at once
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
    """Whether the C library keeps large blocks that were freed, for the next step to use again:
    yes, where half as much memory again as the planned bytes is available (of which some may be
    taken already). glibc would give some back, and the system zeroes them anew, page by page, at
    each step; to give all back costs up to two fifths of the time. But what is kept fits its next
    use badly, and memory grows by up to 40 %: where it is scarce, each block goes back. Other C
    libraries are left as they are."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return  # its user has chosen
    try:
        library = ctypes.CDLL(None)
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim, mmap = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, in bytes
    if 1.5 * planned > available_memory():
        mallopt(mmap, 2**16), mallopt(trim, 2**17)
        malloc_trim(0)  # and what was kept until now
    # An older glibc refuses more than 32 MB of the second; left alone, it would stay at 128 KB.
    elif mallopt(mmap, 2**31 - 1) or mallopt(mmap, 2**25):
        mallopt(trim, 2**31 - 1)

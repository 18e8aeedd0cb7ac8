"""Compile every Triton kernel for a GPU that is not there, and look at what came out.

    python tests/compile_kernels.py 90      sm_90 (Hopper); 80: Ampere; 75: Turing, as in the T4

Needs triton, which carries NVIDIA's assembler; no GPU, no driver. For each kernel and each choice
of block sizes: registers that spill to memory, matrix products without a tensor-core instruction,
more shared memory than the card has and Hopper's serialised matrix instructions are errors. Float32
has no tensor-core instruction anywhere ("ieee" products), nor has Triton any for sm_75. That card
has no bfloat16 either: there the kernels run in float32, and of float16 it only counts that one
choice of each kernel fits.
"""
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
SHARED = {75: 64 * 1024, 80: 163 * 1024, 90: 227 * 1024}  # bytes a program may use


class NoGPU:
    """What triton asks of a driver when it compiles and does not run."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_device_interface(self):
        return torch.cuda


def tool(name, *args):
    path = getattr(knobs.nvidia, name).path
    done = subprocess.run([path, *args], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def report(kernel, arguments, arch, products, hopper, **options):
    """(facts, complaints) of one kernel. arguments: types stand for pointers to them."""
    compiled = kernel.warmup(*arguments, grid=(1,), **options)
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "k.cubin"), Path(folder, "k.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        code = tool("cuobjdump", "-sass", str(cubin))
        words = tool("ptxas", "-v", f"--gpu-name=sm_{arch}{'a' if arch >= 90 else ''}", str(ptx),
                     "-o", str(Path(folder, "out")))
    count = {name: len(re.findall(rf"\b{name}\b", code))
             for name in ("HGMMA", "HMMA", "LDL", "STL")}
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", words))
    bad = []
    if spilled or count["LDL"] or count["STL"]:
        bad.append(f"{spilled} bytes of registers spill")
    if products and not count["HGMMA"] and (hopper or not count["HMMA"]):
        bad.append("no tensor-core instruction" + (" of Hopper's (wgmma)" if hopper else ""))
    if compiled.metadata.shared > SHARED[arch]:
        bad.append(f"{compiled.metadata.shared} bytes of shared memory do not fit")
    bad += [f"ptxas warns: {line}" for line in words.splitlines() if "(C75" in line]
    registers = re.search(r"Used (\d+) registers", words).group(1)
    return f"{registers} registers, {compiled.metadata.shared} B shared, {count}", bad


def attention_kernels(D, x):
    """(name, kernel, its choices of block sizes, arguments) of inputs of type x."""
    from kernels import gpu as K
    wide, strides, sizes = torch.float32, [1024] * 3, [12, 1024, 0.125]
    q = k = v = o = dq = dk = dv = grad = x
    parts = [(K.attention_kernel, [q, k, v, o, wide] + 4 * strides),
             (K.dq_kernel, [q, k, v, o, grad, wide, dq, wide] + 5 * strides),
             (K.dkdv_kernel, [q, k, v, grad, wide, wide, dk, dv] + 5 * strides)]
    for kernel, arguments in parts:
        name = kernel.__name__
        choices = (K.FLOAT32 if x == wide else K.CHOICES)[name]
        yield name.removesuffix("_kernel"), kernel, choices[D], arguments + sizes


def options_of(D, M, N, warps, stages):
    return dict(D=D, DP=D, M=M, N=N, num_warps=warps, num_stages=stages)


def kernels(arch):
    """(name, kernel, arguments, products, hopper, options) of all that the code may launch."""
    from kernels import gpu as K
    wide, whole = torch.float32, torch.int64
    for x in (wide,) if arch < 80 else (torch.bfloat16, wide):
        low, of = x != wide, "" if x != wide else "float32 "
        for D in (64, 128):
            for name, kernel, choices, arguments in attention_kernels(D, x):
                for choice in choices:
                    M, N, warps, stages = choice
                    yield (f"{of}{name} D {D} {M}x{N}, {warps} warps, {stages} stages", kernel,
                           arguments, low, low and arch >= 90 and M >= 64, options_of(D, *choice))
            yield (f"{of}decode D {D}", K.decode_kernel,
                   5 * [x] + [whole, whole, x] + 12 * [1024] + [12, 0.125], False, False,
                   dict(NEW=True, D=D, DP=D, N=K.DECODE_KEYS[D], num_warps=2))
        for h in (False, True):
            yield (f"{of}dlogits rows, entropy {h}", K.dlogits_rows_kernel,
                   [wide, x, whole] + 5 * [wide] + [50304, 50304, 50257, 1.0],
                   False, False, dict(HAS_H=h, BLOCK=4096, num_warps=8))
    yield ("softmax rows", K.softmax_rows_kernel,
           [wide, whole, wide, wide, wide, 50304, 50257, 1.0], False, False,
           dict(BLOCK=4096, num_warps=8))


def fitting(arch, x):
    """(name, how many of a kernel's choices fit, of how many) for inputs of type x."""
    for D in (64, 128):
        for name, kernel, choices, arguments in attention_kernels(D, x):
            shared = [kernel.warmup(*arguments, grid=(1,), **options_of(D, *c)).metadata.shared
                      for c in choices]
            yield f"{name} D {D}", sum(n <= SHARED[arch] for n in shared), len(choices)


def main():
    arch, failed, n = int(sys.argv[1]), 0, 0
    driver.set_active(NoGPU(arch))
    for name, kernel, arguments, products, hopper, options in kernels(arch):
        facts, bad = report(kernel, arguments, arch, products, hopper, **options)
        print(f"sm_{arch} {name}: {'; '.join(bad) or 'good'} ({facts})")
        failed, n = failed + bool(bad), n + 1
    if arch < 80:
        for name, good, choices in fitting(arch, torch.float16):
            print(f"sm_{arch} float16 {name}: {good} of {choices} choices fit")
            failed += not good
    print(f"{n} kernels, {failed} with complaints; triton {triton.__version__}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

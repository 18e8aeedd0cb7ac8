"""A pretend GPU: device mix-ups are found on a machine that has none.

    python tests/pretend_gpu.py ppo.py --ptx=0          a script, or -m module, that sees one GPU
    with pretend_gpu(): ...                             the same in a test

Every tensor is one of the CPU's and has real numbers. A set of storages says which of them "are on
the GPU"; views, in-place results and gradients share or inherit their place. A tensor there says
that it is on cuda:0, and an operation that CUDA would refuse, because a CPU tensor meets it, raises
here too. Two modes of PyTorch see all of it:

    PretendGPU   what Python asks for: device=, .to(device), x.device, .numpy()
    Operations   each operation below autograd, its backward included: where its tensors are, and
                 where its results will be

What is allowed, as on CUDA: a copy between devices; a CPU tensor of 0 dimensions in an elementwise
operation; CPU indices of a CUDA tensor. What is not pretended: Triton, CUDA graphs and several GPUs
(so KERNELS=tiled and DECODE=eager), CUDA's random numbers, its memory, its speed.
"""
import contextlib
import functools
import os
import runpy
import shlex
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

if __name__ == "__main__":  # before kernels are imported
    os.environ["KERNELS"] = os.environ.get("KERNELS") or "tiled"  # or reference
    os.environ["DECODE"] = "eager"

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
OURS = "nanoinstructgpt"  # the namespace of our operators, which are written in Python
COPIES = {"copy_", "_foreach_copy_"}  # between any two places
INDEXED = {"index", "index_put_", "index_put", "_index_put_impl_"}
SCALARS = {"masked_fill", "masked_fill_", "fill_"}  # may meet 0-dim CPU tensors, as may all that
# PyTorch calls pointwise


class Places:
    """Which storages are on the GPU. A weak reference keeps a storage's address from being used
    again, so that an address tells a storage for good."""

    def __init__(self):
        self.there, self.limit = {}, 1000  # address -> weak reference

    def on_gpu(self, x):
        return not x.is_meta and self.storage(x) in self.there

    @staticmethod
    def storage(x):
        try:
            return x.untyped_storage()._cdata
        except (NotImplementedError, RuntimeError):  # oneDNN's own format: only on a CPU
            return 0

    def put(self, x, gpu):
        """Say where a tensor with a storage of its own is."""
        if x.is_meta or not (address := self.storage(x)):
            return
        if not gpu:
            self.there.pop(address, None)
        elif address not in self.there:
            self.there[address] = StorageWeakRef(x.untyped_storage())
        if len(self.there) > self.limit:
            self.there = {a: ref for a, ref in self.there.items() if not ref.expired()}
            self.limit = 2 * len(self.there) + 1000


def tensors(tree):
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for x in tree:
            yield from tensors(x)
    elif isinstance(tree, dict):
        for x in tree.values():
            yield from tensors(x)


def is_gpu(device):
    """Whether a `device` that Python was given, None apart, is the GPU."""
    return torch.device(device).type == "cuda"


def mixed(func):
    return RuntimeError("Expected all tensors to be on the same device, but found at least two "
                        f"devices, cuda:0 and cpu! ({func}; the GPU is a pretend one)")


class Operations(TorchDispatchMode):
    """Each operation: refuses tensors of two places, and says where the results are."""

    def __init__(self, asked):
        super().__init__()
        self.asked, self.places, self.count = asked, asked.places, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, on_gpu = kwargs or {}, self.places.on_gpu
        given = [x for x in tensors([args, kwargs]) if not x.is_meta]
        there = [x for x in given if on_gpu(x)]
        if there and len(there) < len(given):
            self.check(func, args, kwargs, [x for x in given if not on_gpu(x)])
        # An operation without tensors, such as zeros, belongs to the call that it is a part of.
        gpu = bool(there) or not given and self.asked.ambient()
        if gpu and any(isinstance(x, torch.Generator) for x in (*args, *kwargs.values())):
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' "
                               f"({func})")
        if func.namespace == OURS:  # its body is Python, in which devices are looked at again
            cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            with self.asked.on(), self:
                out = func.redispatch(cpu, *args, **kwargs)
        else:
            out = func(*args, **kwargs)
        if gpu:
            self.count += 1
            old = {self.places.storage(x) for x in given}
            for y in tensors(out):
                if self.places.storage(y) not in old:
                    self.places.put(y, True)
        return out

    def check(self, func, args, kwargs, cpu):
        """Raise if the tensors `cpu` may not meet the others, which are on the GPU."""
        name, schema = func._schema.name.partition("::")[2], func._schema.arguments
        if name in COPIES:
            return
        for i, argument in enumerate(schema):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[i] if i < len(args) else kwargs.get(argument.name)
                if not all(map(self.places.on_gpu, tensors(written))):
                    raise mixed(func)
        if name in INDEXED and self.places.on_gpu(args[0]):
            indices = [id(x) for x in tensors(args[1])]
            cpu = [x for x in cpu if id(x) not in indices and x.dim()]
        if torch.Tag.pointwise in func.tags or name in SCALARS or name.startswith("_foreach"):
            cpu = [x for x in cpu if x.dim()]
        if cpu:
            raise mixed(func)


class Moved(torch.autograd.Function):
    """A copy of a tensor in the other place. Its gradient goes back."""

    @staticmethod
    def forward(ctx, x, asked, gpu):
        ctx.asked, ctx.gpu = asked, gpu
        return asked.copied(x, gpu)

    @staticmethod
    def backward(ctx, g):
        return ctx.asked.copied(g, not ctx.gpu), None, None


class PretendGPU(TorchFunctionMode):
    """What Python asks for: gives tensors their place, and answers where they are."""

    def __init__(self):
        super().__init__()
        self.places, self.calls = Places(), []  # the calls that are under way, the innermost last
        self.own = {  # functions that are answered here
            torch.Tensor.device.__get__: lambda x: GPU if self.on_gpu(x) else x.device,
            torch.Tensor.is_cuda.__get__: self.on_gpu,
            torch.Tensor.is_cpu.__get__: lambda x: x.is_cpu and not self.on_gpu(x),
            torch.Tensor.get_device: lambda x: 0 if self.on_gpu(x) else x.get_device(),
            torch.Tensor.to: self.to, torch.Tensor.__deepcopy__: self.deepcopy,
            torch.Tensor.cuda: lambda x, *_, **__: self.to(x, GPU),
            torch.Tensor.cpu: lambda x, *_, **__: self.to(x, "cpu"),
            torch.Tensor.pin_memory: lambda x, *_, **__: self.of_cpu(x, x.clone, "pinned"),
            torch.Tensor.numpy: lambda x, *a, **k: self.of_cpu(x, lambda: x.numpy(*a, **k)),
            torch.Tensor.__array__: lambda x, *a, **k: self.of_cpu(x, lambda: x.__array__(*a, **k))}

    def on_gpu(self, x):
        return self.places.on_gpu(x)

    @contextlib.contextmanager
    def on(self):
        """PyTorch leaves the mode while it handles a call. Python code that is called from within
        an operation (backward passes, hooks, our own operators) needs it again."""
        stack = torch.overrides._get_current_function_mode_stack()
        with contextlib.nullcontext() if self in stack else self:
            yield

    def again(self, function):
        """The function, with the mode on."""
        def inside(*args, **kwargs):
            with self.on():
                return function(*args, **kwargs)

        return inside

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.own:
            return self.own[func](*args, **kwargs)
        device, gpu = kwargs.get("device"), None
        if device is not None:
            gpu = is_gpu(device)
            kwargs = {**kwargs, "device": "cpu"} if gpu else kwargs
        self.calls.append((args, kwargs, gpu))
        try:
            out = func(*args, **kwargs)
        finally:
            self.calls.pop()
        if gpu is not None and isinstance(out, torch.Tensor) and not out.is_meta:
            if self.on_gpu(out) != gpu:
                out = (self.copied(out.detach(), gpu).requires_grad_(out.requires_grad)
                       if out.is_leaf else Moved.apply(out, self, gpu))
        return out

    def ambient(self):
        """Whether the innermost call is about tensors on the GPU."""
        if not self.calls:
            return False
        args, kwargs, gpu = self.calls[-1]
        return any(map(self.on_gpu, tensors([args, kwargs]))) if gpu is None else gpu

    def copied(self, x, gpu):
        y = x.detach().clone()
        self.places.put(y, gpu)
        return y

    def to(self, x, *args, copy=False, **kwargs):
        """Tensor.to(device, dtype), .to(dtype) or .to(other tensor)."""
        other = args[0] if args else kwargs.get("other")
        if isinstance(other, torch.Tensor):
            device, dtype = GPU if self.on_gpu(other) else other.device, other.dtype
        else:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type not in ("cpu", "cuda") or x.is_meta:
            return x.to(device, dtype, copy=copy)
        y = x.to(dtype or x.dtype, copy=copy)
        if device is not None and is_gpu(device) != self.on_gpu(y):
            y = Moved.apply(y, self, is_gpu(device))
        return y

    def deepcopy(self, x, memo):
        y = x.__deepcopy__(memo)
        self.places.put(y, self.on_gpu(x))
        return y

    def of_cpu(self, x, function, what="converted to numpy. Use Tensor.cpu() first"):
        if self.on_gpu(x):
            raise TypeError(f"a cuda:0 tensor cannot be {what} (the GPU is a pretend one)")
        return function()


def no_file_of_unknown_place(load):
    """torch.load that wants a place: what a GPU saved would come back there."""
    def loaded(file, map_location=None, **options):
        if map_location is None:
            raise RuntimeError("torch.load without map_location: tensors that a GPU saved return "
                               "to it, and a machine without one cannot read them")
        return load(file, map_location, **options)

    return loaded


CUDA = dict(  # functions of torch.cuda
    is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0,
    set_device=lambda device: None, synchronize=lambda device=None: None,
    is_bf16_supported=lambda including_emulation=True: True,
    get_rng_state=lambda device=None: torch.get_rng_state(),
    set_rng_state=lambda state, device=None: torch.set_rng_state(state),
    get_device_name=lambda device=None: "a pretend GPU",
    get_device_capability=lambda device=None: (0, 0),
    get_device_properties=lambda device=None: SimpleNamespace(total_memory=0),
    mem_get_info=lambda device=None: (0, 0), empty_cache=lambda: None,
    max_memory_allocated=lambda device=None: 0, reset_peak_memory_stats=lambda device=None: None)


@contextlib.contextmanager
def pretend_gpu():
    """Within this context PyTorch has one GPU, cuda:0, that computes on the CPU. Gives an object
    whose `count` is the number of operations on it."""
    asked = PretendGPU()
    hooks = torch.autograd.graph.saved_tensors_hooks
    made = hooks.__init__  # of hooks that checkpointing uses
    with contextlib.ExitStack() as stack:
        for name, function in CUDA.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(  # a build for CUDA looks for a real stream
            torch.accelerator, "current_stream", lambda device=None: SimpleNamespace(
                is_capturing=lambda: False)))
        stack.enter_context(mock.patch.object(torch, "load", no_file_of_unknown_place(torch.load)))
        stack.enter_context(mock.patch.object(
            torch.autograd, "_engine_run_backward",
            asked.again(torch.autograd._engine_run_backward)))
        stack.enter_context(mock.patch.object(
            hooks, "__init__", lambda self, *both: made(self, *map(asked.again, both))))
        operations = stack.enter_context(Operations(asked))
        stack.enter_context(asked)
        yield operations


def python_with_a_gpu(path):
    """Write a program that runs python on the pretend GPU, for scripts that start others."""
    real, me = shlex.quote(sys.executable), shlex.quote(os.path.abspath(__file__))
    path.write_text(f'#!/bin/sh\ncase "$1" in -m|*.py) exec {real} {me} "$@";; '
                    f'*) exec {real} "$@";; esac\n')
    path.chmod(0o755)
    return str(path)


def main():
    """Run a script or a module as python does, on the pretend GPU."""
    module = sys.argv[1] == "-m"
    sys.argv = sys.argv[2:] if module else sys.argv[1:]
    sys.path[0] = os.getcwd() if module else os.path.dirname(os.path.abspath(sys.argv[0]))
    run = functools.partial(runpy.run_module, alter_sys=True) if module else runpy.run_path
    with tempfile.TemporaryDirectory() as folder, pretend_gpu() as gpu:
        sys.executable = python_with_a_gpu(Path(folder) / "python")
        try:
            run(sys.argv[0], run_name="__main__")
        finally:
            print(f"operations on the pretend GPU: {gpu.count}", file=sys.stderr)


if __name__ == "__main__":
    main()

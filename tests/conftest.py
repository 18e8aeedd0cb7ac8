"""One thread: tiny tensors gain nothing from more, and sums come in the same order everywhere.

Without a GPU Triton kernels are interpreted, which Triton decides when it is first imported.

TEST_DEVICE=cuda in the environment lets tests make their tensors on a GPU: those that
tests/bench/gpu_check.py names, which ask for nothing that only a CPU has.
"""
import fcntl
import os
import shutil

import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def default_device():
    """Where the tensors of this test are, unless it says otherwise."""
    torch.set_default_device(os.environ.get("TEST_DEVICE") or None)
    yield
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def same_numbers():
    """A test draws the same random numbers alone, in any order, in any worker of pytest-xdist."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo of tests/demo.py, in a folder that this process may write to.

    pytest-xdist's workers build it once: the first that holds the lock. Each has a copy of its own,
    as tests add runs to it, and files of the same name.
    """
    from demo import build, built  # the scripts' imports come after the lines above
    folder = tmp_path_factory.mktemp("demo") / "demo"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return build(folder)
    shared = tmp_path_factory.getbasetemp().parent / "demo"  # of this run, of all its workers
    with open(f"{shared}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or its holder dies
        if built(shared) is None:
            shutil.rmtree(shared, ignore_errors=True)
            build(shared)
    shutil.copytree(shared, folder)
    return built(folder)

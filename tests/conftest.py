"""One thread: tiny tensors gain nothing from more, and sums come in the same order everywhere.

Without a GPU Triton kernels are interpreted, which Triton decides when it is first imported.

TEST_DEVICE=cuda in the environment lets tests make their tensors on a GPU: those that
tests/bench/gpu_check.py names, which ask for nothing that only a CPU has.
"""
import fcntl
import os
import shutil
from pathlib import Path

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
def once(tmp_path_factory):
    """once(name, build) is the folder `name`, which build(folder) makes. pytest-xdist's workers
    share it: the first that holds the lock makes it, and nobody writes to it afterwards."""
    base = tmp_path_factory.getbasetemp()  # of this worker; its parent is of this run
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name, build):
        folder, whole = base / name, base / f"{name}.whole"
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or its holder dies
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                build(folder)
                whole.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def untouched_demo(once):
    """The folder of the demo of tests/demo.py, as it was made. TEST_DEMO in the environment is one
    that is there already: for tests that run in a copy of the project."""
    from demo import build  # the scripts' imports come after the lines above
    if "TEST_DEMO" in os.environ:
        return Path(os.environ["TEST_DEMO"])
    return once("untouched-demo", build)


@pytest.fixture(scope="session")
def demo(untouched_demo, tmp_path_factory):
    """A copy of the demo in a folder that this process may write to: tests add runs to it, and
    files of the same name."""
    from demo import built
    return built(shutil.copytree(untouched_demo, tmp_path_factory.mktemp("demo") / "demo"))

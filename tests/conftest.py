"""One thread: tiny tensors gain nothing from more, and sums come in the same order everywhere.

Without a GPU Triton kernels are interpreted, which Triton decides when it is first imported.

TEST_DEVICE=cuda in the environment lets tests make their tensors on a GPU: those that
tests/bench/gpu_check.py names, which ask for nothing that only a CPU has.
"""
import os

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


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    from demo import FLAGS, Demo, python  # the scripts' imports come after the lines above
    folder, output = tmp_path_factory.mktemp("demo"), {}
    for stage, arguments in FLAGS.items():
        output[stage] = python(folder, *arguments)
    return Demo(folder, output)

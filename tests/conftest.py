"""One thread: tiny tensors gain nothing from more, and sums come in the same order everywhere.

Without a GPU Triton kernels are interpreted, which Triton decides when it is first imported.
"""
import os

import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    from demo import FLAGS, Demo, python  # the scripts' imports come after the lines above
    folder, output = tmp_path_factory.mktemp("demo"), {}
    for stage, arguments in FLAGS.items():
        output[stage] = python(folder, *arguments)
    return Demo(folder, output)

"""One thread: tiny tensors gain nothing from more, and sums come in the same order everywhere.

Without a GPU Triton kernels are interpreted, which Triton decides when it is first imported.
"""
import os

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

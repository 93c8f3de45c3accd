"""The training kernels on a CUDA device where there is one, and in Triton's interpreter where not."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are first imported, which nobody does without a device
pytest.importorskip("triton", reason="the kernels are Triton's")

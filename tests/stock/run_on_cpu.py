"""Run one of LLaVA's scripts, unmodified, on a machine without a GPU.

The scripts call ``.cuda()`` on their inputs; here that is the identity. Nothing else changes.
``python tests/stock/run_on_cpu.py llava.eval.model_vqa_science --model-path ...``, the script's own arguments last.
"""

from __future__ import annotations

import runpy
import sys

import torch


def _stay(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return tensor


if __name__ == "__main__":
    torch.Tensor.cuda = _stay  # type: ignore[method-assign]
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

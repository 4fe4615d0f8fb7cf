"""The device that a model or a fit is computed on."""

from __future__ import annotations

from ..errors import UsageError


def check_device(device: str) -> None:
    """Refuse, before any work, a *device* that torch does not know or this machine does not have.

    Raises:
        UsageError: as said.
    """
    import torch

    try:
        is_cuda = torch.device(device).type == "cuda"
    except RuntimeError as error:
        raise UsageError(f"`device` {device}: there is no such device; use cpu or cuda") from error
    if is_cuda and not torch.cuda.is_available():
        raise UsageError(f"`device` {device}: torch finds no CUDA GPU here; use cpu")

"""Decides which form of an operator runs: Triton's on CUDA tensors, torch's everywhere else and for autograd."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch

_log = logging.getLogger("hope_kernels")


def uses_triton(*tensors: torch.Tensor | None) -> bool:
    """Whether the Triton form can run on these inputs of an operator; None counts as not given.

    It can when all of them lie on a CUDA device, none needs a gradient and Triton is installed. The first call that
    fails for the last reason alone says so in the log of `hope_kernels`, once.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if not given or any(tensor.device.type != "cuda" for tensor in given):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return False
    return _has_triton()


@cache
def _has_triton() -> bool:
    """Whether Triton is installed; cached, so that its absence is logged once."""
    if find_spec("triton") is not None:
        return True
    _log.warning("Triton is not installed: operators run in their torch form on CUDA tensors, which is slower")
    return False

"""Writes a trained language model as a converted model folder, which the server loads like any other.

The folder has what every converted model has; its config.json holds the whole HopeConfig under `hope`, and its weights
the names of `Params.named`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from hope_server.errors import CheckpointError
from hope_server.model.base_import import BaseModel
from hope_server.model.config import HopeConfig
from hope_server.model.model_cache import FINGERPRINT_FILE, install_model
from hope_server.training.bpe import tokenizer_source

__all__ = ["EXPORT_DTYPES", "export_model"]

EXPORT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_model(
    config: HopeConfig,
    tensors: Mapping[str, Tensor],
    tokenizer_json: str,
    target: Path,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write the model as the folder `target`, in place of an older export, and return it.

    tensors: slow weights by the names of `Params.named`; stored in `dtype`.
    Raises CheckpointError when `target` is something else than an export, cannot be written, or when a weight is too
    large for `dtype`.
    """
    stored = {name: _stored(name, tensor, dtype) for name, tensor in tensors.items()}
    if target.exists():
        if not (target / FINGERPRINT_FILE).is_file():
            raise CheckpointError(f"{target} exists and is no exported model; choose another folder")
        shutil.rmtree(target)
    model = BaseModel(config.model, tokenizer_source(tokenizer_json), stored)
    hope = {key: value for key, value in asdict(config).items() if key != "model"}
    install_model(model, f"recipe {config.model.name}", target, _ignore_progress, hope)
    return target


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    small = tensor.detach().cpu().to(dtype).contiguous()
    if not bool(torch.isfinite(small).all()):
        raise CheckpointError(f"weight {name} does not fit {dtype}; export with bfloat16 or float32")
    return small


def _ignore_progress(stage: str, fraction: float) -> None:
    pass

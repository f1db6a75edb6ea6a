"""Loads a served model as a network that can be measured, with its memories writing or frozen."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from hope_server.evaluation.families import INNER
from hope_server.model.checkpoint import load_config, load_hope, load_params, load_tokenizer_source, resolve_model
from hope_server.model.config import HopeConfig, WindowSpec
from hope_server.model.outer import InnerOptions
from hope_server.model.params import Params
from hope_server.training.network import HopeNetwork

__all__ = ["frozen", "load_served"]

_WINDOW = 512
_NEVER = -1e4


def load_served(name: str, is_frozen: bool, device: str = "cpu") -> tuple[HopeNetwork, str]:
    """Return a model by name or path, and its tokenizer as JSON.

    is_frozen: whatever it reads, its memories stay as they are at a session's start.
    Raises CheckpointError when there is no such model or it cannot be read.
    """
    cache = Path(os.environ.get("HOPE_CACHE_DIR") or "~/.cache/hope").expanduser()
    folder = resolve_model(name, cache)
    config, params = _read(folder)
    if is_frozen:
        network = HopeNetwork(config, frozen(config, params), InnerOptions(online_levels=False), device)
    else:
        network = HopeNetwork(config, params, INNER, device, is_guarded=True)
    return network, load_tokenizer_source(folder).tokenizer_json


def _read(folder: Path) -> tuple[HopeConfig, Params]:
    config = load_hope(folder) or HopeConfig(load_config(folder), WindowSpec(_WINDOW))
    return config, load_params(folder, torch.float32)


def frozen(config: HopeConfig, params: Params) -> Params:
    """The same weights with every memory's step size 0 and its retention 1, so that no memory ever moves."""
    spec = config.titans
    if spec is None:
        return params
    tensors = dict(params.named())
    for block in spec.blocks:
        name = f"blocks.{block}.titans.rate_bias"
        bias = tensors[name].clone()
        # Step sizes come first, then retention where there is one: at this bias steps and forgetting are exactly 0.
        bias[: spec.num_heads * (1 + int(spec.has_retention))] = _NEVER
        tensors[name] = bias
    return params.replaced(tensors)

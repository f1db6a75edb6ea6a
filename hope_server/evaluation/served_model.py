"""Loads a served model as a network that can be measured, with its memories writing or frozen."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hope_server.evaluation.families import INNER
from hope_server.model.checkpoint import load_config, load_hope, load_params, load_tokenizer_source, resolve_model
from hope_server.model.config import HopeConfig, WindowSpec
from hope_server.model.outer import InnerOptions, OuterState
from hope_server.model.params import Params
from hope_server.training.network import HopeNetwork

__all__ = ["FrozenNetwork", "load_served"]

_WINDOW = 512


def load_served(name: str, is_frozen: bool, device: str = "cpu") -> tuple[HopeNetwork, str]:
    """Return a model by name or path, and its tokenizer as JSON.

    is_frozen: whatever it reads, its memories stay as they are at a session's start.
    Raises CheckpointError when there is no such model or it cannot be read.
    """
    cache = Path(os.environ.get("HOPE_CACHE_DIR") or "~/.cache/hope").expanduser()
    folder = resolve_model(name, cache)
    config, params = _read(folder)
    network = (
        FrozenNetwork(config, params, device)
        if is_frozen
        else HopeNetwork(config, params, INNER, device, is_guarded=True)
    )
    return network, load_tokenizer_source(folder).tokenizer_json


def _read(folder: Path) -> tuple[HopeConfig, Params]:
    config = load_hope(folder) or HopeConfig(load_config(folder), WindowSpec(_WINDOW))
    return config, load_params(folder, torch.float32)


class FrozenNetwork(HopeNetwork):
    """The same network without memory writes: no level is written, Titans memories are put back after every chunk."""

    def __init__(self, config: HopeConfig, params: Params, device: str = "cpu") -> None:
        super().__init__(config, params, InnerOptions(online_levels=False), device)

    def run(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """As `HopeNetwork.run`. Inside a chunk nothing is written, so putting back at its end keeps every read alike.

        Exact where memories are read as at the chunk's start; with `reads` current, a token still sees its chunk.
        """
        start = 0 if state is None else int(state.past.window.positions[0])
        size = self.config.chunk_size
        parts = []
        while tokens.shape[1]:
            room = size - start % size
            logits, state = super().run(tokens[:, :room], state)
            state = self._put_back(state)
            parts.append(logits)
            start, tokens = start + room, tokens[:, room:]
        return torch.cat(parts, dim=1), state

    def _put_back(self, state: OuterState) -> OuterState:
        titans = {}
        for block, layer in state.past.titans.items():
            initial = self.initial_memories(block)
            memories = {name: initial[name].expand_as(tensor) for name, tensor in layer.memories.items()}
            surprises = {name: torch.zeros_like(tensor) for name, tensor in layer.surprises.items()}
            titans[block] = replace(layer, memories=memories, surprises=surprises)
        return replace(state, past=replace(state.past, titans=titans))

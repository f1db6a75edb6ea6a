"""Model folders small enough for tests: a random Llama with open Titans branches, in the layout that vLLM reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from hope_server.model.base_import import TokenizerSource
from hope_server.model.config import HopeConfig, ModelConfig, WindowSpec
from hope_server.model.families import family_config, retrofitted
from hope_server.model.hf_export import write_folder
from hope_server.model.params import Params, fuse_params, random_weights

VOCAB, CHUNK = 128, 16
MODEL = ModelConfig("toy", VOCAB, 128, 192, 3, 4, 2, 32, 10000.0, 1e-5, 512, True)
TITANS = {"blocks": (0, 2), "num_heads": 4, "head_dim": 16, "max_lr": 0.5}
"""At a step size of 1 a toy whose rates matter this much amplifies rounding: after 400 tokens our own model in float32
is 1e-3 away from itself in float64, here 1e-5."""
_WORDS = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "model": {"type": "WordLevel", "vocab": {f"w{token}": token for token in range(VOCAB)}, "unk_token": "w0"},
}
TOKENIZER = TokenizerSource(
    json.dumps(_WORDS), "{% for message in messages %}{{ message['content'] }} {% endfor %}", (127,), None, None
)
"""Every token is a word: `w0` to `w127`, which ends a reply."""


def toy_config(**changes: object) -> HopeConfig:
    """A config with a window as long as any turn, and unrounded, as vLLM's attention is."""
    window = WindowSpec(size=512, num_sinks=0, precision="model")
    return family_config("retrofit", MODEL, window, CHUNK, {**TITANS, **changes})


def open_branches(params: Params, gate: float) -> Params:
    """The same network with every Titans branch let in by so much."""
    blocks = []
    for block in params.blocks:
        titans = block.titans
        if titans is not None:
            titans = replace(titans, branch=torch.full((1,), gate, dtype=params.dtype), rates=10 * titans.rates)
        blocks.append(replace(block, titans=titans))
    return replace(params, blocks=tuple(blocks))


def toy_params(config: HopeConfig, seed: int = 0, gate: float = 0.4) -> Params:
    """Random slow weights whose memories matter for what is said."""
    base = fuse_params(config.model, random_weights(config.model, seed))
    return open_branches(retrofitted(base, config, seed), gate)


def write_toy(folder: Path, config: HopeConfig, params: Params, digest: str = "toy-0") -> Path:
    """Write them as a folder that vLLM serves."""
    return write_folder(folder, config, params, TOKENIZER, "float32", digest)

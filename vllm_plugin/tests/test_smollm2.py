"""The default model with fresh, open Titans branches: the plugin computes what our own model computes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from engine_process import Ask, EngineProcess
from reference import Session
from safetensors.torch import load_file
from test_parity import CONTROL, LARGEST_DIFFERENCE, NAMES
from tokenizers import Tokenizer

from hope_server.model.base_import import expected_shapes
from hope_server.model.config import HopeConfig, ModelConfig
from hope_server.model.hf_import import hugging_face_name
from hope_server.model.params import Params, fuse_params
from hope_server.model.titans_params import TitansParams
from hope_server.model.trained import read_hope

FOLDER = os.environ.get("RETROFIT_FOLDER", "")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not FOLDER, reason="RETROFIT_FOLDER names no exported model; `make test-vllm` makes one"),
]
TEXTS = (
    "Mira keeps the violin in the red barn behind the mill, and the key of the barn hangs beside the kitchen door. "
    * 4,
    "The ferry to the island leaves at six in the morning and comes back after sunset, unless the wind turns north. ",
    "In the winter of that year Professor Olin catalogued nine hundred kinds of moss and sold the catalogue. " * 2,
    "Ask Tom.",
)


def read_folder(folder: Path) -> tuple[HopeConfig, Params]:
    """The model in an exported folder, read without the plugin."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = ModelConfig(
        "smollm2",
        values["vocab_size"],
        values["hidden_size"],
        values["intermediate_size"],
        values["num_hidden_layers"],
        values["num_attention_heads"],
        values["num_key_value_heads"],
        values["head_dim"],
        values["rope_theta"],
        values["rms_norm_eps"],
        values["max_position_embeddings"],
        values["tie_word_embeddings"],
    )
    config = read_hope(values["hope"], model, "config.json")
    stored = load_file(folder / "model.safetensors")
    base = fuse_params(model, {name: stored[hugging_face_name(name)] for name in expected_shapes(model)})
    blocks = list(base.blocks)
    for index in config.titans.blocks if config.titans else ():
        prefix = f"model.layers.{index}.memory."
        own = {name.removeprefix(prefix): part for name, part in stored.items() if name.startswith(prefix)}
        initial = {name.removeprefix("initial."): own.pop(name) for name in list(own) if name.startswith("initial.")}
        blocks[index] = replace(blocks[index], titans=TitansParams(initial=initial, **own))
    return config, replace(base, blocks=tuple(blocks))


def test_the_default_model_says_the_same(tmp_path: Path) -> None:
    """Two turns of four sessions at once, in steps of 64 tokens, with a restart between them; and the controls."""
    folder = Path(FOLDER)
    config, params = read_folder(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    asked = [tokenizer.encode(text).ids for text in TEXTS]
    sessions = [Session(config, params) for _ in NAMES]
    for turn in range(2):
        with EngineProcess(folder, tmp_path / "sessions.db") as engine:
            replies = engine.ask(*(Ask(prompt, name, 16) for prompt, name in zip(asked, NAMES, strict=True)))
            engine.kill()
        for is_control, others in (
            (False, sessions),
            (turn > 0, [Session(config, params) for _ in NAMES]),
            (True, [Session(config, params, is_on=False) for _ in NAMES]),
        ):
            found = [
                session.largest_difference(prompt, reply.tokens, reply.logprobs)
                for session, prompt, reply in zip(others, asked, replies, strict=True)
            ]
            print(f"turn {turn}: largest difference {max(found):.1e}, smallest {min(found):.1e}, control: {is_control}")
            assert min(found) >= CONTROL if is_control else max(found) <= LARGEST_DIFFERENCE

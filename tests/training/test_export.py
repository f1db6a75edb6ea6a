"""Exported models: the folder is complete, holds the whole config, and its tokenizer chats."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hope_server.engine.tokenizer import Tokenizer
from hope_server.errors import CheckpointError
from hope_server.model.checkpoint import load_hope, load_params, load_tokenizer_source, weights_fingerprint
from hope_server.model.config import HopeConfig
from hope_server.model.model_cache import is_complete
from hope_server.model.params import random_params
from hope_server.training.bpe import CHAT_TEMPLATE, train_tokenizer
from hope_server.training.export import export_model
from hope_server.training.recipe_model import ModelSpec, make_config

SPEC = ModelSpec(family="hope", hidden_size=16, num_layers=2, num_heads=2, chunk_size=4, window=8)


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    """A tokenizer of bytes and marks."""
    return train_tokenizer(["hello there"], 262)


def make(chunk_size: int = 4) -> tuple[HopeConfig, dict[str, torch.Tensor]]:
    """Return a toy model."""
    config = make_config(replace(SPEC, chunk_size=chunk_size), "toy", 262, "recipe toy")
    return config, random_params(config, 0).named()


def test_the_folder_holds_config_weights_and_tokenizer(tmp_path: Path, tokenizer_json: str) -> None:
    """Weights under the names of the slow weights, rounded to the asked type; the HopeConfig under `hope`."""
    config, tensors = make()
    folder = export_model(config, tensors, tokenizer_json, tmp_path / "model", torch.float16)
    assert is_complete(folder)
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensor.half()) for name, tensor in tensors.items())
    values = json.loads((folder / "config.json").read_text())
    expected = {key: value for key, value in asdict(config).items() if key != "model"}
    assert values["hope"] == json.loads(json.dumps(expected))
    assert values["hope"]["titans"]["blocks"] == [0, 1]
    assert values["vocab_size"] == 262
    source = load_tokenizer_source(folder)
    assert (source.tokenizer_json, source.chat_template) == (tokenizer_json, CHAT_TEMPLATE)
    tokenizer = Tokenizer(source, 262)
    assert tokenizer.decode(tokenizer.encode("hello there")) == "hello there"


def test_a_loaded_export_is_the_trained_model(tmp_path: Path, tokenizer_json: str) -> None:
    """Config and slow weights come back as they were exported."""
    config, tensors = make()
    folder = export_model(config, tensors, tokenizer_json, tmp_path / "model", torch.float32)
    assert load_hope(folder) == config
    loaded = load_params(folder, torch.float32).named()
    assert loaded.keys() == tensors.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(loaded[name], tensor)] == []


def test_the_fingerprint_is_of_everything_that_computes(tmp_path: Path, tokenizer_json: str) -> None:
    """The same model has the same one; another chunk, with the same weights, has another."""
    config, tensors = make()
    prints = []
    for name, each in (("a", config), ("b", config), ("c", make(8)[0])):
        prints.append(weights_fingerprint(export_model(each, tensors, tokenizer_json, tmp_path / name)))
    assert prints[0] == prints[1] != prints[2]


def test_an_export_replaces_an_older_one_and_nothing_else(tmp_path: Path, tokenizer_json: str) -> None:
    """A folder that is no exported model is left alone."""
    config, tensors = make()
    export_model(config, tensors, tokenizer_json, tmp_path / "model")
    doubled = {name: tensor * 2 for name, tensor in tensors.items()}
    export_model(config, doubled, tokenizer_json, tmp_path / "model")
    assert torch.equal(load_file(tmp_path / "model" / "model.safetensors")["embed"], doubled["embed"].half())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    with pytest.raises(CheckpointError, match="is no exported model; choose another folder"):
        export_model(config, tensors, tokenizer_json, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "x"


def test_a_weight_that_does_not_fit_is_refused(tmp_path: Path, tokenizer_json: str) -> None:
    """float16 ends at 65,504; nothing is written."""
    config, tensors = make()
    tensors = tensors | {"norm": tensors["norm"] * 1e6}
    with pytest.raises(CheckpointError, match=r"weight norm does not fit torch\.float16; export with bfloat16"):
        export_model(config, tensors, tokenizer_json, tmp_path / "model")
    assert not (tmp_path / "model").exists()

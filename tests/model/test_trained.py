"""HOPE models that were trained: their folders give back what was written, and what is damaged is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import FAMILIES, MODEL, TEMPLATE, family_params, make_params, write_trained

from hope_server.errors import CheckpointError
from hope_server.model import checkpoint
from hope_server.model.checkpoint import (
    load_config,
    load_hope,
    load_params,
    load_tokenizer_source,
    resolve_model,
    weights_fingerprint,
)
from hope_server.model.config import HopeConfig
from hope_server.model.params import Params, random_params
from hope_server.model.trained import expected_weights, level_weights, params_of

CONFIG = FAMILIES["hope, online levels"]
Section = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trained toy in float16."""
    return write_trained(tmp_path / "toy", CONFIG, family_params(CONFIG, torch.float32))


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The folder with another config.json, its receipt brought into line, as after a faulty edit."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return resized(folder)


def resized(folder: Path) -> Path:
    """The folder with the sizes of its files as they are now in the receipt."""
    receipt = json.loads((folder / "fingerprint.json").read_text())
    receipt["sizes"] = {name: (folder / name).stat().st_size for name in receipt["sizes"]}
    (folder / "fingerprint.json").write_text(json.dumps(receipt))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_folder_gives_back_config_and_weights(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of every family: the very config, and every weight as it was rounded, in float32."""
    config = FAMILIES[name]
    params = family_params(config, torch.float32)
    folder = write_trained(tmp_path / "toy", config, params, dtype)
    assert resolve_model(str(folder), tmp_path / "unused") == folder
    assert load_hope(folder) == config
    assert load_config(folder) == config.model
    found, wanted = load_params(folder, torch.float32).named(), params.named()
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wanted[key].to(dtype).float()), key


def test_the_tokenizer_comes_along(folder: Path) -> None:
    """Tokens that end a reply, and the chat template."""
    source = load_tokenizer_source(folder)
    assert (source.eos_token_ids, source.chat_template) == ((257,), TEMPLATE)


def test_an_untied_head_comes_along(tmp_path: Path) -> None:
    """A head of its own is read as such, and a tied one is the embedding itself."""
    config = replace(CONFIG, model=replace(MODEL, tie_embeddings=False))
    folder = write_trained(tmp_path / "toy", config, random_params(config, 0, torch.float32))
    params = load_params(folder, torch.float32)
    assert not torch.equal(params.head, params.embed)
    tied = load_params(write_trained(tmp_path / "tied", CONFIG, family_params(CONFIG, torch.float32)), torch.float32)
    assert tied.head is tied.embed


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_expected_weights_are_those_that_are_drawn(name: str, tied: bool) -> None:
    """Names and shapes of a config are those of the weights that training starts from, level starts included."""
    config = replace(FAMILIES[name], model=replace(MODEL, tie_embeddings=tied))
    drawn: Params = random_params(config, 0, torch.float32)
    shapes = {key: tuple(tensor.shape) for key, tensor in drawn.named().items()}
    learned = {key: shape for key, shape in level_weights(config).items() if key in shapes}
    assert expected_weights(config) | learned == shapes
    rebuilt = params_of(config, drawn.named()).named()
    assert all(tensor is rebuilt[key] for key, tensor in drawn.named().items())


def test_the_fingerprint_names_weights_and_config(folder: Path, tmp_path: Path) -> None:
    """Other weights, or another way to write memories, are another model; the same ones are the same."""
    params = family_params(CONFIG, torch.float32)
    same = write_trained(tmp_path / "same", CONFIG, params)
    slower = write_trained(tmp_path / "slower", replace(CONFIG, cms="sequential"), params)
    other = write_trained(tmp_path / "other", CONFIG, family_params(CONFIG, torch.float32, seed=1))
    prints = [weights_fingerprint(each) for each in (folder, same, slower, other)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_base_network_has_no_section(tmp_path: Path, gguf: Any) -> None:
    """What was converted is no trained HOPE model, and its weights are fused ones."""
    base = resolve_model(str(gguf.write(tmp_path / "toy.gguf")), tmp_path / "cache")
    assert load_hope(base) is None
    assert load_params(base, torch.float32).blocks[0].qkv is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "hope: unknown key 'colour'; known are"),
        ({"model": {}}, "hope: unknown key 'model'"),
        ({"chunk_size": "8"}, "hope: chunk_size is '8'; it must be a whole number"),
        ({"chunk_size": 0}, "hope: chunk_size must be at least 1, got 0"),
        ({"cms": "upside-down"}, "hope: cms is 'upside-down'; it must be one of independent"),
        ({"titans": {"blocks": [0]}}, "hope: titans: num_heads is missing"),
        ({"titans": {"blocks": [7], "num_heads": 4, "head_dim": 8}}, "titans: blocks must rise within 0..3"),
        ({"levels": [{"name": "fast", "blocks": [1], "update_period": 9}]}, "level 'fast': update_period 9"),
    ],
)
def test_a_section_that_describes_no_model_is_refused(folder: Path, change: Section, message: str) -> None:
    """Unknown keys, wrong types and impossible shapes: one line that names the file and the key."""
    changed(folder, lambda values: values["hope"].update(change))
    for read in (load_hope, lambda each: load_params(each, torch.float32)):
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        assert message in caught.value.message
        assert str(folder / "config.json") in caught.value.message
        assert "\n" not in caught.value.message


def test_a_section_that_is_no_section_is_refused(folder: Path) -> None:
    """A list in the section's place is damage."""
    changed(folder, lambda values: values.update(hope=[]))
    with pytest.raises(CheckpointError, match="hope is \\[\\]"):
        load_hope(folder)


def rename(tensors: dict[str, torch.Tensor]) -> None:
    """Give one weight a name of no weight."""
    tensors["blocks.9.gate"] = tensors.pop("blocks.0.down")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("blocks.1.titans.conv"), "1 weights are missing, blocks.1.titans.conv first"),
        (rename, "1 weights are missing, blocks.0.down first"),
        (lambda tensors: tensors.update(more=torch.ones(2)), "1 weights are unknown, more first"),
        (lambda tensors: tensors.update(norm=torch.ones(3)), "norm has shape (3,), the configuration asks for (32,)"),
        (lambda tensors: tensors.update(norm=torch.ones(32, dtype=torch.int32)), "norm is stored as torch.int32"),
        (lambda tensors: tensors["norm"].fill_(torch.nan), "norm holds NaN or infinity"),
        (lambda tensors: tensors.update({"levels.near": torch.ones(5)}), "levels.near has shape (5,)"),
    ],
)
def test_weights_of_another_model_are_refused(
    folder: Path, damage: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    """Missing, unknown, misshapen, mistyped or not finite: one line that names the weight."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    resized(folder)
    with pytest.raises(CheckpointError) as caught:
        load_params(folder, torch.float32)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_cut_off_folder_is_refused_with_advice(folder: Path, file: str, refusal: Callable[[Path], str]) -> None:
    """A file of another size than was written is said before anything is read."""
    os.truncate(folder / file, 10)
    assert "incomplete or was changed; export or copy it again" in refusal(folder)


def test_a_file_that_is_no_weights_is_refused(folder: Path) -> None:
    """Bytes of the right length that are no safetensors."""
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_params(folder, torch.float32)


# -- models that come with the package -------------------------------------------------------------------------------


def test_a_packaged_model_is_used_in_place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, whatever its case; nothing is converted."""
    monkeypatch.setattr(checkpoint, "OWN_MODELS", {"tiny": str(folder)})
    assert resolve_model("Tiny", tmp_path / "cache") == folder
    assert not (tmp_path / "cache").exists()


def test_a_packaged_model_that_is_not_there_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[[str], str]
) -> None:
    """An installation without the weights, or with a part of them, says how to get them."""
    monkeypatch.setattr(checkpoint, "OWN_MODELS", {"tiny": str(folder), "lost": str(tmp_path / "lost")})
    assert "lacks the weights of model 'lost'; install hope-server again" in refusal("lost")
    (folder / "model.safetensors").unlink()
    assert "lacks the weights of model 'tiny'" in refusal("tiny")


def test_hope_nano_is_a_known_name(refusal: Callable[[str], str]) -> None:
    """The name of the model that comes with the server is among those that a mistyped one is answered with."""
    assert checkpoint.OWN_MODELS["hope-nano"] == "weights/hope-nano"
    assert "smollm2-135m-instruct, hope-nano" in refusal("hope-nanoo")


def test_a_section_leaves_out_what_has_a_default(tmp_path: Path) -> None:
    """A folder of an older version, without the fields that came later, is the model it was."""
    config = FAMILIES["hope"]
    folder = write_trained(tmp_path / "toy", config, family_params(config, torch.float32))

    def forget(values: dict[str, Any]) -> None:
        for key in ("cms", "levels"):
            del values["hope"][key]
        del values["hope"]["titans"]["max_lr"]

    assert load_hope(changed(folder, forget)) == config


def test_a_transformer_may_be_trained_too(tmp_path: Path) -> None:
    """A config without Titans is read as it is."""
    config = HopeConfig(MODEL, chunk_size=8)
    folder = write_trained(tmp_path / "toy", config, make_params(torch.float32))
    assert load_hope(folder) == config
    assert load_params(folder, torch.float32).digest() != make_params(torch.float32).digest()

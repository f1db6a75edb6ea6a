"""Memory levels by name or from a file, and clear words for a file that does not say what it should."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hope_server.errors import SettingsError
from hope_server.model.config import HopeConfig, LevelSpec, ModelConfig, WindowSpec
from hope_server.model.presets import CHUNK_SIZE, choose_levels

MODEL = ModelConfig("toy", 300, 32, 48, 30, 4, 2, 8, 10_000.0, 1e-5, 4096, True)


def refusal(path: Path, text: str | bytes) -> str:
    """The message for a levels file of this content; it is one line and says which setting it is about."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError) as caught:
        choose_levels(str(path), MODEL, 256)
    assert caught.value.message.startswith("levels: ")
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 24, 30, 32, 80])
def test_the_default_levels_fit_a_model_of_any_depth(depth: int) -> None:
    """They make a valid config, share no block, and consolidate the block that was asked for."""
    model = replace(MODEL, num_layers=depth)
    levels = choose_levels("default", model, 128)
    HopeConfig(model, WindowSpec(), levels, CHUNK_SIZE)
    blocks = [block for level in levels for block in level.blocks]
    assert len(set(blocks)) == len(blocks)
    assert [level.update_period for level in levels if level.schedule == "consolidation"] == [128]


def test_the_default_levels_of_the_default_model() -> None:
    """On 30 blocks the last four learn online, 4 to 25 by consolidation."""
    fast, slow = choose_levels("default", MODEL, 256)
    assert (fast.name, fast.schedule, fast.blocks) == ("fast", "online", (26, 27, 28, 29))
    assert (slow.name, slow.schedule, slow.blocks) == ("slow", "consolidation", tuple(range(4, 26)))


def test_blocks_with_key_statistics_learn_in_whitened_keys() -> None:
    """Where statistics are known, their blocks consolidate dense deltas; what learns online lies behind them."""
    fast, slow = choose_levels("default", MODEL, 256, known=(8, 11, 14, 17))
    assert (slow.blocks, slow.kind, slow.schedule) == ((8, 11, 14, 17), "dense", "consolidation")
    assert slow.is_whitened and 0.5 < slow.gate < 1
    assert (fast.blocks, fast.schedule) == ((28, 29), "online")
    HopeConfig(MODEL, WindowSpec(), (fast, slow), CHUNK_SIZE)
    (alone,) = choose_levels("default", MODEL, 256, known=(28, 29))
    assert alone.name == "slow"


def test_off_means_no_levels() -> None:
    """A server without levels serves the plain base model."""
    assert choose_levels("off", MODEL, 256) == ()


def test_a_file_may_name_every_field_in_yaml_or_json(tmp_path: Path) -> None:
    """What a spec says of itself, written to a file, is read back as the same spec."""
    spec = LevelSpec("own", (3, 5), "residual", 7, "online", 128, "m3", 1e-4, (0.5, 0.6), 3.0, 2.0, 0.25)
    (tmp_path / "levels.json").write_text(json.dumps([asdict(spec)]))
    assert choose_levels(str(tmp_path / "levels.json"), MODEL, 256) == (spec,)
    # YAML reads 2e-3, which has no point, as text.
    (tmp_path / "levels.yaml").write_text("- name: short\n  blocks: [1, 2]\n  lr: 2e-3\n")
    assert choose_levels(str(tmp_path / "levels.yaml"), MODEL, 256) == (LevelSpec("short", (1, 2), lr=0.002),)


def test_a_name_that_is_no_file_is_refused() -> None:
    """The message lists what can be said instead."""
    with pytest.raises(SettingsError, match="'defualt' is neither `default`, `off` nor a file"):
        choose_levels("defualt", MODEL, 256)


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", "- [", "a: b: c", "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path, text: str | bytes) -> None:
    """Bytes that are no text, broken YAML, and YAML that would run something are all unreadable."""
    assert "cannot be read as YAML or JSON" in refusal(tmp_path / "levels.yaml", text)


@pytest.mark.parametrize("text", ["", "name: slow", "- 3", "[[1]]", "slow"])
def test_a_file_that_is_no_list_of_levels_is_refused(tmp_path: Path, text: str) -> None:
    """The outermost thing must be a list of mappings."""
    assert "must be a list of levels" in refusal(tmp_path / "levels.yaml", text)


def test_an_unknown_key_is_named_with_the_known_ones(tmp_path: Path) -> None:
    """A misspelt option is never silently dropped."""
    message = refusal(tmp_path / "levels.yaml", "- {name: a, blocks: [1], learning_rate: 1.0}")
    assert "unknown keys ['learning_rate']" in message
    assert "max_update_norm" in message


@pytest.mark.parametrize("entry", ["{blocks: [1]}", "{name: a}", "{}"])
def test_a_level_needs_a_name_and_blocks(tmp_path: Path, entry: str) -> None:
    """Nothing else is required."""
    assert "without name or blocks" in refusal(tmp_path / "levels.yaml", f"- {entry}")


@pytest.mark.parametrize(
    "text",
    [
        "name: 3",
        "blocks: 3",
        "blocks: '12'",
        "blocks: [x]",
        "blocks: [1.5]",
        "blocks:",
        "betas: 0.9",
        "betas: [0.9]",
        "betas: [x, y]",
        "rank: '16'",
        "rank:",
        "rank: 2.5",
        "rank: true",
        "lr: fast",
        "lr: .nan",
        "update_period: [64]",
        "update_period: 64.5",
        "norm_cap: {}",
        "norm_cap: .inf",
        "max_update_norm: big",
        "kind: sparse",
        "kind: [dense]",
        "schedule: nightly",
        "rule: lion",
        "rule: DGD",
        "share: all",
        "share: .nan",
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_key(tmp_path: Path, text: str) -> None:
    """A wrong type, an unknown choice and a number that is none never reach the model."""
    key, _, value = text.partition(":")
    entry = {"name": "a", "blocks": "[1]"} | {key: value}
    lines = "\n  ".join(f"{name}: {said}" for name, said in entry.items())
    assert f": {key} cannot be " in refusal(tmp_path / "levels.yaml", f"- {lines}")

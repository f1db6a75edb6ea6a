"""What a model folder says of itself, and which states belong to it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hope_vllm import hope_config
from hope_vllm.hope_config import model_fingerprint, read_config

from hope_server.errors import CheckpointError
from hope_server.model.config import HopeConfig
from hope_server.model.params import Params


@pytest.fixture
def values(toy_folder: Path) -> dict[str, Any]:
    """The toy's config.json."""
    found: dict[str, Any] = json.loads((toy_folder / "config.json").read_text(encoding="utf-8"))
    return found


def of(values: dict[str, Any]) -> SimpleNamespace:
    """As transformers hands it to vLLM."""
    return SimpleNamespace(**values)


def test_the_config_is_the_one_that_was_exported(values: dict[str, Any], toy: tuple[HopeConfig, Params]) -> None:
    """Titans, chunk and window come back; so do the network's sizes."""
    found, expected = read_config(of(values)), toy[0]

    assert (found.titans, found.chunk_size, found.window) == (expected.titans, expected.chunk_size, expected.window)
    assert (found.model.hidden_size, found.model.num_layers) == (128, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("hope"), "no section `hope`"),
        (lambda v: v["hope"].update(titans=None), "no Titans branch"),
        (lambda v: v["hope"].update(color="red"), "color"),
        (lambda v: v["hope"]["titans"].update(blocks=[9]), "blocks"),
        (lambda v: v["hope"].update(levels=[{"name": "fast", "blocks": [1]}]), r"\(fast\)"),
    ],
    ids=["no section", "no titans", "unknown field", "no such block", "levels"],
)
def test_what_cannot_be_served_is_refused(values: dict[str, Any], change: Any, words: str) -> None:
    """One line says what is wrong with the folder."""
    change(values)

    with pytest.raises(CheckpointError, match=words):
        read_config(of(values))


def test_states_are_bound_to_model_and_format(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, another step size, chunk or format of states: another name; the same again: the same name."""
    changes: list[Any] = [
        lambda v: v.update(hope_weights="other"),
        lambda v: v["hope"]["titans"].update(max_lr=0.25),
        lambda v: v["hope"].update(chunk_size=8),
    ]
    names = [model_fingerprint(of(values)), model_fingerprint(of(copy.deepcopy(values)))]
    assert names[0] == names[1]
    for change in changes:
        changed = copy.deepcopy(values)
        change(changed)
        names.append(model_fingerprint(of(changed)))
    monkeypatch.setattr(hope_config, "STATE_FORMAT", hope_config.STATE_FORMAT + 1)
    names.append(model_fingerprint(of(values)))

    assert len(set(names)) == len(names) - 1
    with pytest.raises(CheckpointError, match="which weights"):
        model_fingerprint(of({**values, "hope_weights": ""}))

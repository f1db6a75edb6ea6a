"""Adapters: what they add, how they are kept, and which of them a model takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toys import make_params

from hope_server.errors import CheckpointError
from hope_server.model import adapter as adapters
from hope_server.model.adapter import Adapter, choose_adapter, load_adapter, random_adapter, save_adapter

BASE = "a" * 64


def trained(seed: int = 0) -> Adapter:
    """An adapter that changes every matrix, exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed + 7)
    drawn = random_adapter(make_params(), BASE, 3, seed)
    pairs = {
        name: (torch.randn(up.shape, generator=generator).bfloat16().float() / 8, down.bfloat16().float())
        for name, (up, down) in drawn.pairs.items()
    }
    return Adapter(pairs, BASE, {"episodes": "2"})


def test_a_new_one_is_for_every_matrix_and_changes_nothing() -> None:
    """Attention and MLPs of all blocks; the same network to the bit."""
    params = make_params()
    adapter = random_adapter(params, BASE, 3, 0)
    assert set(adapter.pairs) == {f"blocks.{block}.{name}" for block in range(4) for name in adapters.MATRICES}
    assert adapter.merged(params).digest() == params.digest()


def test_it_adds_the_products_of_its_pairs() -> None:
    """In the network's own precision, into a network of its own; what it does not name is shared."""
    params, adapter = make_params(), trained()
    before = params.digest()
    merged = adapter.merged(params)
    for name, tensor in params.named().items():
        if name not in adapter.pairs:
            assert merged.named()[name] is tensor
            continue
        up, down = (part.double() for part in adapter.pairs[name])
        torch.testing.assert_close(merged.named()[name], tensor + up @ down, rtol=0, atol=1e-14)
    assert params.digest() == before


def test_it_is_kept_as_it_is(tmp_path: Path) -> None:
    """Written and read again; its digest is that of what it changes alone."""
    adapter, path = trained(), tmp_path / "new" / "a.safetensors"
    save_adapter(path, adapter)
    found = load_adapter(path)
    assert found.base == BASE and found.facts == {"episodes": "2"}
    assert found.pairs.keys() == adapter.pairs.keys()
    for name, pair in adapter.pairs.items():
        assert all(torch.equal(*both) for both in zip(pair, found.pairs[name], strict=True))
    assert found.digest == adapter.digest == Adapter(adapter.pairs, "b", {}).digest
    assert found.digest != trained(1).digest
    assert [each.name for each in path.parent.iterdir()] == ["a.safetensors"]


def test_a_model_takes_its_own_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fingerprint of its weights; another's file is refused by name, none is taken where none is wanted."""
    monkeypatch.setattr(adapters.resources, "files", lambda _: tmp_path)
    path = tmp_path / "weights" / "adapters" / "toy.safetensors"
    save_adapter(path, trained())
    found = choose_adapter("default", BASE)
    assert found is not None and found.digest == trained().digest
    assert choose_adapter("default", "b" * 64) is None
    assert choose_adapter("off", BASE) is None
    named = choose_adapter(str(path), BASE)
    assert named is not None and named.digest == trained().digest
    with pytest.raises(CheckpointError, match=r"toy\.safetensors was made for another network"):
        choose_adapter(str(path), "b" * 64)


def test_what_does_not_fit_is_refused() -> None:
    """A matrix that is not there, or is of another shape."""
    up, down = torch.zeros(3, 1), torch.zeros(1, 3)
    for name in ("blocks.9.qkv", "blocks.0.qkv"):
        with pytest.raises(CheckpointError, match=name):
            Adapter({name: (up, down)}, BASE).merged(make_params())


@pytest.mark.parametrize(
    ("tensors", "meta", "reason"),
    [
        ({}, {"format": "hope-adapter/9", "base": BASE, "facts": "{}"}, "format"),
        ({"x.up": torch.zeros(3, 2), "x.down": torch.zeros(3, 3)}, None, "fit together"),
        ({"x.up": torch.zeros(3, 2)}, None, "pairs"),
        ({"x.up": torch.full((3, 2), torch.nan), "x.down": torch.zeros(2, 3)}, None, "not finite"),
        ({}, {"format": adapters.FORMAT}, "base"),
        ({}, {"format": adapters.FORMAT, "base": BASE, "facts": "{"}, "a.safetensors"),
    ],
)
def test_a_damaged_file_is_refused(
    tensors: dict[str, torch.Tensor], meta: dict[str, str] | None, reason: str, tmp_path: Path
) -> None:
    """In one line that names the file and the reason."""
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, meta or {"format": adapters.FORMAT, "base": BASE, "facts": "{}"})
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_adapter(path)
    assert "a.safetensors" in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize("content", [None, b"", b"no adapter"])
def test_what_is_no_file_of_tensors_is_refused(content: bytes | None, tmp_path: Path) -> None:
    """Missing, empty, or something else."""
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no adapter"):
        load_adapter(path)

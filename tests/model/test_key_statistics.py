"""Key statistics: what whitening does, what is kept of it on disk, and that a damaged file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hope_server.errors import CheckpointError
from hope_server.model.key_statistics import (
    FLOOR,
    find_statistics,
    load_statistics,
    save_statistics,
    whitening_of,
)


def covariance(size: int = 12) -> torch.Tensor:
    """Of keys whose entries differ a thousandfold, as those of a network do."""
    keys = torch.randn(200, size, dtype=torch.float64) * torch.logspace(0, 3, size, dtype=torch.float64)
    return keys.T @ keys / 200


def test_whitened_keys_are_alike_in_every_direction() -> None:
    """W (C + floor) Wᵀ is the identity, and W is lower triangular."""
    found = covariance()
    whitening = whitening_of(found)
    floor = FLOOR * found.diagonal().median() * torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(whitening @ (found + floor) @ whitening.T, torch.eye(12, dtype=torch.float64))
    assert torch.equal(whitening, whitening.tril())


def test_directions_that_never_occur_are_bounded() -> None:
    """Of a covariance without full rank the floor makes a finite whitening."""
    found = covariance()
    found[3], found[:, 3] = 0, 0
    assert bool(torch.isfinite(whitening_of(found)).all())


def test_a_file_keeps_it_to_bfloat16(tmp_path: Path) -> None:
    """Every entry comes back within a rounding of eight bits, under its block and its network's fingerprint."""
    made = {3: whitening_of(covariance()), 7: whitening_of(covariance())}
    save_statistics(tmp_path / "a" / "stats.safetensors", "abc", made, {"texts": "none"})
    fingerprint, found = load_statistics(tmp_path / "a" / "stats.safetensors")
    assert fingerprint == "abc"
    assert found.blocks == (3, 7)
    assert found.facts == {"texts": "none"}
    for block, matrix in made.items():
        torch.testing.assert_close(found.whitening[block].double(), matrix, rtol=2**-8, atol=0)


@pytest.mark.parametrize("packed", [torch.ones(4), torch.full((6,), torch.nan)])
def test_a_damaged_triangle_is_refused(packed: torch.Tensor, tmp_path: Path) -> None:
    """Neither a length that is no triangle's nor a value that is not finite is taken."""
    save_file({"block.1": packed.bfloat16()}, tmp_path / "x.safetensors", {"fingerprint": "a", "facts": "{}"})
    with pytest.raises(CheckpointError, match="measure them again"):
        load_statistics(tmp_path / "x.safetensors")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """So are bytes that are no safetensors, and a file without a fingerprint."""
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        load_statistics(tmp_path / "x.safetensors")
    save_file({"block.1": torch.ones(3).bfloat16()}, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError):
        load_statistics(tmp_path / "y.safetensors")


def test_a_network_that_was_never_measured_has_none() -> None:
    """An unknown fingerprint finds nothing."""
    assert find_statistics("0" * 64) is None

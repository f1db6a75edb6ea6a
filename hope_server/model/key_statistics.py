"""What the inputs of a network's MLP outputs look like on general text: how a write is kept out of their way.

A delta on a block's output matrix moves what the block says of every key k, its inner activation, by delta k. With C
the mean of k kᵀ over general text and W C Wᵀ = I, a step that is short in keys W k moves general text little, whatever
it does for the keys of what is taught. Such a step is a gradient step preconditioned by C⁻¹: what the delta rule does
with one key at a time (NL eq. 93), done with all of general text.
Shapes: F MLP width; W [F, F] lower triangular.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hope_server.errors import CheckpointError

__all__ = ["KeyStatistics", "find_statistics", "load_statistics", "save_statistics", "whitening_of"]

FLOOR = 0.02
"""Share of the median variance of a key's entry that is added to all: directions that general text never takes."""
_FOLDER = "weights/key_statistics"
_PREFIX = "block."


@dataclass(frozen=True, slots=True)
class KeyStatistics:
    """Whitening of keys, by block: W [F, F], float32. facts: what it was measured on, for people."""

    whitening: dict[int, torch.Tensor]
    facts: Mapping[str, str]
    _stacked: dict[object, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def stacked(self, blocks: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """W of these blocks in one tensor [n, F, F], of the dtype and on the device of `like`; to be read only.

        It is several times as large as a level, so all who ask get the same one.
        """
        key = (blocks, like.dtype, like.device)
        if key not in self._stacked:
            self._stacked[key] = torch.stack([self.whitening[block] for block in blocks]).to(like)
        return self._stacked[key]

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks it is known of, in order."""
        return tuple(sorted(self.whitening))


def whitening_of(covariance: torch.Tensor) -> torch.Tensor:
    """W [F, F] of a covariance C [F, F]: lower triangular, with W (C + floor) Wᵀ = I; float64."""
    exact = covariance.double()
    floor = FLOOR * exact.diagonal().median()
    identity = torch.eye(len(exact), dtype=torch.float64)
    root = torch.linalg.cholesky(exact + floor * identity)
    inverse: torch.Tensor = torch.linalg.solve_triangular(root, identity, upper=False)
    return inverse


def save_statistics(path: Path, fingerprint: str, whitening: Mapping[int, torch.Tensor], facts: dict[str, str]) -> None:
    """Write W of some blocks of the network with these weights: the lower triangles, row by row, in bfloat16.

    What is rounded is the preconditioner, which stays one; a rounded covariance would lose its smallest directions.
    """
    tensors = {}
    for block, matrix in whitening.items():
        rows, columns = torch.tril_indices(*matrix.shape)
        tensors[f"{_PREFIX}{block}"] = matrix[rows, columns].bfloat16()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"fingerprint": fingerprint, "facts": json.dumps(facts)})


def load_statistics(path: Path) -> tuple[str, KeyStatistics]:
    """Read what `save_statistics` wrote: the fingerprint of the network, and the statistics. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            meta = stored.metadata()
            names = list(stored.keys())
            whitening = {int(name.removeprefix(_PREFIX)): _unpacked(stored.get_tensor(name)) for name in names}
        return meta["fingerprint"], KeyStatistics(whitening, json.loads(meta["facts"]))
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as exc:
        raise CheckpointError(f"{path} holds no key statistics ({exc}); measure them again") from exc


def find_statistics(fingerprint: str) -> KeyStatistics | None:
    """The statistics that come with this package for the network with these weights; None where there are none."""
    folder = Path(str(resources.files("hope_server.model").joinpath(_FOLDER)))
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt", device="cpu") as stored:
            is_same = stored.metadata().get("fingerprint") == fingerprint
        if is_same:
            return load_statistics(path)[1]
    return None


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    size = (math.isqrt(8 * len(packed) + 1) - 1) // 2
    if size * (size + 1) // 2 != len(packed) or not bool(torch.isfinite(packed).all()):
        raise ValueError("a triangle is damaged")
    matrix = torch.zeros(size, size)
    rows, columns = torch.tril_indices(size, size)
    matrix[rows, columns] = packed.float()
    return matrix

"""Small trained weights, shipped with the package so that `--quick` measures models that were trained for long."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hope_server.errors import CheckpointError
from hope_server.evaluation.outcome import Facts

__all__ = [
    "FOLDER",
    "FULL_BYTES",
    "MAX_BYTES",
    "Shipped",
    "keep_weights",
    "load_weights",
    "ship_weights",
    "weights_path",
]

FOLDER = Path(__file__).parent / "weights"
FULL_BYTES, MAX_BYTES = 200_000, 1_000_000


@dataclass(frozen=True, slots=True)
class Shipped:
    """Trained tensors by name and how they came to be: settings of their cell, seed, updates."""

    tensors: dict[str, torch.Tensor]
    facts: Facts


def weights_path(folder: Path, task: str, part: str, column: str) -> Path:
    """Return the file of a cell's weights."""
    return folder / task / f"{_slug(part)}-{_slug(column)}.safetensors"


def keep_weights(path: Path, tensors: dict[str, torch.Tensor], facts: Facts) -> None:
    """Write trained tensors as float32, beside the finished cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, tensors, torch.float32, facts)


def ship_weights(source: Path, target: Path) -> bool:
    """Copy kept weights to where quick runs look for them: as they are up to FULL_BYTES, as float16 above.

    Returns false, and writes nothing, when there are none or they are above MAX_BYTES even so.
    """
    if not source.is_file():
        return False
    kept = load_weights(source)
    count = sum(tensor.numel() for tensor in kept.tensors.values())
    dtype = torch.float32 if 4 * count <= FULL_BYTES else torch.float16
    if count * dtype.itemsize > MAX_BYTES:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    _save(target, kept.tensors, dtype, kept.facts)
    return True


def load_weights(path: Path) -> Shipped:
    """Read shipped weights as float32. Raises CheckpointError when the file cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as exc:
        raise CheckpointError(f"the shipped weights {path.name} cannot be read ({exc}); run without --quick") from exc
    return Shipped(tensors, facts)


def fill(tensors: dict[str, torch.Tensor], shipped: Shipped, name: str) -> None:
    """Copy shipped weights into the leaves `tensors`. Raises CheckpointError when names or shapes differ."""
    wanted = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    found = {key: tuple(tensor.shape) for key, tensor in shipped.tensors.items()}
    if wanted != found:
        odd = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise CheckpointError(f"the shipped weights of {name} do not fit this version ({odd[0]}); run without --quick")
    with torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(shipped.tensors[key])


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "all"


def _save(path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype, facts: Facts) -> None:
    cast = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    save_file(cast, path, metadata={"facts": json.dumps(facts, sort_keys=True, default=str)})

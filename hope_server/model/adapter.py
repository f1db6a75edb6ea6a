"""An adapter: small changes of a network's slow weights, as products of two thin matrices, added once at the start.

It is made by `python -m hope_server.training.adapt` so that what a study wrote is found by more questions. Sessions
that learned beside one adapter are not read beside another.
Shapes: r rank, a matrix [m, n] is changed by up [m, r] times down [r, n].
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hope_server.errors import CheckpointError
from hope_server.model.params import Params

__all__ = ["MATRICES", "Adapter", "choose_adapter", "load_adapter", "random_adapter", "save_adapter"]

MATRICES = ("qkv", "out", "gate_up", "down")
"""The matrices of a block that an adapter changes."""
FORMAT = "hope-adapter/1"
_FOLDER = "weights/adapters"
_UP, _DOWN = ".up", ".down"


@dataclass(frozen=True, slots=True)
class Adapter:
    """pairs: up [m, r] and down [r, n] by the names of `Params.named`; base: fingerprint of the network that it is for.

    facts: how it was made.
    """

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    base: str
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of what it changes."""
        total = hashlib.sha256()
        for name, pair in sorted(self.pairs.items()):
            total.update(name.encode())
            for tensor in pair:
                total.update(tensor.detach().bfloat16().contiguous().view(torch.int16).cpu().numpy().tobytes())
        return total.hexdigest()

    def merged(self, params: Params) -> Params:
        """The network with its changes; raises CheckpointError where one does not fit. The network stays as it is."""
        named = params.named()
        for name, (up, down) in self.pairs.items():
            matrix = named.get(name)
            if matrix is None or matrix.shape != (up.shape[0], down.shape[1]):
                raise CheckpointError(f"the adapter changes {name}, which this network has not, or not of that shape")
            named[name] = torch.addmm(matrix, up.to(matrix), down.to(matrix))
        return params.replaced(named)


def random_adapter(params: Params, base: str, rank: int, seed: int) -> Adapter:
    """An adapter for every matrix of attention and MLPs that changes nothing yet: all of `up` is 0."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, matrix in params.named().items():
        if name.startswith("blocks.") and name.split(".")[-1] in MATRICES and "titans" not in name:
            rows, columns = matrix.shape
            down = torch.randn(rank, columns, generator=generator, device="cpu") / columns**0.5
            pairs[name] = (torch.zeros(rows, rank, device="cpu"), down)
    return Adapter(pairs, base)


def save_adapter(path: Path, adapter: Adapter) -> None:
    """Write an adapter in bfloat16, whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    for name, (up, down) in adapter.pairs.items():
        tensors[name + _UP] = up.detach().bfloat16().cpu().contiguous()
        tensors[name + _DOWN] = down.detach().bfloat16().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    save_file(tensors, scratch, {"format": FORMAT, "base": adapter.base, "facts": json.dumps(adapter.facts)})
    scratch.replace(path)


def load_adapter(path: Path) -> Adapter:
    """Read what `save_adapter` wrote, in float32. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            meta = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
        if meta.get("format") != FORMAT:
            raise ValueError(f"its format is {meta.get('format')!r}, not {FORMAT!r}")
        names = [name.removesuffix(_UP) for name in tensors if name.endswith(_UP)]
        if len(tensors) != 2 * len(names):
            raise ValueError("it has other tensors than pairs")
        pairs = {name: (tensors[name + _UP], tensors[name + _DOWN]) for name in names}
        for name, (up, down) in pairs.items():
            if up.dim() != 2 or down.dim() != 2 or up.shape[1] != down.shape[0]:
                raise ValueError(f"the pair of {name} does not fit together")
            if not bool(torch.isfinite(up).all() and torch.isfinite(down).all()):
                raise ValueError(f"the pair of {name} is not finite")
        return Adapter(pairs, meta["base"], json.loads(meta["facts"]))
    except (OSError, SafetensorError, ValueError, KeyError) as exc:
        raise CheckpointError(f"{path} is no adapter ({exc})") from exc


def choose_adapter(choice: str, base: str) -> Adapter | None:
    """The adapter that a setting names for the network with this fingerprint.

    choice: "default" for the one that comes with this package, if there is one; "off"; or a path. Raises
    CheckpointError for a file that is none, or is another network's.
    """
    if choice == "off":
        return None
    if choice == "default":
        folder = Path(str(resources.files("hope_server.model").joinpath(_FOLDER)))
        found = (load_adapter(path) for path in sorted(folder.glob("*.safetensors")))
        return next((adapter for adapter in found if adapter.base == base), None)
    adapter = load_adapter(Path(choice))
    if adapter.base != base:
        raise CheckpointError(f"adapter {choice} was made for another network than the model served")
    return adapter

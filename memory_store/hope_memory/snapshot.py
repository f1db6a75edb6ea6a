"""What a session's state is to the store: named arrays of bytes in named levels, and a small tree of plain values.

The types check themselves when they are made, so a snapshot that exists can be encoded and read back; every limit
that a reader enforces is enforced here for writers too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DTYPE_BYTES: Mapping[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "uint8": 1,
    "bool": 1,
}
MAX_DIMS = 8
MAX_DIM = 1 << 40
MAX_ARRAYS = 4096
MAX_LEVELS = 256
MAX_NAME_BYTES = 128
MAX_TREE_DEPTH = 16
MAX_TREE_NODES = 65_536


@dataclass(frozen=True, slots=True)
class Array:
    """A dense row-major array as raw little-endian bytes.

    dtype: a key of DTYPE_BYTES.
    shape: at most MAX_DIMS sizes; () is one element.
    data: exactly as many bytes as dtype and shape need; any contiguous memoryview is taken without copying it
        and must not change while the store uses it.
    Raises: ValueError when the three do not fit together.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    def __post_init__(self) -> None:
        expected = array_num_bytes(self.dtype, self.shape)
        if isinstance(self.data, memoryview):
            object.__setattr__(self, "data", _as_plain_bytes(self.data))
        elif not isinstance(self.data, bytes):
            raise ValueError(f"data is a {type(self.data).__name__}; pass bytes or a memoryview")
        if len(self.data) != expected:
            raise ValueError(f"{self.dtype} {self.shape} needs {expected} bytes, data has {len(self.data)}")
        if self.dtype == "bool" and bytes(self.data).translate(None, b"\x00\x01"):
            raise ValueError("a bool array holds bytes other than 0 and 1")


@dataclass(frozen=True, slots=True)
class Level:
    """The arrays of one level, by name. Raises ValueError on bad names or more than MAX_ARRAYS arrays."""

    arrays: dict[str, Array]

    def __post_init__(self) -> None:
        if len(self.arrays) > MAX_ARRAYS:
            raise ValueError(f"a level has {len(self.arrays)} arrays, the limit is {MAX_ARRAYS}")
        for name in self.arrays:
            check_name("array name", name, MAX_NAME_BYTES)

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays, without names and headers."""
        return sum(len(array.data) for array in self.arrays.values())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An immutable copy of a session's state.

    fingerprint: names the model and layout that the state was made with; at most MAX_NAME_BYTES.
    meta: small tree of str, int (64 bit), float, bool, None, bytes, list and dict with str keys, at most
        MAX_TREE_NODES values and MAX_TREE_DEPTH deep; `meta["info"]`, a dict where present, is the public part
        that a store can show without loading the levels.
    levels: at most MAX_LEVELS, by name.
    Raises: ValueError when a part breaks these rules.
    """

    fingerprint: str
    meta: dict[str, Any]
    levels: dict[str, Level]

    def __post_init__(self) -> None:
        check_name("fingerprint", self.fingerprint, MAX_NAME_BYTES)
        check_tree(self.meta)
        if not isinstance(self.info, dict):
            raise ValueError(f"meta['info'] is a {type(self.info).__name__}; it must be a dict")
        if len(self.levels) > MAX_LEVELS:
            raise ValueError(f"a snapshot has {len(self.levels)} levels, the limit is {MAX_LEVELS}")
        for name in self.levels:
            check_name("level name", name, MAX_NAME_BYTES)

    @property
    def info(self) -> dict[str, Any]:
        """The public part of `meta`; empty where there is none."""
        info: dict[str, Any] = self.meta.get("info", {})
        return info

    @property
    def num_bytes(self) -> int:
        """Bytes of all levels' arrays."""
        return sum(level.num_bytes for level in self.levels.values())


def array_num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes that an array needs. Raises ValueError for an unknown dtype or an impossible shape."""
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype {dtype!r} is unknown; known are {', '.join(DTYPE_BYTES)}")
    if type(shape) is not tuple or len(shape) > MAX_DIMS:
        raise ValueError(f"shape must be a tuple of at most {MAX_DIMS} sizes")
    num_bytes = DTYPE_BYTES[dtype]
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_DIM:
            raise ValueError(f"shape {shape} has a size that is no integer from 0 to {MAX_DIM}")
        num_bytes *= size
    return num_bytes


def check_name(what: str, name: str, max_bytes: int) -> None:
    """Raise ValueError unless `name` is a str of 1 to `max_bytes` bytes of valid UTF-8 without NUL."""
    if type(name) is not str:
        raise ValueError(f"{what} is a {type(name).__name__}; it must be a str")
    try:
        num_bytes = len(name.encode())
    except UnicodeEncodeError as exc:
        raise ValueError(f"{what} {name!r} is not valid Unicode") from exc
    if not 1 <= num_bytes <= max_bytes or "\0" in name:
        raise ValueError(f"{what} has {num_bytes} bytes; it needs 1 to {max_bytes}, none of them NUL")


def check_tree(tree: Any) -> None:
    """Raise ValueError unless `tree` is a dict that survives encoding unchanged (see `Snapshot.meta`)."""
    if type(tree) is not dict:
        raise ValueError(f"meta is a {type(tree).__name__}; it must be a dict")
    num_nodes = 1
    waiting: list[tuple[Any, int]] = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        if type(node) is not dict and type(node) is not list:
            _check_scalar(node)
            continue
        num_nodes += len(node)
        if depth > MAX_TREE_DEPTH or num_nodes > MAX_TREE_NODES:
            raise ValueError(f"meta is deeper than {MAX_TREE_DEPTH} or has more than {MAX_TREE_NODES:,} values")
        if type(node) is dict:
            for key in node:
                if type(key) is not str:
                    raise ValueError(f"meta has a key of type {type(key).__name__}; keys must be str")
                _check_scalar(key)
            waiting.extend((value, depth + 1) for value in node.values())
        else:
            waiting.extend((value, depth + 1) for value in node)


def _check_scalar(value: Any) -> None:
    kind = type(value)
    if kind is int:
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError("meta has an integer of more than 64 bits")
    elif kind is str:
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ValueError("meta has a str that is not valid Unicode (a lone surrogate)") from exc
    elif value is not None and kind not in (bool, float, bytes):
        raise ValueError(f"meta has a {kind.__name__}; use str, int, float, bool, None, bytes, list and dict")


def _as_plain_bytes(view: memoryview) -> bytes | memoryview:
    if view.nbytes == 0:
        return b""
    if not view.c_contiguous:
        raise ValueError("data is a memoryview that is not contiguous; make it row-major first")
    if view.format == "B" and view.ndim == 1:
        return view
    try:
        return view.cast("B")
    except TypeError as exc:
        raise ValueError(f"data is a memoryview of format {view.format!r}; pass it as raw bytes") from exc

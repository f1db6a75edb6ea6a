"""Snapshots check themselves when they are made."""

from __future__ import annotations

import struct
from array import array
from typing import Any

import pytest
from hope_memory import Array, Level, Snapshot
from hope_memory.snapshot import DTYPE_BYTES, MAX_ARRAYS, MAX_TREE_DEPTH, MAX_TREE_NODES


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_array_takes_exactly_the_bytes_of_its_shape(dtype: str) -> None:
    """One byte more or less than dtype and shape need is refused."""
    right = DTYPE_BYTES[dtype] * 6
    assert len(Array(dtype, (2, 3), bytes(right)).data) == right
    for wrong in (right - 1, right + 1, 0):
        with pytest.raises(ValueError, match="needs"):
            Array(dtype, (2, 3), bytes(wrong))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float8", (1,)), ("float32", (-1,)), ("float32", (True,)), ("float32", (1.0,)), ("float32", [1]),
     ("uint8", (1,) * 9), ("uint8", (1 << 41, 0))],
)  # fmt: skip
def test_array_refuses_impossible_kinds_and_shapes(dtype: str, shape: Any) -> None:
    """Unknown dtypes, negative or huge sizes and too many dimensions are refused."""
    with pytest.raises(ValueError, match=r"dtype|shape"):
        Array(dtype, shape, bytes(4))


def test_array_takes_a_typed_memoryview_without_copying() -> None:
    """A float memoryview is kept as a view of the caller's buffer."""
    buffer = array("f", [1.0, 2.0, 3.0])
    held = Array("float32", (3,), memoryview(buffer))
    buffer[1] = 5.0
    assert struct.unpack("<3f", held.data) == (1.0, 5.0, 3.0)


def test_array_refuses_strided_and_foreign_buffers() -> None:
    """A view with gaps and an object that is no buffer are refused."""
    with pytest.raises(ValueError, match="contiguous"):
        Array("uint8", (4,), memoryview(bytes(8))[::2])
    with pytest.raises(ValueError, match="bytearray"):
        Array("uint8", (4,), bytearray(4))  # type: ignore[arg-type]


def test_empty_arrays_of_any_rank_are_allowed() -> None:
    """A zero in the shape means no bytes, whatever the other sizes."""
    view = memoryview(array("f")).cast("B")
    assert Array("float32", (0, 7), view).data == b""


def test_bool_bytes_must_be_zero_or_one() -> None:
    """A bool array with a byte of 2 is refused, for readers must not meet a third truth value."""
    assert Array("bool", (2,), b"\x00\x01").data == b"\x00\x01"
    with pytest.raises(ValueError, match="bool"):
        Array("bool", (2,), b"\x00\x02")


def test_level_limits_names_and_number_of_arrays() -> None:
    """Empty, overlong, NUL and non-Unicode names and too many arrays are refused."""
    one = Array("uint8", (), b"x")
    for name in ("", "n" * 129, "a\0b", "\ud800"):
        with pytest.raises(ValueError, match="array name"):
            Level({name: one})
    with pytest.raises(ValueError, match="limit"):
        Level({str(index): one for index in range(MAX_ARRAYS + 1)})


def _nested(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(depth - 1):
        tree = {"x": tree}
    return tree


@pytest.mark.parametrize(
    "meta",
    [
        pytest.param([], id="list"),
        pytest.param({1: 2}, id="int key"),
        pytest.param({"x": (1, 2)}, id="tuple"),
        pytest.param({"x": {1, 2}}, id="set"),
        pytest.param({"x": 1 << 64}, id="65 bits"),
        pytest.param({"x": "\ud800"}, id="surrogate"),
        pytest.param({"\ud800": 1}, id="surrogate key"),
        pytest.param({"info": 3}, id="info is no dict"),
        pytest.param(_nested(MAX_TREE_DEPTH + 1), id="too deep"),
        pytest.param({"x": [0] * MAX_TREE_NODES}, id="too many"),
    ],
)
def test_meta_takes_only_what_survives_encoding(meta: Any) -> None:
    """Values that would come back changed, or not at all, are refused when the snapshot is made."""
    with pytest.raises(ValueError, match="meta"):
        Snapshot("toy-1", meta, {})


def test_deepest_and_widest_meta_is_allowed() -> None:
    """The limits themselves are inside."""
    wide = {"x": [0] * (MAX_TREE_NODES - 2)}
    assert Snapshot("toy-1", _nested(MAX_TREE_DEPTH), {}).num_bytes == 0
    assert Snapshot("toy-1", wide, {}).info == {}


def test_num_bytes_counts_all_levels() -> None:
    """A snapshot's size is the sum of its arrays' bytes."""
    level = Level({"a": Array("uint8", (3,), b"abc"), "b": Array("float64", (), bytes(8))})
    assert Snapshot("toy-1", {}, {"x": level, "y": level}).num_bytes == 22

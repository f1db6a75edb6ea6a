"""Reading dataclasses out of YAML values: types are kept, faults are one clear line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from hope_server.errors import SettingsError
from hope_server.model.strict_read import read_fields, read_tree


@dataclass(frozen=True)
class _Leaf:
    lr: float
    kind: Literal["cosine", "constant"] = "cosine"


@dataclass(frozen=True)
class _Tree:
    name: str
    leaf: _Leaf
    sizes: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    limit: int | None = None
    is_on: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def test_a_tree_is_read_with_its_defaults() -> None:
    """Nested dataclasses, tuples, optional values and numbers without a point come out in their own types."""
    value = {"name": "a", "leaf": {"lr": "2e-3"}, "sizes": [1, 2], "limit": 3, "extra": {"x": [1]}}
    expected = _Tree("a", _Leaf(0.002), (1, 2), (0.0, 1.0), 3, False, {"x": [1]})
    assert read_tree(_Tree, value, "recipe") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leef": 1}, "recipe: unknown key 'leef'; did you mean leaf? known are name, leaf"),
        ({"leaf": {}}, "recipe: leaf: lr is missing"),
        ({"leaf": {"lr": "fast"}}, "recipe: leaf: lr is 'fast'; it must be a finite number"),
        ({"leaf": {"lr": float("nan")}}, "recipe: leaf: lr is nan; it must be a finite number"),
        ({"leaf": {"lr": 1, "kind": "linear"}}, "recipe: leaf: kind is 'linear'; it must be one of cosine, constant"),
        ({"sizes": 3}, "recipe: sizes is 3; it must be a list"),
        ({"sizes": [1, "x"]}, "recipe: sizes[1] is 'x'; it must be a whole number"),
        ({"pair": [1]}, "recipe: pair is [1]; it must be a list of 2"),
        ({"limit": True}, "recipe: limit is True; it must be a whole number"),
        ({"is_on": 1}, "recipe: is_on is 1; it must be true or false"),
        ({"name": 7}, "recipe: name is 7; it must be a word"),
        ({"leaf": [1]}, "recipe: leaf is [1]; it must be a list of `key: value` lines"),
    ],
)
def test_a_fault_names_the_key_the_value_and_what_it_must_be(change: dict[str, Any], message: str) -> None:
    """The first fault stops the reading with one line."""
    with pytest.raises(SettingsError) as caught:
        read_tree(_Tree, {"name": "a", "leaf": {"lr": 1}} | change, "recipe")
    assert caught.value.message.startswith(message)


def test_a_partial_reading_gives_only_what_is_there() -> None:
    """Overrides of a default need not name every field, but only known ones."""
    assert read_fields(_Leaf, {"kind": "constant"}, "x", is_partial=True) == {"kind": "constant"}
    with pytest.raises(SettingsError, match="lr is missing"):
        read_fields(_Leaf, {"kind": "constant"}, "x")

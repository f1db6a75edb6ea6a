"""Reads frozen dataclasses out of plain YAML values; what is unknown, missing or of another type is refused."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hope_server.errors import SettingsError

__all__ = ["read_fields", "read_tree"]

T = TypeVar("T")

_SHOWN = 40


def read_tree(kind: type[T], value: object, where: str) -> T:
    """Return `value`, a mapping, as the dataclass `kind` with all that is nested in it.

    where: what the messages begin with, such as `recipe nano.yaml`.
    Raises SettingsError, in one line, for the first key that is unknown, missing, or has a value of another type.
    """
    return kind(**read_fields(kind, value, where))


def read_fields(kind: type[Any], value: object, where: str, *, is_partial: bool = False) -> dict[str, Any]:
    """Return the fields of the dataclass `kind` that the mapping `value` gives, checked as in `read_tree`.

    is_partial: fields without a default may be missing.
    """
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where} is {_shown(value)}; it must be a list of `key: value` lines")
    known = [each.name for each in fields(kind)]
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise SettingsError(f"{where}: unknown key {_shown(key)}; {hint}known are {', '.join(known)}")
    if not is_partial:
        for each in fields(kind):
            if each.name not in value and each.default is MISSING and each.default_factory is MISSING:
                raise SettingsError(f"{where}: {each.name} is missing")
    hints = get_type_hints(kind)
    return {key: _read(hints[key], item, f"{where}: {key}") for key, item in value.items()}


def _read(hint: Any, value: object, where: str) -> Any:
    origin, choices = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        (hint,) = (choice for choice in choices if choice is not type(None))
        return _read(hint, value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return read_tree(hint, value, where)
    if origin is Literal:
        return _one_of(choices, value, where)
    if origin is tuple:
        return _sequence(choices, value, where)
    if origin is dict or origin is Mapping:
        if not isinstance(value, dict):
            raise _wrong(where, value, "a list of `key: value` lines")
        return {str(key): _read(choices[1], item, f"{where}: {key}") for key, item in value.items()}
    return _plain(hint, value, where)


def _sequence(choices: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, value, "a list")
    if len(choices) == 2 and choices[1] is Ellipsis:
        return tuple(_read(choices[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(value) != len(choices):
        raise _wrong(where, value, f"a list of {len(choices)}")
    return tuple(_read(choice, item, where) for choice, item in zip(choices, value, strict=True))


def _one_of(choices: tuple[Any, ...], value: object, where: str) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    raise _wrong(where, value, f"one of {', '.join(map(str, choices))}")


def _plain(hint: Any, value: object, where: str) -> Any:
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong(where, value, "true or false")
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(where, value, "a whole number")
        return value
    if hint is float:
        return _number(value, where)
    if hint is str:
        if not isinstance(value, str):
            raise _wrong(where, value, "a word")
        return value
    raise TypeError(f"{where}: no reader for {hint}")


def _number(value: object, where: str) -> float:
    # YAML 1.1 reads 2e-3, which has no point, as text.
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise _wrong(where, value, "a finite number")


def _wrong(where: str, value: object, expected: str) -> SettingsError:
    return SettingsError(f"{where} is {_shown(value)}; it must be {expected}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

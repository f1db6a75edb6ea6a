"""Says what is wrong with a value: the value, the limit and what to do, in one sentence that starts with its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError

from hope_server.errors import InvalidRequest

__all__ = ["Between", "first_fault", "kind_of", "refuse"]

_KINDS: tuple[tuple[type, str], ...] = (
    (str, "a string"),
    (bool, "a boolean"),
    (int, "a whole number"),
    (float, "a number"),
    (list, "a list"),
    (dict, "an object"),
)
_WANTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def kind_of(value: object) -> str:
    """Return what JSON calls `value`."""
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "null")


def refuse(reason: str) -> PydanticCustomError:
    """Return the error that a validator raises; `reason` goes on after the parameter's name."""
    # A template would read braces in `reason` as fields.
    return PydanticCustomError("refused", "{reason}", {"reason": reason})


@dataclass(frozen=True, slots=True)
class Between:
    """Annotation for a number from `low` to `high`, both included unless `above` excludes the lower one."""

    low: float
    high: float
    above: bool = False

    def check(self, value: float) -> float:
        """Return `value`, or raise the sentence that names it and its limits."""
        if (self.low < value if self.above else self.low <= value) and value <= self.high:
            return value
        start = f"above {self.low:,} and up to" if self.above else f"from {self.low:,} to"
        raise refuse(f"is {_shown(value)}; send a number {start} {self.high:,}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Hook the check behind pydantic's type check."""
        return AfterValidator(self.check).__get_pydantic_core_schema__(source, handler)


def first_fault(errors: Sequence[Any]) -> InvalidRequest:
    """Return the first of pydantic's errors as InvalidRequest with `param` set, like `messages[2].content`."""
    error = errors[0]
    location = [part for part in error["loc"] if part not in ("body", "query", "path", "header")]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return InvalidRequest(f"{param or 'the body'} {_reason(error)}", param=param or None)


def _reason(error: Mapping[str, Any]) -> str:
    kind, value, context = error["type"], error.get("input"), error.get("ctx") or {}
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, not {kind_of(value)}"
    reasons: dict[str, Callable[[], str]] = {
        "refused": lambda: str(context["reason"]),
        "missing": lambda: "is missing; it is required",
        "finite_number": lambda: "is not a finite number",
        "literal_error": lambda: f"is {_shown(value)}; send one of {context['expected']}",
        "too_long": lambda: f"has more than {context['max_length']:,} items, the limit; send fewer",
        "too_short": lambda: f"has too few items; send at least {context['min_length']:,}",
        "string_too_long": lambda: (
            f"has {len(str(value)):,} characters, the limit is {context['max_length']:,}; shorten it"
        ),
        "string_too_short": lambda: "is empty; send some text",
    }
    return reasons[kind]() if kind in reasons else "is not valid"


def _shown(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = json.dumps(value) if isinstance(value, str | int | float | bool | None) else kind_of(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

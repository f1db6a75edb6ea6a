"""Says what is wrong with a value: the value, the limit and what to do, in one sentence that starts with its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import AfterValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_before_validator_function

from hope_server.errors import InvalidRequest

__all__ = ["Between", "Checked", "first_fault", "kind_of", "refuse"]

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


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
        """Hook the check behind pydantic's type check; a whole number may be written 5.0, as JSON has one kind."""
        checked = AfterValidator(self.check).__get_pydantic_core_schema__(source, handler)
        return no_info_before_validator_function(_whole, checked) if source is int else checked

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Tell the bounds."""
        lowest = "exclusiveMinimum" if self.above else "minimum"
        return handler(core_schema) | {lowest: self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Checked:
    """Annotation for a value that `check` returns or refuses; `schema` says the same as JSON schema."""

    check: Callable[[Any], Any]
    # Annotations must be hashable, which a dict is not.
    schema: Mapping[str, Any] = field(hash=False)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Hook the check behind pydantic's type check."""
        return AfterValidator(self.check).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Tell what is checked."""
        return handler(core_schema) | dict(self.schema)


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

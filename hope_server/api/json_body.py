"""Reads a request's body as strict JSON into a schema: no NaN, no key twice, no half characters, JSON only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from hope_server.api.errors import UnsupportedMedia
from hope_server.api.validation import first_fault, kind_of
from hope_server.errors import InvalidRequest

__all__ = ["JsonBody", "json_body", "parse_json"]

Model = TypeVar("Model", bound=BaseModel)


class JsonBody(Generic[Model]):
    """A dependency that reads the body as `model`; the API's description finds the model here."""

    def __init__(self, model: type[Model]) -> None:
        self.model = model

    async def __call__(self, request: Request) -> Model:
        """Return the body; none at all counts as an empty object. Raises what `json_body` says."""
        raw = await request.body()
        if raw:
            _check_media_type(request.headers.get("content-type", ""))
        async with request.app.state.services.pace.turn(len(raw)):
            payload = parse_json(raw) if raw else {}
            try:
                return self.model.model_validate(payload)
            except ValidationError as exc:
                raise first_fault(exc.errors(include_url=False)) from None


class _NotFinite(Exception):
    """The text has NaN or Infinity somewhere; `name` is what it says."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def json_body(model: type[Model]) -> JsonBody[Model]:
    """Return a dependency that reads the body as `model`; no body at all counts as an empty object.

    Raises InvalidRequest with `param`, UnsupportedMedia, or BodyTooLarge while receiving.
    """
    return JsonBody(model)


def _check_media_type(content_type: str) -> None:
    # A web page can post any other type across origins without asking first, and would so reach a local server.
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        shown = kind[:100] or "missing"
        raise UnsupportedMedia(f"the Content-Type is {shown}; send `Content-Type: application/json`")


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return the object that `raw` spells. Raises InvalidRequest that says what and, where known, which parameter."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"the body is not UTF-8 at byte {exc.start:,}; send UTF-8") from None
    try:
        payload = json.loads(text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        where = f"line {exc.lineno} column {exc.colno}"
        raise InvalidRequest(f"the body is not valid JSON: {exc.msg} at {where}; send one JSON object") from None
    except _NotFinite as exc:
        param = _find(json.loads(text), lambda value: isinstance(value, float) and not abs(value) < float("inf"))
        raise InvalidRequest(f"{param} is {exc.name}, which is not JSON; send a finite number", param=param) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply; send a flatter object") from None
    except ValueError:
        raise InvalidRequest("the body has a number with too many digits; send a smaller one") from None
    if not isinstance(payload, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {kind_of(payload)}")
    if ("\\ud" in text or "\\uD" in text) and (param := _find(payload, _has_lone_surrogate)) is not None:
        reason = "holds half of a surrogate pair (\\ud800 to \\udfff alone); send whole characters"
        raise InvalidRequest(f"{param} {reason}", param=param)
    return payload


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        shown = ascii(name)[1:-1][:100]
        raise InvalidRequest(f"{shown} is given twice in one object; send it once", param=shown)
    return found


def _refuse_constant(name: str) -> Any:
    raise _NotFinite(name)


def _has_lone_surrogate(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        # Ten times as fast as a search, which counts for a text of megabytes.
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _find(payload: Any, is_bad: Callable[[Any], bool]) -> str | None:
    """Return the path, like `messages[0].content`, of the first bad value or key; a stack, as input may be deep."""
    stack: list[tuple[str, Any]] = [("", payload)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            for name in value:
                if is_bad(name):
                    return _param(path)
            stack += [(f"{path}.{name}", each) for name, each in reversed(value.items())]
        elif isinstance(value, list):
            stack += [(f"{path}[{index}]", each) for index, each in reversed(list(enumerate(value)))]
        elif is_bad(value):
            return _param(path)
    return None


def _param(path: str) -> str:
    return path.lstrip(".")[:100] or "the body"

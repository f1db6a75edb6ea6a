"""Reads the server's answers without doing any I/O; whatever does not fit becomes a HopeError."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hope_client.errors import ERRORS_BY_CODE, HopeError, InternalError, InvalidApiKey, RouteNotFound, UnexpectedAnswer
from hope_client.objects import (
    Health,
    LevelMemory,
    MemoryStatistics,
    Model,
    Receipt,
    Reply,
    Score,
    SessionInfo,
    Snapshot,
    ToolCall,
    Turn,
    Usage,
    Version,
    from_json,
)

_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer of any status."""

    content: bytes
    status: int
    headers: Mapping[str, str]


def read_json(answer: Answer) -> Any:
    """Return the JSON of a successful answer. Raises HopeError for an error status or for what is not JSON."""
    return decode(read_bytes(answer), answer.status, answer.headers)


def read_bytes(answer: Answer) -> bytes:
    """Return the body of a successful answer. Raises HopeError for an error status."""
    if not 200 <= answer.status < 300:
        raise read_error(answer)
    return answer.content


def read_error(answer: Answer) -> HopeError:
    """Return the error that an answer with an error status stands for."""
    status, headers = answer.status, answer.headers
    try:
        body = decode(answer.content, status, headers)
    except UnexpectedAnswer:
        body = None
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return error_of(error, status, headers)
    kind = {401: InvalidApiKey, 403: InvalidApiKey, 404: RouteNotFound}.get(status, UnexpectedAnswer)
    shown = _shown(answer.content)
    return kind(
        f"the server answered with status {status} and no error that HOPE Server writes; it said: {shown}",
        status=status,
        request_id=headers.get("x-request-id"),
    )


def decode(content: bytes, status: int, headers: Mapping[str, str]) -> Any:
    """Return the JSON in `content`. Raises UnexpectedAnswer when it is none."""
    try:
        return json.loads(content)
    except ValueError as exc:
        raise UnexpectedAnswer(
            f"the answer is not JSON, so this is probably not a HOPE Server; it said: {_shown(content)}",
            status=status,
            request_id=headers.get("x-request-id"),
        ) from exc


def _shown(content: bytes) -> str:
    return content[:_SHOWN_CHARACTERS].decode("utf-8", "replace").strip() or "nothing"


def error_of(error: Mapping[str, Any], status: int | None, headers: Mapping[str, str]) -> HopeError:
    """Return the error that an error object stands for. `status` None: it came inside a stream."""
    code = error["code"] if isinstance(error.get("code"), str) else None
    kind = ERRORS_BY_CODE.get(code or "", InternalError if code is None and (status or 500) >= 500 else HopeError)
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        seconds = None
    return kind(
        str(error.get("message") or "the server gave no reason"),
        code=code,
        status=status,
        request_id=headers.get("x-request-id"),
        param=error.get("param"),
        retry_after_seconds=seconds,
    )


def _data_list(answer: Any) -> list[Any]:
    if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
        raise UnexpectedAnswer("expected a list object with `data`; this is probably not a HOPE Server")
    data: list[Any] = answer["data"]
    return data


def read_nothing(answer: Any) -> None:
    """Read an answer that says no more than that it was done."""


def read_models(answer: Any) -> list[Model]:
    """Read the answer of `list_models`."""
    return [from_json(Model, each) for each in _data_list(answer)]


def read_sessions(answer: Any) -> tuple[list[SessionInfo], bool]:
    """Read one page of sessions; the second value says whether there are more."""
    return [from_json(SessionInfo, each) for each in _data_list(answer)], bool(answer.get("has_more"))


def read_versions(answer: Any) -> list[Version]:
    """Read the answer of `list_versions`, newest first."""
    return [from_json(Version, each) for each in _data_list(answer)]


def read_snapshots(answer: Any) -> list[Snapshot]:
    """Read the answer of `list_snapshots`."""
    return [from_json(Snapshot, each) for each in _data_list(answer)]


def read_turns(answer: Any) -> list[Turn]:
    """Read the answer of `list_turns`, in the server's order."""
    return [from_json(Turn, each) for each in _data_list(answer)]


def read_memory(answer: Any) -> MemoryStatistics:
    """Read the answer of `memory_statistics`."""
    if not isinstance(answer, dict) or not isinstance(answer.get("levels"), dict):
        raise UnexpectedAnswer("expected an object with `levels`")
    levels = {name: from_json(LevelMemory, each) for name, each in answer["levels"].items()}
    return from_json(MemoryStatistics, {**answer, "levels": levels})


def read_session(answer: Any) -> SessionInfo:
    """Read a session object."""
    return from_json(SessionInfo, answer)


def read_scores(answer: Any) -> list[Score]:
    """Read the answer of `score`, in the order of the continuations."""
    if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
        raise UnexpectedAnswer("expected an object with `scores`")
    found = [from_json(Score, each) for each in answer["scores"]]
    # JSON has no number for a probability of zero or for a fault of the model.
    return [each if each.logprob is not None else Score(math.nan, each.num_tokens) for each in found]


def read_health(answer: Answer) -> Health:
    """Read the answer of `check_ready`, where 503 is an answer and not an error."""
    if answer.status not in (200, 503):
        raise read_error(answer)
    body = decode(answer.content, answer.status, answer.headers)
    word = body.get("status") if isinstance(body, dict) else None
    is_ready = answer.status == 200
    return Health(is_ready, word if isinstance(word, str) else "ready" if is_ready else "not ready")


def read_reply(answer: Any) -> Reply:
    """Read a chat completion that was not streamed."""
    try:
        choice = answer["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text = message["content"]
    except (KeyError, IndexError, TypeError) as exc:
        raise UnexpectedAnswer("expected a chat completion with one choice") from exc
    return Reply(text or "", receipt_of(answer), usage_of(answer), reason, _tool_calls(message.get("tool_calls")))


def _tool_calls(calls: Any) -> tuple[ToolCall, ...]:
    try:
        found = [(each["id"], each["function"]["name"], each["function"]["arguments"]) for each in calls or ()]
    except (KeyError, TypeError) as exc:
        raise UnexpectedAnswer("expected tool calls with id and function") from exc
    return tuple(ToolCall(*each) for each in found)


def receipt_of(answer: Mapping[str, Any]) -> Receipt | None:
    """Return the receipt that an answer or a chunk carries, if any."""
    memory = answer.get("memory")
    return None if memory is None else from_json(Receipt, memory)


def usage_of(answer: Mapping[str, Any]) -> Usage | None:
    """Return the usage that an answer or a chunk carries, if any."""
    usage = answer.get("usage")
    return None if usage is None else from_json(Usage, usage)

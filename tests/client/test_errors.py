"""The client's error tree against the server's, and how failures become errors."""

from __future__ import annotations

import httpx
import pytest
from hope_client import (
    ERRORS_BY_CODE,
    ConnectionFailed,
    HopeError,
    InternalError,
    InvalidApiKey,
    PromptTooLong,
    RouteNotFound,
    SessionBusy,
    TimedOut,
    UnexpectedAnswer,
)

from hope_server import errors as server_errors
from hope_server.api import errors as http_errors
from hope_server.training import errors as training_errors


def _codes(kind: type[server_errors.HopeError]) -> set[str]:
    """Codes of a class and all below it, but for training's, which ends a command and is never an answer."""
    below = [each for each in kind.__subclasses__() if each.__module__ != training_errors.__name__]
    return {kind.code}.union(*(_codes(each) for each in below))


def test_both_trees_have_the_same_codes():
    """Every code that the server can send has a class of its own in the client, and the other way round."""
    assert issubclass(http_errors.BodyTooLarge, server_errors.HopeError)
    assert issubclass(training_errors.TrainingDiverged, server_errors.HopeError)
    assert set(ERRORS_BY_CODE) == _codes(server_errors.HopeError)


def test_children_have_the_parents_that_they_have_on_the_server():
    """Catching a parent class catches the same codes on both sides."""
    for parent, child in [("invalid_request", "prompt_too_long"), ("startup_error", "settings_error")]:
        assert issubclass(ERRORS_BY_CODE[child], ERRORS_BY_CODE[parent])


def test_an_error_answer_becomes_its_class_with_its_facts(client, server):
    """Code, message, parameter, status, request id and waiting time are all there."""
    body = {
        "error": {
            "message": "too long",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "prompt_too_long",
        }
    }
    server.answer(body, 400, {"x-request-id": "req_1"})
    server.answer({"error": {"message": "wait", "code": "session_busy"}}, 409, {"Retry-After": "2"})
    with pytest.raises(PromptTooLong) as caught:
        client.models()
    error = caught.value
    assert (error.code, error.message, error.status) == ("prompt_too_long", "too long", 400)
    assert (error.request_id, error.param, error.retry_after_seconds) == ("req_1", "messages", None)
    with pytest.raises(SessionBusy) as busy:
        client.models()
    assert busy.value.retry_after_seconds == 2.0


@pytest.mark.parametrize("code", ["brand_new", "stream_interrupted", "connection_failed"])
def test_a_code_that_no_server_class_has_becomes_a_plain_error(client, server, code):
    """A newer server's code is kept, and the client's own classes are not taken from the wire."""
    server.answer({"error": {"message": "new", "code": code}}, 418)
    with pytest.raises(HopeError) as caught:
        client.models()
    assert (type(caught.value), caught.value.code, caught.value.status) == (HopeError, code, 418)


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (502, b"<html>Bad Gateway</html>", UnexpectedAnswer),
        (404, b"", RouteNotFound),
        (401, b'{"detail":"no"}', InvalidApiKey),
        (500, b'{"error":"text"}', UnexpectedAnswer),
        (500, b'{"error":{"message":"x"}}', InternalError),
        (200, b"<html>hello</html>", UnexpectedAnswer),
        (302, b"", UnexpectedAnswer),
    ],
)
def test_other_servers_answers_are_explained(client, server, status, content, kind):
    """What no HOPE Server would say still becomes an error with its status and what was said."""
    server.answer_bytes(content, status)
    with pytest.raises(kind) as caught:
        client.models()
    assert caught.value.status == status


def test_no_answer_is_connection_failed_with_advice(client, server):
    """The message names the address and what to do; a time-out is a kind of it."""
    server.queue += [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut")]
    with pytest.raises(ConnectionFailed, match=r"no server answers at http://hope.test:8000 .* `hope serve`") as caught:
        client.models()
    assert (caught.value.status, caught.value.code) == (None, "connection_failed")
    with pytest.raises(TimedOut):
        client.health()
    with pytest.raises(ConnectionFailed, match="broke: cut"):
        client.models()

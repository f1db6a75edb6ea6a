"""Errors of the engine and of our own: status, shape, retry advice, before and inside a stream."""

from __future__ import annotations

import inspect

import pytest

from hope_server import errors
from hope_server.api import errors as api_errors
from hope_server.engine.turn import TokenText

pytestmark = pytest.mark.anyio

CASES = [
    (errors.InvalidRequest("no", param="x"), 400, "invalid_request_error"),
    (errors.PromptTooLong(9000, 8000), 400, "invalid_request_error"),
    (errors.ModelNotFound("a", "b"), 404, "not_found_error"),
    (errors.SessionNotFound("a"), 404, "not_found_error"),
    (errors.VersionNotFound("a", "v1"), 404, "not_found_error"),
    (errors.SessionBusy("a", 1.5), 409, "invalid_request_error"),
    (errors.SessionConflict("no"), 409, "invalid_request_error"),
    (errors.SessionExists("a"), 409, "invalid_request_error"),
    (errors.SessionFrozen("a"), 409, "invalid_request_error"),
    (errors.StateIncompatible("no"), 409, "invalid_request_error"),
    (errors.MemoryRolledBack("a", "v1"), 409, "invalid_request_error"),
    (errors.AnswerNotStored(), 409, "invalid_request_error"),
    (errors.MemoryEvicted("a"), 410, "invalid_request_error"),
    (errors.VersionMismatch("a", "v1", "v2"), 412, "invalid_request_error"),
    (errors.StateTooLarge(5, 4), 413, "invalid_request_error"),
    (errors.IdempotencyKeyReused(), 422, "invalid_request_error"),
    (errors.Overloaded(64, 3), 429, "invalid_request_error"),
    (errors.Cancelled("no"), 499, "invalid_request_error"),
    (errors.StateCorrupt("no"), 500, "server_error"),
    (errors.InternalError("no"), 500, "server_error"),
    (errors.StoreUnavailable("no"), 503, "server_error"),
    (errors.DurabilityUnmet("fsync", "commit"), 503, "server_error"),
    (errors.NoRoom(5), 503, "server_error"),
    (errors.ShuttingDown("no"), 503, "server_error"),
    (errors.StoreFull("no"), 507, "server_error"),
]
# Sending any of the others again would change nothing, and clients are told so.
RETRY_AFTER = {
    "session_busy": "2",
    "session_conflict": "1",
    "overloaded": "3",
    "no_room": "5",
    "store_unavailable": "1",
    "durability_unmet": "1",
    "shutting_down": "1",
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("error", "status", "kind"), CASES, ids=lambda value: getattr(value, "code", ""))
async def test_refused_turn(client, engine, tools, error, status, kind, is_streamed):
    """A turn that the engine refuses answers with the error's status, streamed or not, and says whether to retry."""
    engine.script = [error]
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(stream=is_streamed))
    assert answer.status_code == status
    wanted = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    assert answer.json() == {"error": wanted}
    assert answer.headers.get("x-should-retry") == (None if error.code in RETRY_AFTER else "false")
    assert answer.headers.get("retry-after") == RETRY_AFTER.get(error.code)


def test_every_error_has_a_status():
    """Each code of the service's tree and of the API's own is in the table of statuses."""
    kinds = [kind for room in (errors, api_errors) for kind in vars(room).values() if inspect.isclass(kind)]
    codes = {kind.code for kind in kinds if issubclass(kind, errors.HopeError)}
    startup_only = {"settings_error", "checkpoint_error"}
    assert codes - startup_only - api_errors._STATUS.keys() == set()


async def test_error_in_the_stream_ends_it(client, engine, tools):
    """An error after the first text is the stream's last event, and no [DONE] follows."""
    engine.script = [TokenText("Hel"), errors.StoreFull("disk is full"), TokenText("never")]
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(stream=True))
    found = tools.events(answer.text)
    assert answer.status_code == 200
    assert found[1]["choices"][0]["delta"] == {"content": "Hel"}
    assert found[2:] == [
        {"error": {"message": "disk is full", "type": "server_error", "param": None, "code": "store_full"}}
    ]


@pytest.mark.parametrize("script", [[ValueError("SECRET prompt")], [TokenText("a"), ValueError("SECRET prompt")], []])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_fault_of_the_engine_says_nothing_of_itself(client, engine, tools, caplog, script, is_streamed):
    """An unexpected exception, or an iterator without an end, becomes one internal error without its own text."""
    engine.script = script
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(stream=is_streamed))
    body = answer.json() if answer.status_code == 500 else tools.events(answer.text)[-1]
    assert body["error"]["code"] == "internal_error"
    assert answer.headers["x-request-id"] in body["error"]["message"]
    assert "SECRET" not in answer.text
    assert "[DONE]" not in answer.text
    assert [record.hope_event for record in caplog.records if record.levelname == "ERROR"] == ["turn_failed"]


async def test_fault_outside_a_turn(client, engine, caplog):
    """An unexpected exception of any other route answers 500 in OpenAI's shape and is logged once."""
    engine.get_session = lambda key: 1 / 0
    answer = await client.get("/v1/sessions/abc")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["x-should-retry"] == "false"
    assert "division" not in answer.text
    assert [record.hope_event for record in caplog.records if record.levelname == "ERROR"] == ["request_failed"]


async def test_request_id_on_every_answer(serving, tools):
    """Each answer has an id of its own, refused ones too, and a sound id of the caller is kept."""
    async with serving(api_keys=("k",)) as (_, client):
        seen = set()
        for path in ("/health", "/nothing", "/v1/models"):
            seen.add((await client.get(path)).headers["x-request-id"])
        kept = await client.get("/health", headers={"X-Request-ID": "mine-1"})
        replaced = await client.get("/health", headers={"X-Request-ID": "not ok"})
    assert len(seen) == 3
    assert kept.headers.get_list("x-request-id") == ["mine-1"]
    assert replaced.headers["x-request-id"].startswith("req_")

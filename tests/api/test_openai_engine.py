"""The OpenAI surface over a real engine on random weights: calls, chains of responses, several replies, plain text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from toys import KEY, toy_engine

from hope_server.api import create_app
from hope_server.api.response_ids import session_of_response
from hope_server.engine.engine import Engine
from hope_server.engine.turn import SessionKey

pytestmark = pytest.mark.anyio

NOW = {"name": "now", "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC"]}}, "required": ["zone"]}}
IN_SESSION = {"x-session-id": KEY.session_id}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Engine, httpx.AsyncClient]]:
    """A toy engine that runs, and a client of the app that serves it."""
    engine = toy_engine(tmp_path / "store.db")
    app = create_app(engine, engine.settings)
    async with app.router.lifespan_context(app):
        async with asyncio.timeout(10):
            while not engine.is_ready:
                await asyncio.sleep(0.005)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield engine, client


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = await client.post(path, json={"temperature": 0, **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


async def test_a_demanded_call_is_made_and_its_history_goes_on(served) -> None:
    """The call fits its schema; the client's own form of it, sent back with the result, extends the conversation."""
    _, client = served
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Time?"}]
    body = {
        "tools": [{"type": "function", "function": NOW}],
        "tool_choice": "required",
        "max_tokens": 200,
        "parallel_tool_calls": False,
    }
    first = await _post(client, "/v1/chat/completions", {**body, "messages": messages}, **IN_SESSION)
    choice = first["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("now", {"zone": "UTC"})
    messages += [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "noon"}]
    body = {"tools": body["tools"], "messages": messages, "max_tokens": 4}
    second = await _post(client, "/v1/chat/completions", body, **IN_SESSION)
    assert second["memory"]["not_learned"] is None
    assert second["memory"]["turn"] == 2
    # Only the result and the reply are new, not the question that was sent again.
    assert second["usage"]["prompt_tokens"] < first["usage"]["prompt_tokens"]


async def test_a_form_is_kept(served) -> None:
    """A reply that must fit a schema does."""
    _, client = served
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = {"messages": [{"role": "user", "content": "x"}], "response_format": form, "max_tokens": 60}
    found = await _post(client, "/v1/chat/completions", body)
    assert json.loads(found["choices"][0]["message"]["content"])["a"] in (1, 2)


async def test_several_replies_teach_the_messages_only(served) -> None:
    """Each reply has its own reason and log-probabilities; the session moves on by one turn."""
    engine, client = served
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "n": 3,
        "max_tokens": 4,
        "logprobs": True,
        "top_logprobs": 2,
    }
    found = await _post(client, "/v1/chat/completions", body | {"temperature": 1, "seed": 5}, **IN_SESSION)
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    for choice in found["choices"]:
        assert 1 <= len(choice["logprobs"]["content"]) <= 4
        assert all(len(token["top_logprobs"]) == 2 for token in choice["logprobs"]["content"])
    assert (await engine.get_session(KEY)).turn == 1


async def test_text_goes_on_from_text(served) -> None:
    """A completion is the same each time it is drawn greedily, whole or as one of two prompts."""
    _, client = served
    alone = await _post(client, "/v1/completions", {"prompt": "Once", "max_tokens": 6, "logprobs": 1})
    pair = await _post(client, "/v1/completions", {"prompt": ["Twice", "Once"], "max_tokens": 6})
    assert pair["choices"][1]["text"] == alone["choices"][0]["text"]
    logprobs = alone["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == len(logprobs["token_logprobs"]) > 0


async def test_a_chain_of_responses_is_a_session(served) -> None:
    """The newest response goes on in its session, an older one in a branch that knows only what came before it."""
    engine, client = served
    first = await _post(client, "/v1/responses", {"input": "Hello", "max_output_tokens": 4})
    name = session_of_response(first["id"])
    assert name is not None
    ask = {"input": "And?", "max_output_tokens": 4, "previous_response_id": first["id"]}
    second = await _post(client, "/v1/responses", ask)
    assert session_of_response(second["id"]) == name
    assert second["memory"]["turn"] == 2
    other = await _post(client, "/v1/responses", ask | {"input": "Other"})
    branch = session_of_response(other["id"])
    assert branch != name
    assert other["memory"]["turn"] == 2
    third = await _post(client, "/v1/responses", ask | {"previous_response_id": other["id"]})
    assert session_of_response(third["id"]) == branch
    assert (await engine.get_session(SessionKey("default", name))).turn == 2


async def test_a_repeated_response_is_answered_again(served) -> None:
    """The same key brings the same response, at the start of a chain, in it, and in a branch."""
    engine, client = served
    key = {"idempotency-key": "k1"}
    start = {"input": "Hello", "max_output_tokens": 4}
    first = await _post(client, "/v1/responses", start, **key)
    again = await _post(client, "/v1/responses", start, **key)
    assert again["memory"]["replayed"]
    assert (again["id"], again["output"]) == (first["id"], first["output"])
    after = start | {"previous_response_id": first["id"]}
    for text, name in (("And?", "k2"), ("Other", "k3")):
        one = await _post(client, "/v1/responses", after | {"input": text}, **{"idempotency-key": name})
        two = await _post(client, "/v1/responses", after | {"input": text}, **{"idempotency-key": name})
        assert (two["id"], two["output"], two["memory"]["replayed"]) == (one["id"], one["output"], True)
    assert len(await engine.list_sessions("default", 10, None)) == 2

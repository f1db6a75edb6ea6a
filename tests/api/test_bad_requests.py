"""Wrong requests: each gets one clear error in OpenAI's shape, and the engine hears nothing of it."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.anyio

ONE = [{"role": "user", "content": "hi"}]
BAD_FIELDS = [
    ({"temperature": 2.1}, "temperature", "temperature is 2.1; send a number from 0 to 2"),
    ({"temperature": -0.1}, "temperature", "from 0 to 2"),
    ({"temperature": "0.5"}, "temperature", "temperature must be a number, not a string"),
    ({"temperature": True}, "temperature", "must be a number, not a boolean"),
    ({"top_p": 0}, "top_p", "top_p is 0; send a number above 0 and up to 1"),
    ({"top_p": 1.01}, "top_p", "above 0 and up to 1"),
    ({"max_tokens": 0}, "max_tokens", "from 1 to 32,768"),
    ({"max_tokens": 32769}, "max_tokens", "max_tokens is 32769"),
    ({"max_tokens": 1.5}, "max_tokens", "must be a whole number, not a number"),
    ({"max_tokens": True}, "max_tokens", "must be a whole number, not a boolean"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "from 1 to 32,768"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "send only one"),
    ({"presence_penalty": 2.5}, "presence_penalty", "from -2 to 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "from -2 to 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "from 0.01 to 2"),
    ({"top_k": -1}, "top_k", "from 0 to"),
    ({"seed": 2**63}, "seed", "9,223,372,036,854,775,807"),
    ({"seed": 1.5}, "seed", "whole number"),
    ({"stop": ["a"] * 5}, "stop", "more than 4 items"),
    ({"stop": ["a", ""]}, "stop[1]", "is empty"),
    ({"stop": "x" * 257}, "stop[0]", "has 257 characters, the limit is 256"),
    ({"stop": 5}, "stop", "must be a list, not a whole number"),
    ({"stream": "yes"}, "stream", "must be true or false"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "must be true or false"),
    ({"messages": []}, "messages", "send at least 1"),
    ({"messages": ONE * 2049}, "messages", "more than 2,048"),
    ({"messages": "hi"}, "messages", "must be a list, not a string"),
    ({"messages": None}, "messages", "must be a list, not null"),
    ({"messages": ["hi"]}, "messages[0]", "must be an object"),
    ({"messages": [*ONE, {"role": "user"}]}, "messages[1].content", "is missing"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "is missing"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "must be a string, not null"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "must be a string"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty list"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", '"king"'),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "'image_url'"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "without a string"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content", "'a string'"),
    ({"model": 5}, "model", "must be a string"),
    ({"n": 9}, "n", "n is 9; send a number from 1 to 8"),
    ({"n": 0}, "n", "from 1 to 8"),
    ({"n": True}, "n", "must be a whole number, not a boolean"),
    ({"functions": [{}]}, "functions", "send tools and tool_choice"),
    ({"function_call": {"name": "f"}}, "function_call", "send tools and tool_choice"),
    ({"logprobs": 1}, "logprobs", "must be true or false"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    ({"top_logprobs": 2}, "top_logprobs", "send logprobs true too"),
    ({"logit_bias": {"five": 1}}, "logit_bias", "keys are token ids"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "of token 5 is 101; send a number from -100 to 100"),
    ({"logit_bias": {"5": True}}, "logit_bias", "is a boolean"),
    ({"logit_bias": [5]}, "logit_bias", "must be an object"),
    ({"logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias", "has 1,025 entries"),
    ({"modalities": ["text", "audio"]}, "modalities", "only"),
    ({"web_search_options": {}}, "web_search_options", "not supported"),
    ({"ignore_eos": True}, "ignore_eos", "a reply ends where the model ends it"),
    ({"skip_special_tokens": False}, "skip_special_tokens", "never part of a reply"),
    ({"continue_final_message": True}, "continue_final_message", "a message of its own"),
    ({"temprature": 1}, "temprature", "did you mean temperature?"),
    ({"zzz": 1}, "zzz", "not a known parameter"),
    ({"memory": {"modes": "read"}}, "memory.modes", "did you mean memory.mode?"),
    ({"memory": {"mode": "learn"}}, "memory.mode", "'write', 'read' or 'off'"),
    ({"memory": {"passes": 1001}}, "memory.passes", "from 0 to 1,000"),
    ({"memory": {"passes": -1}}, "memory.passes", "from 0 to 1,000"),
    ({"memory": {"window": False}}, "memory.window", 'memory.mode "read"'),
    ({"memory": "read"}, "memory", "must be an object, not a string"),
    ({"memory": {"levels": [""]}}, "memory.levels[0]", "is empty"),
    ({"memory": {"levels": ["slow"] * 33}}, "memory.levels", "more than 32"),
    ({"memory": {"sources": ["robots"]}}, "memory.sources[0]", "'user', 'assistant'"),
    ({"memory": {"ttl": -1}}, "memory.ttl", "from 0 to 1,000,000,000"),
    ({"session_id": "a b"}, "session_id", "1 to 64 letters"),
    ({"session_id": ""}, "session_id", "1 to 64 letters"),
    ({"session_id": "x" * 65}, "session_id", "1 to 64 letters"),
    ({"session_id": "abc\n"}, "session_id", "1 to 64 letters"),
    ({"session_id": 5}, "session_id", "must be a string"),
    ({"conversation": {"name": "x"}}, "conversation", "must be a string, not null"),
    ({"conversation": "a/b"}, "conversation", "1 to 64 letters"),
    ({"metadata": {"session_id": 5}}, "metadata.session_id", "must be a string, not a whole number"),
    ({"metadata": {"session_id": "ü"}}, "metadata.session_id", "1 to 64 letters"),
    ({"metadata": "x"}, "metadata", "must be an object"),
]


def _check_error(answer, status, code):
    body = answer.json()
    assert answer.status_code == status, body
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    kind = "not_found_error" if status == 404 else "invalid_request_error" if status < 500 else "server_error"
    assert body["error"]["type"] == kind
    return body["error"]


@pytest.mark.parametrize(("fields", "param", "message"), BAD_FIELDS, ids=lambda value: str(value)[:40])
async def test_bad_field_is_named(client, engine, tools, fields, param, message):
    """A bad value answers 400 with its parameter and a sentence that gives the value, the limit and the way out."""
    error = _check_error(
        await client.post("/v1/chat/completions", json=tools.chat_body(**fields)), 400, "invalid_request"
    )
    assert error["param"] == param
    assert message in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "tools": [], "tool_choice": "none", "logprobs": False, "top_logprobs": 0, "logit_bias": {}},
        {"functions": [], "function_call": "none", "n": 8},
        {"response_format": {"type": "text"}, "modalities": ["text"], "min_p": 0},
        {"user": "u", "store": True, "service_tier": "auto", "reasoning_effort": "low", "parallel_tool_calls": True},
        {"temperature": 2, "top_p": 1, "max_tokens": 32768, "seed": 2**63 - 1, "stop": [], "top_k": 0},
        {"stream_options": {"include_usage": True, "include_obfuscation": False}},
    ],
    ids=lambda value: next(iter(value)),
)
async def test_harmless_values_are_taken(client, tools, fields):
    """Parameters that ask for nothing we lack, and values on their limits, are served."""
    assert (await client.post("/v1/chat/completions", json=tools.chat_body(**fields))).status_code == 200


@pytest.mark.parametrize("place", ["X-Session-ID"])
async def test_bad_session_header_is_named(client, tools, place):
    """An explicit session header that is not a valid id is refused, not silently served without memory."""
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(), headers={place: "no way"})
    assert _check_error(answer, 400, "invalid_request")["param"] == place


MALFORMED = [
    (b"", "messages", "messages is missing"),
    (b"{", None, "not valid JSON"),
    (b"[]", None, "must be a JSON object, not a list"),
    (b"null", None, "must be a JSON object, not null"),
    (b"\xff\xfe{}", None, "not UTF-8"),
    (b'{"messages": ' + b"[" * 100_000, None, "nested too deeply"),
    (b'{"temperature": ' + b"9" * 5000 + b"}", None, "too many digits"),
    (b'{"temperature": NaN}', "temperature", "temperature is NaN"),
    (b'{"messages": [{"role": "user", "x": [1, -Infinity]}]}', "messages[0].x[1]", "is -Infinity"),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "temperature", "not a finite number"),
    (b'{"seed": 1, "temperature": 1, "seed": 2}', "seed", "given twice"),
    (b'{"messages": [{"role": "user", "content": "a\\ud800"}]}', "messages[0].content", "half of a surrogate pair"),
    (b'{"messages": [{"role": "user", "content": "a"}], "x\\udfff": 1}', None, "half of a surrogate pair"),
]


@pytest.mark.parametrize(("raw", "param", "message"), MALFORMED, ids=lambda value: str(value)[:30])
async def test_malformed_json_is_explained(client, engine, raw, param, message):
    """A body that is not strict JSON answers 400 and says what is wrong and, where there is one, at which parameter."""
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/v1/chat/completions", content=raw, headers=headers)
    error = _check_error(answer, 400, "invalid_request")
    assert message in error["message"]
    assert error["param"] == param or (param is None and error["param"] == "the body")
    assert engine.requests == []


async def test_whole_characters_from_escapes_are_taken(client, engine, tools):
    """An escaped surrogate pair is one character and passes."""
    raw = json.dumps(tools.chat_body(messages=[{"role": "user", "content": "🎻"}])).encode()
    assert b"\\ud83c" in raw
    answer = await client.post("/v1/chat/completions", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert engine.requests[0].messages[0].content == "🎻"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_only_declared_json_is_read(client, engine, tools, content_type):
    """A body of another type, which a web page could post across origins unasked, answers 415."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    raw = json.dumps(tools.chat_body()).encode()
    answer = await client.post("/v1/chat/completions", content=raw, headers=headers)
    assert "Content-Type: application/json" in _check_error(answer, 415, "unsupported_media_type")["message"]
    assert engine.requests == []


async def test_unknown_model(client, engine, tools):
    """Another model's name answers 404 model_not_found and names the one that is served."""
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(model="gpt-9"))
    error = _check_error(answer, 404, "model_not_found")
    assert error["param"] == "model"
    assert "'fake-model'" in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/docs", "/v1/models/", "/v1/sessions/"])
async def test_unknown_route(client, path):
    """A path without a route answers 404 in OpenAI's shape."""
    answer = await client.get(path)
    code = "model_not_found" if path == "/v1/models/" else "not_found"
    _check_error(answer, 404, code)


async def test_wrong_method(client):
    """A known path with another method answers 405 with Allow."""
    answer = await client.get("/v1/chat/completions")
    assert "use POST" in _check_error(answer, 405, "method_not_allowed")["message"]
    assert answer.headers["allow"] == "POST"


async def test_no_cors_headers(client, tools):
    """A web page of another origin is given no right to read an answer."""
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(), headers={"Origin": "http://evil"})
    assert not [name for name in answer.headers if name.startswith("access-control-")]

"""Tools, several replies, log-probabilities and forms of output in chat completions."""

from __future__ import annotations

import json

import pytest

from hope_server.engine.turn import (
    OutputFormat,
    Replay,
    ReplyFinished,
    TokenLogprob,
    TokenText,
    Tool,
    ToolCall,
    ToolUse,
    TurnFinished,
    Usage,
)

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Say it", "parameters": SCHEMA}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>'
END = TurnFinished("stop", Usage(5, 7), None)


def _pieces(text: str, size: int = 7) -> list[TokenText]:
    return [TokenText(text[start : start + size]) for start in range(0, len(text), size)]


async def _post(client, kit, **fields):
    answer = await client.post("/v1/chat/completions", json=kit.chat_body(**fields))
    assert answer.status_code == 200, answer.text
    return answer


async def test_tools_reach_the_engine(client, engine, tools):
    """Tools, the choice among them, and whether several calls are wanted arrive as given; a demanded call is one."""
    await _post(client, tools, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    tool = Tool("get_weather", "Say it", json.dumps(SCHEMA))
    assert engine.requests[0].tool_use == ToolUse((tool,), "required", "", False)
    choice = {"type": "function", "function": {"name": "get_weather"}}
    await _post(client, tools, tools=[TOOL], tool_choice=choice)
    assert engine.requests[1].tool_use == ToolUse((tool,), "function", "get_weather", False)
    await _post(client, tools, tools=[TOOL], tool_choice=choice, parallel_tool_calls=True)
    assert engine.requests[2].tool_use == ToolUse((tool,), "function", "get_weather", True)
    await _post(client, tools, tools=[{"type": "function", "function": {"name": "now"}}])
    assert engine.requests[3].tool_use == ToolUse((Tool("now"),))


async def test_calls_are_answered_as_calls(client, engine, tools):
    """Calls leave the text: content is null where nothing else was said, and the reason says tool_calls."""
    engine.script = [*_pieces(f"{CALL}\n{CALL}"), END]
    choice = (await _post(client, tools, tools=[TOOL])).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    assert functions == [{"name": "get_weather", "arguments": '{"city": "Bern"}'}] * 2
    ids = [call["id"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(each.startswith("call_") for each in ids)


async def test_text_beside_a_call_stays_content(client, engine, tools):
    """What is said before a call is content; a reply that was cut off keeps its reason."""
    engine.script = [*_pieces(f"Let me see.\n{CALL}"), TurnFinished("length", Usage(5, 7), None)]
    choice = (await _post(client, tools, tools=[TOOL])).json()["choices"][0]
    assert choice["message"]["content"] == "Let me see."
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL], "tool_choice": "none"}], ids=["no tools", "none"])
async def test_without_tools_text_is_text(client, engine, tools, fields):
    """A reply is only looked into for calls where calls are allowed."""
    engine.script = [*_pieces(CALL), END]
    choice = (await _post(client, tools, **fields)).json()["choices"][0]
    assert choice["message"]["content"] == CALL
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


async def test_streamed_calls_come_as_deltas(client, engine, tools):
    """A call begins with its index, id, type and name; its arguments follow under the index; no marker is seen."""
    engine.script = [*_pieces(f"Hm. {CALL}\n{CALL}", 3), END]
    answer = await _post(client, tools, tools=[TOOL], stream=True)
    assert "tool_call>" not in answer.text
    chunks = tools.events(answer.text)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hm."
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [call["index"] for call in calls] == [0, 0, 1, 1]
    assert calls[0] == {
        "index": 0,
        "id": calls[0]["id"],
        "type": "function",
        "function": {"name": "get_weather", "arguments": ""},
    }
    assert calls[1] == {"index": 0, "function": {"arguments": '{"city": "Bern"}'}}
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}


async def test_a_repeated_answer_has_the_same_call_ids(client, engine, tools):
    """Call ids come from the answer's id, so a replay tells the same ones, whole and streamed."""
    engine.script = [Replay("chatcmpl-first", 7), *_pieces(CALL), END]
    whole = (await _post(client, tools, tools=[TOOL])).json()
    chunks = tools.events((await _post(client, tools, tools=[TOOL], stream=True)).text)[:-1]
    first = next(chunk for chunk in chunks if "tool_calls" in chunk["choices"][0]["delta"])
    assert whole["id"] == chunks[0]["id"] == "chatcmpl-first"
    streamed = first["choices"][0]["delta"]["tool_calls"][0]["id"]
    assert whole["choices"][0]["message"]["tool_calls"][0]["id"] == streamed


async def test_calls_and_their_results_come_back(client, engine, tools):
    """An assistant message's calls and a tool's result are the engine's own."""
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Bern"}'}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "Rain"}]},
    ]
    await _post(client, tools, messages=messages, tools=[TOOL])
    assert engine.requests[0].messages[1].tool_calls == (ToolCall("get_weather", '{"city":"Bern"}'),)
    assert (engine.requests[0].messages[2].role, engine.requests[0].messages[2].content) == ("tool", "Rain")


WIDE = {"type": "object", "description": "x" * 65_536}
BAD = [
    ({"tools": [{"type": "web_search"}]}, "tools[0]", "only tools of type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "1 to 64 letters"),
    ({"tools": [TOOL, TOOL]}, "tools", "get_weather more than once"),
    ({"tools": [TOOL] * 129}, "tools", "more than 128"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": WIDE}}]},
        "tools[0].function.parameters",
        "the limit is 65,536",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
        "tools[0].function.parameters",
        "describes no object",
    ),
    ({"tool_choice": "required"}, "tool_choice", "without tools"),
    ({"tool_choice": "always"}, "tool_choice", "'always'"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice", "names no function"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        "tool_choice",
        "not among the tools",
    ),
    (
        {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
        "tool_choice",
        "its form too",
    ),
    ({"response_format": {"type": "xml"}}, "response_format", "'xml'"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "`schema` that is null"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": WIDE}}}, "response_format", "65,536"),
    ({"response_format": "json"}, "response_format", "must be an object"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {}}]}]},
        "messages[0].tool_calls[0].function.name",
        "is missing",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "trusted": 1}]}]},
        "messages[0].content",
        "`trusted` is a whole number",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
        "images are not supported",
    ),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD, ids=lambda value: str(value)[:40])
async def test_what_cannot_be_served_is_refused(client, engine, tools, fields, param, message):
    """Tools, choices, formats and parts that are wrong answer 400 by name, and the engine hears nothing."""
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(**fields))
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == param
    assert message in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "text"}, OutputFormat()),
        ({"type": "json_object"}, OutputFormat("json_object")),
        (
            {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}},
            OutputFormat("json_schema", json.dumps(SCHEMA)),
        ),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_the_form_of_the_reply_reaches_the_engine(client, engine, tools, given, expected):
    """Each kind of response_format arrives as the engine's own."""
    await _post(client, tools, response_format=given)
    assert engine.requests[0].output_format == expected


def _said(text: str, index: int = 0) -> TokenText:
    other = TokenLogprob("é", "é".encode(), float("-inf"))
    mine = TokenLogprob(text, text.encode(), -0.5, ())
    return TokenText(text, index, (TokenLogprob(text, text.encode(), -0.5, (mine, other)),))


async def test_log_probabilities_are_told(client, engine, tools):
    """Each token has its bytes, its log-probability and the likeliest ones; what JSON lacks becomes OpenAI's -9999."""
    engine.script = [_said("Hel"), _said("lo"), END]
    answer = await _post(client, tools, logprobs=True, top_logprobs=2)
    assert engine.requests[0].sampling.top_logprobs == 2
    first, second = answer.json()["choices"][0]["logprobs"]["content"]
    top = [
        {"token": "Hel", "logprob": -0.5, "bytes": [72, 101, 108]},
        {"token": "é", "logprob": -9999.0, "bytes": [195, 169]},
    ]
    assert first == {"token": "Hel", "logprob": -0.5, "bytes": [72, 101, 108], "top_logprobs": top}
    assert second["token"] == "lo"
    streamed = tools.events((await _post(client, tools, logprobs=True, stream=True)).text)[:-1]
    assert engine.requests[1].sampling.top_logprobs == 0
    found = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    assert [token["token"] for each in found if each for token in each["content"]] == ["Hel", "lo"]


async def test_no_log_probability_is_lost_to_held_back_text(client, engine, tools):
    """Tokens whose text is a call's, or is held back, are told with a later chunk."""
    engine.script = [_said("Hi "), *[_said(piece.text) for piece in _pieces(CALL)], _said(" "), END]
    chunks = tools.events((await _post(client, tools, tools=[TOOL], logprobs=True, stream=True)).text)[:-1]
    found = [chunk["choices"][0]["logprobs"] or {"content": []} for chunk in chunks]
    text = "".join(token["token"] for each in found for token in each["content"])
    assert text == f"Hi {CALL} "


SEVERAL = [
    TokenText("a0", 0),
    TokenText("b0", 1),
    ReplyFinished(1, "length"),
    TokenText("a1", 0),
    ReplyFinished(0, "stop"),
    TurnFinished("stop", Usage(3, 9), None),
]


async def test_several_replies(client, engine, tools):
    """Each of n replies has its index, its text and its own reason; the usage is the turn's."""
    engine.script = SEVERAL
    body = (await _post(client, tools, n=2)).json()
    assert engine.requests[0].num_choices == 2
    found = [(each["index"], each["message"]["content"], each["finish_reason"]) for each in body["choices"]]
    assert found == [(0, "a0a1", "stop"), (1, "b0", "length")]
    assert body["usage"]["completion_tokens"] == 9


async def test_several_replies_in_a_stream(client, engine, tools):
    """Each reply begins with its role and ends with its reason, all ends after the turn's, the receipt in the last."""
    engine.script = [*SEVERAL[:-1], tools.FINISHED]
    chunks = tools.events((await _post(client, tools, n=2, stream=True)).text)[:-1]
    choices = [chunk["choices"][0] for chunk in chunks]
    for index, text in [(0, "a0a1"), (1, "b0")]:
        mine = [choice for choice in choices if choice["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in mine) == text
        assert [choice["finish_reason"] is None for choice in mine] == [True] * (len(mine) - 1) + [False]
    assert [choice["finish_reason"] for choice in choices[-2:]] == ["stop", "length"]
    assert ["memory" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_a_reply_without_text_has_role_and_reason_too(client, engine, tools):
    """A reply that says nothing still makes its two chunks."""
    engine.script = [ReplyFinished(0, "stop"), ReplyFinished(1, "stop"), END]
    chunks = tools.events((await _post(client, tools, n=2, stream=True)).text)[:-1]
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1, 0, 1]


async def test_a_turn_that_did_not_learn_says_why(client, engine, tools):
    """The receipt's reason is a header too."""
    from dataclasses import replace

    engine.script = [replace(tools.FINISHED, receipt=replace(tools.RECEIPT, mode="read", not_learned="side_request"))]
    answer = await _post(client, tools)
    assert answer.headers["x-memory-not-learned"] == "side_request"
    assert answer.json()["memory"]["not_learned"] == "side_request"

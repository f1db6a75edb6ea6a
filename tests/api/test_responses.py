"""OpenAI's responses: objects, events, the chain of responses as sessions and versions."""

from __future__ import annotations

import json
from dataclasses import replace

import openai
import pytest

from hope_server.api.response_ids import new_response_id, session_of_response
from hope_server.engine.turn import (
    Message,
    OutputFormat,
    Replay,
    SessionKey,
    TokenLogprob,
    TokenText,
    Tool,
    ToolCall,
    ToolUse,
    TurnFinished,
    Usage,
)
from hope_server.errors import StoreFull

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "now", "description": "The time", "parameters": {"type": "object"}, "strict": True}
CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>'
END = TurnFinished("stop", Usage(5, 7), None)


async def _post(client, **fields):
    answer = await client.post(PATH, json={"input": "hi", **fields})
    assert answer.status_code == 200, answer.text
    return answer


def _events(text: str) -> list[dict]:
    """The events of a stream, each named by its type and numbered in order, with [DONE] behind them."""
    *blocks, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


async def test_a_response_starts_a_session(client, engine):
    """Without a past a response is made in a session of its own, which its id names."""
    body = (await _post(client, instructions="Be brief", max_output_tokens=9, temperature=0)).json()
    asked = engine.requests[0]
    assert asked.session == SessionKey("default", session_of_response(body["id"]))
    assert asked.session.session_id.startswith("resp-")
    assert asked.messages == (Message("system", "Be brief"), Message("user", "hi"))
    assert (asked.sampling.max_tokens, asked.sampling.temperature) == (9, 0)
    assert not asked.may_be_side
    assert (body["object"], body["status"], body["model"]) == ("response", "completed", "fake-model")
    (item,) = body["output"]
    assert item["content"] == [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert body["usage"]["total_tokens"] == 14
    assert body["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert body["error"] is body["incomplete_details"] is None
    assert body["instructions"] == "Be brief"
    assert body["memory"]["version_after"] == "v1"


REQUIRED = {
    "background", "completed_at", "created_at", "error", "frequency_penalty", "id", "incomplete_details",
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model", "object", "output",
    "parallel_tool_calls", "presence_penalty", "previous_response_id", "prompt_cache_key", "reasoning",
    "safety_identifier", "service_tier", "status", "store", "temperature", "text", "tool_choice", "tools",
    "top_logprobs", "top_p", "truncation", "usage",
}  # fmt: skip


async def test_the_object_has_every_field_that_the_open_specification_demands(client):
    """Every field is there and has a value where null is not allowed."""
    body = (await _post(client)).json()
    assert REQUIRED - body.keys() == set()
    nullable = {
        "completed_at", "error", "incomplete_details", "instructions", "max_output_tokens", "max_tool_calls",
        "previous_response_id", "prompt_cache_key", "reasoning", "safety_identifier",
    }  # fmt: skip
    assert [name for name in REQUIRED - nullable if body[name] is None] == []


async def test_what_was_asked_is_told(client, engine):
    """Tools, choice, format, metadata and limits of the request are in the object."""
    schema = {"type": "object"}
    fields = {
        "tools": [TOOL],
        "parallel_tool_calls": False,
        "text": {"format": {"type": "json_schema", "name": "city", "schema": schema, "strict": True}},
        "metadata": {"a": "b"},
        "truncation": "auto",
        "conversation": "talk",
    }
    body = (await _post(client, **fields)).json()
    assert body["tools"] == [TOOL]
    assert body["tool_choice"] == "auto"
    assert body["parallel_tool_calls"] is False
    assert body["text"]["format"] == {**fields["text"]["format"], "description": None}
    assert body["metadata"] == {"a": "b"}
    assert body["truncation"] == "auto"
    assert body["conversation"] == {"id": "talk"}
    assert engine.requests[0].session == SessionKey("default", "talk")
    assert engine.requests[0].may_be_side
    assert engine.requests[0].output_format == OutputFormat("json_schema", json.dumps(schema))
    assert engine.requests[0].tool_use == ToolUse(
        (Tool("now", "The time", json.dumps(TOOL["parameters"])),), is_parallel=False
    )


async def test_events_of_a_text(client, engine):
    """A text makes these events in this order; the last one has the whole response and the receipt."""
    events = _events((await _post(client, stream=True)).text)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert [event["delta"] for event in events if "delta" in event] == ["Hel", "lo"]
    assert events[3]["part"]["text"] == ""
    assert events[2]["item"]["content"] == []
    assert events[6]["text"] == "Hello"
    item = events[8]["item"]
    assert {event["item_id"] for event in events if "item_id" in event} == {item["id"]}
    assert events[-1]["response"]["output"] == [item]
    assert events[-1]["response"]["memory"]["tokens_learned"] == 9
    assert {event["response"]["id"] for event in events if "response" in event} == {events[0]["response"]["id"]}


async def test_events_of_a_call(client, engine):
    """Text before a call is an item of its own; the call's arguments are told and then told whole."""
    engine.script = [TokenText("Hm.\n"), *[TokenText(letter) for letter in CALL], END]
    events = _events((await _post(client, stream=True, tools=[TOOL])).text)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[kinds.index("output_item.done") + 1 : -1] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    text, call = events[-1]["response"]["output"]
    assert text["content"][0]["text"] == "Hm."
    assert call == {
        "id": call["id"],
        "type": "function_call",
        "status": "completed",
        "call_id": call["call_id"],
        "name": "now",
        "arguments": '{"zone": "UTC"}',
    }
    done = next(event for event in events if event["type"] == "response.function_call_arguments.done")
    assert (done["arguments"], done["output_index"], done["item_id"]) == (call["arguments"], 1, call["id"])
    whole = (await _post(client, tools=[TOOL])).json()
    assert [item["type"] for item in whole["output"]] == ["message", "function_call"]


async def test_a_reply_that_was_cut_off_is_incomplete(client, engine):
    """The token limit makes status, reason, item and last event say so; a reply without text has an empty message."""
    engine.script = [TurnFinished("length", Usage(1, 1), None)]
    body = (await _post(client)).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    assert body["output"][0]["content"][0]["text"] == ""
    assert _events((await _post(client, stream=True)).text)[-1]["type"] == "response.incomplete"


async def test_an_error_in_a_stream_is_a_failed_response(client, engine):
    """A stream that had begun ends with response.failed and no [DONE]."""
    engine.script = [TokenText("a"), StoreFull("disk is full")]
    text = (await _post(client, stream=True)).text
    assert "[DONE]" not in text
    last = json.loads(text.strip().split("\n")[-1].removeprefix("data: "))
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "store_full", "message": "disk is full"}


async def test_an_error_before_a_stream_is_a_status(client, engine):
    """A turn that is refused at once answers with its HTTP status."""
    engine.script = [StoreFull("disk is full")]
    answer = await client.post(PATH, json={"input": "hi", "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "store_full")


async def test_input_items_become_messages(client, engine):
    """Messages, calls and their outputs become the engine's; calls belong to the message before them."""
    items = [
        {"role": "developer", "content": "rules"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a", "trusted": False}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"},
        {"type": "function_call", "call_id": "d", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "noon"},
        {"type": "function_call", "call_id": "e", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "e", "output": [{"type": "input_text", "text": "one"}]},
    ]
    await _post(client, input=items)
    call = ToolCall("now", "{}")
    assert engine.requests[0].messages == (
        Message("system", "rules"),
        Message("user", "a", (), ((0, 1),)),
        Message("assistant", "Hm.", (call, call)),
        Message("tool", "noon"),
        Message("assistant", "", (call,)),
        Message("tool", "one"),
    )


async def test_output_items_given_back_are_the_reply(client, engine):
    """The items of a reply whose text goes on behind a call make one assistant message."""
    engine.script = [TokenText(f"a\n{CALL}\nb"), END]
    output = (await _post(client, tools=[TOOL])).json()["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "message"]
    await _post(client, input=[*output, {"role": "user", "content": "x"}])
    assert engine.requests[1].messages[0] == Message("assistant", "a\nb", (ToolCall("now", '{"zone": "UTC"}'),))


async def test_a_repeated_response_keeps_its_name(client, engine):
    """A replay has the id and the time of the first answer, and ids of items made of it."""
    first = new_response_id("old")
    engine.script = [Replay(first, 7), TokenText(CALL), END]
    whole = (await _post(client, tools=[TOOL])).json()
    streamed = _events((await _post(client, tools=[TOOL], stream=True)).text)[-1]["response"]
    assert (whole["id"], whole["created_at"]) == (first, 7)
    assert whole["output"] == streamed["output"]


async def test_log_probabilities_of_a_text(client, engine):
    """They come in the deltas and in the text's part."""
    engine.script = [TokenText("a", 0, (TokenLogprob("a", b"a", -0.5, ()),)), END]
    events = _events((await _post(client, include=["message.output_text.logprobs"], stream=True)).text)
    expected = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]
    assert next(event["logprobs"] for event in events if "delta" in event) == expected
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == expected
    assert engine.requests[0].sampling.top_logprobs == 0


BAD = [
    ({"input": []}, "input", "at least 1"),
    ({"input": None}, "input", "not null"),
    ({"input": [5]}, "input[0]", "must be an object"),
    ({"input": [{"role": "king", "content": "x"}]}, "input[0]", "'king'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0]", "images are not supported"),
    ({"input": [{"role": "user"}]}, "input[0]", "`content` that is null"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "not kept by id"),
    ({"input": [{"type": "web_search_call"}]}, "input[0]", "'web_search_call'"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]", "arguments"),
    ({"input": [{"type": "function_call", "arguments": ""}]}, "input[0]", "function's name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]", "only tools of type"),
    ({"tool_choice": "required"}, "tool_choice", "without tools"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format", "'grammar'"),
    ({"background": True}, "background", "stream instead"),
    ({"prompt": {"id": "x"}}, "prompt", "stored prompts"),
    ({"include": ["everything"]}, "include[0]", "send one of"),
    ({"max_output_tokens": 0}, "max_output_tokens", "from 1 to 32,768"),
    ({"truncation": "none"}, "truncation", "'auto' or 'disabled'"),
    ({"conversation": "a", "previous_response_id": "b"}, "previous_response_id", "send one of them"),
    ({"session_id": "a", "previous_response_id": new_response_id("b")}, "previous_response_id", "names a"),
    ({"messages": []}, "messages", "not a known parameter"),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD, ids=lambda value: str(value)[:40])
async def test_bad_requests_are_named(client, engine, fields, param, message):
    """A bad value answers 400 with its parameter and what to do, and the engine hears nothing."""
    answer = await client.post(PATH, json={"input": "x", **fields})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == param
    assert message in error["message"]
    assert engine.requests == []


async def test_responses_are_not_read_again(client):
    """GET answers 404 with the reason, DELETE 405."""
    answer = await client.get(f"{PATH}/{new_response_id('s')}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")
    assert (await client.delete(f"{PATH}/resp_x")).status_code == 405


async def test_the_stock_client(listening, engine):
    """openai-python reads whole and streamed responses, and its helper ends with the whole text."""
    async with (
        listening() as (url, _),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as stock,
    ):
        whole = await stock.responses.create(model="fake-model", input="hi")
        assert whole.output_text == "Hello"
        assert whole.usage.total_tokens == 14
        async with stock.responses.stream(model="fake-model", input="hi") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert final.output_text == "Hello"
        engine.script = [TokenText(CALL), replace(END)]
        called = await stock.responses.create(model="fake-model", input="hi", tools=[TOOL])
        assert called.output[0].name == "now"


def test_every_parameter_of_the_stock_client_is_known():
    """Each parameter that OpenAI's client can send is served, ignored or refused by name."""
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    from hope_server.api.response_body import ResponseBody

    sent = set(ResponseCreateParamsBase.__annotations__) | {"stream"}
    assert sent - ResponseBody.rules.names - ResponseBody.model_fields.keys() == set()

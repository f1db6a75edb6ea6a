"""Chat completions that succeed: shapes, sampling, session ids, receipts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hope_server.engine.turn import (
    MemoryOptions,
    Message,
    SamplingParams,
    SessionKey,
    TokenText,
    ToolCall,
    TurnFinished,
    Usage,
)

pytestmark = pytest.mark.anyio


async def test_whole_answer_sums_the_text(client, tools):
    """A reply that is not streamed is the concatenation of its pieces in OpenAI's shape, with usage and receipt."""
    answer = await client.post("/v1/chat/completions", json=tools.chat_body())
    body = answer.json()
    assert answer.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "fake-model"
    assert isinstance(body["created"], int)
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 2,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert body["memory"]["version_after"] == "v1"


async def test_receipt_travels_in_headers_too(client, tools):
    """The receipt of a whole answer is repeated in x-memory-* headers, without those that have no value."""
    answer = await client.post("/v1/chat/completions", json=tools.chat_body())
    found = {name: value for name, value in answer.headers.items() if name.startswith("x-memory-")}
    assert found == {
        "x-memory-session": "s1",
        "x-memory-version": "v1",
        "x-memory-tokens-learned": "9",
        "x-memory-durability": "commit",
    }


async def test_numbers_that_json_lacks_become_null(client, tools):
    """A loss that is not finite is null in the receipt, so the answer stays valid JSON."""
    receipt = (await client.post("/v1/chat/completions", json=tools.chat_body())).json()["memory"]
    assert receipt["loss_before"] == 2.5
    assert receipt["loss_after"] is None


async def test_stateless_answer_has_no_receipt(client, engine, tools):
    """Without a session the engine gets no key, and the answer's memory is null and its headers say nothing of it."""
    engine.script = [TokenText("x"), TurnFinished("length", Usage(1, 1), None)]
    answer = await client.post("/v1/chat/completions", json=tools.chat_body())
    assert (engine.requests[0].session, engine.requests[0].tenant) == (None, "default")
    assert answer.json()["memory"] is None
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert not [name for name in answer.headers if name.startswith("x-memory-")]


async def test_sampling_parameters_reach_the_engine(client, engine, tools):
    """Every sampling parameter of the body arrives as given."""
    given = {
        "max_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 40,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "repetition_penalty": 1.1,
        "seed": -(2**63),
        "stop": ["a", "b"],
    }
    await client.post("/v1/chat/completions", json=tools.chat_body(**given))
    assert engine.requests[0].sampling == SamplingParams(**{**given, "stop": ("a", "b")})


async def test_null_means_default(client, engine, tools):
    """Parameters that are null take the server's defaults, as OpenAI's clients expect."""
    names = ("max_tokens", "temperature", "top_p", "seed", "stop", "stream", "memory", "n", "tools", "model")
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(**dict.fromkeys(names)))
    assert answer.status_code == 200
    assert engine.requests[0].sampling == SamplingParams()
    assert engine.requests[0].memory == MemoryOptions()


async def test_a_whole_number_may_have_a_point(client, engine, tools):
    """5.0 is a whole number in JSON, 5.5 is none."""
    await client.post("/v1/chat/completions", json=tools.chat_body(max_tokens=5.0, n=2.0))
    assert (engine.requests[0].sampling.max_tokens, engine.requests[0].num_choices) == (5, 2)
    assert isinstance(engine.requests[0].sampling.max_tokens, int)


async def test_newer_name_of_the_token_limit(client, engine, tools):
    """max_completion_tokens is the same limit as max_tokens, and a single stop string is a list of one."""
    await client.post("/v1/chat/completions", json=tools.chat_body(max_completion_tokens=3, stop="END"))
    assert engine.requests[0].sampling.max_tokens == 3
    assert engine.requests[0].sampling.stop == ("END",)


async def test_messages_reach_the_engine_as_text(client, engine, tools):
    """Text parts are joined, developer becomes system, tool messages pass, and bare tool calls count as empty text."""
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": "Ann"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(messages=messages))
    assert answer.status_code == 200
    assert engine.requests[0].messages == (
        Message("system", "be brief"),
        Message("user", "one\ntwo"),
        Message("assistant", "", (ToolCall("f", "{}"),)),
        Message("tool", "42"),
    )


async def test_untrusted_parts_are_marked(client, engine, tools):
    """A text part with `trusted` false becomes a range of the message's text; a refusal is text of the assistant's."""
    parts = [
        {"type": "text", "text": "Sum up:"},
        {"type": "text", "text": "evil\npage", "trusted": False},
        {"type": "text", "text": "Thanks", "trusted": True},
    ]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": None, "refusal": "Never."},
        {"role": "user", "content": ""},
    ]
    answer = await client.post("/v1/chat/completions", json=tools.chat_body(messages=messages))
    assert answer.status_code == 200
    first, *others = engine.requests[0].messages
    assert first == Message("user", "Sum up:\nevil\npage\nThanks", (), ((8, 17),))
    assert first.content[8:17] == "evil\npage"
    assert others == [Message("assistant", "No."), Message("assistant", "Never."), Message("user", "")]


async def test_memory_options_reach_the_engine(client, engine, tools):
    """The memory object of the body arrives as given."""
    memory = {"mode": "read", "passes": 0, "window": False, "levels": ["slow"], "sources": ["tool"], "ttl": 60}
    await client.post("/v1/chat/completions", json=tools.chat_body(memory=memory))
    expected = MemoryOptions("read", 0, False, levels=("slow",), sources=("tool",), ttl_seconds=60.0)
    assert engine.requests[0].memory == expected


@pytest.mark.parametrize(
    ("memory", "may_be_side"),
    [(None, True), ({"passes": 3}, True), ({"mode": "write"}, False), ({"mode": "read"}, False)],
)
async def test_only_a_mode_says_that_a_turn_teaches(client, engine, tools, memory, may_be_side):
    """Without memory.mode the engine may take a request for a side request, with it the caller has decided."""
    await client.post("/v1/chat/completions", json=tools.chat_body(memory=memory))
    assert engine.requests[0].may_be_side is may_be_side


SOURCES = [
    ("header", "X-Session-ID"),
    ("body", {"session_id": "{}"}),
    ("body", {"conversation": "{}"}),
    ("body", {"metadata": {"session_id": "{}"}}),
    ("header", "X-OpenWebUI-Chat-Id"),
    ("header", "x-litellm-session-id"),
    ("header", "x-session-affinity"),
    ("body", {"prompt_cache_key": "{}"}),
]


def _fill(template: object, value: str) -> object:
    if isinstance(template, dict):
        return {name: _fill(each, value) for name, each in template.items()}
    return value


@pytest.mark.parametrize("first", range(len(SOURCES)))
async def test_first_session_id_found_wins(client, engine, tools, first):
    """Of several places that name a session, the earliest in the documented order decides."""
    headers: dict[str, str] = {}
    fields: dict[str, object] = {}
    for rank, (kind, place) in list(enumerate(SOURCES))[first:]:
        if kind == "header":
            headers[place] = f"id-{rank}"
        else:
            fields.update(_fill(place, f"id-{rank}"))
    await client.post("/v1/chat/completions", json=tools.chat_body(**fields), headers=headers)
    assert engine.requests[0].session == SessionKey("default", f"id-{first}")
    # The last four are those of clients that send the whole conversation every time.
    assert engine.requests[0].resends_history is (first >= len(SOURCES) - 4)


async def test_conversation_may_be_an_object(client, engine, tools):
    """OpenAI's other form, {"conversation": {"id": ...}}, names the same session."""
    await client.post("/v1/chat/completions", json=tools.chat_body(conversation={"id": "abc"}))
    assert engine.requests[0].session == SessionKey("default", "abc")


async def test_foreign_ids_are_hashed_into_valid_ones(client, engine, tools):
    """Another program's id that is not valid here maps to one id, always the same, and another id to another."""
    for chat_id in ("chat 1/ä", "chat 1/ä", "chat 2"):
        await client.post(
            "/v1/chat/completions", json=tools.chat_body(), headers={"X-OpenWebUI-Chat-Id": chat_id.encode("latin-1")}
        )
    ids = [request.session.session_id for request in engine.requests]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].startswith("h-")
    assert len(ids[0]) == 34


async def test_every_parameter_of_the_stock_client_is_known():
    """Each parameter that OpenAI's client can send is served, ignored or refused by name, never by surprise."""
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase

    from hope_server.api.chat_body import ChatBody

    sent = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert sent - ChatBody.rules.names - ChatBody.model_fields.keys() == set()


async def test_what_vllm_router_adds_to_a_chat_changes_nothing(client, engine, tools):
    """Version 0.1.17 writes its own defaults into every body that it passes on (docs/DEPLOY.md)."""
    added = {
        "continue_final_message": False,
        "ignore_eos": False,
        "include_reasoning": True,
        "logprobs": False,
        "no_stop_trim": False,
        "return_hidden_states": False,
        "separate_reasoning": True,
        "skip_special_tokens": True,
        "stream_reasoning": True,
    }
    plain = await client.post("/v1/chat/completions", json=tools.chat_body())
    routed = await client.post("/v1/chat/completions", json=tools.chat_body(**added))
    assert (plain.status_code, routed.status_code) == (200, 200)
    first, second = engine.requests
    assert replace(first, attempt=second.attempt) == second

"""The five text cases of the Open Responses compliance suite (www.openresponses.org), with our own checks of the shape.

The suite's sixth case sends an image, which a text model refuses.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
from cases import MODEL, base_url, case, run
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

# What the specification requires of every response resource, present even where it is null.
REQUIRED = [
    "id",
    "object",
    "created_at",
    "completed_at",
    "status",
    "incomplete_details",
    "model",
    "previous_response_id",
    "instructions",
    "output",
    "error",
    "tools",
    "tool_choice",
    "truncation",
    "parallel_tool_calls",
    "text",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "temperature",
    "reasoning",
    "usage",
    "max_output_tokens",
    "max_tool_calls",
    "store",
    "background",
    "service_tier",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
]
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def message(role: str, text: str) -> dict[str, Any]:
    """One message item."""
    return {"type": "message", "role": role, "content": text}


def check(resource: dict[str, Any]) -> dict[str, Any]:
    """Check the resource against the list and against OpenAI's own types; returns it."""
    missing = [name for name in REQUIRED if name not in resource]
    assert not missing, f"missing: {', '.join(missing)}"
    Response.model_validate(resource, strict=False)
    assert resource["object"] == "response" and resource["status"] in ("completed", "incomplete")
    assert resource["output"], "no output"
    assert {"input_tokens_details", "output_tokens_details"} <= resource["usage"].keys()
    for item in resource["output"]:
        assert item["id"] and item["type"] in ("message", "function_call")
        for part in item.get("content", []):
            assert {"type", "text", "annotations", "logprobs"} <= part.keys()
    return resource


def create(client: httpx.Client, items: list[Any], **options: Any) -> dict[str, Any]:
    """Post and check a response."""
    body = {"model": MODEL, "input": items, "max_output_tokens": 60, "temperature": 0, **options}
    answer = client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return check(answer.json())


@case
def basic_text_response(client: httpx.Client) -> None:
    """Basic text response."""
    create(client, [message("user", "Say hello in exactly 3 words.")])


@case
def streaming_response(client: httpx.Client) -> None:
    """Streaming response: every event fits its type, the last holds the whole resource."""
    body = {"model": MODEL, "input": [message("user", "Count from 1 to 5.")], "stream": True, "max_output_tokens": 40}
    with client.stream("POST", "/v1/responses", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = list(answer.iter_lines())
    names = [line[7:] for line in lines if line.startswith("event: ")]
    data = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert [event["type"] for event in data] == names
    for event in data:
        EVENTS.validate_python(event)
    check(data[-1]["response"])


@case
def system_prompt(client: httpx.Client) -> None:
    """System prompt."""
    create(
        client, [message("system", "You are a pirate. Always respond in pirate speak."), message("user", "Say hello.")]
    )


@case
def tool_calling(client: httpx.Client) -> None:
    """Tool calling: the response has a function_call item."""
    tool = {
        "type": "function",
        "name": "get_weather",
        "description": "Get the current weather for a location",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "maxLength": 30}},
            "required": ["location"],
        },
    }
    # The suite leaves the choice to a large model; a small one is told to call.
    found = create(
        client, [message("user", "What's the weather like in San Francisco?")], tools=[tool], tool_choice="required"
    )
    assert "function_call" in [item["type"] for item in found["output"]]


@case
def multi_turn_conversation(client: httpx.Client) -> None:
    """Multi-turn conversation: assistant and user messages as input."""
    create(
        client,
        [
            message("user", "My name is Alice."),
            message("assistant", "Hello Alice! Nice to meet you. How can I help you today?"),
            message("user", "What is my name?"),
        ],
    )


if __name__ == "__main__":
    with httpx.Client(base_url=base_url(), timeout=120) as plain:
        sys.exit(run(client=plain))

"""The stock `openai` client: text completions and responses."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
from cases import MODEL, base_url, case, raised, run
from pydantic import BaseModel

TOOL: Any = {
    "type": "function",
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "strict": True,
}
Client = openai.OpenAI


def respond(client: Client, given: Any, **options: Any) -> Any:
    """A short response."""
    limits = {"max_output_tokens": 24, "temperature": 0, **options}
    return client.responses.create(model=MODEL, input=given, **limits)


@case
def a_text_is_completed(client: Client) -> None:
    """Completions: whole, streamed, several, with log-probabilities."""
    options: Any = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(**options)
    assert whole.object == "text_completion" and whole.choices[0].text and whole.usage.completion_tokens <= 6
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True))
    assert streamed == whole.choices[0].text
    several = client.completions.create(**options, n=2, logprobs=2)
    assert [choice.index for choice in several.choices] == [0, 1]
    told = several.choices[0].logprobs
    assert told and "".join(told.tokens) == several.choices[0].text and len(told.top_logprobs[0]) >= 2
    echoed = client.completions.create(**options, echo=True)
    assert echoed.choices[0].text == options["prompt"] + whole.choices[0].text


@case
def a_response(client: Client) -> None:
    """Responses: a text, its usage and status."""
    answer = respond(client, "Say hello.", instructions="Be brief.")
    assert answer.id.startswith("resp_") and answer.status in ("completed", "incomplete") and answer.output_text
    assert answer.instructions == "Be brief." and answer.usage.total_tokens > 0
    assert answer.output[0].type == "message" and answer.output[0].content[0].type == "output_text"


@case
def a_streamed_response(client: Client) -> None:
    """Responses: events in order, numbered, the text in pieces."""
    events = list(respond(client, "Say hello.", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    for kind in (
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ):
        assert f"response.{kind}" in kinds


@case
def the_stream_helper(client: Client) -> None:
    """Responses: the client's own stream helper puts the answer together."""

    class Hello(BaseModel):
        is_polite: bool

    # A form that ends, as the helper takes nothing that was cut off.
    given = {
        "model": MODEL,
        "input": "Say hello.",
        "text_format": Hello,
        "max_output_tokens": 60,
        "temperature": 0,
    }
    with client.responses.stream(**given) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.output_text.delta" in kinds and isinstance(final.output_parsed, Hello)


@case
def a_conversation_goes_on(client: Client) -> None:
    """Responses: previous_response_id goes on, and from an older response a second conversation branches off."""
    first = respond(client, "My boat is called Petrel.")
    second = respond(client, "What is my boat called?", previous_response_id=first.id)
    assert second.previous_response_id == first.id and second.id != first.id
    branch = respond(client, "My other boat is called Gull.", previous_response_id=first.id)
    third = respond(client, "And now?", previous_response_id=second.id)
    sessions = [answer.model_extra["memory"]["session_id"] for answer in (first, second, branch, third)]
    assert sessions[0] == sessions[1] == sessions[3] != sessions[2]
    assert second.model_extra["memory"]["turn"] == branch.model_extra["memory"]["turn"] == 2


@case
def what_is_not_stored_is_not_found(client: Client) -> None:
    """Responses: store=False learns nothing, and an unknown previous id is a 404."""
    answer = respond(client, "Say hello.", store=False)
    assert not answer.model_extra.get("memory")
    for unknown in (answer.id, "resp_bm9ib2R5LmFhYWFhYWFhYWFhYQ"):
        found = raised(
            openai.NotFoundError, lambda unknown=unknown: respond(client, "And?", previous_response_id=unknown)
        )
        assert found.code


@case
def a_response_calls_a_tool(client: Client) -> None:
    """Responses: a function is called, and its output taken."""
    options = {"tools": [TOOL], "max_output_tokens": 120}
    answer = respond(client, "Add 2 and 3.", tool_choice="required", **options)
    call = answer.output[-1]
    assert call.type == "function_call" and call.name == "add" and set(json.loads(call.arguments)) == {"a", "b"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
    last = respond(client, [output], previous_response_id=answer.id, **options)
    assert last.output_text or last.output


@case
def a_response_of_a_class(client: Client) -> None:
    """Responses: `parse` gives an object of the class that was asked for."""

    class Boat(BaseModel):
        has_sails: bool
        length: int

    question = "The boat has sails and is 9 metres long."
    answer = client.responses.parse(model=MODEL, input=question, text_format=Boat, max_output_tokens=200, temperature=0)
    assert isinstance(answer.output_parsed, Boat), answer.output_text


if __name__ == "__main__":
    with Client(base_url=f"{base_url()}/v1", api_key="none") as stock:
        sys.exit(run(client=stock))

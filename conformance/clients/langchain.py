"""LangChain's `ChatOpenAI`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from cases import MODEL, base_url, case, run, session_id
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


def model(url: str, **options: Any) -> ChatOpenAI:
    """A short greedy model."""
    given = {"max_tokens": 16, "temperature": 0, **options}
    return ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", **given)


@case
def it_answers(url: str) -> None:
    """invoke: an answer with its usage."""
    answer = model(url).invoke([SystemMessage("Be brief."), HumanMessage("Say hello.")])
    assert answer.content and answer.usage_metadata["total_tokens"] > 0
    assert answer.response_metadata["finish_reason"] in ("stop", "length")


@case
def it_streams(url: str) -> None:
    """stream: pieces, with the usage at the end."""
    whole = model(url).invoke("Say hello.")
    pieces = list(model(url, stream_usage=True).stream("Say hello."))
    assert "".join(piece.content for piece in pieces) == whole.content
    assert sum(piece.usage_metadata["total_tokens"] for piece in pieces if piece.usage_metadata) > 0


@case
def it_answers_many(url: str) -> None:
    """batch and abatch: several at once."""
    assert all(answer.content for answer in model(url).batch(["Say one.", "Say two."]))
    assert all(answer.content for answer in asyncio.run(model(url).abatch(["Say one.", "Say two."])))


@case
def it_remembers(url: str) -> None:
    """A session by header: a growing history is read once."""
    chat = model(url, default_headers={"X-Session-ID": session_id("lc")})
    first = chat.invoke([HumanMessage("My canoe is yellow.")])
    history = [HumanMessage("My canoe is yellow."), AIMessage(first.content), HumanMessage("What colour?")]
    second = chat.invoke(history)
    assert second.usage_metadata["input_tokens"] < 40


@case
def it_calls_tools(url: str) -> None:
    """bind_tools: a call that fits, and a turn with its result."""
    bound = model(url, max_tokens=100).bind_tools([get_weather], tool_choice="any")
    question = HumanMessage("What is the weather in Oslo?")
    answer = bound.invoke([question])
    call = answer.tool_calls[0]
    assert call["name"] == "get_weather" and isinstance(call["args"]["city"], str)
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    assert isinstance(model(url).bind_tools([get_weather]).invoke([question, answer, result]), AIMessage)


@case
def it_streams_tool_calls(url: str) -> None:
    """bind_tools, streamed: the pieces add up to the call."""
    bound = model(url, max_tokens=100).bind_tools([get_weather], tool_choice="get_weather")
    total: Any = None
    for piece in bound.stream("What is the weather in Oslo?"):
        total = piece if total is None else total + piece
    assert total.tool_calls[0]["name"] == "get_weather" and "city" in total.tool_calls[0]["args"]


@case
def it_structures(url: str) -> None:
    """with_structured_output: by schema and by function, an object of the class."""

    class Pet(BaseModel):
        """A pet."""

        name: str = Field(max_length=12)
        legs: int

    for method in ("json_schema", "function_calling"):
        chain = model(url, max_tokens=200).with_structured_output(Pet, method=method)
        assert isinstance(chain.invoke("Rex is a dog with four legs."), Pet), method


@case
def it_uses_responses(url: str) -> None:
    """The Responses API, with previous_response_id."""
    chat = model(url, use_responses_api=True)
    first = chat.invoke("My canoe is yellow.")
    second = chat.invoke("What colour is it?", previous_response_id=first.response_metadata["id"])
    assert second.text and second.response_metadata["id"] != first.response_metadata["id"]


if __name__ == "__main__":
    sys.exit(run(url=base_url()))

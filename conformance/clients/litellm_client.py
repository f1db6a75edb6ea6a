"""LiteLLM as a library, through its `openai` provider."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm
from cases import base_url, case, raised, run, session_id

MODEL = "openai/smollm2-135m-instruct"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(text: str) -> list[Any]:
    """One message."""
    return [{"role": "user", "content": text}]


def options(url: str, **given: Any) -> dict[str, Any]:
    """What every call says."""
    return {"model": MODEL, "api_base": f"{url}/v1", "api_key": "none", "max_tokens": 16, "temperature": 0, **given}


@case
def it_completes(url: str) -> None:
    """completion: an answer with its usage."""
    answer = litellm.completion(messages=ask("Say hello."), **options(url))
    assert answer.choices[0].message.content and answer.usage.total_tokens > 0
    assert answer.choices[0].finish_reason in ("stop", "length")


@case
def it_streams(url: str) -> None:
    """completion, streamed and put together again by LiteLLM's own builder."""
    whole = litellm.completion(messages=ask("Say hello."), **options(url))
    chunks = list(litellm.completion(messages=ask("Say hello."), stream=True, **options(url)))
    built = litellm.stream_chunk_builder(chunks, messages=ask("Say hello."))
    assert built.choices[0].message.content == whole.choices[0].message.content
    assert built.choices[0].finish_reason == whole.choices[0].finish_reason


@case
def it_completes_from_asyncio(url: str) -> None:
    """acompletion: several at once."""

    async def work() -> list[Any]:
        jobs = [litellm.acompletion(messages=ask(f"Say {n}."), **options(url)) for n in range(3)]
        return await asyncio.gather(*jobs)

    assert all(answer.choices[0].message.content for answer in asyncio.run(work()))


@case
def its_session_header_is_known(url: str) -> None:
    """A session by LiteLLM's own header; a history that is resent is read once."""
    headers = {"x-litellm-session-id": session_id("ll")}
    given = options(url, extra_headers=headers)
    first = litellm.completion(messages=ask("My kayak is red."), **given)
    reply = {"role": "assistant", "content": first.choices[0].message.content}
    second = litellm.completion(messages=[*ask("My kayak is red."), reply, *ask("What colour?")], **given)
    assert second.usage.prompt_tokens < 40


@case
def it_calls_tools(url: str) -> None:
    """Tools: a required call that fits."""
    answer = litellm.completion(
        messages=ask("What is the weather in Oslo?"),
        tools=[TOOL],
        tool_choice="required",
        **options(url, max_tokens=100),
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and "city" in json.loads(call.function.arguments)


@case
def it_completes_text(url: str) -> None:
    """text_completion: plain text goes on."""
    given = options(url, model="text-completion-openai/smollm2-135m-instruct")
    assert litellm.text_completion(prompt="The capital of France is", **given).choices[0].text


@case
def its_errors_are_told(url: str) -> None:
    """Errors: a wrong value is its BadRequestError, a missing model its NotFoundError."""
    for given, kind in (
        (options(url, temperature=9), litellm.BadRequestError),
        (options(url, model="openai/nope"), litellm.NotFoundError),
    ):
        raised(kind, lambda given=given: litellm.completion(messages=ask("x"), num_retries=0, **given))


if __name__ == "__main__":
    sys.exit(run(url=base_url()))

"""The stock `openai` client: chat completions, whole and streamed, with everything that they can ask for."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import openai
from cases import MODEL, base_url, case, raised, run, session_id
from pydantic import BaseModel

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
Client = openai.OpenAI


def ask(text: str, role: str = "user") -> Any:
    """One message."""
    return {"role": role, "content": text}


def chat(client: Client, *messages: Any, **options: Any) -> Any:
    """A short greedy chat completion."""
    given = {"max_tokens": 16, "temperature": 0, **options}
    return client.chat.completions.create(model=MODEL, messages=list(messages), **given)


def memory(answer: Any) -> dict[str, Any]:
    """The receipt of an answer."""
    found: dict[str, Any] = answer.model_extra["memory"]
    return found


@case
def models_are_listed(client: Client) -> None:
    """Models: listed and found by id, with all four fields."""
    listed = list(client.models.list())
    assert [model.id for model in listed] == [MODEL]
    found = client.models.retrieve(MODEL)
    assert (found.id, found.object) == (MODEL, "model") and found.created > 0 and found.owned_by


@case
def a_whole_answer(client: Client) -> None:
    """Chat: a whole answer with its usage and request id."""
    answer = chat(client, ask("Say hello."))
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == MODEL
    assert choice.message.role == "assistant" and choice.message.content and choice.index == 0
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer._request_id


@case
def a_streamed_answer(client: Client) -> None:
    """Chat: a stream is the whole answer in pieces, with one end and the usage."""
    whole = chat(client, ask("Say hello."), seed=1)
    chunks = list(chat(client, ask("Say hello."), seed=1, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert text == whole.choices[0].message.content and ends == [whole.choices[0].finish_reason]
    assert not chunks[-1].choices and chunks[-1].usage == whole.usage


@case
def the_stream_helper(client: Client) -> None:
    """Chat: the client's own stream helper puts the answer together."""
    # The helper takes no answer that was cut off: the likeliest one ends, a drawn one may not.
    given = {"model": MODEL, "messages": [ask("Say hello.")], "max_tokens": 200, "temperature": 0}
    with client.chat.completions.stream(**given) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in events and final.choices[0].message.content


@case
def an_answer_from_asyncio(url: str) -> None:
    """Chat: the asyncio client, several at once."""

    async def work() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            jobs = [
                client.chat.completions.create(model=MODEL, messages=[ask(f"Count to {n}.")], max_tokens=8)
                for n in range(3)
            ]
            return await asyncio.gather(*jobs)

    answers = asyncio.run(work())
    assert len({answer.id for answer in answers}) == 3 and all(answer.choices[0].message.content for answer in answers)


@case
def a_session_by_header(client: Client) -> None:
    """Sessions: a header, only the new message, and a receipt."""
    headers = {"X-Session-ID": session_id()}
    first = chat(client, ask("Mira keeps the violin in the red barn."), extra_headers=headers)
    second = chat(client, ask("Where is the violin?"), extra_headers=headers)
    assert memory(first)["tokens_learned"] > 0
    assert memory(second)["version_before"] == memory(first)["version_after"]
    assert memory(second)["turn"] == 2 and second.usage.prompt_tokens < 40


@case
def a_history_sent_again(client: Client) -> None:
    """Sessions: a history that is sent again is read and learned once."""
    headers = {"X-Session-ID": session_id()}
    history = [ask("The ferry leaves at noon.")]
    first = chat(client, *history, extra_headers=headers)
    history += [ask(first.choices[0].message.content, "assistant"), ask("When does it leave?")]
    second = chat(client, *history, extra_headers=headers)
    alone = chat(client, ask("When does it leave?"), extra_headers={"X-Session-ID": session_id()})
    assert second.usage.prompt_tokens <= alone.usage.prompt_tokens + 2
    assert memory(second)["version_before"] == memory(first)["version_after"]


@case
def a_session_in_the_body(client: Client) -> None:
    """Sessions: by metadata and by extra_body, read-only where asked."""
    name = session_id()
    first = chat(client, ask("My dog is called Rex."), metadata={"session_id": name})
    second = chat(client, ask("And my cat?"), extra_body={"session_id": name, "memory": {"mode": "read"}})
    assert memory(second)["version_before"] == memory(second)["version_after"] == memory(first)["version_after"]


@case
def several_choices(client: Client) -> None:
    """Chat: n = 3, each with an index and an end, whole and streamed."""
    options = {"n": 3, "temperature": 1.0, "seed": 5}
    answer = chat(client, ask("Name a colour."), **options)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]
    assert all(choice.finish_reason and choice.message.content for choice in answer.choices)
    chunks = list(chat(client, ask("Name a colour."), stream=True, **options))
    texts, ends = ["", "", ""], []
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert all(texts) and sorted(ends) == [0, 1, 2]


@case
def log_probabilities(client: Client) -> None:
    """Chat: log-probabilities of the tokens and of the likeliest others."""
    answer = chat(client, ask("Say hello."), logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).strip() == answer.choices[0].message.content.strip()
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)
    # Greedy: the token drawn is the likeliest.
    assert all(token.top_logprobs[0].token == token.token for token in tokens)


@case
def stops_seeds_and_biases(client: Client) -> None:
    """Chat: stop, seed, logit_bias, penalties and both token limits do what they say."""
    whole = chat(client, ask("Count: one, two, three"), max_tokens=24).choices[0].message.content
    word = whole.split()[1]
    cut = chat(client, ask("Count: one, two, three"), max_tokens=24, stop=[word]).choices[0]
    assert cut.message.content == whole[: whole.index(word)] and cut.finish_reason == "stop"
    draws = [chat(client, ask("Tell a story."), temperature=1.0, seed=7).choices[0].message.content for _ in range(2)]
    assert draws[0] == draws[1]
    short = chat(client, ask("Tell a story."), max_tokens=openai.NOT_GIVEN, max_completion_tokens=3)
    assert short.usage.completion_tokens == 3 and short.choices[0].finish_reason == "length"
    usual = chat(client, ask("Say yes."), max_tokens=4, logprobs=True).choices[0]
    penalised = chat(client, ask("Say yes."), max_tokens=4, frequency_penalty=1.5, presence_penalty=1.0)
    assert usual.message.content and penalised.choices[0].message.content
    biased = chat(client, ask("Say yes."), max_tokens=4, logit_bias={"1000": 100}, logprobs=True).choices[0]
    assert len({token.token for token in biased.logprobs.content}) == 1


@case
def json_by_schema(client: Client) -> None:
    """Structured output: `parse` gives an object of the class that was asked for."""

    class Pet(BaseModel):
        name: str
        is_dog: bool
        age: int

    answer = client.chat.completions.parse(
        model=MODEL, messages=[ask("Rex is a dog of four years.")], response_format=Pet, max_tokens=200, temperature=0
    )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Pet), answer.choices[0].message.content


@case
def any_json_object(client: Client) -> None:
    """Structured output: json_object gives an object."""
    answer = chat(client, ask("A person as JSON with a name."), response_format={"type": "json_object"}, max_tokens=400)
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.message.content.lstrip().startswith("{")


@case
def a_tool_is_called(client: Client) -> None:
    """Tools: a required call fits its schema, and its result is taken."""
    question = ask("What is the weather in Oslo, in C?")
    answer = chat(client, question, tools=[WEATHER], tool_choice="required", max_tokens=120)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls", choice
    call = choice.message.tool_calls[0]
    given = json.loads(call.function.arguments)
    assert call.id and call.type == "function" and call.function.name == "get_weather"
    assert set(given) == {"city", "unit"} and given["unit"] in ("C", "F")
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain, 8 degrees."}
    last = chat(client, question, choice.message.model_dump(exclude_none=True), result, tools=[WEATHER])
    assert last.choices[0].message.content


@case
def a_tool_call_is_streamed(client: Client) -> None:
    """Tools: a named function's call comes in deltas with index, id and name first."""
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    options = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 120}
    whole = chat(client, ask("Weather in Rome?"), **options).choices[0].message.tool_calls
    chunks = list(chat(client, ask("Weather in Rome?"), stream=True, **options))
    deltas = [call for chunk in chunks for one in chunk.choices for call in one.delta.tool_calls or []]
    assert deltas[0].id and deltas[0].function.name == "get_weather"
    first = "".join(delta.function.arguments or "" for delta in deltas if delta.index == 0)
    assert json.loads(first) == json.loads(whole[0].function.arguments)
    assert [one.finish_reason for chunk in chunks for one in chunk.choices if one.finish_reason] == ["tool_calls"]


@case
def faults_have_their_classes(client: Client) -> None:
    """Errors: a missing model, a wrong value and a missing message are the client's own errors, with code and param."""
    for make, kind, param in (
        (lambda: client.chat.completions.create(model="nope", messages=[ask("x")]), openai.NotFoundError, "model"),
        (lambda: chat(client, ask("x"), temperature=9), openai.BadRequestError, "temperature"),
        (lambda: chat(client), openai.BadRequestError, "messages"),
        (lambda: client.embeddings.create(model=MODEL, input="x"), openai.NotFoundError, None),
    ):
        found = raised(kind, make)
        assert found.code and found.request_id, found
        assert param is None or found.param == param, found.param


if __name__ == "__main__":
    address = base_url()
    with Client(base_url=f"{address}/v1", api_key="none") as stock:
        sys.exit(run(client=stock, url=address))

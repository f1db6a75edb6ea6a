"""The stock OpenAI client, unchanged, over a real socket."""

from __future__ import annotations

import openai
import pytest

from hope_server.engine.turn import SessionKey, TokenText
from hope_server.errors import Overloaded, StoreFull

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "hi"}]
SESSION = {"X-Session-ID": "s1"}


@pytest.fixture
async def stock(listening):
    """The client as a user would build it."""
    async with (
        listening() as (url, _),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def test_whole_answer(stock, engine):
    """It reads a whole answer, its usage, its request id and the receipt as an extra."""
    answer = await stock.chat.completions.create(model="fake-model", messages=MESSAGES, extra_headers=SESSION)
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 14
    assert answer._request_id.startswith("req_")
    assert answer.memory["tokens_learned"] == 9
    assert engine.requests[0].session == SessionKey("default", "s1")


async def test_streamed_answer(stock):
    """It reads a stream to its end, with one reason, the receipt in that chunk, and the usage after it."""
    stream = await stock.chat.completions.create(
        model="fake-model",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers=SESSION,
    )
    chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "Hello"
    assert choices[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in choices] == [None, None, None, "stop"]
    assert chunks[-2].memory["version_after"] == "v1"
    assert chunks[-1].usage.total_tokens == 14


async def test_stream_helper(stock):
    """Its own accumulating stream helper ends with the whole completion."""
    async with stock.chat.completions.stream(model="fake-model", messages=MESSAGES) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == "Hello"


async def test_error_in_a_stream(stock, engine):
    """An error inside a stream raises its APIError with our message and code."""
    engine.script = [TokenText("a"), StoreFull("disk is full")]
    stream = await stock.chat.completions.create(model="fake-model", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="disk is full") as caught:
        _ = [chunk async for chunk in stream]
    assert caught.value.code == "store_full"


async def test_error_classes(stock, engine):
    """Its error classes match ours by status, with code and parameter filled in."""
    with pytest.raises(openai.NotFoundError) as missing:
        await stock.chat.completions.create(model="other", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        await stock.chat.completions.create(model="fake-model", messages=MESSAGES, temperature=3)
    assert (bad.value.code, bad.value.param) == ("invalid_request", "temperature")
    engine.script = [Overloaded(64, 1)]
    with pytest.raises(openai.RateLimitError) as busy:
        await stock.chat.completions.create(model="fake-model", messages=MESSAGES)
    assert busy.value.code == "overloaded"


async def test_models(stock):
    """It lists and retrieves the model."""
    assert [model.id async for model in await stock.models.list()] == ["fake-model"]
    assert (await stock.models.retrieve("fake-model")).owned_by == "hope-server"

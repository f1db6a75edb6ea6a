"""Text completions: shapes, several prompts and replies, what is refused."""

from __future__ import annotations

import openai
import pytest

from hope_server.engine.turn import (
    ReplyFinished,
    SamplingParams,
    SessionKey,
    TextRequest,
    TokenLogprob,
    TokenText,
    TurnFinished,
    Usage,
)

pytestmark = pytest.mark.anyio

PATH = "/v1/completions"
END = TurnFinished("length", Usage(3, 2), None)


async def _post(client, **fields):
    answer = await client.post(PATH, json={"prompt": "Once", **fields})
    assert answer.status_code == 200, answer.text
    return answer


async def test_a_text_goes_on(client, engine):
    """The answer is a text_completion with the text, the reason, usage and receipt; 16 tokens unless told."""
    body = (await _post(client, session_id="s1", temperature=0, stop="\n", logit_bias={"7": -100})).json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["choices"] == [{"text": "Hello", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["total_tokens"] == 14
    assert body["memory"]["version_after"] == "v1"
    asked = engine.requests[0]
    assert isinstance(asked, TextRequest)
    assert (asked.prompt, asked.session) == ("Once", SessionKey("default", "s1"))
    expected = SamplingParams(max_tokens=16, temperature=0, stop=("\n",), logit_bias=((7, -100.0),))
    assert asked.sampling == expected


async def test_a_stream_of_text(client, engine, tools):
    """Chunks hold pieces of the text; the last has the reason and the receipt; the usage follows on request."""
    answer = await _post(client, stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = tools.events(answer.text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hel", "lo", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert chunks[-1]["memory"]["tokens_learned"] == 9
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 14


async def test_the_prompt_is_echoed_on_request(client, tools):
    """With echo the text begins with the prompt, whole and streamed."""
    assert (await _post(client, echo=True)).json()["choices"][0]["text"] == "OnceHello"
    chunks = tools.events((await _post(client, echo=True, stream=True)).text)[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "OnceHello"


async def test_log_probabilities_in_the_older_form(client, engine, tools):
    """Tokens, their log-probabilities, the likeliest ones and where each token stands, in four lists."""
    tops = (TokenLogprob("a", b"a", -0.25), TokenLogprob("b", b"b", -2.0))
    engine.script = [
        TokenText("aé", 0, (TokenLogprob("a", b"a", -0.25, tops), TokenLogprob("é", "é".encode(), -1.0, ()))),
        TokenText("c", 0, (TokenLogprob("c", b"c", -3.0, ()),)),
        END,
    ]
    expected = {
        "tokens": ["a", "é", "c"],
        "token_logprobs": [-0.25, -1.0, -3.0],
        "top_logprobs": [{"a": -0.25, "b": -2.0}, {}, {}],
        "text_offset": [0, 1, 2],
    }
    assert (await _post(client, logprobs=2)).json()["choices"][0]["logprobs"] == expected
    assert engine.requests[0].sampling.top_logprobs == 2
    chunks = tools.events((await _post(client, logprobs=2, stream=True)).text)[:-1]
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert {name: [each for part in found for each in part[name]] for name in expected} == expected


async def test_several_prompts_and_replies_are_numbered_through(client, engine, tools):
    """Choice indices count prompts first; usage is summed; each reply keeps its reason and its echo."""
    engine.script = [
        TokenText("x", 0),
        TokenText("y", 1),
        ReplyFinished(0, "stop"),
        ReplyFinished(1, "length"),
        TurnFinished("stop", Usage(3, 2), None),
    ]
    body = (await _post(client, prompt=["p", "q"], n=2, best_of=2, echo=True)).json()
    assert [request.prompt for request in engine.requests] == ["p", "q"]
    found = [(choice["index"], choice["text"], choice["finish_reason"]) for choice in body["choices"]]
    assert found == [(0, "px", "stop"), (1, "py", "length"), (2, "qx", "stop"), (3, "qy", "length")]
    assert body["usage"]["total_tokens"] == 10
    chunks = tools.events((await _post(client, prompt=["p", "q"], n=2, stream=True)).text)[:-1]
    assert sorted(chunk["choices"][0]["index"] for chunk in chunks) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_single_replies_to_several_prompts(client, engine):
    """With one reply each, every prompt's choice has the reason that its own turn ended with."""
    engine.script = [TokenText("x"), END]
    body = (await _post(client, prompt=["p", "q"])).json()
    assert [(each["text"], each["finish_reason"]) for each in body["choices"]] == [("x", "length")] * 2


BAD = [
    ({"prompt": ["a", "b"], "session_id": "s"}, "prompt", "cannot be learned in one turn"),
    ({"prompt": []}, "prompt", "at least 1"),
    ({"prompt": ""}, "prompt[0]", "is empty"),
    ({"prompt": [1, 2]}, "prompt", "token ids"),
    ({"prompt": [[1]]}, "prompt", "token ids"),
    ({"prompt": ["a"] * 17}, "prompt", "more than 16"),
    ({"prompt": ["a"] * 9, "n": 2}, "n", "18 replies, the limit is 16"),
    ({"prompt": None}, "prompt", "not null"),
    ({"suffix": "end"}, "suffix", "leave it out"),
    ({"best_of": 2}, "best_of", "send n alone"),
    ({"logprobs": 6}, "logprobs", "from 0 to 5"),
    ({"logprobs": True}, "logprobs", "must be a whole number"),
    ({"echo": True, "logprobs": 1}, "logprobs", "/score"),
    ({"messages": []}, "messages", "not a known parameter"),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD, ids=lambda value: str(value)[:40])
async def test_bad_requests_are_named(client, engine, fields, param, message):
    """A bad value answers 400 with its parameter and what to do, and the engine hears nothing."""
    answer = await client.post(PATH, json={"prompt": "x", **fields})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == param
    assert message in error["message"]
    assert engine.requests == []


async def test_hanging_up_ends_the_turn(serving, engine, tools):
    """A client that goes away in the middle leaves no turn behind."""
    import asyncio

    engine.script = [TokenText("a"), asyncio.Event(), END]
    async with serving() as (app, _):
        call = tools.RawCall(app, PATH, b'{"prompt": ["x", "y"], "stream": true}')
        await tools.eventually(lambda: b'"a"' in call.body)
        call.hang_up()
        await asyncio.wait_for(call.task, 5)
        assert engine.num_open == 0
        assert len(engine.requests) == 1


async def test_the_stock_client(listening):
    """openai-python reads whole and streamed completions."""
    async with (
        listening() as (url, _),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as stock,
    ):
        whole = await stock.completions.create(model="fake-model", prompt="Once")
        assert whole.choices[0].text == "Hello"
        stream = await stock.completions.create(model="fake-model", prompt="Once", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello"


def test_every_parameter_of_the_stock_client_is_known():
    """Each parameter that OpenAI's client can send is served, ignored or refused by name."""
    from openai.types.completion_create_params import CompletionCreateParamsBase

    from hope_server.api.completion_body import CompletionBody

    sent = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert sent - CompletionBody.rules.names - CompletionBody.model_fields.keys() == set()

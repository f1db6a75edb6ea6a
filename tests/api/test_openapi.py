"""The API's description: whole, valid, and true of what the app takes and answers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from hope_server.api import create_app
from hope_server.api.openapi_document import build_document
from hope_server.api.openapi_operations import OPERATIONS
from hope_server.engine.turn import SessionKey, TokenLogprob, TokenText
from hope_server.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The description of an app with every route."""

    class NoEngine:
        def stats(self) -> dict[str, float]:
            return {}

    return build_document(create_app(NoEngine(), Settings()).state.routers, "fake-model")


def _validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    registry = Registry().with_resource("urn:document", resource)
    absolute = json.loads(json.dumps(schema).replace('"#/', '"urn:document#/'))
    return Draft202012Validator(absolute, registry=registry)


def _operations(document: dict[str, Any]):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


async def test_the_document_is_served(client):
    """GET /openapi.json answers with the document of the served model."""
    answer = await client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["openapi"] == "3.1.0"
    assert body["components"]["schemas"]["ChatBody"]["properties"]["model"]["enum"] == ["fake-model", None]
    assert (await client.get("/openapi.json")).content == answer.content


def test_every_operation_is_described(document):
    """The table and the routes name the same operations; each has an id of its own, a text and its errors."""
    found = dict(_operations(document))
    assert found.keys() == OPERATIONS.keys()
    ids = [operation["operationId"] for operation in found.values()]
    assert len(set(ids)) == len(ids)
    for name, operation in found.items():
        assert operation["description"], name
        assert [status for status in operation["responses"] if int(status) >= 400], name


def test_every_schema_is_one_and_every_reference_leads_somewhere(document):
    """Schemas obey their metaschema, and no reference dangles."""
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert schema.get("properties") is not None, name
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "#/components/')[1:]}:
        kind, name = reference.split("/")
        assert name in document["components"][kind], reference


def test_every_error_has_the_shape_that_it_is_said_to_have(document):
    """Each documented error names its codes and has an example of OpenAI's shape."""
    for name, response in document["components"]["responses"].items():
        content = response["content"]["application/json"]
        _validator(document, content["schema"]).validate(content["example"])
        assert "code: " in response["description"], name


EXAMPLES = [(name, label) for name, operation in OPERATIONS.items() for label in operation.examples]


@pytest.mark.parametrize(("name", "label"), EXAMPLES)
async def test_every_example_fits_and_is_taken(serving, engine, document, name, label):
    """An example passes its own schema, the app takes it, and the answer has the documented status and shape."""
    operation = dict(_operations(document))[name]
    content = operation["requestBody"]["content"]["application/json"]
    example = content["examples"][label]["value"]
    _validator(document, content["schema"]).validate(example)
    await engine.create_session(SessionKey("default", "ada"))
    method, path = name.split(" ")
    async with serving() as (_, client):
        answer = await client.request(method, path.format(session_id="ada"), json=example)
    shape = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
    _validator(document, shape).validate(answer.json())


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name.startswith(("GET", "DELETE"))])
async def test_every_answer_without_a_body_fits(serving, engine, document, name):
    """What is asked with the parameters' own examples is answered as documented."""
    await engine.create_session(SessionKey("default", "ada"))
    method, path = name.split(" ")
    operation = dict(_operations(document))[name]
    values = {each["name"]: each["example"] for each in operation.get("parameters", []) if "example" in each}
    async with serving() as (_, client):
        answer = await client.request(method, path.format(**{"model_id": "fake-model"} | values))
    assert answer.status_code < 500
    response = operation["responses"][str(answer.status_code)]
    if "$ref" in response:
        response = document["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
    ((media_type, content),) = response["content"].items()
    assert answer.headers["content-type"].split(";")[0] == media_type
    if media_type == "application/json":
        _validator(document, content["schema"]).validate(answer.json())


def _said(text: str) -> TokenText:
    return TokenText(text, 0, (TokenLogprob(text, text.encode(), -0.5, (TokenLogprob(text, b"x", -0.5),)),))


CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
NOW = {"name": "now"}
RICH = [
    (
        "POST /v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "logprobs": True,
            "tools": [{"type": "function", "function": NOW}],
        },
    ),
    ("POST /v1/completions", {"prompt": "x", "logprobs": 1}),
    (
        "POST /v1/responses",
        {"input": "x", "top_logprobs": 1, "conversation": "a", "tools": [{"type": "function", **NOW}]},
    ),
]


@pytest.mark.parametrize(("name", "body"), RICH, ids=lambda value: str(value)[:30])
async def test_rich_answers_fit(serving, engine, document, name, body):
    """Answers with calls, log-probabilities and a receipt of odd numbers fit too, and so do those of no session."""
    receipt = replace(engine.script[-1].receipt, update_norm={"fast": float("nan")}, not_learned="frozen")
    engine.script = [_said("Hm. "), _said(CALL), replace(engine.script[-1], finish_reason="stop", receipt=receipt)]
    operation = dict(_operations(document))[name]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    _validator(document, schema).validate(body)
    async with serving() as (_, client):
        answer = await client.post(name.split(" ")[1], json=body)
    shape = operation["responses"]["200"]["content"]["application/json"]["schema"]
    _validator(document, shape).validate(answer.json())


BODIES = {
    "ChatBody": {"messages": [{"role": "user", "content": "x"}]},
    "CompletionBody": {"prompt": "x"},
    "ResponseBody": {"input": "x"},
    "ScoreBody": {"prompt": "x", "continuations": ["y"]},
    "SnapshotBody": {"tag": "x"},
}
NOT_FITTING = [
    ("ChatBody", {"temperature": 2.1}),
    ("ChatBody", {"top_p": 0}),
    ("ChatBody", {"n": 17}),
    ("ChatBody", {"stop": ["a"] * 5}),
    ("ChatBody", {"stop": ""}),
    ("ChatBody", {"logit_bias": {"x": 1}}),
    ("ChatBody", {"max_tokens": 3, "max_completion_tokens": 4}),
    ("ChatBody", {"top_logprobs": 2}),
    ("ChatBody", {"temprature": 1}),
    ("ChatBody", {"functions": [{"name": "f"}]}),
    ("ChatBody", {"messages": []}),
    ("ChatBody", {"messages": [{"role": "user", "content": None}]}),
    ("ChatBody", {"messages": [{"role": "user"}]}),
    ("ChatBody", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    ("ChatBody", {"memory": {"window": False}}),
    ("ChatBody", {"memory": {"mode": "learn"}}),
    ("ChatBody", {"session_id": "a b"}),
    ("ChatBody", {"conversation": {"name": "x"}}),
    ("ChatBody", {"metadata": {"session_id": 5}}),
    ("ChatBody", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
    ("ChatBody", {"response_format": {"type": "xml"}}),
    ("CompletionBody", {"logprobs": 6}),
    ("CompletionBody", {"echo": True, "logprobs": 1}),
    ("CompletionBody", {"suffix": "x"}),
    ("ResponseBody", {"input": [{"role": "king", "content": "x"}]}),
    ("ResponseBody", {"background": True}),
    ("ResponseBody", {"previous_response_id": "a", "conversation": "b"}),
    ("ScoreBody", {"messages": [{"role": "user", "content": "x"}]}),
    ("SnapshotBody", {"tag": "0" * 32}),
]
FITTING = [
    ("ChatBody", {"max_tokens": 4, "max_completion_tokens": None, "stop": "x", "stream": None, "n": None}),
    ("ChatBody", {"messages": [{"role": "assistant", "content": None, "refusal": "no"}], "temperature": 1}),
    ("ChatBody", {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]}),
    ("ChatBody", {"memory": {"window": False, "mode": "read"}, "conversation": {"id": "x"}, "user": "me"}),
    ("ChatBody", {"functions": [], "function_call": "auto", "min_p": 0, "logit_bias": {"5": -100}}),
    ("ResponseBody", {"input": [{"type": "reasoning"}, {"role": "user", "content": "x"}], "background": False}),
    ("ResponseBody", {"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}),
    ("CompletionBody", {"prompt": ["x", "y"], "echo": True, "best_of": 1}),
]
PATHS = {
    "ChatBody": "/v1/chat/completions",
    "CompletionBody": "/v1/completions",
    "ResponseBody": "/v1/responses",
    "ScoreBody": "/v1/sessions/ada/score",
    "SnapshotBody": "/v1/sessions/ada/snapshots",
}


@pytest.mark.parametrize(("name", "fields"), NOT_FITTING, ids=lambda value: str(value)[:50])
async def test_what_the_schema_excludes_is_refused(client, document, name, fields):
    """The schema states the real bounds: what it excludes answers 400."""
    body = BODIES[name] | fields
    assert not _validator(document, {"$ref": f"#/components/schemas/{name}"}).is_valid(body)
    assert (await client.post(PATHS[name], json=body)).status_code == 400


@pytest.mark.parametrize(("name", "fields"), FITTING, ids=lambda value: str(value)[:50])
async def test_what_the_schema_admits_is_taken(client, document, name, fields):
    """The schema excludes nothing that is served."""
    body = BODIES[name] | fields
    _validator(document, {"$ref": f"#/components/schemas/{name}"}).validate(body)
    assert (await client.post(PATHS[name], json=body)).status_code == 200


async def test_embeddings_are_refused_in_so_many_words(client):
    """POST /v1/embeddings answers 404 in OpenAI's shape and says why."""
    answer = await client.post("/v1/embeddings", json={"input": "x", "model": "fake-model"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "embeddings are not served" in answer.json()["error"]["message"]


async def test_a_model_id_may_have_slashes(client, engine):
    """A model whose name has slashes is found under them, quoted or not."""
    engine.model_id = "lab/hope/base"
    for path in ("lab/hope/base", "lab%2Fhope%2Fbase"):
        assert (await client.get(f"/v1/models/{path}")).json()["id"] == "lab/hope/base"

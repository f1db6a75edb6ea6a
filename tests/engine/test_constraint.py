"""Replies that must have a form: whatever the model would say, what it says has that form."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import make_tokenizer

from hope_server.engine import constraint as module
from hope_server.engine.constraint import Constraint, Grammars, grammar_of
from hope_server.engine.sampler import Sampler
from hope_server.engine.tool_format import split_reply
from hope_server.engine.turn import OutputFormat, SamplingParams, Tool, ToolUse
from hope_server.errors import InternalError, InvalidRequest

TOKENIZER = make_tokenizer()
GRAMMARS = Grammars(TOKENIZER)
NUM_LOGITS = 300
TEXT = OutputFormat()
EOS = 257
TOOLS = (
    Tool(
        "look_up",
        "",
        '{"properties":{"place":{"enum":["barn","shed"]}},"required":["place"],"type":"object",'
        '"additionalProperties":false}',
    ),
    Tool(
        "wait",
        "",
        '{"properties":{"hours":{"type":"integer","minimum":1,"maximum":9}},"type":"object",'
        '"additionalProperties":false}',
    ),
)


def compiled(output_format: OutputFormat = TEXT, tool_use: ToolUse | None = None) -> Constraint:
    """The constraint of a reply at its beginning."""
    found = asyncio.run(GRAMMARS.compile(output_format, tool_use))
    assert found is not None
    return found


def of_schema(schema: object) -> Constraint:
    """The constraint of a JSON schema."""
    return compiled(OutputFormat("json_schema", json.dumps(schema)))


def say(constraint: Constraint, seed: int, max_tokens: int = 4000) -> str:
    """What a model that knows nothing says under a constraint; it ends by itself."""
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), constraint.copy())
    ids: list[int] = []
    while len(ids) < max_tokens:
        token = sampler.sample(torch.randn(NUM_LOGITS, generator=generator))
        if token == EOS:
            return TOKENIZER.decode(ids)
        sampler.observe(token)
        ids.append(token)
    raise AssertionError(f"no end after {max_tokens} tokens: {TOKENIZER.decode(ids)!r}")


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is one of a schema as `schemas` makes them."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    kind = schema["type"]
    if kind == "string":
        return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if kind == "array":
        items = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
        return items and all(fits(item, schema["items"]) for item in value)
    if kind == "object":
        names = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(schema["properties"])
        return names and all(fits(item, schema["properties"][name]) for name, item in value.items())
    return {"boolean": value is True or value is False, "null": value is None}[kind]


def _objects(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.dictionaries(st.text('abc "\\é\n', min_size=1, max_size=4), parts, min_size=1, max_size=3)

    def make(properties: dict[str, Any], num_required: int) -> dict[str, Any]:
        required = sorted(properties)[:num_required]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.builds(make, names, st.integers(0, 3))


def _between(low: str, high: str, top: int) -> st.SearchStrategy[dict[str, int]]:
    ends = st.tuples(st.integers(0, top), st.integers(0, top)).map(sorted)
    return ends.map(lambda pair: {low: pair[0], high: pair[1]})


LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    _between("minLength", "maxLength", 6).map(lambda ends: {"type": "string", **ends}),
    _between("minimum", "maximum", 2000).map(lambda ends: {"type": "integer", **ends}),
    st.lists(st.one_of(st.text('xyzäß"', max_size=4), st.integers(-9, 9)), min_size=1, max_size=4, unique=True).map(
        lambda values: {"enum": values}
    ),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        _objects(parts),
        st.tuples(parts, _between("minItems", "maxItems", 3)).map(
            lambda both: {"type": "array", "items": both[0], **both[1]}
        ),
        st.lists(parts, min_size=1, max_size=2).map(lambda each: {"anyOf": each}),
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(SCHEMAS, st.integers(0, 1000))
def test_a_reply_fits_its_schema(schema: dict[str, Any], seed: int) -> None:
    """Whatever a schema asks for, a model that draws at random says exactly that, and then ends."""
    reply = json.loads(say(of_schema(schema), seed))
    assert fits(reply, schema), reply


@pytest.mark.parametrize("seed", range(10))
def test_any_json_object_is_an_object(seed: int) -> None:
    """Without a schema the reply is still an object; it is cut off where it goes on for too long."""
    sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), compiled(OutputFormat("json_object")))
    # What ends a string or an object is likely, so that the reply ends.
    logits = torch.randn(NUM_LOGITS, generator=torch.Generator().manual_seed(seed))
    logits[TOKENIZER.encode('"') + TOKENIZER.encode("}")] += 4.0
    ids: list[int] = []
    while (token := sampler.sample(logits)) != EOS:
        sampler.observe(token)
        ids.append(token)
        assert len(ids) < 2000
    assert isinstance(json.loads(TOKENIZER.decode(ids)), dict)


def test_only_the_end_is_left_of_a_complete_reply() -> None:
    """Also the ids that the tokenizer does not know, and the other special tokens, are ruled out."""
    constraint = of_schema({"const": "ok"})
    for token in TOKENIZER.encode('"ok"'):
        before = constraint.mask(torch.zeros(NUM_LOGITS))
        assert before[token] == 0 and before[EOS] == -math.inf
        assert (before[256:] == -math.inf).all()
        constraint.accept(token)
    after = constraint.mask(torch.arange(NUM_LOGITS, dtype=torch.float32))
    assert [index for index, value in enumerate(after.tolist()) if value != -math.inf] == [EOS]
    assert after[EOS] == float(EOS)


def test_copies_go_their_own_ways() -> None:
    """What one reply has said does not move another of the same request."""
    first = of_schema({"enum": ["ax", "by"]})
    second = first.copy()
    for token in TOKENIZER.encode('"a'):
        first.accept(token)
    logits = torch.zeros(NUM_LOGITS)
    allowed = [set((each.mask(logits) == 0).nonzero().flatten().tolist()) for each in (first, second)]
    assert allowed == [set(TOKENIZER.encode("x")), set(TOKENIZER.encode('"'))]
    assert torch.equal(logits, torch.zeros(NUM_LOGITS))


def test_white_space_between_tokens_is_bounded() -> None:
    """One space, or a line break with its indentation: a model cannot fill its reply with white space."""
    for text, is_allowed in (('{"a": 1}', True), ('{"a":1}', True), ('{\n  "a": 1\n}', True), ('{"a":  1}', False)):
        constraint = compiled(OutputFormat("json_object"))
        logits = torch.zeros(NUM_LOGITS)
        verdicts = []
        for token in TOKENIZER.encode(text):
            verdicts.append(float(constraint.mask(logits)[token]) == 0)
            if not verdicts[-1]:
                break
            constraint.accept(token)
        assert all(verdicts) is is_allowed, text


def test_a_failed_model_is_not_hidden_by_the_mask() -> None:
    """A logit that is no number ends the turn also where its token is ruled out."""
    logits = torch.zeros(NUM_LOGITS)
    logits[299] = math.nan
    with pytest.raises(InternalError):
        Sampler(SamplingParams(), of_schema({"const": 1})).sample(logits)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "is no JSON"),
        ("[1]", "is a list"),
        ("true", "is a bool"),
        ('{"type":"nope"}', "Invalid type: nope"),
        ('{"not":{"type":"string"}}', "Unimplemented keys"),
        ('{"type":"string","pattern":"(?=a)b"}', "look-ahead"),
        ('{"$ref":"http://example.org/schema"}', "example.org"),
        ('{"anyOf":[]}', "Unsatisfiable"),
        ('{"type":"array","items":' * 300 + "{}" + "}" * 300, "recursion limit"),
        ("[" * 100_000, "bytes of schema, the limit is 65,536"),
        ("[" * 50_000, "is no JSON"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(schema: str, reason: str) -> None:
    """With what is wrong in one line, and the field that is at fault."""
    with pytest.raises(InvalidRequest, match=reason) as caught:
        compiled(OutputFormat("json_schema", schema))
    assert caught.value.param == "response_format"
    assert "\n" not in caught.value.message and len(caught.value.message) < 500


def test_a_grammar_that_grows_too_complex_ends_the_turn() -> None:
    """What only shows while it is followed is told in the same words."""
    constraint = of_schema({"type": "object", "properties": {f"p{index}": {"type": "string"} for index in range(1000)}})
    constraint.mask(torch.zeros(NUM_LOGITS))
    with pytest.raises(InvalidRequest, match=r"grew too complex while it was followed: .*max is 2000") as caught:
        constraint.accept(TOKENIZER.encode("{")[0])
    assert caught.value.param == "response_format"


@pytest.mark.anyio
async def test_compiling_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema that takes too long is refused, and the event loop runs on meanwhile."""
    monkeypatch.setattr(module, "COMPILE_SECONDS", 0.05)
    grammars = Grammars(TOKENIZER)
    monkeypatch.setattr(grammars, "_compile", lambda *_: time.sleep(0.5))
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match=r"more than 0.05 seconds"):
        await grammars.compile(OutputFormat("json_object"), None)
    assert time.monotonic() - began < 0.4


@pytest.mark.parametrize("tool_use", [None, ToolUse(TOOLS), ToolUse(TOOLS, "none")])
def test_a_free_reply_has_no_constraint(tool_use: ToolUse | None) -> None:
    """Text without a form, with tools or without."""
    assert grammar_of(OutputFormat(), tool_use) is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "tool_use", [ToolUse(TOOLS, "required"), ToolUse(TOOLS, "function", "wait"), ToolUse(TOOLS, "required", "", False)]
)
def test_demanded_calls_are_made(tool_use: ToolUse, seed: int) -> None:
    """The reply is calls of the tools that may be called, and nothing else."""
    content, calls = split_reply(say(compiled(OutputFormat("json_object"), tool_use), seed))
    assert content == "" and 1 <= len(calls) <= (8 if tool_use.is_parallel else 1)
    assert {call.name for call in calls} <= ({"wait"} if tool_use.choice == "function" else {"look_up", "wait"})


def test_with_a_format_and_tools_the_reply_is_an_answer_or_calls() -> None:
    """Both occur; the answer has the format."""
    constraint = compiled(OutputFormat("json_schema", '{"enum": ["red", "blue"]}'), ToolUse(TOOLS))
    replies = [split_reply(say(constraint, seed)) for seed in range(12)]
    answers = {content for content, calls in replies if not calls}
    assert answers <= {'"red"', '"blue"'} and answers
    assert any(calls for _, calls in replies)


def test_tools_whose_arguments_cannot_be_followed_are_refused() -> None:
    """The fault is the tools'."""
    tool = Tool("f", "", '{"type":"object","properties":{"a":{"type":"nope"}}}')
    with pytest.raises(InvalidRequest, match="Invalid type: nope") as caught:
        compiled(tool_use=ToolUse((tool,), "required"))
    assert caught.value.param == "tools"

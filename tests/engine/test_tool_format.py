"""Tool calls as text: reading them back, whole or in any pieces, writing them canonically, and forcing them."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from hope_server.engine.tool_format import (
    MAX_PARALLEL_CALLS,
    CallArguments,
    CallBegun,
    Content,
    ReplyParser,
    render_calls,
    split_reply,
    tool_grammar,
    tools_text,
)
from hope_server.engine.turn import Message, Tool, ToolCall, ToolUse

WEATHER = Tool(
    "get_weather",
    "Say the weather",
    json.dumps({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
)
CLOCK = Tool("clock")
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
FOUND = ToolCall("f", '{"a": 1}')

REPLIES = [
    ("Hello there. ", "Hello there. ", ()),
    (CALL, "", (FOUND,)),
    (f"  {CALL}\n", "", (FOUND,)),
    (f"Let me see.\n\n{CALL}\n{CALL}", "Let me see.", (FOUND, FOUND)),
    (f"a\n{CALL}\nb", "a\nb", (FOUND,)),
    (f"{CALL}\nb ", "b ", (FOUND,)),
    ('<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>', "", (FOUND,)),
    (
        '<tool_call>{"name": "f", "arguments": {"a": "}{\\"</tool_call>", "b": {"c": {}}}}</tool_call>',
        "",
        (ToolCall("f", '{"a": "}{\\"</tool_call>", "b": {"c": {}}}'),),
    ),
    ('<tool_call>{"name": "f", "arguments": {"ü": "\\u00e4🎻"}}</tool_call>', "", (ToolCall("f", '{"ü": "ä🎻"}'),)),
    ('<tool_call>{"name": "f"}</tool_call>', "", (ToolCall("f", "{}"),)),
    ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool', "", (FOUND,)),
    ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}', "", (FOUND,)),
]
MALFORMED = [
    '<tool_call>\n{"name": "f", "arguments": {"a": "lon',
    "<tool_call>",
    "<tool_call>\n",
    "a <tool_ca",
    "a <",
    "<tool_call>no object</tool_call>",
    '<tool_call>{"name": "f", "arguments": {}} more</tool_call>',
    '<tool_call>{"name": "f", "arguments": "text"}</tool_call>',
    '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "parameters": {}}</tool_call>',
    '<tool_call>{"arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>',
    '<tool_call>{"name": "f" "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 100_000 + "1" + "}" * 100_001 + "</tool_call>",
    "</tool_call>",
]


@pytest.mark.parametrize(("text", "content", "calls"), REPLIES)
def test_a_reply_is_split_into_content_and_calls(text, content, calls):
    """Calls are read out with their arguments as strict JSON; the rest, without the white space around calls, stays."""
    assert split_reply(text) == (content, calls)


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: text[:60])
def test_what_only_resembles_a_call_stays_content(text):
    """Text that is no whole call is given back as it was, to the last character."""
    assert split_reply(text) == (text, ())


def test_a_call_inside_a_broken_one_is_found():
    """After a marker that begins no call the search goes on right behind it."""
    assert split_reply(f"<tool_call>oh {CALL}") == ("<tool_call>oh", (FOUND,))


PIECES = [
    "<tool_call>",
    "</tool_call>",
    CALL,
    "<tool",
    "\n",
    " ",
    '{"name": "f", "arguments": {',
    '"',
    "\\",
    "}",
    "ä🎻",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join)


def _read(pieces: list[str]) -> list[object]:
    """The events of a text pushed in pieces, with neighbouring content joined."""
    parser = ReplyParser()
    found = [event for piece in pieces for event in parser.push(piece)] + parser.flush()
    joined: list[object] = []
    for event in found:
        if isinstance(event, Content) and joined and isinstance(joined[-1], Content):
            joined[-1] = Content(joined[-1].text + event.text)
        else:
            joined.append(event)
    return joined


@given(TEXTS, st.data())
def test_any_split_gives_the_same_events(text, data):
    """However a text is cut, the parser finds what it finds in the whole, and what split_reply returns."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert _read(pieces) == _read([text]) == _read(list(text))
    content, calls = split_reply(text)
    events = _read(pieces)
    assert "".join(event.text for event in events if isinstance(event, Content)) == content
    assert tuple(event.name for event in events if isinstance(event, CallBegun)) == tuple(c.name for c in calls)


@given(TEXTS)
def test_a_text_without_calls_is_kept_whole(text):
    """Where no call is found, content is the text itself."""
    content, calls = split_reply(text)
    assert calls or content == text


@given(TEXTS)
def test_the_canonical_form_of_a_reply_is_that_of_its_parts(text):
    """A reply given back as plain text and one given back in parts are written the same, and stay so."""
    written = render_calls(Message("assistant", text))
    content, calls = split_reply(text)
    assert render_calls(Message("assistant", content, calls)) == written
    if calls:
        assert render_calls(Message("assistant", written)) == written
        assert split_reply(written)[1] == calls


def test_calls_are_written_in_one_form():
    """Arguments are written again from what they mean; other roles' text is not looked into."""
    message = Message("assistant", "Well.", (ToolCall("f", '{"a":1,"b":[ ]}'), ToolCall("g", "")))
    assert render_calls(message) == (
        'Well.\n<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": []}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    )
    squeezed = CALL.replace(" ", "")
    assert render_calls(Message("user", squeezed)) == squeezed
    assert '"arguments": "not json"' in render_calls(Message("assistant", "", (ToolCall("f", "not json"),)))


def test_streamed_events_come_as_soon_as_they_are_certain():
    """Content is not held back longer than a marker could begin, and a call is told at its closing marker."""
    parser = ReplyParser()
    assert parser.push("Hi") == [Content("Hi")]
    assert parser.push(" <to") == []
    assert parser.push("y>") == [Content(" <toy>")]
    assert parser.push(CALL[:-1]) == []
    assert parser.push(">") == [CallBegun(0, "f"), CallArguments(0, '{"a": 1}')]
    assert parser.num_calls == 1


@pytest.mark.parametrize("piece", ["<tool_call>{}", "<tool_call>{", '<tool_call>{"', "<tool_call>", CALL, '{"'])
def test_the_work_is_linear_in_the_text(piece):
    """Two million characters of markers are read within seconds."""
    started = time.perf_counter()
    split_reply(piece * (2_000_000 // len(piece)))
    assert time.perf_counter() - started < 10


def test_the_system_text_names_every_tool_and_the_form():
    """The text has each tool's description as JSON and the form of a call; without tools there is none."""
    text = tools_text(ToolUse((WEATHER, CLOCK), is_parallel=False))
    assert '"name": "get_weather"' in text
    assert '"description": "Say the weather"' in text
    assert "</tool_call>" in text
    assert "at most one call" in text
    assert "Do not call" in tools_text(ToolUse((CLOCK,), "none"))
    assert "clock" in tools_text(ToolUse((CLOCK,), "function", "clock")).splitlines()[-1]
    assert tools_text(ToolUse(())) == ""


def _accepts(tool_use: ToolUse, text: str) -> bool:
    """Whether the grammar lets a byte tokenizer write exactly `text` and end there."""
    grammar = tool_grammar(tool_use)
    assert grammar is not None
    assert LLMatcher.validate_grammar(grammar) == ""
    matcher = LLMatcher(LLTokenizer("byte"), grammar)
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def test_the_grammar_forces_calls_that_fit():
    """`required` takes a call of any tool whose arguments fit its schema, `function` only the named one's."""
    weather = render_calls(Message("assistant", "", (ToolCall("get_weather", '{"city": "Bern"}'),)))
    clock = render_calls(Message("assistant", "", (ToolCall("clock", "{}"),)))
    required = ToolUse((WEATHER, CLOCK), "required")
    named = ToolUse((WEATHER, CLOCK), "function", "clock")
    assert _accepts(required, weather)
    assert _accepts(required, f"{weather}\n{clock}")
    assert _accepts(named, clock)
    assert not _accepts(named, weather)
    assert not _accepts(required, "Sure.")
    assert not _accepts(required, weather.replace("city", "town"))
    assert not _accepts(required, weather.replace("get_weather", "rain"))


def test_the_grammar_bounds_the_number_of_calls():
    """Without parallel calls exactly one fits, with them up to the limit."""
    clock = render_calls(Message("assistant", "", (ToolCall("clock", "{}"),)))
    assert not _accepts(ToolUse((CLOCK,), "required", is_parallel=False), f"{clock}\n{clock}")
    many = "\n".join([clock] * MAX_PARALLEL_CALLS)
    assert _accepts(ToolUse((CLOCK,), "required"), many)
    assert not _accepts(ToolUse((CLOCK,), "required"), f"{many}\n{clock}")


def test_a_free_reply_has_no_grammar():
    """`auto` and `none` leave the reply free."""
    assert tool_grammar(ToolUse((CLOCK,), "auto")) is None
    assert tool_grammar(ToolUse((CLOCK,), "none")) is None

"""Several replies to one request: each as if it were alone, the messages learned once, and none of the replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from taking import end_of, named, num_turns, stored_state, take
from toys import KEY, toy_engine

from hope_server.engine.choices import Replies
from hope_server.engine.engine import Engine
from hope_server.engine.loop import Drop
from hope_server.engine.run import Run
from hope_server.engine.turn import (
    Attempt,
    ChatRequest,
    MemoryOptions,
    Message,
    OutputFormat,
    Replay,
    ReplyFinished,
    SamplingParams,
    SessionKey,
    TextRequest,
    TokenText,
    TurnEvent,
    TurnFinished,
)
from hope_server.errors import InternalError, InvalidRequest

pytestmark = pytest.mark.anyio
BOB = SessionKey("default", "bob")
SAID = "The old barn stands behind the mill, and its door is red."


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start toy engines, each on a store of its own; keywords change their settings."""
    started: list[Engine] = []

    async def start(**changes: object) -> Engine:
        engine = toy_engine(tmp_path / f"store{len(started)}.db", **changes)
        started.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in started:
        await engine.stop()


def request(
    num_choices: int = 2,
    session: SessionKey | None = KEY,
    text: str = SAID,
    attempt: Attempt | None = None,
    seed: int = 7,
    max_tokens: int = 12,
    **memory: Any,
) -> ChatRequest:
    """A chat turn that asks for several replies; `memory` are fields of MemoryOptions."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=seed)
    messages = (Message("user", text),)
    return ChatRequest(messages, sampling, session, MemoryOptions(**memory), attempt or Attempt(), num_choices)


def texts_of(events: list[TurnEvent], num_choices: int) -> list[str]:
    """What each reply said."""
    texts = [""] * num_choices
    for event in events:
        if isinstance(event, TokenText):
            texts[event.index] += event.text
    return texts


async def settled(engine: Engine) -> None:
    """Wait until no turn holds a slot."""
    async with asyncio.timeout(10):
        while engine.stats()["turns_running"] or engine._loop._runner.pool.num_busy:
            await asyncio.sleep(0.01)


async def test_each_reply_is_what_a_request_of_its_seed_gets(make: Callable[..., Any]) -> None:
    """Reply i is drawn with seed + i, and is the same as if it had been asked for alone."""
    engine = await make()
    events = await take(engine.chat(request(3, None)))
    alone = [texts_of(await take(engine.chat(request(1, None, seed=7 + index))), 1)[0] for index in range(3)]
    assert texts_of(events, 3) == alone
    assert len(set(alone)) == 3


async def test_every_reply_ends_once_and_the_turn_last(make: Callable[..., Any]) -> None:
    """One ReplyFinished a reply, after its text; then one TurnFinished with the tokens of all."""
    engine = await make()
    for session in (None, KEY):
        events = await take(engine.chat(request(3, session)))
        assert sorted(event.index for event in events if isinstance(event, ReplyFinished)) == [0, 1, 2]
        ended: set[int] = set()
        for event in events[:-1]:
            assert isinstance(event, (TokenText, ReplyFinished)) and event.index not in ended
            ended |= {event.index} if isinstance(event, ReplyFinished) else set()
        last = events[-1]
        assert isinstance(last, TurnFinished)
        single = (await take(engine.chat(request(1, None))))[-1]
        assert last.usage.prompt_tokens == single.usage.prompt_tokens
        assert last.usage.completion_tokens == 36


async def test_replies_decode_as_one_batch(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With slots for all, a round computes a token of each."""
    engine = await make(num_slots=4)
    sizes: list[int] = []
    decode = engine._loop._runner.decode
    monkeypatch.setattr(engine._loop._runner, "decode", lambda runs: (sizes.append(len(runs)), decode(runs))[1])
    await take(engine.chat(request(4)))
    assert max(sizes) == 4


@pytest.mark.parametrize("mode", ["write", "read"])
async def test_one_slot_is_enough(make: Callable[..., Any], mode: str) -> None:
    """Replies wait for their turn, also those of two sessions at once, and say what they say with many slots."""
    narrow, wide = await make(num_slots=1), await make(num_slots=6)
    for engine in (narrow, wide):
        for key in (KEY, BOB):
            await take(engine.chat(request(1, key, "Before.")))
    async with asyncio.timeout(60):
        found = await asyncio.gather(*(take(narrow.chat(request(4, key, mode=mode))) for key in (KEY, BOB)))
    for events, key in zip(found, (KEY, BOB), strict=True):
        assert texts_of(events, 4) == texts_of(await take(wide.chat(request(4, key, mode=mode))), 4)
        assert await stored_state(narrow, key) == await stored_state(wide, key)


async def test_a_turn_that_reads_leaves_the_session_as_it_is(make: Callable[..., Any]) -> None:
    """Every reply uses the memory; replies are those of single requests that read."""
    engine = await make()
    await take(engine.chat(request(1, text="Before.")))
    before = (await engine.get_session(KEY)).version
    events = await take(engine.chat(request(2, mode="read")))
    alone = [texts_of(await take(engine.chat(request(1, seed=7 + index, mode="read"))), 1)[0] for index in range(2)]
    assert texts_of(events, 2) == alone
    receipt = end_of(events).receipt
    assert (receipt.mode, receipt.version_before, receipt.version_after) == ("read", before, before)
    assert (await engine.get_session(KEY)).version == before


async def test_the_messages_are_learned_and_no_reply_is(make: Callable[..., Any]) -> None:
    """The state after it is that of reading the messages alone, bit for bit, however many replies were drawn."""
    engines = [await make() for _ in range(4)]
    for engine in engines:
        await take(engine.chat(request(1, text="Before. And more of it.")))
    plan = engines[0]._planner.chat

    async def read_only(*asked: Any) -> Run:
        run = await plan(*asked)
        Replies(run)
        return run

    engines[0]._planner.chat = read_only
    (only_read,) = await take(engines[0].chat(request(2)))
    others = [request(2), request(5, seed=99, max_tokens=30), request(2, max_tokens=1)]
    receipts = [
        end_of(await take(engine.chat(asked))).receipt for engine, asked in zip(engines[1:], others, strict=True)
    ]
    expected = await stored_state(engines[0])
    for engine, receipt in zip(engines[1:], receipts, strict=True):
        assert await stored_state(engine) == expected
        assert receipt.tokens_learned == len(SAID) == end_of([only_read]).receipt.tokens_learned
        assert receipt.version_after == (await engine.get_session(KEY)).version != receipt.version_before
        assert (await engine.get_session(KEY)).turn == 2


async def test_the_chosen_reply_can_be_sent_back(make: Callable[..., Any]) -> None:
    """A full history with one of the replies is known up to it: it and the new message are read, nothing twice."""
    engine = await make()
    asked = request(3)
    chosen = texts_of(await take(engine.chat(asked)), 3)[1]
    messages = (*asked.messages, Message("assistant", chosen), Message("user", "Go on."))
    receipt = end_of(await take(engine.chat(replace(asked, messages=messages, num_choices=1)))).receipt
    assert receipt.version_before is not None
    reply, more = len(chosen.encode()), len("Go on.")
    # What the toy template puts around a reply and a question, the request to reply, twelve tokens said, the closing.
    frame = len("<assistant\n") + len(">\n") + len("<user\n") + len(">\n") + len("<assistant\n")
    assert receipt.tokens_read == reply + more + frame + 12 + len(">\n")
    assert SAID not in chosen and receipt.tokens_read < len(SAID) * 3


async def test_the_next_turn_finds_the_session_hot(make: Callable[..., Any]) -> None:
    """Where replies leave a slot over, the prepared state stays where it is, under the name of its commit."""
    engine = await make(num_slots=3)
    await take(engine.chat(request(2)))
    receipt = end_of(await take(engine.chat(request(1, text="More.")))).receipt
    assert receipt.restored_from == "hot"
    crowded = await make(num_slots=2)
    await take(crowded.chat(request(5)))
    receipt = end_of(await take(crowded.chat(request(1, text="More.")))).receipt
    assert receipt.restored_from == "host"
    assert await stored_state(crowded) == await stored_state(engine)


@pytest.mark.parametrize("durability", ["none", "async", "commit", "fsync"])
async def test_durability_is_as_of_any_turn(make: Callable[..., Any], durability: str) -> None:
    """Whatever is asked for, the next turn goes on from what was read, and the state is the same in the end."""
    engine, plain = await make(), await make()
    for each, asked in ((engine, durability), (plain, "commit")):
        receipt = end_of(await take(each.chat(request(2, durability=asked)))).receipt
        assert receipt.durability == asked
        await take(each.chat(request(1, text="More.", durability="commit")))
    assert await stored_state(engine) == await stored_state(plain)


async def test_a_repeated_request_gets_every_reply_again(make: Callable[..., Any]) -> None:
    """Texts, ends and receipt are those of the first time, and nothing is learned again."""
    engine = await make()
    first = await take(engine.chat(request(3, attempt=named("k1"))))
    again = await take(engine.chat(request(3, attempt=named("k1", is_retry=True))))
    assert isinstance(again[0], Replay)
    assert texts_of(again, 3) == texts_of(first, 3)
    assert [event for event in again if isinstance(event, ReplyFinished)] == [
        ReplyFinished(index, "length") for index in range(3)
    ]
    assert replace(end_of(again).receipt, replayed=False) == end_of(first).receipt
    assert await num_turns(engine) == 1


@pytest.mark.parametrize("num_events", [1, 5])
async def test_leaving_early_keeps_nothing(make: Callable[..., Any], num_events: int) -> None:
    """All replies stop, no slot stays taken, and the session is as it was before."""
    engine = await make()
    await take(engine.chat(request(1, text="Before.")))
    before = await engine.get_session(KEY)
    events = engine.chat(request(4, max_tokens=500))
    for _ in range(num_events):
        await anext(events)
    await events.aclose()
    await settled(engine)
    assert await engine.get_session(KEY) == before
    again, fresh = await take(engine.chat(request(2))), await make()
    await take(fresh.chat(request(1, text="Before.")))
    assert texts_of(again, 2) == texts_of(await take(fresh.chat(request(2))), 2)
    assert await stored_state(engine) == await stored_state(fresh)


@pytest.mark.parametrize("session", [None, KEY])
async def test_one_failing_reply_fails_the_turn(make: Callable[..., Any], session: SessionKey | None) -> None:
    """The others are dropped, nothing is committed, and the next turn is served."""
    engine = await make(num_slots=2)
    plan = engine._planner.chat

    class Broken:
        """Says two tokens and then has none."""

        num_said = 0

        def sample(self, logits: object) -> int:
            self.num_said += 1
            if self.num_said > 2:
                raise InternalError("no token")
            return 97

        def observe(self, token: int) -> None:
            """Nothing to note."""

    async def break_one(*asked: Any) -> Run:
        run = await plan(*asked)
        second = replace(run.others[0], sampler=Broken())
        run.others = (second, *run.others[1:])
        return run

    engine._planner.chat = break_one
    with pytest.raises(InternalError, match="no token"):
        await take(engine.chat(request(3, session, max_tokens=400)))
    engine._planner.chat = plan
    await settled(engine)
    assert session is None or (await engine.get_session(KEY)).turn == 0
    assert len(texts_of(await take(engine.chat(request(2, session))), 2)) == 2


async def test_a_drop_behind_a_parked_state_frees_only_that(make: Callable[..., Any]) -> None:
    """The slot of a dropped turn may have another user by then, whom it must leave alone."""
    engine = await make()
    sent: list[Drop] = []
    send = engine._loop.send
    engine._loop.send = lambda command: (sent.append(command) if isinstance(command, Drop) else None, send(command))[1]
    events = engine.chat(request(2, max_tokens=300))
    await anext(events)
    slow = asyncio.create_task(take(engine.chat(request(1, BOB, max_tokens=60))))
    await asyncio.sleep(0.05)
    await events.aclose()
    assert len(sent) == 3
    assert texts_of(await slow, 1) == texts_of(await take((await make()).chat(request(1, BOB, max_tokens=60))), 1)


async def test_every_reply_follows_the_format(make: Callable[..., Any]) -> None:
    """Each has a constraint of its own; each is learnable JSON by itself."""
    engine = await make()
    schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 1, "maxItems": 3}
    asked = replace(request(4, max_tokens=200), output_format=OutputFormat("json_schema", json.dumps(schema)))
    events = await take(engine.chat(asked))
    assert {event.finish_reason for event in events if isinstance(event, ReplyFinished)} == {"stop"}
    for text in texts_of(events, 4):
        assert set(json.loads(text)) <= {"red", "blue"}


async def test_plain_text_has_choices_too(make: Callable[..., Any]) -> None:
    """They go on from the last letter of the prompt, which is read once; one more reply changes none of the others."""
    few, many = await make(), await make()
    sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=3)
    found = []
    for engine, num_choices in ((few, 2), (many, 5)):
        asked = TextRequest(SAID, sampling, KEY, num_choices=num_choices)
        events = await take(engine.complete(asked))
        assert end_of(events).receipt.tokens_read == len(SAID) == end_of(events).usage.prompt_tokens
        found.append(texts_of(events, num_choices)[:2])
    assert found[0] == found[1]
    assert await stored_state(few) == await stored_state(many)


async def test_replies_that_end_at_once_leave_nothing_behind(make: Callable[..., Any]) -> None:
    """A reply without a token ends while it is seated; it holds no slot, and nothing waits for it."""
    engine = await make(num_slots=2)
    sampling = SamplingParams(max_tokens=12, temperature=0.0, logit_bias=((257, 100.0),))
    events = await take(engine.complete(TextRequest(SAID, sampling, KEY, num_choices=5)))
    assert events[:-1] == [ReplyFinished(index, "stop") for index in range(5)]
    assert end_of(events).usage.completion_tokens == 0
    await settled(engine)


@pytest.mark.parametrize("num_choices", [0, 9])
async def test_a_number_of_replies_out_of_bounds_is_refused(make: Callable[..., Any], num_choices: int) -> None:
    """With the bounds, and the field."""
    engine = await make()
    with pytest.raises(InvalidRequest, match=f"n is {num_choices}; ask for 1 to 8 replies") as caught:
        await take(engine.chat(request(num_choices, None)))
    assert caught.value.param == "n"

"""What learning costs: whole turns through the engine with the online pass on and off, and consolidation beside them.

Consolidation is set to `explicit` here, so that it runs off the path of the turns that are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from machine import median, say
from speed import Loaded

from hope_server.engine.assembly import assemble
from hope_server.engine.engine import Engine
from hope_server.engine.turn import (
    ChatRequest,
    LearnProgress,
    LearnRequest,
    Message,
    SamplingParams,
    SessionKey,
    TokenText,
    TurnEvent,
    TurnFinished,
)
from hope_server.model.checkpoint import weights_fingerprint
from hope_server.settings import Settings

NUM_READ = 768
NUM_SAID = 128
STEP_TEXT_TOKENS = 200
STEP_PASSES = 4
QUESTION = "Count from 1 to 1000, one number on each line."


async def measure_learning(loaded: Loaded, text: str, folder: Path, repeats: int) -> dict[str, float]:
    """Tokens per second with the online pass on and off, reading and decoding; seconds of consolidation steps."""
    settings = Settings(store=str(folder / "bench.db"), consolidation="explicit")
    engine = assemble(settings, loaded.config, loaded.params, loaded.tokenizer, weights_fingerprint(loaded.folder))
    await engine.start()
    try:
        out = await _on_and_off(engine, _cut(loaded, text, NUM_READ), repeats)
        return out | await _consolidation(engine, _cut(loaded, text, STEP_TEXT_TOKENS))
    finally:
        await engine.stop()


async def _on_and_off(engine: Engine, text: str, repeats: int) -> dict[str, float]:
    names = itertools.count()
    rates: dict[str, list[float]] = {name: [] for name in ("read_off", "read_on", "decode_off", "decode_on")}
    for number in range(-1, repeats):
        say("learning on and off, warming up …" if number < 0 else f"learning, repeat {number + 1} of {repeats} …")
        for mode in ("off", "on"):
            read = await _read(engine, text, _session(mode, next(names)))
            said = await _say(engine, _session(mode, next(names)))
            if number >= 0:
                rates[f"read_{mode}"].append(read)
                rates[f"decode_{mode}"].append(said)
    out = {f"{name}_tokens_per_second": median(values) for name, values in rates.items()}
    for kind in ("read", "decode"):
        pairs = zip(rates[f"{kind}_on"], rates[f"{kind}_off"], strict=True)
        out[f"ratio_{kind}_on_off"] = median([on / off for on, off in pairs])
    return out


async def _read(engine: Engine, text: str, session: SessionKey | None) -> float:
    """Tokens per second of a turn that reads a text and says one token; the commit counts."""
    start = time.perf_counter()
    finished = [event async for event in _chat(engine, text, 1, session) if isinstance(event, TurnFinished)]
    return finished[0].usage.prompt_tokens / (time.perf_counter() - start)


async def _say(engine: Engine, session: SessionKey | None) -> float:
    """Tokens per second from the first text of a reply to the end of the turn; the commit counts."""
    first = 0.0
    num_tokens = 0
    async for event in _chat(engine, QUESTION, NUM_SAID, session):
        if isinstance(event, TokenText):
            first = first or time.perf_counter()
        elif isinstance(event, TurnFinished):
            num_tokens = event.usage.completion_tokens
    if num_tokens < NUM_SAID // 2:
        raise RuntimeError(f"the reply ended after {num_tokens} tokens; the figure would say nothing")
    return (num_tokens - 1) / (time.perf_counter() - first)


async def _consolidation(engine: Engine, text: str) -> dict[str, float]:
    """Seconds of a consolidation step alone, and the gaps of another session's stream meanwhile."""
    say("consolidation steps, alone and beside another stream …")
    steps = await _steps(engine, text, SessionKey("default", "steps-alone"))
    quiet = await _gaps(engine, asyncio.Event())
    is_over = asyncio.Event()
    learning = asyncio.create_task(_steps(engine, text, SessionKey("default", "steps-beside")))
    learning.add_done_callback(lambda _: is_over.set())
    gaps = await _gaps(engine, is_over)
    await learning
    return {
        "consolidation_step_seconds": median(steps),
        "stream_gap_seconds": median(quiet),
        "stream_gap_while_learning_seconds": median(gaps),
        "stream_longest_stall_seconds": max(gaps),
    }


async def _steps(engine: Engine, text: str, session: SessionKey) -> list[float]:
    times: list[float] = []
    async for event in engine.learn(LearnRequest(session, text, STEP_PASSES)):
        if isinstance(event, LearnProgress) and event.steps_total:
            times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]


async def _gaps(engine: Engine, is_over: asyncio.Event) -> list[float]:
    """Seconds between the pieces of a stream, until its end or until the event."""
    times: list[float] = []
    async with contextlib.aclosing(_chat(engine, QUESTION, NUM_SAID, None)) as events:
        async for event in events:
            if isinstance(event, TokenText):
                times.append(time.perf_counter())
            if is_over.is_set():
                break
    return [after - before for before, after in itertools.pairwise(times)]


def _chat(engine: Engine, text: str, num_new: int, session: SessionKey | None) -> AsyncGenerator[TurnEvent]:
    sampling = SamplingParams(max_tokens=num_new, temperature=0)
    return engine.chat(ChatRequest((Message("user", text),), sampling, session))


def _session(mode: str, number: int) -> SessionKey | None:
    return SessionKey("default", f"bench-{number}") if mode == "on" else None


def _cut(loaded: Loaded, text: str, num_tokens: int) -> str:
    return loaded.tokenizer.decode(loaded.tokenizer.encode(text)[:num_tokens])

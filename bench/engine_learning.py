"""Our server alone: what learning costs a turn and those beside it, and the work of many sessions at once."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from asking import LIMIT_SECONDS, Asking, Heard
from growth import middle_ratio
from machine import median, say
from wording import Wording

NUM_READ, NUM_ASKED, NUM_SAID = 768, 32, 128
CHUNK, PACE = 64, 13
"""Tokens between two writes; how much later in a chunk each round's reply begins: no place in it is favoured."""
NUM_STUDIED, NUM_PASSES = 600, 40
NUM_BESIDE, FEWEST_STEPS = 768, 2
"""Tokens said beside a consolidation, and how many of its steps, each as long as dozens of them, they must meet."""
NUM_MIXED = 64
MIXES = {
    "chat": ((16, 64, "off"), (32, 160, "write"), (64, 96, "write"), (28, 108, "off")),
    "reading": ((64, 32, "off"), (128, 16, "write"), (32, 48, "write"), (256, 8, "off")),
}
"""What mixed sessions are asked: tokens, tokens of reply, and what the turn does with memory.

chat: on average half of what people's turns and their replies have (LMSYS-Chat-1M, arXiv 2309.11998: 69.5 and 214.5
tokens). reading: four times as much is read as is said.
"""
BEGIN_SECONDS = 120.0

_names = itertools.count()


def measure_learning(ours: Asking, wording: Wording, rounds: int, *, is_small: bool) -> dict[str, float]:
    """Tokens per second of one session's turns with the online level learning and with memory off, and their ratios.

    A turn's commit counts. Nothing is consolidated. Replies begin at another place in a chunk in each round: 128 tokens
    complete two chunks, or three where prompt and template's end lie so.
    """
    num_read, num_said = (128, 32) if is_small else (NUM_READ, NUM_SAID)
    rates: dict[str, list[float]] = {}
    for number in range(-1, rounds):
        say(
            "learning on and off, warming up …"
            if number < 0
            else f"learning on and off, round {number + 1} of {rounds} …"
        )
        for mode in ("write", "off") if number % 2 else ("off", "write"):
            short = _turn(ours, wording.text(num_read, seed=number), 1, mode)
            long = _turn(ours, wording.text(NUM_ASKED + PACE * number % CHUNK, seed=number), num_said, mode)
            rates.setdefault(f"read_{mode}", []).append(short.prompt_tokens / short.end_seconds)
            said = (long.num_tokens - 1) / (long.end_seconds - long.first_seconds)
            rates.setdefault(f"decode_{mode}", []).append(said)
        if number < 0:
            rates.clear()
    out = {f"{name}_tokens_per_second": median(values) for name, values in rates.items()}
    return out | {
        f"ratio_{kind}_on_off": middle_ratio(rates[f"{kind}_write"], rates[f"{kind}_off"])
        for kind in ("read", "decode")
    }


def measure_background(ours: Asking, wording: Wording, rounds: int, *, is_small: bool) -> dict[str, float]:
    """Tokens per second of one session alone and while another is consolidated, and the ratio.

    Raises RuntimeError where the consolidation ended before the turn that was timed beside it, or hardly took a step.
    """
    num_said = 32 if is_small else NUM_BESIDE
    rates: dict[str, list[float]] = {"alone": [], "beside": []}
    pauses: list[float] = []
    steps: list[int] = []
    for number in range(rounds):
        say(f"decoding beside a consolidation, round {number + 1} of {rounds} …")
        question = wording.text(NUM_ASKED, seed=number)
        rates["alone"].append(1 / _turn(ours, question, num_said, "off").token_seconds)
        with _consolidating(ours, wording.text(NUM_STUDIED, seed=number)) as study:
            before = study.num_steps
            heard = _turn(ours, question, num_said, "off")
            steps.append(study.num_steps - before)
            if study.is_over.is_set():
                raise RuntimeError("the consolidation ended before the turn beside it; study longer or say less")
        if steps[-1] < (1 if is_small else FEWEST_STEPS):
            raise RuntimeError(
                f"the consolidation took {steps[-1]} steps beside the turn: too few to say what it costs"
            )
        rates["beside"].append(1 / heard.token_seconds)
        pauses.append(heard.longest_gap_seconds)
    out = {f"decode_{name}_tokens_per_second": median(values) for name, values in rates.items()}
    out["longest_pause_beside_consolidation_seconds"] = max(pauses)
    out["consolidation_steps_beside_a_turn"] = median(steps)
    return out | {"ratio_beside_consolidation": middle_ratio(rates["beside"], rates["alone"])}


def measure_mixed(ours: Asking, wording: Wording, rounds: int, *, is_small: bool) -> dict[str, float]:
    """Seconds of turns of many sessions, of several lengths and half of them learning, at once and one by one."""
    out: dict[str, float] = {}
    for kind in MIXES:
        out |= _mixed(kind, ours, wording, rounds, 8 if is_small else NUM_MIXED)
    return out


def _mixed(kind: str, ours: Asking, wording: Wording, rounds: int, count: int) -> dict[str, float]:
    mix = MIXES[kind]
    seconds: dict[str, list[float]] = {"at_once": [], "one_by_one": []}
    for number in range(rounds):
        work = [
            (wording.text(mix[place % 4][0], seed=1000 * number + place), *mix[place % 4][1:]) for place in range(count)
        ]
        for way in sorted(seconds, reverse=number % 2 == 1):
            say(f"{count} sessions, mostly {kind}, {way.replace('_', ' ')}, round {number + 1} of {rounds} …")
            begin = time.perf_counter()
            with ThreadPoolExecutor(count if way == "at_once" else 1) as pool:
                list(pool.map(lambda turn: _turn(ours, *turn), work))
            seconds[way].append(time.perf_counter() - begin)
    out = {f"mixed_{kind}_{way}_seconds": median(values) for way, values in seconds.items()}
    return out | {f"ratio_mixed_{kind}": middle_ratio(seconds["one_by_one"], seconds["at_once"])}


def _turn(ours: Asking, text: str, num_new: int, mode: str) -> Heard:
    """A turn of a session of its own, which learns online alone, or of none."""
    more: dict[str, object] = {}
    if mode == "write":
        more = {"session_id": f"turn-{next(_names)}", "memory": {"mode": "write", "passes": 0}}
    heard = ours.chat(text, num_new, **more)
    if mode == "write" and not (heard.memory or {}).get("tokens_learned"):
        raise RuntimeError(f"a turn that was to learn learned nothing: {heard.memory}")
    return heard


@dataclass
class _Study:
    """A consolidation under way. num_steps: how many it has reported."""

    num_steps: int = 0
    is_begun: threading.Event = field(default_factory=threading.Event)
    is_over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def _consolidating(ours: Asking, text: str) -> Iterator[_Study]:
    """Consolidate another session's text while the block runs, from the first step on."""
    study, is_unwanted = _Study(), threading.Event()
    faults: list[str] = []

    def run() -> None:
        body: dict[str, Any] = {"text": text, "passes": NUM_PASSES, "stream": True}
        path = f"{ours.url}/v1/sessions/studying-{next(_names)}/learn"
        try:
            with httpx.stream("POST", path, json=body, timeout=LIMIT_SECONDS) as answer:
                answer.raise_for_status()
                for line in answer.iter_lines():
                    if is_unwanted.is_set():
                        return
                    if line.startswith("data: {") and (steps := json.loads(line[6:]).get("steps_done")):
                        study.num_steps = steps
                        study.is_begun.set()
        except httpx.HTTPError as fault:
            faults.append(str(fault))
        finally:
            study.is_over.set()
            study.is_begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        if not study.is_begun.wait(BEGIN_SECONDS) or faults:
            raise RuntimeError(f"the consolidation did not begin: {faults or 'no step was reported'}")
        yield study
    finally:
        # Its next line is the last that is read; the server ends what nobody waits for.
        is_unwanted.set()
        thread.join()

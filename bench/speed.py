"""Prefill and decode without learning: our runner against transformers' generate, on the same tensors, interleaved."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from baseline import generate
from machine import median, say
from transformers import LlamaForCausalLM

from hope_server.engine.detokenizer import StreamingDetokenizer
from hope_server.engine.memory_writer import MemoryWriter, WriterSettings
from hope_server.engine.run import FeedToken, Generation, Run, RunEvent
from hope_server.engine.runner import Runner
from hope_server.engine.sampler import Sampler
from hope_server.engine.slots import SlotPool
from hope_server.engine.speller import Speller
from hope_server.engine.tokenizer import Tokenizer
from hope_server.engine.turn import SamplingParams
from hope_server.errors import HopeError
from hope_server.model.config import HopeConfig
from hope_server.model.hope import HopeModel
from hope_server.model.params import Params
from hope_server.model.state import empty_state

NUM_SESSIONS = 8
NUM_PROMPT = 256
NUM_NEW = 48
PIECE = 64
LIMIT = 1e-3


@dataclass(frozen=True)
class Loaded:
    """What the parts of the bench share. `config` has the served levels, unwritten in `measure_speed`."""

    folder: Path
    config: HopeConfig
    params: Params
    tokenizer: Tokenizer
    prompts: list[list[int]]


@torch.no_grad()
def logit_difference(loaded: Loaded, baseline: LlamaForCausalLM) -> float:
    """Largest difference of any logit, over a prompt read in pieces and tokens decoded after it.

    Keys and values are kept in the model's own precision here: their rounding is a choice, not an error.
    """
    window = replace(loaded.config.window, precision="model")
    model = HopeModel(replace(loaded.config, window=window))
    tokens = torch.tensor([loaded.prompts[0]])
    expected = baseline(tokens).logits
    state = empty_state(model.memory, 1, loaded.params.dtype)
    worst, read = 0.0, NUM_PROMPT - PIECE // 2
    for start in range(0, read, PIECE):
        piece = tokens[:, start : min(start + PIECE, read)]
        hidden, new = model.read(loaded.params, state, piece)
        model.append(state.window, new)
        found = model.logits(loaded.params, hidden)
        worst = max(worst, float((found - expected[:, start : start + piece.shape[1]]).abs().max()))
    for place in range(read, NUM_PROMPT):
        found, state = model.decode(loaded.params, state, tokens[:, place], torch.ones(1, dtype=torch.bool))
        worst = max(worst, float((found - expected[:, place]).abs().max()))
    return worst


def measure_speed(loaded: Loaded, baseline: LlamaForCausalLM, repeats: int) -> dict[str, float]:
    """Tokens per second of both sides at one session and at eight, medians over interleaved repeats, and the ratios."""
    runner = _make_runner(loaded)
    prompts = loaded.prompts
    seconds: dict[str, list[float]] = {}

    def note(name: str, prefill: float, decode: float) -> None:
        seconds.setdefault(f"{name}_prefill", []).append(prefill)
        seconds.setdefault(f"{name}_decode", []).append(decode)

    # The first call of each side sets up what later ones find ready.
    _generate(runner, loaded.tokenizer, prompts[:1])
    generate(baseline, prompts[0], NUM_NEW)
    for number in range(repeats):
        say(f"speed, repeat {number + 1} of {repeats} …")
        note("ours_1", *_generate(runner, loaded.tokenizer, prompts[:1]))
        note("theirs_1", *generate(baseline, prompts[0], NUM_NEW))
        note("ours_8", *_generate(runner, loaded.tokenizer, prompts))
        parts = [generate(baseline, prompt, NUM_NEW) for prompt in prompts]
        note("theirs_8", sum(part[0] for part in parts), sum(part[1] for part in parts))
    out: dict[str, float] = {}
    for name, values in seconds.items():
        sessions = NUM_SESSIONS if "_8_" in name else 1
        tokens = sessions * (NUM_PROMPT if name.endswith("prefill") else NUM_NEW - 1)
        out[f"{name}_tokens_per_second"] = tokens / median(values)
    for case in ("1_prefill", "1_decode", "8_prefill", "8_decode"):
        out[f"ratio_{case}"] = median(
            [b / a for a, b in zip(seconds[f"ours_{case}"], seconds[f"theirs_{case}"], strict=True)]
        )
    return out


def _make_runner(loaded: Loaded) -> Runner:
    model = HopeModel(loaded.config, loaded.params.dtype)
    pool = SlotPool(model.memory, NUM_SESSIONS, loaded.params.dtype)
    writer = MemoryWriter(model, loaded.params, [], Speller(loaded.tokenizer), WriterSettings())
    return Runner(model, loaded.params, pool, writer, loaded.tokenizer, "bench")


def _generate(runner: Runner, tokenizer: Tokenizer, prompts: list[list[int]]) -> tuple[float, float]:
    """Read every prompt, then decode all together; returns the seconds of both parts."""
    start = time.perf_counter()
    runs = [_stateless(tokenizer, prompt) for prompt in prompts]
    for run in runs:
        runner.seat(run)
        while run.wants == "read":
            runner.read(run)
    middle = time.perf_counter()
    while decoding := [run for run in runs if run.wants == "decode"]:
        runner.decode(decoding)
        for run in decoding:
            runner.move_on(run)
    return middle - start, time.perf_counter() - middle


def _stateless(tokenizer: Tokenizer, prompt: list[int]) -> Run:
    sampler = Sampler(SamplingParams(temperature=0))
    # No token ends the reply: both sides say exactly as many.
    generation = Generation(sampler, StreamingDetokenizer(tokenizer), frozenset(), NUM_NEW, (), 0)
    return Run(emit=_raise_faults, feed=deque(FeedToken(token) for token in prompt), generation=generation)


def _raise_faults(event: RunEvent) -> None:
    if isinstance(event, HopeError):
        raise event

"""Puts an engine together out of settings: model, tokenizer, memory levels, guard, store."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch

from hope_server.engine.consolidation import GuardPiece, make_guard
from hope_server.engine.engine import Engine
from hope_server.engine.heap import give_back
from hope_server.engine.loop import EngineLoop
from hope_server.engine.memory_gauge import MemoryGauge
from hope_server.engine.memory_writer import MemoryWriter, WriterSettings
from hope_server.engine.rehearsal import RehearsalSettings, Tokens
from hope_server.engine.request_plan import PlanSettings, RequestPlanner
from hope_server.engine.runner import Runner
from hope_server.engine.sessions import SessionBook
from hope_server.engine.slots import SlotPool
from hope_server.engine.speller import Speller
from hope_server.engine.state_codec import StateReader, model_fingerprint
from hope_server.engine.stores import build_store
from hope_server.engine.tokenizer import Tokenizer
from hope_server.engine.turn import Message
from hope_server.errors import SettingsError
from hope_server.model.checkpoint import load_config, load_weights, resolve_model, weights_fingerprint
from hope_server.model.config import HopeConfig, WindowSpec
from hope_server.model.hope import HopeModel
from hope_server.model.params import Params, fuse_params
from hope_server.model.presets import CHUNK_SIZE, choose_levels
from hope_server.settings import Settings

GUARD_TOKENS = 64


def build_engine(settings: Settings, progress: Callable[[str, float], None] | None = None) -> Engine:
    """Load everything that `settings` name and return an engine to start. Raises StartupError."""
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    folder = resolve_model(settings.model, settings.cache_dir, progress)
    params = fuse_params(load_config(folder), load_weights(folder, torch.float32))
    return assemble(
        settings, hope_config(settings, folder), params, Tokenizer.load(folder), weights_fingerprint(folder)
    )


def hope_config(settings: Settings, folder: Path) -> HopeConfig:
    """The model that `settings` make of a converted checkpoint. Raises SettingsError."""
    model = load_config(folder)
    levels = choose_levels(settings.levels, model, settings.consolidation_block)
    return HopeConfig(model, WindowSpec(size=settings.window), levels, CHUNK_SIZE)


def assemble(settings: Settings, config: HopeConfig, params: Params, tokenizer: Tokenizer, digest: str) -> Engine:
    """Build an engine around a loaded model. Raises StartupError."""
    chunk, block, delay = config.chunk_size, settings.consolidation_block, settings.consolidation_delay
    if block % chunk or delay % chunk or not 0 < delay <= block or block + delay > config.window.size:
        raise SettingsError(
            f"consolidation_block {block} and consolidation_delay {delay} must be multiples of {chunk} tokens, "
            f"the delay at most the block, and both together at most the window of {config.window.size}"
        )
    model = HopeModel(config, params.dtype)
    fingerprint = model_fingerprint(config, digest)
    speller = Speller(tokenizer)
    rehearsal = RehearsalSettings()
    longest = speller.longest_head + 2 * rehearsal.group
    if any(spec.schedule == "consolidation" for spec in config.levels) and longest > config.window.size:
        raise SettingsError(f"a window of {config.window.size} tokens cannot hold a rehearsal; use {longest} at least")
    guards = _guards(model, params, tokenizer)
    writer_settings = WriterSettings(
        is_automatic=settings.consolidation == "auto", block=block, delay=delay, rehearsal=rehearsal
    )
    writer = MemoryWriter(model, params, guards, speller, writer_settings)
    pool = SlotPool(model.memory, settings.num_slots, params.dtype)
    loop = EngineLoop(Runner(model, params, pool, writer, tokenizer, fingerprint))
    store = build_store(settings)
    plan = PlanSettings(
        settings.max_prompt_tokens,
        config.window.size,
        settings.passes_user,
        settings.passes_assistant,
        settings.passes_learn,
        settings.max_passes,
        settings.max_completion_tokens,
        tuple(spec.name for spec in config.levels),
    )
    planner = RequestPlanner(tokenizer, plan)
    reader, gauge = StateReader(model.memory, params.dtype), MemoryGauge(model.memory)
    book = SessionBook(store, fingerprint)
    return Engine(settings, config.model.name, int(time.time()), book, loop, planner, reader, gauge)


def _guards(model: HopeModel, params: Params, tokenizer: Tokenizer) -> list[GuardPiece]:
    """What the slow weights say about the stored general text; empty where no level consolidates."""
    if not any(spec.schedule == "consolidation" for spec in model.config.levels):
        return []
    text = resources.files("hope_server.engine").joinpath("data", "general.txt").read_text(encoding="utf-8")
    pieces = [
        _encode_block(tokenizer, block)[: min(GUARD_TOKENS, model.config.window.size)] for block in text.split("\n\n")
    ]
    guards = make_guard(model, params, [piece for piece in pieces if len(piece) > 1])
    give_back()
    return guards


def _encode_block(tokenizer: Tokenizer, block: str) -> Tokens:
    """A block of general text; one that begins with `> ` is a question and its answer, as a chat."""
    if not block.startswith("> "):
        return tuple(tokenizer.encode(block.strip()))
    question, answer = block[2:].strip().split("\n", 1)
    messages = [Message("user", question), Message("assistant", answer)]
    spans = tokenizer.render_chat(messages, continuing=False, open_last=True)
    return tuple(token for span in spans for token in span.ids)

"""Puts an engine together out of settings: model, tokenizer, memory levels, guard, store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from hope_kernels import native

from hope_server.engine.cards import CardMaker
from hope_server.engine.consolidation import GuardPiece, make_guard
from hope_server.engine.engine import Engine
from hope_server.engine.general import CHAT_MARK, encode_block, general_blocks
from hope_server.engine.heap import give_back
from hope_server.engine.loop import EngineLoop
from hope_server.engine.memory_gauge import MemoryGauge
from hope_server.engine.memory_writer import MemoryWriter, WriterSettings
from hope_server.engine.rehearsal import RehearsalSettings
from hope_server.engine.request_plan import PlanSettings, RequestPlanner
from hope_server.engine.runner import Runner
from hope_server.engine.sessions import SessionBook
from hope_server.engine.slots import SlotPool
from hope_server.engine.speller import Speller
from hope_server.engine.state_codec import StateReader, model_fingerprint
from hope_server.engine.stores import build_store
from hope_server.engine.study import StudyDesk
from hope_server.engine.tokenizer import Tokenizer
from hope_server.errors import SettingsError
from hope_server.model.adapter import choose_adapter
from hope_server.model.checkpoint import load_config, load_hope, load_params, resolve_model, weights_fingerprint
from hope_server.model.config import HopeConfig, WindowSpec
from hope_server.model.hope import HopeModel
from hope_server.model.key_reader import read_general_keys
from hope_server.model.key_statistics import KeyStatistics, find_statistics
from hope_server.model.params import Params
from hope_server.model.presets import CHUNK_SIZE, choose_levels
from hope_server.model.recognition import GeneralKeys
from hope_server.settings import Settings

GUARD_TOKENS = 64
GATE_TOKENS = 64


def build_engine(settings: Settings, progress: Callable[[str, float], None] | None = None) -> Engine:
    """Load everything that `settings` name and return an engine to start. Raises StartupError."""
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    folder = resolve_model(settings.model, settings.cache_dir, progress)
    config = hope_config(settings, folder)
    params = _fitting(load_params(folder, torch.float32), config, load_hope(folder))
    digest = weights_fingerprint(folder)
    adapter = choose_adapter(settings.adapter, digest)
    if adapter is not None:
        params = adapter.merged(params)
    if settings.dtype == "bfloat16":
        # Logits of halves would tie; the head is the embedding, which is kept as it is, in most small models.
        params = params.rounded(torch.bfloat16, with_head=False)
    give_back()
    return assemble(settings, config, params, Tokenizer.load(folder), digest, adapter.digest if adapter else "")


def hope_config(settings: Settings, folder: Path) -> HopeConfig:
    """The model that `settings` make of a converted checkpoint.

    A HOPE model that was trained is what its checkpoint says: `settings` may replace its levels, and its window where
    it attends. Raises SettingsError.
    """
    trained = load_hope(folder)
    if trained is None:
        model = load_config(folder)
        known = find_statistics(weights_fingerprint(folder))
        blocks = () if known is None else known.blocks
        levels = choose_levels(settings.levels, model, settings.consolidation_block, known=blocks)
        return HopeConfig(model, WindowSpec(size=settings.window), levels, CHUNK_SIZE)
    window = trained.window
    if trained.attention_blocks and "window" in settings.model_fields_set:
        window = replace(window, size=settings.window)
    levels = trained.levels
    # Memories of its own are what a model without attention learns with; it needs no levels stacked on it.
    if settings.levels != "default" or (not levels and trained.attention_blocks):
        levels = choose_levels(settings.levels, trained.model, settings.consolidation_block, trained.chunk_size)
    return replace(trained, window=window, levels=levels)


def _fitting(params: Params, config: HopeConfig, trained: HopeConfig | None) -> Params:
    """The slow weights without the learned initial weights of levels that the operator has replaced."""
    kept = [] if trained is None else [spec.name for spec in trained.levels if spec in config.levels]
    return replace(params, levels={name: tensor for name, tensor in params.levels.items() if name in kept})


def assemble(
    settings: Settings, config: HopeConfig, params: Params, tokenizer: Tokenizer, digest: str, adapter_digest: str = ""
) -> Engine:
    """Build an engine around a loaded model. Raises StartupError.

    digest: of the weights as they are stored; adapter_digest: of what was added to them, empty for nothing.
    """
    _check_consolidation(settings, config)
    model = HopeModel(config, params.dtype, params)
    # Compiled now, if at all, so that no turn waits for it.
    native.library()
    fingerprint = model_fingerprint(config, digest + adapter_digest)
    speller = Speller(tokenizer)
    rehearsal = RehearsalSettings()
    longest = speller.longest_head + 2 * rehearsal.group
    if _consolidates(config) and config.attention_blocks and longest > config.window.size:
        raise SettingsError(f"a window of {config.window.size} tokens cannot hold a rehearsal; use {longest} at least")
    guards = _guards(model, params, tokenizer)
    cards = CardMaker(tokenizer.encode, tokenizer.decode, speller.frame)
    desk = StudyDesk(cards, _statistics(config, digest), _general_keys(config, params, tokenizer))
    writer_settings = WriterSettings(
        is_automatic=settings.consolidation == "auto",
        block=settings.consolidation_block,
        delay=settings.consolidation_delay,
        rehearsal=rehearsal,
    )
    writer = MemoryWriter(model, params, guards, speller, desk, writer_settings)
    pool = SlotPool(model.memory, settings.num_slots, params.dtype)
    loop = EngineLoop(Runner(model, params, pool, writer, tokenizer, fingerprint))
    store = build_store(settings)
    plan = PlanSettings(
        settings.max_prompt_tokens,
        config.window.size if config.attention_blocks else settings.max_prompt_tokens,
        settings.passes_user,
        settings.passes_assistant,
        settings.passes_learn,
        settings.max_passes,
        settings.max_completion_tokens,
        tuple(spec.name for spec in config.levels),
    )
    planner = RequestPlanner(tokenizer, plan)
    reader, gauge = StateReader(model.memory, params.dtype), MemoryGauge(model.memory)
    book = SessionBook(store, fingerprint, settings.host_cache_bytes)
    return Engine(settings, config.model.name, int(time.time()), book, loop, planner, reader, gauge)


def _statistics(config: HopeConfig, digest: str) -> KeyStatistics | None:
    """What whitened levels need to know of the keys; None where there is no such level. Raises SettingsError."""
    needed = {block for spec in config.levels if spec.is_whitened for block in spec.blocks}
    if not needed:
        return None
    found = find_statistics(digest)
    known = () if found is None else found.blocks
    if not needed <= set(known):
        raise SettingsError(
            f"levels: whitened levels need key statistics of blocks {sorted(needed)}, "
            f"this model has them of {list(known)}; use other blocks, or levels that are not whitened"
        )
    return found


def _consolidates(config: HopeConfig) -> bool:
    return any(spec.schedule == "consolidation" for spec in config.levels)


def _check_consolidation(settings: Settings, config: HopeConfig) -> None:
    """Raise SettingsError where a block would be consolidated inside a chunk, or after it has left the window."""
    if not _consolidates(config):
        return
    chunk, block, delay = config.chunk_size, settings.consolidation_block, settings.consolidation_delay
    fits = not config.attention_blocks or block + delay <= config.window.size
    if block % chunk or delay % chunk or not 0 < delay <= block or not fits:
        raise SettingsError(
            f"consolidation_block {block} and consolidation_delay {delay} must be multiples of {chunk} tokens, "
            f"the delay at most the block, and both together at most the window of {config.window.size}"
        )


def _guards(model: HopeModel, params: Params, tokenizer: Tokenizer) -> list[GuardPiece]:
    """What the slow weights say about the stored general text; empty where no level is held by it."""
    if all(spec.is_whitened or spec.schedule == "online" for spec in model.config.levels):
        return []
    longest = min(GUARD_TOKENS, model.config.window.size)
    pieces = [encode_block(tokenizer, block)[:longest] for block in general_blocks()]
    guards = make_guard(model, params, [piece for piece in pieces if len(piece) > 1])
    give_back()
    return guards


def _general_keys(config: HopeConfig, params: Params, tokenizer: Tokenizer) -> GeneralKeys | None:
    """What sets the gates of levels, from prose: chats resemble what is taught in chats. None where none has one."""
    blocks = sorted({block for spec in config.levels if spec.gate for block in spec.blocks})
    if not blocks:
        return None
    prose = (block for block in general_blocks() if not block.startswith(CHAT_MARK))
    texts = [encode_block(tokenizer, block)[:GATE_TOKENS] for block in prose]
    return read_general_keys(config.model, params, texts, blocks)

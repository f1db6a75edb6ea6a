"""The one place that sees both tensors and snapshots: a session's row and log to a Snapshot, and back, exactly.

Window keys and values are stored as they are rounded; consolidated levels are bfloat16-exact by construction; online
levels are stored in the model's dtype. What was never written is not stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from hope_memory.snapshot import Array, Level, Snapshot

from hope_server.engine.heap import copy_apart, zeros_apart
from hope_server.engine.journal import Journal
from hope_server.engine.rehearsal import Piece
from hope_server.engine.session_card import SessionCard
from hope_server.engine.session_log import BlockJob, SessionLog
from hope_server.engine.transcript import Conversation
from hope_server.errors import StateCorrupt
from hope_server.model.config import HopeConfig
from hope_server.model.state import FastState, LevelState, Memory, empty_state, reset_rows

CODE_FORMAT = 1
TITANS = "titans"
"""The stored level that holds every block's Titans memories."""
_PENDING_PARTS = ("keys", "values", "rates")
_SOURCES = ("user", "assistant", "text")
_TORCH = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
    "int64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in _TORCH.items()}
_LATER = {"titans": None, "cms": "independent"}
_LATER_OF_LEVELS = {"share": 1.0, "is_whitened": False, "gate": 0.0}


def model_fingerprint(config: HopeConfig, weights_digest: str) -> str:
    """Name everything that a state's meaning depends on: slow weights, tokenizer, window, levels, format.

    A setting that earlier builds did not have counts only where it is used, so that their states still open.
    """
    settings = _without_defaults(asdict(config), _LATER)
    settings["levels"] = [_without_defaults(level, _LATER_OF_LEVELS) for level in settings["levels"]]
    parts = json.dumps([CODE_FORMAT, weights_digest, settings], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _without_defaults(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in defaults or value != defaults[key]}


def export_row(
    memory: Memory, state: FastState, log: SessionLog, fingerprint: str, writes_before: dict[str, int]
) -> tuple[Snapshot, frozenset[str]]:
    """Copy a one-row state and its log into a Snapshot; also names the levels not written since `writes_before`.

    writes_before: each level's num_writes at the parent commit.
    """
    levels = {"window": _export_window(memory.config, state), "journal": _export_journal(log.journal)}
    if state.titans:
        levels[TITANS] = _export_titans(memory.config, state)
    unchanged = set()
    writes = {}
    for name, level in state.levels.items():
        writes[name] = int(level.num_writes[0])
        if not writes[name] and not level.accumulator.any():
            continue
        consolidated = memory.layouts[name].spec.schedule == "consolidation"
        arrays = {
            key: _array(tensor[0], torch.bfloat16 if consolidated else None)
            for key, tensor in level.tensors().items()
            if key != "num_writes" and tensor.shape[1]
        }
        levels[name] = Level(arrays)
        if writes_before.get(name) == writes[name] and not level.accumulator.shape[1]:
            unchanged.add(name)
    info = {
        "turn": log.turn,
        "num_tokens": log.position,
        "tokens_learned": log.tokens_learned,
        "answer_id": log.answer_id,
        **log.conversation.fields(),
        **log.card.fields(),
        "state_bytes": {name: level.num_bytes for name, level in levels.items()},
    }
    meta: dict[str, Any] = {
        "info": info,
        "writes": writes,
        "pending": state.pending[0, : int(state.num_pending[0])].tolist(),
        "teaches": state.pending_teaches[0, : int(state.num_pending[0])].tolist(),
        "journal": _journal_meta(log.journal),
        "job": None if log.job is None else [log.job.effect_at, log.job.start, log.job.stop, log.job.seed],
    }
    meta |= _limits_meta(log)
    return Snapshot(fingerprint, meta, levels), frozenset(unchanged)


def import_row(memory: Memory, state: FastState, snapshot: Snapshot) -> SessionLog:
    """Restore a one-row state in place and return its log. Raises StateCorrupt where the parts do not fit together."""
    reset_rows(memory, state)
    meta = snapshot.meta
    try:
        info = meta["info"]
        position = int(info["num_tokens"])
        _import_window(state, snapshot.levels["window"], position)
        if state.titans:
            _import_titans(memory.config, state, snapshot.levels[TITANS])
        for name, level in state.levels.items():
            writes = int(meta["writes"][name])
            if writes or name in snapshot.levels:
                _import_level(level, snapshot.levels[name])
            level.num_writes[0] = writes
        pending = len(meta["pending"])
        _fill(state.pending[0, :pending], torch.tensor(meta["pending"], dtype=torch.long))
        _fill(state.pending_teaches[0, :pending], torch.tensor(meta["teaches"], dtype=torch.bool))
        state.num_pending[0] = pending
        journal = _import_journal(snapshot.levels["journal"], meta["journal"])
        pending_levels = _import_limits(meta, journal, pending)
        job = None if meta["job"] is None else BlockJob(*meta["job"])
        return SessionLog(
            position=position,
            tokens_learned=int(info["tokens_learned"]),
            turn=int(info["turn"]),
            answer_id=str(info.get("answer_id", "")),
            conversation=Conversation.of(info),
            card=SessionCard.of(info),
            pending_levels=pending_levels,
            journal=journal,
            job=job,
        )
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as exc:
        raise StateCorrupt(f"the stored state lacks or misshapes a part: {type(exc).__name__}") from exc


@dataclass(frozen=True, slots=True)
class StoredState:
    """A snapshot as tensors: one row of state, its log, and the bytes of each stored level."""

    state: FastState
    log: SessionLog
    num_bytes: dict[str, int]


class StateReader:
    """Reads snapshots into states of their own, so that any thread may call it."""

    def __init__(self, memory: Memory, dtype: torch.dtype) -> None:
        self._memory = memory
        self._dtype = dtype

    def read(self, snapshot: Snapshot) -> StoredState:
        """Return what a snapshot holds. Raises StateCorrupt."""
        state = empty_state(self._memory, 1, self._dtype)
        log = import_row(self._memory, state, snapshot)
        return StoredState(state, log, {name: level.num_bytes for name, level in snapshot.levels.items()})


def kept_apart(snapshot: Snapshot) -> Snapshot:
    """The same snapshot in memory of its own, for one that stays in host memory for long.

    What a store reads comes as whole levels from the heap, where a block that stays keeps freed ones beside it from
    ever being given back; and an array that is a part of one would keep all of it.
    """
    levels = {
        name: Level({key: _array_apart(array) for key, array in level.arrays.items()})
        for name, level in snapshot.levels.items()
    }
    return replace(snapshot, levels=levels)


def _array_apart(array: Array) -> Array:
    kept = zeros_apart(len(array.data), torch.uint8).numpy().data
    kept[:] = array.data
    return replace(array, data=kept)


def _array(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> Array:
    """An Array over a private copy of the tensor's bytes."""
    kept = copy_apart(tensor, dtype)
    data = kept.flatten().view(torch.uint8).numpy().data
    return Array(_NAMES[kept.dtype], tuple(kept.shape), data)


def _tensor(array: Array) -> torch.Tensor:
    buffer = bytearray(array.data) if len(array.data) else bytearray(0)
    if not buffer:
        return torch.empty(array.shape, dtype=_TORCH[array.dtype])
    return torch.frombuffer(buffer, dtype=_TORCH[array.dtype]).reshape(array.shape)


def _export_window(config: HopeConfig, state: FastState) -> Level:
    """The used places of the ring, [L, U, n, d], in the dtype they are rounded to."""
    window = state.window
    used = min(int(window.positions[0]), window.keys.shape[3])
    dtype = torch.bfloat16 if config.window.precision == "bfloat16" else None
    return Level(
        {
            "keys": _array(window.keys[:, 0, :, :used], dtype),
            "values": _array(window.values[:, 0, :, :used], dtype),
        }
    )


def _import_window(state: FastState, level: Level, position: int) -> None:
    used = min(position, state.window.keys.shape[3])
    _fill(state.window.keys[:, 0, :, :used], _tensor(level.arrays["keys"]))
    _fill(state.window.values[:, 0, :, :used], _tensor(level.arrays["values"]))
    state.window.positions[0] = position


def _export_titans(config: HopeConfig, state: FastState) -> Level:
    """Every block's memories, and of its unfinished chunk what there is."""
    arrays = {}
    for block in state.titans:
        for name, tensor in _titans_parts(config, state, block).items():
            arrays[f"{block}.{name}"] = _array(tensor)
    return Level(arrays)


def _import_titans(config: HopeConfig, state: FastState, level: Level) -> None:
    for block in state.titans:
        for name, tensor in _titans_parts(config, state, block).items():
            _fill(tensor, _tensor(level.arrays[f"{block}.{name}"]))


def _titans_parts(config: HopeConfig, state: FastState, block: int) -> dict[str, torch.Tensor]:
    """The row's tensors of a block as views, cut to the tokens that wait for their chunk to complete."""
    pending = int(state.window.positions[0]) % config.chunk_size
    tensors = {name: tensor[0] for name, tensor in state.titans[block].tensors().items()}
    return {name: tensor[:, :pending] if name in _PENDING_PARTS else tensor for name, tensor in tensors.items()}


def _import_level(level: LevelState, stored: Level) -> None:
    for key, tensor in level.tensors().items():
        if key != "num_writes" and tensor.shape[1]:
            _fill(tensor[0], _tensor(stored.arrays[key]))


def _fill(target: torch.Tensor, stored: torch.Tensor) -> None:
    """Copy without broadcasting: a part of another shape is a fault, not a shorthand."""
    if stored.shape != target.shape:
        raise ValueError(f"{tuple(stored.shape)} instead of {tuple(target.shape)}")
    target.copy_(stored)


def _export_journal(journal: Journal) -> Level:
    """Pieces as flat columns: tokens, and a row (length, passes, paragraph, source) a piece."""
    tokens = [token for piece in journal.pieces for token in piece.tokens]
    rows = [[len(p.tokens), p.passes, p.paragraph, _SOURCES.index(p.source)] for p in journal.pieces]
    return Level(
        {
            "tokens": _array(torch.tensor(tokens, dtype=torch.int32)),
            "pieces": _array(torch.tensor(rows, dtype=torch.int32).reshape(-1, 4)),
        }
    )


def _journal_meta(journal: Journal) -> list[Any]:
    source = _SOURCES.index(journal.open_source)
    return [
        journal.num_consolidated,
        journal.open_tokens,
        journal.open_text,
        journal.open_passes,
        source,
        journal.paragraph,
    ]


def _import_journal(level: Level, meta: list[Any]) -> Journal:
    tokens = _tensor(level.arrays["tokens"]).tolist()
    pieces, offset = [], 0
    for length, passes, paragraph, source in _tensor(level.arrays["pieces"]).tolist():
        pieces.append(Piece(tuple(tokens[offset : offset + length]), passes, paragraph, _SOURCES[source]))
        offset += length
    consolidated, open_tokens, open_text, open_passes, open_source, paragraph = meta
    if offset != len(tokens) or not 0 <= consolidated <= len(pieces):
        raise ValueError(f"{len(pieces)} pieces of {offset} tokens, {consolidated} consolidated, {len(tokens)} stored")
    return Journal(pieces, consolidated, list(open_tokens), open_text, open_passes, _SOURCES[open_source], paragraph)


def _limits_meta(log: SessionLog) -> dict[str, Any]:
    """Which levels pieces and pending tokens may teach, by their place; nothing where all may teach all."""
    pieces = _as_runs([piece.levels for piece in log.journal.pieces])
    pending = _as_runs(log.pending_levels)
    still_open = log.journal.open_levels if log.journal.open_tokens else None
    if not pieces and not pending and still_open is None:
        return {}
    open_levels = None if still_open is None else list(still_open)
    return {"limits": {"pieces": pieces, "pending": pending, "open": open_levels}}


def _as_runs(limits: Sequence[tuple[str, ...] | None]) -> list[list[Any]]:
    """Places in a row with the same levels as [first, last, levels]: a long restricted text must stay small."""
    runs: list[list[Any]] = []
    for place, levels in enumerate(limits):
        if levels is None:
            continue
        if runs and runs[-1][1] == place - 1 and runs[-1][2] == list(levels):
            runs[-1][1] = place
        else:
            runs.append([place, place, list(levels)])
    return runs


def _import_limits(meta: dict[str, Any], journal: Journal, num_pending: int) -> list[tuple[str, ...] | None]:
    """Give pieces their levels again, and return those of the pending tokens."""
    pending: list[tuple[str, ...] | None] = [None] * num_pending
    limits = meta.get("limits")
    if limits is None:
        return pending
    for first, last, levels in limits["pending"]:
        pending[first : last + 1] = [tuple(levels)] * (last + 1 - first)
    for first, last, levels in limits["pieces"]:
        for place in range(first, last + 1):
            journal.pieces[place] = replace(journal.pieces[place], levels=tuple(levels))
    journal.open_levels = None if limits["open"] is None else tuple(limits["open"])
    return pending

"""What a turn tells of itself: its receipt, and what its session remembers of it."""

from __future__ import annotations

import math

from hope_server.engine.run import Run, RunStats
from hope_server.engine.session_card import TurnRecord
from hope_server.engine.turn import MemoryMode, Receipt


def receipt_of(run: Run, mode: MemoryMode, before: str | None, after: str | None) -> Receipt:
    """The receipt of a run; `before` and `after` are versions of the store. What the commit reached comes later."""
    stats = run.stats
    return Receipt(
        session_id=run.key.session_id if run.key is not None else "",
        mode=mode if run.not_learned is None else "read",
        version_before=before,
        version_after=after,
        turn=run.log.turn,
        tokens_read=stats.tokens_read,
        tokens_learned=stats.tokens_learned,
        steps=stats.steps,
        loss_before=_mean_loss(stats),
        loss_after=stats.loss_last,
        update_norm=stats.update_norm,
        durability="none",
        restored_from=stats.restored_from,
        discarded=stats.discarded,
        not_learned=run.not_learned,
    )


def note_turn(run: Run) -> None:
    """Write into a run's log what the session remembers of the turn; its version is only known once it is committed."""
    log, stats = run.log, run.stats
    log.conversation, log.card = run.conversation, run.card
    if run.kind is None:
        return
    log.turn += 1
    log.answer_id = run.answer_id
    record = TurnRecord(
        turn=log.turn,
        created=run.created,
        kind=run.kind,
        tokens_read=stats.tokens_read,
        tokens_learned=stats.tokens_learned,
        loss_before=_finite(_mean_loss(stats)),
        loss_after=_finite(stats.loss_last),
        update_norm={name: norm for name, norm in stats.update_norm.items() if math.isfinite(norm)},
    )
    log.card = run.card.with_turn(record)


def _mean_loss(stats: RunStats) -> float | None:
    return stats.loss_sum / stats.num_losses if stats.num_losses else stats.loss_first


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

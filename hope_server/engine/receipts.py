"""What a turn tells of itself: its receipt out of its counters."""

from __future__ import annotations

from hope_server.engine.run import Run
from hope_server.engine.turn import MemoryMode, Receipt


def receipt_of(run: Run, mode: MemoryMode, before: str | None, after: str | None) -> Receipt:
    """The receipt of a run; `before` and `after` are versions of the store. What the commit reached comes later."""
    stats = run.stats
    mean = stats.loss_sum / stats.num_losses if stats.num_losses else stats.loss_first
    return Receipt(
        session_id=run.key.session_id if run.key is not None else "",
        mode=mode,
        version_before=before,
        version_after=after,
        turn=run.log.turn,
        tokens_read=stats.tokens_read,
        tokens_learned=stats.tokens_learned,
        steps=stats.steps,
        loss_before=mean,
        loss_after=stats.loss_last,
        update_norm=stats.update_norm,
        durability="none",
        restored_from=stats.restored_from,
        discarded=stats.discarded,
    )

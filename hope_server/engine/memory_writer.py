"""When a session's memory is written: chunk by chunk while tokens stream, block by block by consolidation.

Every write happens at a position counted from the session's start, or at an explicit request, so the state never
depends on how the text arrived or on when a job ran. Works on one row of the pool; called by the runner alone.

A turn may name the levels that it teaches. Then each of its tokens teaches exactly these: an online level learns from a
chunk what the tokens that may teach it tell, also where the chunk holds tokens of several turns, and a consolidated
level rehearses the pieces that may teach it, as new ones and as the past. When a write is made depends on the position
alone: a turn that reaches a boundary makes what earlier turns left due, in whatever level.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from hope_server.engine.consolidation import Consolidation, GuardPiece
from hope_server.engine.heap import copy_apart
from hope_server.engine.journal import Journal
from hope_server.engine.learner import Learner
from hope_server.engine.level_job import LevelJob
from hope_server.engine.rehearsal import Piece, RehearsalSettings, plan_rehearsal
from hope_server.engine.run import FeedToken, Run
from hope_server.engine.session_log import BlockJob, SessionLog
from hope_server.engine.speller import Speller
from hope_server.engine.state_codec import TITANS
from hope_server.engine.study import Study, StudyDesk, reach_of
from hope_server.model.config import LevelSpec
from hope_server.model.hope import HopeModel
from hope_server.model.params import Params
from hope_server.model.state import FastState, reset_titans

JOURNAL = "journal"
"""What a reset calls the session's own text."""
MOST_PIECES = 512
"""Sentences of one explicit consolidation: a longer text takes several, so that planning never holds others up."""


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """is_automatic: consolidate every completed block; block, delay: in tokens, multiples of the chunk."""

    is_automatic: bool = True
    block: int = 256
    delay: int = 128
    rehearsal: RehearsalSettings = field(default_factory=RehearsalSettings)


class MemoryWriter:
    """Writes memories of one session at a time."""

    def __init__(
        self,
        model: HopeModel,
        params: Params,
        guards: list[GuardPiece],
        speller: Speller,
        desk: StudyDesk,
        settings: WriterSettings,
    ) -> None:
        self._model = model
        self._desk = desk
        self._params = params
        self._guards = guards
        self._speller = speller
        self._settings = settings
        self._learner = Learner(model)
        self._slow = tuple(spec for spec in model.config.levels if spec.schedule == "consolidation" and spec.lr > 0)

    @property
    def keeps_journal(self) -> bool:
        """Whether any level ever reads the session's own text again; where none does, keeping it would only grow."""
        return bool(self._slow)

    # -- the online pass ---------------------------------------------------------------------------------------------

    def write_chunk(self, run: Run, state: FastState, tokens: list[FeedToken]) -> torch.Tensor:
        """Complete the online chunk with `tokens` and write the online levels; returns the logits [1, V] after it."""
        pending = run.num_pending
        state.window.positions -= pending
        ids = torch.cat([state.pending[:, :pending], torch.tensor([[t.token for t in tokens]])], dim=1)
        fresh = torch.tensor([[t.source is not None for t in tokens]], dtype=torch.bool)
        teaches = torch.cat([state.pending_teaches[:, :pending], fresh], dim=1)
        if run.stats.discarded is not None:
            teaches = torch.zeros_like(teaches)
        self._keep_levels(run, state)
        masks = self._masks([*run.log.pending_levels, *(token.levels for token in tokens)], teaches)
        run.log.pending_levels.clear()
        outcome = self._learner.write_chunk(self._params, state, ids, teaches, masks)
        state.num_pending.zero_()
        run.num_pending = 0
        taught = int(outcome.num_taught[0])
        if not bool(outcome.is_finite[0]):
            self.discard_learning(run, state, "an online gradient was not finite")
        else:
            run.stats.loss_sum += float(outcome.loss[0])
            run.stats.num_losses += taught
            for name, norm in outcome.update_norm.items():
                run.stats.update_norm[name] = run.stats.update_norm.get(name, 0.0) + float(norm[0])
        return outcome.logits

    # -- consolidation -----------------------------------------------------------------------------------------------

    def reach_boundary(self, run: Run, state: FastState) -> None:
        """Do what is due at the position just reached; may leave the run blocked until its job is computed."""
        log = run.log
        if log.position % self._settings.block == 0 and log.job is None:
            # What no block takes must not pile up; what this very turn is to consolidate at its end may wait for it.
            log.journal.trim(keeps_waiting=run.rehearsal is not None)
            if self._settings.is_automatic:
                self._open_job(log)
        if log.job is not None and log.position >= log.job.effect_at:
            run.job, run.is_blocked = log.job, True
            self.settle(run, state)

    def begin_rehearsal(self, run: Run, state: FastState) -> None:
        """Start the explicit consolidation of everything that no block has taken; a pending block comes first."""
        if run.log.job is not None:
            run.job = run.log.job
        else:
            run.job = self._explicit_job(run)
        self.settle(run, state)

    def advance(self, run: Run, state: FastState) -> None:
        """Take one step of the run's job, and apply it when it is done."""
        if run.job is not None:
            self._step(run.job, run.log, state, run.rehearsal.passes if run.rehearsal else None)
            run.stats.steps += 1
        self.settle(run, state)

    def advance_idle(self, log: SessionLog, state: FastState) -> bool:
        """Take one step of a resident session's pending block; whether there was one to take."""
        job = log.job
        if job is None or (job.runs is not None and all(item.is_done for item in job.runs)):
            return False
        self._step(job, log, state, None)
        return True

    def settle(self, run: Run, state: FastState) -> None:
        """Apply the run's job if it is computed; then unblock, or go on to the explicit consolidation's next one."""
        job = run.job
        if job is not None:
            runs = self._runs(job, run.log, state, run.rehearsal.passes if run.rehearsal else None)
            if not all(item.is_done for item in runs):
                return
            self._apply(run, state, runs)
        run.is_blocked = False
        was_block, run.job = job is not None and job is run.log.job, None
        if was_block:
            run.log.job = None
        if run.log.job is None:
            run.log.journal.trim(keeps_waiting=run.rehearsal is not None)
        if run.phase == "consolidating" and job is not None:
            run.job = self._explicit_job(run)
            self.settle(run, state)

    def job_progress(self, run: Run) -> tuple[int, int, float | None]:
        """Steps done, steps in all and the last loss of the run's job."""
        runs = run.job.runs if run.job is not None and run.job.runs else []
        losses = [item.losses[-1] for item in runs if item.losses]
        return sum(item.num_done for item in runs), sum(item.num_steps for item in runs), losses[-1] if losses else None

    def discard_learning(self, run: Run, state: FastState, reason: str) -> None:
        """Put every level and the journal back to where the turn began; the rest of the turn learns nothing."""
        run.stats.discarded = reason
        run.stats.update_norm = {}
        run.stats.tokens_learned = 0
        for name, kept in (run.levels_before or {}).items():
            before = kept.tensors()
            for key, tensor in state.levels[name].tensors().items():
                tensor.copy_(before[key])
        if run.log_before is not None:
            run.log.journal = run.log_before.journal.copy()
            run.log.job = run.log_before.job
            run.log.tokens_learned = run.log_before.tokens_learned
        run.job, run.is_blocked = None, False

    def reset(self, run: Run, state: FastState) -> None:
        """Make the run's `resets` new: levels, and the journal and the Titans memories by those names.

        What waits does not teach levels either; to the Titans memories the unfinished chunk is read anew.
        """
        log, memory = run.log, self._model.memory
        if TITANS in run.resets:
            reset_titans(memory, state)
            if run.num_pending:
                state.window.positions -= run.num_pending
                self._model.prefill(self._params, state, state.pending[:, : run.num_pending])
        for name in run.resets:
            if name not in state.levels:
                continue
            for tensor in state.levels[name].tensors().values():
                tensor.zero_()
            level = state.levels[name]
            level.weights.copy_(memory.initial[name].expand_as(level.weights))
        others = tuple(name for name in state.levels if name not in run.resets)
        log.pending_levels = [
            tuple(name for name in (others if levels is None else levels) if name in others)
            for levels in log.pending_levels
        ]
        if log.job is not None:
            # What was computed of it started from weights that are gone.
            log.job = replace(log.job, runs=None)
        if JOURNAL in run.resets:
            log.journal, log.job = Journal(), None

    # -- private -----------------------------------------------------------------------------------------------------

    def _masks(self, levels: list[tuple[str, ...] | None], teaches: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """For each online level, which tokens of a chunk may teach it; None where every level learns all of them."""
        if all(allowed is None for allowed in levels):
            return None
        return {
            name: teaches & torch.tensor([[allowed is None or name in allowed for allowed in levels]])
            for name in (spec.name for spec in self._learner.online)
        }

    def _open_job(self, log: SessionLog) -> None:
        journal = log.journal
        if self._slow and any(piece.passes for piece in journal.unconsolidated()):
            start, journal.num_consolidated = journal.num_consolidated, len(journal.pieces)
            log.job = BlockJob(log.position + self._settings.delay, start, len(journal.pieces), log.position)

    def _explicit_job(self, run: Run) -> BlockJob | None:
        journal = run.log.journal
        journal.end_paragraph()
        if not self._slow or not journal.unconsolidated() or run.stats.discarded is not None:
            return None
        start = journal.num_consolidated
        journal.num_consolidated = min(start + MOST_PIECES, len(journal.pieces))
        return BlockJob(run.log.position, start, journal.num_consolidated, run.log.position + 1)

    def _runs(self, job: BlockJob, log: SessionLog, state: FastState, passes: int | None) -> list[LevelJob]:
        if job.runs is None:
            pieces = log.journal.pieces
            new = pieces[job.start : job.stop]
            if passes is not None and job is not log.job:
                new = [_with_passes(piece, passes) for piece in new]
            job.runs = []
            for spec in self._slow:
                allowed = [piece for piece in new if piece.teaches(spec.name)]
                past = [piece for piece in pieces[: job.start] if piece.teaches(spec.name)]
                job.runs.append(self._level_job(spec, state.levels[spec.name].weights, allowed, past, job.seed))
        return job.runs

    def _level_job(
        self, spec: LevelSpec, weights: torch.Tensor, new: list[Piece], past: list[Piece], seed: int
    ) -> LevelJob:
        """Plan what a level is to learn of new pieces beside the past ones."""
        if spec.is_whitened and self._desk.statistics is not None:
            desk, statistics = self._desk, self._desk.statistics
            cards, system = desk.cards.plan(new, past, seed), desk.cards.system
            reach = reach_of(new, past)
            return Study(self._model, spec, weights, cards, statistics, system, desk.general, desk.rounded, reach)
        steps = plan_rehearsal(new, past, seed, self._settings.rehearsal, self._speller.spell)
        return Consolidation(self._model, spec, weights, steps, self._guards, self._speller.frame)

    def _step(self, job: BlockJob, log: SessionLog, state: FastState, passes: int | None) -> None:
        for item in self._runs(job, log, state, passes):
            if not item.is_done:
                item.advance(self._params)
                return

    def _apply(self, run: Run, state: FastState, runs: list[LevelJob]) -> None:
        if not all(item.is_finite for item in runs):
            self._keep_levels(run, state)
            self.discard_learning(run, state, "a consolidation step was not finite")
            return
        self._keep_levels(run, state)
        for item in runs:
            if item.num_steps == 0:
                continue
            level = state.levels[item.name]
            norm = float((item.weights - level.weights).norm())
            run.stats.update_norm[item.name] = run.stats.update_norm.get(item.name, 0.0) + norm
            level.weights.copy_(item.weights)
            level.num_writes += 1
            first, last = item.mean_losses()
            run.stats.loss_first = first if run.stats.loss_first is None else run.stats.loss_first
            run.stats.loss_last = last

    def _keep_levels(self, run: Run, state: FastState) -> None:
        """Remember the levels as they were before the turn's first write."""
        if run.levels_before is None:
            run.levels_before = {name: level.clone(copy_apart) for name, level in state.levels.items()}


def _with_passes(piece: Piece, passes: int) -> Piece:
    return piece if piece.source == "assistant" else replace(piece, passes=passes)

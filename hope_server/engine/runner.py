"""Moves turns on: seats them in slots, reads, decodes, scores, and hands finished states over. Owns every tensor.

Called by the engine thread alone. The memory is written in `read`, through the MemoryWriter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from hope_kernels.products import fast_products

from hope_server.engine.memory_writer import MemoryWriter
from hope_server.engine.receipts import note_turn
from hope_server.engine.run import FeedToken, Prepared, Run, Scored
from hope_server.engine.slots import Resident, SlotPool
from hope_server.engine.state_codec import export_row, import_row
from hope_server.engine.tokenizer import Tokenizer
from hope_server.engine.tool_format import split_reply
from hope_server.engine.turn import (
    LearnProgress,
    Message,
    Score,
    SessionKey,
    TokenLogprob,
    TokenText,
    TurnFinished,
    Usage,
)
from hope_server.model.hope import HopeModel
from hope_server.model.params import Params
from hope_server.model.state import FastState, reset_rows

READ_TOKENS = 256
"""Tokens read at once by turns that do not learn, where the attention window holds as many."""


class Runner:
    """Computes turns one round at a time."""

    def __init__(
        self,
        model: HopeModel,
        params: Params,
        pool: SlotPool,
        writer: MemoryWriter,
        tokenizer: Tokenizer,
        fingerprint: str,
    ) -> None:
        self.pool = pool
        self._model = model
        self._params = params
        self._writer = writer
        self._tokenizer = tokenizer
        self._fingerprint = fingerprint
        config = model.config
        self._writes_online = any(spec.schedule == "online" and spec.lr > 0 for spec in config.levels)
        self._most_tokens = min(READ_TOKENS, config.window.size) if config.attention_blocks else READ_TOKENS

    # -- seats ---

    def lacks_state(self, run: Run) -> bool:
        """Whether a turn's session is neither in a slot nor at hand as a snapshot."""
        return run.version is not None and run.snapshot is None and self._resident(run) is None

    def seat(self, run: Run) -> None:
        """Give a turn a slot with its session's state, which it must not lack."""
        if run.index == 0:
            run.ledger.add("queue", run.submitted)
        run.chunk_size = self._model.config.chunk_size
        resident = self._resident(run)
        if resident is not None and run.learns:
            taken = self.pool.occupy(resident)
            run.slot, run.log, run.writes_before = resident, taken.log.copy(), taken.writes
            run.stats.restored_from = "hot"
        else:
            self._seat_copy(run, resident)
        state = self.pool.row(run.slot)
        if not run.keep_window:
            state.empty_window()
        run.num_pending = int(state.num_pending[0])
        if run.resets:
            self._writer.reset(run, state)
        run.log_before = run.log.copy()
        run.snapshot = None
        self._begin(run)

    def _resident(self, run: Run) -> int | None:
        slot = self.pool.find(run.key) if run.key is not None and run.version is not None else None
        resident = self.pool.residents[slot] if slot is not None else None
        return slot if resident is not None and resident.version == run.version else None

    def _seat_copy(self, run: Run, resident: int | None) -> None:
        """Take a slot and fill it with a copy of the session's state, leaving any resident as it is."""
        cached = self.pool.residents[resident] if resident is not None else None
        run.slot = self.pool.take(keep=resident)
        state = self.pool.row(run.slot)
        if cached is not None and resident is not None:
            if resident != run.slot:
                state.copy_(self.pool.row(resident))
            run.log, run.writes_before = cached.log.copy(), cached.writes
            run.stats.restored_from = "hot"
        elif run.snapshot is not None:
            began = time.perf_counter()
            run.log = import_row(self._model.memory, state, run.snapshot)
            run.ledger.add("restore", began)
            run.writes_before = {name: int(level.num_writes[0]) for name, level in state.levels.items()}
            run.stats.restored_from = run.snapshot_from
        else:
            reset_rows(self._model.memory, state)

    def commit(self, run: Run, version: str) -> None:
        """The turn's state is known as `version` from now on: its slot is an idle cache of it."""
        if run.key is None:
            raise RuntimeError("a turn without a session has nothing to commit")
        if run.parked_as is not None:
            self.pool.rename(run.key, run.parked_as, version)
            run.parked_as = version
            return
        writes = {name: int(level.num_writes[0]) for name, level in self.pool.row(run.slot).levels.items()}
        self.pool.settle(run.slot, Resident(run.key, version, run.log, writes, 0))
        run.parked_as = version

    def drop(self, run: Run) -> None:
        """Forget what a turn did; its slot is free."""
        if run.key is not None and run.parked_as is not None:
            self.pool.forget(run.key, run.parked_as)
        elif run.slot >= 0:
            self.pool.settle(run.slot, None)
            run.slot = -1
        run.phase = "done"

    def forget(self, key: SessionKey) -> None:
        """Drop the cache of a session that was deleted."""
        self.pool.forget(key)

    # -- one round ---

    def read(self, run: Run) -> None:
        """Read the turn's next tokens, up to a chunk boundary; write the memory where a chunk completes."""
        if run.phase == "scoring":
            self._score(run)
            return
        began, num_taught = time.perf_counter(), run.stats.num_losses
        state = self.pool.row(run.slot)
        room = run.chunk_size - run.num_pending if run.learns else self._most_tokens
        tokens = [run.feed.popleft() for _ in range(min(len(run.feed), room))]
        if run.learns and len(tokens) == room:
            run.logits = self._writer.write_chunk(run, state, tokens)
        else:
            ids = torch.tensor([[token.token for token in tokens]])
            run.logits, _ = self._model.prefill(self._params, state, ids)
            self._remember(run, state, tokens)
        self._account(run, tokens)
        if run.learns and run.num_pending == 0:
            self._writer.reach_boundary(run, state)
        # A chunk that teaches is read and learned in one pass.
        is_learned = self._writes_online and run.stats.num_losses > num_taught
        run.ledger.add("learn" if is_learned else "prefill" if run.phase == "reading" else "decode", began)
        if run.rehearsal is not None:
            self._report(run)
        self.move_on(run)

    def decode(self, runs: Sequence[Run]) -> None:
        """Read one generated token in each of the turns, all in one batch, wherever their slots lie.

        Each turn then has to `move_on`, apart, so that what goes wrong in one ends only that one.
        """
        began = time.perf_counter()
        ordered = sorted(runs, key=lambda run: run.slot)
        states = [self.pool.state.rows(low, high) for low, high in _stretches([run.slot for run in ordered])]
        tokens = torch.tensor([run.feed[0].token for run in ordered])
        active = torch.ones(len(ordered), dtype=torch.bool)
        logits = self._model.decode_stretches(self._params, states, tokens, active)
        for place, run in enumerate(ordered):
            taken = [run.feed.popleft()]
            run.logits = logits[place : place + 1]
            self._remember(run, self.pool.row(run.slot), taken)
            self._account(run, taken)
        # Replies to one request share their turn's ledger.
        for ledger in {run.ledger for run in ordered}:
            ledger.add("decode", began)

    def consolidate(self, run: Run) -> None:
        """Take one step of the consolidation that a turn waits for."""
        began = time.perf_counter()
        with fast_products(run.chunk_size):
            self._writer.advance(run, self.pool.row(run.slot))
        run.ledger.add("learn", began)
        self._report(run)
        self.move_on(run)

    def idle(self, running: Sequence[Run]) -> bool:
        """Take one step of some pending block that no turn waits for; False if there is none.

        One that has begun comes before others, those of `running` turns too, which need them soonest: until it is done
        it holds several times the memory of what it writes. In a turn's slot none begins.
        """
        found = [(run.log, run.slot) for run in running if run.log.has_begun_study]
        idle = [(resident.log, slot) for slot, resident in enumerate(self.pool.residents) if resident is not None]
        found += sorted(idle, key=lambda each: not each[0].has_begun_study)
        for log, slot in found:
            with fast_products(self._model.config.chunk_size):
                if self._writer.advance_idle(log, self.pool.row(slot)):
                    return True
        return False

    # -- phases ---

    def _begin(self, run: Run) -> None:
        run.stats.prompt_tokens = len(run.feed)
        if not run.feed:
            self.move_on(run)

    def move_on(self, run: Run) -> None:
        """Enter the next phase once everything was read and nothing blocks."""
        if run.feed or run.is_blocked or run.phase == "done":
            return
        if run.phase == "reading" and run.generation is not None:
            run.phase = "generating"
        elif run.phase == "reading" and run.rehearsal is not None:
            run.phase = "consolidating"
            began = time.perf_counter()
            self._writer.begin_rehearsal(run, self.pool.row(run.slot))
            run.ledger.add("learn", began)
        elif run.phase == "reading" and run.scoring is not None:
            run.phase = "scoring"
            return
        if run.phase == "generating":
            self._sample(run)
        elif run.job is None:
            self._finish(run)

    def _sample(self, run: Run) -> None:
        generation = run.generation
        if generation is None or run.logits is None:
            raise RuntimeError("a turn generates before it has read anything")
        began = time.perf_counter()
        token = generation.sampler.sample(run.logits[0])
        run.ledger.add("decode", began)
        source = run.reply_source if run.learns else None
        if token in generation.eos_ids:
            self._end_reply(run, [])
            return
        run.stats.completion_tokens += 1
        generation.sampler.observe(token)
        if generation.logprobs is not None:
            generation.logprobs.note(token, run.logits[0], generation.detokenizer.num_decoded)
        self._say(run, generation.detokenizer.push(token))
        if generation.detokenizer.stopped:
            self._end_reply(run, [])
        elif run.stats.completion_tokens >= generation.max_tokens:
            run.finish_reason = "length"
            self._end_reply(run, [FeedToken(token, source, generation.passes, run.levels)])
        else:
            run.feed.append(FeedToken(token, source, generation.passes, run.levels))

    def _end_reply(self, run: Run, unread: list[FeedToken]) -> None:
        """Flush the text; in a session that learns, close the message so that the next turn can follow."""
        generation = run.generation
        if generation is None:
            raise RuntimeError("a turn without generation has no reply to end")
        self._say(run, generation.detokenizer.flush(), is_end=True)
        run.phase = "closing"
        if generation.is_message:
            run.conversation = run.conversation.hear((Message("assistant", *split_reply(run.reply)),))
        if run.learns:
            run.feed.extend([*unread, *(FeedToken(token) for token in generation.closing)])
        if not run.feed:
            self._finish(run)

    def _say(self, run: Run, text: str, *, is_end: bool = False) -> None:
        generation = run.generation
        taken: tuple[TokenLogprob, ...] = ()
        if generation is not None and generation.logprobs is not None:
            taken = generation.logprobs.take(generation.detokenizer.num_given)
            if is_end and not generation.detokenizer.stopped:
                # Bytes of a character that the end cut off are no text, but they are tokens.
                taken += generation.logprobs.take_rest()
            run.logprobs.extend(taken)
        if text or taken:
            run.reply += text
            run.emit(TokenText(text, run.index, taken))

    def _finish(self, run: Run) -> None:
        """Hand the state over to be committed, or end a turn that leaves none."""
        run.phase = "done"
        if run.learns:
            note_turn(run)
            snapshot, unchanged = export_row(
                self._model.memory, self.pool.row(run.slot), run.log, self._fingerprint, run.writes_before
            )
            run.emit(Prepared(snapshot, unchanged))
            return
        self.drop(run)
        usage = Usage(run.stats.prompt_tokens, run.stats.completion_tokens)
        run.emit(TurnFinished(run.finish_reason, usage, None))

    # -- parts ---

    def _remember(self, run: Run, state: FastState, tokens: list[FeedToken]) -> None:
        """Add tokens that were read inside a chunk to the pending ones."""
        if not run.learns:
            return
        for token in tokens:
            state.pending[0, run.num_pending] = token.token
            state.pending_teaches[0, run.num_pending] = token.source is not None
            run.num_pending += 1
            run.log.pending_levels.append(token.levels)
        state.num_pending.fill_(run.num_pending)

    def _account(self, run: Run, tokens: list[FeedToken]) -> None:
        run.stats.tokens_read += len(tokens)
        if not run.learns:
            return
        log = run.log
        log.position += len(tokens)
        for token in tokens:
            source = token.source if run.stats.discarded is None else None
            if self._writer.keeps_journal:
                text = self._tokenizer.token_text(token.token)
                log.journal.read(token.token, text, token.passes, source, token.levels)
            if source is not None:
                log.tokens_learned += 1
                run.stats.tokens_learned += 1

    def _report(self, run: Run) -> None:
        if run.rehearsal is None:
            return
        done, total, loss = self._writer.job_progress(run)
        read = run.stats.prompt_tokens - len(run.feed)
        run.emit(LearnProgress(read, run.stats.prompt_tokens, done, total, loss))

    @torch.no_grad()
    def _score(self, run: Run) -> None:
        """Score every continuation; the last prompt token is read again at the head of each."""
        scoring = run.scoring
        if scoring is None:
            raise RuntimeError("a turn without continuations cannot score")
        state = self.pool.row(run.slot)
        scores = [self._score_one(state, run.logits, tokens) for tokens in scoring.continuations]
        self.drop(run)
        run.emit(Scored(tuple(scores)))

    def _score_one(self, state: FastState, logits: torch.Tensor | None, tokens: tuple[int, ...]) -> Score:
        """Sum the log-probabilities of tokens after logits [1, V]; without a prompt the first token is not scored."""
        total, counted = 0.0, len(tokens)
        if logits is not None:
            total += float(logits[0].log_softmax(-1)[tokens[0]])
        else:
            counted -= 1
        if len(tokens) > 1:
            hidden, _ = self._model.read(self._params, state, torch.tensor([tokens[:-1]]))
            for start in range(0, len(tokens) - 1, READ_TOKENS):
                part = self._model.logits(self._params, hidden[0, start : start + READ_TOKENS]).log_softmax(-1)
                targets = torch.tensor(tokens[start + 1 : start + 1 + len(part)])
                total += float(part.gather(1, targets[:, None]).sum())
        return Score(total, counted)


def _stretches(slots: Sequence[int]) -> list[tuple[int, int]]:
    """Where ascending slots lie side by side: the first of each stretch and the one behind its last."""
    out: list[tuple[int, int]] = []
    for slot in slots:
        if out and slot == out[-1][1]:
            out[-1] = (out[-1][0], slot + 1)
        else:
            out.append((slot, slot + 1))
    return out

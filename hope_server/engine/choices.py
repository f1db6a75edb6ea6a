"""Several replies to one request: each is drawn from a copy of the state behind the prompt, and none is learned.

A turn that learns reads its messages first, without what only asks for a reply; its state is then set down as an idle
cache, so that it takes no slot while the replies are drawn from copies of it. They wait for slots like other turns,
and decode as one batch.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence

from hope_server.engine.replay import Reply
from hope_server.engine.run import FeedToken, Generation, Prepared, Run
from hope_server.engine.turn import Usage


def each_reading(run: Run) -> list[Run]:
    """Split a turn that does not learn into one run a reply, each of which reads the prompt."""
    return [_reply_run(run, index, generation, run.feed) for index, generation in enumerate(_generations(run))]


class Replies:
    """The replies of a turn that learns, taken off its run, which then only reads."""

    def __init__(self, run: Run) -> None:
        """Change `run` into one that reads its messages and is prepared; it must not have been submitted."""
        self._generations = _generations(run)
        self._opening = deque(reversed([run.feed.pop() for _ in range(self._generations[0].num_opening)]))
        self._run = run
        self.num_opening = len(self._opening)
        self.name = f"draft-{secrets.token_hex(16)}"
        run.generation, run.others = None, ()

    def runs(self, event: Prepared) -> list[Run]:
        """One run a reply, from the state that the reading run prepared and that is parked as `name`."""
        made = []
        for index, generation in enumerate(self._generations):
            run = _reply_run(self._run, index, generation, self._opening)
            run.version, run.snapshot, run.keep_window = self.name, event.snapshot, True
            # With nothing left to read, the reply begins from what the reading run was told last.
            run.logits = None if self._opening else self._run.logits
            made.append(run)
        return made


def reply_of(run: Run) -> Reply:
    """What a run that has ended said."""
    return Reply(run.reply, run.finish_reason, tuple(run.logprobs))


def usage_of(num_prompt: int, runs: Sequence[Run]) -> Usage:
    """The tokens of several replies to one prompt."""
    return Usage(num_prompt, sum(run.stats.completion_tokens for run in runs))


def _generations(run: Run) -> tuple[Generation, ...]:
    if run.generation is None:
        raise ValueError("a turn without a reply has no choices")
    return (run.generation, *run.others)


def _reply_run(run: Run, index: int, generation: Generation, feed: deque[FeedToken]) -> Run:
    return Run(
        emit=run.emit,
        feed=deque(feed),
        key=run.key,
        tenant=run.tenant,
        version=run.version,
        keep_window=run.keep_window,
        generation=generation,
        index=index,
        conversation=run.conversation,
        card=run.card,
        kind=run.kind,
        not_learned=run.not_learned,
    )

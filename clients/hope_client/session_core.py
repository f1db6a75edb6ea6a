"""Every verb of a session, written once as flows, and what a session remembers between them: what it saw last."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hope_client import answers, parts, requests
from hope_client.core import Habits
from hope_client.errors import HopeError, MemoryEvicted
from hope_client.flow import Flow, Open, Progress, Send, Study, T, attempt
from hope_client.objects import (
    LearnProgress,
    LearnResult,
    MemoryStatistics,
    RecallLift,
    Receipt,
    Reply,
    Score,
    SessionInfo,
    Snapshot,
    Turn,
    Usage,
    Version,
)
from hope_client.options import ChatOptions, Message
from hope_client.requests import Call, Patch, Question, Terms


class SessionCore:
    """One session; each method is the flow of the Session method of its name."""

    def __init__(self, habits: Habits, info: SessionInfo) -> None:
        self.last_info = info
        self.version = info.version
        self._habits = habits

    @property
    def id(self) -> str:
        """The session's name."""
        return self.last_info.id

    def sibling(self, info: SessionInfo) -> SessionCore:
        """Return the core of another session of the same client."""
        return SessionCore(self._habits, info)

    # -- turns ---

    def chat(self, prompt: str | Sequence[Message], options: ChatOptions) -> Flow[Reply]:
        """Take a turn."""
        terms = self._terms(options.get("key"))
        call = requests.chat(self.last_info, prompt, options, terms, stream=False)
        reply = yield from _named(terms.key, self._habits.fetch(call, answers.read_reply))
        yield from self.note(reply.receipt, reply.text)
        return reply

    def prepare_stream(self, prompt: str | Sequence[Message], options: ChatOptions) -> tuple[str, Flow[Any]]:
        """Return the key of a streamed turn, and the flow that opens it and returns httpx's response."""
        terms = self._terms(options.get("key"))
        call = requests.chat(self.last_info, prompt, options, terms, stream=True)
        return terms.key, _named(terms.key, attempt(Open(call), _as_it_is, self._habits.max_retries))

    def learn(
        self, teaching: parts.Teaching, passes: int | None, progress: Progress | None, key: str | None
    ) -> Flow[LearnResult]:
        """Study a text, in several requests where it is long."""
        pieces = parts.split(parts.read_teaching(teaching))
        name = key or secrets.token_hex(16)
        results: list[LearnResult] = []
        for index, piece in enumerate(pieces):
            terms = self._terms(parts.part_key(name, index, len(pieces)))
            call = requests.learn(self.id, piece, passes, terms)
            report = _numbered(progress, index + 1, len(pieces))
            results.append((yield from _named(name, self._study(call, report))))
        return _together(results)

    def consolidate(self, passes: int | None, progress: Progress | None, key: str | None) -> Flow[LearnResult]:
        """Rehearse what was read."""
        terms = self._terms(key)
        call = requests.learn(self.id, None, passes, terms)
        return (yield from _named(terms.key, self._study(call, progress)))

    def score(self, continuations: Sequence[str], question: Question) -> Flow[list[Score]]:
        """Measure continuations."""
        return self._habits.fetch(requests.score(self.id, continuations, question), answers.read_scores)

    def recall_lift(self, question: str | Sequence[Message], answer: str) -> Flow[RecallLift]:
        """Measure an answer with the session's weights and without the session."""
        asked = Question(messages=requests.as_messages(question), window=False)
        (with_memory,) = yield from self.score([answer], asked)
        (without,) = yield from self.score([answer], replace(asked, has_memory=False))
        lift = with_memory.per_token - without.per_token
        return RecallLift(with_memory.per_token, without.per_token, lift, with_memory.num_tokens)

    # -- versions ---

    def versions(self) -> Flow[list[Version]]:
        """List kept versions."""
        return self._habits.fetch(requests.list_versions(self.id), answers.read_versions)

    def rollback(self, version_or_tag: str) -> Flow[SessionInfo]:
        """Go back."""
        return self._take(requests.rollback(self.id, version_or_tag, self._expected))

    def snapshot(self, tag: str, version: str | None) -> Flow[SessionInfo]:
        """Tag a version."""
        return self._take(requests.add_snapshot(self.id, tag, version, self._expected))

    def snapshots(self) -> Flow[list[Snapshot]]:
        """List tags."""
        return self._habits.fetch(requests.list_snapshots(self.id), answers.read_snapshots)

    def delete_snapshot(self, tag: str) -> Flow[None]:
        """Remove a tag."""
        yield from self._habits.fetch(requests.delete_snapshot(self.id, tag, self._expected), answers.read_nothing)
        # The answer does not tell the version that this made.
        yield from self.info()

    def fork(self, id: str | None, version: str | None, tag: str | None) -> Flow[SessionInfo]:
        """Copy the session; the result is the copy's."""
        if version is not None and tag is not None:
            raise ValueError("give version or tag, not both")
        # The server takes a tag where it takes a version.
        call = requests.fork_session(self.id, id, version if tag is None else tag)
        return self._habits.fetch(call, answers.read_session)

    def export(self, version: str | None) -> Flow[bytes]:
        """Return a version as bytes."""
        call = requests.export_session(self.id, version)
        return attempt(Send(call), answers.read_bytes, self._habits.max_retries)

    # -- looking after it ---

    def info(self) -> Flow[SessionInfo]:
        """Look at the session."""
        return self._take(requests.get_session(self.id))

    def memory(self) -> Flow[MemoryStatistics]:
        """Look at its memory."""
        return self._habits.fetch(requests.memory_statistics(self.id), answers.read_memory)

    def turns(self) -> Flow[list[Turn]]:
        """List its latest turns."""
        return self._habits.fetch(requests.list_turns(self.id), answers.read_turns)

    def set_frozen(self, is_frozen: bool) -> Flow[SessionInfo]:
        """Freeze or unfreeze it."""
        return self._take(requests.set_frozen(self.id, is_frozen, self._expected))

    def freeze_for_now(self) -> Flow[bool]:
        """Freeze it and return whether it was already."""
        info = yield from self.info()
        if not info.frozen:
            yield from self.set_frozen(True)
        return info.frozen

    def reset(self, levels: Sequence[str] | None) -> Flow[SessionInfo]:
        """Forget."""
        return self._take(requests.reset(self.id, levels, self._expected))

    def patch(self, change: Patch) -> Flow[SessionInfo]:
        """Change what it is."""
        return self._take(requests.patch_session(self.id, change, self._expected))

    def delete(self) -> Flow[None]:
        """Delete it."""
        return self._habits.fetch(requests.delete_session(self.id), answers.read_nothing)

    def note(self, receipt: Receipt | None, text: str = "") -> Flow[None]:
        """Take the version from a turn's receipt. Raises MemoryEvicted where what was known before is gone."""
        if receipt is None:
            return
        known = self.version
        if receipt.mode == "write":
            self.version = receipt.version_after
        if known is None or receipt.version_before is not None or receipt.restored_from != "new" or receipt.replayed:
            return
        # A turn that starts from nothing may also have gone back to before the first message; another birth is a loss.
        birth = self.last_info.created
        info = yield from self.info()
        if info.created != birth:
            lost = MemoryEvicted(
                f"session {self.id!r} was at version {known} and is gone: it was deleted or expired meanwhile, "
                "and this turn began a new one of that name"
            )
            lost.text = text
            raise lost

    # -- private ---

    def _study(self, call: Call, progress: Progress | None) -> Flow[LearnResult]:
        result: LearnResult = yield from attempt(Study(call, progress), _as_it_is, self._habits.max_retries)
        yield from self.note(result.receipt)
        return result

    def _take(self, call: Call) -> Flow[SessionInfo]:
        info = yield from self._habits.fetch(call, answers.read_session)
        self.last_info, self.version = info, info.version
        return info

    def _terms(self, key: str | None) -> Terms:
        return Terms(key or secrets.token_hex(16), self._expected)

    @property
    def _expected(self) -> str | None:
        """The version that calls ask for; None where the client is not strict."""
        return self.version if self._habits.strict else None


def _as_it_is(result: Any) -> Any:
    return result


def _named(key: str, flow: Flow[T]) -> Flow[T]:
    """Run a flow; its error tells the key under which the call can be repeated."""
    try:
        return (yield from flow)
    except HopeError as exc:
        exc.key = key
        raise


def _numbered(progress: Progress | None, part: int, num_parts: int) -> Progress | None:
    """Return a callback that adds the part's number to each report."""
    if progress is None or num_parts == 1:
        return progress
    report: Callable[[LearnProgress], None] = progress
    return lambda each: report(replace(each, part=part, num_parts=num_parts))


def _together(results: Sequence[LearnResult]) -> LearnResult:
    """Return the results of all parts as one."""
    if len(results) == 1:
        return results[0]
    usages = [each.usage for each in results if each.usage is not None]
    usage = Usage(
        sum(each.prompt_tokens for each in usages),
        sum(each.completion_tokens for each in usages),
        sum(each.total_tokens for each in usages),
    )
    receipts = tuple(receipt for each in results for receipt in each.receipts)
    return LearnResult(results[-1].receipt, usage if usages else None, receipts)

"""Every error the service can report, in one tree; the API maps `code` to a status in one place.

HopeError
├── InvalidRequest          invalid_request        the caller's argument is wrong (`param` names it)
│   └── PromptTooLong       prompt_too_long        `num_tokens`, `limit`
├── ModelNotFound           model_not_found        `model`
├── SessionNotFound         session_not_found      `session_id`
├── SessionBusy             session_busy           `session_id`, `retry_after_seconds`
├── SessionConflict         session_conflict       another writer moved the head; nothing of this turn was kept
├── SessionExists           session_exists         the name of a new session is taken: `session_id`
├── SessionFrozen           session_frozen         the session is frozen and learns nothing: `session_id`
├── VersionNotFound         version_not_found      the session keeps no such version: `session_id`, `version`
├── VersionMismatch         version_mismatch       the session is past the version that the caller named
├── MemoryRolledBack        memory_rolled_back     the store went back in time, or lost a version that was confirmed
├── MemoryEvicted           memory_evicted         the store lost the session: `session_id`
├── IdempotencyKeyReused    idempotency_key_reused an Idempotency-Key came back with another request
├── AnswerNotStored         answer_not_stored      the request was served before; its answer was too large to keep
├── DurabilityUnmet         durability_unmet       kept, but not as durably as asked: `asked`, `reached`
├── StateIncompatible       state_incompatible     the session was learned with another model
├── StateCorrupt            state_corrupt          a snapshot fails its checks
├── StateTooLarge           state_too_large        `num_bytes`, `limit`
├── StoreFull               store_full             no space; the session is as it was before
├── StoreUnavailable        store_unavailable
├── Overloaded              overloaded             `retry_after_seconds`
├── NoRoom                  no_room                `retry_after_seconds`
├── ShuttingDown            shutting_down
├── Cancelled               cancelled              the client went away; nothing was kept
├── InternalError           internal_error
└── StartupError            startup_error          the process cannot start; the message says what to do
    ├── SettingsError       settings_error
    └── CheckpointError     checkpoint_error
"""

from __future__ import annotations


class HopeError(Exception):
    """An error with a stable `code` and a message that says what happened and what to do."""

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(HopeError):
    """The caller's argument is wrong; `param` names it."""

    code = "invalid_request"


class PromptTooLong(InvalidRequest):
    """The prompt has more tokens than one request may carry."""

    code = "prompt_too_long"

    def __init__(self, num_tokens: int, limit: int, *, is_estimate: bool = False) -> None:
        super().__init__(
            f"prompt has {'about ' if is_estimate else ''}{num_tokens:,} tokens, the limit is {limit:,}; "
            "send less at once, or POST long text to /v1/sessions/{id}/learn in parts",
            param="messages",
        )
        self.num_tokens = num_tokens
        self.limit = limit


class ModelNotFound(HopeError):
    """The request names a model that this server does not serve."""

    code = "model_not_found"

    def __init__(self, model: str, served: str) -> None:
        super().__init__(f"model {model!r} is not served here; this server serves {served!r}", param="model")
        self.model = model


class SessionNotFound(HopeError):
    """No session of that name belongs to the caller."""

    code = "session_not_found"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"no session {session_id!r}; create it with POST /v1/sessions or by chatting under that id")
        self.session_id = session_id


class SessionBusy(HopeError):
    """Another turn of the session is running and the queue behind it is full."""

    code = "session_busy"

    def __init__(self, session_id: str, retry_after_seconds: float) -> None:
        super().__init__(f"session {session_id!r} is busy with another turn; retry in {retry_after_seconds:g} s")
        self.session_id = session_id
        self.retry_after_seconds = retry_after_seconds


class SessionConflict(HopeError):
    """Another writer committed to the session first; nothing of this turn was kept."""

    code = "session_conflict"


class SessionExists(HopeError):
    """The id of a session that is to be made is taken."""

    code = "session_exists"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} exists already; choose another id, or delete it first", param="id")
        self.session_id = session_id


class SessionFrozen(HopeError):
    """The session is frozen: it is used as it is and learns nothing."""

    code = "session_frozen"

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session {session_id!r} is frozen and learns nothing; POST /v1/sessions/{session_id}/unfreeze first"
        )
        self.session_id = session_id


class VersionNotFound(HopeError):
    """The session does not keep the named version; `version` None: it has none at all."""

    code = "version_not_found"

    def __init__(self, session_id: str, version: str | None) -> None:
        what = "has no version yet" if version is None else f"keeps no version {version!r}"
        super().__init__(f"session {session_id!r} {what}; GET /v1/sessions/{session_id}/versions lists what is kept")
        self.session_id = session_id
        self.version = version


class VersionMismatch(HopeError):
    """The session has gone on since the version that the caller named."""

    code = "version_mismatch"

    def __init__(self, session_id: str, expected: str, found: str) -> None:
        super().__init__(
            f"session {session_id!r} is at version {found}, not at {expected}; nothing was done, look at what changed",
            param="if_match",
        )
        self.expected = expected
        self.found = found


class MemoryRolledBack(HopeError):
    """The session's history lacks a version that was confirmed: the store went back to an older state."""

    code = "memory_rolled_back"

    def __init__(self, session_id: str, missing: str) -> None:
        super().__init__(
            f"version {missing} of session {session_id!r} was confirmed and is not in the store's history any more, so "
            'the store lost what was learned since an older version; send memory.if_match "*" to go on from there',
            param="if_match",
        )
        self.missing = missing


class MemoryEvicted(HopeError):
    """The session was made and not deleted, yet the store has nothing of it."""

    code = "memory_evicted"

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"the store lost session {session_id!r} (evicted, or an older copy of the store was restored); "
            "restore the store, or delete the session to start anew"
        )
        self.session_id = session_id


class IdempotencyKeyReused(HopeError):
    """The Idempotency-Key was used for another request of the session."""

    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__(
            "this Idempotency-Key was used for another request of the session; a key names one request, send a new one",
            param="Idempotency-Key",
        )


class AnswerNotStored(HopeError):
    """The request was served and learned before; its answer was too large to be kept."""

    code = "answer_not_stored"

    def __init__(self) -> None:
        super().__init__(
            "this request was served before and learned once; its answer was too large to keep for a repetition"
        )


class DurabilityUnmet(HopeError):
    """The turn was kept, but not confirmed as durably as asked; the same request again waits again."""

    code = "durability_unmet"

    def __init__(self, asked: str, reached: str) -> None:
        super().__init__(
            f"the turn was kept with durability {reached!r}, but {asked!r} was not confirmed in time; "
            "send the same request again, it will not be learned twice"
        )
        self.asked = asked
        self.reached = reached


class StateIncompatible(HopeError):
    """The session's memory was learned with another model, tokenizer or layout."""

    code = "state_incompatible"


class StateCorrupt(HopeError):
    """A snapshot fails its checks and no intact older version could be used."""

    code = "state_corrupt"


class StateTooLarge(HopeError):
    """A snapshot exceeds the configured size."""

    code = "state_too_large"

    def __init__(self, num_bytes: int, limit: int) -> None:
        super().__init__(f"the session's state has {num_bytes:,} bytes, the limit is {limit:,}; the turn was not kept")
        self.num_bytes = num_bytes
        self.limit = limit


class StoreFull(HopeError):
    """The store has no space left; the session is as it was before the turn."""

    code = "store_full"


class StoreUnavailable(HopeError):
    """The store cannot be reached or read."""

    code = "store_unavailable"


class Overloaded(HopeError):
    """Too many turns wait already."""

    code = "overloaded"

    def __init__(self, num_waiting: int, retry_after_seconds: float) -> None:
        super().__init__(f"{num_waiting} turns are waiting already; retry in {retry_after_seconds:g} s")
        self.retry_after_seconds = retry_after_seconds


class NoRoom(HopeError):
    """The open requests hold as much memory as they may."""

    code = "no_room"

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(
            f"the requests that are open take all memory that requests may; retry in {retry_after_seconds:g} s, "
            "or send a shorter text"
        )
        self.retry_after_seconds = retry_after_seconds


class ShuttingDown(HopeError):
    """The server drains and takes no new turns."""

    code = "shutting_down"


class Cancelled(HopeError):
    """The client went away before the turn was complete; nothing of it was kept."""

    code = "cancelled"


class InternalError(HopeError):
    """A fault of the server; the log has the details under the request id."""

    code = "internal_error"


class StartupError(HopeError):
    """The process cannot start; the message is one line that says what to do."""

    code = "startup_error"


class SettingsError(StartupError):
    """A setting is unknown or cannot be parsed."""

    code = "settings_error"


class CheckpointError(StartupError):
    """A model file or folder is missing, unreadable or of an unsupported kind."""

    code = "checkpoint_error"

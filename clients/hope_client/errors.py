"""Every error a call can raise, in one tree that mirrors the server's; the class is chosen by the answer's `code`.

HopeError
├── InvalidRequest          invalid_request        an argument is wrong (`param` names it)
│   └── PromptTooLong       prompt_too_long
├── RequestTooLarge         request_too_large      the body has more bytes than the route takes
│   └── HeadersTooLarge     headers_too_large
├── RequestTimeout          request_timeout        the request came too slowly
├── HostNotAllowed          host_not_allowed       the URL's host is no name that the server goes by
├── InvalidApiKey           invalid_api_key
├── InsufficientScope       insufficient_scope     the key is good, but not for this
├── RateLimitExceeded       rate_limit_exceeded    the key's requests or tokens of a minute; see `retry_after_seconds`
├── QuotaExceeded           quota_exceeded         the key's sessions or bytes
├── ModelNotFound           model_not_found
├── ResponseNotFound        response_not_found
├── SessionNotFound         session_not_found
├── SessionBusy             session_busy           another turn runs; see `retry_after_seconds`
├── SessionConflict         session_conflict       another writer was faster; nothing of this turn was kept
├── SessionExists           session_exists         the id of a new session is taken
├── SessionFrozen           session_frozen         a frozen session was to learn
├── VersionNotFound         version_not_found      the session keeps no such version
├── VersionMismatch         version_mismatch       the session is past the version that the call named
├── MemoryRolledBack        memory_rolled_back     the server's store went back in time and lost a confirmed version
├── MemoryEvicted           memory_evicted         the session that was known is gone; `text` is what was answered
├── IdempotencyKeyReused    idempotency_key_reused a key came back with another request
├── AnswerNotStored         answer_not_stored      learned once already; the answer was too large to be kept
├── DurabilityUnmet         durability_unmet       kept, but not as durably as asked; the same call waits again
├── StateIncompatible       state_incompatible     the session was learned with another model
├── StateCorrupt            state_corrupt
├── StateTooLarge           state_too_large
├── StoreFull               store_full
├── StoreUnavailable        store_unavailable
├── Overloaded              overloaded             see `retry_after_seconds`
├── NoRoom                  no_room                see `retry_after_seconds`
├── Loading                 loading                the model is not ready yet; see `retry_after_seconds`
├── ShuttingDown            shutting_down
├── Cancelled               cancelled
├── InternalError           internal_error
├── StartupError            startup_error          the server runs but could not start its engine
│   ├── SettingsError       settings_error
│   └── CheckpointError     checkpoint_error
├── RouteNotFound           not_found              the server has no such route: another version, or another server
│   ├── MethodNotAllowed    method_not_allowed
│   └── UnsupportedMedia    unsupported_media_type
├── UnexpectedAnswer        unexpected_answer      what came back is not what this API answers
├── ConnectionFailed        connection_failed      no answer came
│   └── TimedOut            timed_out
└── StreamInterrupted       stream_interrupted     the answer broke off
"""

from __future__ import annotations


class HopeError(Exception):
    """A failed call.

    code: stable name of the kind of error.
    status: HTTP status; None when no complete answer came, or when the error came inside a stream.
    request_id: the server's name for the request, to look up in its log; None where it is not known.
    param: the argument that is wrong; None where that does not apply.
    retry_after_seconds: when the server suggests to try again; None when it does not.
    is_retryable: the same call may go well when it is sent again.
    key: the idempotency key of a call that had one: the same call under the same key is learned once.
    """

    code = "unknown_error"
    key: str | None = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.status = status
        self.request_id = request_id
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may go well when it is sent again."""
        return self.retry_after_seconds is not None


class InvalidRequest(HopeError):
    """An argument is wrong; `param` names it."""

    code = "invalid_request"


class PromptTooLong(InvalidRequest):
    """The prompt has more tokens than one request may carry."""

    code = "prompt_too_long"


class RequestTooLarge(HopeError):
    """The request has more bytes than the route takes; send the text in parts."""

    code = "request_too_large"


class HeadersTooLarge(RequestTooLarge):
    """The request's headers are too many, or too long together."""

    code = "headers_too_large"


class RequestTimeout(HopeError):
    """The request came too slowly."""

    code = "request_timeout"


class HostNotAllowed(HopeError):
    """The URL's host is no name that a server without keys goes by."""

    code = "host_not_allowed"


class InvalidApiKey(HopeError):
    """The server wants an API key and the call had none that it knows."""

    code = "invalid_api_key"


class InsufficientScope(HopeError):
    """The API key is good, but does not allow this call."""

    code = "insufficient_scope"


class RateLimitExceeded(HopeError):
    """The API key has used up its requests or tokens of this minute."""

    code = "rate_limit_exceeded"


class QuotaExceeded(HopeError):
    """The API key has as many sessions, or as many bytes in them, as it may have."""

    code = "quota_exceeded"


class ModelNotFound(HopeError):
    """The server does not serve the named model."""

    code = "model_not_found"


class ResponseNotFound(HopeError):
    """The server knows no response of that id."""

    code = "response_not_found"


class SessionNotFound(HopeError):
    """No session of that name belongs to the caller."""

    code = "session_not_found"


class SessionBusy(HopeError):
    """Another turn of the session is running and the queue behind it is full."""

    code = "session_busy"


class SessionConflict(HopeError):
    """Another writer committed to the session first, or the name is taken; nothing of this call was kept."""

    code = "session_conflict"


class SessionExists(HopeError):
    """The id of a session that is to be made is taken."""

    code = "session_exists"


class SessionFrozen(HopeError):
    """The session is frozen and was to learn; `Session.unfreeze` lets it."""

    code = "session_frozen"


class VersionNotFound(HopeError):
    """The session does not keep the named version or tag; `Session.versions` lists what is kept."""

    code = "version_not_found"


class VersionMismatch(HopeError):
    """Somebody else went on with the session since the version that the call named; nothing was done."""

    code = "version_mismatch"


class MemoryRolledBack(HopeError):
    """The server's store went back to an older state and lost a version that was confirmed; nothing was done.

    `Session.info` shows what is there now; the next turn of that session then goes on from it.
    """

    code = "memory_rolled_back"


class MemoryEvicted(HopeError):
    """The session whose memory this client knew is gone.

    From the server: its store lost the session, and nothing was done; delete it to start anew under its id.
    Found by the client (`status` None): the session was deleted or expired meanwhile, and the turn began a new one
    of the same name. `text` is what that turn answered. The next turn goes on in the new session.
    """

    code = "memory_evicted"
    text = ""


class IdempotencyKeyReused(HopeError):
    """The key was used for another request of the session."""

    code = "idempotency_key_reused"


class AnswerNotStored(HopeError):
    """The request was learned once already; its answer was too large to be kept for a repetition."""

    code = "answer_not_stored"


class DurabilityUnmet(HopeError):
    """The turn was kept, but not as durably as asked; the same call with the same key waits again."""

    code = "durability_unmet"


class StateIncompatible(HopeError):
    """The session was learned with another model, tokenizer or layout."""

    code = "state_incompatible"


class StateCorrupt(HopeError):
    """The session's stored state fails its checks."""

    code = "state_corrupt"


class StateTooLarge(HopeError):
    """The session's state exceeds the server's limit; the turn was not kept."""

    code = "state_too_large"


class StoreFull(HopeError):
    """The server's store has no space left; the session is as it was."""

    code = "store_full"


class StoreUnavailable(HopeError):
    """The server cannot reach or read its store."""

    code = "store_unavailable"


class Overloaded(HopeError):
    """Too many turns wait already."""

    code = "overloaded"


class NoRoom(HopeError):
    """The server's open requests hold as much memory as they may."""

    code = "no_room"


class Loading(HopeError):
    """The server is still loading its model."""

    code = "loading"


class ShuttingDown(HopeError):
    """The server drains and takes no new turns."""

    code = "shutting_down"


class Cancelled(HopeError):
    """The turn was cancelled; nothing of it was kept."""

    code = "cancelled"


class InternalError(HopeError):
    """A fault of the server; its log has the details under the request id."""

    code = "internal_error"


class StartupError(HopeError):
    """The server runs but could not start its engine."""

    code = "startup_error"


class SettingsError(StartupError):
    """The server was started with a setting that is unknown or cannot be parsed."""

    code = "settings_error"


class CheckpointError(StartupError):
    """The server's model is missing, unreadable or of an unsupported kind."""

    code = "checkpoint_error"


class RouteNotFound(HopeError):
    """The server has no such route: it has another version, or is another server."""

    code = "not_found"


class MethodNotAllowed(RouteNotFound):
    """The route exists, but not with this method."""

    code = "method_not_allowed"


class UnsupportedMedia(RouteNotFound):
    """The route does not take JSON."""

    code = "unsupported_media_type"


class UnexpectedAnswer(HopeError):
    """What came back is not what this API answers; probably the URL points to something else."""

    code = "unexpected_answer"


class ConnectionFailed(HopeError):
    """No answer came: the server is not running, not reachable, or broke the connection."""

    code = "connection_failed"

    @property
    def is_retryable(self) -> bool:
        """Yes: a call with a key is never learned twice."""
        return True


class TimedOut(ConnectionFailed):
    """The server was silent for longer than the client's timeout."""

    code = "timed_out"


class StreamInterrupted(HopeError):
    """A streamed answer broke off; `text` is what had come. The server may or may not have kept the turn.

    The same call under the same idempotency key gives the whole answer, and is learned once.
    """

    code = "stream_interrupted"

    @property
    def is_retryable(self) -> bool:
        """Yes: a call with a key is never learned twice."""
        return True

    def __init__(self, message: str, *, text: str = "", request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.text = text


def _subclasses(kind: type[HopeError]) -> list[type[HopeError]]:
    return [found for each in kind.__subclasses__() for found in (each, *_subclasses(each))]


_FOUND_HERE = (ConnectionFailed, StreamInterrupted, UnexpectedAnswer)

ERRORS_BY_CODE: dict[str, type[HopeError]] = {
    kind.code: kind for kind in _subclasses(HopeError) if not issubclass(kind, _FOUND_HERE)
}
"""Class of each code that a server sends. A code that is not listed becomes a plain HopeError that carries it."""

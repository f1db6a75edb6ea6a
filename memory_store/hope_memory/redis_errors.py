"""What an error of Redis or of the way to it means for the caller, in one line and without passwords."""

from __future__ import annotations

import asyncio
import ssl

from redis import exceptions

from hope_memory.errors import StoreError, StoreFull, StoreUnavailable

TRANSIENT = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.AskError,  # and MovedError, while a cluster moves slots
    exceptions.SlotNotCoveredError,
    exceptions.ReadOnlyError,
    asyncio.TimeoutError,
    OSError,
)
FAMILY = (exceptions.RedisError, exceptions.RedisClusterException, asyncio.TimeoutError, OSError)
"""All that a call can raise; the transient ones may pass within a moment."""

_BUSY = ("BUSY ", "LOADING ", "MASTERDOWN ", "NOREPLICAS ", "UNBLOCKED ")


def is_transient(exc: BaseException) -> bool:
    """Whether asking again may help: the way to Redis is broken, or it says that it cannot answer just now."""
    if isinstance(exc, exceptions.AuthenticationError | exceptions.AuthorizationError | ssl.SSLError):
        return False
    if _is_tls_refused(exc):
        return False
    return isinstance(exc, TRANSIENT) or str(exc).startswith(_BUSY)


def store_error(exc: BaseException, where: str) -> StoreError:
    """The store's error for an error of a call to `where` (an address without password)."""
    text = str(exc)
    if isinstance(exc, exceptions.OutOfMemoryError) or "OOM command not allowed" in text:
        return StoreFull(f"{where} has reached its maxmemory; free some or delete sessions; nothing was changed")
    return StoreUnavailable(f"{where} {_reason(exc, text)}{_hint(exc, text, where)}")


def _reason(exc: BaseException, text: str) -> str:
    if isinstance(exc, exceptions.NoPermissionError) or "NOPERM" in text or "user executing the script" in text:
        return f"refuses the user a command or key that the store needs: {_first_line(text)}"
    if isinstance(exc, exceptions.AuthenticationError | exceptions.AuthorizationError) or "NOAUTH" in text:
        return "refuses the user or password, or wants one; put them into the URL as user:password@host"
    if isinstance(exc, exceptions.ReadOnlyError):
        return "is a read-only replica; name the primary"
    if "WRONGTYPE" in text:
        return "holds another kind of value where a session belongs; choose another prefix or database"
    if "MISCONF" in text:
        return "cannot write its disk and takes no changes; see its log"
    if isinstance(exc, exceptions.MovedError | exceptions.AskError):
        return "is part of a cluster; use redis+cluster:// or rediss+cluster://"
    if isinstance(exc, exceptions.ClusterDownError | exceptions.SlotNotCoveredError):
        return "is a cluster that cannot answer just now: part of it is down"
    if _is_tls_refused(exc):
        return f"does not complete a TLS connection ({_first_line(text)}); check its certificate, or use redis://"
    if isinstance(exc, exceptions.TimeoutError | asyncio.TimeoutError):
        return "does not answer in time"
    if isinstance(exc, exceptions.RedisClusterException) and "cluster mode" in text.lower():
        return "is not a cluster; use redis:// or rediss://"
    if isinstance(exc, exceptions.ConnectionError | OSError | exceptions.RedisClusterException):
        return f"cannot be reached: {_first_line(text)}"
    return f"answered with an error: {_first_line(text)}"


def _hint(exc: BaseException, text: str, where: str) -> str:
    """What a connection without TLS to a server with it looks like, and the other way round."""
    if "rediss" in where and isinstance(exc, exceptions.TimeoutError | asyncio.TimeoutError):
        return "; one without TLS never would: use redis:// for that"
    cut = any(word in text for word in ("reset", "closed", "Connection lost"))  # by the reply's read or the next write
    if "rediss" not in where and isinstance(exc, exceptions.ConnectionError) and cut:
        return "; if it wants TLS, use rediss://"
    return ""


def _is_tls_refused(exc: BaseException) -> bool:
    return isinstance(exc, ssl.SSLError) or "SSL" in str(exc) or isinstance(exc.__cause__, ssl.SSLError)


def _first_line(text: str) -> str:
    return text.splitlines()[0][:200] if text else "no reason given"

"""Where `hope bench learning` teaches: a server, ours or somebody else's, and the sessions on it, found again by name.

What a teaching gave is kept beside the store, so that a run that was interrupted finds its taught sessions again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import hope_client
from hope_client import ConnectionFailed, HopeClient, Session, SessionInfo, SessionNotFound, StreamInterrupted

from hope_server.errors import StartupError
from hope_server.evaluation.own_server import OwnServer

__all__ = ["Address", "Classroom", "Say", "Values", "alone", "read_values", "write_values"]

Values = dict[str, float]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Address:
    """A server that somebody else runs. prefix: what the names of our sessions on it begin with."""

    url: str
    api_key: str | None
    prefix: str


class Classroom:
    """Sessions on one server, which is started at the first use and ended by `close`.

    folder: of our own server's store and log, and of what teachings gave. settings: HOPE_<NAME> of our own server.
    elsewhere: a server to use in place of our own.
    """

    def __init__(
        self,
        folder: Path,
        say: Say,
        *,
        settings: Mapping[str, str] | None = None,
        elsewhere: Address | None = None,
        server: OwnServer | None = None,
    ) -> None:
        self.folder = folder
        self._say = say
        self._elsewhere = elsewhere
        self.server = None if elsewhere else server or OwnServer(folder, settings)
        self._client: HopeClient | None = None
        self._made: set[str] = set()

    @property
    def is_ours(self) -> bool:
        """Whether the server is our own."""
        return self._elsewhere is None

    def session(self, name: str) -> Session:
        """Find or make the session of a name."""
        return self._connected().session(self._id(name))

    def untaught(self) -> Session:
        """Return the session that is never taught."""
        return self.session("untaught")

    def taught(self, name: str, teach: Callable[[Session], Values]) -> tuple[Session, Values]:
        """Return a session that was taught, and what the teaching gave: by `teach` now, or before under the same name.

        teach: gets a new session.
        """
        client = self._connected()
        path = self.folder / f"taught-{name}.json"
        kept = read_values(path) if self.is_ours else None
        if kept is not None:
            with suppress(SessionNotFound):
                return client.get_session(self._id(name)), kept
        # What a teaching left that was cut off.
        self.forget(name)
        session = self.session(name)
        values = teach(session)
        write_values(path, values)
        return session, values

    @contextmanager
    def copy(self, session: Session, name: str) -> Iterator[Session]:
        """A fork of a session to do anything with; it is deleted at the end of the block."""
        self.forget(name)
        self._made.add(name)
        fork = session.fork(self._id(name))
        try:
            yield fork
        finally:
            with suppress(hope_client.HopeError):
                self.forget(name)

    def forget(self, name: str) -> None:
        """Delete a session, if it is there, and what its teaching gave."""
        (self.folder / f"taught-{name}.json").unlink(missing_ok=True)
        with suppress(SessionNotFound):
            self._connected().delete(self._id(name))
        self._made.discard(name)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tell of a server of ours that died in place of the connection that broke. Raises StartupError."""
        try:
            yield
        except (ConnectionFailed, StreamInterrupted):
            if self.server is not None:
                # A connection breaks a little before its process has ended.
                self.server.check(wait_seconds=2.0)
            raise

    def sessions(self) -> list[SessionInfo]:
        """Return what the server knows of all its sessions."""
        return list(self._connected().sessions())

    def end(self, name: str) -> None:
        """Delete a session that was taught and is of no more use, if a server is there to ask."""
        if self._client is not None:
            self.forget(name)

    def reach(self) -> None:
        """Connect now, to fail now. Raises StartupError, or the client's ConnectionFailed."""
        self._connected()

    def close(self) -> None:
        """End our own server, which keeps its sessions; delete ours from somebody else's."""
        if self._client is None:
            return
        if not self.is_ours:
            with suppress(hope_client.HopeError):
                for name in sorted(self._made):
                    self.forget(name)
        self._client.close()
        self._client = None
        if self.server is not None:
            self.server.stop()

    def remove(self) -> None:
        """Close, and delete the folder with our own server's store."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _connected(self) -> HopeClient:
        if self._client is None:
            self._client = self._start() if self.server is not None else self._reach()
        return self._client

    def _start(self) -> HopeClient:
        assert self.server is not None
        self._say("starting a server …")
        return self.server.start(self._say)

    def _reach(self) -> HopeClient:
        assert self._elsewhere is not None
        client = HopeClient(self._elsewhere.url, self._elsewhere.api_key)
        try:
            if not client.health().is_ready:
                raise StartupError(f"the server at {self._elsewhere.url} takes no turns yet; wait until it is ready")
        except BaseException:
            client.close()
            raise
        return client

    def _id(self, name: str) -> str:
        self._made.add(name)
        return f"{self._elsewhere.prefix if self._elsewhere else 'bench'}-{name}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a folder from other runs until the block ends. Raises StartupError where one uses it or none may."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as exc:
        raise _unwritable(folder, exc) from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise StartupError(f"another run uses {folder}; wait for its end or choose another --work") from exc
        yield


def read_values(path: Path) -> Values | None:
    """Return values that were kept; None where there are none, or only a damaged file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float("nan") if value is None else float(value) for name, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_values(path: Path, values: Values) -> None:
    """Keep values, all or nothing. Raises StartupError where the folder cannot be written."""
    scratch = path.with_suffix(f".{os.getpid()}.part")
    finite = {name: value if value - value == 0 else None for name, value in values.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(finite, indent=1), encoding="utf-8")
        os.replace(scratch, path)
    except OSError as exc:
        raise _unwritable(path.parent, exc) from exc


def _unwritable(folder: Path, error: OSError) -> StartupError:
    return StartupError(f"the work folder {folder} cannot be written ({error.strerror}); choose another --work")

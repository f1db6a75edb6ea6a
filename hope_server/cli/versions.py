"""Finds the version that a person means by its first letters or by a snapshot's tag."""

from __future__ import annotations

from hope_client import Session

from hope_server.cli.console import CommandError


def whole_version(session: Session, start: str) -> str:
    """Return the version of the snapshot `start`, or the one kept version that begins with it. Raises CommandError."""
    tagged = session.info().tags.get(start)
    if tagged is not None:
        return tagged
    found = [each.version for each in session.versions() if each.version.startswith(start)]
    if len(found) != 1:
        why = "several versions begin" if found else "no kept version begins"
        raise CommandError(f"{why} with {start}; see: hope sessions versions {session.id}")
    return found[0]

"""Every verb of a client, written once as flows; the clients only run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hope_client import answers, requests
from hope_client.flow import Flow, Send, T, attempt
from hope_client.objects import Health, Model, SessionInfo
from hope_client.requests import Call


@dataclass(frozen=True)
class Habits:
    """How a client does what it is asked; `max_retries` and `strict` as in HopeClient."""

    max_retries: int
    strict: bool

    def fetch(self, call: Call, read: Callable[[Any], T]) -> Flow[T]:
        """Send a call and return what `read` makes of its JSON."""
        return attempt(Send(call), lambda answer: read(answers.read_json(answer)), self.max_retries)


class ClientCore:
    """What a client is asked that is not of one session; see the methods of HopeClient."""

    def __init__(self, habits: Habits) -> None:
        self.habits = habits

    def models(self) -> Flow[list[Model]]:
        """See HopeClient.models."""
        return self.habits.fetch(requests.list_models(), answers.read_models)

    def health(self) -> Flow[Health]:
        """See HopeClient.health; sent once, because whether the server answers is the question."""
        return attempt(Send(requests.check_ready()), answers.read_health, 0)

    def session(self, id: str | None, ttl: float | None, metadata: Mapping[str, str] | None) -> Flow[SessionInfo]:
        """See HopeClient.session."""
        return self.habits.fetch(requests.create_session(id, ttl, metadata), answers.read_session)

    def get_session(self, id: str) -> Flow[SessionInfo]:
        """See HopeClient.get_session."""
        return self.habits.fetch(requests.get_session(id), answers.read_session)

    def page(self, page_size: int, after: str | None) -> Flow[tuple[list[SessionInfo], bool]]:
        """Return one page of sessions, and whether there are more behind it."""
        return self.habits.fetch(requests.list_sessions(page_size, after), answers.read_sessions)

    def delete(self, id: str) -> Flow[None]:
        """See HopeClient.delete."""
        return self.habits.fetch(requests.delete_session(id), answers.read_nothing)

    def import_session(self, data: bytes, id: str | None) -> Flow[SessionInfo]:
        """See HopeClient.import_session."""
        return self.habits.fetch(requests.import_session(data, id), answers.read_session)

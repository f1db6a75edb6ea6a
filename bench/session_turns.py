"""Turns of sessions over HTTP: they absorb text, are copied, and are asked questions of one length that are timed."""

from __future__ import annotations

import time
from typing import Any

from asking import Asking, Heard
from wording import Wording


class SessionTurns:
    """Sessions of one server of ours. Lengths are in tokens, without those of the chat template."""

    def __init__(self, asking: Asking, wording: Wording, num_question: int, num_reply: int, num_absorbed: int) -> None:
        self._asking, self._wording = asking, wording
        self._num_question, self._num_reply, self._num_absorbed = num_question, num_reply, num_absorbed

    def absorb(self, session: str, length: int) -> float:
        """Chat until the session has read `length` tokens or a few more; returns the seconds that it took."""
        begin = time.perf_counter()
        self._asking.post("/v1/sessions", {"id": session})
        while (read := self.look(session)["num_tokens"]) < length:
            text = self._wording.text(min(self._num_absorbed, length - read), seed=read)
            heard = self._asking.chat(text, 1, session_id=session, memory={"mode": "write"})
            if not (heard.memory or {}).get("tokens_learned"):
                raise RuntimeError(f"session {session} learned nothing of {heard.prompt_tokens} tokens: {heard.memory}")
        return time.perf_counter() - begin

    def look(self, session: str) -> dict[str, Any]:
        """What the server says of a session."""
        return self._asking.get(f"/v1/sessions/{session}")

    def fork(self, session: str, name: str) -> None:
        """Make `name` a copy of the session as it is, in place of what had that name."""
        self._asking.post(f"/v1/sessions/{session}/fork", {"id": name})

    def begin(self, session: str, number: int) -> str:
        """Copy a session to be asked, and ask once, so that it is in a slot; returns the copy's name."""
        name = f"{session}-{number}"
        if any(found["id"] == name for found in self._listed()):
            self.forget(name)
        self.fork(session, name)
        self._ask(name, seed=-1)
        return name

    def timed(self, name: str, seed: int) -> dict[str, float]:
        """Ask a copy and time the answer: `first`, `token` and `turn`, in seconds. It learns, as every turn does.

        Raises RuntimeError where its state was not in a slot.
        """
        heard = self._ask(name, seed)
        restored = (heard.memory or {}).get("restored_from")
        if restored != "hot":
            raise RuntimeError(f"{name} was restored from {restored}, not found in a slot; its time is another thing's")
        return {"first": heard.first_seconds, "token": heard.token_seconds, "turn": heard.end_seconds}

    def forget(self, name: str) -> None:
        """Delete a copy."""
        self._asking.delete(f"/v1/sessions/{name}")

    def _ask(self, name: str, seed: int) -> Heard:
        text = self._wording.text(self._num_question, seed=10_000 + seed)
        return self._asking.chat(text, self._num_reply, session_id=name, memory={"mode": "write"})

    def _listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._asking.get("/v1/sessions?limit=100")["data"]
        return found

"""On the PYTHONPATH of a server process, this replaces the engine by one that remembers word for word."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace


class RecallEngine:
    """Keeps every session's texts in the store's file, and answers with the text that names what is asked for."""

    model_id = "recall"
    created = 1
    is_ready = False
    reaches_store = True

    def __init__(self, store: str) -> None:
        self.file = Path(store)
        self.texts = json.loads(self.file.read_text()) if self.file.exists() else {}

    async def start(self):
        await asyncio.sleep(0)
        self.is_ready = True

    async def stop(self):
        self.is_ready = False

    def stats(self):
        return {}

    async def create_session(self, key):
        is_new = key.session_id not in self.texts
        self._add(key, [])
        return await self.get_session(key), is_new

    async def get_session(self, key):
        from hope_server.engine.turn import SessionInfo

        texts = self.texts[key.session_id]
        sizes = {"fast": 4_000_000, "window": 9_000_000, "journal": 500}
        return SessionInfo(key.session_id, 1, 2, f"v{len(texts)}", len(texts), 9, 9, sizes)

    async def chat(self, request):
        from hope_server.engine.turn import TokenText

        said = request.messages[-1].content
        if request.memory.mode == "write":
            self._add(request.session, [said])
        else:
            thing = said.rstrip("?").split()[-1]
            known = [text for text in self.texts[request.session.session_id] if thing in text]
            yield TokenText(known[0] if known and not request.memory.window else "I [do] not know.")
        yield self._finished(request.session)

    async def learn(self, request):
        self._add(request.session, request.text.split("\n\n") if request.text else [])
        yield self._finished(request.session)

    async def score(self, request):
        from hope_server.engine.turn import Score

        if request.prompt is not None:
            return [Score(-float(len(text)), len(text)) for text in request.continuations]
        question, lead_in = (message.content for message in request.messages)
        known = [*self.texts[request.session.session_id], question]
        found = [any(lead_in + text in each for each in known) for text in request.continuations]
        return [Score(-1.0 if is_known else -13.0, 2) for is_known in found]

    def acknowledge(self, key, version):
        """Nothing to note."""

    def _add(self, key, texts):
        self.texts.setdefault(key.session_id, []).extend(texts)
        self.file.write_text(json.dumps(self.texts))

    def _finished(self, key):
        from hope_server.engine.turn import Receipt, TurnFinished, Usage

        receipt = Receipt(key.session_id, "write", None, "v", 1, 5, 5, 28, 2.0, 1.0, {}, "commit", "hot")
        return TurnFinished("stop", Usage(1, 1), receipt)


sys.modules["hope_server.engine.assembly"] = SimpleNamespace(
    build_engine=lambda settings, progress: RecallEngine(settings.store)
)

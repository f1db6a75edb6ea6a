"""The load of a chaos run: writers that take turn after turn, in sessions of their own and in shared ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.chaos.clients import Client, KeyedClient, StockClient, SurpriseError
from tests.chaos.turns import API_KEYS, Journal, Turn, tenant_of

TURNS_PER_SESSION = 50
_TURNS_BEFORE_DELETE = 12
Delete = Callable[[str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class WriterSpec:
    """A writer: its client, the slot that names its sessions, its tenant, whether it sends the whole conversation."""

    client: type[KeyedClient] | type[StockClient]
    slot: str
    api_key: str = API_KEYS[0]
    has_history: bool = False
    deletes: bool = False


# Two writers share the slot "shared"; "same" names sessions of two tenants.
WRITERS = (
    WriterSpec(KeyedClient, "shared"),
    WriterSpec(KeyedClient, "shared"),
    WriterSpec(KeyedClient, "same"),
    WriterSpec(KeyedClient, "same", API_KEYS[1]),
    WriterSpec(KeyedClient, "gone", deletes=True),
    WriterSpec(StockClient, "stock"),
    WriterSpec(StockClient, "told", has_history=True),
    WriterSpec(StockClient, "mixed"),
    WriterSpec(KeyedClient, "mixed"),
)


class Writer:
    """Takes turns one after the other until it is told to end."""

    def __init__(self, index: int, spec: WriterSpec, urls: Sequence[str], journal: Journal, seed: int) -> None:
        self.index = index
        self.spec = spec
        self._journal = journal
        chance = random.Random(f"writer {seed} {index}")
        self._client: Client = spec.client(urls, spec.api_key, journal, chance)
        self._is_keyed = spec.client is KeyedClient

    async def write(self, ending: asyncio.Event, delete: Delete) -> None:
        """Take turns until `ending` is set; the turn that runs then is taken to its end.

        delete: removes a session (tenant, name); called for each second session of a writer that deletes.
        """
        tenant, number, generation = tenant_of(self.spec.api_key), 0, 0
        while not ending.is_set():
            session = f"{self.spec.slot}-{generation}"
            history: list[dict[str, str]] = []
            if self.spec.has_history:
                self._journal.full_histories.add((tenant, session))
            for _ in range(_TURNS_BEFORE_DELETE if self.spec.deletes else TURNS_PER_SESSION):
                if ending.is_set():
                    break
                number += 1
                turn = Turn(
                    tenant, session, self.index, number, f"key-{self.index}-{number}" if self._is_keyed else None
                )
                await self._take(turn, history)
            if self.spec.deletes and generation % 2 == 0 and not ending.is_set():
                await delete(tenant, session)
            generation += 1

    async def close(self) -> None:
        """Close the client's connections."""
        await self._client.close()

    async def _take(self, turn: Turn, history: list[dict[str, str]]) -> None:
        said = {"role": "user", "content": turn.marker}
        messages = [*history, said] if self.spec.has_history else [said]
        try:
            await self._client.take(turn, messages)
        except TimeoutError:
            self._journal.counts["turns given up"] += 1
        except SurpriseError as exc:
            self._journal.surprises.append(f"{turn.session} {turn.marker}: {exc}")
        if turn.is_acked:
            history += [said, {"role": "assistant", "content": turn.answers[0].text}]
        self._journal.add(turn)

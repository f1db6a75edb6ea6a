"""What the engine's two sides tell each other: which pages to fill before a step, which to copy after it."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from hope_vllm.codec import Shard, State


@dataclass(frozen=True, slots=True)
class Load:
    """Fill the pages of a turn that begins in this step. state: all heads; each rank takes its own."""

    request_id: str
    slots: dict[str, int]
    state: State


@dataclass(frozen=True, slots=True)
class Save:
    """Copy the pages of a turn that reads its last token in this step."""

    request_id: str
    slots: dict[str, int]


@dataclass
class StepOrders(KVConnectorMetadata):
    """From the scheduler to every rank, with each step."""

    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


@dataclass
class Copies(KVConnectorWorkerMetadata):
    """From the ranks to the scheduler: each rank's shard, by request and rank."""

    shards: dict[str, dict[int, Shard]] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> Copies:
        """Put together what several ranks sent."""
        assert isinstance(other, Copies), "only this plugin's ranks answer"
        shards = {request_id: dict(found) for request_id, found in self.shards.items()}
        for request_id, found in other.shards.items():
            shards.setdefault(request_id, {}).update(found)
        return Copies(shards)

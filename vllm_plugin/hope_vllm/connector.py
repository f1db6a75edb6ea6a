"""vLLM's connector for sessions: states come in before a turn's first token and are kept before its reply ends."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.v1.kv_cache_interface import KVCacheConfig

from hope_vllm.messages import Copies, StepOrders
from hope_vllm.scheduler_side import SchedulerSide
from hope_vllm.worker_side import WorkerSide


class HopeConnector(KVConnectorBase_V1, SupportsHMA):
    """Hands vLLM's questions on to one of two sides: the scheduler's, or a rank's."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """As vLLM makes it, once in the scheduler and once in every rank. Raises StartupError."""
        super().__init__(vllm_config, role, kv_cache_config)
        is_scheduler = role == KVConnectorRole.SCHEDULER
        self._sessions = SchedulerSide(vllm_config, kv_cache_config) if is_scheduler else None
        self._pages = None if is_scheduler else WorkerSide(vllm_config)

    @property
    def sessions(self) -> SchedulerSide:
        """The scheduler's side."""
        assert self._sessions is not None, "asked of a rank"
        return self._sessions

    @property
    def pages(self) -> WorkerSide:
        """A rank's side."""
        assert self._pages is not None, "asked of the scheduler"
        return self._pages

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is handed to another engine: what a preempted turn wrote is computed again."""
        return False

    # -- the scheduler's side -----------------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """Take a request in; its state is fetched while others are computed."""
        self.sessions.begin(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """None while a request's state is on its way or another turn of its session runs: ask again."""
        return (0, False) if self.sessions.may_begin(request) else (None, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note a request's pages."""
        self.sessions.place(request, blocks.get_block_ids())

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """What the ranks do around this step."""
        return self.sessions.orders(scheduler_output.num_scheduled_tokens)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """As `request_finished_all_groups`."""
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Its pages are free at once: what is to be kept was copied in the step that read the last token."""
        self.sessions.finish(request)
        return False, None

    def update_connector_output(self, connector_output: Any) -> None:
        """Commit what the ranks copied."""
        self.sessions.take(connector_output.kv_connector_worker_meta)

    def has_pending_push_work(self) -> bool:
        """Whether the engine must go on stepping because replies wait for their commits."""
        return self.sessions.turns.is_settling

    # -- a rank's side ------------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The layers have their pages."""
        self.pages.find_layers()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Fill pages; in front of the step, as the scheduler asks for it where there is anything to fill."""
        self.pages.load(self._orders())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Pages are filled when `start_load_kv` returns."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """A state is copied once, when its turn is over."""

    def wait_for_save(self) -> None:
        """Copy pages, behind the step."""
        self.pages.save(self._orders())

    def build_connector_worker_meta(self) -> Copies | None:
        """What was copied."""
        return self.pages.take_copies()

    def shutdown(self) -> None:
        """Finish commits and close the store."""
        if self._sessions is not None:
            self._sessions.close()

    def _orders(self) -> StepOrders:
        orders = self._get_connector_metadata()
        assert isinstance(orders, StepOrders), "made by this connector"
        return orders

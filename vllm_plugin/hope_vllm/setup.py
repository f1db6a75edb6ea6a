"""How vLLM must be set up, so that every turn is learned once, from the right state, and kept before its reply ends."""

from __future__ import annotations

from collections.abc import Iterator

from vllm.config import VllmConfig

from hope_vllm.errors import UnsupportedSetup
from hope_vllm.hope_config import read_config, titans_of
from hope_vllm.names import CONNECTOR, SCHEDULER

MISSING_CONNECTOR = (
    "a request's session would be ignored; add --kv-transfer-config "
    f'\'{{"kv_connector": "{CONNECTOR}", "kv_role": "kv_both", "kv_connector_extra_config": {{"store": "PATH"}}}}\''
)


def check_connector(config: VllmConfig) -> None:
    """Raise UnsupportedSetup for a model with memories beside no connector, or beside another one."""
    transfer = config.kv_transfer_config
    if transfer is None or transfer.kv_connector != CONNECTOR:
        raise UnsupportedSetup(MISSING_CONNECTOR)


def check_setup(config: VllmConfig) -> None:
    """Raise UnsupportedSetup, with all that is wrong and what to do."""
    wrong = list(_faults(config))
    if wrong:
        raise UnsupportedSetup("sessions cannot be served so: " + "; ".join(wrong))


def _faults(config: VllmConfig) -> Iterator[str]:
    scheduler, parallel = config.scheduler_config, config.parallel_config
    chosen = scheduler.scheduler_cls
    name = chosen if isinstance(chosen, str) or chosen is None else f"{chosen.__module__}.{chosen.__qualname__}"
    if name != SCHEDULER:
        yield f"replies would end before their turns are kept; add --scheduler-cls {SCHEDULER}"
    if scheduler.async_scheduling:
        yield "tokens would be sampled before it is known that a reply is over; add --no-async-scheduling"
    if config.cache_config.enable_prefix_caching:
        yield "prefixes are cached by tokens, whatever session they are of; add --no-enable-prefix-caching"
    if config.speculative_config is not None:
        yield "drafts that are rejected would have been learned; leave out --speculative-config"
    if parallel.pipeline_parallel_size != 1:
        yield "--pipeline-parallel-size must be 1"
    if parallel.data_parallel_size != 1:
        yield "--data-parallel-size must be 1; start several servers on one store instead"
    heads = titans_of(read_config(config.model_config.hf_config)).num_heads
    if heads % parallel.tensor_parallel_size:
        yield f"--tensor-parallel-size {parallel.tensor_parallel_size} does not divide {heads} memory heads"

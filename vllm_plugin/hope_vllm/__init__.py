"""vLLM serves sessions that learn: a Llama with self-modifying Titans branches, whose states `hope_memory` keeps."""

from __future__ import annotations

import os

_given = dict(os.environ)
# Our own engine's choices for its threads and caches, made on import, are not for vLLM.
from hope_server import COMPUTE_ENVIRONMENT  # noqa: E402

for _name in COMPUTE_ENVIRONMENT:
    if _name not in _given:
        os.environ.pop(_name, None)

__all__ = ["register"]


def register() -> None:
    """Tell vLLM of the model, its state and its sessions; vLLM calls this once in each of its processes.

    Raises UnsupportedVllm for a vLLM that this plugin was not made for.
    """
    # Imported late: whoever looks for entry points must not wait for tensors.
    from vllm import ModelRegistry
    from vllm import __version__ as vllm_version
    from vllm.config import CompilationConfig
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum, register_backend

    from hope_vllm.names import ARCHITECTURE, CONNECTOR, OPERATOR
    from hope_vllm.versions import check_vllm

    check_vllm(vllm_version)
    ModelRegistry.register_model(ARCHITECTURE, "hope_vllm.model:HopeForCausalLM")
    register_backend(MambaAttentionBackendEnum.CUSTOM, "hope_vllm.metadata.HopeBackend", is_mamba=True)
    if OPERATOR not in CompilationConfig._attention_ops:
        CompilationConfig._attention_ops.append(OPERATOR)
    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, "hope_vllm.connector", CONNECTOR)

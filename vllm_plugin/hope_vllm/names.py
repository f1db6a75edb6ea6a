"""The names under which vLLM knows the parts of this plugin."""

from __future__ import annotations

ARCHITECTURE = "HopeForCausalLM"
"""In a model folder's config.json; `hope_server.model.hf_export` writes it."""
CONNECTOR = "HopeConnector"
SCHEDULER = "hope_vllm.scheduler.HopeScheduler"
OPERATOR = "vllm::hope_memory"
"""What a compiled graph is split at: the memories' work depends on where each row stands."""

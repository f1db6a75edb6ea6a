"""What an operator chooses for sessions, out of vLLM's `kv_connector_extra_config`: fields of our Settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hope_server.errors import SettingsError
from hope_server.settings import Settings

OPTIONS = (
    "store",
    "key_file",
    "key_store",
    "store_timeout_seconds",
    "store_connections",
    "store_prefix",
    "store_eviction",
    "session_ttl_seconds",
    "keep_versions",
    "max_snapshot_bytes",
    "durability",
    "durability_unmet",
    "on_rollback",
    "host_cache_bytes",
    "max_queued_turns_per_session",
)
"""What reaches sessions of this engine; `hope serve --engine vllm` refuses the others where they are set."""


def read_options(given: Mapping[str, Any]) -> Settings:
    """Return the Settings that `given` names, the rest at their defaults; nothing is read from the environment.

    Raises SettingsError for unknown names, bad values, and a durability that ends replies before they are kept.
    """
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        raise SettingsError(f"kv_connector_extra_config: unknown {', '.join(unknown)}; known are {', '.join(OPTIONS)}")
    try:
        settings = Settings(**dict(given))
    except ValidationError as exc:
        # Values can hold passwords, so only names are repeated.
        wrong = ", ".join(str(error["loc"][0]) for error in exc.errors())
        raise SettingsError(f"kv_connector_extra_config: {wrong} cannot have such a value") from exc
    if settings.durability in ("none", "async"):
        raise SettingsError(
            f"durability {settings.durability!r} ends a reply before its turn is kept, which this engine does not do; "
            "use commit, fsync or replicated:N"
        )
    return settings

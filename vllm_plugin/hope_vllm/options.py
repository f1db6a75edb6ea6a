"""What an operator chooses for sessions, out of vLLM's `kv_connector_extra_config`: fields of our Settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hope_server.errors import SettingsError
from hope_server.settings import SESSION_OPTIONS, VLLM_OPTIONS, Settings


def read_options(given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Return the Settings that `given` names, then the variable VLLM_OPTIONS, the rest at their defaults.

    environ: None reads the process environment, of which nothing else counts.
    Raises SettingsError for unknown names, bad values, and a durability that ends replies before they are kept.
    """
    text = (os.environ if environ is None else environ).get(VLLM_OPTIONS, "{}")
    try:
        options = {**json.loads(text), **given}
    except (TypeError, ValueError) as exc:
        raise SettingsError(f"{VLLM_OPTIONS} is no JSON object") from exc
    unknown = sorted(set(options) - set(SESSION_OPTIONS))
    if unknown:
        known = ", ".join(SESSION_OPTIONS)
        raise SettingsError(f"kv_connector_extra_config: unknown {', '.join(unknown)}; known are {known}")
    try:
        settings = Settings(**options)
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

"""Which vLLM this plugin works with: it reaches into parts of it that change from one minor version to the next."""

from __future__ import annotations

import re

from hope_vllm.errors import UnsupportedVllm

OLDEST, TOO_NEW = (0, 32, 0), (0, 33)
SUPPORTED = "0.32.x (at least 0.32.0)"


def check_vllm(version: str) -> None:
    """Raise UnsupportedVllm unless `version` is one that this plugin was tested with."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)(?![\d]*(?:a|b|rc|\.dev))", version)
    numbers = tuple(int(part) for part in match.groups()) if match else ()
    if not numbers or not OLDEST <= numbers < TOO_NEW:
        raise UnsupportedVllm(version, SUPPORTED)

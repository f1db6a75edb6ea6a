"""OpenAI parameters that this server does not act on: some cannot matter here, the others are refused by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hope_server.errors import InvalidRequest

__all__ = ["IGNORED", "NOT_SUPPORTED", "check_names", "refuse_unsupported"]

IGNORED = frozenset(
    {
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""Accepted and left aside: leaving them out would give the same answer."""


@dataclass(frozen=True, slots=True)
class _Unsupported:
    """`is_idle` tells the values that ask for nothing; `advice` says what to send instead."""

    is_idle: Callable[[Any], bool]
    advice: str


def _idle(*values: object) -> Callable[[Any], bool]:
    # False == 0 and True == 1 in Python, which JSON keeps apart.
    return lambda given: any(type(given) is type(value) and given == value for value in values)


_TOOLS = "tools are not supported; leave it out, or describe the tools in a system message"

NOT_SUPPORTED = {
    "audio": _Unsupported(_idle(None), "audio is not supported; leave it out"),
    "function_call": _Unsupported(_idle(None, "none", "auto"), _TOOLS),
    "functions": _Unsupported(_idle(None, []), _TOOLS),
    "logit_bias": _Unsupported(_idle(None, {}), "a logit bias is not supported; leave it out"),
    "logprobs": _Unsupported(
        _idle(None, False), "log-probabilities are not supported here; POST /v1/sessions/{id}/score gives them"
    ),
    "min_p": _Unsupported(_idle(None, 0, 0.0), "min_p is not supported; use top_p or top_k"),
    "modalities": _Unsupported(_idle(None, ["text"]), 'only ["text"] is supported'),
    "n": _Unsupported(
        _idle(None, 1), "one choice per request is supported, as one session has one history; send n = 1"
    ),
    "response_format": _Unsupported(
        _idle(None, {"type": "text"}), 'only {"type": "text"} is supported; ask for the format in a message'
    ),
    "tool_choice": _Unsupported(_idle(None, "none", "auto"), _TOOLS),
    "tools": _Unsupported(_idle(None, []), _TOOLS),
    "top_logprobs": _Unsupported(
        _idle(None, 0), "log-probabilities are not supported here; POST /v1/sessions/{id}/score gives them"
    ),
    "web_search_options": _Unsupported(_idle(None), "web search is not supported; leave it out"),
}
"""OpenAI parameters that would change the answer and that this server cannot honour."""


def refuse_unsupported(given: dict[str, Any]) -> None:
    """Raise InvalidRequest for the first parameter of NOT_SUPPORTED that asks for something."""
    for name, rule in NOT_SUPPORTED.items():
        if name in given and not rule.is_idle(given[name]):
            raise InvalidRequest(f"{name}: {rule.advice}", param=name)


def check_names(given: Iterable[str], known: Iterable[str], prefix: str = "") -> None:
    """Raise InvalidRequest for the first name that is not known: a misspelt option must not be dropped silently."""
    valid = sorted(known)
    for name in given:
        if name not in valid:
            shown = prefix + ascii(name)[1:-1][:100]
            near = difflib.get_close_matches(name[:100], valid, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(valid)}"
            raise InvalidRequest(f"{shown} is not a known parameter; {hint}", param=shown)

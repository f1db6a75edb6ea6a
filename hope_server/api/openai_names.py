"""Parameters of OpenAI, and of routers, that this server does not act on: some cannot matter, others are refused."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hope_server.errors import InvalidRequest

__all__ = ["CHAT_NAMES", "COMPLETION_NAMES", "RESPONSE_NAMES", "NameRules", "Refused", "check_names"]


@dataclass(frozen=True, slots=True)
class Refused:
    """A parameter that would change the answer and that this server cannot honour.

    idle: the values that ask for nothing, besides null; advice: what to send instead.
    """

    advice: str
    idle: tuple[Any, ...] = ()

    def is_idle(self, given: object) -> bool:
        """Return whether `given` asks for nothing."""
        # False == 0 and True == 1 in Python, which JSON keeps apart.
        return given is None or json.dumps(given) in {json.dumps(value) for value in self.idle}


@dataclass(frozen=True, slots=True)
class NameRules:
    """What an endpoint does with OpenAI's parameters that it does not act on.

    ignored: accepted and left aside, as leaving them out would give the same answer; refused: by name.
    """

    ignored: frozenset[str] = frozenset()
    refused: Mapping[str, Refused] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """All their names."""
        return self.ignored | self.refused.keys()

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise InvalidRequest for the first refused parameter that asks for something."""
        for name, rule in self.refused.items():
            if name in given and not rule.is_idle(given[name]):
                raise InvalidRequest(f"{name}: {rule.advice}", param=name)

    def schema(self) -> dict[str, Any]:
        """Return them as properties of a JSON schema."""
        ignored = {name: {"description": "Accepted; changes nothing here."} for name in sorted(self.ignored)}
        refused = {
            name: {"enum": [None, *rule.idle], "description": f"Refused otherwise: {rule.advice}."}
            for name, rule in self.refused.items()
        }
        return ignored | refused


_SHARED_IGNORED = frozenset(
    {
        "moderation",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    }
)
_MIN_P = Refused("min_p is not supported; use top_p or top_k", (0, 0.0))
# vllm-router writes its own defaults of these into every chat and completion that it passes on.
_ENGINE_REFUSED = {
    "ignore_eos": Refused("a reply ends where the model ends it; leave it out", (False,)),
    "no_stop_trim": Refused("stop sequences are never part of a reply; leave it out", (False,)),
    "return_hidden_states": Refused("hidden states are not given out; leave it out", (False,)),
    "skip_special_tokens": Refused("special tokens are never part of a reply; leave it out", (True,)),
}
_FUNCTIONS = "functions are OpenAI's older form of tools; send tools and tool_choice"

CHAT_NAMES = NameRules(
    _SHARED_IGNORED
    | {"include_reasoning", "prediction", "reasoning_effort", "separate_reasoning", "store"}
    | {"stream_reasoning", "verbosity"},
    _ENGINE_REFUSED
    | {
        "audio": Refused("audio is not supported; leave it out"),
        "continue_final_message": Refused("a reply begins a message of its own; leave it out", (False,)),
        "function_call": Refused(_FUNCTIONS, ("none", "auto")),
        "functions": Refused(_FUNCTIONS, ([],)),
        "min_p": _MIN_P,
        "modalities": Refused('only ["text"] is supported', (["text"],)),
        "web_search_options": Refused("web search is not supported; leave it out"),
    },
)

COMPLETION_NAMES = NameRules(
    _SHARED_IGNORED,
    _ENGINE_REFUSED
    | {
        "min_p": _MIN_P,
        "suffix": Refused("text cannot be written between a prompt and a suffix; leave it out", ("",)),
    },
)

RESPONSE_NAMES = NameRules(
    _SHARED_IGNORED | {"image", "max_tool_calls", "reasoning", "stream_options"},
    {
        "access_programs": Refused("access programs are not supported; leave it out", ({},)),
        "background": Refused("responses are not made in the background; leave it out and stream instead", (False,)),
        "context_management": Refused("it is not needed, as sessions have no context limit; leave it out", ([],)),
        "min_p": _MIN_P,
        "prompt": Refused("stored prompts are not supported; send instructions and input"),
    },
)


def check_names(given: Iterable[str], known: Iterable[str], prefix: str = "") -> None:
    """Raise InvalidRequest for the first name that is not known: a misspelt option must not be dropped silently."""
    valid = sorted(known)
    for name in given:
        if name not in valid:
            shown = prefix + ascii(name)[1:-1][:100]
            near = difflib.get_close_matches(name[:100], valid, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(valid)}"
            raise InvalidRequest(f"{shown} is not a known parameter; {hint}", param=shown)

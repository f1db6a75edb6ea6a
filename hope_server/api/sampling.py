"""How tokens are drawn, as the bodies of every kind of turn say it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from hope_server.api.schemas import Body
from hope_server.api.validation import Between, kind_of, refuse
from hope_server.engine.turn import SamplingParams

__all__ = ["MAX_TOKENS", "DrawBody", "MaxTokens", "SamplingBody", "Temperature", "TopLogprobs", "TopP"]

MAX_TOKENS = 32_768
"""Longest reply, in tokens."""

_MAX_BIASES = 1024
_TOKEN_ID = re.compile(r"[0-9]{1,9}")


def _one_as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _read_bias(given: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(given, dict):
        raise refuse(f"must be an object of token ids and numbers, not {kind_of(given)}")
    if len(given) > _MAX_BIASES:
        raise refuse(f"has {len(given):,} entries, the limit is {_MAX_BIASES:,}; send fewer")
    found: dict[int, float] = {}
    for name, value in given.items():
        if not _TOKEN_ID.fullmatch(name):
            raise refuse(f"has the key {ascii(name)[:60]}; keys are token ids, whole numbers as strings")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
            shown = str(value)[:60] if type(value) in (int, float) else kind_of(value)
            raise refuse(f"of token {name} is {shown}; send a number from -100 to 100")
        found[int(name)] = float(value)
    return tuple(found.items())


_BIAS_SCHEMA = {
    "type": "object",
    "maxProperties": _MAX_BIASES,
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
}

MaxTokens = Annotated[int, Between(1, MAX_TOKENS)]
Temperature = Annotated[float, Between(0, 2)]
TopP = Annotated[float, Between(0, 1, above=True)]
TopLogprobs = Annotated[int, Between(0, 20)]
Penalty = Annotated[float, Between(-2, 2)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
StopList = Annotated[list[StopText], Field(max_length=4)]
Stop = Annotated[StopList, BeforeValidator(_one_as_list, json_schema_input_type=StopText | StopList)]
Bias = Annotated[tuple[tuple[int, float], ...], PlainValidator(_read_bias), WithJsonSchema(_BIAS_SCHEMA)]


class StreamOptionsBody(BaseModel):
    """OpenAI's stream options; others than `include_usage` change nothing here."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    include_usage: bool | None = None


class DrawBody(Body):
    """How tokens are drawn in every kind of turn, and whether the answer is streamed."""

    model: str | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Between(0, 1_000_000)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Between(0.01, 2)] | None = None
    seed: Annotated[int, Between(-(2**63), 2**63 - 1)] | None = None

    def draw(self, max_tokens: int | None, top_logprobs: int | None) -> SamplingParams:
        """Return how to draw tokens; what is absent or null takes the server's default."""
        given = {
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
        }
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(**chosen, top_logprobs=top_logprobs)


class SamplingBody(DrawBody):
    """What chat and text completions have in common besides: how many replies, where they end, what a stream tells."""

    n: Annotated[int, Between(1, 8)] | None = None
    stream_options: StreamOptionsBody | None = None
    max_tokens: MaxTokens | None = None
    stop: Stop | None = None
    logit_bias: Bias | None = None

    @property
    def has_usage_chunk(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def draw(self, max_tokens: int | None, top_logprobs: int | None) -> SamplingParams:
        """Return how to draw tokens; what is absent or null takes the server's default."""
        params = super().draw(max_tokens, top_logprobs)
        return replace(params, stop=tuple(self.stop or ()), logit_bias=self.logit_bias or ())

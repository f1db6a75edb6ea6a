"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from hope_server.api.openai_names import COMPLETION_NAMES
from hope_server.api.sampling import SamplingBody
from hope_server.api.session_id import SessionBody
from hope_server.api.validation import Between, refuse
from hope_server.engine.turn import SamplingParams
from hope_server.errors import InvalidRequest

__all__ = ["CompletionBody"]

_MAX_PROMPTS = 16
_DEFAULT_MAX_TOKENS = 16


def _prompts(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and any(isinstance(each, int | list) for each in value):
        raise refuse("holds token ids; send text, as a string or a list of strings")
    return value


def _with_replies(n: int) -> dict[str, Any]:
    """Return the JSON schema of what goes with `n` replies to a prompt."""
    given = {"enum": [None, 1]} if n == 1 else {"const": n}
    prompts = {"maxItems": _MAX_PROMPTS // n}
    required = [] if n == 1 else ["n"]
    return {"properties": {"n": given, "best_of": {"enum": [None, n]}, "prompt": prompts}, "required": required}


Prompt = Annotated[str, Field(min_length=1)]
Prompts = Annotated[list[Prompt], Field(min_length=1, max_length=_MAX_PROMPTS)]


class CompletionBody(SamplingBody, SessionBody):
    """A text completion request: OpenAI's, plus `session_id`, `memory`, `top_k` and `repetition_penalty`."""

    rules = COMPLETION_NAMES
    constraint: ClassVar[dict[str, Any]] = {
        "allOf": [
            {
                "anyOf": [
                    {"properties": {"echo": {"enum": [None, False]}}},
                    {"properties": {"logprobs": {"type": "null"}}},
                ]
            },
            {"anyOf": [_with_replies(n) for n in range(1, _MAX_PROMPTS + 1)]},
        ]
    }

    prompt: Annotated[Prompts, BeforeValidator(_prompts, json_schema_input_type=Prompt | Prompts)]
    echo: bool | None = None
    logprobs: Annotated[int, Between(0, 5)] | None = None
    best_of: Annotated[int, Between(1, 8)] | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            reason = f"best_of is {self.best_of} and n is {self.n or 1}; replies are not ranked, send n alone"
            raise InvalidRequest(reason, param="best_of")
        if self.echo and self.logprobs is not None:
            reason = (
                "log-probabilities of an echoed prompt are not given; leave out echo or logprobs, "
                "or POST the text to /v1/sessions/{id}/score"
            )
            raise InvalidRequest(reason, param="logprobs")
        if (total := len(self.prompt) * (self.n or 1)) > _MAX_PROMPTS:
            reason = f"{len(self.prompt)} prompts with n = {self.n} are {total} replies, the limit is {_MAX_PROMPTS}"
            raise InvalidRequest(f"{reason}; send fewer at once", param="n")
        return self

    def to_sampling(self) -> SamplingParams:
        """Return how to draw tokens; without a limit it is OpenAI's for this endpoint."""
        return self.draw(self.max_tokens or _DEFAULT_MAX_TOKENS, self.logprobs)

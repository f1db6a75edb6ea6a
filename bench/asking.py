"""Asks a server over HTTP, ours or vLLM's, for replies of an exact length, and notes when their tokens came."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

LIMIT_SECONDS = 3600.0


@dataclass(frozen=True)
class Heard:
    """A reply as it was heard. Seconds are from the request: to the first text, the last, and the end of the answer.

    longest_gap_seconds: between two pieces of its text.
    """

    first_seconds: float
    last_seconds: float
    end_seconds: float
    prompt_tokens: int
    num_tokens: int
    longest_gap_seconds: float
    text: str
    memory: Mapping[str, Any] | None = None

    @property
    def token_seconds(self) -> float:
        """Seconds between tokens, on average."""
        return (self.last_seconds - self.first_seconds) / (self.num_tokens - 1)


class Asking:
    """How one server is asked. bias: `logit_bias` that keeps our replies from ending early."""

    def __init__(self, url: str, bias: Mapping[str, float] | None = None, *, is_vllm: bool = False) -> None:
        self.url = url
        self._length: dict[str, object] = {"logit_bias": dict(bias or {})}
        if is_vllm:
            self._length = {"model": "bench", "ignore_eos": True}

    def complete(self, prompt: str, num_new: int, **more: object) -> Heard:
        """Go on from plain text."""
        return self._stream("/v1/completions", {**self.body(prompt, num_new), **more})

    def chat(self, text: str, num_new: int, **more: object) -> Heard:
        """Say one message. more: session_id, memory."""
        messages = [{"role": "user", "content": text}]
        return self._stream("/v1/chat/completions", {"messages": messages, **self._sampling(num_new), **more})

    def body(self, prompt: str, num_new: int) -> dict[str, object]:
        """A request to go on from plain text, greedily, by exactly `num_new` tokens."""
        return {"prompt": prompt, **self._sampling(num_new)}

    def complete_all(self, prompts: Sequence[str], num_new: int) -> float:
        """Seconds until every prompt, all sent at once, has its reply; the replies are not streamed."""
        bodies = [self.body(prompt, num_new) for prompt in prompts]
        begin = time.perf_counter()
        with ThreadPoolExecutor(len(bodies)) as pool:
            answers = list(pool.map(lambda body: self.post("/v1/completions", body), bodies))
        seconds = time.perf_counter() - begin
        for answer in answers:
            check_length(answer["usage"]["completion_tokens"], num_new)
        return seconds

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Send a request and return its answer. Raises RuntimeError, with the server's reason, when it is refused."""
        return self._checked(httpx.post(f"{self.url}{path}", json=body, timeout=LIMIT_SECONDS))

    def get(self, path: str) -> dict[str, Any]:
        """Return what is there. Raises as `post` does."""
        return self._checked(httpx.get(f"{self.url}{path}", timeout=LIMIT_SECONDS))

    def delete(self, path: str) -> dict[str, Any]:
        """Remove what is there. Raises as `post` does."""
        return self._checked(httpx.delete(f"{self.url}{path}", timeout=LIMIT_SECONDS))

    def _checked(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            raise RuntimeError(f"{answer.request.url} answered {answer.status_code}: {answer.text[:300]}")
        found: dict[str, Any] = answer.json()
        return found

    def _sampling(self, num_new: int) -> dict[str, object]:
        return {"max_tokens": num_new, "temperature": 0, **self._length}

    def _stream(self, path: str, body: Mapping[str, object]) -> Heard:
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        times: list[float] = []
        pieces: list[str] = []
        usage: Mapping[str, int] = {}
        memory: Mapping[str, Any] | None = None
        begin = time.perf_counter()
        with httpx.stream("POST", f"{self.url}{path}", json=streamed, timeout=LIMIT_SECONDS) as answer:
            if answer.is_error:
                raise RuntimeError(f"{path} answered {answer.status_code}: {answer.read().decode()[:300]}")
            for chunk in _chunks(answer):
                if "error" in chunk:
                    raise RuntimeError(f"{path} ended in an error: {chunk['error']}")
                usage, memory = chunk.get("usage") or usage, chunk.get("memory") or memory
                for choice in chunk.get("choices", ()):
                    if text := choice.get("text") or choice.get("delta", {}).get("content"):
                        times.append(time.perf_counter() - begin)
                        pieces.append(text)
            end = time.perf_counter() - begin
        check_length(usage["completion_tokens"], int(str(body["max_tokens"])))
        if 2 * len(times) < usage["completion_tokens"] > 1:
            raise RuntimeError(
                f"{path} sent {usage['completion_tokens']} tokens in {len(times)} pieces, not as they came"
            )
        # A single token may be no whole character; it is heard of when the answer ends.
        times = times or [end]
        counts = usage["prompt_tokens"], usage["completion_tokens"]
        gap = max((after - before for before, after in itertools.pairwise(times)), default=0.0)
        return Heard(times[0], times[-1], end, *counts, gap, "".join(pieces), memory)


def check_length(found: int, wanted: int) -> None:
    """Raise RuntimeError where a reply has not the length that was asked for."""
    if found != wanted:
        raise RuntimeError(f"a reply has {found} tokens, {wanted} were asked for; its time would say nothing")


def _chunks(answer: httpx.Response) -> Any:
    for line in answer.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))

"""The other way to remember: the whole history in every prompt, read by transformers and by vLLM."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from asking import Asking
from export_hf import export
from machine import say
from sides import serve_vllm, work_transformers
from wording import Wording

NAMES = ("transformers", "vllm", "vllm_cached")
"""The last: vLLM that has just read the same history and kept it, as in a chat that goes on without a pause."""

Turn = dict[str, float]
"""`first`, `token` and `turn`: seconds to the first token, for each further one, and for the turn."""


class Peers:
    """Both peers, standing still but for the turn that is measured. Use it as a context manager."""

    def __init__(
        self, model: Path, scratch: Path, wording: Wording, num_threads: int, dtype: str, longest: int
    ) -> None:
        self._stack = ExitStack()
        self._wording = wording
        exported = export(model, scratch / f"hf-{dtype}", dtype)
        try:
            say("starting transformers …")
            self._transformers = self._stack.enter_context(work_transformers(exported, num_threads, dtype))
            self._transformers.ask(prompt=wording.encode(wording.text(64, seed=0)), num_new=4)
            self._transformers.pause()
            say("starting vLLM …")
            self._vllm = self._stack.enter_context(
                serve_vllm(
                    scratch, exported, num_threads, dtype=dtype, keeps_prefixes=True, max_tokens=longest, num_rows=8
                )
            )
            self._vllm.wait_ready()
            self._asked = Asking(self._vllm.url, is_vllm=True)
            self._asked.complete(wording.text(64, seed=0), 4)
            self._vllm.pause()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def timed(self, length: int, num_question: int, num_reply: int, seed: int) -> dict[str, Turn]:
        """Take a turn that ends at `length` tokens with each peer, all of it but the reply in the prompt.

        seed: another one is another history.
        """
        history = self._wording.text(length - num_reply - num_question, seed)
        first, second = (f"{history} {self._wording.text(num_question, seed + place)}" for place in (1, 2))
        out: dict[str, Turn] = {}
        with self._transformers.awake():
            found = self._transformers.ask(prompt=self._wording.encode(first), num_new=num_reply)
        begin, rest = found["first_seconds"], found["rest_seconds"]
        out["transformers"] = {"first": begin, "token": rest / (num_reply - 1), "turn": begin + rest}
        with self._vllm.awake():
            for name, prompt in (("vllm", first), ("vllm_cached", second)):
                heard = self._asked.complete(prompt, num_reply)
                out[name] = {"first": heard.first_seconds, "token": heard.token_seconds, "turn": heard.end_seconds}
        return out

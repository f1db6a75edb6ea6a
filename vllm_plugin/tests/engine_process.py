"""A vLLM engine in a process of its own, asked over pipes, so that tests can kill it and start another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).with_name("engine_driver.py")
LONGEST = 512
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. abort_after, intrude_after: tokens of the reply after which the driver aborts it, or commits to its
    session from another engine's side; extra: further sampling parameters; args: what `vllm_xargs` has."""

    prompt: Sequence[int]
    session: str | None = None
    max_tokens: int = 20
    temperature: float = 1.0
    mode: str = "write"
    abort_after: int | None = None
    intrude_after: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. finish: None where it was aborted; receipt: what its last event says of the session.

    order: requests whose last event came before; versions: what the store had of the session when that came.
    """

    finish: str | None
    stop_reason: Any
    tokens: list[int]
    logprobs: list[float]
    receipt: dict[str, Any] | None
    order: int
    version_in_store: str | None


class EngineProcess(AbstractContextManager["EngineProcess"]):
    """Starts when it is made; options are those of vLLM's `LLM`, `threads_bind` the core it may use."""

    def __init__(
        self,
        folder: Path,
        store: Path,
        session_options: dict[str, Any] | None = None,
        slow: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        """session_options: the connector's; slow: seconds that loads and commits of some sessions take longer.

        Raises RuntimeError, with what the engine said, where it does not start.
        """
        command = {"folder": str(folder), "store": str(store), "session_options": session_options or {}}
        command["slow"] = slow or {}
        environment = {**os.environ, **_ENVIRONMENT}
        # All ranks on one core: what they compute is what is tested, not how fast.
        core = environment.get("VLLM_CPU_OMP_THREADS_BIND", str(max(os.sched_getaffinity(0))))
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join([core] * options.get("tensor_parallel_size", 1))
        self._log = (Path(store).parent / "engine.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, str(DRIVER), json.dumps({**command, "options": options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )
        self._receive("ready")

    def ask(self, *asks: Ask) -> list[Reply]:
        """Send requests at once and wait for all replies, in the order of the requests."""
        self._send({"asks": [asdict(ask) for ask in asks]})
        return [Reply(**reply) for reply in self._receive("replies")]

    def num_preemptions(self) -> int:
        """Preemptions since the engine started."""
        self._send({"count": True})
        found = self._receive("preemptions")
        assert isinstance(found, int)
        return found

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self, key: str) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"driver"'):
                message = json.loads(line)["driver"]
                if "error" in message:
                    self._process.wait()
                    raise RuntimeError(message["error"])
                return message[key]
        log = Path(self._log.name).read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"the engine ended without an answer:\n{log[-4000:]}")

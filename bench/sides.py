"""What is measured, each in processes of its own that stand still while another side is measured."""

from __future__ import annotations

import ctypes.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

import httpx
from machine import ROOT, resident

START_LIMIT_SECONDS = 420.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.05
VLLM = Path(os.environ.get("VLLM_FOLDER", str(ROOT / ".vllm")))
"""Where scripts/vllm.sh put vLLM."""
NO_VLLM = f"{VLLM.name} does not hold vLLM: run scripts/vllm.sh, or leave the peers out with --no-peers"
PLUGIN = Path(os.environ.get("VLLM_PLUGIN_FOLDER", str(ROOT / ".vllm-plugin")))
"""Where scripts/vllm-plugin.sh put vLLM with our plugin."""
NO_PLUGIN = f"{PLUGIN.name} does not hold vLLM with the plugin: run scripts/vllm-plugin.sh"
HOPE = ("-m", "hope_server", "serve")
TOY = ("-m", "tests.chaos.server")
"""What Python runs to serve a real model, or a toy of a few thousand weights."""
# A thread that waits for work sleeps soon, as beside another's work it must.
THREADS_WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}


class Side:
    """A process with all that it starts, in a group of its own. Use it as a context manager: its end ends them all."""

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str], log: IO[bytes] | int) -> None:
        self.name = name
        self.process = subprocess.Popen(
            list(command),
            cwd=ROOT,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if log == subprocess.PIPE else log,
            stderr=None if log == subprocess.PIPE else log,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def pause(self) -> None:
        """Let every process of the side stand still."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a side that stands still go on."""
        os.killpg(self.process.pid, signal.SIGCONT)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let a side that stands still run for the length of the block."""
        self.go_on()
        try:
            yield
        finally:
            self.pause()

    def resident_bytes(self) -> int:
        """Resident memory of the process itself. Raises OSError where it has ended."""
        return resident(self.process.pid)["rss_bytes"]

    def stop(self) -> None:
        """End the side and wait; what does not end when it is asked to is killed."""
        try:
            self.go_on()
            self.process.terminate()
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        except ProcessLookupError:
            self.process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                # What was not sent any more went to nobody.
                with suppress(BrokenPipeError):
                    pipe.close()


class Served(Side):
    """A server on a free port of this machine, with its log in a folder."""

    def __init__(self, name: str, words: Sequence[str], environ: Mapping[str, str], folder: Path, ready: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url, self._ready, self._log = f"http://127.0.0.1:{port}", ready, folder / f"{name}.log"
        with self._log.open("ab") as log:
            super().__init__(name, [*words, "--host", "127.0.0.1", "--port", str(port)], environ, log)

    def wait_ready(self) -> None:
        """Return when it takes turns. Raises RuntimeError, with its last words, when it ended or took too long."""
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}{self._ready}", timeout=2.0).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(POLL_SECONDS)
        words = self._log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise RuntimeError(f"{self.name} does not answer {self._ready}; it said last:\n{words}")


class Worker(Side):
    """A process that is asked in lines of JSON and answers in lines of JSON."""

    def __init__(self, name: str, words: Sequence[str], environ: Mapping[str, str]) -> None:
        super().__init__(name, words, environ, subprocess.PIPE)

    def ask(self, **facts: object) -> Any:
        """Send a request and wait for its answer. Raises RuntimeError where the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(facts).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended while it was asked; its last words are above")
        return json.loads(line)


def serve_hope(
    folder: Path, num_threads: int, flags: Sequence[str], *, serve: Sequence[str] = HOPE, store: str = ""
) -> Served:
    """Start our server, with store and log in `folder` unless `store` names another store; see `wait_ready`."""
    ours = {"HOPE_CACHE_DIR", "HOPE_MODEL"}
    kept = {name: value for name, value in os.environ.items() if name in ours or not name.startswith("HOPE_")}
    paths = [str(ROOT / part) for part in ("", "kernels", "memory_store", "clients")]
    environ = {**kept, **_threads(num_threads), "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, *serve, "--num-threads", str(num_threads), "--store", store or str(folder / "sessions.db")]
    words += ["--log-level", "warning", *flags]
    return Served("hope", words, environ, folder, "/ready")


def serve_vllm(
    folder: Path, model: Path, num_threads: int, *, dtype: str, keeps_prefixes: bool, max_tokens: int, num_rows: int
) -> Served:
    """Start vLLM's own server on the first `num_threads` cores; see `wait_ready`.

    keeps_prefixes: it reuses what it computed of a prompt that begins as an earlier one did. max_tokens: longest
    prompt and reply together. num_rows: requests computed at once.
    """
    # `vllm serve` of this wheel asks for the metadata of another distribution and fails; this is the same server.
    words = [str(VLLM / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words += [*_vllm_flags(dtype, max_tokens, num_rows), "--enforce-eager"]
    words += ["--enable-prefix-caching" if keeps_prefixes else "--no-enable-prefix-caching"]
    return Served("vllm", words, _vllm_environ(num_threads), folder, "/health")


def serve_plugin(
    folder: Path, model: Path, num_threads: int, *, dtype: str, max_tokens: int, num_rows: int, name: str = "plugin"
) -> Served:
    """Start vLLM's server with our plugin on the same cores, with its store in `folder`; see `serve_vllm`."""
    environ = _vllm_environ(num_threads)
    environ["HOPE_VLLM_OPTIONS"] = json.dumps({"store": str(folder / f"{name}.db")})
    words = [str(PLUGIN / "bin" / "python"), "-m", "hope_vllm.serve", str(model)]
    return Served(name, [*words, *_vllm_flags(dtype, max_tokens, num_rows)], environ, folder, "/health")


def _vllm_flags(dtype: str, max_tokens: int, num_rows: int) -> list[str]:
    words = ["--served-model-name", "bench", "--dtype", dtype]
    return [*words, "--max-model-len", str(max_tokens), "--max-num-seqs", str(num_rows)]


def _vllm_environ(num_threads: int) -> dict[str, str]:
    hosts = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    # Named cores: left to itself vLLM keeps one more free where there is a connector, and on two cores has none left.
    named = "0" if num_threads == 1 else f"0-{num_threads - 1}"
    cores = {"VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", named)}
    left_out = {"PYTHONPATH", "VLLM_FOLDER", "VLLM_PLUGIN_FOLDER"}
    environ = {name: value for name, value in os.environ.items() if name not in left_out}
    environ |= {**hosts, "VLLM_CPU_KVCACHE_SPACE": "2", **cores}
    environ["LD_PRELOAD"] = ":".join(vllm_libraries())
    return environ


def work_transformers(model: Path, num_threads: int, dtype: str) -> Worker:
    """Start transformers on an exported model; the first answer comes when it is loaded."""
    words = [sys.executable, str(ROOT / "bench" / "transformers_side.py"), str(model), str(num_threads), dtype]
    return Worker("transformers", words, {**os.environ, **_threads(num_threads)})


def has_vllm() -> bool:
    """Whether scripts/vllm.sh has been here."""
    return (VLLM / "bin" / "python").exists()


def has_plugin() -> bool:
    """Whether scripts/vllm-plugin.sh has been here."""
    return (PLUGIN / "bin" / "python").exists()


def vllm_versions() -> dict[str, str]:
    """Versions in vLLM's environment."""
    names = ("vllm-cpu", "torch", "transformers")
    code = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names}}}))"
    words = [str(VLLM / "bin" / "python"), "-c", code]
    found: dict[str, str] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return {"vllm-cpu": found["vllm-cpu"]} | {f"{name} beside vllm-cpu": found[name] for name in names[1:]}


def vllm_libraries() -> list[str]:
    """The libraries that vLLM's manual asks to preload, as far as they are here: a heap and OpenMP."""
    heap = ctypes.util.find_library("tcmalloc_minimal")
    threads = VLLM / "lib" / "libiomp5.so"
    return [*([heap] if heap else []), *([str(threads)] if threads.exists() else [])]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _threads(num_threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(num_threads), **THREADS_WAIT}

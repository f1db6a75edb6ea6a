"""The plugin behind vLLM's own HTTP server: sessions by header, reasons in answers, memories after a crash."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from reference import Session
from test_parity import LARGEST_DIFFERENCE, prompts
from toy_models import toy_params, write_toy

from hope_server.model.config import HopeConfig
from hope_server.model.params import Params

pytestmark = pytest.mark.engine

START_SECONDS = 240.0


@contextmanager
def serving(folder: Path, store: Path) -> Iterator[str]:
    """A server on a free port; killed, with all its processes, when the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {**os.environ, "HOPE_VLLM_OPTIONS": json.dumps({"store": str(store)}), "VLLM_CPU_KVCACHE_SPACE": "1"}
    environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(max(os.sched_getaffinity(0))))
    words = [sys.executable, "-m", "hope_vllm.serve", str(folder), "--port", str(port), "--dtype", "float32"]
    words += ["--max-model-len", "512", "--max-num-batched-tokens", "64", "--served-model-name", "toy"]
    log = store.parent / "server.log"
    with log.open("ab") as out:
        process = subprocess.Popen(words, env=environ, stdout=out, stderr=out, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(encoding="utf-8", errors="replace")[-4000:])
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def complete(url: str, prompt: list[int], session: str | None, **more: Any) -> httpx.Response:
    """Ask for a completion, the session in the header."""
    body = {"model": "toy", "prompt": prompt, "max_tokens": 12, "temperature": 1.0, "ignore_eos": True, **more}
    headers = {} if session is None else {"X-Session-ID": session}
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120)


def reply_of(answer: httpx.Response) -> tuple[list[int], list[float], dict[str, Any]]:
    """The tokens of a completion, their log-probabilities, and its receipt."""
    assert answer.status_code == 200, answer.text
    found = answer.json()
    logprobs = found["choices"][0]["logprobs"]
    tokens = [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]]
    return tokens, logprobs["token_logprobs"], found["kv_transfer_params"]


def test_sessions_over_http(toy: tuple[HopeConfig, Params], toy_folder: Path, tmp_path: Path) -> None:
    """A turn by header, a kill, a turn by body on another server; refusals with status and words; plain requests."""
    first, second = prompts(90, (70, 30))
    session, store = Session(*toy), tmp_path / "sessions.db"
    exact = {"logprobs": 0, "return_tokens_as_token_ids": True}
    with serving(toy_folder, store) as url:
        tokens, logprobs, receipt = reply_of(complete(url, first, "mira", **exact))
        assert session.largest_difference(first, tokens, logprobs) <= LARGEST_DIFFERENCE
        assert receipt["session_id"] == "mira" and receipt["num_tokens"] == session.num_tokens == 82
        _check_refusals(url)
    with serving(toy_folder, store) as url:
        tokens, logprobs, after = reply_of(complete(url, second, None, session_id="mira", **exact))
        assert session.largest_difference(second, tokens, logprobs) <= LARGEST_DIFFERENCE
        assert after["version"] != receipt["version"] and after["num_tokens"] == session.num_tokens
    other = write_toy(tmp_path / "other", toy[0], toy_params(toy[0], seed=9), "toy-9")
    with serving(other, store) as url:
        refused = complete(url, second, "mira")
        assert refused.status_code == 409 and "learned with another model" in refused.text
        assert '"code":409' in refused.text.replace(" ", "") and "state_incompatible" in refused.text


def _check_refusals(url: str) -> None:
    """What a session cannot have is refused, streamed or not; without a session it is served."""
    refused = complete(url, [1, 2, 3], "mira", stop=["w5"])
    assert refused.status_code == 400 and "stop_token_ids" in refused.text
    assert complete(url, [1, 2, 3], None, stop=["w5"]).status_code == 200
    body = {"model": "toy", "messages": [{"role": "user", "content": "w1 w2"}], "stream": True, "stop": ["w5"]}
    streamed = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"X-Session-ID": "mira"}, timeout=120)
    assert "stop_token_ids" in streamed.text and "turn_unsupported" in streamed.text
    del body["stop"]
    body |= {"max_tokens": 4}
    streamed = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"X-Session-ID": "chat"}, timeout=120)
    assert streamed.status_code == 200 and streamed.text.rstrip().endswith("data: [DONE]")
    assert "error" not in streamed.text

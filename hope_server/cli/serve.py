"""`hope serve`: takes the port, finds the model, and serves until a signal ends it."""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from hope_server.cli.console import load_settings, say, server_url, stage_progress, stderr_console
from hope_server.cli.serve_vllm import run_vllm
from hope_server.engine.stores import build_store
from hope_server.errors import HopeError, StartupError
from hope_server.settings import Settings

if TYPE_CHECKING:
    import uvicorn

    from hope_server.api.engine_port import EnginePort

_T = TypeVar("_T")
_POLL_SECONDS = 0.05
_SWITCH_SECONDS = 0.001
_WORKERS = 2
_LOOPBACK = ("127.", "::1", "localhost")


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. Raises HopeError when the server cannot start."""
    settings = load_settings(args)
    build_store(settings)
    if settings.engine == "vllm":
        warn_if_open(settings)
        run_vllm(settings)
    # Before the seconds that a model takes: who starts a second server by mistake should hear of it at once.
    listener = bind(settings.host, settings.port)
    warn_if_open(settings)
    try:
        return _serve(settings, listener)
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address and not yet listening. Raises StartupError with what to do instead."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as exc:
        raise StartupError(f"--host {host!r} is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all") from exc
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A restart must not wait until the connections of the process before have timed out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        listener.close()
        raise _cannot_listen(host, port, exc) from exc
    return listener


def apart(work: Callable[[], _T]) -> _T:
    """Return what `work` returns, or raise what it raises, done in a thread that ends with it.

    A thread that has ever computed keeps helpers of its own, and where there are more of them than cores, OpenMP has
    all wait in a slower way: what the engine's thread computes would take a quarter longer.
    """
    done: Future[_T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - raised again where the result is asked for
            done.set_exception(exc)

    # A daemon, so that Ctrl-C does not wait for the model.
    thread = threading.Thread(target=run, name="hope-loading", daemon=True)
    thread.start()
    thread.join()
    return done.result()


def _cannot_listen(host: str, port: int, error: OSError) -> StartupError:
    if error.errno == errno.EADDRINUSE:
        advice = "another program listens there; stop it or choose another port with --port"
    elif error.errno == errno.EACCES:
        advice = "ports below 1024 need special rights; choose another with --port"
    elif error.errno == errno.EADDRNOTAVAIL:
        advice = "that is no address of this machine; use --host 127.0.0.1, or 0.0.0.0 for all"
    else:
        advice = f"{error.strerror}; choose another address with --host and --port"
    return StartupError(f"cannot listen on {host} port {port}: {advice}")


def _serve(settings: Settings, listener: socket.socket) -> int:
    # Imported late: torch takes seconds, and a port in use is said before.
    import uvicorn

    from hope_server.api.app import create_app
    from hope_server.api.connections import raise_file_limit, server_config
    from hope_server.engine.assembly import build_engine
    from hope_server.telemetry import configure_logging, open_tracing

    tracing = open_tracing(os.environ)
    say(f"hope: loading {settings.model} …")
    with stage_progress(stderr_console()) as report:
        engine = apart(lambda: build_engine(settings, report))
    configure_logging(settings.log_level)
    failures: list[HopeError] = []

    def end_after_failure(error: HopeError) -> None:
        failures.append(error)
        server.should_exit = True

    raise_file_limit(settings)
    server = uvicorn.Server(server_config(create_app(engine, settings, end_after_failure, tracing), settings))
    # uvicorn raises the signal again when it has shut down; by then all is done, and the exit is clean.
    before = {number: signal.signal(number, _already_done) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        asyncio.run(_run_until_ended(server, engine, listener, settings))
    except OSError as exc:
        raise _cannot_listen(settings.host, settings.port, exc) from exc
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if failures:
        raise failures[0]
    say("hope: stopped")
    return 0


def _already_done(_number: int, _frame: FrameType | None) -> None:
    pass


async def _run_until_ended(
    server: uvicorn.Server, engine: EnginePort, listener: socket.socket, settings: Settings
) -> None:
    # Few, as large requests are looked at in these threads, and each that runs takes its time from all others.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_WORKERS, "hope-worker"))
    announcing = asyncio.create_task(_announce(server, engine, listener, settings))
    try:
        await server.serve(sockets=[listener])
    finally:
        announcing.cancel()


async def _announce(server: uvicorn.Server, engine: EnginePort, listener: socket.socket, settings: Settings) -> None:
    while not (server.started and engine.is_ready):
        await asyncio.sleep(_POLL_SECONDS)
    # What is there now stays: looking through it for garbage, again and again, would hold up all requests each time.
    gc.collect()
    gc.freeze()
    # How long a computing thread may keep the loop, which answers everybody, from its next step.
    sys.setswitchinterval(_SWITCH_SECONDS)
    host, port = listener.getsockname()[:2]
    print(banner(server_url(host, port), engine.model_id, is_keyed=is_keyed(settings)), flush=True)
    warn_if_open(settings)


def is_keyed(settings: Settings) -> bool:
    """Return whether the server asks for a key."""
    return bool(settings.api_keys or settings.api_key_file)


def warn_if_open(settings: Settings) -> None:
    """Say loudly, before the model is loaded and again when it is, that anyone may use what listens to others."""
    if is_keyed(settings) or settings.host.startswith(_LOOPBACK):
        return
    say(f"hope: WARNING: others can reach {settings.host}, and there is no API key:")
    say("hope: WARNING: whoever reaches this address can read, teach and delete every session.")
    say("hope: WARNING: set HOPE_API_KEYS, or HOPE_API_KEY_FILE and `hope keys create`; or use --host 127.0.0.1")


def banner(url: str, model: str, *, is_keyed: bool) -> str:
    """Return what is printed once turns are taken: where, and a first request to try."""
    key = ' -H "Authorization: Bearer $KEY"' if is_keyed else ""
    return f"""hope: {model} is ready at {url}

  curl {url}/v1/chat/completions -H "Content-Type: application/json"{key} -H "X-Session-ID: ada" \\
    -d '{{"messages": [{{"role": "user", "content": "My name is Ada."}}]}}'
"""

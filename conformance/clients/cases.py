"""Cases of a conformance program: functions that assert; each prints one line of JSON with its outcome."""

from __future__ import annotations

import inspect
import json
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

MODEL = "smollm2-135m-instruct"
CASES: list[Callable[..., Any]] = []


def case(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add a function to the program; the first line of its docstring names the case."""
    CASES.append(function)
    return function


def session_id(prefix: str = "conf") -> str:
    """A session that nobody else uses."""
    return f"{prefix}-{secrets.token_hex(6)}"


def raised(kind: type[Exception], make: Callable[[], Any]) -> Any:
    """The error that `make` raises, which must be of that kind."""
    try:
        found = make()
    except kind as exc:
        return exc
    raise AssertionError(f"{found!r} instead of {kind.__name__}")


def run(**given: Any) -> int:
    """Run every case with those of `given` that it asks for; return the exit status."""
    failed = 0
    for function in CASES:
        wanted = {name: given[name] for name in inspect.signature(function).parameters}
        began = time.monotonic()
        detail = ""
        try:
            function(**wanted)
        except Exception as exc:  # noqa: BLE001  whatever a case raises is its outcome
            where = traceback.extract_tb(exc.__traceback__)
            line = next((frame.lineno for frame in reversed(where) if frame.filename == sys.argv[0]), 0)
            detail = f"line {line}: {type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
            failed += 1
        name = (function.__doc__ or function.__name__).splitlines()[0].rstrip(".")
        outcome = {"case": name, "ok": not detail, "seconds": time.monotonic() - began, "detail": detail}
        print(json.dumps(outcome), flush=True)
    return 1 if failed else 0


def base_url() -> str:
    """The server's address, from the command line."""
    return sys.argv[1].rstrip("/")

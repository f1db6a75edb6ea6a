"""`hope doctor`: checks what a server needs on this machine, one line each, with what to do where it fails."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hope_client import ConnectionFailed, HopeClient, HopeError
from hope_memory import SnapshotStore, SqliteStore, StoreError
from hope_memory.key_file import KeyRing
from hope_memory.key_store import SqliteKeyStore

from hope_server.cli.console import load_settings, print_json, printable, server_url
from hope_server.cli.serve import bind
from hope_server.engine.stores import build_store, vault_of
from hope_server.errors import CheckpointError, SettingsError, StartupError
from hope_server.settings import Settings

_OLDEST_PYTHON = (3, 11)
_CLIENT_SECONDS = 5.0
_FREE_BYTES = 200_000_000
_SQLITE_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Check:
    """One checked thing. `status` note is no fault, but worth knowing."""

    name: str
    status: Literal["ok", "note", "fail"]
    detail: str


class _NotConverted(Exception):
    """Raised out of the conversion's first report, to learn that there would be one without doing it."""


def run_doctor(args: argparse.Namespace) -> int:
    """Print every check; return 1 if one failed."""
    checks: list[Check] = []
    for check in _checks(args):
        checks.append(check)
        if not args.json:
            print(f"{check.status:<4}  {check.name:<9} {printable(check.detail)}", flush=True)
    if args.json:
        print_json({"ok": all(check.status != "fail" for check in checks), "checks": [asdict(each) for each in checks]})
    return int(any(check.status == "fail" for check in checks))


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    yield check_python(sys.version_info[:3])
    yield check_torch()
    try:
        settings = load_settings(args)
    except SettingsError as exc:
        yield Check("settings", "fail", exc.message)
        return
    yield Check("settings", "ok", "all names and values are valid")
    yield check_threads(settings.num_threads, _num_cores())
    yield check_model(settings)
    yield check_store(settings)
    yield check_keys(settings)
    yield from check_server(settings, args.url, args.api_key)


def check_python(version: tuple[int, ...]) -> Check:
    """Check the version of Python."""
    shown = ".".join(map(str, version))
    if version >= _OLDEST_PYTHON:
        return Check("python", "ok", f"{shown} on {platform.machine()}")
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    return Check("python", "fail", f"{shown} is too old; install {oldest} or newer and run `make setup` with it")


def check_torch() -> Check:
    """Check that torch can be loaded."""
    try:
        import torch
    except (ImportError, OSError) as exc:
        return Check("torch", "fail", f"cannot be loaded ({exc}); run `make setup`")
    return Check("torch", "ok", str(torch.__version__))


def check_threads(num_threads: int, num_cores: int) -> Check:
    """Check that there are not more compute threads than cores, which makes each of them wait for the others."""
    if num_threads > num_cores:
        advice = (
            f"{num_threads} threads on {num_cores} cores get in each other's way; set --num-threads 0 or {num_cores}"
        )
        return Check("threads", "note", advice)
    return Check("threads", "ok", f"{num_threads or num_cores} on {num_cores} cores")


def _num_cores() -> int:
    # A container or taskset may allow fewer cores than the machine has; not every system can say.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_model(settings: Settings) -> Check:
    """Check that the model can be found, and say whether it was converted already."""
    try:
        from hope_server.model.checkpoint import resolve_model
    except (ImportError, OSError) as exc:
        return Check("model", "fail", f"the model code cannot be loaded ({exc}); run `make setup`")

    def stop(_stage: str, _fraction: float) -> None:
        raise _NotConverted

    try:
        folder = resolve_model(settings.model, settings.cache_dir, stop)
    except _NotConverted:
        return Check("model", "note", f"{settings.model} is found; the first start converts it once, in about a minute")
    except CheckpointError as exc:
        return Check("model", "fail", exc.message)
    return Check("model", "ok", f"{settings.model} is ready in {folder}")


def check_store(settings: Settings) -> Check:
    """Check that the store can be opened, or made where there is none; makes nothing."""
    try:
        store = build_store(settings)
        # Opening a store makes its key file, so what has none yet is only looked at.
        has_keys = vault_of(store).key_file.exists()
        if not isinstance(store, SqliteStore):
            if not has_keys:
                return Check("store", "note", "a store on the network; the server checks it when it first starts")
            asyncio.run(_try_store(store))
            return Check("store", "ok", "the store on the network answers")
        path = store.path
        if path.exists() and has_keys:
            asyncio.run(_try_store(store))
        elif path.exists() and _first_bytes(path) not in (b"", _SQLITE_MAGIC):
            return Check("store", "fail", f"{path} is not a SQLite file; choose another --store")
        folder = _nearest_folder(path.parent)
        # SQLite writes its journal beside the file.
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except SettingsError as exc:
        return Check("store", "fail", exc.message)
    except StoreError as exc:
        return Check("store", "fail", str(exc))
    except OSError as exc:
        return Check("store", "fail", f"{path} cannot be written ({exc.strerror}); choose another place with --store")
    if free < _FREE_BYTES:
        return Check(
            "store", "fail", f"only {free / 1e6:,.0f} MB are free in {folder}; make room or choose another --store"
        )
    state = "can be opened and written" if path.exists() else "will be made"
    return Check("store", "ok", f"{path} {state}, {free / 1e9:,.1f} GB free")


def check_keys(settings: Settings) -> Check:
    """Check the key file: that it can be read, by its owner only, and that no replaced key is left in it."""
    try:
        vault = vault_of(build_store(settings))
        path, keys = vault.key_file, vault.key_store
        if not path.exists() and isinstance(keys, SqliteKeyStore) and keys.path.exists():
            return Check("keys", "fail", f"{path} is missing, and sessions' keys in {keys.path} need it; restore it")
        if not path.exists():
            return Check("keys", "note", f"{path} will be made; keep a copy apart, without it no session can be read")
        ring = KeyRing.load(path)
        mode = path.stat().st_mode
    except SettingsError as exc:
        return Check("keys", "fail", exc.message)
    except (StoreError, OSError) as exc:
        return Check("keys", "fail", str(exc))
    if mode & 0o077:
        return Check("keys", "note", f"{path} can be read by others, and so can all sessions; run: chmod 600 {path}")
    if len(ring.keys) > 1:
        advice = "the older ones can go: hope vault prune"
        return Check("keys", "note", f"{path} has {len(ring.keys)} keys; {advice}")
    return Check("keys", "ok", f"{path} can be read by its owner only")


async def _try_store(store: SnapshotStore) -> None:
    await store.open()
    try:
        await store.ping()
    finally:
        await store.close()


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_SQLITE_MAGIC))


def _nearest_folder(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def check_server(settings: Settings, url: str | None, api_key: str | None) -> Iterator[Check]:
    """Check the port and whether a server answers; one of both is always expected.

    url: given by the caller, so that a server must answer there; None looks where `hope serve` would listen.
    """
    address = url or server_url(settings.host, settings.port or 1)
    server = _ask_server(address, api_key)
    try:
        listener: socket.socket = bind(settings.host, settings.port)
    except StartupError as exc:
        if server.status == "ok" and url in (None, server_url(settings.host, settings.port)):
            yield Check("port", "ok", f"{settings.port} is held by the HOPE Server that runs")
        else:
            yield Check("port", "fail", exc.message)
    else:
        listener.close()
        yield Check("port", "ok", f"{settings.port or 'a free one'} can be listened on")
    if server.status == "note" and url is not None:
        yield Check("server", "fail", server.detail)
    else:
        yield server


def _ask_server(url: str, api_key: str | None) -> Check:
    try:
        with HopeClient(url, api_key, timeout=_CLIENT_SECONDS) as client:
            health = client.health()
            if not health.is_ready:
                return Check("server", "ok", f"answers at {url} and is {health.status}")
            names = ", ".join(model.id for model in client.models())
    except ConnectionFailed:
        return Check("server", "note", f"none answers at {url}; start one with `hope serve`")
    except (HopeError, ValueError) as exc:
        return Check("server", "fail", str(exc))
    return Check("server", "ok", f"answers at {url} and serves {names}")

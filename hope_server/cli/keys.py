"""`hope keys`: creates, lists and revokes the API keys of a server; one that runs notices within a second."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hope_server.cli.console import CommandError, load_settings, print_json, say

if TYPE_CHECKING:
    from hope_server.api.key_registry import KeyRecord, KeyRegistry

_SCOPES = "chat, sessions:read, sessions:write, admin"
_LIMITS = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute, read, written and learned together",
    "max_sessions": "sessions it may keep",
    "max_stored_bytes": "bytes that its sessions may take together",
    "max_open_requests": "requests that may be open at once",
}
_PIPE_COLUMNS = 240
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_PERIOD = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")


def add_keys_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `hope keys` and their flags to `parser`."""
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION", dest="action")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, allow_abbrev=False)
        action.add_argument(
            "--api-key-file",
            dest="api_key_file",
            default=argparse.SUPPRESS,
            metavar="FILE",
            help="the file of the server's keys (default: HOPE_API_KEY_FILE)",
        )
        action.add_argument("--json", action="store_true", help="write the result as JSON")
        action.set_defaults(run=run_keys)
        return action

    create = add("create", "make a key; it is shown this once")
    create.add_argument("name", metavar="NAME", help="what the key is for")
    create.add_argument("--scopes", metavar="LIST", help=f"some of {_SCOPES} (default: all but admin)")
    create.add_argument(
        "--tenant", metavar="NAME", help="whose sessions it sees (default: its own; default is an open server's)"
    )
    create.add_argument("--expires", metavar="PERIOD", help="how long it is good, like 90d, 12h or 30m (default: ever)")
    for limit, text in _LIMITS.items():
        flag = "--" + limit.replace("_", "-")
        # Apart from the settings of the same names, which are the server's defaults.
        create.add_argument(flag, dest=f"key_{limit}", type=_count, metavar="N", help=f"{text}, 0: any number")
    add("list", "list all keys, without the keys themselves")
    add("revoke", "end a key, and what it is doing").add_argument("key", metavar="KEY", help="its id or name")


def run_keys(args: argparse.Namespace) -> int:
    """Do one thing with the keys."""
    # Imported late: the API is not needed to show how this is used.
    from hope_server.api.key_registry import KeyRegistry

    path = load_settings(args).api_key_file
    if not path:
        raise CommandError("no file of API keys is named; set HOPE_API_KEY_FILE for server and command, or give one", 2)
    registry = KeyRegistry(Path(path))
    if args.action == "create":
        _create(registry, args)
    elif args.action == "revoke":
        revoked = registry.revoke(args.key)
        _print_one(revoked, args.json, f"{revoked.id} ({revoked.name}) is revoked; its open requests end")
    else:
        _list(registry, args.json)
    return 0


def _create(registry: KeyRegistry, args: argparse.Namespace) -> None:
    from hope_server.api.key_registry import TENANT_RULE, KeyLimits, new_key
    from hope_server.api.scopes import ALL_SCOPES, DEFAULT_SCOPES

    scopes = DEFAULT_SCOPES if args.scopes is None else _split(args.scopes)
    unknown = sorted(set(scopes) - set(ALL_SCOPES))
    if unknown or not scopes:
        raise CommandError(f"--scopes has {', '.join(unknown) or 'none'}; use some of {_SCOPES}", 2)
    if args.tenant is not None and not _TENANT.fullmatch(args.tenant):
        raise CommandError(f"--tenant is {args.tenant!r}; {TENANT_RULE}", 2)
    if not args.name.isprintable() or not 1 <= len(args.name) <= 100:
        raise CommandError("NAME must be 1 to 100 printable characters", 2)
    limits = KeyLimits(**{limit: getattr(args, f"key_{limit}") for limit in _LIMITS})
    record, key = new_key(args.name, scopes, args.tenant, limits, _expiry(args.expires))
    registry.add(record)
    if args.json:
        print_json({"key": key, **_public(record)})
        return
    print(key)
    say(f"made {record.id} ({record.name}) with {', '.join(record.scopes)}; the key above is shown this once")


def _expiry(period: str | None) -> int | None:
    if period is None:
        return None
    found = _PERIOD.fullmatch(period)
    if found is None:
        raise CommandError(f"--expires is {period!r}; use a whole number of m, h, d or w, like 90d", 2)
    return int(time.time()) + int(found[1]) * _UNITS[found[2]]


def _list(registry: KeyRegistry, is_json: bool) -> None:
    records = registry.read()
    if is_json:
        print_json([_public(record) for record in records])
        return
    if not records:
        say(f"{registry.path} has no keys yet; make one with: hope keys create NAME")
        return
    table = Table(box=None)
    for name in ("id", "name", "tenant", "scopes", "limits", "created", "state"):
        table.add_column(name, no_wrap=True)
    for record in records:
        limits = ", ".join(f"{name} {value:,}" for name, value in record.limits.model_dump(exclude_none=True).items())
        cells = (record.id, record.name, record.tenant, ",".join(record.scopes), limits or "the server's")
        table.add_row(*cells, _when(record.created), _state(record))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # A pipe has no width; a table that is cut to 80 columns there would lose what it is for.
        console = Console(highlight=False, markup=False, width=_PIPE_COLUMNS)
    console.print(table)


def _print_one(record: KeyRecord, is_json: bool, text: str) -> None:
    if is_json:
        print_json(_public(record))
    else:
        say(text)


def _public(record: KeyRecord) -> dict[str, Any]:
    """What may be shown of a key: not even its hash, which nobody needs."""
    fields = record.model_dump(exclude={"hash"})
    return {**fields, "scopes": list(record.scopes), "is_valid": record.is_valid(time.time())}


def _state(record: KeyRecord) -> str:
    if record.revoked is not None:
        return f"revoked {_when(record.revoked)}"
    if record.expires is None:
        return "good"
    return f"{'good until' if record.is_valid(time.time()) else 'expired'} {_when(record.expires)}"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _split(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)

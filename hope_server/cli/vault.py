"""`hope vault`: replaces the key that wraps sessions' own keys, at once or step by step, also while servers run."""

from __future__ import annotations

import argparse
import asyncio

from hope_memory import KeysUnavailable, Vault

from hope_server.cli.console import CommandError, load_settings, print_json
from hope_server.engine.stores import build_store, vault_of

_DONE = {
    "rotate": "now has key {key} alone, which wraps the keys of all sessions",
    "new": "now has key {key} too; copy the file to every server, then: hope vault rewrap",
    "rewrap": "key {key} wraps the keys of all sessions now; the older ones can go: hope vault prune",
    "prune": "has no key but {key} any more; destroy older copies of the file too",
}


def run_vault(args: argparse.Namespace) -> int:
    """Take one step of a rotation, or all of them."""
    vault = vault_of(build_store(load_settings(args)))
    if not vault.key_file.exists():
        raise CommandError(f"there is no key file {vault.key_file}; a server makes it when it starts")
    try:
        num_wrapped = asyncio.run(_act(vault, args.action))
        key = vault.ring.last_id
    except KeysUnavailable as exc:
        raise CommandError(str(exc)) from exc
    if args.json:
        print_json({"key_file": str(vault.key_file), "key": key, "num_wrapped": num_wrapped})
    else:
        print(f"{vault.key_file} {_DONE[args.action].format(key=key)} ({num_wrapped} wrapped anew)")
    return 0


async def _act(vault: Vault, action: str) -> int:
    """Returns how many records were wrapped anew; states of sessions are not touched. Raises KeysUnavailable."""
    await vault.open()
    try:
        if action == "new":
            vault.add_wrapping_key()
            return 0
        if action == "rewrap":
            return await vault.rewrap()
        return await (vault.prune() if action == "prune" else vault.rotate())
    finally:
        await vault.close()

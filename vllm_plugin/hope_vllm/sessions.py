"""Looks after the sessions of a store without an engine: lists them, goes back, deletes, carries them as files.

    python -m hope_vllm.sessions FOLDER COMMAND [NAME] [FILE] …        (FOLDER: the exported model; options of the store
    list | versions NAME | rollback NAME VERSION | delete NAME          come by the variable HOPE_VLLM_OPTIONS)
    export NAME FILE [--ranks N] | import NAME FILE [--ranks N]

An engine loads states of any number of ranks; `--ranks` stores one as so many ranks would have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from hope_memory.archive import read_archive, write_archive
from hope_memory.errors import SnapshotCorrupt, SnapshotTooLarge
from hope_memory.snapshot import Snapshot

from hope_server.engine.session_card import SessionCard
from hope_server.engine.sessions import SessionBook
from hope_server.engine.stores import build_store
from hope_server.engine.turn import SessionKey
from hope_server.errors import HopeError, InvalidRequest, SessionExists, StateIncompatible
from hope_server.model.config import HopeConfig
from hope_vllm.codec import Shard, State, StateCodec
from hope_vllm.hope_config import model_fingerprint, read_config, titans_of
from hope_vllm.keeper import TENANT
from hope_vllm.options import read_options
from hope_vllm.shards import cut_state, heads_of_rank

_LIMIT = 1000


def reshard(codec: StateCodec, snapshot: Snapshot, num_ranks: int) -> Snapshot:
    """The same state as so many ranks store it, exactly. Raises StateCorrupt; InvalidRequest for ranks that do not fit.

    What is said of the session stays.
    """
    state = codec.decode(snapshot)
    return codec.encode(cut_shards(codec.config, state, num_ranks), state.num_tokens, state.info)


def cut_shards(config: HopeConfig, state: State, num_ranks: int) -> list[Shard]:
    """A state as so many ranks hand it over. Raises InvalidRequest where they cannot share its heads."""
    spec = titans_of(config)
    try:
        heads_of_rank(spec, 0, num_ranks)
    except (ValueError, ZeroDivisionError) as exc:
        raise InvalidRequest(f"{num_ranks} ranks cannot share {spec.num_heads} memory heads") from exc
    return [
        Shard(
            {block: cut_state(whole, spec, rank, num_ranks) for block, whole in state.blocks.items()},
            state.num_tokens % config.chunk_size,
        )
        for rank in range(num_ranks)
    ]


class SessionDesk:
    """The verbs, on an open store."""

    def __init__(self, book: SessionBook, codec: StateCodec, max_bytes: int) -> None:
        """max_bytes: of an archive, at most."""
        self._book = book
        self._codec = codec
        self._max_bytes = max_bytes

    async def names(self) -> list[str]:
        """A line for each session: name, version, turns, tokens, bytes."""
        found = await self._book.list(TENANT, _LIMIT, None)
        return [
            f"{info.session_id}  {info.version or 'nothing yet'}  turn {info.turn}  {info.num_tokens:,} tokens  "
            f"{sum(info.state_bytes.values()):,} bytes"
            for info in found
        ]

    async def versions(self, name: str) -> list[str]:
        """A line for each version that is kept, newest first."""
        found = await self._book.versions(SessionKey(TENANT, name))
        return [
            f"{info.version}  turn {info.meta.get('turn', 0)}  {info.meta.get('num_tokens', 0):,} tokens"
            for info in found
        ]

    async def rollback(self, name: str, version: str) -> list[str]:
        """Make a kept version the newest."""
        record = await self._book.get(SessionKey(TENANT, name))
        card = SessionCard.of({} if record.head is None else record.head.meta)
        info = await self._book.restate(record, version, card)
        return [f"{name} is as in {version}, now version {info.version}"]

    async def delete(self, name: str) -> list[str]:
        """Delete a session and its keys."""
        was_there = await self._book.delete(SessionKey(TENANT, name))
        return [f"{name} is deleted" if was_there else f"there was no session {name}"]

    async def export(self, name: str, file: Path, num_ranks: int | None) -> list[str]:
        """Write a session's newest state as an archive. Raises SessionNotFound, StateIncompatible and more."""
        loaded = await self._book.load(SessionKey(TENANT, name), None)
        if num_ranks is not None:
            loaded = loaded._replace(snapshot=reshard(self._codec, loaded.snapshot, num_ranks))
        # Readable by its owner alone: an archive is not sealed.
        file.touch(mode=0o600)
        file.write_bytes(b"".join(write_archive(loaded, name)))
        return [f"{name}, version {loaded.info.version}, is in {file}: {file.stat().st_size:,} bytes, not encrypted"]

    async def import_(self, name: str, file: Path, num_ranks: int | None) -> list[str]:
        """Make a session of an archive. Raises InvalidRequest, StateIncompatible, SessionExists."""
        try:
            header, snapshot = read_archive(file.read_bytes(), self._max_bytes)
        except (OSError, SnapshotCorrupt, SnapshotTooLarge) as exc:
            raise InvalidRequest(f"{file} is not a whole, unaltered export of a session: {exc}") from exc
        if snapshot.fingerprint != self._codec.fingerprint:
            raise StateIncompatible(f"{file} was learned with another model or version; import it where that is served")
        state = self._codec.decode(snapshot)
        snapshot = reshard(self._codec, snapshot, num_ranks or len(snapshot.levels))
        key = SessionKey(TENANT, name)
        record, is_new = await self._book.create(key)
        if not is_new:
            raise SessionExists(name)
        kept = await self._book.commit(key, record.tip, snapshot)
        return [f"{header.name} is {name} here, version {kept.info.version}, {state.num_tokens:,} tokens"]


async def _run(args: argparse.Namespace) -> list[str]:
    values = json.loads((args.folder / "config.json").read_text(encoding="utf-8"))
    hf_config = SimpleNamespace(**values)
    settings = read_options({})
    codec = StateCodec(read_config(hf_config), model_fingerprint(hf_config))
    book = SessionBook(build_store(settings), codec.fingerprint)
    await book.open()
    try:
        desk = SessionDesk(book, codec, 2 * settings.max_snapshot_bytes)
        if args.command == "list":
            return await desk.names()
        if args.command == "rollback":
            return await desk.rollback(args.name, args.version)
        if args.command in ("export", "import"):
            move = desk.export if args.command == "export" else desk.import_
            return await move(args.name, args.file, args.ranks)
        return await (desk.versions if args.command == "versions" else desk.delete)(args.name)
    finally:
        await book.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked; 1 with the reason where it cannot be done."""
    parser = argparse.ArgumentParser(prog="hope_vllm.sessions", description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="the exported model")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    for command in ("versions", "delete", "rollback", "export", "import"):
        verb = commands.add_parser(command)
        verb.add_argument("name", help="of the session")
        if command == "rollback":
            verb.add_argument("version", help="a kept version")
        if command in ("export", "import"):
            verb.add_argument("file", type=Path, help="the archive")
            verb.add_argument("--ranks", type=int, help="store the state as so many ranks would")
    args = parser.parse_args(arguments)
    try:
        print("\n".join(asyncio.run(_run(args))))
    except (HopeError, OSError) as exc:
        print(f"hope-vllm: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A session's text is nowhere readable in what Redis keeps, and after a delete nobody can make it readable.

The canary is looked for in every file of a primary with append-only file and dump, and of its replica. To show that it
is there, a thief is given the keys: he reads the canary out of the same files, until the session is deleted.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest
import redis
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hope_memory.errors import KeysUnavailable
from hope_memory.key_file import KeyRing
from hope_memory.sealing import SEAL_SCHEMA
from redis_server import RedisServer
from toys import make_tokenizer, toy_engine

from hope_server.engine.engine import Engine
from hope_server.engine.turn import Attempt, ChatRequest, Message, SamplingParams, SessionKey, TurnFinished

pytestmark = pytest.mark.anyio

CANARY = "the canary sings at 4711 Quill Street."
KEY = SessionKey("canary-tenant", "canary-session")
REQUEST = "canary-request"
_SEALED = re.compile(b"HS" + bytes((SEAL_SCHEMA, 0)) + b".{8}.{12}", re.DOTALL)
_RECORD = re.compile(b"\x93\x01")


def spellings(text: str) -> dict[str, bytes]:
    """A text as it could stand in a file."""
    tokens = make_tokenizer().encode(text)
    plain = text.encode()
    return {
        "utf-8": plain,
        "utf-16": text.encode("utf-16-le"),
        "hex": plain.hex().encode(),
        # Every third byte begins a group, so the middle of the text looks the same wherever it begins.
        **{f"base64 at {at}": base64.b64encode(plain[at:])[: 4 * ((len(plain) - at) // 3)] for at in range(3)},
        "token ids": struct.pack(f"<{len(tokens)}i", *tokens),
        "token ids, big-endian": struct.pack(f">{len(tokens)}i", *tokens),
        "msgpack token ids": b"".join(msgpack.packb(token) for token in tokens),
    }


def found_in(folders: list[Path], texts: list[str]) -> list[str]:
    """Every spelling of the texts that stands in a file of the folders."""
    return [
        f"{file.name}: {text!r} as {spelling}"
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        for data in [file.read_bytes()]
        for text in texts
        for spelling, wanted in spellings(text).items()
        if wanted in data
    ]


@dataclass
class Thief:
    """Has the key file, all files of the key store and all files of Redis, and knows every session's name."""

    key_file: Path
    key_files: Path
    folders: list[Path]

    def data_keys(self) -> dict[bytes, bytes]:
        """Every data key that unwraps out of the raw bytes of the key store's files, by its id."""
        ring = KeyRing.load(self.key_file)
        place = ring.place("session", KEY.tenant, KEY.session_id)
        found: dict[bytes, bytes] = {}
        for file in sorted(self.key_files.parent.glob(self.key_files.name + "*")):
            data = file.read_bytes()
            for match in _RECORD.finditer(data):
                unpacker = msgpack.Unpacker(max_buffer_size=1 << 20)
                unpacker.feed(data[match.start() : match.start() + (64 << 10)])
                try:
                    _, key_id, wrapped = unpacker.unpack()
                    _, _, pairs = msgpack.unpackb(ring.unwrap(key_id, wrapped, ("session keys", place)))
                except (ValueError, TypeError, AttributeError, msgpack.UnpackException, KeysUnavailable):
                    continue
                found |= dict(pairs)
        return found

    def opened(self) -> Iterator[bytes]:
        """What every sealed piece in Redis' files decrypts to under every key, with no check that could refuse."""
        keys = self.data_keys()
        for folder in self.folders:
            for file in sorted(folder.rglob("*")):
                data = file.read_bytes() if file.is_file() else b""
                for match in _SEALED.finditer(data):
                    key_id, nonce = match.group()[4:12], match.group()[12:]
                    if key_id in keys:
                        # GCM is counter mode, whose first block of data has counter 2.
                        counter = modes.CTR(nonce + (2).to_bytes(4, "big"))
                        open_ = Cipher(algorithms.AES(keys[key_id]), counter).decryptor()
                        yield open_.update(data[match.end() : match.end() + (256 << 10)])

    def sees(self, text: str) -> set[str]:
        """The spellings in which he can read a text."""
        return {name for opened in self.opened() for name, wanted in spellings(text).items() if wanted in opened}


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only."""
    return "asyncio"


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that keeps an append-only file and dumps."""
    with RedisServer(tmp_path / "primary", ["--repl-diskless-sync-delay", "0"], aof="always") as server:
        yield server


@pytest.fixture
def replica(primary: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """A replica that keeps the same."""
    with RedisServer(tmp_path / "replica", aof="always") as server:
        with redis.Redis(port=server.port) as client:
            client.replicaof("127.0.0.1", primary.port)
        yield server


@pytest.fixture
async def engine(primary: RedisServer, replica: RedisServer, tmp_path: Path) -> AsyncIterator[Engine]:
    """A toy engine whose keys lie in a folder of their own."""
    folder = tmp_path / "keys"
    folder.mkdir()
    files = {"key_file": str(folder / "hope.key"), "key_store": str(folder / "keys.db")}
    engine = toy_engine(primary.url, **files)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def thief(primary: RedisServer, replica: RedisServer, tmp_path: Path) -> Thief:
    """Somebody with everything that lies on disks."""
    return Thief(tmp_path / "keys/hope.key", tmp_path / "keys/keys.db", [primary.folder, replica.folder])


async def teach(engine: Engine) -> None:
    """Have the session learn the canary, by chats under a request id."""
    for number in range(3):
        attempt = Attempt(key=f"{REQUEST}-{number}")
        said = (Message("user", f"{CANARY} {number}"),)
        request = ChatRequest(said, SamplingParams(max_tokens=4, temperature=0), KEY, attempt=attempt)
        events = [event async for event in engine.chat(request)]
        assert isinstance(events[-1], TurnFinished)


def write_everything(*servers: RedisServer) -> None:
    """Have each Redis write a dump and a new append-only file, beside the old files."""
    for server in servers:
        with redis.Redis(port=server.port) as client:
            client.save()
            client.bgrewriteaof()
            while client.info("persistence")["aof_rewrite_in_progress"]:
                pass


def caught_up(primary: RedisServer, replica: RedisServer) -> None:
    """Wait until the replica has all that the primary has."""
    with redis.Redis(port=replica.port) as client:
        while client.info("replication")["master_link_status"] != "up":
            pass
    with redis.Redis(port=primary.port) as client:
        client.set("mark", 1)
        assert client.wait(1, 10_000) == 1


async def test_nothing_of_a_session_is_readable(
    engine: Engine, thief: Thief, primary: RedisServer, replica: RedisServer
) -> None:
    """No spelling of the text, the names or the request is in any file; a plain key of the same text is in all."""
    await teach(engine)
    caught_up(primary, replica)
    write_everything(primary, replica)

    assert found_in(thief.folders, [CANARY, KEY.session_id, KEY.tenant, REQUEST]) == []

    with redis.Redis(port=primary.port) as client:
        client.set("plain", CANARY)
    caught_up(primary, replica)
    write_everything(primary, replica)
    assert {line.split(":")[0].split(".")[0] for line in found_in(thief.folders, [CANARY])} >= {"dump", "appendonly"}


async def test_after_a_delete_nothing_can_be_decrypted(
    engine: Engine, thief: Thief, primary: RedisServer, replica: RedisServer
) -> None:
    """With all files and the key file a thief reads the text; after a delete the same files tell him nothing."""
    await teach(engine)
    caught_up(primary, replica)
    write_everything(primary, replica)
    stolen = thief.data_keys()
    assert "token ids" in thief.sees(CANARY)
    assert "utf-8" in thief.sees(KEY.session_id)

    assert await engine.delete_session(KEY)
    caught_up(primary, replica)
    write_everything(primary, replica)

    assert thief.data_keys() == {}
    assert thief.sees(CANARY) == thief.sees(KEY.session_id) == set()
    files = [file for folder in (*thief.folders, thief.key_file.parent) for file in folder.rglob("*") if file.is_file()]
    assert [file.name for file in files for key in stolen.values() if key in file.read_bytes()] == []


async def test_a_session_made_again_does_not_read_the_old_one(engine: Engine, thief: Thief) -> None:
    """A new session under the old name has other keys, with which the old session's bytes stay closed."""
    await teach(engine)
    before = thief.data_keys()
    await engine.delete_session(KEY)
    await engine.create_session(KEY)

    assert before and not before.keys() & thief.data_keys().keys()
    assert thief.sees(CANARY) == set()
    assert (await engine.get_session(KEY)).turn == 0

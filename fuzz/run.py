"""Fuzz what parses stored or given bytes: `python fuzz/run.py TARGET [SECONDS] [libFuzzer options]`.

frames    headers and bodies of levels, manifests, summaries and answers, as they come from behind the seal
schema1   the same of schema 1, which is read once to migrate a file
archive   archives whose digest is right
keyfile   the text of a key file
A target may raise its one error. Anything else, more than 0.1 s of processor time for an input, or more memory than
MAX_RSS_MB is a finding; libFuzzer then writes the input to `out/fuzz/`, where the corpus of earlier runs is too.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hope_memory"]):
    from hope_memory import archive, codec, errors, key_file, protocol, schema1, snapshot

OUT = Path(__file__).resolve().parents[1] / "out" / "fuzz"
MAX_CPU_SECONDS = 0.1
MAX_RSS_MB = 256
MAX_INPUT_BYTES = 16 << 10

_LEVEL = snapshot.Level({"w": snapshot.Array("float32", (3,), b"abcdefghijkl"), "n": snapshot.Array("bool", (), b"\1")})
_MANIFEST = codec.Manifest(
    "acme", "chat", "v", None, 1, 2.5, "m", {"info": {"x": [1, b"2"]}}, None, (("v", "r"),),
    {"fast": codec.LevelRef("v", "b", 9, 1)},
)  # fmt: skip
_FRAMES: list[tuple[bytes, Callable[[bytes], object], bytes]] = [
    (b"HMLV", codec.decode_level, codec.encode_level(_LEVEL)),
    (b"HMMF", codec.decode_manifest, codec.encode_manifest(_MANIFEST)),
    (b"HMIN", codec.decode_info, codec.encode_info({"turn": 1})),
    (b"HMAN", codec.decode_answer, codec.encode_answer({"digest": b"d", "info": {}}, b"reply")),
]
_FRAMES_1: list[tuple[bytes, Callable[[bytes], object]]] = [
    (b"HMLV", lambda data: schema1.decode_level_1(data, (data[20:52], len(data)))),
    (b"HMMF", schema1.decode_manifest_1),
    (b"HMIN", schema1.decode_info_1),
]


def frames(data: bytes) -> None:
    """Decode a frame of each kind with the header and body that the input is made of; also the input as it is."""
    kind, header, body = _split(data)
    magic, decode, _ = _FRAMES[kind % len(_FRAMES)]
    for encoded in (data[3:], struct.pack("<4sHHIQ12x", magic, 2, 0, len(header), len(body)) + header + body):
        _refused_or_fine(decode, encoded, errors.SnapshotCorrupt)


def frames_1(data: bytes) -> None:
    """Decode a frame of schema 1 whose checksum is right."""
    kind, header, body = _split(data)
    magic, decode = _FRAMES_1[kind % len(_FRAMES_1)]
    prefix = struct.pack("<4sHHIQ", magic, 1, 0, len(header), len(body))
    encoded = prefix + hashlib.sha256(prefix + header + body).digest() + header + body
    _refused_or_fine(decode, encoded, errors.SnapshotCorrupt)


def archives(data: bytes) -> None:
    """Read an archive with the header and frames that the input is made of, behind the right digest."""
    _, header, body = _split(data)
    whole = struct.pack("<8sI4x", b"HOPEARC1", len(header)) + header + body
    for content in (whole, data[3:]):
        encoded = content + hashlib.sha256(content).digest()
        _refused_or_fine(lambda given: archive.read_archive(given, 1 << 20), encoded, errors.SnapshotCorrupt)


def key_files(data: bytes) -> None:
    """Parse the text of a key file."""
    text = data.decode("latin-1")
    _refused_or_fine(lambda _: key_file.KeyRing.parse(text, "file"), data, errors.KeysUnavailable)


def _split(data: bytes) -> tuple[int, bytes, bytes]:
    """Take a kind, a header of a size in steps of 16, and a body from an input."""
    kind, size = (data[0], int.from_bytes(data[1:3], "little") * 16) if len(data) > 2 else (0, 0)
    header = data[3 : 3 + size]
    return kind, header + bytes(-len(header) % 16), data[3 + size :]


def _refused_or_fine(decode: Callable[[bytes], object], data: bytes, refusal: type[Exception]) -> None:
    began = time.process_time()
    with suppress(refusal):
        decode(data)
    took = time.process_time() - began
    if took > MAX_CPU_SECONDS:
        raise RuntimeError(f"an input of {len(data)} bytes took {took:.2f} s")


def _seeds(name: str) -> list[bytes]:
    """Return valid inputs to begin with."""
    if name == "keyfile":
        return [key_file.KeyRing(bytes(32), {"a": bytes(32), "b": b"\1" * 32}).text().encode()]
    if name == "archive":
        info = protocol.CommitInfo("v", None, 1, 2.5, 9, {})
        loaded = protocol.Loaded(info, snapshot.Snapshot("m", {"x": 1}, {"a": _LEVEL}), ())
        whole = b"".join(archive.write_archive(loaded, "chat"))
        (size,) = struct.unpack_from("<I", whole, 8)
        return [bytes([0]) + (size // 16).to_bytes(2, "little") + whole[16:-32]]
    kinds = enumerate(_FRAMES if name == "frames" else _FRAMES[:3])
    # The header of a frame begins at byte 32, and its size is at byte 8; both schemas have the same headers.
    return [
        bytes([kind]) + (struct.unpack_from("<I", encoded, 8)[0] // 16).to_bytes(2, "little") + encoded[32:]
        for kind, (_, _, encoded) in kinds
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": frames,
    "schema1": frames_1,
    "archive": archives,
    "keyfile": key_files,
}


def main() -> None:
    """Fuzz one target for a time (60 s where none is given)."""
    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    corpus = OUT / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(_seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-rss_limit_mb={MAX_RSS_MB}",
        f"-artifact_prefix={OUT}/finding-{name}-",
        "-malloc_limit_mb=64",
        "-timeout=5",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *limits, *sys.argv[3:], str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()

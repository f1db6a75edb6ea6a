"""What was measured of one server, from which everything else is reckoned.

Times in seconds of one server's engine on its own cores, sizes in bytes, texts in tokens.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hope_server.errors import SettingsError

__all__ = ["DEFAULT", "BadConstants", "Constants", "load_constants"]

DEFAULT = Path(__file__).with_name("constants.json")
"""Those of the default model on two cores; `make bench-capacity` makes others."""


class BadConstants(SettingsError):
    """A file of constants that is none."""


@dataclass(frozen=True, slots=True)
class Constants:
    """One server, as measured.

    machine, model, commit: where, what and by which version. num_threads: compute threads of the server.
    decode_seconds: a step in which 1, 2, 4, … replies are written and no chunk is completed, by their number.
    read_token_seconds: for each token of a chunk that is completed, thus read whole and learned from;
    part_token_seconds: for each token that is read without completing one. turn_seconds: of a turn whatever its length,
    before its engine has it. study_seconds: of one part of a consolidation, in which everything else waits;
    study_token_seconds: of all parts, for each token that is studied. commit_seconds: until a finished turn is durable;
    restore_seconds, host_restore_seconds: until a state is at hand from the store, from host memory. state_bytes: a
    state in memory; stored_bytes: a session in the store with all its versions; traffic_bytes: to and from the store
    for a turn. chunk_tokens, block_tokens, delay_tokens, num_slots, passes (in which a text is studied): as the server
    was set.
    """

    machine: str
    model: str
    commit: str
    num_threads: int
    decode_seconds: dict[int, float]
    read_token_seconds: float
    part_token_seconds: float
    turn_seconds: float
    study_seconds: float
    study_token_seconds: float
    commit_seconds: float
    restore_seconds: float
    host_restore_seconds: float
    state_bytes: float
    stored_bytes: float
    traffic_bytes: float
    chunk_tokens: int = 64
    block_tokens: int = 256
    delay_tokens: int = 128
    num_slots: int = 8
    passes: int = 8

    def __post_init__(self) -> None:
        """Raise BadConstants for numbers that no server has."""
        if not self.decode_seconds or 1 not in self.decode_seconds:
            raise BadConstants("decode_seconds must say how long a step of one reply takes")
        for field in fields(self):
            value = getattr(self, field.name)
            for number in value.values() if isinstance(value, dict) else (value,):
                if isinstance(number, (int, float)) and not (math.isfinite(number) and number >= 0):
                    raise BadConstants(f"{field.name} is {number}; it must be finite and not negative")
        for name in ("num_threads", "chunk_tokens", "block_tokens", "num_slots", "passes"):
            if getattr(self, name) < 1:
                raise BadConstants(f"{name} is {getattr(self, name)}; it must be 1 or more")

    def decode(self, num_replies: int) -> float:
        """Seconds of a step that writes a token of `num_replies` each; between and beyond what was measured, lines."""
        if num_replies <= 0:
            return 0.0
        known = sorted(self.decode_seconds.items())
        if len(known) == 1:
            return known[0][1] * num_replies
        for (few, short), (many, long) in itertools.pairwise(known):
            if num_replies <= many or many == known[-1][0]:
                return max(0.0, short + (long - short) * (num_replies - few) / (many - few))
        raise AssertionError("a number of replies beyond all others ends at the last line")

    def chunk(self) -> float:
        """Seconds in which the token that completes a chunk is read: with the whole chunk, which is learned from."""
        return max(self.decode(1), self.read_token_seconds * self.chunk_tokens)

    def part(self, num_tokens: float) -> float:
        """Seconds in which some tokens are read that complete no chunk: no less than a step."""
        return max(self.decode(1), self.part_token_seconds * num_tokens) if num_tokens > 0 else 0.0

    def study_part(self, seconds: float) -> float:
        """Seconds of one part of a study that takes `seconds`: each of its passes is one part at least."""
        if seconds <= 0:
            return 0.0
        return seconds / max(self.passes, math.ceil(seconds / max(self.study_seconds, 1e-6)))

    def prompt(self, num_tokens: float) -> float:
        """Seconds in which a prompt is read, on average over where in a chunk it begins: what it completes, and a tail.

        The tail completes nothing. It is half a chunk; of a prompt that may end in the chunk in which it begins, what
        is left of it on average.
        """
        size = self.chunk_tokens
        tail = size / 2 if num_tokens >= size else num_tokens - num_tokens**2 / (2 * size)
        return self.read_token_seconds * num_tokens + self.part(tail)

    def to_json(self) -> str:
        """These as text that `load_constants` reads."""
        return json.dumps(asdict(self), indent=1) + "\n"


def load_constants(path: Path) -> Constants:
    """Read constants. Raises BadConstants, with the reason, for a file that holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BadConstants(f"{path}: {exc}") from exc
    if not isinstance(found, dict):
        raise BadConstants(f"{path} holds no object")
    return _of_object(found)


def _of_object(found: Mapping[str, Any]) -> Constants:
    names = {field.name for field in fields(Constants)}
    unknown = sorted(found.keys() - names)
    if unknown:
        raise BadConstants(f"{', '.join(unknown)}: no constant has that name; there are {', '.join(sorted(names))}")
    try:
        steps = {int(count): float(seconds) for count, seconds in found["decode_seconds"].items()}
        return Constants(**(dict(found) | {"decode_seconds": steps}))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BadConstants(f"constants are incomplete or of the wrong kind: {exc}") from exc

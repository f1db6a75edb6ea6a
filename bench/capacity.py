"""Measures the constants of one server from which `hope plan` reckons how many are needed (docs/CAPACITY.md).

    PYTHONPATH=tests/support python bench/capacity.py [--threads N] [--constants FILE] [--quick] [--rounds N]

The server keeps sessions in a Redis of its own, none in host memory. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
from asking import Asking, Heard
from machine import median, say
from outcome import arguments, finish, head, print_head
from redis_server import RedisServer
from sides import HOPE, TOY, serve_hope
from wording import Wording, real_model, toy_model

from hope_server.capacity.constants import Constants

NUM_SLOTS = 8
REPLIES = (1, 2, 4, 8)
SHORT, LONG = 64, 512
NUM_WRITTEN, NUM_STUDIED = 96, 256
_WARM_TURNS = 12


def main() -> int:
    """Measure, print, and write the constants; the exit status is 0 whatever they are."""
    args = _arguments()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hope-bench-")))
        redis = stack.enter_context(RedisServer(folder / "redis", aof="everysec"))
        wording, bias, _ = toy_model() if args.quick else real_model()
        flags = ["--key-file", str(folder / "hope.key"), "--key-store", str(folder / "keys.db")]
        flags += ["--num-slots", str(NUM_SLOTS), "--host-cache-bytes", "0"]
        server = serve_hope(folder, args.threads, flags, serve=TOY if args.quick else HOPE, store=redis.url)
        stack.callback(server.stop)
        server.wait_ready()
        found = _Measuring(Asking(server.url, bias), redis, wording, args.rounds).all()
    result = head(args, constants=found)
    constants = Constants(
        machine=f"{result['cpu']}, {result['cores']} cores",
        model="toy" if args.quick else "default",
        commit=str(result["commit"]),
        num_threads=args.threads,
        num_slots=NUM_SLOTS,
        **found,
    )
    print_head(result, dict(result["versions"]))  # type: ignore[call-overload]
    print(constants.to_json())
    if args.constants:
        args.constants.write_text(constants.to_json(), encoding="utf-8")
        say(f"wrote {args.constants}")
    finish(result, args.json)
    return 0


class _Measuring:
    """Asks one server that nobody else asks."""

    def __init__(self, asked: Asking, redis: RedisServer, wording: Wording, num_rounds: int) -> None:
        self._asked = asked
        self._redis = redis
        self._wording = wording
        self._num_rounds = num_rounds
        self._seed = 0

    def all(self) -> dict[str, object]:
        """Every constant by name."""
        self._say("warm", 16, 8)
        say("a growing session: bytes …")
        sizes = self._sizes()
        say("reading …")
        short, long = (self._first(length) for length in (SHORT, LONG))
        read_token = max(0.0, (long - short) / (LONG - SHORT))
        decode = {}
        for count in REPLIES:
            say(f"writing {count} at once …")
            decode[count] = median([self._step(count) for _ in range(self._num_rounds)])
        say("restoring, committing …")
        restore, commit = self._restore_and_commit()
        say("studying …")
        studies = [self._study(read_token) for _ in range(self._num_rounds)]
        return {
            "decode_seconds": decode,
            "read_token_seconds": read_token,
            "turn_seconds": max(0.0, short - read_token * SHORT),
            "study_seconds": median([part for _, part in studies]),
            "study_token_seconds": median([token for token, _ in studies]),
            "commit_seconds": commit,
            "restore_seconds": restore,
            **sizes,
        }

    def _text(self, num_tokens: int) -> str:
        self._seed += 1
        return self._wording.text(num_tokens, seed=self._seed)

    def _say(self, session: str, num_tokens: int, num_new: int) -> Heard:
        """A turn that learns online and studies nothing."""
        memory = {"mode": "write", "passes": 0}
        return self._asked.chat(self._text(num_tokens), num_new, session_id=session, memory=memory)

    def _first(self, length: int) -> float:
        """Seconds to the first token of a new session's prompt, on the median."""
        return median([self._say(f"read-{length}-{n}", length, 2).first_seconds for n in range(self._num_rounds)])

    def _step(self, count: int) -> float:
        """Seconds between tokens of each of `count` replies that are written at once."""
        self._seed += 1
        names = [f"write-{count}-{self._seed}-{index}" for index in range(count)]
        texts = [self._text(8) for _ in names]
        memory = {"mode": "write", "passes": 0}
        with ThreadPoolExecutor(count) as pool:
            heard = list(
                pool.map(
                    lambda pair: self._asked.chat(pair[1], NUM_WRITTEN, session_id=pair[0], memory=memory),
                    zip(names, texts, strict=True),
                )
            )
        return median([each.token_seconds for each in heard])

    def _restore_and_commit(self) -> tuple[float, float]:
        """Seconds that a first token is later where the state was in the store, and from the last token to the end."""
        hot, cold, commit = [], [], []
        for _ in range(self._num_rounds):
            self._say("back", 16, 2)
            hot.append(self._say("back", 16, 2).first_seconds)
            for index in range(NUM_SLOTS):
                self._say(f"evicting-{index}", 16, 2)
            heard = self._say("back", 16, 2)
            if (heard.memory or {}).get("restored_from") != "store":
                raise RuntimeError(f"a state was restored from {heard.memory}, not from the store")
            cold.append(heard.first_seconds)
            commit.append(heard.end_seconds - heard.last_seconds)
        return max(0.0, median(cold) - median(hot)), median(commit)

    def _study(self, read_token_seconds: float) -> tuple[float, float]:
        """Seconds of study for each token of a text, and of one part of it."""
        self._seed += 1
        name = f"study-{self._seed}"
        self._asked.post("/v1/sessions", {"id": name})
        text = self._text(NUM_STUDIED)
        began = time.perf_counter()
        receipt = self._asked.post(f"/v1/sessions/{name}/learn", {"text": text})["memory"]
        seconds = max(1e-6, time.perf_counter() - began - read_token_seconds * receipt["tokens_read"])
        return seconds / receipt["tokens_learned"], seconds / max(1, receipt["steps"])

    def _sizes(self) -> dict[str, float]:
        """Bytes of a session: as a state, in the store with its versions, and what its turns move."""
        before, held = self._counted(), self._held()
        for _ in range(_WARM_TURNS):
            self._say("grows", 64, 8)
        after = self._counted()
        found = self._asked.get("/v1/sessions/grows")
        return {
            "state_bytes": float(sum(found["state_bytes"].values())),
            "stored_bytes": self._held() - held,
            "traffic_bytes": (after - before) / _WARM_TURNS,
        }

    def _held(self) -> float:
        """Bytes of data that the store holds."""
        return float(self._redis.backdoor.info("memory")["used_memory_dataset"])

    def _counted(self) -> float:
        """Bytes that went to and came from the store so far."""
        names = ("hope_committed_bytes_total", "hope_restored_bytes_total")
        lines = httpx.get(f"{self._asked.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def _arguments() -> argparse.Namespace:
    parser = arguments(str(__doc__))
    parser.add_argument("--constants", type=Path, metavar="FILE", help="write the constants for `hope plan` there")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 5)
    return args


if __name__ == "__main__":
    sys.exit(main())

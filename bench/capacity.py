"""Measures the constants of one server from which `hope plan` reckons how many are needed (docs/CAPACITY.md).

    PYTHONPATH=tests/support python bench/capacity.py [--threads N] [--constants FILE] [--quick] [--rounds N]

The server keeps sessions in a Redis of its own, none in host memory; a second one, which does, is asked for what
comes back from there. The last line of the output is one JSON object.
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
CHUNK = 64
SHORT, LONG = CHUNK, 8 * CHUNK
"""Of prompts: a multiple of chunks apart, so that both have the same tail."""
PARTS = 64, 192
"""Of prompts that are read in one piece, as those are that learn nothing."""
NUM_WRITTEN, NUM_STUDIED = 2 * CHUNK + 1, 256
"""So many tokens complete two chunks of the session's, wherever they begin."""
_WARM_TURNS = 12
MOVED = ("hope_committed_bytes_total", "hope_restored_bytes_total")


def main() -> int:
    """Measure, print, and write the constants; the exit status is 0 whatever they are."""
    args = _arguments()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hope-bench-")))
        redis = stack.enter_context(RedisServer(folder / "redis", aof="everysec"))
        wording, bias, _ = toy_model() if args.quick else real_model()
        flags = ["--key-file", str(folder / "hope.key"), "--key-store", str(folder / "keys.db")]
        flags += ["--num-slots", str(NUM_SLOTS)]

        def ask(where: str, *more: str) -> _Measuring:
            serve = TOY if args.quick else HOPE
            server = serve_hope(folder / where, args.threads, [*flags, *more], serve=serve, store=redis.url)
            stack.callback(server.stop)
            server.wait_ready()
            return _Measuring(Asking(server.url, bias), redis, wording, args.rounds)

        found = ask("store", "--host-cache-bytes", "0").all()
        say("restoring from host memory …")
        found["host_restore_seconds"] = ask("host").restore("host")[0]
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
        (few, short), (many, long) = (self._first(length, "write") for length in (SHORT, LONG))
        read_token = max(0.0, (long - short) / (many - few))
        (less, quick), (more, slow) = (self._first(length, "read") for length in PARTS)
        part_token = max(0.0, (slow - quick) / (more - less))
        whole, tail = divmod(few, CHUNK)
        decode = {}
        for count in REPLIES:
            say(f"writing {count} at once …")
            # Each of the replies completed a chunk in as many tokens as that has.
            with_chunks = median([self._step(count) for _ in range(self._num_rounds)])
            decode[count] = max(0.0, with_chunks - count * read_token)
        say("restoring, committing …")
        restore, commit = self.restore("store")
        say("studying …")
        studies = [self._study(read_token) for _ in range(self._num_rounds)]
        return {
            "decode_seconds": decode,
            "read_token_seconds": read_token,
            "part_token_seconds": part_token,
            "turn_seconds": max(0.0, short - read_token * CHUNK * whole - max(decode[1], part_token * tail)),
            "study_seconds": median([part for _, part in studies]),
            "study_token_seconds": median([token for token, _ in studies]),
            "commit_seconds": commit,
            "restore_seconds": restore,
            **sizes,
        }

    def _text(self, num_tokens: int) -> str:
        self._seed += 1
        return self._wording.text(num_tokens, seed=self._seed)

    def _say(self, session: str, num_tokens: int, num_new: int, mode: str = "write") -> Heard:
        """A turn that learns online, or only reads, and studies nothing."""
        memory = {"mode": mode, "passes": 0} if mode == "write" else {"mode": mode}
        return self._asked.chat(self._text(num_tokens), num_new, session_id=session, memory=memory)

    def _first(self, length: int, mode: str) -> tuple[int, float]:
        """Tokens of a new session's prompt, the chat template's with them, and seconds to its first token, medians."""
        heard = [self._say(f"{mode}-{length}-{number}", length, 2, mode) for number in range(self._num_rounds)]
        return round(median([each.prompt_tokens for each in heard])), median([each.first_seconds for each in heard])

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

    def restore(self, place: str) -> tuple[float, float]:
        """Seconds of the server's stage `restore` where the state was at `place`, and from the last token to the end.

        Raises RuntimeError where it was elsewhere.
        """
        restore, commit = [], []
        self._say("back", 16, 2)
        for _ in range(self._num_rounds):
            for index in range(NUM_SLOTS):
                self._say(f"evicting-{index}", 16, 2)
            before = self._counted('hope_stage_seconds_sum{stage="restore"}')
            heard = self._say("back", 16, 2)
            if (heard.memory or {}).get("restored_from") != place:
                raise RuntimeError(f"a state was restored from {heard.memory}, not from {place}")
            restore.append(self._counted('hope_stage_seconds_sum{stage="restore"}') - before)
            commit.append(heard.end_seconds - heard.last_seconds)
        return median(restore), median(commit)

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
        before, held = self._counted(*MOVED), self._held()
        for _ in range(_WARM_TURNS):
            self._say("grows", 64, 8)
        after = self._counted(*MOVED)
        found = self._asked.get("/v1/sessions/grows")
        return {
            "state_bytes": float(sum(found["state_bytes"].values())),
            "stored_bytes": self._held() - held,
            "traffic_bytes": (after - before) / _WARM_TURNS,
        }

    def _held(self) -> float:
        """Bytes of data that the store holds."""
        return float(self._redis.backdoor.info("memory")["used_memory_dataset"])

    def _counted(self, *names: str) -> float:
        """The sum of some of the server's counters."""
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

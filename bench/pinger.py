"""Another client of Redis, in a process of its own: pings until stdin ends, then prints its times in milliseconds.

python bench/pinger.py PORT
"""

from __future__ import annotations

import json
import select
import sys
import time

import redis

PAUSE_SECONDS = 0.002


def main() -> int:
    """Ping, and print one JSON list."""
    times: list[float] = []
    with redis.Redis(port=int(sys.argv[1])) as client:
        client.ping()
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
            began = time.perf_counter()
            client.ping()
            times.append((time.perf_counter() - began) * 1e3)
    print(json.dumps(times))
    return 0


if __name__ == "__main__":
    sys.exit(main())

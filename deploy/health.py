"""Ends with 0 where the server of this container answers a path with 200: `python health.py /health`, or `/ready`.

For images without curl. It needs nothing but Python's own http.client, which asks no proxy, and starts in a moment.
"""

from __future__ import annotations

import http.client
import os
import sys

_SECONDS = 4.0


def main() -> int:
    """Ask once; return the exit code."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("HOPE_PORT", "8000")), timeout=_SECONDS)
    try:
        connection.request("GET", sys.argv[1] if len(sys.argv) > 1 else "/health")
        return int(connection.getresponse().status != 200)
    except (OSError, http.client.HTTPException) as exc:
        print(f"health: {exc}", file=sys.stderr)
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())

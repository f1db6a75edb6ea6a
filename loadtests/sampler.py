"""What the server's process takes while it is under load: resident memory, open files, and its own gauges."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.http_client import BROKEN, Client

Point = tuple[float, float]
"""Seconds since the start, and a value."""

_METRIC = re.compile(r"(hope_\w+)(?:\{([^}]*)\})? (\S+)")
_METRICS_EVERY = 5
_WARM_UP = 0.2


@dataclass(slots=True)
class Samples:
    """Series of points by name. rss_bytes and num_fds are missing where the process is not on this machine."""

    rss_bytes: list[Point] = field(default_factory=list)
    num_fds: list[Point] = field(default_factory=list)
    metrics: dict[str, list[Point]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slope:
    """A straight line through a series. per_hour: units in an hour; percent_per_hour: of the line's first value."""

    per_hour: float
    percent_per_hour: float
    num_points: int


class Sampler:
    """Samples in a thread of its own while a `with` block runs."""

    def __init__(self, url: str, pid: int | None, metrics_key: str | None, every_seconds: float = 1.0) -> None:
        self.samples = Samples()
        self._pid = pid
        self._every_seconds = every_seconds
        self._client = Client(url, metrics_key, silence_seconds=10.0)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        began, number = time.monotonic(), 0
        while True:
            at = time.monotonic() - began
            if self._pid is not None:
                self._look_at_process(at, self._pid)
            if number % _METRICS_EVERY == 0:
                self._look_at_metrics(at)
            number += 1
            if self._ending.wait(max(0.0, number * self._every_seconds - (time.monotonic() - began))):
                return

    def _look_at_process(self, at: float, pid: int) -> None:
        try:
            lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
            rss = next(line for line in lines if line.startswith("VmRSS:"))
            num_fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except (OSError, StopIteration):
            # It ended, or is not on this machine.
            return
        self.samples.rss_bytes.append((at, float(rss.split()[1]) * 1024))
        self.samples.num_fds.append((at, float(num_fds)))

    def _look_at_metrics(self, at: float) -> None:
        try:
            with self._client.open("GET", "/metrics") as response:
                text = response.read().decode(errors="replace")
                if response.status != 200:
                    return
        except BROKEN:
            return
        for name, value in parse_metrics(text).items():
            self.samples.metrics.setdefault(name, []).append((at, value))


def parse_metrics(text: str) -> dict[str, float]:
    """Return gauges and counters by name and label; buckets of histograms and times of creation are left out."""
    found = {}
    for line in text.splitlines():
        match = _METRIC.fullmatch(line)
        if match is None or match[1].endswith(("_bucket", "_created")):
            continue
        found[f"{match[1]}{{{match[2]}}}" if match[2] else match[1]] = float(match[3])
    return found


def floor(points: Sequence[Point], every_seconds: float = 60.0) -> list[Point]:
    """Return the lowest point of each whole stretch of time.

    What a process works with comes and goes within seconds; what it keeps is what is left at the lowest.
    """
    found: dict[int, Point] = {}
    for at, value in points:
        stretch = int((at - points[0][0]) // every_seconds)
        if stretch not in found or value < found[stretch][1]:
            found[stretch] = (at, value)
    num_whole = int((points[-1][0] - points[0][0]) // every_seconds) if points else 0
    return [found[stretch] for stretch in sorted(found) if stretch < num_whole]


def slope(points: Sequence[Point], warm_up: float = _WARM_UP) -> Slope | None:
    """Fit a line by least squares; the first part `warm_up` of the time is left out. None for fewer than 3 points."""
    if not points:
        return None
    first, last = points[0][0], points[-1][0]
    kept = [(at, value) for at, value in points if at >= first + warm_up * (last - first)]
    if len(kept) < 3:
        return None
    mean_at = sum(at for at, _ in kept) / len(kept)
    mean_value = sum(value for _, value in kept) / len(kept)
    spread = sum((at - mean_at) ** 2 for at, _ in kept)
    if spread == 0:
        return None
    per_second = sum((at - mean_at) * (value - mean_value) for at, value in kept) / spread
    start = mean_value + per_second * (kept[0][0] - mean_at)
    per_hour = per_second * 3600
    return Slope(per_hour, 100 * per_hour / start if start else 0.0, len(kept))

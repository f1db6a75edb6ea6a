"""Times of device work: events around graphs, the cache emptied before each run; on a CPU plain calls (a dry run)."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from machine import median

Run = Callable[[], object]
CACHE_BYTES = 256 * 2**20
"""What is written between two runs: several times any GPU's second-level cache."""
WARM_UPS = 2


def capture(run: Run, device: torch.device) -> tuple[Run, str]:
    """The run as a CUDA graph, after runs that compile and allocate, and "graph"; "eager" where it cannot be one."""
    if device.type != "cuda":
        run()
        return run, "eager"
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as exc:
        torch.cuda.synchronize()
        print(f"cannot be captured, is timed in plain calls: {str(exc).splitlines()[0]}", flush=True)
        return run, "eager"
    torch.cuda.synchronize()
    return graph.replay, "graph"


class Clock:
    """Seconds of runs on one device."""

    def __init__(self, device: torch.device, *, is_toy: bool) -> None:
        self.device, self.is_toy = device, is_toy
        self.rounds, self.repeats = (2, 1) if is_toy else (7, 3)
        size = 2**20 if device.type == "cpu" else CACHE_BYTES
        self._cache = torch.zeros(size // 4, dtype=torch.int32, device=device)
        self._fill = 0

    def empty_cache(self) -> None:
        """Leave nothing of an earlier run in the second-level cache."""
        self._fill += 1
        self._cache.fill_(self._fill)

    def seconds(self, run: Run, prepare: Run | None = None) -> float:
        """One run from an empty cache; prepare: what is done before, outside the time."""
        if prepare is not None:
            prepare()
        self.empty_cache()
        return self.spans([run])[0]

    def spans(self, runs: list[Run]) -> list[float]:
        """Seconds of runs that follow each other without a wait of the host's between."""
        if self.device.type != "cuda":
            found = []
            for run in runs:
                start = time.perf_counter()
                run()
                found.append(time.perf_counter() - start)
            return found
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(runs) + 1)]
        marks[0].record()
        for run, mark in zip(runs, marks[1:], strict=True):
            run()
            mark.record()
        marks[-1].synchronize()
        return [float(a.elapsed_time(b)) / 1e3 for a, b in pairwise(marks)]

    def in_turns(self, sides: dict[str, Run], prepare: Run | None = None) -> dict[str, list[float]]:
        """Seconds of every side in every round, the first to go changing: medians of a few runs each."""
        for run in sides.values():
            self.seconds(run, prepare)
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(self.rounds):
            for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
                runs = [self.seconds(sides[name], prepare) for _ in range(self.repeats)]
                taken[name].append(median(runs))
        return taken

    def copy_rate(self) -> float:
        """Bytes read and written a second by a plain copy of a large buffer."""
        size = 2**22 if self.device.type == "cpu" else 2**29
        source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        return 2 * size / median([self.seconds(lambda: target.copy_(source)) for _ in range(3 * self.rounds)][1:])

    def copy_of(self, num_bytes: float) -> Run:
        """A plain copy that moves this many bytes, half of them read and half written."""
        source = torch.randint(0, 255, (max(int(num_bytes) // 2, 1),), dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        return lambda: target.copy_(source)


def ratio_row(
    title: str, over: str, ours: list[float], theirs: list[float], work: float, unit: str, share: float = 1.0
) -> dict[str, Any]:
    """One figure: how many times as fast ours is. work: what a run does, in units; share: of it that theirs did."""
    ratios = [b / (a * share) for a, b in zip(ours, theirs, strict=True)]
    return {
        "kind": "ratio",
        "title": title,
        "over": over,
        "ours": work / median(ours),
        "theirs": work * share / median(theirs),
        "unit": unit,
        "ours_us": 1e6 * median(ours),
        "ratio": median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }

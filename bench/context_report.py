"""From what was measured at each length to the figures of the context bench, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from context_peers import NAMES
from growth import crossover, middle_ratio
from machine import MIB, median
from outcome import print_head, target_lines
from target import Target

TARGETS = (
    Target("ratio_token", "time per token at the far end / at the first length", 1.05, at_least=False),
    Target("ratio_first", "time to first token at the far end / at the first length", 1.05, at_least=False),
    Target("ratio_state", "snapshot bytes at the far end / at the first length", 1.01, at_least=False),
    Target("ratio_rss", "resident bytes of the server at the far end / at the first length", 1.01, at_least=False),
)


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The figures of lengths that were measured, shortest first.

    Times are ratios of a round, the far end over the fork kept from the first length; `ratio_rss` is left out where
    the two were different processes. `crossover_NAME` is the length from which our turn takes less than the peer's,
    None for no length measured; `ratio_NAME` is ours over the peer's turn at the peer's longest history.
    Raises ValueError where there are no rows.
    """
    if not rows:
        raise ValueError("nothing was measured")
    near, far = rows[0], rows[-1]
    figures: dict[str, float | None] = {"far_tokens": float(far["num_tokens"])}
    for name in ("first", "token", "turn"):
        figures[f"ratio_{name}"] = middle_ratio(far["turns"]["far"][name], far["turns"]["near"][name])
    figures["ratio_state"] = far["state_bytes"] / near["state_bytes"]
    if near["process"] == far["process"]:
        figures["ratio_rss"] = far["rss_bytes"] / near["rss_bytes"]
    for peer in NAMES:
        shared = [row for row in rows if peer in row["turns"]]
        if shared:
            sides = [[median(row["turns"][side]["turn"]) for row in shared] for side in ("far", peer)]
            figures[f"crossover_{peer}"] = crossover([row["length"] for row in shared], sides[0], sides[1])
            last = shared[-1]["turns"]
            figures[f"ratio_{peer}"] = middle_ratio(last["far"]["turn"], last[peer]["turn"])
            figures[f"longest_{peer}"] = float(shared[-1]["length"])
    return figures


def print_report(
    result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], figures: Mapping[str, float | None]
) -> None:
    """Print what was measured on what, the rows, the crossovers and the targets."""
    print_head(result, {**result["versions"], **result["peers"]})
    passes = result["passes"]
    effort = "the online level alone, nothing rehearsed" if passes == 0 else f"consolidation, {passes} passes a block"
    print(f"absorbed in chat turns over HTTP, learning on: {effort}; {result['dtype']}")
    print("a turn: 32 tokens asked, 64 answered, learned and committed; medians, ours on a fork, its state in a slot")
    print("vllm_cached has just read the same history and kept it; peers' prompts hold the whole history")
    print(f"\n{'milliseconds':<14}{'near':>30}{'far':>30}")
    print(f"{'tokens read':<14}" + f"{'first':>10}{'token':>10}{'turn':>10}" * 2)
    for row in rows:
        print(f"{row['num_tokens']:<14}" + "".join(_cells(row["turns"][name]) for name in ("near", "far")))
    peers = [name for name in NAMES if any(name in row["turns"] for row in rows)]
    if peers:
        print(f"\n{'milliseconds':<14}" + "".join(f"{name:>30}" for name in peers))
        print(f"{'history':<14}" + f"{'first':>10}{'token':>10}{'turn':>10}" * len(peers))
        for row in rows:
            if peers[0] in row["turns"]:
                print(f"{row['length']:<14}" + "".join(_cells(row["turns"][name]) for name in peers))
    print(f"\n{'MiB':<14}{'resident':>10}{'snapshot':>10}   parts")
    for row in rows:
        parts = ", ".join(f"{name} {size / MIB:.3f}" for name, size in row["parts"].items())
        print(f"{row['num_tokens']:<14}{row['rss_bytes'] / MIB:>10.0f}{row['state_bytes'] / MIB:>10.3f}   {parts}")
    print()
    for peer in peers:
        print(_crossing(peer, rows[0]["length"], figures))
    known = {name: value for name, value in figures.items() if value is not None}
    print("\n".join(target_lines(TARGETS, known)))


def _crossing(peer: str, first: int, figures: Mapping[str, float | None]) -> str:
    place, longest = figures[f"crossover_{peer}"], figures[f"longest_{peer}"]
    if place is None:
        where = f"takes more time a turn than {peer} at every length up to {longest:.0f}, or at the longest"
    elif place <= first:
        where = f"takes less time a turn than {peer} at every length measured"
    else:
        where = f"takes less time a turn than {peer} from {place:.0f} tokens of history on"
    return f"ours {where}; at {longest:.0f} ours / {peer} is {figures[f'ratio_{peer}']:.2f}"


def _cells(turns: Mapping[str, Sequence[float]]) -> str:
    return "".join(f"{median(turns[name]) * 1e3:>10.1f}" for name in ("first", "token", "turn"))

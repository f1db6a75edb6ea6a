"""Figures of a run with several servers: a load's own, what went wrong when, sessions that moved, what was expected."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from loadtests.faults import KINDS, Noted
from loadtests.forecast import TOLERANCE
from loadtests.moves import Moves
from loadtests.report import Run, figures, markdown

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Scale:
    """What a run with several servers has beside a load's own figures.

    router_errors: 5xx of the router's own making. held_bytes: of all primaries; moved_bytes: in and out of the
    cluster's nodes while `moves` was found out. forecast: what the capacity simulation says, where it was asked.
    """

    router: str
    num_servers: int
    noted: list[Noted]
    router_errors: int
    held_bytes: int
    moved_bytes: int
    moves: Moves
    forecast: dict[str, Any] | None


def report(run: Run, scale: Scale) -> tuple[dict[str, Any], str]:
    """Return all figures as JSON and as Markdown."""
    found = figures(run)
    num_sessions = max(1, found["checks"]["sessions"])
    # As many turns of sessions that stayed.
    num_turns = max(1, 2 * scale.moves.num_turns)
    found["scale"] = {
        "router": scale.router,
        "servers": scale.num_servers,
        "faults": [asdict(noted) for noted in scale.noted],
        "router_errors": scale.router_errors,
        "store_bytes_per_session": scale.held_bytes / num_sessions,
        "store_traffic_bytes_per_turn": scale.moved_bytes / num_turns,
        "moves": asdict(scale.moves),
        "forecast": scale.forecast,
    }
    moves = scale.moves
    lines = [
        f"## {scale.num_servers} servers behind {scale.router}, six nodes of a Redis Cluster",
        "",
        "| second | what | which | back after, s |",
        "|---:|---|---|---:|",
        *(f"| {noted.at:.0f} | {KINDS[noted.kind]} | {noted.what} | {noted.away:.1f} |" for noted in scale.noted),
        "",
        f"The router itself answered with a 5xx {scale.router_errors} times. The store held "
        f"{found['scale']['store_bytes_per_session'] / _MIB:.2f} MiB a session on primaries; "
        f"{found['scale']['store_traffic_bytes_per_turn'] / _MIB:.2f} MiB a turn of the sessions below went in and "
        "out of its nodes, copies included.",
        "",
        f"Sessions that changed the server with every turn, beside the same conversations on one server: "
        f"{moves.num_turns} turns, {moves.num_moves} of them moved, {moves.num_tokens} tokens written, "
        f"{moves.tokens_learned} learned; {len(moves.differences)} differences in texts, log-probabilities, losses "
        "and update norms, compared bit by bit.",
        "",
    ]
    if scale.forecast is not None:
        lines += _forecast_lines(scale.forecast)
    return found, markdown(found) + "\n" + "\n".join(lines)


def _forecast_lines(found: dict[str, Any]) -> list[str]:
    cores = found["cores"]
    return [
        f"The capacity simulation (constants of {found['constants']['machine']}, commit "
        f"{found['constants']['commit']}), beside what was measured; aim: within {TOLERANCE:.0%}. "
        f"Of {cores['all']} cores {cores['others']:.2f} were busy with what is no engine: clients, router, Redis, the "
        "servers' own I/O.",
        "",
        "| mean | simulated | measured | ratio |",
        "|---|---:|---:|---:|",
        *(
            f"| {name.replace('_', ' ')} | {found['simulated'][name]:.3f} | {found['measured'][name]:.3f} "
            f"| {found['ratio'][name]:.2f} |"
            for name in found["measured"]
        ),
        "",
    ]

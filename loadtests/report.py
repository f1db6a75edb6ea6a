"""From the ledger, the samples and the findings to the figures of a run, and those as Markdown."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loadtests.checks import PROMISES, Findings
from loadtests.ledger import Account, Answer
from loadtests.plan import Plan
from loadtests.sampler import Samples, Slope, floor, slope

SHARES = (50, 95, 99)
_MIB = 2**20
_MAX_FAULTS = 8
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left. began, ended: Unix seconds of the load itself, without start and checks."""

    name: str
    plan: Plan
    model: str
    num_slots: int
    account: Account
    samples: Samples
    findings: Findings
    began: float
    ended: float
    was_stopped: bool
    num_settled: int
    locust_status: int


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return `count`, `p50`, `p95`, `p99` and `max`, by nearest rank; only `count` of nothing."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    ranks = {f"p{share}": ordered[max(0, -(-share * len(ordered) // 100) - 1)] for share in SHARES}
    return {"count": len(ordered), **ranks, "max": ordered[-1]}


def figures(run: Run) -> dict[str, Any]:
    """Every figure of the report, as plain JSON; API keys are left out."""
    # From the first request on, as Locust takes a while to start. What was settled after the load is no part of it.
    first = min((record.began for record in run.account.turns.values()), default=run.began)
    seconds = max(1e-9, run.ended - first)
    answers = [answer for record in run.account.turns.values() for answer in record.answers if answer.at <= run.ended]
    fresh = [answer for answer in answers if not answer.is_replay]
    # Neither secrets nor a folder that is gone.
    plan = asdict(replace(run.plan, keys=(), folder=""))
    return {
        "name": run.name,
        "machine": _machine(),
        "model": run.model,
        "plan": plan | {"tenants": max(1, len(run.plan.keys)), "slots": run.num_slots},
        "was_stopped": run.was_stopped,
        "locust_status": run.locust_status,
        "seconds": seconds,
        "times_ms": _times(run.account, run.ended),
        "throughput": {
            "turns_per_second": len(fresh) / seconds,
            "completion_tokens_per_second": sum(answer.num_tokens for answer in fresh) / seconds,
            "tokens_learned_per_second": sum(answer.tokens_learned for answer in fresh) / seconds,
        },
        "turns": _turns(run.account, answers),
        "refusals": dict(run.account.refusals.most_common()),
        "done": dict(sorted(run.account.counts.items())),
        "process": _process(run.samples),
        "checks": {
            "sessions": run.findings.num_sessions,
            "acknowledged": run.findings.num_acknowledged,
            "unknown": run.findings.num_unknown,
            "settled_after_the_load": run.num_settled,
            "faults": {promise: list(faults) for promise, faults in run.findings.faults.items()},
        },
        "passed": has_passed(run),
    }


def has_passed(run: Run) -> bool:
    """Whether every promise was kept, and anything was acknowledged at all."""
    return run.findings.is_clean and run.findings.num_acknowledged > 0


def _times(account: Account, ended: float) -> dict[str, dict[str, float]]:
    series: dict[str, list[float]] = {}
    for record in account.turns.values():
        for answer in record.answers[:1]:
            if answer.at > ended:
                continue
            kind = "replay" if answer.is_replay else "whole answer"
            series.setdefault(f"{record.kind} {kind}", []).append(answer.total_ms)
            # With all that came before: refusals, connections that broke, waiting.
            series.setdefault(f"{record.kind} until acknowledged", []).append((answer.at - record.began) * 1e3)
            for name, value in (("time to first token", answer.ttft_ms), ("time per output token", answer.tpot_ms)):
                if value is not None:
                    series.setdefault(f"{record.kind} {name}", []).append(value)
    return {name: percentiles(values) for name, values in sorted(series.items())}


def _turns(account: Account, answers: Sequence[Answer]) -> dict[str, Any]:
    records = list(account.turns.values())
    return {
        "begun": len(records),
        "answers": len(answers),
        "replayed": sum(answer.is_replay for answer in answers),
        "refused": sum(record.refused is not None for record in records),
        "not_learned": dict(Counter(answer.not_learned for answer in answers if answer.not_learned is not None)),
        "state_from": dict(Counter(answer.restored_from for answer in answers if not answer.is_replay)),
        "by_scenario": dict(Counter(record.scenario for record in records).most_common()),
        "sessions": len({record.name for record in records}),
    }


def _process(samples: Samples) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if samples.rss_bytes:
        rss = [value for _, value in samples.rss_bytes]
        found["rss_mb"] = {"first": rss[0] / _MIB, "last": rss[-1] / _MIB, "most": max(rss) / _MIB}
        for name, line in (
            ("rss_slope", slope(samples.rss_bytes)),
            ("rss_floor_slope", slope(floor(samples.rss_bytes))),
        ):
            if line is not None:
                found[name] = _slope_figures(line)
        fds = [value for _, value in samples.num_fds]
        found["open_files"] = {"first": fds[0], "last": fds[-1], "most": max(fds)}
    found["metrics_last"] = {name: points[-1][1] for name, points in sorted(samples.metrics.items())}
    return found


def _slope_figures(line: Slope) -> dict[str, Any]:
    return {
        "mb_per_hour": line.per_hour / _MIB,
        "percent_per_hour": line.percent_per_hour,
        "points": line.num_points,
        "left_out": "the first fifth of the time",
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The report as one page of Markdown."""
    plan, checks, turns = found["plan"], found["checks"], found["turns"]
    lines = [
        f"# Load test {found['name']}: {'passed' if found['passed'] else 'FAILED'}",
        "",
        f"{plan['users']} users, shape {plan['shape']}, {found['seconds']:.0f} s of {plan['seconds']:g} s"
        f"{' (stopped early)' if found['was_stopped'] else ''}, model {found['model']}, {plan['slots']} slots, "
        f"{plan['tenants']} tenants, seed {plan['seed']}, {plan['processes']} Locust processes.",
        f"Machine: {found['machine']['cpu']}, {found['machine']['cores']} cores, commit {found['machine']['commit']}; "
        "server and clients shared it unless --url named another.",
        "",
        "| milliseconds | count | p50 | p95 | p99 | most |",
        "|---|---:|---:|---:|---:|---:|",
        *(_row(name, times) for name, times in found["times_ms"].items()),
        "",
        "| throughput | a second |",
        "|---|---:|",
        *(
            f"| {name.removesuffix('_per_second').replace('_', ' ')} | {value:.2f} |"
            for name, value in found["throughput"].items()
        ),
        "",
        "| refused or broken | times |",
        "|---|---:|",
        *([f"| {what} | {count} |" for what, count in found["refusals"].items()] or ["| nothing | 0 |"]),
        "",
        f"Turns begun {turns['begun']} in {turns['sessions']} sessions, answers {turns['answers']}, "
        f"replayed {turns['replayed']}; state from: {_pairs(turns['state_from'])}; "
        f"not learned: {_pairs(turns['not_learned'])}.",
        "",
        f"By scenario: {_pairs(turns['by_scenario'])}. Done: {_pairs(found['done'])}.",
        "",
        *_process_lines(found["process"]),
        "",
        f"Checked at the end: {checks['sessions']} sessions, {checks['acknowledged']} acknowledged turns; "
        f"{checks['settled_after_the_load']} turns were sent again after the load, {checks['unknown']} stay unknown.",
        "",
        "| faults | |",
        "|---:|---|",
        *(f"| {len(checks['faults'][promise])} | {text} |" for promise, text in PROMISES.items()),
        "",
    ]
    for promise, faults in checks["faults"].items():
        lines += [f"- {promise}: {fault}" for fault in faults[:_MAX_FAULTS]]
    return "\n".join(lines) + "\n"


def _row(name: str, times: Mapping[str, float]) -> str:
    cells = [f"{times[key]:,.1f}" if key in times else "-" for key in (*(f"p{share}" for share in SHARES), "max")]
    return f"| {name} | {times['count']:,.0f} | {' | '.join(cells)} |"


def _pairs(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _process_lines(process: Mapping[str, Any]) -> list[str]:
    if "rss_mb" not in process:
        return ["The server's process was not sampled: it is not known here (`--pid`)."]
    rss, files = process["rss_mb"], process["open_files"]
    text = f"Resident memory: {rss['first']:.0f} MiB at first, {rss['last']:.0f} at last, {rss['most']:.0f} at most"
    for name, of in (("rss_slope", "all points"), ("rss_floor_slope", "the lowest of each minute")):
        line = process.get(name)
        if line is not None:
            text += (
                f"; slope of {of} {line['mb_per_hour']:+.1f} MiB/h, {line['percent_per_hour']:+.2f} %/h "
                f"(least squares over {line['points']}, {line['left_out']} left out)"
            )
    return [f"{text}. Open files: {files['first']:.0f}, {files['last']:.0f}, {files['most']:.0f}."]


def _machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform(), "commit": commit}

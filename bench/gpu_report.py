"""What `gpu.py` prints: cases and kernels, times as tables, targets. In a dry run every line says that it is one."""

from __future__ import annotations

from typing import Any

from gpu_run import Found

DRY = "dry run, not a measurement"
RATIO_HEADER = f"{'':<58} {'over':<22} {'ours':>9} {'theirs':>9} {'unit':<12} {'us':>9} {'ratio':>6}  range"
DECODE_HEADER = (
    f"{'':<30} {'rows':>5} {'mean us':>9} {'p99 us':>9} {'tokens/s':>11} {'floor tokens/s':>14} {'of floor':>8}"
)
NOTES = {
    "decode 135M": (
        "a step: the dense products in bfloat16, read_step in every layer, flush where a chunk of 64 ends (cursors are "
        "staggered); no attention, no sampling. The floor is of bytes alone, at the copy's rate measured here."
    ),
    "chunk": (
        "operations of a head's chunk: keys, values, rates 2CK(2K+2), reads 2CKK, residuals 2CKM, keys by keys 2CCK, "
        "triangle CCC/3 + CCM, update 2CKM; the write alone has the last four. C = 64; M = 3K + 2, in the write 3K. "
        "fla is given keys and values of 3K columns, and reads every token out."
    ),
    "bandwidth": "bytes of main memories, inputs, outputs and what the ring keeps; one graph of all layers.",
}


class Printer:
    """Lines for people."""

    def __init__(self, *, is_dry: bool) -> None:
        self._is_dry = is_dry

    def plain(self, text: str) -> None:
        """A line without figures of time."""
        print(text, flush=True)

    def figures(self, text: str) -> None:
        """A line with figures."""
        print(f"{text}  [{DRY}]" if self._is_dry else text, flush=True)

    def header(self, section: str) -> None:
        """What a section's columns are."""
        if section in NOTES:
            self.plain(NOTES[section])
        if section == "decode 1.3B":
            self.plain(NOTES["decode 135M"])
        self.plain(DECODE_HEADER if section.startswith("decode") else RATIO_HEADER)

    def record(self, record: dict[str, Any]) -> None:
        """One row, as it comes."""
        kind = record["kind"]
        if kind in ("failed", "barred"):
            self.plain(f"{record['title']}: {record['reason']}")
        elif kind == "decode":
            name = f"{record['model']}{', norms and SwiGLU' if record['has_norms'] else ''} ({record['mode']})"
            self.figures(
                f"{name:<30} {record['rows']:>5} {record['mean_us']:>9,.1f} {record['p99_us']:>9,.1f}"
                f" {record['tokens_per_second']:>11,.0f} {record['floor_tokens_per_second']:>14,.0f}"
                f" {record['share_of_floor']:>8.1%}"
            )
        else:
            title = record["title"] + ("" if record["mode"] == "graph" else " (eager)")
            self.figures(
                f"{title:<58} {record['over']:<22} {record['ours']:>9,.1f} {record['theirs']:>9,.1f} "
                f"{record['unit']:<12} {record['ours_us']:>9,.1f} {record['ratio']:>6.2f}  "
                f"{record['least']:.2f} to {record['most']:.2f}"
            )

    def section(self, found: Found) -> None:
        """How a section ended, and what its kernels take."""
        if found.error is not None:
            self.plain(f"{found.name}: FAILED: {found.error}")
        if found.is_late:
            self.plain(f"{found.name}: the rest of it is skipped, the time is over")
        self._kernels({label: facts for label, facts in found.kernels.items() if facts["spills"]})
        self.figures(f"{found.name}: {found.seconds:.0f} s")

    def gate(self, gate: list[Found], unchecked: list[str], seconds: float) -> None:
        """Every kernel, every case that failed, and the worst of the others."""
        kernels = {label: facts for found in gate for label, facts in found.kernels.items()}
        self._kernels(kernels)
        shares: dict[str, tuple[float, str]] = {}
        for found in gate:
            for check in found.checks:
                if check["ok"] and check["limit"]:
                    share, family = float(check["error"]) / check["limit"], " ".join(found.name.split()[:2])
                    text = f"{check['error']:.1e} of {check['limit']:.1e} ({found.name}: {check['what']})"
                    shares[family] = max(shares.get(family, (-1.0, "")), (share, text))
        self.plain("\nnearest to their limits, error of limit:")
        for family, (_, text) in sorted(shares.items(), key=lambda item: -item[1][0])[:12]:
            self.figures(f"  {family:<28} {text}")
        for found in gate:
            for fault in found.faults():
                self.plain(f"FAILED {found.name}: {fault}")
        if unchecked:
            self.plain(f"not checked, the time was over: {', '.join(unchecked)}")
        failed = sum(bool(found.faults()) for found in gate)
        checks = sum(len(found.checks) for found in gate)
        self.figures(f"correctness: {len(gate)} cases, {checks} checks, {failed} cases failed, {seconds:.0f} s")

    def targets(self, targets: list[dict[str, Any]]) -> None:
        """Each with what came of it."""
        self.plain("\ntargets")
        for target in targets:
            found = "" if target["found"] is None else f"  (found {target['found']:,.2f})"
            self.figures(f"  {target['target']:<66} {target['result']}{found}")

    def _kernels(self, kernels: dict[str, dict[str, int | None]]) -> None:
        if not kernels:
            return
        self.plain(f"{'kernel, worst binary of each':<72} {'registers':>9} {'spills':>6} {'shared':>8}")
        for label, facts in sorted(kernels.items()):
            numbers = ["-" if facts[name] is None else str(facts[name]) for name in ("registers", "spills", "shared")]
            self.plain(f"{label:<72} {numbers[0]:>9} {numbers[1]:>6} {numbers[2]:>8}")


def summary(gate: list[Found], unchecked: list[str]) -> dict[str, Any]:
    """The gate in a few lines."""
    kernels = {label: facts for found in gate for label, facts in found.kernels.items()}
    return {
        "cases": len(gate),
        "checks": sum(len(found.checks) for found in gate),
        "failed": {found.name: found.faults() for found in gate if found.faults()},
        "not_checked": unchecked,
        "kernels": len(kernels),
        "kernels_that_spill": [label for label, facts in kernels.items() if facts["spills"]],
        "most_registers": max((facts["registers"] or 0 for facts in kernels.values()), default=0),
    }


def has_failed(found: Found) -> bool:
    """Whether a section broke off, or a row of it failed, or a kernel spills."""
    return bool(found.faults()) or any(record["kind"] == "failed" for record in found.records)


def targets(records: list[dict[str, Any]], is_dry: bool) -> list[dict[str, Any]]:
    """Each target with what was found, the worst of all rows that it speaks of; None where nothing was measured."""

    def rates(model: str, rows: int) -> list[float]:
        return [
            record["tokens_per_second"]
            for record in records
            if record["kind"] == "decode"
            and (record["model"], record["rows"]) == (model, rows)
            and not record["has_norms"]
        ]

    def ratios(operator: str, over: str, smallest: int, size: str) -> list[float]:
        return [
            record["ratio"]
            for record in records
            if (record.get("operator"), record.get("over")) == (operator, over) and record.get(size, 0) >= smallest
        ]

    over_fla = ratios("advance", "fla", 64, "heads") + ratios("write, residuals given", "fla", 64, "heads")
    wanted = [
        (
            "state bandwidth of read_step, share of the copy, 64 rows or more",
            0.75,
            ratios("read_step", COPY, 64, "rows"),
        ),
        ("decode 135M, tokens/s at one row", 2000.0, rates("135M", 1)),
        ("decode 135M, tokens/s at 64 rows", 100_000.0, rates("135M", 64)),
        ("chunk kernels, advance and write, over fla at B*H 64 or more", 1.5, over_fla),
        ("decode 1.3B, tokens/s at one row", 650.0, rates("1.3B", 1)),
        ("decode 1.3B, tokens/s at 64 rows", 31_000.0, rates("1.3B", 64)),
        ("pack_state, share of the copy", 0.8, ratios("pack_state", COPY, 0, "rows")),
        ("unpack_state, share of the copy", 0.8, ratios("unpack_state", COPY, 0, "rows")),
    ]
    found = []
    for title, least, values in wanted:
        worst = min(values) if values and not is_dry else None
        result = "not measured" if worst is None else "reached" if worst >= least else "MISSED"
        found.append({"target": f"{title}: >= {least:,g}", "result": result, "found": worst})
    return found


COPY = "copy, same bytes"

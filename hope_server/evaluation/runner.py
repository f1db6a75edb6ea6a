"""Runs the cells of an evaluation, keeps each finished one, and goes on where an interrupted run stopped."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch

from hope_server.errors import StartupError
from hope_server.evaluation.outcome import Cell, Options, Outcome, Suite
from hope_server.evaluation.provenance import commit, hardware
from hope_server.evaluation.registry import make_suite
from hope_server.evaluation.report import Report, check_plots, write_report
from hope_server.evaluation.weights import ship_weights, weights_path

__all__ = ["evaluate", "run_suite"]

Say = Callable[[str], None]


def evaluate(options: Options, say: Say) -> tuple[Report, list[Path]]:
    """Run the task that `options` names and write its report; returns it and the files.

    say: gets one line for each finished cell. Raises ValueError for options that cannot be met and StartupError for
    what the machine lacks.
    """
    return run_suite(make_suite(options), options, say)


def run_suite(suite: Suite, options: Options, say: Say) -> tuple[Report, list[Path]]:
    """Run a suite's cells, those of the work folder excepted, and write its report. Raises as `evaluate`."""
    if options.plots:
        check_plots()
    started = time.monotonic()
    outcomes: list[Outcome] = []
    planned: list[Cell] = []
    while cells := suite.plan(options, outcomes):
        planned += cells
        outcomes += _run_cells(suite, cells, options, say)
    if options.keeps_weights:
        _keep(suite, planned, options, say)
    report = Report(suite, options, outcomes, commit(), hardware(options.device), time.monotonic() - started)
    return report, write_report(report)


def _run_cells(suite: Suite, cells: Sequence[Cell], options: Options, say: Say) -> list[Outcome]:
    """Run cells and return their outcomes in the same order."""
    found: dict[int, Outcome] = {}
    todo: list[int] = []
    for index, cell in enumerate(cells):
        kept = None if options.is_fresh else _read(_path(suite, cell, options))
        if kept is None:
            todo.append(index)
        else:
            found[index] = kept
    if found:
        say(f"{len(found)} of {len(cells)} cells are finished already; --fresh runs them again")
    for index, outcome in _outcomes(suite, cells, todo, options):
        _write(_path(suite, cells[index], options), outcome)
        found[index] = outcome
        values = ", ".join(f"{name} {value:.4g}" for name, value in outcome.values.items())
        seconds = outcome.facts["cell seconds"]
        say(f"{len(found)}/{len(cells)} {cells[index].label}: {values} ({seconds:.0f} s)")
    return [found[index] for index in range(len(cells))]


def _outcomes(
    suite: Suite, cells: Sequence[Cell], todo: Sequence[int], options: Options
) -> Iterator[tuple[int, Outcome]]:
    """Run the cells numbered `todo`, `jobs` at a time; yield each as it is done."""
    if options.jobs == 1:
        for index in todo:
            yield index, _run(suite, cells[index], options)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, _one_thread) as pool:
        futures: dict[Future[Outcome], int] = {pool.submit(_work, cells[index], options): index for index in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _work(cell: Cell, options: Options) -> Outcome:
    return _run(make_suite(options), cell, options)


def _run(suite: Suite, cell: Cell, options: Options) -> Outcome:
    started = time.monotonic()
    outcome = suite.run(cell, options)
    seconds = round(time.monotonic() - started, 2)
    facts = {**outcome.facts, "cell seconds": seconds, "commit": commit(), "settings": cell.settings}
    return replace(outcome, facts=facts)


def _path(suite: Suite, cell: Cell, options: Options) -> Path:
    return options.work / suite.name / cell.file_name()


def _read(path: Path) -> Outcome | None:
    """Return a finished cell; None where there is none, or only a damaged file."""
    try:
        return Outcome.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, outcome: Outcome) -> None:
    scratch = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(outcome.to_json(), encoding="utf-8")
        os.replace(scratch, path)
    except OSError as exc:
        raise StartupError(
            f"the work folder {path.parent} cannot be written ({exc.strerror}); choose another --work"
        ) from exc


def _keep(suite: Suite, cells: Sequence[Cell], options: Options, say: Say) -> None:
    """Copy the trained weights of the first seed to where quick runs look for them."""
    for cell in cells:
        if cell.seed != options.seeds[0]:
            continue
        source = _path(suite, cell, options).with_suffix(".safetensors")
        if not ship_weights(source, weights_path(options.weights, suite.name, cell.part, cell.column)):
            say(f"{cell.label}: no weights to keep: it diverged, or they are larger than 1 MB")

"""Running suites: what is planned, what is kept, what is gone on with, and what a quick run does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from stub_evaluation import TableNetwork, stub_options, stub_suite

from hope_server.errors import CheckpointError
from hope_server.evaluation.outcome import Cell, Outcome
from hope_server.evaluation.runner import run_suite
from hope_server.evaluation.trials import QUICK_SEED
from hope_server.evaluation.weights import (
    FULL_BYTES,
    MAX_BYTES,
    fill,
    keep_weights,
    load_weights,
    ship_weights,
    weights_path,
)


def _run(folder, built=None, said=None, suite=None, **changes):
    lines = said if said is not None else []
    return run_suite(suite or stub_suite(built), stub_options(folder, **changes), lines.append)


def test_every_part_column_and_seed_is_run_once(tmp_path):
    """Two parts, two default columns and two seeds are eight cells, each reported as it is done."""
    built, said = [], []
    report, paths = _run(tmp_path, built, said)
    assert sorted(built) == sorted([(column, seed) for column in ("left", "right") for seed in (0, 1)] * 2)
    assert len(said) == 8
    assert said[0].startswith("1/8 easy · left · seed 0: 8 tokens 100, whole rows 100 (")
    assert [path.name for path in paths] == ["stub.md", "stub.json"]
    assert all(outcome.values == {"8 tokens": 100.0, "whole rows": 100.0} for outcome in report.outcomes)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    """Cells that were finished before the interruption are not run again."""
    built: list = []

    def interrupt(line: str) -> None:
        if line.startswith("3/8"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(stub_suite(built), stub_options(tmp_path), interrupt)
    assert len(built) == 3
    said: list[str] = []
    report, _ = _run(tmp_path, built, said)
    assert len(built) == 8
    assert said[0] == "3 of 8 cells are finished already; --fresh runs them again"
    assert len(report.outcomes) == 8
    _run(tmp_path, built, is_fresh=True)
    assert len(built) == 16


def test_other_settings_are_other_cells(tmp_path):
    """What was run with other settings is not taken for what is asked now; a damaged file counts as not run."""
    built: list = []
    _run(tmp_path, built, steps=2, seeds=(0,))
    _run(tmp_path, built, steps=3, seeds=(0,))
    assert len(built) == 8
    _run(tmp_path, built, steps=3, seeds=(0,))
    assert len(built) == 8
    for path in (tmp_path / "work" / "stub").glob("*.json"):
        path.write_text("{")
    _run(tmp_path, built, steps=3, seeds=(0,))
    assert len(built) == 12


def test_columns_and_parts_can_be_chosen_and_wrong_ones_are_named(tmp_path):
    """Unknown names are refused with the valid ones."""
    report, _ = _run(tmp_path, columns=("spare",), parts=("easy",), seeds=(5,))
    assert [(each.part, each.column, each.seed) for each in report.outcomes] == [("easy", "spare", 5)]
    with pytest.raises(ValueError, match="no family 'middle' here; valid are left, right, spare"):
        _run(tmp_path, columns=("left", "middle"))
    with pytest.raises(ValueError, match="no part 'hard' here; valid are easy, same"):
        _run(tmp_path, parts=("hard",))


def test_slow_families_have_one_seed_unless_they_are_asked_for(tmp_path):
    """A family marked slow is trained with the first seed; chosen by name it has all of them."""
    suite = replace(stub_suite(None), slow=("right",))
    report, _ = _run(tmp_path, suite=suite, parts=("easy",))
    assert [(each.column, each.seed) for each in report.outcomes] == [("left", 0), ("left", 1), ("right", 0)]
    report, _ = _run(tmp_path, suite=suite, parts=("easy",), columns=("right",))
    assert [each.seed for each in report.outcomes] == [0, 1]


def test_the_report_tells_all_that_is_needed_to_run_it_again(tmp_path):
    """Table, sizes, seeds, commit, hardware, command and wall time are in the page, every setting in the JSON."""
    _run(tmp_path)
    page = (tmp_path / "out" / "stub.md").read_text()
    assert "# A stub" in page
    assert "| easy | 8 tokens | 100.0 ± 0.0 | 100.0 ± 0.0 |" in page
    assert "| same / again | 8 tokens |" in page
    assert "| easy | left | 162 | 8 | 60 |" in page
    for part in ("- A note.", "Seeds: 0, 1. Commit: ", "Hardware: ", "Command: `hope eval stub`", "Wall time: "):
        assert part in page
    record = json.loads((tmp_path / "out" / "stub.json").read_text())
    assert record["seeds"] == [0, 1]
    assert record["command"] == "hope eval stub"
    assert len(record["outcomes"]) == 8
    settings = record["outcomes"][0]["facts"]["settings"]
    assert settings["fit"]["steps"] == 60
    assert settings["fit"]["max_seconds"] is None
    assert settings["network"]["hidden_size"] == 64


def test_a_quick_run_without_shipped_weights_trains_for_seconds_and_says_so(tmp_path):
    """It has its own report and its own seed, and where time cut the training short the report tells."""
    report, paths = _run(tmp_path, is_quick=True)
    assert paths[0].name == "stub-quick.md"
    assert {outcome.seed for outcome in report.outcomes} == {QUICK_SEED}
    assert {outcome.facts["weights"] for outcome in report.outcomes} == {"trained here"}
    page = paths[0].read_text()
    assert "**A quick run**" in page
    assert "| trained here |" in page


def test_kept_weights_are_what_a_quick_run_measures(tmp_path):
    """--keep ships the first seed's weights; the quick run loads them, trains nothing, and names their origin."""
    _run(tmp_path, keeps_weights=True, seeds=(4, 5))
    assert weights_path(tmp_path / "weights", "stub", "same | again", "left").is_file()
    weights_path(tmp_path / "weights", "stub", "easy", "right").unlink()
    report, _ = _run(tmp_path, is_quick=True)
    found = {(outcome.part, outcome.column) for outcome in report.outcomes}
    assert found == {("easy", "left"), ("same | again", "left"), ("same | again", "right")}
    assert all(outcome.values["8 tokens"] == 100.0 for outcome in report.outcomes)
    assert all(outcome.facts["weights"].startswith("shipped: seed 4, 60 steps, commit ") for outcome in report.outcomes)


def test_kept_weights_of_finished_cells_are_found(tmp_path):
    """Weights can be kept by a later run that only finds its cells finished."""
    built: list = []
    _run(tmp_path, built)
    _run(tmp_path, built, keeps_weights=True)
    assert len(built) == 8
    assert len(list((tmp_path / "weights" / "stub").glob("*.safetensors"))) == 4


def test_shipped_weights_of_another_shape_are_refused(tmp_path):
    """The message names the weights and what to do."""
    path = weights_path(tmp_path, "t", "p", "c")
    keep_weights(path, TableNetwork(5).tensors(), {"seed": 0})
    with pytest.raises(
        CheckpointError, match=r"weights of p-c do not fit this version \(before\); run without --quick"
    ):
        fill(TableNetwork(6).tensors(), load_weights(path), path.stem)
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(path)


def test_large_weights_are_rounded_and_larger_ones_not_shipped(tmp_path):
    """Files stay below a megabyte: float32, then float16, then none."""
    sizes = {"small": FULL_BYTES // 4, "large": MAX_BYTES // 2, "huge": MAX_BYTES // 2 + 1}
    paths = {name: tmp_path / f"{name}.safetensors" for name in sizes}
    for name, size in sizes.items():
        keep_weights(tmp_path / "kept" / name, {"x": torch.full((size,), 1 / 3)}, {"seed": 3})
    shipped = {name: ship_weights(tmp_path / "kept" / name, paths[name]) for name in sizes}
    assert shipped == {"small": True, "large": True, "huge": False}
    assert load_weights(paths["small"]).tensors["x"][0] == torch.tensor(1 / 3)
    assert load_weights(paths["large"]).tensors["x"][0] == torch.tensor(1 / 3).half().float()
    assert load_weights(paths["large"]).facts == {"seed": 3}
    assert not paths["huge"].exists()
    assert not ship_weights(tmp_path / "kept" / "none", paths["huge"])


def test_outcomes_survive_being_written():
    """A value that is not a number is null on disk and NaN again when read."""
    outcome = Outcome("p", "c", 3, {"a": 1.5, "b": float("nan")}, {"loss": float("inf"), "note": "diverged"})
    text = outcome.to_json()
    assert json.loads(text)["values"] == {"a": 1.5, "b": None}
    again = Outcome.from_json(text)
    assert again.values["a"] == 1.5
    assert again.values["b"] != again.values["b"]
    assert again.facts == {"loss": None, "note": "diverged"}


def test_file_names_depend_on_every_setting():
    """Part, column, seed and settings each change where an outcome is kept."""
    base = Cell("p", "c", 0, {"a": 1})
    others = [
        Cell("q", "c", 0, {"a": 1}),
        Cell("p", "d", 0, {"a": 1}),
        Cell("p", "c", 1, {"a": 1}),
        Cell("p", "c", 0, {"a": 2}),
    ]
    names = {cell.file_name() for cell in [base, *others]}
    assert len(names) == 5
    assert base.file_name() == Cell("p", "c", 0, {"a": 1}).file_name()

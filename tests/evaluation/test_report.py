"""The report's table, numbers and plot."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
from stub_evaluation import stub_options, stub_suite

from hope_server.errors import StartupError
from hope_server.evaluation import report as report_module
from hope_server.evaluation.outcome import Outcome
from hope_server.evaluation.provenance import commit, hardware
from hope_server.evaluation.report import Report, check_plots, page, table, write_report

OUTCOMES = [
    Outcome("easy", "left", 0, {"near": 50.0, "far": 0.04}, {"parameters": 10}),
    Outcome("easy", "left", 1, {"near": 60.0, "far": math.nan}, {"parameters": 10, "note": "cut"}),
    Outcome("easy", "right", 0, {"near": 12345.6, "far": 4.0}, {}),
    Outcome("easy", "right", 1, {"far": 4.5}, {}),
    Outcome("same | again", "right", 0, {"near": math.nan}, {}),
]


def test_the_table_has_means_spreads_and_failures():
    """Means with the standard deviation over seeds; what failed, and what was not run, is told apart."""
    assert table(stub_suite(), OUTCOMES) == [
        "|  |  | left | right |",
        "| --- | --- | ---: | ---: |",
        "| easy | near | 55.0 ± 7.1 | 12,346 |",
        "|  | far | 0.04 (1 failed) | 4.25 ± 0.35 |",
        "| same / again | near | – | failed |",
    ]


def _report(tmp_path, **changes) -> Report:
    return Report(stub_suite(), stub_options(tmp_path, **changes), OUTCOMES, "abc", "a machine", 12.0)


def test_odd_cells_are_listed(tmp_path):
    """A note of a cell stands among the report's notes with its part, column and seed."""
    assert "- easy, left, seed 1: cut\n" in page(_report(tmp_path))


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is the optional extra `plots`")
def test_the_plot_is_a_picture(tmp_path):
    """A PNG is written, also with values that are missing, and the page shows it."""
    paths = write_report(_report(tmp_path, plots=True))
    assert [path.name for path in paths] == ["stub.md", "stub.json", "stub.png"]
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert "![A stub](stub.png)" in paths[0].read_text()


def test_a_missing_matplotlib_is_said_before_the_run(monkeypatch):
    """The message says how to install it and how to do without."""
    monkeypatch.setattr(report_module, "find_spec", lambda name: None)
    with pytest.raises(StartupError, match=r"pip install hope-server\[plots\]`, or add --no-plot"):
        check_plots()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    """The message names the folder and the option."""
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(StartupError, match=r"cannot be written to .*; choose another --out"):
        write_report(_report(tmp_path))


def test_where_numbers_come_from_is_known(monkeypatch):
    """Commit and machine are told; without git, the package's version or `unknown`."""
    assert commit()
    assert "torch" in hardware("cpu")
    commit.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert commit().startswith(("version ", "unknown"))
    commit.cache_clear()

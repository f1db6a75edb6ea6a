"""The report: medians beside floors and aims, one object, a page, a plot."""

from __future__ import annotations

import json
import math

import pytest

from hope_server.errors import StartupError
from hope_server.evaluation import learning_report
from hope_server.evaluation.learning_baselines import BASELINES
from hope_server.evaluation.learning_bench import Found, LearningOptions
from hope_server.evaluation.learning_report import Row, lines, rows, summary, write_learning_report
from hope_server.evaluation.learning_trials import PARTS, Sizes

KEYS = [
    "rank_accuracy_32",
    "exact_match_32",
    "paraphrase_32",
    "rank_accuracy_128",
    "kept_after_8k",
    "first_lesson_kept",
    "updated_facts",
    "unrelated_loss_change_percent",
    "choice_accuracy_change_points",
    "false_memory",
    "state_bytes",
    "learn_seconds_per_turn",
]


def make_options(folder, **changes):
    values = {
        "seeds": (4, 5, 6),
        "parts": ("recall",),
        "baselines": (),
        "sizes": Sizes(),
        "out": folder,
        "work": folder,
        "cache_dir": folder,
        "command": "hope bench learning",
    }
    return LearningOptions(**(values | changes))


@pytest.fixture
def found():
    """Three seeds of one part and one of a baseline."""
    recall = {
        seed: {"rank_accuracy": value, "exact": math.nan, "logprob": -0.5, "state_bytes": 7_000_000.0}
        for seed, value in zip((4, 5, 6), (1.0, 0.9, 0.98), strict=True)
    }
    return Found({"recall": recall}, {"no_memory": {4: {"rank_accuracy": 0.125, "exact": 0.0}}}, ["corpus 'x': no"])


def test_the_object_has_every_key_and_null_for_what_was_left_out(tmp_path, found):
    """Medians over the seeds; what was asked for beside them."""
    got = summary(make_options(tmp_path), found)
    assert set(KEYS) < set(got)
    assert (got["rank_accuracy_32"], got["state_bytes"]) == (0.98, 7_000_000)
    assert [name for name in KEYS if got[name] is not None] == ["rank_accuracy_32", "state_bytes"]
    assert (got["num_facts"], got["num_seeds"], got["is_quick"]) == (32, 3, False)


def test_a_row_says_the_best_that_a_value_reaches():
    """Both directions, the bounds themselves included; what is only reported has no verdict."""
    high = Row("a", "p", "n", floor=0.9, aim=1.0)
    assert [high.verdict(value) for value in (1.0, 0.9, 0.89, math.nan)] == ["aim", "floor", "missed", ""]
    low = Row("a", "p", "n", floor=1.5, aim=0.0, is_low_good=True)
    assert [low.verdict(value) for value in (-1.0, 1.5, 1.6)] == ["aim", "floor", "missed"]
    assert Row("a", "p", "n").verdict(1.0) == ""


def test_the_table_has_median_spread_and_what_is_wanted(tmp_path, found):
    """A part that was not run has no line; baselines stand below; what is missing is named."""
    text = lines(make_options(tmp_path), found)
    assert "| 32 facts told in chat turns: rank accuracy of 8 | 0.98 | 0.90 to 1.00 | ≥ 0.97 | ≥ 1.00 | floor |" in text
    assert "| the same, exact match of the free answer | – |  | ≥ 0.90 | ≥ 1.00 |  |" in text
    assert not any("paraphrased" in line and "floor" in line for line in text)
    assert "| HOPE Server, told in a chat | 0.98 | -0.50 | – | – | – | 7,000,000 | – |" in text
    assert "| no memory | 0.12 | – | 0.00 | – | – | – | – |" in text
    assert text[-1] == "- left out: corpus 'x': no"


def test_every_row_is_of_a_part_that_there_is(tmp_path):
    """Keys differ, and all that the object promises are among them."""
    made = rows(Sizes())
    assert {row.part for row in made} == set(PARTS)
    assert [row.key for row in made if row.key] == KEYS


def test_every_baseline_has_a_name_in_the_table():
    """Words in place of the name on the command line."""
    assert list(learning_report._NAMES) == list(BASELINES)


def test_page_and_raw_numbers_say_where_they_come_from(tmp_path, found, monkeypatch):
    """Commit, seeds, command and hardware; numbers that JSON does not have are null."""
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    monkeypatch.setenv("HOPE_LEVELS", "/of/one/machine/some.yaml")
    monkeypatch.setenv("HOPE_PORT", "9")
    paths = write_learning_report(make_options(tmp_path / "out"), found)
    assert [path.name for path in paths] == ["learning.md", "learning.json", "learning.png"]
    page = paths[0].read_text(encoding="utf-8")
    for words in (
        "Seeds: 4, 5, 6. Commit: ",
        "Hardware: ",
        "Settings: HOPE_LEVELS=some.yaml.",
        "Command: `hope bench learning`",
        "(learning.png)",
    ):
        assert words in page
    record = json.loads(paths[1].read_text())
    assert record["parts"]["recall"]["4"]["exact"] is None and record["sizes"]["facts"] == 32
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_a_quick_run_is_called_one_and_does_not_write_over_a_whole_one(tmp_path, found):
    """Its files have a name of their own."""
    paths = write_learning_report(make_options(tmp_path, is_quick=True, sizes=Sizes.quick()), found)
    assert paths[0].name == "learning-quick.md"
    assert "**A quick run**" in paths[0].read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, found):
    """The message says what to choose instead."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="choose another --out"):
        write_learning_report(make_options(tmp_path / "file"), found)

"""Every task of `hope eval` can be planned, and what it trains and measures can be drawn."""

from __future__ import annotations

import pytest
import torch
from stub_evaluation import TableNetwork, stub_options

from hope_server.evaluation import catalogue
from hope_server.evaluation.families import ABLATIONS, FAMILIES
from hope_server.evaluation.fit import FitSpec, NetworkSpec
from hope_server.evaluation.mad import MemorisationTask
from hope_server.evaluation.optimizers import OptimizerSuite, Tuned
from hope_server.evaluation.outcome import Outcome
from hope_server.evaluation.perplexity import TextTask, load_text, position_groups
from hope_server.evaluation.registry import TASKS, make_suite
from hope_server.evaluation.runner import run_suite

TRIALS = ("formal", "recall", "mad", "stories", "streams", "translation", "perplexity", "ablation")


@pytest.mark.parametrize("task", TRIALS)
def test_parts_can_be_drawn_at_all_their_lengths(task, tmp_path):
    """Every training row and every probe of the catalogue exists, and full attention sees the longest."""
    suite = make_suite(stub_options(tmp_path, task=task))
    assert suite.name == task
    for part in suite.all_parts:
        generator = torch.Generator().manual_seed(0)
        for length in part.lengths:
            batch = part.task.sample(2, length, generator)
            assert batch.tokens.shape == (2, length)
            assert int(batch.tokens.max()) < part.task.vocab_size
        for probe in part.probes:
            batch = probe.task.sample(2, probe.length, generator)
            assert probe.task.vocab_size == part.task.vocab_size
            assert probe.length <= part.network.max_length
            assert bool((batch.weights > 0).any())


@pytest.mark.parametrize("task", TRIALS)
def test_a_plan_has_a_cell_for_each_part_family_and_seed(task, tmp_path):
    """The default families are those of the catalogue; nothing is planned twice."""
    suite = make_suite(stub_options(tmp_path, task=task))
    cells = suite.plan(stub_options(tmp_path, task=task), [])
    num_trainings = 2 * len(suite.defaults) - len(suite.slow)
    assert len(cells) == len(suite.parts) * num_trainings
    assert len({cell.file_name() for cell in cells}) == len(cells)
    assert set(suite.columns) <= {*FAMILIES, *ABLATIONS}
    assert suite.plan(stub_options(tmp_path, task=task), [Outcome("p", "c", 0, {}, {})]) == []


def test_formal_bins_follow_the_lengths(tmp_path):
    """Bins begin where the last one ended, in training length first."""
    suite = catalogue.formal_suite(stub_options(tmp_path, task="formal"))
    assert [probe.name for probe in suite.all_parts[0].probes] == ["1-50", "51-100", "101-150"]
    assert {part.network.chunk_size for part in suite.all_parts} == {1}
    suite = catalogue.formal_suite(stub_options(tmp_path, task="formal", lengths=(60, 20)))
    assert [probe.name for probe in suite.all_parts[0].probes] == ["1-20", "21-60"]


@pytest.mark.parametrize(
    ("task", "lengths", "message"),
    [
        ("formal", (3,), "formal: a length of 3 is not possible; valid are 4 to 1,048,576"),
        ("recall", (0, 5), "recall: a length of 0 is not possible; valid are 1 to"),
        ("stories", (50,), "stories: a length of 50 is not possible; valid are 99 to"),
        ("mad", (5,), "mad has fixed lengths; leave out --lengths"),
        ("perplexity", (64, 128), "perplexity: 2 lengths are too many; give at most 1"),
    ],
)
def test_impossible_lengths_are_refused(task, lengths, message, tmp_path):
    """The message says which length, and which are valid."""
    with pytest.raises(ValueError, match=message):
        make_suite(stub_options(tmp_path, task=task, lengths=lengths))


def test_unknown_tasks_are_refused(tmp_path):
    """The message lists the tasks."""
    with pytest.raises(ValueError, match=f"no task 'chess'; valid are {', '.join(TASKS)}"):
        make_suite(stub_options(tmp_path, task="chess"))


def test_texts_are_split_into_what_is_trained_on_and_what_is_not(tmp_path):
    """Training windows lie before the last tenth, test windows in it, and a text is known by its content."""
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(100 + place // 100 for place in range(1000)).decode("latin-1").encode())
    train, test = TextTask(str(path)), TextTask(str(path), True)
    generator = torch.Generator().manual_seed(0)
    assert int(train.sample(200, 20, generator).tokens.max()) == 108
    batch = test.sample(50, 20, generator)
    assert torch.equal(batch.tokens, torch.full((50, 20), 109))
    assert repr(train) != repr(test)
    other = tmp_path / "b.txt"
    other.write_bytes(path.read_bytes())
    assert repr(TextTask(str(other))) == repr(train)
    with pytest.raises(ValueError, match="has 100 bytes for windows of 100"):
        test.sample(1, 100, generator)
    with pytest.raises(ValueError, match="cannot be read as a UTF-8 file; name another with --text"):
        load_text(str(tmp_path / "none.txt"))


def test_positions_are_grouped_by_doubling():
    """Groups cover all positions without overlap."""
    assert position_groups(10) == [(0, 10)]
    assert position_groups(100) == [(0, 16), (16, 32), (32, 64), (64, 100)]


def test_each_optimizer_is_tuned_before_it_is_compared(tmp_path):
    """Every lr of the grid is tried with its own seed; the best runs with the report's seeds, and its edge is noted."""
    task = MemorisationTask(num_tokens=9)
    grids = {"AdamW": Tuned("adamw", (1e-5, 1e-1, 1e-4)), "Muon": Tuned("muon", (1e-4, 1e-2))}

    def make(column: str, spec: NetworkSpec, vocab_size: int, seed: int, device: str) -> TableNetwork:
        return TableNetwork(vocab_size, seed)

    suite = OptimizerSuite(task, task, make, NetworkSpec(), FitSpec(steps=8, batch_size=8), 4, grids)
    said: list[str] = []
    report, _ = run_suite(suite, stub_options(tmp_path, task="optimizers"), said.append)
    tuning = [outcome for outcome in report.outcomes if outcome.part == "tuning"]
    final = [outcome for outcome in report.outcomes if outcome.part == "final"]
    assert len(tuning) == 5
    assert [(outcome.column, outcome.seed) for outcome in final] == [(n, s) for n in ("AdamW", "Muon") for s in (0, 1)]
    assert all(list(outcome.values) == ["step 2", "step 4", "step 6", "step 8"] for outcome in final)
    assert {outcome.facts["lr"] for outcome in final if outcome.column == "AdamW"} == {1e-1}
    assert final[0].values["step 8"] < final[0].values["step 2"] < 9
    page = (tmp_path / "out" / "optimizers.md").read_text()
    assert "lr 0.1 is the edge of its grid" in page

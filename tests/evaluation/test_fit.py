"""The training loop and the measures, on a network that is a table."""

from __future__ import annotations

import math

import pytest
import torch
from stub_evaluation import TASK, TableNetwork

from hope_server.evaluation.fit import FitSpec, Probe, fit, measure
from hope_server.evaluation.formal import FormalTask
from hope_server.evaluation.mad import CompressionTask
from hope_server.evaluation.perplexity import TextTask
from hope_server.evaluation.streams import StreamTask

SPEC = FitSpec(steps=80, batch_size=16, lr=0.1)


def test_training_learns_what_can_be_learned():
    """A table learns the dictionary by heart; before training it knows nothing of it."""
    network = TableNetwork(TASK.vocab_size)
    probes = (Probe("tokens", TASK, 8), Probe("rows", TASK, 8, "row"), Probe("perplexity", TASK, 8, "perplexity"))
    before = [measure(network, probe, 0)[probe.name] for probe in probes]
    fitted = fit(network, TASK, (8, 4), SPEC, 0)
    after = [measure(network, probe, 0)[probe.name] for probe in probes]
    assert before[0] < 60
    assert before[1] < 30
    assert before[2] == pytest.approx(9, abs=0.5)
    assert after[:2] == [100.0, 100.0]
    assert 1 < after[2] < 1.5
    assert fitted.steps == len(fitted.losses) == 80
    assert not fitted.is_diverged


def test_the_same_seed_trains_the_same_weights():
    """Training is decided by its seed, and another seed trains other weights."""
    runs = []
    for seed in (3, 3, 4):
        network = TableNetwork(TASK.vocab_size)
        fit(network, TASK, (8,), FitSpec(steps=5, batch_size=4), seed)
        runs.append(network.tensors()["last"].detach())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_training_stops_early_when_nothing_is_left_to_learn():
    """Once the mean loss of 50 steps is low enough, no more steps are made."""
    spec = FitSpec(steps=400, batch_size=16, lr=0.3, stop_loss=0.05)
    fitted = fit(TableNetwork(TASK.vocab_size), TASK, (8,), spec, 0)
    assert 50 <= fitted.steps < 300
    assert sum(fitted.losses[-50:]) / 50 < 0.05


def test_training_stops_at_its_time_limit():
    """With no time, one step is made."""
    fitted = fit(TableNetwork(TASK.vocab_size), TASK, (8,), FitSpec(steps=400, max_seconds=0.0), 0)
    assert fitted.steps == 1


def test_a_loss_that_is_not_a_number_ends_training():
    """Training that diverges is ended before it can write NaN, and says so."""
    network = TableNetwork(TASK.vocab_size)

    def poison(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                network.tensors()["last"].fill_(math.nan)

    fitted = fit(network, TASK, (8,), FitSpec(steps=10), 0, on_step=poison)
    assert fitted.is_diverged
    assert fitted.steps == 3
    assert math.isnan(measure(network, Probe("tokens", TASK, 8), 0)["tokens"])


def test_the_optimizer_can_be_chosen_and_gets_the_schedule():
    """The given optimizer gets all tensors, warms up, and ends at a tenth of its lr."""
    seen: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    spec = FitSpec(steps=100, batch_size=2, lr=0.5, warmup=0.1)
    fit(TableNetwork(9), TASK, (4,), spec, 0, lambda tensors, lr: Watched(tensors.values(), lr=lr))
    assert seen[0] == pytest.approx(0.05)
    assert max(seen) == pytest.approx(0.5)
    assert seen[-1] == pytest.approx(0.05, rel=0.01)


def test_sets_are_right_only_when_whole():
    """A word counts when all its sets are right; of parity's single sets, a table that cannot count knows half."""
    network = TableNetwork(3)
    value = measure(network, Probe("words", FormalTask("parity", 10), 20, "row", 32), 0)
    assert value == {"words": 0.0}
    with torch.no_grad():
        network.tensors()["last"].copy_(torch.tensor([[5.0, 5.0, 5.0], [5.0, 5.0, -5.0], [0.0, 0.0, 0.0]]))
        network.tensors()["before"].zero_()
    share = measure(network, Probe("sets", FormalTask("parity", 10), 20, "token", 64), 0)["sets"]
    assert 40 < share < 60


def test_a_readout_is_trained_with_the_network():
    """The decoder of compression learns too, and measuring it needs its weights."""
    task = CompressionTask(num_tokens=4, code_size=8, max_length=6)
    network = TableNetwork(8)
    start = task.readout_tensors(0)["readout.second"]
    fitted = fit(network, task, (3,), FitSpec(steps=30, batch_size=16, lr=0.05), 0)
    assert not torch.equal(fitted.readout["readout.second"].detach(), start)
    value = measure(network, Probe("last", task, 3, num_rows=64), 0, fitted.readout)["last"]
    # A table sees two of the three tokens in the last place, of which one is the marker: one of two is known.
    assert 50 < value < 90


def test_groups_are_measured_apart():
    """A grouped task gives one value for each of its groups, and a text one for each range of positions."""
    task = StreamTask(num_groups=2)
    values = measure(TableNetwork(task.vocab_size), Probe("", task, task.length, num_rows=8), 0)
    assert list(values) == task.group_names
    text = measure(TableNetwork(256), Probe("", TextTask(), 40, "perplexity", 8), 0)
    assert list(text) == ["1-16", "17-32", "33-40"]
    assert all(value == pytest.approx(256, rel=0.01) for value in text.values())


def test_no_more_rows_are_drawn_after_the_time_limit():
    """With no time, no more than 16 rows are measured."""
    drawn: list[int] = []

    class Watched:
        vocab_size = TASK.vocab_size

        def sample(self, num_rows, length, generator):
            drawn.append(num_rows)
            return TASK.sample(num_rows, length, generator)

    measure(TableNetwork(9), Probe("tokens", Watched(), 8, num_rows=500), 0, max_seconds=0.0)
    assert drawn == [16]

"""The arithmetic of the long benches, on numbers worked out by hand."""

from __future__ import annotations

import pytest
from growth import crossover, doubled, middle_ratio, rate_by_difference


def test_lengths_double_up_to_the_last() -> None:
    """The lengths are powers of two times the first, and the last as it was asked for."""
    assert doubled(1024, 8192) == [1024, 2048, 4096, 8192]
    assert doubled(1024, 5000) == [1024, 2048, 4096, 5000]
    assert doubled(7, 7) == [7]


@pytest.mark.parametrize(("first", "last"), [(0, 8), (-1, 8), (9, 8)])
def test_lengths_that_go_nowhere_are_refused(first: int, last: int) -> None:
    """A first length that is not positive, or beyond the last, is an error."""
    with pytest.raises(ValueError, match="lengths from"):
        doubled(first, last)


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    """Values of one round are divided by each other, not the medians of all rounds."""
    assert middle_ratio([2, 30, 5], [1, 10, 5]) == 2
    # The ratio of the medians would be 1.
    assert middle_ratio([1, 2, 3], [3, 2, 0.5]) == 1
    assert middle_ratio([1, 2, 9], [2, 8, 1]) == 0.5


@pytest.mark.parametrize(
    ("over", "under", "reason"), [([], [], "every round"), ([1, 2], [1], "every round"), ([1], [0], "nothing")]
)
def test_rounds_without_a_ratio_are_refused(over: list[float], under: list[float], reason: str) -> None:
    """Rounds that lack a side, or have a time of nothing, are an error."""
    with pytest.raises(ValueError, match=reason):
        middle_ratio(over, under)


def test_curves_cross_between_the_lengths_that_they_change_places_at() -> None:
    """The crossing lies on the straight lines between the measured lengths."""
    assert crossover([0, 10], [5, 5], [0, 10]) == 5
    assert crossover([1, 2, 4], [3, 3, 3], [1, 2, 6]) == 2.5


def test_the_last_crossing_counts() -> None:
    """A length from which we are faster only for a while is no crossover."""
    assert crossover([1, 2, 3, 4], [5, 1, 5, 1], [3, 3, 3, 3]) == 3.5


def test_a_side_that_is_faster_everywhere_crosses_at_the_first_length() -> None:
    """Where we are faster at every length, the first is the answer."""
    assert crossover([1024, 2048], [1, 1], [2, 3]) == 1024


@pytest.mark.parametrize("ours", [[9, 9], [1, 9], [1, 3]])
def test_a_side_that_is_not_faster_at_the_end_never_crosses(ours: list[float]) -> None:
    """Being slower or as slow at the longest length is no crossover, whatever was before."""
    assert crossover([1, 2], ours, [3, 3]) is None


@pytest.mark.parametrize("lengths", [[], [1], [2, 1], [1, 1]])
def test_curves_that_do_not_fit_are_refused(lengths: list[float]) -> None:
    """Lengths that do not rise, or are not as many as the times, are an error."""
    with pytest.raises(ValueError, match="lengths"):
        crossover(lengths, [1, 1], [2, 2])


def test_a_rate_is_of_what_the_long_run_said_beyond_the_short() -> None:
    """Ten tokens in the two seconds between the runs are five a second."""
    assert rate_by_difference(10, 3.0, 1.0) == 5


@pytest.mark.parametrize(("tokens", "long", "short"), [(10, 1.0, 1.0), (10, 0.5, 1.0), (0, 2.0, 1.0)])
def test_runs_that_say_nothing_are_refused(tokens: int, long: float, short: float) -> None:
    """A long run that took no longer than the short one gives no rate."""
    with pytest.raises(ValueError, match="no time"):
        rate_by_difference(tokens, long, short)

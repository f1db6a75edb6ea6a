"""The arithmetic of the long benches: which lengths, ratios of a round, where two curves cross, rates by difference."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from machine import median


def doubled(first: int, last: int) -> list[int]:
    """Return `first`, twice that and so on, and `last` at the end. Raises ValueError unless 0 < first <= last."""
    if not 0 < first <= last:
        raise ValueError(f"lengths from {first} to {last}: the first must be positive and not beyond the last")
    lengths = list(itertools.takewhile(lambda length: length < last, (first << count for count in itertools.count())))
    return [*lengths, last]


def middle_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of a round's `over` / `under`, whose values were taken side by side.

    Raises ValueError where the rounds are not pairs of positive numbers.
    """
    if not over or len(over) != len(under):
        raise ValueError(f"{len(over)} values over {len(under)}: every round needs both, and there must be one")
    if min(*over, *under) <= 0:
        raise ValueError("a measurement of nothing, or less, has no ratio")
    return median([above / below for above, below in zip(over, under, strict=True)])


def crossover(lengths: Sequence[float], ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the length from which ours takes less time at every length measured, None where it never does.

    lengths: rising; ours, theirs: seconds at each. Between two lengths both are taken as straight lines. The first
    length means that ours takes less from there on, and perhaps already before. Raises ValueError for other lists.
    """
    if not lengths or not len(lengths) == len(ours) == len(theirs):
        raise ValueError(f"{len(lengths)} lengths, {len(ours)} and {len(theirs)} times: there must be as many of each")
    if any(after <= before for before, after in itertools.pairwise(lengths)):
        raise ValueError(f"lengths {list(lengths)} must rise")
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    if gaps[-1] >= 0:
        return None
    last = max((place for place, gap in enumerate(gaps) if gap >= 0), default=None)
    if last is None:
        return float(lengths[0])
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    return lengths[last] + share * (lengths[last + 1] - lengths[last])


def rate_by_difference(num_tokens: int, long_seconds: float, short_seconds: float) -> float:
    """Return tokens per second of what the long run said beyond the short one, which had the same prompts.

    Raises ValueError where the long run took no longer: the times say nothing then.
    """
    if num_tokens < 1 or long_seconds <= short_seconds:
        raise ValueError(
            f"{num_tokens} more tokens in {long_seconds:.3f} s against {short_seconds:.3f} s without them: "
            "the difference is no time that they could have taken"
        )
    return num_tokens / (long_seconds - short_seconds)

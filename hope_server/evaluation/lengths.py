"""Which test lengths may be asked for."""

from __future__ import annotations

from hope_server.evaluation.outcome import Options

__all__ = ["chosen_lengths", "no_lengths"]

_LONGEST = 1 << 20


def chosen_lengths(options: Options, default: tuple[int, ...], shortest: int, most: int = 12) -> tuple[int, ...]:
    """Return the test lengths, rising. Raises ValueError, which says what is valid, for any that is impossible."""
    lengths = tuple(sorted(set(options.lengths))) if options.lengths else default
    odd = [each for each in lengths if not shortest <= each <= _LONGEST]
    if odd:
        raise ValueError(f"{options.task}: a length of {odd[0]} is not possible; valid are {shortest} to {_LONGEST:,}")
    if len(lengths) > most:
        raise ValueError(f"{options.task}: {len(lengths)} lengths are too many; give at most {most}")
    return lengths


def no_lengths(options: Options) -> None:
    """Raise ValueError where lengths were asked for and the task's are fixed."""
    if options.lengths:
        raise ValueError(f"{options.task} has fixed lengths; leave out --lengths")

"""Small draws from a torch generator, so that a seed alone decides what a task contains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

__all__ = ["choose", "coin", "distinct", "number", "orders", "scatter"]

Item = TypeVar("Item")


def number(below: int, generator: torch.Generator) -> int:
    """Draw a whole number from 0 up to, not including, `below`."""
    return int(torch.randint(below, (), generator=generator))


def coin(generator: torch.Generator, chance: float = 0.5) -> bool:
    """Return true with probability `chance`."""
    return float(torch.rand((), generator=generator)) < chance


def choose(items: Sequence[Item], generator: torch.Generator) -> Item:
    """Draw one of `items`."""
    return items[number(len(items), generator)]


def distinct(items: Sequence[Item], count: int, generator: torch.Generator) -> list[Item]:
    """Draw `count` different places of `items` and return what is there, in random order."""
    return [items[place] for place in torch.randperm(len(items), generator=generator)[:count].tolist()]


def orders(num_rows: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a random order of 0 .. size-1 for each row: [B, size] int64."""
    return torch.rand(num_rows, size, generator=generator).argsort(dim=1)


def scatter(num_rows: int, count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` different places among 0 .. width-1 for each row, in rising order: [B, count] int64."""
    return orders(num_rows, width, generator)[:, :count].sort(dim=1).values

"""Class-incremental streams: groups of new classes arrive one after another, with an exam on all classes after each.

Every row invents its own classes, so a model must learn them from the row itself, and not from training.
Shapes: B rows, T tokens, S symbols of an example.
Source: the class-incremental setting of NL §9 (CLINC, Banking, DBpedia), with invented classes in their place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hope_server.evaluation.drawing import orders
from hope_server.training.batch import Batch

__all__ = ["StreamTask"]


@dataclass(frozen=True, slots=True)
class StreamTask:
    """A stream of `num_groups` groups of `group_size` classes; each class is a prototype of `example_size` symbols.

    shots: labelled examples of a class in its group's lesson. noise: chance that a symbol of an example is another one.
    num_symbols: symbols to make examples of. An example is followed by a marker and, in lessons, by its label.
    """

    num_groups: int = 4
    group_size: int = 2
    shots: int = 4
    example_size: int = 4
    num_symbols: int = 16
    noise: float = 0.05

    @property
    def num_classes(self) -> int:
        """Classes of a whole row."""
        return self.num_groups * self.group_size

    @property
    def vocab_size(self) -> int:
        """Symbols, labels and the marker."""
        return self.num_symbols + self.num_classes + 1

    @property
    def length(self) -> int:
        """Tokens of a row: its layout is always the same."""
        lessons = self.num_classes * self.shots * (self.example_size + 2)
        exams = sum(range(1, self.num_groups + 1)) * self.group_size * (self.example_size + 1)
        return lessons + exams

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw rows; the label is the target at the marker of an exam. Raises ValueError for any other length."""
        return self.sample_groups(num_rows, length, generator)[0]

    def sample_groups(
        self, num_rows: int, length: int, generator: torch.Generator
    ) -> tuple[Batch, dict[str, torch.Tensor]]:
        """As `sample`, and which positions [B, T] ask what: all classes after each lesson, and the first group's.

        The names are in the order of `group_names`.
        """
        if length != self.length:
            raise ValueError(f"a stream of {self.num_groups} groups has {self.length} tokens, not {length}")
        shape = (num_rows, self.num_classes, self.example_size)
        prototypes = torch.randint(self.num_symbols, shape, generator=generator)
        labels = self.num_symbols + orders(num_rows, self.num_classes, generator)
        parts: list[torch.Tensor] = []
        targets = torch.zeros(num_rows, length, dtype=torch.long)
        groups = {name: torch.zeros(num_rows, length, dtype=torch.bool) for name in self.group_names}
        for lesson in range(self.num_groups):
            parts += self._lesson(lesson, prototypes, labels, generator)
            # A random order: the place of a question must not tell which group it is about.
            asked = orders(num_rows, (lesson + 1) * self.group_size, generator)
            for column in asked.split(1, dim=1):
                parts.append(self._examples(column[:, 0], prototypes, generator))
                place = sum(part.shape[1] for part in parts) - 1
                targets[:, place] = labels.gather(1, column)[:, 0]
                groups[f"all, after lesson {lesson + 1}"][:, place] = True
                groups[f"group 1, after lesson {lesson + 1}"][:, place] = column[:, 0] < self.group_size
        weights = torch.stack([mask for name, mask in groups.items() if name.startswith("all")]).any(0).float()
        return Batch(torch.cat(parts, dim=1), targets, weights), groups

    @property
    def group_names(self) -> list[str]:
        """The names of what is measured."""
        return [
            f"{what}, after lesson {lesson + 1}" for what in ("all", "group 1") for lesson in range(self.num_groups)
        ]

    def _lesson(
        self, group: int, prototypes: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> list[torch.Tensor]:
        """The examples of a group's classes in random order, each with its label."""
        num_rows, parts = len(labels), []
        order = orders(num_rows, self.group_size * self.shots, generator) % self.group_size + group * self.group_size
        for column in order.split(1, dim=1):
            parts += [self._examples(column[:, 0], prototypes, generator), labels.gather(1, column)]
        return parts

    def _examples(self, classes: torch.Tensor, prototypes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One noisy example of each row's class [B] with the marker behind it: [B, S + 1]."""
        rows = torch.arange(len(classes))
        example = prototypes[rows, classes]
        other = torch.randint(self.num_symbols, example.shape, generator=generator)
        is_noise = torch.rand(example.shape, generator=generator) < self.noise
        marker = torch.full((len(classes), 1), self.vocab_size - 1)
        return torch.cat([torch.where(is_noise, other, example), marker], dim=1)

"""What memories a head of a self-modifying layer has, how they lie, and the rules that they are written by.

Shapes: K key size (values alike), M columns of the tall matrix, n rates of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

VECTORS = ("k", "v", "q")
RATES = ("lr", "retention")
MAIN = "main"
"""The memory that outputs are read from, M_mem of the paper."""
MIN_LOG_RETENTION = -5.0
"""Retention never falls below this, so that nothing ever divides by an empty memory."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Memories that share keys: vectors (k, v, q as far as adaptive), main, then rates. Matrices lie side by side.

    head_dim: K. adaptive: which of keys, values, queries and rates memories of their own add to.
    is_residual: main adds the query to what it retrieves; the other vector memories always do, rates never.
    squared: the inner loss is half the squared error (NL eq. 88), else minus the dot product (NL eq. 92).
    delta: decay along the key. self_targets: memories make their own targets out of the value (NL eq. 83-85).
    max_lr: the largest step size; lr_share: a factor of every step size, in (0, 1].
    num_sums: heads, the first ones, whose keys, values, queries and rates come from the slow weights alone.
    hidden_size: hidden units of two-layer memories, all residual but for rates; 0 for matrices. hidden_delta: their
    second layer decays along its input, too.
    reads_current: outputs are read after the token's own write, else from the memory at the chunk's start (NL eq. 90).
    """

    head_dim: int
    adaptive: tuple[str, ...] = ("k", "v", "lr", "retention")
    is_residual: bool = True
    squared: bool = True
    delta: bool = True
    self_targets: bool = True
    has_retention: bool = True
    has_momentum: bool = False
    max_lr: float = 1.0
    lr_share: float = 1.0
    num_sums: int = 0
    hidden_size: int = 0
    hidden_delta: bool = False
    reads_current: bool = False

    @property
    def vectors(self) -> tuple[str, ...]:
        """Memories that map a key to a vector, in the order of their columns."""
        return (*(name for name in VECTORS if name in self.adaptive), MAIN)

    @property
    def rates(self) -> tuple[str, ...]:
        """Memories that map a key to one number, in the order of their columns."""
        return tuple(name for name in RATES if name in self.adaptive)

    @property
    def num_vector_columns(self) -> int:
        """Columns of the vector memories."""
        return len(self.vectors) * self.head_dim

    @property
    def num_columns(self) -> int:
        """M."""
        return self.num_vector_columns + len(self.rates)

    @property
    def num_rates(self) -> int:
        """Slow rates of a token: lr, then retention and momentum as far as there are any."""
        return 1 + int(self.has_retention) + int(self.has_momentum)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of a head's tensors by name: one tall matrix, or both layers of vector and of rate memories."""
        size, hidden = self.head_dim, self.hidden_size
        if not hidden:
            return {"weights": (size, self.num_columns)}
        num_vectors, num_rates = len(self.vectors), len(self.rates)
        shapes: dict[str, tuple[int, ...]] = {
            "first": (num_vectors, size, hidden),
            "second": (num_vectors, hidden, size),
        }
        if num_rates:
            shapes |= {"rate_first": (num_rates, size, hidden), "rate_second": (num_rates, hidden, 1)}
        return shapes

    def columns(self, name: str) -> slice:
        """Where a memory lies in the tall matrix."""
        if name in self.rates:
            start = self.num_vector_columns + self.rates.index(name)
            return slice(start, start + 1)
        start = self.vectors.index(name) * self.head_dim
        return slice(start, start + self.head_dim)

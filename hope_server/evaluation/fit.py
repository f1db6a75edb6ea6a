"""Trains a small network on a task and measures it: the same short loop for every family.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from hope_server.training.batch import Batch, Task
from hope_server.training.losses import batch_loss, token_hits
from hope_server.training.network import Network as Trainable

__all__ = [
    "FitSpec",
    "Fitted",
    "GroupedTask",
    "MakeOptimizer",
    "Network",
    "NetworkSpec",
    "Probe",
    "ReadoutTask",
    "fit",
    "measure",
]

MakeOptimizer = Callable[[dict[str, torch.Tensor], float], torch.optim.Optimizer]
Score = Literal["row", "token", "perplexity"]

_ROWS_AT_ONCE = 32
_MIN_ROWS = 16
_TRAINING, _TESTING = 1_000_003, 7_000_003
"""Factors that keep the draws of training and of tests apart, whatever the seed."""


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The size that all families share.

    hidden_size, num_layers, num_heads: of the network; a head has hidden_size / num_heads entries. mlp_size: hidden
    units of hope's MLP; the other families' follow from equal numbers of parameters. chunk_size: tokens of a Titans
    chunk. level_periods: tokens between writes of each CMS level of hope, fastest first; none is no levels. level_rank,
    level_lr: of every level. max_length: longest row that full attention sees. norm_eps: added to the mean square where
    anything is normalised. hope: fields of hope's TitansSpec that a task needs otherwise, with their values.
    is_compiled: fuse the work of a chunk in training, which small chunks gain by; takes a minute at first.
    """

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 2
    mlp_size: int = 128
    chunk_size: int = 16
    level_periods: tuple[int, ...] = ()
    level_rank: int = 16
    level_lr: float = 0.1
    max_length: int = 128
    norm_eps: float = 1e-5
    hope: tuple[tuple[str, Any], ...] = ()
    is_compiled: bool = False


class Network(Trainable, Protocol):
    """A network to train whose state can be weighed."""

    @property
    def state_bytes(self) -> int:
        """Bytes that one row's state has, whatever it has read; 0 where it keeps none."""
        ...


@runtime_checkable
class ReadoutTask(Protocol):
    """A task that reads its answer out of the logits by weights of its own, which are trained with the network."""

    def readout_tensors(self, seed: int) -> dict[str, torch.Tensor]:
        """Draw the weights of the readout."""
        ...

    def read_out(self, logits: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Turn the network's logits into those that the targets are compared with."""
        ...


@runtime_checkable
class GroupedTask(Protocol):
    """A task that knows what each position asks, so that groups of positions are measured apart."""

    def sample_groups(
        self, num_rows: int, length: int, generator: torch.Generator
    ) -> tuple[Batch, dict[str, torch.Tensor]]:
        """Draw rows, and which positions, bool [B, T], belong to each group."""
        ...


@dataclass(frozen=True, slots=True)
class FitSpec:
    """How a network is trained: AdamW (unless told otherwise), linear warm-up, then a cosine down to a tenth.

    steps, batch_size: updates, and rows of each. lr, weight_decay, max_norm: of the optimizer; the gradient is scaled
    down to max_norm. warmup: share of the steps. stop_loss: training ends early once the mean loss of the last 50 steps
    is below it (nats); 0 never. max_seconds: training ends early then.
    """

    steps: int = 1000
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    max_norm: float = 1.0
    stop_loss: float = 0.0
    max_seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class Fitted:
    """How training went: updates made, seconds, loss of every update in nats, whether that became NaN or infinite."""

    steps: int
    seconds: float
    losses: list[float]
    is_diverged: bool
    readout: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Probe:
    """One measurement: rows of a task at one length.

    score: share of rows right at every scored position (row), share of scored positions right (token), both in %, or
    the exponential of the mean loss (perplexity). A grouped task is measured group by group, under the groups' names.
    """

    name: str
    task: Task
    length: int
    score: Score = "token"
    num_rows: int = 256


def fit(
    network: Network,
    task: Task,
    lengths: tuple[int, ...],
    spec: FitSpec,
    seed: int,
    make_optimizer: MakeOptimizer | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Fitted:
    """Train the network's tensors in place on rows of `task`, whose length goes round through `lengths`.

    make_optimizer: from named tensors and lr; default AdamW. on_step: called with the number of updates made, after
    each. Raises ValueError when the task has no rows of a length.
    """
    readout = task.readout_tensors(seed) if isinstance(task, ReadoutTask) else {}
    readout = {name: tensor.to(network.device).requires_grad_() for name, tensor in readout.items()}
    tensors = network.tensors() | readout
    optimizer = (make_optimizer or _adamw(spec))(tensors, spec.lr)
    generator = torch.Generator().manual_seed(_TRAINING * (seed + 1))
    losses: list[float] = []
    started = time.monotonic()
    for step in range(spec.steps):
        batch = task.sample(spec.batch_size, lengths[step % len(lengths)], generator).to(network.device)
        loss = batch_loss(_answers(network, task, batch, readout), batch)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return Fitted(step, time.monotonic() - started, losses, True, readout)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tensors.values(), spec.max_norm)
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * _schedule(step, spec)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1)
        if _is_done(losses, spec.stop_loss) or time.monotonic() - started > spec.max_seconds:
            break
    return Fitted(len(losses), time.monotonic() - started, losses, False, readout)


@torch.no_grad()
def measure(
    network: Network,
    probe: Probe,
    seed: int,
    readout: dict[str, torch.Tensor] | None = None,
    max_seconds: float = math.inf,
) -> dict[str, float]:
    """Measure a network on fresh rows; returns the value of each group, or of the probe under its own name.

    max_seconds: after it no more rows are drawn once there are 16. Values are in %, or a perplexity; NaN when nothing
    was scored or the network's outputs are not finite.
    """
    generator = torch.Generator().manual_seed(_TESTING * (seed + 1))
    sums: dict[str, list[float]] = {}
    started, num_rows = time.monotonic(), 0
    at_once = _ROWS_AT_ONCE if max_seconds == math.inf else _MIN_ROWS
    while num_rows < probe.num_rows and (num_rows < _MIN_ROWS or time.monotonic() - started < max_seconds):
        rows = min(at_once, probe.num_rows - num_rows)
        if isinstance(probe.task, GroupedTask):
            batch, groups = probe.task.sample_groups(rows, probe.length, generator)
        else:
            batch = probe.task.sample(rows, probe.length, generator)
            groups = {probe.name: batch.weights > 0}
        batch = batch.to(network.device)
        logits = _answers(network, probe.task, batch, readout or {})
        for name, mask in groups.items():
            part = sums.setdefault(name, [0.0, 0.0])
            total, count = _score(logits, batch, mask.to(network.device), probe.score)
            part[0] += total
            part[1] += count
        num_rows += rows
    return {name: _value(total, count, probe.score) for name, (total, count) in sums.items()}


def _answers(network: Network, task: Task, batch: Batch, readout: dict[str, torch.Tensor]) -> torch.Tensor:
    logits, _ = network.run(batch.tokens)
    return task.read_out(logits, readout) if isinstance(task, ReadoutTask) else logits


def _score(logits: torch.Tensor, batch: Batch, mask: torch.Tensor, score: Score) -> tuple[float, int]:
    """Sum and number of what is scored where `mask` [B, T] holds: right rows, right positions or losses."""
    if not bool(mask.any()):
        return 0.0, 0
    if score == "perplexity":
        picked = torch.nn.functional.cross_entropy(logits[mask].float(), batch.targets[mask], reduction="sum")
        return float(picked), int(mask.sum())
    if not bool(torch.isfinite(logits[mask]).all()):
        return math.nan, int(mask.sum())
    hits = token_hits(logits, batch)
    if score == "token":
        return float(hits[mask].sum()), int(mask.sum())
    asked = mask.any(1)
    return float((hits | ~mask).all(1)[asked].sum()), int(asked.sum())


def _value(total: float, count: float, score: Score) -> float:
    if count == 0:
        return math.nan
    if score != "perplexity":
        return 100 * total / count
    mean = total / count
    return math.exp(mean) if mean < 700 else math.nan


def _schedule(step: int, spec: FitSpec) -> float:
    warm = max(1, round(spec.warmup * spec.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, spec.steps - warm))


def _is_done(losses: list[float], stop_loss: float, window: int = 50) -> bool:
    return len(losses) >= window and sum(losses[-window:]) / window < stop_loss


def _adamw(spec: FitSpec) -> MakeOptimizer:
    def make(tensors: dict[str, torch.Tensor], lr: float) -> torch.optim.Optimizer:
        # Vectors are scales and biases: pulling them to zero would change what they scale.
        matrices = [tensor for tensor in tensors.values() if tensor.ndim >= 2]
        vectors = [tensor for tensor in tensors.values() if tensor.ndim < 2]
        groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.98))

    return make

"""The outer loop: gradients of a task's loss through the inner writes, clipped, scheduled, checked and kept.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch

from hope_server.errors import CheckpointError, SettingsError
from hope_server.training.batch import Batch, Task
from hope_server.training.checkpoints import Checkpoint, Progress, latest_checkpoint, load_checkpoint, save_checkpoint
from hope_server.training.errors import TrainingDiverged
from hope_server.training.logs import MetricsLog
from hope_server.training.losses import batch_loss, row_accuracy, token_accuracy
from hope_server.training.network import Network
from hope_server.training.optimizers import build_optimizer, clip_gradients, lr_at, set_lr
from hope_server.training.recipe import Recipe
from hope_server.training.tasks import ProbedTask

__all__ = ["Trainer", "Watcher"]

# Above every seed of a recipe, so that no row of an evaluation is trained on; torch looks at 32 bits of a seed.
_EVALUATION_SEED = 2**31


class Watcher(Protocol):
    """Who is told how a run goes."""

    def step(self, progress: Progress, steps: int, metrics: Mapping[str, float]) -> None:
        """Hear of a finished step."""
        ...

    def evaluated(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Hear of an evaluation."""
        ...

    def saved(self, path: Path) -> None:
        """Hear of a checkpoint."""
        ...


class Trainer:
    """One run of a recipe with one seed. Weights, optimizer, random state and progress are its state."""

    def __init__(self, recipe: Recipe, seed: int, network: Network, task: Task, folder: Path, watcher: Watcher) -> None:
        """Set up a run that writes checkpoints and logs into `folder`."""
        self.recipe, self.seed, self.folder = recipe, seed, folder
        self.progress = Progress()
        self._network, self._task, self._watcher = network, task, watcher
        self._tensors = network.tensors()
        self._optimizer = build_optimizer(recipe.optimizer, self._tensors)
        self._generator = torch.Generator().manual_seed(seed)
        self._is_stopping = False
        # Everything drawn outside the task's generator is seeded too.
        torch.manual_seed(seed)

    def resume(self) -> Path:
        """Go on from the newest checkpoint in the folder and return it.

        Raises SettingsError when there is none or it is of another recipe or seed, CheckpointError when it is damaged
        or does not fit the network.
        """
        path = latest_checkpoint(self.folder)
        if path is None:
            raise SettingsError(f"{self.folder} has no checkpoint to resume from; start without --resume")
        self._restore(load_checkpoint(path, self.recipe, self.seed))
        return path

    def run(self) -> None:
        """Train to the recipe's last step, with evaluations and checkpoints on the way and at the end.

        Raises TrainingDiverged at the first loss or gradient that is not finite, before it touches the weights;
        KeyboardInterrupt after Ctrl-C, once the step is finished and saved; CheckpointError when the disk fails.
        """
        recipe = self.recipe
        try:
            log = MetricsLog(self.folder, self.progress.step)
        except OSError as exc:
            raise CheckpointError(f"{self.folder} cannot be written ({exc.strerror}); choose another --out") from exc
        try:
            with _catch_interrupt(self):
                while self.progress.step < recipe.steps:
                    self._turn(log)
        finally:
            log.close()

    def stop(self) -> None:
        """Ask the run to end after the step that it is in, saved."""
        self._is_stopping = True

    def evaluate(self) -> dict[str, float]:
        """Return loss and accuracies on rows that are not trained on, the same at every call."""
        generator = torch.Generator().manual_seed(_EVALUATION_SEED + self.seed)
        rows = self.recipe.eval_rows
        stage = self.recipe.stage(max(0, self.progress.step - 1))
        loss, logits, batch = self._measure(self._task.sample(rows, stage.length, generator))
        found = {
            "eval loss": loss,
            "eval token accuracy": token_accuracy(logits, batch),
            "eval row accuracy": row_accuracy(logits, batch),
        }
        if isinstance(self._task, ProbedTask):
            for name, probe in self._task.probes(rows, generator).items():
                probe_loss, logits, batch = self._measure(probe)
                found |= {f"{name}: loss": probe_loss, f"{name}: accuracy": token_accuracy(logits, batch)}
        return found

    def save(self) -> Path:
        """Write a checkpoint and return its path."""
        states = {"task": self._generator.get_state(), "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state(self._network.device)
        path = save_checkpoint(
            self.folder, self.progress, self._tensors, self._optimizer, states, self.recipe, self.seed
        )
        self._watcher.saved(path)
        return path

    def _turn(self, log: MetricsLog) -> None:
        """Make one step and what is due after it."""
        recipe, progress = self.recipe, self.progress
        metrics = self._step()
        log.write(progress.step, metrics)
        self._watcher.step(progress, recipe.steps, metrics)
        is_last = progress.step == recipe.steps
        if is_last or _is_due(progress.step, recipe.eval_every):
            found = self.evaluate()
            log.write(progress.step, found)
            self._watcher.evaluated(progress, found)
        if is_last or self._is_stopping or _is_due(progress.step, recipe.checkpoint_every):
            self.save()
        if self._is_stopping and not is_last:
            raise KeyboardInterrupt

    def _step(self) -> dict[str, float]:
        recipe, progress = self.recipe, self.progress
        began = time.perf_counter()
        stage = recipe.stage(progress.step)
        rows = stage.rows or recipe.rows
        batch = self._task.sample(rows, stage.length, self._generator)
        total = float(batch.weights.sum())
        self._optimizer.zero_grad(set_to_none=True)
        part = rows // recipe.accumulate
        loss = sum(self._backward(batch.rows(start, start + part), total) for start in range(0, rows, part))
        self._check_finite("loss", loss)
        norm = clip_gradients(self._tensors, recipe.optimizer.clip)
        self._check_finite("gradient", norm)
        lr = lr_at(recipe.optimizer, progress.step, recipe.steps)
        set_lr(self._optimizer, lr)
        self._optimizer.step()
        progress.step += 1
        progress.num_tokens += batch.tokens.numel()
        seconds = time.perf_counter() - began
        return {
            "loss": loss,
            "gradient norm": norm,
            "lr": lr,
            "length": stage.length,
            "tokens": progress.num_tokens,
            "tokens per second": batch.tokens.numel() / seconds,
        }

    def _backward(self, batch: Batch, total: float) -> float:
        """Add the gradient of some rows of a batch whose weights sum to `total`; return their part of its loss."""
        state, loss_sum = None, 0.0
        segment = self.recipe.inner.segment or batch.tokens.shape[1]
        for start in range(0, batch.tokens.shape[1], segment):
            piece = batch.columns(start, start + segment).to(self._network.device)
            share = float(piece.weights.sum()) / total if total else 0.0
            with self._precision():
                logits, state = self._network.run(piece.tokens, state)
                loss = batch_loss(logits, piece) * share
            loss.backward()
            loss_sum += float(loss.detach())
            state = self._network.detached(state)
        return loss_sum

    @torch.no_grad()
    def _measure(self, batch: Batch) -> tuple[float, torch.Tensor, Batch]:
        batch = batch.to(self._network.device)
        with self._precision():
            logits, _ = self._network.run(batch.tokens)
        return float(batch_loss(logits, batch)), logits, batch

    def _precision(self) -> torch.autocast:
        is_lower = self.recipe.precision == "bfloat16"
        return torch.autocast(self._network.device.type, torch.bfloat16, enabled=is_lower)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(self.progress.step + 1, what, latest_checkpoint(self.folder))

    def _restore(self, checkpoint: Checkpoint) -> None:
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        if {name: tensor.shape for name, tensor in checkpoint.weights.items()} != shapes:
            raise CheckpointError(f"checkpoint {checkpoint.path} holds another network; start a new run elsewhere")
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(checkpoint.weights[name])
        try:
            self._optimizer.load_state_dict(checkpoint.optimizer)
        except (ValueError, KeyError) as exc:
            raise CheckpointError(f"checkpoint {checkpoint.path} does not fit its optimizer ({exc})") from exc
        self._generator.set_state(checkpoint.generators["task"])
        torch.set_rng_state(checkpoint.generators["torch"])
        if "cuda" in checkpoint.generators and torch.cuda.is_available():
            torch.cuda.set_rng_state(checkpoint.generators["cuda"], self._network.device)
        self.progress = checkpoint.progress


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


@contextmanager
def _catch_interrupt(trainer: Trainer) -> Iterator[None]:
    """Let the first Ctrl-C end the run after its step, and the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        trainer.stop()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

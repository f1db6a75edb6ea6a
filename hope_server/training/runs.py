"""One run from recipe to exported model: builds what the recipe names, trains it, and writes plot and model folder."""

from __future__ import annotations

from pathlib import Path

import torch

from hope_server.errors import SettingsError
from hope_server.model.outer import InnerOptions
from hope_server.model.params import random_params
from hope_server.training.batch import Task
from hope_server.training.checkpoints import latest_checkpoint
from hope_server.training.export import export_model
from hope_server.training.logs import METRICS_FILE, PLOT_FILE, plot_losses, read_metrics
from hope_server.training.loop import Trainer, Watcher
from hope_server.training.network import HopeNetwork
from hope_server.training.recipe import InnerSpec, Recipe
from hope_server.training.tasks import build_tokenizer, make_task

__all__ = ["MODEL_FOLDER", "Run", "run_folder"]

MODEL_FOLDER = "model"


class Run:
    """A recipe with a seed, on a device, in a folder of its own."""

    def __init__(self, recipe: Recipe, seed: int, folder: Path, cache_dir: Path, device: torch.device) -> None:
        """Build tokenizer, task and network.

        Raises SettingsError when the recipe cannot be, StartupError when its data cannot be had.
        """
        self.recipe, self.seed, self.folder = recipe, seed, folder
        self._tokenizer = None if recipe.tokenizer is None else build_tokenizer(recipe.tokenizer, cache_dir)
        self.task: Task = make_task(recipe.data, self._tokenizer, cache_dir, f"{recipe.where}: data")
        config = recipe.config(self.task.vocab_size)
        self.network = HopeNetwork(config, random_params(config, seed), inner_options(recipe.inner), device)

    @property
    def num_params(self) -> int:
        """Number of slow weights."""
        return sum(tensor.numel() for tensor in self.network.tensors().values())

    def train(self, watcher: Watcher, *, is_resumed: bool) -> None:
        """Train to the end and draw the plot.

        Raises SettingsError when the folder holds a run already that is not resumed, or has nothing to resume; and what
        `Trainer.run` raises.
        """
        there = latest_checkpoint(self.folder)
        if there is not None and not is_resumed:
            raise SettingsError(f"{there} is there already; go on with --resume, or choose another --out")
        trainer = Trainer(self.recipe, self.seed, self.network, self.task, self.folder, watcher)
        if is_resumed:
            trainer.resume()
        try:
            trainer.run()
        finally:
            title = f"{self.recipe.name}, seed {self.seed}"
            plot_losses(read_metrics(self.folder / METRICS_FILE), title, self.folder / PLOT_FILE)

    def export(self, target: Path | None = None, dtype: torch.dtype = torch.float16) -> Path | None:
        """Write the model as a folder that can be served and return it; None for a task that reads no text."""
        if self._tokenizer is None:
            return None
        return export_model(
            self.network.config, self.network.tensors(), self._tokenizer, target or self.folder / MODEL_FOLDER, dtype
        )


def run_folder(out: Path, recipe: Recipe, seed: int) -> Path:
    """Return the folder of a run."""
    return out / recipe.name / f"seed-{seed}"


def inner_options(spec: InnerSpec) -> InnerOptions:
    """Return how the network differentiates its inner writes."""
    return InnerOptions(spec.truncate_chunks, spec.checkpoint, spec.online_levels, spec.first_order)

"""The outer loop on a tiny network: it learns, repeats itself, resumes bit for bit, and stops where it must."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_network import CopyTask, SilentWatcher, TinyNetwork

from hope_server.errors import CheckpointError, SettingsError
from hope_server.training.checkpoints import latest_checkpoint
from hope_server.training.errors import TrainingDiverged
from hope_server.training.logs import read_metrics
from hope_server.training.loop import Trainer
from hope_server.training.recipe import InnerSpec, Recipe, Stage, parse_recipe

RECIPE = """
name: tiny
model: {family: hope, hidden_size: 8, num_layers: 1, num_heads: 1, chunk_size: 2, window: 4}
data: [{task: pairs}]
optimizer: {lr: 2e-2, warmup: 2, weight_decay: 0.0}
steps: 10
rows: 4
length: 8
eval_every: 5
checkpoint_every: 5
"""


def make_recipe(**changes: object) -> Recipe:
    """Return the toy recipe with changes."""
    return replace(parse_recipe(RECIPE, "recipe tiny"), **changes)


def make_trainer(
    folder: Path, recipe: Recipe, seed: int = 0, task: CopyTask | None = None
) -> tuple[Trainer, TinyNetwork]:
    """Return a trainer on a fresh network, with the network."""
    network = TinyNetwork(7, seed=seed)
    return Trainer(recipe, seed, network, task or CopyTask(), folder, SilentWatcher()), network


def weights_of(network: TinyNetwork) -> dict[str, torch.Tensor]:
    """Return copies of the network's weights."""
    return {name: tensor.detach().clone() for name, tensor in network.tensors().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Check that two sets of weights are equal to the last bit."""
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_the_loss_falls(tmp_path: Path) -> None:
    """A task that the network can do is learned, and measured on rows of its own."""
    recipe = make_recipe(steps=100, eval_every=50, checkpoint_every=0)
    trainer, _ = make_trainer(tmp_path, recipe)
    watcher = trainer._watcher
    trainer.run()
    assert sum(watcher.losses[-10:]) < 0.7 * sum(watcher.losses[:10])
    assert [set(each) for each in watcher.evaluations] == [
        {"eval loss", "eval token accuracy", "eval row accuracy"}
    ] * 2
    assert watcher.evaluations[1]["eval loss"] < watcher.evaluations[0]["eval loss"]
    assert [path.name for path in watcher.paths] == ["step-00000100"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "m3", "delta_momentum"])
def test_ten_steps_are_five_and_resume_and_five(tmp_path: Path, optimizer: str) -> None:
    """A resumed run has the same weights as one that never stopped, to the last bit, whatever the optimizer."""
    recipe = make_recipe()
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, name=optimizer))
    whole, expected = make_trainer(tmp_path / "whole", recipe)
    whole.run()
    first, _ = make_trainer(tmp_path / "parts", recipe)
    first._watcher.on_step = lambda step: first.stop() if step == 5 else None
    with pytest.raises(KeyboardInterrupt):
        first.run()
    torch.manual_seed(99)
    second, found = make_trainer(tmp_path / "parts", recipe)
    assert second.resume().name == "step-00000005"
    second.run()
    assert_same(weights_of(found), weights_of(expected))
    assert [line["loss"] for line in read_metrics(tmp_path / "parts" / "metrics.jsonl") if "loss" in line] == [
        line["loss"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in line
    ]


def test_a_seed_repeats_a_run_and_another_does_not(tmp_path: Path) -> None:
    """The same seed gives the same weights; another gives others."""
    found = []
    for number, seed in enumerate((3, 3, 4)):
        trainer, network = make_trainer(tmp_path / str(number), make_recipe(), seed)
        trainer.run()
        found.append(weights_of(network))
    assert_same(found[0], found[1])
    assert not torch.equal(found[0]["embed"], found[2]["embed"])


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    """Rows in parts make the same step as all at once, up to rounding."""
    found = []
    for parts in (1, 4):
        trainer, network = make_trainer(tmp_path / str(parts), make_recipe(steps=3, accumulate=parts))
        trainer.run()
        found.append(weights_of(network))
    for name in found[0]:
        # Sums of float32 in another order.
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)


def test_segments_carry_the_state_but_no_gradient(tmp_path: Path) -> None:
    """A row in segments has the same first loss as a whole one, and another gradient."""
    found = []
    # The first step of Adam shows no more of a gradient than its sign.
    plain = replace(make_recipe().optimizer, name="sgd")
    for segment in (None, 4):
        recipe = make_recipe(steps=1, optimizer=plain, inner=InnerSpec(segment=segment))
        trainer, network = make_trainer(tmp_path / str(segment), recipe)
        trainer.run()
        found.append((trainer._watcher.losses[0], weights_of(network)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert not torch.equal(found[0][1]["decay"], found[1][1]["decay"])


def test_a_curriculum_sets_rows_and_length_of_each_step(tmp_path: Path) -> None:
    """Stages end where they say, then the recipe's own length holds."""
    recipe = make_recipe(steps=5, curriculum=(Stage(2, 4, 8), Stage(4, 6)))
    trainer, _ = make_trainer(tmp_path, recipe)
    trainer.run()
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert [line["length"] for line in lines] == [4, 4, 6, 6, 8]
    assert [line["tokens"] for line in lines] == [32, 64, 88, 112, 144]


def test_bfloat16_trains_float32_weights(tmp_path: Path) -> None:
    """The forward pass is rounded, the weights are not."""
    found = []
    for precision in ("float32", "bfloat16"):
        trainer, network = make_trainer(tmp_path / precision, make_recipe(steps=5, precision=precision))
        trainer.run()
        found.append(weights_of(network)["embed"])
    assert found[1].dtype == torch.float32
    assert not torch.equal(found[0], found[1])
    # bfloat16 keeps 8 bits.
    torch.testing.assert_close(found[0], found[1], rtol=0.1, atol=0.1)


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(tmp_path: Path) -> None:
    """The step is named, the weights are those before it, and the last good checkpoint is kept."""
    recipe = make_recipe(eval_every=0)
    trainer, network = make_trainer(tmp_path, recipe, task=CopyTask(broken_at=4 * 7))
    with pytest.raises(TrainingDiverged) as caught:
        trainer.run()
    assert (caught.value.step, caught.value.what, caught.value.code) == (8, "loss", "training_diverged")
    assert caught.value.checkpoint == tmp_path / "step-00000005"
    assert "step 8" in caught.value.message and "step-00000005" in caught.value.message
    assert all(bool(torch.isfinite(tensor).all()) for tensor in network.tensors().values())
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000005"


def test_divergence_before_any_checkpoint_says_so(tmp_path: Path) -> None:
    """Where nothing was saved, the message does not name a checkpoint."""
    trainer, _ = make_trainer(tmp_path, make_recipe(), task=CopyTask(broken_at=0))
    with pytest.raises(TrainingDiverged, match="no checkpoint had been written yet") as caught:
        trainer.run()
    assert (caught.value.step, caught.value.checkpoint) == (1, None)


def test_ctrl_c_saves_and_ends_the_run(tmp_path: Path) -> None:
    """The step that runs is finished and kept, and the handler from before is back."""
    trainer, _ = make_trainer(tmp_path, make_recipe())
    trainer._watcher.on_step = lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None
    before = signal.getsignal(signal.SIGINT)
    # A background job may start with Ctrl-C ignored; the loop must not depend on it.
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000003"
    assert signal.getsignal(signal.SIGINT) is before


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    """As many as the recipe says, and nothing half-written."""
    trainer, _ = make_trainer(tmp_path, make_recipe(checkpoint_every=2, keep_checkpoints=3))
    trainer.run()
    assert sorted(path.name for path in tmp_path.glob("*step*")) == [f"step-{step:08d}" for step in (6, 8, 10)]


def test_resume_from_another_recipe_names_the_keys_that_differ(tmp_path: Path) -> None:
    """What decides the computation must be the same; what only says how often may change."""
    trainer, _ = make_trainer(tmp_path, make_recipe())
    trainer.run()
    recipe = make_recipe(rows=8)
    other = replace(recipe, optimizer=replace(recipe.optimizer, lr=0.5))
    with pytest.raises(SettingsError, match=r"another recipe: optimizer\.lr, rows differ"):
        make_trainer(tmp_path, other)[0].resume()
    assert make_trainer(tmp_path, make_recipe(eval_every=1))[0].resume() == tmp_path / "step-00000010"


def test_resume_of_another_seed_or_of_nothing_is_refused(tmp_path: Path) -> None:
    """The message says what to do."""
    with pytest.raises(SettingsError, match="no checkpoint to resume from"):
        make_trainer(tmp_path, make_recipe())[0].resume()
    make_trainer(tmp_path, make_recipe())[0].run()
    with pytest.raises(SettingsError, match="give --seed 0"):
        make_trainer(tmp_path, make_recipe(), seed=1)[0].resume()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "random.safetensors", "run.json"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    """A file that was cut off is noticed, whichever it is."""
    make_trainer(tmp_path, make_recipe())[0].run()
    path = tmp_path / "step-00000010" / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="damaged"):
        make_trainer(tmp_path, make_recipe())[0].resume()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A file where the folder should be is no traceback."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        make_trainer(tmp_path / "file", make_recipe())[0].run()

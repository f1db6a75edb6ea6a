"""The real network in the outer loop: every family trains, resumes bit for bit, and reads in segments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_network import SilentWatcher

from hope_server.model.config import LevelSpec
from hope_server.model.outer import InnerOptions
from hope_server.training.losses import batch_loss
from hope_server.training.network import HopeNetwork
from hope_server.training.recipe import InnerSpec, Recipe, parse_recipe
from hope_server.training.runs import Run, inner_options

RECIPE = """
name: toy
model: {family: FAMILY, hidden_size: 16, num_layers: 2, num_heads: 2, intermediate_size: 32, chunk_size: 4, window: 16}
data: [{task: pairs, arguments: {num_pairs: 2, num_tokens: 16}}]
optimizer: {lr: 1.0e-2, warmup: 1}
steps: 4
rows: 4
length: 16
eval_every: 0
checkpoint_every: 2
"""
CPU = torch.device("cpu")


def make_run(folder: Path, family: str = "hope", **changes: object) -> Run:
    """Return a run of a toy."""
    recipe: Recipe = replace(parse_recipe(RECIPE.replace("FAMILY", family), "recipe toy"), **changes)
    return Run(recipe, 0, folder, folder, CPU)


def weights(run: Run) -> dict[str, torch.Tensor]:
    """Return copies of a run's slow weights."""
    return {name: tensor.detach().clone() for name, tensor in run.network.tensors().items()}


@pytest.mark.parametrize("family", ["hope", "hope-attention", "transformer", "titans", "delta"])
def test_every_family_trains(tmp_path: Path, family: str) -> None:
    """All slow weights have a gradient from the first batch on, and a few steps change every one."""
    run = make_run(tmp_path, family)
    before = weights(run)
    watcher = SilentWatcher()
    run.train(watcher, is_resumed=False)
    assert len(watcher.losses) == 4
    assert [name for name, tensor in weights(run).items() if torch.equal(tensor, before[name])] == []


def test_a_real_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Four steps are two, a resume in a fresh process's stead, and two."""
    whole = make_run(tmp_path / "whole")
    whole.train(SilentWatcher(), is_resumed=False)
    (tmp_path / "parts").mkdir()
    (tmp_path / "whole" / "step-00000002").rename(tmp_path / "parts" / "step-00000002")
    parts = make_run(tmp_path / "parts")
    parts.train(SilentWatcher(), is_resumed=True)
    expected = weights(whole)
    assert [name for name, tensor in weights(parts).items() if not torch.equal(tensor, expected[name])] == []


def test_initial_memories_are_trained_through_the_writes(tmp_path: Path) -> None:
    """A loss on the last token alone reaches the learned starts of the memories."""
    network = make_run(tmp_path).network
    tokens = torch.randint(16, (2, 12), generator=torch.Generator().manual_seed(0))
    logits, _ = network.run(tokens)
    logits[:, -1].logsumexp(-1).sum().backward()
    initial = {name: tensor for name, tensor in network.tensors().items() if "initial" in name}
    assert initial
    assert [name for name, tensor in initial.items() if tensor.grad is None or not bool(tensor.grad.any())] == []


def test_a_row_in_segments_has_the_logits_of_a_whole_row(tmp_path: Path) -> None:
    """The state carries everything on, at any split; cut, it carries no gradient."""
    network = make_run(tmp_path).network
    tokens = torch.randint(16, (2, 13), generator=torch.Generator().manual_seed(0))
    whole, _ = network.run(tokens)
    first, state = network.run(tokens[:, :6])
    second, _ = network.run(tokens[:, 6:], network.detached(state))
    # Sums of float32 in another order.
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"inner": InnerSpec(checkpoint=True)},
        {"inner": InnerSpec(segment=8)},
        {"inner": InnerSpec(truncate_chunks=1)},
        {"accumulate": 2},
    ],
    ids=str,
)
def test_options_change_how_and_not_what(tmp_path: Path, changes: dict[str, object]) -> None:
    """The first loss is that of a plain run, whatever the way to its gradient."""
    plain, other = SilentWatcher(), SilentWatcher()
    make_run(tmp_path / "plain", steps=1).train(plain, is_resumed=False)
    make_run(tmp_path / "other", steps=1, **changes).train(other, is_resumed=False)
    # bfloat16 keeps 8 bits; the others differ by the order of sums.
    assert other.losses[0] == pytest.approx(plain.losses[0], rel=2e-2 if "precision" in changes else 1e-4)


def test_checkpointed_activations_give_the_same_gradient(tmp_path: Path) -> None:
    """Computing again instead of keeping changes nothing."""
    run = make_run(tmp_path)
    batch = run.task.sample(2, 16, torch.Generator().manual_seed(0))
    found = []
    for inner in (InnerOptions(), InnerOptions(checkpoint=True)):
        network = HopeNetwork(run.network.config, run.network.params, inner, CPU)
        logits, _ = network.run(batch.tokens)
        batch_loss(logits, batch).backward()
        found.append({name: tensor.grad for name, tensor in network.tensors().items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize("is_first_order", [False, True])
def test_the_starts_of_online_levels_are_trained(tmp_path: Path, is_first_order: bool) -> None:
    """A level that is written while rows are read has a gradient in its initial weights, through its writes or not."""
    level = LevelSpec("fast", (1,), rank=2, schedule="online", update_period=4, rule="sgd", lr=0.1)
    model = replace(parse_recipe(RECIPE.replace("FAMILY", "hope"), "x").model, levels=(level,))
    run = make_run(tmp_path, model=model, inner=InnerSpec(first_order=is_first_order))
    before = weights(run)
    run.train(SilentWatcher(), is_resumed=False)
    assert "levels.fast" in before
    assert not torch.equal(weights(run)["levels.fast"], before["levels.fast"])


def test_the_options_of_a_recipe_reach_the_network() -> None:
    """None is lost on the way, and levels are written unless the recipe says otherwise."""
    assert inner_options(InnerSpec()) == InnerOptions(online_levels=True)
    assert inner_options(InnerSpec(3, False, True, True, 64)) == InnerOptions(3, True, False, True)


@pytest.mark.filterwarnings("ignore")  # what torch.compile warns of is its own
def test_compiled_chunks_with_levels_that_are_differentiated_are_refused(tmp_path: Path) -> None:
    """The reason is said at once instead of torch's in the middle of the first step; first-order writes are fine."""
    run = make_run(tmp_path)
    level = LevelSpec("fast", (0,), kind="residual", rank=2, schedule="online", update_period=4, rule="sgd")
    config, params = replace(run.network.config, levels=(level,)), run.network.params
    with pytest.raises(ValueError, match="no second derivative"):
        HopeNetwork(config, params, InnerOptions(online_levels=True), is_compiled=True)
    for inner in (InnerOptions(), InnerOptions(online_levels=True, first_order=True)):
        assert HopeNetwork(config, params, inner, is_compiled=True).config == config

"""The families: equal sizes, and each what its name says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hope_server.evaluation.families import (
    ABLATIONS,
    FAMILIES,
    INNER,
    ablation_config,
    build,
    family_config,
    num_params,
    state_bytes,
)
from hope_server.evaluation.fit import FitSpec, NetworkSpec, fit
from hope_server.evaluation.recall import PairsTask

SPEC = NetworkSpec(
    hidden_size=32, level_periods=(16,), num_layers=2, num_heads=2, mlp_size=64, chunk_size=8, max_length=64
)
VOCABULARY = 40


def test_all_families_have_the_same_number_of_parameters():
    """Sizes differ by less than three percent, one unit of the MLP's width."""
    sizes = {family: num_params(family_config(family, SPEC, VOCABULARY)) for family in FAMILIES}
    assert max(sizes.values()) < 1.03 * min(sizes.values())


@pytest.mark.parametrize("family", ["titans", "delta"])
def test_heads_are_chosen_so_that_states_are_equal(family: str):
    """Within what one step of the head's size changes, which they are not otherwise; parameters stay equal too."""
    spec = replace(SPEC, level_periods=(16,), hidden_size=64)
    hope, other = family_config("hope", spec, VOCABULARY), family_config(family, spec, VOCABULARY, is_state_equal=True)
    assert abs(state_bytes(other) / state_bytes(hope) - 1) < 0.2
    assert abs(num_params(other) / num_params(hope) - 1) < 0.1
    assert abs(state_bytes(family_config(family, spec, VOCABULARY)) / state_bytes(hope) - 1) > 0.2


def test_the_sliding_window_has_as_many_state_bytes_as_hope():
    """It comes as near to hope's state as whole tokens allow, and stays below it; full attention is not bounded."""
    spec = replace(SPEC, max_length=10_000)
    hope, swa = (family_config(family, spec, VOCABULARY) for family in ("hope", "swa"))
    a_token = 2 * 4 * spec.hidden_size * spec.num_layers
    assert state_bytes(hope) - a_token < state_bytes(swa) <= state_bytes(hope)
    assert 1 < swa.window.size < spec.max_length
    assert family_config("transformer", spec, VOCABULARY).window.size == spec.max_length


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_and_learns(family):
    """Two steps of training change the weights, and rows may be longer than a chunk and a window."""
    network = build(family, SPEC, VOCABULARY, 0)
    before = {name: tensor.detach().clone() for name, tensor in network.tensors().items()}
    fitted = fit(network, PairsTask(4, VOCABULARY), (40,), FitSpec(steps=2, batch_size=2), 0)
    assert fitted.steps == 2
    assert not fitted.is_diverged
    changed = [name for name, tensor in network.tensors().items() if not torch.equal(tensor, before[name])]
    assert len(changed) > len(before) / 2


def test_the_same_seed_draws_the_same_network():
    """Weights are decided by family and seed."""
    first, again, other = (build("hope", SPEC, VOCABULARY, seed).tensors()["embed"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_delta_rule_is_the_same_at_any_chunk_size():
    """Its chunks are a matter of speed alone: with chunks of 1 and of 16 tokens the outputs are equal."""
    tokens = torch.randint(VOCABULARY, (2, 37), generator=torch.Generator().manual_seed(0))
    config = family_config("delta", SPEC, VOCABULARY)
    network = build("delta", SPEC, VOCABULARY, 0)
    outputs = [network.run(tokens)[0]]
    single = type(network)(replace(config, chunk_size=1), network.params, INNER)
    outputs.append(single.run(tokens)[0])
    assert config.chunk_size == 16
    # float32: sums are taken in another order.
    assert torch.allclose(*outputs, atol=1e-4)


def test_each_ablation_lacks_its_part_alone():
    """Full has everything; every other column differs from it in the one thing that it is named after."""
    configs = {name: ablation_config(name, SPEC, VOCABULARY) for name in ABLATIONS}
    full = configs["full"]
    assert full.titans.has_momentum
    assert set(full.titans.adaptive) == {"k", "v", "q", "lr", "retention"}
    assert configs["-DGD"] == replace(full, titans=replace(full.titans, dgd_scope="none"))
    assert configs["-momentum"] == replace(full, titans=replace(full.titans, has_momentum=False))
    assert configs["-CMS"] == replace(full, levels=())
    assert len(full.levels) == 1
    for letter in "kvq":
        kept = tuple(name for name in full.titans.adaptive if name != letter)
        assert configs[f"-inner {letter}"] == replace(full, titans=replace(full.titans, adaptive=kept))
    decay = configs["-weight decay"].titans
    assert not decay.has_retention
    assert "retention" not in decay.adaptive


def test_an_unknown_family_is_refused():
    """The message lists the valid ones."""
    with pytest.raises(ValueError, match="no family 'rnn'; valid are hope, titans, delta, transformer, swa"):
        build("rnn", SPEC, VOCABULARY, 0)


def test_levels_are_written_also_where_nothing_is_trained():
    """Measuring writes the levels as training does: the outputs are the same with and without gradients."""
    tokens = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    network = build("hope", SPEC, VOCABULARY, 0)
    trained, _ = network.run(tokens)
    with torch.no_grad():
        measured, state = network.run(tokens)
    # float32: gradients of chunks are summed in another order.
    assert torch.allclose(trained, measured, atol=1e-5)
    assert not measured.requires_grad
    without = type(network)(replace(network.config, levels=()), network.params, INNER)
    assert torch.allclose(without.run(tokens)[0][:, :16], trained[:, :16], atol=1e-5)
    assert not torch.allclose(without.run(tokens)[0][:, 16:], trained[:, 16:], atol=1e-5)
    assert all(not trace.weights.requires_grad for trace in state.levels.values())

"""Cutting a layer by heads: ranks' outputs add up to the whole layer's, and states survive any change of ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hope_vllm.shards import cut_state, cut_weight, heads_of_rank, join_states, spec_of_rank

from hope_server.model.config import TitansSpec
from hope_server.model.titans import TitansLayer
from hope_server.model.titans_params import TitansParams, random_titans

WIDTH, CHUNK, EPS = 12, 4, 1e-5
SPEC = TitansSpec((0,), num_heads=4, head_dim=3, beside_attention=True, hidden_size=5)
KINDS: list[dict[str, Any]] = [
    {},
    {"memory": "mlp", "has_momentum": True, "max_lr": 0.3},
    {"has_momentum": True, "num_sums": 3, "adaptive": ("k", "lr")},
    {"conv_size": 1, "has_retention": False, "adaptive": ()},
]


def case(changes: dict[str, Any]) -> tuple[TitansSpec, TitansParams]:
    """A spec and its slow weights, the branch half open."""
    spec = replace(SPEC, **changes)
    params = random_titans(spec, WIDTH, torch.Generator().manual_seed(0))
    return spec, replace(params, rates=10 * params.rates, branch=torch.full((1,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_ranks_add_up_to_the_layer(changes: dict[str, Any], num_ranks: int) -> None:
    """Each rank's layer over its part of the weights; their outputs added and states joined are those of one layer."""
    spec, params = case(changes)
    x = torch.randn(1, 11, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layer = TitansLayer(spec, CHUNK, EPS)
    expected, whole = layer.run(params, x, layer.empty_state(params.initial, 1), 0)
    outputs, parts = [], []
    for rank in range(num_ranks):
        own = TitansLayer(spec_of_rank(spec, rank, num_ranks), CHUNK, EPS)
        weights = params.replaced(
            {name: cut_weight(name, tensor, spec, rank, num_ranks) for name, tensor in params.named().items()}
        )
        found, state = own.run(weights, x, own.empty_state(weights.initial, 1), 0)
        outputs.append(found)
        parts.append({name: tensor[0] for name, tensor in state.tensors().items()})

    # Float64; the last projection adds its heads in another order.
    torch.testing.assert_close(sum(outputs), expected, rtol=1e-12, atol=1e-12)
    joined = join_states(parts, spec)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(joined[name], tensor[0], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_state_cut_and_joined_is_itself(changes: dict[str, Any]) -> None:
    """Four ranks' parts of a state, joined, are that state bit for bit; and so are two ranks' parts of those."""
    spec, params = case(changes)
    row = TitansLayer(spec, CHUNK, EPS).empty_state(params.initial, 1)
    state = {name: torch.randn(tensor.shape[1:]) for name, tensor in row.tensors().items()}
    for num_ranks in (4, 2, 1):
        joined = join_states([cut_state(state, spec, rank, num_ranks) for rank in range(num_ranks)], spec)
        assert joined.keys() == state.keys()
        assert all(torch.equal(joined[name], tensor) for name, tensor in state.items())


def test_heads_that_sum_stay_the_first() -> None:
    """Of three heads that are sums, two ranks have two and one."""
    spec = replace(SPEC, num_sums=3, has_momentum=True)

    assert [spec_of_rank(spec, rank, 2).num_sums for rank in range(2)] == [2, 1]


def test_heads_that_cannot_be_shared_are_refused() -> None:
    """Four heads for three ranks."""
    with pytest.raises(ValueError, match="4 memory heads cannot be shared by 3"):
        heads_of_rank(SPEC, 0, 3)

"""A decoding step by compiled operators is the step that torch computes, and is taken wherever it can be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hope_kernels import native
from toys import CONFIG, FAMILIES, family_params, make_params, rows_with_a_past

from hope_server.model import hope
from hope_server.model.decoding import can_decode_fused
from hope_server.model.hope import HopeModel
from hope_server.model.state import empty_state

has_operators = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: there are no compiled operators")

LENGTHS = (3, 97, 41, 1)
"""Tokens that rows have read: one of them sees the sinks from far, one's ring has gone round."""
STEPS = 20


def _said(model: HopeModel, params, cuts: list[tuple[int, int]]) -> torch.Tensor:
    state = rows_with_a_past(model, params, LENGTHS)
    rows = [row for low, high in cuts for row in range(low, high)]
    tokens = torch.randint(0, 256, (STEPS, len(rows)), generator=torch.Generator().manual_seed(2))
    active = torch.ones(len(rows), dtype=torch.bool)
    states = [state.rows(low, high) for low, high in cuts]
    return torch.stack([model.decode_stretches(params, states, some, active) for some in tokens])


@has_operators
@pytest.mark.parametrize("cuts", [[(0, 4)], [(2, 3)], [(0, 1), (2, 4)], [(3, 4), (1, 2), (0, 1)]])
def test_the_operators_compute_what_torch_computes(
    monkeypatch: pytest.MonkeyPatch, cuts: list[tuple[int, int]]
) -> None:
    """Beside float64, through a window that is left behind, rows that lie apart, levels written and not."""
    params = make_params(torch.float32)
    exact = _said(HopeModel(CONFIG, torch.float64), make_params(), cuts)
    calls = []
    monkeypatch.setattr(HopeModel, "_decode_fused", _counted(HopeModel._decode_fused, calls))
    fused = _said(HopeModel(CONFIG, torch.float32), params, cuts)
    assert len(calls) == STEPS
    monkeypatch.setattr(hope, "can_decode_fused", lambda *_: False)
    plain = _said(HopeModel(CONFIG, torch.float32), params, cuts)
    assert len(calls) == STEPS
    # No further from the truth than torch's own float32 is.
    assert (fused - exact).norm() < 2 * (plain - exact).norm() < 1e-4 * exact.norm()


def _counted(function, calls: list[int]):
    def counting(*given):
        calls.append(1)
        return function(*given)

    return counting


@has_operators
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_taken_by_models_that_attend_and_by_no_others(name: str) -> None:
    """float32 without gradients, every row active, attention in every block and no Titans layers."""
    config = replace(FAMILIES[name], levels=())
    params = family_params(config, torch.float32)
    state = empty_state(HopeModel(config, torch.float32, params).memory, 2, torch.float32)
    is_plain = config.titans is None and len(config.attention_blocks) == config.model.num_layers
    assert can_decode_fused(config, params, [state], torch.tensor([True, True])) == is_plain
    assert not can_decode_fused(config, params, [state], torch.tensor([True, False]))
    double = empty_state(HopeModel(config, torch.float64, params).memory, 2, torch.float64)
    assert not can_decode_fused(config, params, [double], torch.tensor([True, True]))

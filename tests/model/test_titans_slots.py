"""Decoding rows that lie in slots of a pool, as engines do that keep sessions' states in pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from titans_cases import EPS, SPEC, WIDTH, drawn

from hope_server.model.titans import TitansLayer
from hope_server.model.titans_params import TitansParams
from hope_server.model.titans_state import TitansState

CHUNK, SLOTS = 4, 6


def case(
    memory: Literal["matrix", "mlp"], reads: Literal["chunk_start", "current"], dtype: torch.dtype
) -> tuple[TitansLayer, TitansParams]:
    """A layer and its slow weights; compiled operators serve float32 where there is a compiler."""
    spec = replace(SPEC, memory=memory, reads=reads, has_momentum=True, max_lr=0.3)
    params = drawn(spec)
    return TitansLayer(spec, CHUNK, EPS), params.replaced({name: t.to(dtype) for name, t in params.named().items()})


def poisoned_pool(layer: TitansLayer, params: TitansParams, used: list[int]) -> TitansState:
    """A pool of which only some slots hold states; what a call reads of the others shows as NaN."""
    pool = layer.empty_state(params.initial, SLOTS).clone()
    unused = [slot for slot in range(SLOTS) if slot not in used]
    for tensor in pool.tensors().values():
        tensor[unused] = float("nan")
    return pool


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["composed", "fused"])
@pytest.mark.parametrize("reads", ["chunk_start", "current"])
@pytest.mark.parametrize("memory", ["matrix", "mlp"])
def test_rows_in_slots_are_the_same_rows_alone(
    memory: Literal["matrix", "mlp"], reads: Literal["chunk_start", "current"], dtype: torch.dtype
) -> None:
    """Rows in any slots, at different places of their chunks, give and keep what each does when it is read alone."""
    layer, params = case(memory, reads, dtype)
    slots, starts, tokens = [4, 1, 2], [0, 3, 1], 11
    x = torch.randn(3, 3 + tokens, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    pool = poisoned_pool(layer, params, slots)
    expected = []
    for row, (slot, start) in enumerate(zip(slots, starts, strict=True)):
        alone = layer.empty_state(params.initial, 1)
        if start:
            _, alone = layer.run(params, x[row : row + 1, :start], alone, 0)
            pool.at(slice(slot, slot + 1)).copy_(alone)
        expected.append(layer.run(params, x[row : row + 1, start : start + tokens], alone, start % CHUNK))

    found = []
    for t in range(tokens):
        inputs = torch.stack([x[row, start + t] for row, start in enumerate(starts)])[:, None]
        pending = torch.tensor([(start + t) % CHUNK for start in starts])
        found.append(layer.step_slots(params, inputs, pool, torch.tensor(slots), pending))

    # Single precision adds up in another order where one row is computed at once.
    exact = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    outputs = torch.cat(found, dim=1)
    for row, (slot, start) in enumerate(zip(slots, starts, strict=True)):
        wanted, state = expected[row]
        torch.testing.assert_close(outputs[row : row + 1], wanted, **exact)
        for name, tensor in pool.at(slice(slot, slot + 1)).tensors().items():
            used = (start + tokens) % CHUNK if name in ("keys", "values", "rates") else None
            theirs = state.tensors()[name]
            ours, theirs = (tensor[:, :, :used], theirs[:, :, :used]) if used is not None else (tensor, theirs)
            torch.testing.assert_close(ours, theirs, **exact, msg=lambda text, n=name: f"{n}: {text}")
    for slot in set(range(SLOTS)) - set(slots):
        assert all(bool(tensor[slot].isnan().all()) for tensor in pool.tensors().values())


def test_one_row_in_a_slot_is_the_row_in_a_batch() -> None:
    """A single row, which is read where it lies, gives the very numbers of the same row among others."""
    layer, params = case("matrix", "chunk_start", torch.float32)
    x = torch.randn(9, 2, 1, WIDTH, generator=torch.Generator().manual_seed(3))
    together, apart = (layer.empty_state(params.initial, SLOTS).clone() for _ in range(2))
    for t in range(9):
        pending = torch.tensor([t % CHUNK])
        both = layer.step_slots(params, x[t], together, torch.tensor([5, 0]), pending.expand(2))
        single = layer.step_slots(params, x[t, 1:], apart, torch.tensor([0]), pending)
        # A product of two rows is computed in another order than one of a single row.
        torch.testing.assert_close(single[0], both[1], rtol=1e-5, atol=1e-6)

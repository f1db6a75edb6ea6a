"""Faults that other implementations of this layer have, absent in ours: `make bench-layers` measures theirs.

Shapes: B rows, T tokens, D model width.
"""

from __future__ import annotations

import pytest
import torch

from hope_server.model.config import TitansSpec
from hope_server.model.titans import TitansLayer
from hope_server.model.titans_params import TitansParams, random_titans
from hope_server.model.titans_state import TitansState

WIDTH, CHUNK_SIZE = 24, 8
# Memories feed on themselves, so a rounding of 1e-16 may grow; what a fault does is of size 1e-2.
SAME = {"rtol": 1e-9, "atol": 1e-9}

KINDS = {
    "paper": {},
    "mlp": {"memory": "mlp", "hidden_size": 6},
    "reads current": {"reads": "current"},
    "momentum": {"has_momentum": True},
    "everything": {"adaptive": ("k", "v", "q", "lr", "retention"), "reads": "current", "has_momentum": True},
    "delta rule": {"self_targets": False, "adaptive": (), "objective": "dot", "is_residual": False},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def layer(request: pytest.FixtureRequest) -> tuple[TitansLayer, TitansParams]:
    """A small layer of each kind, with fresh float64 weights."""
    spec = TitansSpec((0,), num_heads=3, head_dim=8, **request.param)
    params = random_titans(spec, WIDTH, torch.Generator().manual_seed(0))
    return TitansLayer(spec, CHUNK_SIZE, 1e-5), params


def inputs(num_rows: int, num_tokens: int) -> torch.Tensor:
    """Inputs of a layer [B, T, D]."""
    return torch.randn(num_rows, num_tokens, WIDTH, dtype=torch.float64)


def run(
    layer: tuple[TitansLayer, TitansParams], x: torch.Tensor, pieces: list[int]
) -> tuple[torch.Tensor, TitansState]:
    """What the layer makes of x, given in pieces of these sizes with the state carried on."""
    made, params = layer
    state, outputs, done = made.empty_state(params.initial, len(x)), [], 0
    for size in pieces:
        out, state = made.run(params, x[:, done : done + size], state, done % CHUNK_SIZE)
        outputs.append(out)
        done += size
    assert done == x.shape[1]
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize(
    "pieces", [[16, 21], [13, 24], [1] * 37, [8, 1, 7, 2, 19]], ids=["at a chunk", "in a chunk", "tokens", "any"]
)
def test_a_text_may_come_in_pieces(layer: tuple[TitansLayer, TitansParams], pieces: list[int]) -> None:
    """A cut anywhere changes neither the outputs nor the memories: convolution, chunks and partial writes carry on.

    titans-pytorch ends with an error where a cut falls inside a chunk; nested-learning writes the unfinished chunk and
    starts its convolution anew.
    """
    x = inputs(2, 37)
    whole, whole_state = run(layer, x, [37])
    parts, state = run(layer, x, pieces)

    torch.testing.assert_close(parts, whole, **SAME)
    for name, tensor in state.tensors().items():
        if name.startswith(("memory.", "surprise.")):
            torch.testing.assert_close(tensor, whole_state.tensors()[name], **SAME)


def test_rows_of_a_batch_share_no_memory(layer: tuple[TitansLayer, TitansParams]) -> None:
    """What other rows are told changes no bit of a row's outputs and memories.

    nested-learning's update pass writes the mean of all rows' memories into the module.
    """
    x = inputs(3, 29)
    other = x.clone()
    other[[0, 2]] = inputs(2, 29)
    outputs, states = zip(*(run(layer, batch, [29]) for batch in (x, other)), strict=True)

    assert torch.equal(outputs[0][1], outputs[1][1])
    for name, tensor in states[0].tensors().items():
        assert torch.equal(tensor[1], states[1].tensors()[name][1])
    assert not torch.equal(outputs[0][0], outputs[1][0])


def test_a_row_of_nan_stays_alone(layer: tuple[TitansLayer, TitansParams]) -> None:
    """A row whose numbers are broken does not break the others, nor the guard's decision about them."""
    x = inputs(3, 29)
    other = x.clone()
    other[[0, 2]] = torch.nan
    clean, broken = run(layer, x, [29])[0], run(layer, other, [29])[0]

    assert torch.equal(clean[1], broken[1])


def test_rows_at_different_places_of_their_chunks_step_alone(layer: tuple[TitansLayer, TitansParams]) -> None:
    """Rows with 3, 7 and 0 pending tokens take one step together: each gets, and keeps, what it does alone."""
    made, params = layer
    lengths = (11, 7, 16)
    texts = [inputs(1, length + 1) for length in lengths]
    states = [run(layer, text[:, :-1], [length])[1] for text, length in zip(texts, lengths, strict=True)]
    names = states[0].tensors()
    together = states[0].with_tensors({name: torch.cat([state.tensors()[name] for state in states]) for name in names})
    pending = torch.tensor([length % CHUNK_SIZE for length in lengths])
    steps = torch.cat([text[:, -1:] for text in texts])
    out = made.step(params, steps, together, pending, torch.ones(3, dtype=torch.bool))

    for row, text in enumerate(texts):
        alone, state = run(layer, text, [text.shape[1]])
        torch.testing.assert_close(out[row, 0], alone[0, -1], **SAME)
        for name, tensor in state.tensors().items():
            if name.startswith(("memory.", "surprise.")):
                torch.testing.assert_close(together.tensors()[name][row], tensor[0], **SAME)

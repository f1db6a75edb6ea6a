"""What the model relies on in `dgd_memory`: tiles, deferred decode, rows that do not see each other, padding."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.dgd_memory import Gates, reference, write_chunk
from memory_cases import EXACT, Case, draw, draw_case, draw_keys


def written(case: Case, delta: float = 1.0) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The memory and its momentum after the case's chunk."""
    return write_chunk(case.weights, case.keys, case.residuals, case.gates, delta, case.surprise).final()


@pytest.mark.parametrize("sizes", [(16, 16, 16, 16), (1, 2, 5, 8, 48), (63, 1)])
@pytest.mark.parametrize("momentum", ["none", "some", "zeros"])
def test_a_chunk_may_be_written_in_tiles(sizes: tuple[int, ...], momentum: str) -> None:
    """Residuals stay those of the chunk's start while the memory moves from tile to tile: the same to rounding."""
    case = draw_case(64, momentum=momentum)
    weights, surprise, start = case.weights, case.surprise, 0
    for size in sizes:
        weights, surprise = written(case.piece(start, start + size, weights, surprise))
        start += size

    expected, expected_surprise = written(case)
    torch.testing.assert_close(weights, expected, **EXACT)
    if expected_surprise is not None:
        torch.testing.assert_close(surprise, expected_surprise, **EXACT)


# A head of a self-modifying layer: one tall memory that makes keys, values, rates and what is read (NL eq. 83-93).
SIZE = 6
HEIGHT = 3 * SIZE + 3


def made_by(memory: torch.Tensor, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Gates]:
    """Keys, values and rates that the memory gives for inputs [..., n, SIZE]."""
    found = inputs @ memory
    keys = torch.nn.functional.normalize(inputs + found[..., :SIZE], dim=-1)
    values = torch.nn.functional.normalize(inputs + found[..., SIZE : 2 * SIZE], dim=-1)
    rates = found[..., 3 * SIZE :].sigmoid()
    return keys, values, Gates(rates[..., 0], (0.9 + 0.1 * rates[..., 1]).log(), 0.5 * rates[..., 2])


def residuals_at(memory: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Gradient at the outputs: prediction minus the target that the memory itself makes of the values."""
    return (keys - values) @ memory


def read(memory: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """What the part of the memory that is read from holds for queries [..., n, SIZE]."""
    return queries @ memory[..., 2 * SIZE : 3 * SIZE]


def token_by_token(
    memory: torch.Tensor, inputs: torch.Tensor, queries: torch.Tensor, chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads at the chunk's start and the last state, every token written at once by the reference."""
    outputs, surprise, start = [], torch.zeros_like(memory), memory
    for t in range(inputs.shape[-2]):
        if t % chunk_size == 0:
            start = memory
        outputs.append(read(start, queries[..., t : t + 1, :]))
        keys, values, gates = made_by(start, inputs[..., t : t + 1, :])
        states, surprises = reference.write_tokens(
            memory, keys, residuals_at(start, keys, values), gates, 1.0, surprise
        )
        memory, surprise = states[-1], surprises[-1]
    return torch.cat(outputs, -2), memory


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 35])
def test_deferred_decode_equals_token_by_token(num_tokens: int) -> None:
    """Reads at the chunk's start and one write a chunk, the last one unfinished, give the recurrence's numbers."""
    chunk_size, lead = 8, (2, 3)
    memory = 0.3 * draw(*lead, SIZE, HEIGHT)
    inputs, queries = draw(*lead, num_tokens, SIZE), draw_keys(*lead, num_tokens, SIZE)
    expected, expected_memory = token_by_token(memory, inputs, queries, chunk_size)

    outputs, surprise, pending = [], torch.zeros_like(memory), []
    for t in range(num_tokens):
        outputs.append(read(memory, queries[..., t : t + 1, :]))
        pending.append(inputs[..., t : t + 1, :])
        if len(pending) == chunk_size or t == num_tokens - 1:
            keys, values, gates = made_by(memory, torch.cat(pending, -2))
            residuals = residuals_at(memory, keys, values)
            memory, surprise = write_chunk(memory, keys, residuals, gates, 1.0, surprise).final()
            pending = []

    torch.testing.assert_close(torch.cat(outputs, -2), expected, **EXACT)
    torch.testing.assert_close(memory, expected_memory, **EXACT)


def test_an_unfinished_chunk_can_be_written_in_parts() -> None:
    """A chunk whose first tokens were written early goes on from there, its residuals still those of its start."""
    memory, inputs = 0.3 * draw(SIZE, HEIGHT), draw(8, SIZE)
    keys, values, gates = made_by(memory, inputs)
    residuals = residuals_at(memory, keys, values)
    zeros = torch.zeros_like(memory)
    expected = write_chunk(memory, keys, residuals, gates, 1.0, zeros).final()

    early = write_chunk(memory, keys[:5], residuals[:5], gates.mapped(lambda rate: rate[:5]), 1.0, zeros).final()
    late = write_chunk(early[0], keys[5:], residuals[5:], gates.mapped(lambda rate: rate[5:]), 1.0, early[1]).final()
    torch.testing.assert_close(late, expected, **EXACT)


@pytest.mark.parametrize("momentum", ["none", "some"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_does_not_see_its_neighbours(momentum: str, dtype: torch.dtype) -> None:
    """Other numbers, huge numbers and NaN in every other row leave a row's results as they are, bit for bit."""
    case = draw_case(17, 16, 24, (3, 2), momentum).mapped(lambda tensor: tensor.to(dtype))
    queries = draw(3, 2, 17, 16).to(dtype)

    def run(poison: float | None) -> list[torch.Tensor]:
        is_own = torch.tensor([0, 1, 0], dtype=torch.bool)

        def poisoned(tensor: torch.Tensor) -> torch.Tensor:
            mask = is_own.reshape(-1, *(1,) * (tensor.dim() - 1))
            return tensor if poison is None else torch.where(mask, tensor, poison)

        mine = case.mapped(poisoned)
        write = write_chunk(mine.weights, mine.keys, mine.residuals, mine.gates, 1.0, mine.surprise)
        results = [write.read(queries), *(tensor for tensor in write.final() if tensor is not None)]
        return [tensor[1] for tensor in results]

    clean = run(None)
    for poison in (1e30, torch.nan):
        assert all(torch.equal(a, b) for a, b in zip(clean, run(poison), strict=True))
    assert all(bool(tensor.isfinite().all()) for tensor in clean)


def test_tokens_of_padding_change_nothing() -> None:
    """Tokens with lr 0 and log retention 0 leave the memory bit for bit, whatever their keys and residuals are."""
    case = draw_case(9, lr=0.0, retention=1.0)
    assert torch.equal(written(case)[0], case.weights)


def test_what_stands_in_padding_does_not_matter() -> None:
    """A chunk with padding behind it gives the same bits for any padding, and to rounding those of the short chunk."""
    case = draw_case(16)
    padded = torch.arange(16) >= 11
    gates = Gates(case.gates.lr.masked_fill(padded, 0), case.gates.log_retention.masked_fill(padded, 0))
    finals = []
    for _ in range(2):
        keys = torch.where(padded[:, None], draw(*case.keys.shape), case.keys)
        residuals = torch.where(padded[:, None], draw(*case.residuals.shape), case.residuals)
        finals.append(write_chunk(case.weights, keys, residuals, gates, 1.0).final()[0])

    assert torch.equal(*finals)
    torch.testing.assert_close(finals[0], written(case.piece(0, 11, case.weights, None))[0], **EXACT)


@pytest.mark.parametrize("momentum", ["none", "some"])
def test_inputs_may_have_any_strides(momentum: str) -> None:
    """Rates and keys that are views with other strides give the same as copies of them."""
    case = draw_case(12, momentum=momentum)
    strided = case.mapped(lambda tensor: tensor.mT.contiguous().mT)
    for ours, theirs in zip(written(strided), written(case), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_a_write_leaves_its_inputs_alone() -> None:
    """Nothing is written in place: a turn that fails after a write still has the memory from before."""
    case = draw_case(16, momentum="some")
    before = {name: tensor.clone() for name, tensor in case.leaves().items()}
    written(case)

    assert all(torch.equal(tensor, before[name]) for name, tensor in case.leaves().items())

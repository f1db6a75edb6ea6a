"""Segments side by side against the same segments masked in one row: values, gradients, and what stands alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from toys import CONFIG, make_params

from hope_server.model.config import WindowSpec
from hope_server.model.fold import Fold
from hope_server.model.hope import HopeModel
from hope_server.model.sight import Sight

HEADS, SHARED, SIZE = 4, 2, 6


def drawn(sizes: list[int]) -> list[torch.Tensor]:
    """Queries [1, T, H, d], keys and values [1, U, T, d] of segments of these sizes."""
    generator = torch.Generator().manual_seed(sum(sizes))
    shapes = ((1, sum(sizes), HEADS, SIZE), (1, SHARED, sum(sizes), SIZE), (1, SHARED, sum(sizes), SIZE))
    return [torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes]


def masked(sizes: list[int], sees_first: list[bool], parts: list[torch.Tensor]) -> torch.Tensor:
    """The same in one row: token by token what it sees, nothing shared with what is tested."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    mask = torch.full((sum(sizes), sum(sizes)), -torch.inf, dtype=torch.float64)
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        for token in range(start, start + size):
            mask[token, start : token + 1] = 0
            if number and sees_first[number]:
                mask[token, : sizes[0]] = 0
    query, keys, values = parts
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, attn_mask=mask[None, None], enable_gqa=True
    )
    return mixed.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("sizes", "sees_first"),
    [
        ([5], [True]),
        ([1, 1], [False, True]),
        ([3, 7, 1, 4], [True, True, False, True]),
        ([9, 2, 2], [False, False, False]),
        ([2, *[5] * 12], [True] * 13),
    ],
)
def test_equals_one_masked_row(sizes: list[int], sees_first: list[bool]) -> None:
    """Values and the gradients of queries, keys and values, in float64."""
    segments = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    parts = drawn(sizes)
    found = Fold.of(segments, torch.tensor(sees_first), torch.float64).attend(*parts)
    expected = masked(sizes, sees_first, parts)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pull = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        torch.autograd.grad((found * pull).sum(), parts),
        torch.autograd.grad((expected * pull).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_gradients_are_those_of_finite_differences() -> None:
    """Autograd's own check, which shares nothing with masks."""
    segments = torch.tensor([0, 0, 1, 1, 1, 2])
    fold = Fold.of(segments, torch.tensor([True, True, False]), torch.float64)
    assert torch.autograd.gradcheck(fold.attend, drawn([2, 3, 1]))


def test_a_segment_does_not_notice_others() -> None:
    """To the bit, whatever stands in them, as long as the longest is as long."""
    segments = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    fold = Fold.of(segments, torch.tensor([True, True, False]), torch.float64)
    parts = [part.detach() for part in drawn([2, 3, 2])]
    before = fold.attend(*parts)
    changed = [part.clone() for part in parts]
    changed[0][:, 5:] += 1
    changed[1][:, :, 5:] += 1
    changed[2][:, :, 5:] -= 1
    after = fold.attend(*changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("size", [64, 8])
def test_branches_read_as_each_alone(size: int) -> None:
    """Behind the first segment or not, in windows that hold them and in one that their last tokens outgrow."""
    model = HopeModel(replace(CONFIG, window=WindowSpec(size, num_sinks=2), levels=()), torch.float64)
    params, past = make_params(), model.empty_past(1, torch.float64)
    first, others = [256, 9, 10], {(31, 32, 33, 34, 35, 36, 37, 38): True, (40, 41): False, (50, 51, 52, 53): True}

    def read(tokens: list[int], sight: Sight) -> torch.Tensor:
        hidden = params.embed[torch.tensor(tokens)][None]
        blocks = range(len(params.blocks))
        return model.run_blocks(params, hidden, past, model.initial_memories(), sight, blocks)[0][0]

    segments = torch.tensor([0] * 3 + [number for number, other in enumerate(others, 1) for _ in other])
    sight = model.branch_sight(past.window, segments, torch.tensor([True, *others.values()]))
    assert (sight.fold is None) == (size == 8)
    found = read([*first, *(token for other in others for token in other)], sight)
    for number, (other, sees_first) in enumerate(others.items(), 1):
        alone = [*first, *other] if sees_first else [*other]
        expected = read(alone, model.sight(past.window, len(alone)))[-len(other) :]
        torch.testing.assert_close(found[segments == number], expected, rtol=1e-10, atol=1e-10)

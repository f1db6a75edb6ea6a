"""`fast_linear`: the batched form against the token-by-token reference, its gradients, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hope_kernels import fast_linear
from hope_kernels.fast_linear import reference

# rows, tokens, inputs, outputs, rank: ones, odd sizes, a rank above both widths.
SIZES = [(1, 1, 1, 1, 1), (2, 1, 5, 3, 2), (3, 15, 7, 11, 1), (1, 63, 100, 3, 16), (4, 33, 3, 2, 9), (2, 0, 4, 5, 3)]


def draw(*shape: int) -> torch.Tensor:
    """A random float64 tensor that autograd differentiates."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the order in which float64 sums up to 100 products."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rows", "tokens", "inputs", "outputs", "rank"), SIZES)
def test_low_rank_equals_the_reference_at_awkward_sizes(
    rows: int, tokens: int, inputs: int, outputs: int, rank: int
) -> None:
    """Each row's tokens go through that row's own two factors."""
    x, a, b = draw(rows, tokens, inputs), draw(rows, rank, inputs), draw(rows, outputs, rank)
    with torch.no_grad():
        assert_same(fast_linear.low_rank_delta(x, a, b), reference.low_rank_delta(x, a, b))


@pytest.mark.parametrize(("rows", "tokens", "inputs", "outputs", "_rank"), SIZES)
def test_dense_equals_the_reference_at_awkward_sizes(
    rows: int, tokens: int, inputs: int, outputs: int, _rank: int
) -> None:
    """Each row's tokens go through that row's own matrix."""
    x, w = draw(rows, tokens, inputs), draw(rows, outputs, inputs)
    with torch.no_grad():
        assert_same(fast_linear.dense_delta(x, w), reference.dense_delta(x, w))


def test_one_row_of_weights_serves_every_row() -> None:
    """Weights with a single row are used for all rows of the input."""
    x, a, b, w = draw(3, 5, 4), draw(1, 2, 4), draw(1, 6, 2), draw(1, 6, 4)
    assert_same(
        fast_linear.low_rank_delta(x, a, b), reference.low_rank_delta(x, a.expand(3, -1, -1), b.expand(3, -1, -1))
    )
    assert_same(fast_linear.dense_delta(x, w), reference.dense_delta(x, w.expand(3, -1, -1)))


@pytest.mark.parametrize("shared", [1, 2])
def test_gradients_are_those_of_finite_differences(shared: int) -> None:
    """Both forms are differentiable in every argument, also where one row of weights serves two."""
    x = draw(2, 3, 4)
    assert torch.autograd.gradcheck(fast_linear.low_rank_delta, (x, draw(shared, 2, 4), draw(shared, 3, 2)))
    assert torch.autograd.gradcheck(fast_linear.dense_delta, (x, draw(shared, 3, 4)))


def test_gradients_equal_those_of_the_reference() -> None:
    """A gradient that comes from above is passed on as autograd passes it through the reference."""
    leaves = [draw(3, 7, 5), draw(3, 2, 5), draw(3, 4, 2)]
    above = torch.randn(3, 7, 4, dtype=torch.float64)
    ours = torch.autograd.grad(fast_linear.low_rank_delta(*leaves), leaves, above)
    theirs = torch.autograd.grad(reference.low_rank_delta(*leaves), leaves, above)
    for actual, expected in zip(ours, theirs, strict=True):
        assert_same(actual, expected)


def test_a_row_does_not_see_the_weights_of_another() -> None:
    """NaN in one row's weights stays in that row's outputs."""
    x, a, b = draw(2, 3, 4).detach(), draw(2, 2, 4).detach(), draw(2, 5, 2).detach()
    a[0] = torch.nan
    out = fast_linear.low_rank_delta(x, a, b)
    assert bool(out[0].isnan().all())
    assert bool(out[1].isfinite().all())


@pytest.mark.parametrize(
    ("x", "a", "b", "name"),
    [
        ((2, 3, 4), (2, 2, 5), (2, 6, 2), "a"),
        ((2, 3, 4), (3, 2, 4), (3, 6, 2), "a"),
        ((3, 4), (2, 2, 4), (2, 6, 2), "a"),
        ((2, 3, 4), (2, 4), (2, 6, 2), "a"),
        ((2, 3, 4), (2, 2, 4), (2, 6, 3), "b"),
        ((2, 3, 4), (2, 2, 4), (1, 6, 2), "b"),
        ((2, 3, 4), (2, 2, 4), (6, 2), "b"),
    ],
)
def test_low_rank_refuses_shapes_that_do_not_fit(
    x: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], name: str
) -> None:
    """The message names the argument that does not fit, before torch broadcasts it into something else."""
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        fast_linear.low_rank_delta(torch.zeros(x), torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize("w", [(2, 6, 5), (3, 6, 4), (6, 4)])
def test_dense_refuses_shapes_that_do_not_fit(w: tuple[int, ...]) -> None:
    """A matrix of another width or for another number of rows is an error."""
    with pytest.raises(ValueError, match=r"^w: expected"):
        fast_linear.dense_delta(torch.zeros(2, 3, 4), torch.zeros(w))


SLOTS = torch.tensor([2, -1, 0, 2])


def test_rows_take_the_weights_of_their_slots() -> None:
    """Two rows may share a slot; one without a slot gets zeros, whatever the pool and its own tokens hold."""
    x, w, a, b = (tensor.detach() for tensor in (draw(4, 3, 5), draw(3, 6, 5), draw(3, 2, 5), draw(3, 6, 2)))
    x[1] = torch.nan
    for slots in (SLOTS, SLOTS.int()):
        assert_same(fast_linear.dense_delta(x, w, slots), reference.dense_delta(x, w, slots))
        assert_same(fast_linear.low_rank_delta(x, a, b, slots), reference.low_rank_delta(x, a, b, slots))


@pytest.mark.parametrize("slots", [None, SLOTS])
def test_base_and_deltas_in_one_call_are_the_reference(slots: torch.Tensor | None) -> None:
    """Both deltas, one of them, or none beside the weight that all rows share."""
    x, base, w, a, b = draw(4, 3, 5), draw(6, 5), draw(4, 6, 5), draw(4, 2, 5), draw(4, 6, 2)
    with torch.no_grad():
        for dense, low_rank in ((w, (a, b)), (w, None), (None, (a, b)), (None, None)):
            found = fast_linear.fast_linear(x, base, dense, low_rank, slots)
            assert_same(found, reference.fast_linear(x, base, dense, low_rank, slots))


def test_gradients_through_slots_are_those_of_finite_differences() -> None:
    """Differentiable in x, the base and every pool."""
    leaves = (draw(4, 2, 3), draw(5, 3), draw(3, 5, 3), draw(3, 2, 3), draw(3, 5, 2))
    assert torch.autograd.gradcheck(lambda x, base, w, a, b: fast_linear.fast_linear(x, base, w, (a, b), SLOTS), leaves)


def test_a_slot_without_a_row_gets_no_gradient_and_gives_none() -> None:
    """NaN in slots that no row owns reaches neither outputs nor gradients."""
    x, w = draw(4, 2, 3), draw(3, 5, 3)
    with torch.no_grad():
        w[1] = torch.nan
    given = torch.autograd.grad(fast_linear.dense_delta(x, w, SLOTS).sum(), (x, w))
    assert bool(given[0].isfinite().all()) and not given[1][1].any()


def test_weights_in_float32_multiply_in_the_type_of_x() -> None:
    """A pool of float32 beside x in half precision gives what the pool in half precision gives, bit for bit."""
    x, w = torch.randn(2, 3, 4).bfloat16(), torch.randn(2, 5, 4)
    assert torch.equal(fast_linear.dense_delta(x, w), fast_linear.dense_delta(x, w.bfloat16()))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"base": torch.zeros(6, 3)}, "base"),
        ({"base": torch.zeros(6, 4, dtype=torch.float64)}, "base"),
        ({"base": torch.zeros(6, 4, device="meta")}, "base"),
        ({"dense": torch.zeros(2, 5, 4)}, "w"),
        ({"dense": torch.zeros(2, 6, 4, dtype=torch.float64)}, "w"),
        ({"dense": torch.zeros(2, 6, 4, device="meta")}, "w"),
        ({"low_rank": (torch.zeros(2, 1, 4), torch.zeros(2, 5, 1))}, "b"),
        ({"dense": torch.zeros(3, 6, 4), "slots": torch.tensor([0, 3])}, "slots"),
        ({"dense": torch.zeros(3, 6, 4), "slots": torch.tensor([0, 1, 2])}, "slots"),
        ({"dense": torch.zeros(3, 6, 4), "slots": torch.tensor([0.0, 1.0])}, "slots"),
        (
            {
                "dense": torch.zeros(3, 6, 4),
                "low_rank": (torch.zeros(2, 1, 4), torch.zeros(2, 6, 1)),
                "slots": torch.tensor([0, 1]),
            },
            "w",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(changes: dict[str, Any], name: str) -> None:
    """Shapes, types, devices and slots of base and deltas."""
    given = {"base": torch.zeros(6, 4), **changes}
    with pytest.raises(ValueError, match=f"^{name}: "):
        fast_linear.fast_linear(torch.zeros(2, 3, 4), **given)

"""What stands between the products of a decoding step, in single calls: the numbers of the formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hope_kernels import decoding, native
from torch.nn import functional

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: there are no compiled operators")

CLOSE = {"rtol": 3e-6, "atol": 3e-6}
BLOCKS = 2


def normal(*shape: int) -> torch.Tensor:
    """Drawn numbers, the same at every call of a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def turned(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of heads [R, heads, K]."""
    low, high = x.chunk(2, dim=-1)
    return x * angles[0].double()[:, None] + torch.cat([-high, low], -1) * angles[1].double()[:, None]


class Case:
    """Rows in rings of their own, some in one tensor, with places that are not seen."""

    def __init__(
        self, rows: tuple[int, ...], heads: decoding.Heads, capacity: int, used: int, *, has_far: bool
    ) -> None:
        count, size = sum(rows), heads.head_dim
        self.heads, self.count, self.used = heads, count, used
        shape = (BLOCKS, count + 1, heads.num_shared, capacity, size)
        pool = normal(*shape), normal(*shape)
        bounds = [sum(rows[:number]) + (number > 0) for number in range(len(rows))]
        self.rings = [
            (pool[0][:, low : low + some], pool[1][:, low : low + some]) for low, some in zip(bounds, rows, strict=True)
        ]
        draw = torch.Generator().manual_seed(count)
        self.places = torch.randint(0, used, (count,), generator=draw)
        self.mask = torch.zeros(count, used).masked_fill_(torch.rand(count, used, generator=draw) < 0.3, -torch.inf)
        self.mask[torch.arange(count), self.places] = 0
        self.angles, self.far = self._angles(1), self._angles(2) if has_far else None
        self.projected = normal(count, (heads.num_heads + 2 * heads.num_shared) * size)

    def _angles(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        turns = torch.rand(self.count, self.heads.head_dim // 2, generator=torch.Generator().manual_seed(seed))
        turns = torch.cat([turns, turns], -1) * 6
        return turns.cos(), turns.sin()

    def expected(self, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is attended to [R, H K], and the keys and values [R, U, N, K] after the call, in float64."""
        heads, size = self.heads, self.heads.head_dim
        split = self.projected.double().view(self.count, -1, size)
        query, key, value = split.split([heads.num_heads, heads.num_shared, heads.num_shared], 1)
        keys, values = (torch.cat([ring[which][block] for ring in self.rings]).double() for which in (0, 1))
        own = turned(key, self.angles), value
        for kept, new in zip((keys, values), own, strict=True):
            new = new.float().bfloat16().double() if heads.is_rounded else new
            kept[torch.arange(self.count), :, self.places] = new
        group = heads.num_heads // heads.num_shared
        seen = [part[:, :, : self.used].repeat_interleave(group, 1) for part in (keys, values)]
        scores = torch.einsum("rhk,rhnk->rhn", turned(query, self.angles), seen[0])
        if self.far is not None:
            few = heads.num_sinks
            scores[..., :few] = torch.einsum("rhk,rhnk->rhn", turned(query, self.far), seen[0][:, :, :few])
        weights = (scores / math.sqrt(size) + self.mask.double()[:, None]).softmax(-1)
        return torch.einsum("rhn,rhnk->rhk", weights, seen[1]).flatten(1), keys, values


@pytest.mark.parametrize("has_far", [False, True])
@pytest.mark.parametrize(
    ("rows", "heads", "shared", "size", "capacity", "used"),
    [
        ((1,), 1, 1, 2, 3, 1),
        ((2, 1), 6, 2, 8, 9, 9),
        ((1, 3), 9, 3, 64, 70, 37),
        ((5,), 10, 2, 20, 33, 31),
        ((20,), 4, 1, 64, 600, 580),
    ],
)
@pytest.mark.parametrize("is_rounded", [False, True])
def test_a_token_attends_to_what_it_sees(
    rows: tuple[int, ...], heads: int, shared: int, size: int, capacity: int, used: int, is_rounded: bool, has_far: bool
) -> None:
    """Softmax attention in float64, sinks under far angles; its own key and value are written, and nothing else."""
    case = Case(rows, decoding.Heads(heads, shared, size, 4, is_rounded), capacity, used, has_far=has_far)
    for block in range(BLOCKS):
        expected, keys, values = case.expected(block)
        attention = decoding.TokenAttention(case.heads, case.rings, case.places, case.angles, case.far, case.mask)
        found = attention.attend(block, case.projected)
        # A key on the edge between two halves may be rounded to either.
        close = {"rtol": 2e-2, "atol": 2e-2} if is_rounded else CLOSE
        torch.testing.assert_close(found.double(), expected, **close)
        kept = [torch.cat([ring[which][block] for ring in case.rings]).double() for which in (0, 1)]
        torch.testing.assert_close(kept[0], keys, **close)
        assert torch.equal(kept[1], values)


def test_a_row_does_not_see_its_neighbours() -> None:
    """A row's numbers are the same to the bit whatever the others are, and alone."""
    heads = decoding.Heads(6, 2, 16, 4, False)
    case = Case((3,), heads, 40, 33, has_far=True)
    attention = decoding.TokenAttention(heads, case.rings, case.places, case.angles, case.far, case.mask)
    before = attention.attend(0, case.projected)
    others = case.projected.clone()
    others[[0, 2]] = math.nan
    assert torch.equal(attention.attend(0, others)[1], before[1])
    ring = [(keys[:, 1:2], values[:, 1:2]) for keys, values in case.rings]
    near, far = (tuple(part[1:2].contiguous() for part in pair) for pair in (case.angles, case.far or ()))
    alone = decoding.TokenAttention(heads, ring, case.places[1:2], near, far, case.mask[1:2].contiguous())
    assert torch.equal(alone.attend(0, case.projected[1:2])[0], before[1])


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 33), (2, 576), (17, 40)])
def test_a_sum_is_normalised_and_kept(rows: int, width: int) -> None:
    """hidden takes what is added, however that lies; what is returned has a root mean square of 1 before its weight."""
    hidden, added, weight = normal(rows, width), normal(rows, width) * 3, normal(width)
    summed = hidden.double() + added.double()
    expected = functional.rms_norm(summed, (width,), weight.double(), 1e-5)
    for layout in (added, added.T.contiguous().T):
        kept = hidden.clone()
        found = decoding.add_norm(kept, layout, weight, 1e-5)
        torch.testing.assert_close(found.double(), expected, **CLOSE)
        torch.testing.assert_close(kept.double(), summed, **CLOSE)
    alone = decoding.add_norm(hidden, None, weight, 1e-5)
    torch.testing.assert_close(alone, functional.rms_norm(hidden, (width,), weight, 1e-5), **CLOSE)


@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (3, 33), (32, 1536), (2, 1100)])
def test_a_gate_keeps_the_layout(rows: int, inner: int) -> None:
    """silu(gate) * up from gates of -90 to 90, by rows and by columns."""
    given = torch.cat([torch.linspace(-90, 90, rows * inner).view(rows, inner), normal(rows, inner)], 1)
    first, second = given.double().chunk(2, -1)
    expected = functional.silu(first) * second
    for layout in (given, given.T.contiguous().T):
        found = decoding.gate(layout)
        torch.testing.assert_close(found.double(), expected, **CLOSE)
        assert found.stride() == layout[:, :inner].clone(memory_format=torch.preserve_format).stride() or rows == 1


def test_what_does_not_fit_is_refused() -> None:
    """Shapes, types, layouts and places, each with its name."""
    heads = decoding.Heads(2, 1, 8, 4, False)
    case = Case((2,), heads, 9, 5, has_far=False)

    def made(**changes: object) -> decoding.TokenAttention:
        given = {
            "rings": case.rings,
            "places": case.places,
            "angles": case.angles,
            "far_angles": None,
            "mask": case.mask,
        }
        return decoding.TokenAttention(heads, **{**given, **changes})  # type: ignore[arg-type]

    for changes in (
        {"places": torch.tensor([0, 5])},
        {"places": torch.tensor([0, -1])},
        {"mask": torch.zeros(2, 10)},
        {"mask": torch.zeros(3, 5)},
        {"angles": (case.angles[0][:1], case.angles[1][:1])},
        {"rings": [(case.rings[0][0].double(), case.rings[0][1])]},
        {"rings": [(case.rings[0][0].transpose(2, 3).contiguous().transpose(2, 3), case.rings[0][1])]},
    ):
        with pytest.raises(ValueError, match=r"places|mask|angles|rings"):
            made(**changes)
    with pytest.raises(ValueError, match="projected"):
        made().attend(0, case.projected[:, 1:])
    with pytest.raises(ValueError, match="block"):
        made().attend(BLOCKS, case.projected)
    with pytest.raises(ValueError, match="cannot share"):
        decoding.TokenAttention(
            decoding.Heads(3, 2, 8, 4, False), case.rings, case.places, case.angles, None, case.mask
        )
    with pytest.raises(ValueError, match="weight"):
        decoding.add_norm(normal(2, 4), None, normal(5), 1e-5)
    with pytest.raises(ValueError, match="hidden"):
        decoding.add_norm(normal(4, 2).T, None, normal(4), 1e-5)
    with pytest.raises(ValueError, match="gate_up"):
        decoding.gate(normal(3, 9)[:, :8])

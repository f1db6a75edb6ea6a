"""`pack_state`: buffers byte for byte as the reference makes them, what comes back, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.pack_state import Form, pack, reference, unpack_

SLOTS = [3, 0]


def tensors() -> list[torch.Tensor]:
    """Five slots of every type, of sizes around blocks and words: odd ones, none, and a view with gaps."""
    return [
        torch.randn(5, 3, 7),
        torch.randn(5, 130).bfloat16(),
        torch.randn(5, 65).half(),
        torch.randn(5, 9, dtype=torch.float64),
        torch.randn(5, 0),
        torch.randn(5, 128)[:, 32:96],
        torch.zeros(5, 64),
    ]


@pytest.mark.parametrize("form", ["exact", "bf16", "int8"])
def test_buffers_are_those_of_the_reference(form: Form) -> None:
    """Every byte, of weights and of what lies between them, in each form."""
    given = tensors()
    found = [bytes(row.view(torch.uint8).tolist()) for row in pack(given, SLOTS, form)]
    assert found == reference.pack(given, SLOTS, form)


def test_exact_buffers_keep_every_bit() -> None:
    """NaN with its payload, infinities, minus zero and the smallest number come back as they were."""
    bits = torch.tensor([[0x7FC12345, 0x7F800000, -0x80000000, 1, -1]], dtype=torch.int32)
    given = [bits.view(torch.float32), bits.view(torch.bfloat16), bits.view(torch.float16)]
    back = [torch.zeros_like(tensor) for tensor in given]
    unpack_(pack(given, [0]), back, [0])
    assert all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(given, back, strict=True))


@pytest.mark.parametrize("form", ["exact", "bf16", "int8"])
def test_what_comes_back_is_what_the_reference_decodes(form: Form) -> None:
    """Other slots keep every bit, and a buffer may go to other slots than it came from."""
    given = tensors()
    buffer, before = pack(given, SLOTS, form), [tensor.clone() for tensor in given]
    unpack_(buffer, given, torch.tensor([4, 2], dtype=torch.int32))
    for row, slot in zip(reference.pack(before, SLOTS, form), (4, 2), strict=True):
        for tensor, expected in zip(given, reference.unpack(row, before, form), strict=True):
            wanted = torch.tensor(expected, dtype=torch.float64).to(tensor.dtype)
            assert torch.equal(tensor[slot].flatten(), wanted)
    for tensor, old in zip(given, before, strict=True):
        assert torch.equal(tensor[[0, 1, 3]], old[[0, 1, 3]])


def test_bf16_rounds_to_the_nearest_even() -> None:
    """Half way between two bfloat16 goes to the one whose last bit is 0; above it, up; too large, to infinity."""
    bits = torch.tensor([[0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF]], dtype=torch.int32)
    found = pack([bits.view(torch.float32)], [0], "bf16")[0, :4]
    assert found.view(torch.int16).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80]


def test_int8_is_within_half_a_step_of_each_block() -> None:
    """A block's error is at most half of its own largest weight over 127, however large another block's is."""
    given = torch.randn(1, 4, 64) * torch.tensor([1e-20, 1.0, 1e20, 0.0]).view(1, 4, 1)
    back = torch.full_like(given, torch.nan)
    unpack_(pack([given], [0], "int8"), [back], [0])
    # Half a step, and float32's rounding of the division and of the product.
    limit = given.abs().amax(dim=2, keepdim=True) / 127 * 0.5001
    assert bool(((back - given).abs() <= limit).all())
    assert not back[0, 3].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_int8_refuses_weights_that_are_not_finite(bad: float) -> None:
    """In a slot that is packed; another slot's are not looked at."""
    given = torch.randn(2, 70)
    given[1, 69] = bad
    assert pack([given], [0], "int8").isfinite().all()
    with pytest.raises(ValueError, match=r"^tensors: must be finite"):
        pack([given], [1], "int8")


def test_no_slots_make_an_empty_buffer() -> None:
    """Nothing is read or written."""
    given = [torch.randn(2, 3)]
    buffer = pack(given, [])
    assert buffer.shape == (0, 16)
    unpack_(buffer, given, [])


@pytest.mark.parametrize(
    ("given", "slots", "form", "name"),
    [
        ([], [0], "exact", "tensors"),
        ([torch.zeros(2, 3, dtype=torch.int32)], [0], "exact", r"tensors\[0\]"),
        ([torch.zeros(2, 3), torch.zeros(3, 3)], [0], "exact", r"tensors\[1\]"),
        ([torch.zeros(2, 4, 3).mT], [0], "exact", r"tensors\[0\]"),
        ([torch.zeros(1, 3).expand(2, 3)], [0], "exact", r"tensors\[0\]"),
        ([torch.zeros(2, 3), torch.zeros(2, 3, device="meta")], [0], "exact", r"tensors\[1\]"),
        ([torch.zeros(2, 3)], [2], "exact", "slots"),
        ([torch.zeros(2, 3)], [-1], "exact", "slots"),
        ([torch.zeros(2, 3)], [1, 1], "exact", "slots"),
        ([torch.zeros(2, 3)], torch.tensor([0.5]), "exact", "slots"),
        ([torch.zeros(2, 3)], [0], "int4", "form"),
    ],
)
def test_arguments_that_do_not_fit_are_named(given: list[torch.Tensor], slots: object, form: Form, name: str) -> None:
    """Types, shapes, strides, devices, slots and forms that cannot be are refused."""
    with pytest.raises(ValueError, match=f"^{name}: must"):
        pack(given, slots, form)


@pytest.mark.parametrize(
    "buffer",
    [
        torch.zeros(1, 16, dtype=torch.float32),
        torch.zeros(1, 15, dtype=torch.uint8),
        torch.zeros(2, 16, dtype=torch.uint8),
        torch.zeros(1, 32, dtype=torch.uint8)[:, ::2],
        torch.zeros(1, 16, dtype=torch.uint8, device="meta"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(buffer: torch.Tensor) -> None:
    """Another form, size, stride or device than `pack` gives writes nothing."""
    given = torch.randn(2, 3)
    before = given.clone()
    with pytest.raises(ValueError, match=r"^buffer: must"):
        unpack_(buffer, [given], [0])
    assert torch.equal(given, before)

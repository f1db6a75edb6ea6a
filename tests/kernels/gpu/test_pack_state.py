"""The GPU kernels of `pack_state` give the bytes of the reference, and write their slots alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; run make test-kernels")

from hope_kernels.pack_state import Form, pack, public, reference, unpack_

Draw = Callable[[], list[torch.Tensor]]
SLOTS, TARGETS = [3, 0], [4, 2]


@pytest.fixture(autouse=True)
def in_triton(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the public functions choose Triton on the CPU too, where its interpreter runs."""
    monkeypatch.setattr(public, "uses_triton", lambda *tensors: True)


def of_every_type() -> list[torch.Tensor]:
    """Odd sizes, none, a run less one and more one, a view with gaps."""
    return [
        torch.randn(5, 3, 7),
        torch.randn(5, 1023).bfloat16(),
        torch.randn(5, 65).half(),
        torch.randn(5, 9, dtype=torch.float64),
        torch.randn(5, 0),
        torch.randn(5, 128)[:, 32:96],
        torch.randn(5, 1025),
    ]


def of_words() -> list[torch.Tensor]:
    """Slots of whole words of 4 bytes, one off those of 8."""
    return [torch.randn(5, 2049), torch.randn(5, 6).bfloat16()]


def of_pairs() -> list[torch.Tensor]:
    """Slots of whole words of 16 bytes, as models have."""
    return [torch.randn(5, 64, 33 * 4), torch.randn(5, 8).bfloat16(), torch.zeros(5, 64)]


@pytest.mark.parametrize("form", ["exact", "bf16", "int8"])
@pytest.mark.parametrize("draw", [of_every_type, of_words, of_pairs])
def test_buffers_are_those_of_the_reference(draw: Draw, form: Form, device: torch.device) -> None:
    """Every byte, of weights and of what lies between them, in each form; one launch for all tensors."""
    given = draw()
    found = pack([tensor.to(device) for tensor in given], SLOTS, form).cpu()
    assert [bytes(row.view(torch.uint8).tolist()) for row in found] == reference.pack(given, SLOTS, form)


@pytest.mark.parametrize("form", ["exact", "bf16", "int8"])
@pytest.mark.parametrize("draw", [of_every_type, of_words, of_pairs])
def test_what_comes_back_is_what_the_reference_decodes(draw: Draw, form: Form, device: torch.device) -> None:
    """Into slots full of 30,000, the others of which keep every bit."""
    given = draw()
    buffer = pack([tensor.to(device) for tensor in given], SLOTS, form)
    targets = [torch.full_like(tensor, 3e4, device=device) for tensor in given]
    unpack_(buffer, targets, TARGETS)
    for row, slot in zip(reference.pack(given, SLOTS, form), TARGETS, strict=True):
        for tensor, expected in zip(targets, reference.unpack(row, given, form), strict=True):
            wanted = torch.tensor(expected, dtype=torch.float64).to(tensor.dtype)
            assert torch.equal(tensor[slot].flatten().cpu(), wanted)
    for tensor in targets:
        assert bool((tensor[[0, 1, 3]] == torch.tensor(3e4).to(tensor.dtype).item()).all())


def test_exact_buffers_keep_every_bit(device: torch.device) -> None:
    """NaN with its payload, infinities, minus zero and the smallest number come back as they were."""
    bits = torch.tensor([[0x7FC12345, 0x7F800000, -0x80000000, 1, -1]], dtype=torch.int32, device=device)
    given = [bits.view(torch.float32), bits.view(torch.bfloat16), bits.view(torch.float16)]
    back = [torch.zeros_like(tensor) for tensor in given]
    unpack_(pack(given, [0]), back, [0])
    assert all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(given, back, strict=True))


def test_bf16_rounds_to_the_nearest_even_and_keeps_what_is_not_finite(device: torch.device) -> None:
    """Ties go to an even last bit, what is too large to infinity; NaN and infinity stay."""
    bits = torch.tensor([[0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000]], dtype=torch.int32)
    given = torch.cat([bits.view(torch.float32), torch.tensor([[torch.nan]])], dim=1).to(device)
    found = pack([given], [0], "bf16")[0, :6].cpu()
    assert found.view(torch.int16)[:5].tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80]
    assert bool(found[5].isnan())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_int8_refuses_weights_that_are_not_finite(bad: float, device: torch.device) -> None:
    """In a slot that is packed; another slot's are not looked at."""
    given = torch.randn(2, 70, device=device)
    given[1, 69] = bad
    pack([given], [0], "int8")
    with pytest.raises(ValueError, match=r"^tensors: must be finite"):
        pack([given], [1], "int8")

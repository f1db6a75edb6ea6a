"""Which form of an operator runs, and what is said where Triton is missing. Devices are pretended: no GPU is needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from hope_kernels import dispatch, slots
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture
def on_cuda() -> Iterator[torch.Tensor]:
    """A tensor that says it lies on a CUDA device; nothing is remembered of Triton from before, or after."""
    dispatch._has_triton.cache_clear()
    with FakeTensorMode():
        yield torch.empty(2, device="cuda")
    dispatch._has_triton.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, is_installed: bool) -> None:
    """Let Triton be installed, or not."""
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object() if is_installed else None)


def test_cuda_tensors_run_in_triton(on_cuda: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Triton installed, tensors on a GPU take it, arguments that are not given aside."""
    pretend(monkeypatch, True)
    assert dispatch.uses_triton(on_cuda, None)


def test_cpu_tensors_run_in_torch(on_cuda: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor on the CPU is enough, and so is no tensor at all."""
    pretend(monkeypatch, True)
    assert not dispatch.uses_triton(on_cuda, torch.empty(2, device="cpu"))
    assert not dispatch.uses_triton(None)


def test_gradients_run_in_torch(on_cuda: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaf that needs its gradient takes the differentiable form, unless gradients are switched off."""
    pretend(monkeypatch, True)
    leaf = on_cuda.detach().requires_grad_()
    assert not dispatch.uses_triton(on_cuda, leaf)
    with torch.no_grad():
        assert dispatch.uses_triton(on_cuda, leaf)


def test_a_missing_triton_is_said_once(
    on_cuda: torch.Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first call on a GPU without Triton logs one line, later ones none; both run in torch."""
    pretend(monkeypatch, False)
    with caplog.at_level(logging.DEBUG, logger="hope_kernels"):
        assert not dispatch.uses_triton(on_cuda)
        assert not dispatch.uses_triton(on_cuda)
    assert [record.name for record in caplog.records] == ["hope_kernels"]


def test_a_cpu_without_triton_says_nothing(
    on_cuda: torch.Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing is lost, nothing is logged."""
    pretend(monkeypatch, False)
    with caplog.at_level(logging.DEBUG, logger="hope_kernels"):
        assert not dispatch.uses_triton(torch.empty(2, device="cpu"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "num_rows"),
    [
        (torch.tensor([0.0, 1.0]), 2),
        (torch.tensor([[0, 1]]), 2),
        (torch.tensor([0, 1]), 3),
        (torch.tensor([0, 4]), 2),
        (torch.tensor([0, 1], device="meta"), 2),
    ],
)
def test_slots_that_cannot_be_are_refused(given: torch.Tensor, num_rows: int) -> None:
    """Another type, shape, length or device, or a slot beyond the pool, is named."""
    with pytest.raises(ValueError, match=r"^slots: must be|^slots: must have"):
        slots.check_slots(given, 4, torch.device("cpu"), num_rows)


def test_a_row_without_a_slot_gathers_zeros() -> None:
    """Whatever stands in the pool, NaN too, is not seen by it, nor is its gradient by the pool."""
    pool = torch.tensor([[torch.nan, 1.0], [2.0, 3.0]], requires_grad=True)
    found = slots.gather(pool, torch.tensor([1, -1]))
    assert found.tolist() == [[2.0, 3.0], [0.0, 0.0]]
    assert torch.autograd.grad(found.sum(), pool)[0].tolist() == [[0.0, 0.0], [1.0, 1.0]]

"""Outer gradients through the chunk form of `dgd_memory` equal autograd's through the token-by-token reference."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.dgd_memory import Gates, reference, write_chunk
from memory_cases import EXACT, MOMENTA, Case, draw, draw_case


def leaves_of(case: Case) -> tuple[Case, dict[str, torch.Tensor]]:
    """The case with every tensor a leaf that autograd differentiates, and those leaves by name."""
    case = case.mapped(lambda tensor: tensor.detach().clone().requires_grad_())
    return case, case.leaves()


def assert_same_gradients(case: Case, delta: float) -> None:
    """Send the same random gradients into the reads, the final state and the final momentum of both forms."""
    queries = draw(*case.keys.shape)
    above = [draw(*case.residuals.shape), draw(*case.weights.shape), draw(*case.weights.shape)]

    ours, leaves = leaves_of(case)
    written = write_chunk(ours.weights, ours.keys, ours.residuals, ours.gates, delta, ours.surprise)
    final, final_surprise = written.final()
    outputs = [written.read(queries), final] + ([] if final_surprise is None else [final_surprise])
    actual = torch.autograd.grad(outputs, list(leaves.values()), above[: len(outputs)])

    theirs, leaves = leaves_of(case)
    states, surprises = reference.write_tokens(
        theirs.weights, theirs.keys, theirs.residuals, theirs.gates, delta, theirs.surprise
    )
    reads = torch.cat([queries[..., i, None, :] @ state for i, state in enumerate(states[1:])], -2)
    outputs = [reads, states[-1], *surprises[-1:]]
    expected = torch.autograd.grad(outputs, list(leaves.values()), above[: len(outputs)])

    for name, got, wanted in zip(leaves, actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize("num_tokens", [1, 2, 16, 17, 65])
@pytest.mark.parametrize("delta", [0.0, 1.0])
@pytest.mark.parametrize("momentum", MOMENTA)
def test_gradients_are_those_of_the_recurrence(num_tokens: int, delta: float, momentum: str) -> None:
    """Gradients of weights, keys, residuals, every rate and the surprise, with momentum that holds exact zeros too."""
    assert_same_gradients(draw_case(num_tokens, momentum=momentum), delta)


@pytest.mark.parametrize(("lr", "retention"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.9), (0.5, 0.0)])
@pytest.mark.parametrize("correlation", [0.9, 1.0])
@pytest.mark.parametrize("momentum", ["none", "some"])
def test_gradients_at_the_limits_of_the_rates(lr: float, retention: float, correlation: float, momentum: str) -> None:
    """No step, full steps, nothing forgotten, retention at its clamp, alike and identical keys."""
    assert_same_gradients(draw_case(20, momentum=momentum, correlation=correlation, lr=lr, retention=retention), 1.0)


@pytest.mark.parametrize("momentum", ["none", "some"])
def test_gradients_of_shared_keys_are_summed(momentum: str) -> None:
    """Keys and rates that several memories share get the sum of what each memory sends back."""
    case = draw_case(9, lead=(3,), momentum=momentum)

    def total(keys: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
        gates = Gates(lr, case.gates.log_retention[:1], None if momentum == "none" else case.gates.momentum[:1])
        final, surprise = write_chunk(case.weights, keys, case.residuals, gates, 1.0, case.surprise).final()
        return final.square().sum() + (0 if surprise is None else surprise.square().sum())

    shared = [case.keys[:1].clone().requires_grad_(), case.gates.lr[:1].clone().requires_grad_()]
    apart = [tensor.detach().expand(3, *tensor.shape[1:]).clone().requires_grad_() for tensor in shared]
    ours = torch.autograd.grad(total(*shared), shared)
    theirs = torch.autograd.grad(total(*apart), apart)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted.sum(0, keepdim=True), **EXACT)


@pytest.mark.parametrize("momentum", ["none", "some"])
def test_gradients_are_those_of_finite_differences(momentum: str) -> None:
    """A tiny write passes gradcheck in every input at once."""
    case, leaves = leaves_of(draw_case(3, 2, 2, (1,), momentum, lr=0.5))
    queries = draw(*case.keys.shape)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(leaves, tensors, strict=True))
        gates = Gates(named["lr"], named["log_retention"], named.get("momentum"))
        written = write_chunk(named["weights"], named["keys"], named["residuals"], gates, 1.0, named.get("surprise"))
        return (written.read(queries), *(tensor for tensor in written.final() if tensor is not None))

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))

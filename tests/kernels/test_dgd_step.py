"""The write of one token equals the token-by-token reference: state, momentum, read and outer gradients."""

from __future__ import annotations

import pytest
import torch
from hope_kernels.dgd_memory import TokenWrite, reference, write_chunk, write_token
from memory_cases import EXACT, MOMENTA, Case, draw, draw_case


def written(case: Case, delta: float) -> TokenWrite:
    """The case's only token, written."""
    return write_token(case.weights, case.keys, case.residuals, case.gates, delta, case.surprise)


@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("sizes", [(7, 5, (2, 3)), (1, 1, ()), (13, 194, (4,))])
def test_a_token_is_written_as_the_reference_writes_it(
    delta: float, momentum: str, sizes: tuple[int, int, tuple[int, ...]]
) -> None:
    """What is left, and what is read right after, for any delta, momentum and size."""
    case = draw_case(1, *sizes, momentum=momentum)
    states, surprises = reference.write_tokens(
        case.weights, case.keys, case.residuals, case.gates, delta, case.surprise
    )
    token, queries = written(case, delta), draw(*case.keys.shape)
    weights, surprise = token.final()

    torch.testing.assert_close(weights, states[-1], **EXACT)
    torch.testing.assert_close(token.read(queries), queries @ states[-1], **EXACT)
    torch.testing.assert_close(token.columns(slice(1)).read(queries), (queries @ states[-1])[..., :1], **EXACT)
    if momentum == "none":
        assert surprise is None
    else:
        torch.testing.assert_close(surprise, surprises[-1], **EXACT)
        torch.testing.assert_close(token.columns(slice(1)).final()[1], surprises[-1][..., :1], **EXACT)


@pytest.mark.parametrize(("lr", "retention"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.9), (0.5, 0.0)])
@pytest.mark.parametrize("momentum", ["none", "some"])
def test_gradients_are_those_of_the_recurrence(lr: float, retention: float, momentum: str) -> None:
    """Outer gradients of every input, also without a step and with retention at its clamp."""
    case = draw_case(1, momentum=momentum, lr=lr, retention=retention)
    case = case.mapped(lambda tensor: tensor.detach().clone().requires_grad_())
    leaves = case.leaves()
    ours = [tensor for tensor in written(case, 1.0).final() if tensor is not None]
    states, surprises = reference.write_tokens(case.weights, case.keys, case.residuals, case.gates, 1.0, case.surprise)
    above = [draw(*tensor.shape) for tensor in ours]

    actual = torch.autograd.grad(ours, list(leaves.values()), above)
    expected = torch.autograd.grad([states[-1], *surprises[-1:]], list(leaves.values()), above)
    for name, got, wanted in zip(leaves, actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize("momentum", ["none", "some"])
def test_tokens_one_by_one_are_a_chunk_of_theirs(momentum: str) -> None:
    """Nine tokens written one after another, their residuals those of the start, leave what one chunk leaves."""
    case = draw_case(9, momentum=momentum)
    weights, surprise = case.weights, case.surprise
    for t in range(9):
        weights, surprise = written(case.piece(t, t + 1, weights, surprise), 1.0).final()

    expected = write_chunk(case.weights, case.keys, case.residuals, case.gates, 1.0, case.surprise).final()
    torch.testing.assert_close(weights, expected[0], **EXACT)
    if momentum == "some":
        torch.testing.assert_close(surprise, expected[1], **EXACT)


def test_what_cannot_be_is_refused() -> None:
    """There is no second token to read after, and momentum needs the surprise so far."""
    case = draw_case(1, momentum="some")
    with pytest.raises(ValueError, match="place 1"):
        written(case, 1.0).read(draw(*case.keys.shape), 1)
    with pytest.raises(ValueError, match="pass zeros"):
        write_token(case.weights, case.keys, case.residuals, case.gates, 1.0)

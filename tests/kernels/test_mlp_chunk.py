"""The chunk form of `mlp_memory` equals the token-by-token recurrence: states, momenta, reads and outer gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hope_kernels.dgd_memory import Gates
from hope_kernels.mlp_memory import MlpWrite, predict, reference, write_chunk
from memory_cases import EXACT, MOMENTA, draw, draw_gates, draw_keys, paper_mlp_memory

SCOPES = ["layer_input", "k_only", "none"]
Options = dict[str, object]


@dataclass(frozen=True, slots=True)
class Memories:
    """n memories of one key: first [..., n, K, F], second [..., n, F, V], targets [..., n, C, V], keys [..., C, K]."""

    first: torch.Tensor
    second: torch.Tensor
    keys: torch.Tensor
    targets: torch.Tensor
    gates: Gates
    surprise: tuple[torch.Tensor, torch.Tensor] | None

    def write(self, options: Options) -> MlpWrite:
        """Write the whole chunk."""
        return write_chunk(
            self.first, self.second, self.keys, self.targets, self.gates, surprise=self.surprise, **options
        )


def draw_memories(
    num_tokens: int,
    lead: tuple[int, ...] = (2,),
    num_memories: int = 3,
    sizes: tuple[int, int, int] = (5, 7, 5),
    momentum: str = "none",
    correlation: float = 0.0,
    lr: float | None = None,
    retention: float | None = None,
) -> Memories:
    """Memories of key, hidden and value sizes `sizes`."""
    key_size, hidden_size, value_size = sizes
    first = draw(*lead, num_memories, key_size, hidden_size)
    second = draw(*lead, num_memories, hidden_size, value_size) / hidden_size**0.5
    gates = draw_gates(*lead, num_tokens, momentum=momentum, lr=lr, retention=retention)
    surprise = None if momentum == "none" else (draw(*first.shape), draw(*second.shape))
    keys = draw_keys(*lead, num_tokens, key_size, correlation=correlation)
    return Memories(first, second, keys, draw(*lead, num_memories, num_tokens, value_size), gates, surprise)


def assert_same_as_tokens(memories: Memories, options: Options) -> None:
    """Compare each memory of a flat leading dimension with its own recurrence."""
    queries = draw(*memories.targets.shape[:-1], memories.keys.shape[-1])
    written = memories.write(options)
    first, second, surprise = written.final()
    reads = written.read(queries)
    is_residual = bool(options.get("is_residual", True))
    kind = {"objective": "l2", "dgd_scope": "layer_input", "is_residual": True} | options
    for row in range(memories.first.shape[0]):
        gates = memories.gates.mapped(lambda rate, row=row: rate[row])
        for n in range(memories.first.shape[1]):
            at = (row, n)
            before = None if memories.surprise is None else tuple(tensor[at] for tensor in memories.surprise)
            layers = (memories.first[at], memories.second[at])
            states = paper_mlp_memory(layers, memories.keys[row], memories.targets[at], gates, surprise=before, **kind)
            torch.testing.assert_close(first[at], states[-1][0].detach(), **EXACT)
            torch.testing.assert_close(second[at], states[-1][1].detach(), **EXACT)
            if surprise is not None:
                torch.testing.assert_close(surprise[0][at], states[-1][2].detach(), **EXACT)
                torch.testing.assert_close(surprise[1][at], states[-1][3].detach(), **EXACT)
            for t, state in enumerate(states[1:]):
                expected = predict(*state[:2], queries[at][t : t + 1], is_residual=is_residual)
                torch.testing.assert_close(reads[at][t : t + 1], expected.detach(), **EXACT)


@pytest.mark.parametrize("num_tokens", [1, 2, 15, 16, 17])
@pytest.mark.parametrize("dgd_scope", SCOPES)
@pytest.mark.parametrize("momentum", MOMENTA)
def test_a_chunk_equals_its_tokens(num_tokens: int, dgd_scope: str, momentum: str) -> None:
    """Both layers, both momenta and the read after every token, in every scope of the decay."""
    assert_same_as_tokens(draw_memories(num_tokens, momentum=momentum), {"dgd_scope": dgd_scope})


@pytest.mark.parametrize("num_tokens", [63, 64, 65])
def test_a_long_chunk_equals_its_tokens(num_tokens: int) -> None:
    """Both sides of the largest chunk that is served."""
    assert_same_as_tokens(draw_memories(num_tokens, (1,), 1, momentum="some"), {})


@pytest.mark.parametrize("objective", ["l2", "dot"])
@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 3, 5), (3, 11, 3)])
def test_a_chunk_equals_its_tokens_for_every_loss_and_size(
    objective: str, is_residual: bool, sizes: tuple[int, int, int]
) -> None:
    """Both objectives, with and without the residual, at sizes of 1 and primes."""
    memories = draw_memories(6, sizes=sizes, momentum="some")
    assert_same_as_tokens(memories, {"objective": objective, "is_residual": is_residual})


def test_values_may_have_another_size_than_keys() -> None:
    """Without the residual a memory may map keys of size 4 to values of size 1."""
    assert_same_as_tokens(draw_memories(9, sizes=(4, 6, 1)), {"is_residual": False})


@pytest.mark.parametrize("correlation", [0.9, 1.0])
@pytest.mark.parametrize(("lr", "retention"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.9), (0.5, 0.0)])
@pytest.mark.parametrize("momentum", ["none", "some"])
def test_a_chunk_equals_its_tokens_at_the_limits_of_the_rates(
    correlation: float, lr: float, retention: float, momentum: str
) -> None:
    """No step, full steps, nothing forgotten, retention at its clamp, alike and identical keys."""
    memories = draw_memories(12, momentum=momentum, correlation=correlation, lr=lr, retention=retention, num_memories=1)
    assert_same_as_tokens(memories, {})


def test_the_chunk_equals_the_reference() -> None:
    """What the fast form is documented to equal is what it equals."""
    memories = draw_memories(8, (1,), 1)
    at = (0, 0)
    gates = Gates(memories.gates.lr[0], memories.gates.log_retention[0])
    firsts, seconds = reference.write_tokens(
        memories.first[at], memories.second[at], memories.keys[0], memories.targets[at], gates
    )
    first, second, surprise = memories.write({}).final()
    torch.testing.assert_close(first[at], firsts[-1], **EXACT)
    torch.testing.assert_close(second[at], seconds[-1], **EXACT)
    assert surprise is None


def test_reads_may_begin_at_any_token() -> None:
    """Reading from token 5 on gives the last rows of reading from the first."""
    memories = draw_memories(9, momentum="some")
    queries = draw(2, 3, 9, 5)
    written = memories.write({})
    torch.testing.assert_close(written.read(queries[..., 5:, :], 5), written.read(queries)[..., 5:, :], **EXACT)


def test_memories_that_share_keys_equal_memories_alone() -> None:
    """Three memories written together are what each is when it is written alone."""
    memories = draw_memories(17, momentum="some")
    together = memories.write({}).final()
    for n in range(3):
        some = slice(n, n + 1)
        surprise = tuple(tensor[:, some] for tensor in memories.surprise)
        alone = write_chunk(
            memories.first[:, some],
            memories.second[:, some],
            memories.keys,
            memories.targets[:, some],
            memories.gates,
            surprise=surprise,
        ).final()
        torch.testing.assert_close(together[0][:, some], alone[0], **EXACT)
        torch.testing.assert_close(together[1][:, some], alone[1], **EXACT)


@pytest.mark.parametrize("dgd_scope", SCOPES)
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_gradients_are_those_of_the_recurrence(dgd_scope: str, momentum: str, num_tokens: int) -> None:
    """Outer gradients pass through the inner ones: the closed form's second derivatives are those of autograd."""
    memories = draw_memories(num_tokens, (1,), 1, momentum=momentum)
    inputs = [
        memories.first,
        memories.second,
        memories.keys,
        memories.targets,
        memories.gates.lr,
        memories.gates.log_retention,
        memories.gates.momentum,
    ]
    leaves = [t.clone().requires_grad_() for t in [*inputs, *(memories.surprise or ())] if t is not None]
    options: Options = {"dgd_scope": dgd_scope, "objective": "l2", "is_residual": True}
    rates, queries = leaves[4 : len(leaves) - 2 * (momentum != "none")], draw(1, 1, num_tokens, 5)
    surprise = None if momentum == "none" else (leaves[-2], leaves[-1])

    written = write_chunk(*leaves[:4], Gates(*rates), surprise=surprise, **options)
    first, second, left = written.final()
    ours = [written.read(queries), first, second, *(left or ())]
    before = None if surprise is None else (surprise[0][0, 0], surprise[1][0, 0])
    states = paper_mlp_memory(
        (leaves[0][0, 0], leaves[1][0, 0]),
        leaves[2][0],
        leaves[3][0, 0],
        Gates(*(rate[0] for rate in rates)),
        surprise=before,
        **options,
    )
    reads = torch.cat([predict(*s[:2], queries[0, 0, t : t + 1]) for t, s in enumerate(states[1:])])
    theirs = [tensor[None, None] for tensor in (reads, *states[-1][: len(ours) - 1])]

    above = [draw(*tensor.shape) for tensor in ours]
    actual = torch.autograd.grad(ours, leaves, above)
    expected = torch.autograd.grad(theirs, leaves, above)
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


def test_later_tokens_of_a_chunk_do_not_change_earlier_reads() -> None:
    """What is read after five of eight tokens is what is read when only those five are written."""
    memories = draw_memories(8, momentum="some")
    short = Memories(
        memories.first,
        memories.second,
        memories.keys[:, :5],
        memories.targets[:, :, :5],
        memories.gates.mapped(lambda rate: rate[..., :5]),
        memories.surprise,
    )
    queries = draw(2, 3, 5, 5)
    torch.testing.assert_close(short.write({}).read(queries), memories.write({}).read(queries), **EXACT)


def test_a_row_does_not_see_its_neighbours() -> None:
    """NaN in every tensor of another row leaves a row's results as they are, bit for bit."""
    memories = draw_memories(17, (3,), momentum="some")
    is_own = torch.tensor([0, 1, 0], dtype=torch.bool)

    def poisoned(tensor: torch.Tensor) -> torch.Tensor:
        return torch.where(is_own.reshape(3, *(1,) * (tensor.dim() - 1)), tensor, torch.nan)

    other = Memories(
        *(poisoned(t) for t in (memories.first, memories.second, memories.keys, memories.targets)),
        memories.gates.mapped(poisoned),
        tuple(poisoned(tensor) for tensor in memories.surprise),
    )
    queries = draw(3, 3, 17, 5)
    for ours, theirs in zip(memories.write({}).final()[:2], other.write({}).final()[:2], strict=True):
        assert torch.equal(ours[1], theirs[1])
    assert torch.equal(memories.write({}).read(queries)[1], other.write({}).read(queries)[1])


def test_tokens_of_padding_change_nothing() -> None:
    """Tokens with lr 0 and log retention 0 leave both layers bit for bit."""
    memories = draw_memories(5, lr=0.0, retention=1.0)
    first, second, _ = memories.write({}).final()
    assert torch.equal(first, memories.first)
    assert torch.equal(second, memories.second)

"""The GPU kernels of MLP memories equal the token-by-token oracle in float64, whose gradients are autograd's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; run make test-kernels")

from hope_kernels.dgd_memory import Gates
from hope_kernels.mlp_memory import gpu, predict, reference
from memory_cases import draw_gates, draw_keys

Error = Callable[[torch.Tensor, torch.Tensor], float]

# Sums of up to 128 products in float32 are off by about 3e-7, and both layers take one after the other. A wrong formula
# is off by 1e-3 or more. Half precision: outputs are rounded to it, and on a GPU products are taken in tf32.
LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
UNUSED = 1e30
SCOPES = ("layer_input", "k_only", "none")


@dataclass(frozen=True, slots=True)
class Case:
    """Rows in pools of twice their number, unused slots filled; the last row is padding, with tokens of its own."""

    first: torch.Tensor
    second: torch.Tensor
    slots: torch.Tensor
    bounds: torch.Tensor
    keys: torch.Tensor
    targets: torch.Tensor
    gates: Gates
    is_residual: bool

    def rows(self) -> list[tuple[int, slice]]:
        """Slot and tokens of every row that is not padding."""
        stops = self.bounds.tolist()
        return [(s, slice(stops[i], stops[i + 1])) for i, s in enumerate(self.slots.tolist()) if s >= 0]

    def used(self) -> torch.Tensor:
        """Slots of the rows that are not padding."""
        return self.slots[self.slots >= 0].long().cpu()


def draw_case(
    shape: tuple[int, int, int],
    lengths: list[int],
    device: torch.device,
    *,
    is_residual: bool = True,
    dtype: torch.dtype = torch.float32,
    heads: int = 1,
    memories: int = 2,
    correlation: float = 0.0,
    lr: float | None = None,
    retention: float | None = None,
) -> Case:
    """Unit keys, random targets and rates; shape: K, F and V."""
    key_size, hidden_size, value_size = shape
    lengths = [*lengths, 2]
    rows, tokens = len(lengths), sum(lengths)
    slots = torch.randperm(2 * rows)[:rows]
    slots[-1] = -1
    pools = []
    for inputs, outputs in ((key_size, hidden_size), (hidden_size, value_size)):
        pool = torch.full((2 * rows, heads, memories, inputs, outputs), UNUSED)
        pool[slots[:-1]] = torch.randn(rows - 1, *pool.shape[1:]) / inputs**0.5
        pools.append(pool.to(device))
    keys = draw_keys(heads, tokens, key_size, correlation=correlation).transpose(0, 1)
    gates = draw_gates(tokens, heads, lr=lr, retention=retention).mapped(lambda rate: rate.float().to(device))
    return Case(
        pools[0],
        pools[1],
        slots.int().to(device),
        torch.tensor([0, *lengths]).cumsum(0).int().to(device),
        keys.to(device, dtype).contiguous(),
        torch.randn(tokens, heads, memories, value_size).to(device, dtype),
        gates,
        is_residual,
    )


def expect_write(case: Case, objective: str, dgd_scope: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Both pools after the oracle's write, in float64."""
    first, second = case.first.double().cpu(), case.second.double().cpu()
    keys, targets = case.keys.double().cpu(), case.targets.double().cpu()
    gates = case.gates.mapped(lambda rate: rate.double().cpu())
    for slot, tokens in case.rows():
        for head in range(first.shape[1]):
            for memory in range(first.shape[2]):
                firsts, seconds = reference.write_tokens(
                    first[slot, head, memory],
                    second[slot, head, memory],
                    keys[tokens, head],
                    targets[tokens, head, memory],
                    Gates(gates.lr[tokens, head], gates.log_retention[tokens, head]),
                    objective=objective,
                    dgd_scope=dgd_scope,
                    is_residual=case.is_residual,
                )
                first[slot, head, memory], second[slot, head, memory] = firsts[-1], seconds[-1]
    return first, second


def write(case: Case, objective: str = "l2", dgd_scope: str = "layer_input") -> None:
    """What the kernels make of the case, in its pools."""
    gpu.write_chunk(
        case.first,
        case.second,
        case.slots,
        case.keys,
        case.targets,
        case.gates,
        case.bounds,
        objective=objective,
        dgd_scope=dgd_scope,  # type: ignore[arg-type]
        is_residual=case.is_residual,
    )


def assert_writes(case: Case, relative_error: Error, *, objective: str = "l2", dgd_scope: str = "layer_input") -> None:
    """Slots in use hold what the oracle writes, all others what they held, bit for bit."""
    expected = expect_write(case, objective, dgd_scope)
    write(case, objective, dgd_scope)
    used = case.used()
    for pool, wanted in zip((case.first.cpu(), case.second.cpu()), expected, strict=True):
        assert relative_error(pool[used], wanted[used]) < LIMITS[case.keys.dtype]
        others = torch.ones(len(pool), dtype=torch.bool)
        others[used] = False
        assert torch.equal(pool[others], torch.full_like(pool[others], UNUSED))


def expect_read(case: Case, memory: int) -> torch.Tensor:
    """What the oracle retrieves for the case's keys in float64; padding reads 0."""
    out = torch.zeros(*case.targets.shape[:2], case.targets.shape[-1], dtype=torch.float64)
    keys = case.keys.double().cpu()
    for slot, tokens in case.rows():
        for head in range(keys.shape[1]):
            first, second = (pool[slot, head, memory].double().cpu() for pool in (case.first, case.second))
            out[tokens, head] = predict(first, second, keys[tokens, head], is_residual=case.is_residual)
    return out


def read(case: Case, memory: int) -> torch.Tensor:
    """What the kernels retrieve for the case's keys."""
    return gpu.read(case.first, case.second, case.slots, memory, case.keys, case.bounds, is_residual=case.is_residual)


@pytest.mark.parametrize("is_residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("objective", ["l2", "dot"])
@pytest.mark.parametrize("dgd_scope", SCOPES)
def test_a_write_equals_its_tokens(
    dgd_scope: str, objective: str, is_residual: bool, device: torch.device, relative_error: Error
) -> None:
    """Every scope and objective, with and without the residual path; two rows of different length."""
    case = draw_case(
        (16, 32, 16), [18, 3], device, is_residual=is_residual, lr=0.1 if dgd_scope != "layer_input" else None
    )
    assert_writes(case, relative_error, objective=objective, dgd_scope=dgd_scope)


def test_chunks_of_any_length(device: torch.device, relative_error: Error) -> None:
    """Rows of 1, C - 1, C and C + 1 tokens for a chunk of two tiles, and one without any, with two heads."""
    assert_writes(draw_case((16, 16, 16), [1, 31, 32, 33, 0], device, heads=2, memories=1), relative_error)


@pytest.mark.parametrize(
    "shape",
    [(32, 64, 32), (64, 32, 16), (16, 128, 128), (64, 64, 64), (128, 16, 128), (16, 32, 1), (64, 64, 1)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_layers_of_every_size(shape: tuple[int, int, int], device: torch.device, relative_error: Error) -> None:
    """One block of keys, hidden units or values, or several; and memories that make rates."""
    case = draw_case(shape, [17], device, is_residual=shape[0] == shape[2], memories=1)
    assert relative_error(read(case, 0), expect_read(case, 0)) < LIMITS[torch.float32]
    assert_writes(case, relative_error)


def test_the_largest_layers(device: torch.device, relative_error: Error) -> None:
    """All sizes 128."""
    case = draw_case((128, 128, 128), [3], device, memories=1)
    assert_writes(case, relative_error)
    assert relative_error(read(case, 0), expect_read(case, 0)) < LIMITS[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("objective", ["l2", "dot"])
def test_inputs_may_be_in_half_precision(
    objective: str, dtype: torch.dtype, device: torch.device, relative_error: Error
) -> None:
    """What is read has the type of the queries; memories stay float32."""
    case = draw_case((32, 32, 32), [17, 4], device, dtype=dtype)
    found = read(case, 1)
    assert found.dtype == dtype
    assert relative_error(found, expect_read(case, 1)) < LIMITS[dtype]
    assert_writes(case, relative_error, objective=objective)


@pytest.mark.parametrize("correlation", [0.9, 1.0])
def test_alike_and_identical_keys(correlation: float, device: torch.device, relative_error: Error) -> None:
    """Full steps along one direction, in both layers, where a series for the inverse would lose every digit."""
    case = draw_case((16, 32, 16), [33], device, correlation=correlation, lr=1.0, retention=1.0)
    assert_writes(case, relative_error)


@pytest.mark.parametrize("dgd_scope", SCOPES)
def test_tokens_without_step_and_decay_leave_the_memory(dgd_scope: str, device: torch.device) -> None:
    """lr 0 and retention 1 keep every bit of both layers."""
    case = draw_case((16, 32, 16), [20], device, lr=0.0, retention=1.0)
    before = (case.first.clone(), case.second.clone())
    write(case, dgd_scope=dgd_scope)
    assert torch.equal(case.first, before[0]) and torch.equal(case.second, before[1])


def test_retention_alone(device: torch.device, relative_error: Error) -> None:
    """lr 0 only shrinks both layers."""
    assert_writes(draw_case((16, 32, 16), [20], device, lr=0.0), relative_error)


@pytest.mark.parametrize("memory", [0, 2])
def test_a_read_is_of_one_memory(memory: int, device: torch.device, relative_error: Error) -> None:
    """Rows of different length, one far longer than the mean; the padding row reads 0."""
    case = draw_case((16, 32, 16), [50, 1, 2], device, heads=2, memories=3)
    found = read(case, memory)
    assert relative_error(found, expect_read(case, memory)) < LIMITS[torch.float32]
    assert torch.equal(found[-2:], torch.zeros_like(found[-2:]))


@pytest.mark.parametrize(
    "shape", [(16, 32, 16), (32, 64, 1), (128, 64, 128)], ids=lambda shape: "x".join(map(str, shape))
)
def test_decode_reads_one_token_a_row(shape: tuple[int, int, int], device: torch.device, relative_error: Error) -> None:
    """Without row bounds each row has one query: the same as with bounds that say so, and rows may share a slot."""
    case = draw_case(shape, [1, 1, 1], device, is_residual=shape[0] == shape[2], heads=2)
    slots, query = case.slots.clone(), case.keys[:4].contiguous()
    slots[1] = slots[0]
    case = replace(case, slots=slots, keys=query, targets=case.targets[:4], bounds=torch.arange(5).int().to(device))
    found = gpu.read(case.first, case.second, slots, 1, query, is_residual=case.is_residual)
    assert relative_error(found, expect_read(case, 1)) < LIMITS[torch.float32]
    assert relative_error(read(case, 1), expect_read(case, 1)) < LIMITS[torch.float32]
    assert not bool(found[-1].any())


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    """Each is named, with the rule it breaks."""
    case = draw_case((16, 32, 16), [4], device)

    def refused(argument: str, *, objective: str = "l2", dgd_scope: str = "layer_input", **changes: object) -> None:
        with pytest.raises(ValueError, match=rf"^{argument}: "):
            write(replace(case, **changes), objective, dgd_scope)  # type: ignore[arg-type]

    refused("first_pool", first=case.first.double())
    refused("first_pool", first=case.first.mT.contiguous().mT)
    refused("first_pool", first=case.first[..., :24].contiguous())
    refused("second_pool", second=case.second[:, :, :1].contiguous())
    refused("second_pool", second=case.second[..., :8].contiguous())
    refused("is_residual", second=case.second[..., :1].contiguous())
    refused("slots", slots=case.slots.long())
    refused("cu_seqlens", bounds=case.bounds[:-1])
    refused("keys", keys=case.keys.double())
    refused("targets", targets=case.targets.half())
    refused("targets", targets=case.targets[:, :, :1].contiguous())
    refused("gates.lr", gates=case.gates.with_lr(case.gates.lr.double()))
    refused("gates.log_retention", gates=replace(case.gates, log_retention=case.gates.log_retention[:-1]))
    refused("gates.momentum", gates=replace(case.gates, momentum=case.gates.lr))
    refused("objective", objective="l1")
    refused("dgd_scope", dgd_scope="all")
    for memory in (-1, 2):
        with pytest.raises(ValueError, match=r"^memory_index: "):
            read(case, memory)
    with pytest.raises(ValueError, match=r"^query: "):
        gpu.read(case.first, case.second, case.slots, 0, case.keys)
    if device.type == "cpu":
        refused("slots", slots=case.slots.clone().fill_(len(case.first)))
        refused("slots", slots=case.slots.clone().fill_(0))

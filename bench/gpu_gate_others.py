"""Cases of the other operators: every configuration of theirs beside float64, at full and at ragged tiles.

Shapes: B rows, S slots, T tokens, I inputs, O outputs, r rank, P weights of a level.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from gpu_checks import FLOOR, UNUSED, Case, Check, error, limit, near, same, true
from gpu_oracle import products_in_tf32
from gpu_rows import NAMES
from hope_kernels.cms_update import ElementRule, LevelWrite
from hope_kernels.cms_update import gpu as cms_gpu
from hope_kernels.cms_update import reference as cms_reference
from hope_kernels.fast_linear import gpu as linear_gpu
from hope_kernels.newton_schulz import QUINTIC
from hope_kernels.newton_schulz import bmm as newton_bmm
from hope_kernels.newton_schulz import gpu as newton_gpu
from hope_kernels.newton_schulz import reference as newton_reference
from hope_kernels.pack_state import Form
from hope_kernels.pack_state import gpu as pack_gpu
from hope_kernels.pack_state import reference as pack_reference
from hope_kernels.pack_state.layout import BUFFER_DTYPES
from hope_kernels.pack_state.layout import Layout as PackLayout

NEWTON_LIMITS = {torch.float32: 2e-6, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""Half precision: the factors of 15 products are rounded, and a step lifts what is off in small values by up to 3.4."""
SLOTS = [3, -1, 0]
LEVEL_SLOTS, FINITE = [6, 0, -1, 2, 5, 3], [True, True, True, False, True, True]
LR, BETAS = 0.05, (0.9, 0.99)


def check_linear(
    dtype: torch.dtype, own: torch.dtype, parts: tuple[bool, bool, bool], tokens: int, device: torch.device
) -> list[Check]:
    """One configuration of `fast_linear`: base, dense and low-rank weights as far as they are there."""
    checks = []
    for inputs, outputs, rank in ((128, 64, 16), (65, 33, 17)):
        full = 6e4 if own == torch.float16 else UNUSED
        x = torch.randn(3, tokens, inputs, device=device).to(dtype)
        base = torch.randn(outputs, inputs, device=device).to(dtype)
        pools = []
        for shape in ((outputs, inputs), (rank, inputs), (outputs, rank)):
            pool = torch.full((5, *shape), full, device=device)
            pool[[0, 3]] = torch.randn(2, *shape, device=device)
            pools.append(pool.to(own))
        dense, a, b = pools
        slots = torch.tensor(SLOTS, device=device)
        has_base, has_dense, has_low_rank = parts
        found = linear_gpu.fast_linear(
            x, base if has_base else None, dense if has_dense else None, (a, b) if has_low_rank else None, slots
        )
        exact = torch.zeros(3, tokens, outputs, dtype=torch.float64, device=device)
        given = x.double()
        if has_base:
            exact += given @ base.double().T
        for row, slot in enumerate(SLOTS):
            # As the products' type holds them.
            if slot >= 0 and has_dense:
                exact[row] += given[row] @ dense[slot].to(dtype).double().T
            if slot >= 0 and has_low_rank:
                exact[row] += given[row] @ a[slot].to(dtype).double().T @ b[slot].to(dtype).double().T
        checks.append(near(f"{inputs} to {outputs}", found, exact, dtype))
    return checks


def check_newton(dtype: torch.dtype, has_slots: bool, side: int, device: torch.device) -> list[Check]:
    """One configuration of `newton_schulz`, at its largest side and one below, tall and wide."""
    checks = []
    for shape in ((side, side + 32), (side + 3, side - 1)):
        pool = torch.randn(4, *shape, device=device).to(dtype)
        slots = torch.tensor([2, -1, 0], device=device) if has_slots else None
        found = newton_gpu.newton_schulz(pool, 5 if side <= 64 else 2, QUINTIC, slots)
        exact = newton_reference.newton_schulz(pool.cpu(), 5 if side <= 64 else 2).to(device)
        plain = newton_bmm.newton_schulz(pool, 5 if side <= 64 else 2, QUINTIC, None)
        least = limit(dtype, error(plain, exact)) if dtype == torch.float32 else 0.0
        if has_slots:
            exact = exact[[2, 1, 0]]
            exact[1] = 0.0
        checks.append(Check(f"{shape[0]} by {shape[1]}", error(found, exact), max(least, NEWTON_LIMITS[dtype])))
    return checks


def check_pack(form: Form, width: str, device: torch.device) -> list[Check]:
    """Every byte of a buffer, and of what comes back; words of 16, 8, 4 or 2 bytes."""
    given = {
        "wide": [torch.randn(5, 64, 36), torch.randn(5, 8).bfloat16()],
        "eight": [torch.randn(5, 2050), torch.randn(5, 12).bfloat16()],
        "middle": [torch.randn(5, 2049), torch.randn(5, 6).bfloat16()],
        "narrow": [torch.randn(5, 1025), torch.randn(5, 65).half(), torch.randn(5, 9).double(), torch.randn(5, 0)],
    }[width]
    chosen, targets = [3, 0], [4, 2]
    tensors = [tensor.to(device) for tensor in given]
    layout = PackLayout.of(tensors, form)
    buffer = torch.zeros(2, layout.num_elements, dtype=BUFFER_DTYPES[form], device=device)
    is_finite = pack_gpu.pack_(buffer, tensors, chosen, layout)
    rows = pack_reference.pack(given, chosen, form)
    checks = [true("all is finite", is_finite)]
    checks.append(true("bytes", [bytes(row.view(torch.uint8).tolist()) for row in buffer.cpu()] == rows))
    back = [torch.full_like(tensor, 3e4) for tensor in tensors]
    pack_gpu.unpack_(buffer, back, targets, layout)
    for row, slot in zip(rows, targets, strict=True):
        for tensor, expected in zip(back, pack_reference.unpack(row, given, form), strict=True):
            wanted = torch.tensor(expected, dtype=torch.float64).to(tensor.dtype)
            checks.append(same("what comes back", tensor[slot].flatten().cpu(), wanted))
    checks += [same("other slots", tensor[[0, 1, 3]], torch.full_like(tensor[[0, 1, 3]], 3e4)) for tensor in back]
    return checks


def draw_level(name: str, size: int, accumulates: bool, dtype: torch.dtype, device: torch.device) -> LevelWrite:
    """Seven slots and six rows of a level; "given": a rule that torch steps between the passes."""
    moments = {"sgd": (), "given": (), "momentum": ("first_moment",), "adam": ("first_moment", "second_moment")}[name]
    return LevelWrite(
        weights=torch.randn(7, size, device=device),
        initial=torch.randn(size, device=device),
        moments={key: 0.1 * torch.rand(7, size, device=device) for key in moments},
        accumulator=torch.randn(7, size if accumulates else 0, device=device),
        num_steps=torch.arange(7, device=device) * 4,
        gradient=(3 * torch.randn(6, size, device=device)).to(dtype),
        num_taught=torch.arange(6, device=device) % 4,
        is_due=torch.arange(6, device=device) % 3 != 0,
        max_update_norm=1.0,
        norm_cap=(2 * size) ** 0.5,
        step=lambda moments, gradient, num_steps, drift: (-LR * gradient, moments),
        element_rule=None if name == "given" else ElementRule(name, LR, BETAS),  # type: ignore[arg-type]
    )


def check_levels(dtype: torch.dtype, device: torch.device) -> list[Check]:
    """All rules in one call, with and without accumulators, beside Python's own float64 numbers."""
    steps: dict[str, cms_reference.RowStep] = {
        "sgd": cms_reference.sgd(LR),
        "given": cms_reference.sgd(LR),
        "momentum": cms_reference.momentum(LR, BETAS[0]),
        "adam": cms_reference.adam(LR, BETAS, 1e-8),
    }
    names = list(product(steps, (False, True), (28, 1025) if device.type == "cuda" else (28,)))
    levels = [draw_level(name, size, waits, dtype, device) for name, waits, size in names]
    before = [
        (level.weights.clone(), level.accumulator.clone(), {key: t.clone() for key, t in level.moments.items()})
        for level in levels
    ]
    slots = torch.tensor(LEVEL_SLOTS, device=device)
    found = cms_gpu.write_(levels, torch.tensor(FINITE, device=device), slots)
    checks = []
    for (name, _, _), level, (weights, waiting, moments), written in zip(names, levels, before, found, strict=True):
        wanted, wanted_waiting, norms = weights.double(), waiting.double(), []
        for row, slot in enumerate(LEVEL_SLOTS):
            if slot < 0:
                norms.append(0.0)
                continue
            after, _, kept, norm, _ = cms_reference.write_row(
                weights[slot].tolist(), level.initial.tolist(), {key: t[slot].tolist() for key, t in moments.items()},
                waiting[slot].tolist(), int(level.num_steps[slot]), level.gradient[row].tolist(),
                int(level.num_taught[row]), bool(level.is_due[row]), FINITE[row], level.max_update_norm,
                level.norm_cap, steps[name],
            )  # fmt: skip
            wanted[slot] = torch.tensor(after, dtype=torch.float64)
            wanted_waiting[slot] = torch.tensor(kept, dtype=torch.float64)
            norms.append(norm)
        # All that is kept is float32, whatever the gradient's type.
        checks.append(near(f"{name} weights", level.weights, wanted, torch.float32))
        checks.append(near(f"{name} accumulator", level.accumulator, wanted_waiting, torch.float32))
        # A write is the difference of float32 weights, whose rounding a small one shows.
        sizes = torch.tensor(norms, dtype=torch.float64, device=device)
        lost = 2**-24 * float(weights.double().norm() / sizes.norm())
        checks.append(Check(f"{name} norms", error(written.norm, sizes), FLOOR[torch.float32] + lost))
        checks.append(same(f"{name} slots of no row", level.weights[[1, 4]], weights[[1, 4]]))
    return checks


def check_mlp(shape: tuple[int, int, int], chunk_size: int, dtype: torch.dtype, device: torch.device) -> list[Check]:
    """Two-layer memories of one head size: read by tokens and by rows, then written, beside torch in float64."""
    from hope_kernels.dgd_memory import Gates
    from hope_kernels.mlp_memory import predict, write_chunk

    gpu = importlib.import_module("hope_kernels.mlp_memory.gpu")
    key_size, hidden, value_size = shape
    heads, memories, is_residual = 2, 3, key_size == value_size
    first = torch.randn(5, heads, memories, key_size, hidden, device=device) / key_size**0.5
    second = torch.randn(5, heads, memories, hidden, value_size, device=device) / hidden**0.5
    slots, tokens = torch.tensor([3, 0], dtype=torch.int32, device=device), 2 * chunk_size
    bounds = torch.tensor([0, chunk_size, tokens], dtype=torch.int32, device=device)
    keys = torch.nn.functional.normalize(torch.randn(tokens, heads, key_size, device=device), dim=-1).to(dtype)
    targets = torch.randn(tokens, heads, memories, value_size, device=device).to(dtype)
    lr = 0.5 * torch.rand(tokens, heads, device=device)
    log_retention = torch.nn.functional.logsigmoid(torch.randn(tokens, heads, device=device) + 3)
    own, kept = slots.long(), (first.clone(), second.clone())

    def per_row(tensor: torch.Tensor, precision: torch.dtype = torch.float64) -> torch.Tensor:
        turned: torch.Tensor = tensor.unflatten(0, (2, -1)).transpose(1, 2).to(precision)
        return turned

    def in_torch(precision: torch.dtype) -> list[torch.Tensor]:
        """What is read before the write, and both layers after it."""
        layers, inputs = (kept[0][own].to(precision), kept[1][own].to(precision)), per_row(keys, precision)
        gates = Gates(per_row(lr[..., None], precision)[..., 0], per_row(log_retention[..., None], precision)[..., 0])
        given = per_row(targets.flatten(2), precision).unflatten(-1, (memories, value_size)).transpose(2, 3)
        after = write_chunk(*layers, inputs, given, gates, is_residual=is_residual).final()
        return [predict(layers[0][:, :, 1], layers[1][:, :, 1], inputs, is_residual=is_residual), after[0], after[1]]

    exact = in_torch(torch.float64)
    if dtype == torch.float32:
        twin = in_torch(torch.float32)
    else:
        with products_in_tf32():
            twin = in_torch(torch.float32)
    losses = [error(rough, fine) for rough, fine in zip(twin, exact, strict=True)]
    found = gpu.read(first, second, slots, 1, keys, bounds, is_residual=is_residual)
    checks = [near("read", per_row(found), exact[0], dtype, losses[0])]
    query = keys[[0, chunk_size]].contiguous()
    decoded = gpu.read(first, second, slots, 1, query, None, is_residual=is_residual)
    checks.append(near("read of one token", decoded, exact[0][:, :, 0], dtype, losses[0]))
    gpu.write_chunk(first, second, slots, keys, targets, Gates(lr, log_retention), bounds, is_residual=is_residual)
    checks.append(near("first layers", first[own], exact[1], dtype, losses[1]))
    checks.append(near("second layers", second[own], exact[2], dtype, losses[2]))
    others = [1, 2, 4]
    checks += [same("unused slots", pool[others], old[others]) for pool, old in zip((first, second), kept, strict=True)]
    return checks


def cases(is_toy: bool) -> dict[str, Case]:
    """All cases of these operators by name."""
    dtypes = (torch.float32, torch.float16) if is_toy else (torch.bfloat16, torch.float32, torch.float16)
    found: dict[str, Case] = {}
    add: Callable[[str, Case], None] = found.__setitem__
    for dtype in dtypes:
        add(f"cms_update {NAMES[dtype]}", partial(check_levels, dtype))
        for own, parts, tokens in product(dict.fromkeys((dtype, torch.float32)), linear_gpu._PARTS, (1, 33)):
            kinds = "+".join(name for name, there in zip(("base", "dense", "rank"), parts, strict=True) if there)
            name = f"fast_linear {NAMES[dtype]} own {NAMES[own]} {kinds} T={tokens}"
            add(name, partial(check_linear, dtype, own, parts, tokens))
        for has_slots, side in product((False, True), (16, 32) if is_toy else (16, 32, 64, 128)):
            name = f"newton_schulz {NAMES[dtype]} side {side}{', slots' if has_slots else ''}"
            add(name, partial(check_newton, dtype, has_slots, side))
    for form, width in (
        ("exact", "wide"),
        ("exact", "eight"),
        ("exact", "middle"),
        ("exact", "narrow"),
        ("bf16", "narrow"),
        ("int8", "narrow"),
    ):
        add(f"pack_state {form} {width}", partial(check_pack, form, width))  # type: ignore[arg-type]
    if importlib.util.find_spec("hope_kernels.mlp_memory.gpu") is None:
        print("mlp_memory: has no GPU form, not checked", flush=True)
        return found
    for dtype, chunk in product(dtypes, (5,) if is_toy else (16, 64)):
        for size, hidden in ((16, 16),) if is_toy else ((64, 64), (128, 128), (64, 128)):
            for value_size in (size, 1):
                shape = (size, hidden, value_size)
                name = f"mlp_memory {NAMES[dtype]} {size}x{hidden}x{value_size} C={chunk}"
                add(name, partial(check_mlp, shape, chunk, dtype))
    return found

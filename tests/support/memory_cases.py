"""Drawn inputs of the memory operators, and oracles written from the equations: nothing of `hope_kernels` but `Gates`.

Shapes: C tokens, K key size, F hidden size, V value size. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from hope_kernels.dgd_memory import Gates

# Float64 carries 16 digits. The chunk form adds up to 65 terms in another order and solves a triangular system whose
# inverse has entries of at most about 10 for unit keys and lr up to 1: what is lost is below 1e-12 for memories of
# size 1, and a wrong formula is off by 1e-3 or more.
EXACT = {"rtol": 1e-10, "atol": 1e-10}

MOMENTA = ("none", "some", "zeros", "ones")


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of one write: weights, surprise [..., K, V]; keys [..., C, K]; residuals or targets [..., C, V]."""

    weights: torch.Tensor
    keys: torch.Tensor
    residuals: torch.Tensor
    gates: Gates
    surprise: torch.Tensor | None

    def leaves(self) -> dict[str, torch.Tensor]:
        """Every tensor of the case by its name."""
        named = {name: getattr(self, name) for name in ("weights", "keys", "residuals", "surprise")}
        named |= {field.name: getattr(self.gates, field.name) for field in fields(Gates)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Case:
        """The case with every tensor changed."""
        surprise = None if self.surprise is None else change(self.surprise)
        gates = self.gates.mapped(change)
        return Case(change(self.weights), change(self.keys), change(self.residuals), gates, surprise)

    def piece(self, start: int, stop: int, weights: torch.Tensor, surprise: torch.Tensor | None) -> Case:
        """Tokens start..stop-1 of the case, to be written into another memory."""
        keys, residuals = self.keys[..., start:stop, :], self.residuals[..., start:stop, :]
        return Case(weights, keys, residuals, self.gates.mapped(lambda rate: rate[..., start:stop]), surprise)


def draw(*shape: int) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64)


def draw_keys(*shape: int, correlation: float = 0.0) -> torch.Tensor:
    """Unit keys [..., C, K] with about this correlation between the tokens; 1 makes them identical."""
    common = draw(*shape[:-2], 1, shape[-1])
    own = draw(*shape)
    mixed = correlation**0.5 * common + (1 - correlation) ** 0.5 * own
    return torch.nn.functional.normalize(mixed, dim=-1)


def draw_gates(*shape: int, momentum: str = "none", lr: float | None = None, retention: float | None = None) -> Gates:
    """Rates [..., C]; lr and retention drawn from (0, 1) where they are not given, the log of retention from -5 to 0.

    momentum: "none"; "some" in (0, 1); "zeros": the same with a third set to exactly 0; "ones": nothing is forgotten.
    """
    rates = torch.rand(*shape, dtype=torch.float64) if lr is None else torch.full(shape, lr, dtype=torch.float64)
    if retention is None:
        kept = torch.sigmoid(draw(*shape) + 3)
    else:
        kept = torch.full(shape, retention, dtype=torch.float64)
    shares = torch.rand(*shape, dtype=torch.float64)
    if momentum == "zeros":
        shares = shares * (torch.arange(shape[-1]) % 3 != 1)
    elif momentum == "ones":
        shares = torch.ones_like(shares)
    return Gates(rates, kept.log().clamp(min=-5.0), None if momentum == "none" else shares)


def draw_case(
    num_tokens: int,
    key_size: int = 7,
    value_size: int = 5,
    lead: tuple[int, ...] = (2, 3),
    momentum: str = "none",
    correlation: float = 0.0,
    lr: float | None = None,
    retention: float | None = None,
) -> Case:
    """A write of a linear memory, its residuals drawn at random."""
    gates = draw_gates(*lead, num_tokens, momentum=momentum, lr=lr, retention=retention)
    surprise = None if momentum == "none" else draw(*lead, key_size, value_size)
    keys = draw_keys(*lead, num_tokens, key_size, correlation=correlation)
    weights = draw(*lead, key_size, value_size) / key_size**0.5
    return Case(weights, keys, draw(*lead, num_tokens, value_size), gates, surprise)


def paper_matrix_memory(
    memory: torch.Tensor, keys: torch.Tensor, targets: torch.Tensor, gates: Gates, delta: float, objective: str
) -> list[torch.Tensor]:
    """A matrix memory [V, K] (values first, as printed) after 0..C tokens, from its loss alone.

    The loss of a token, half the squared error or minus the dot product, is differentiated by autograd at the memory
    of the chunk's start. Source: NL eq. 88, 90; momentum from zero as in Titans eq. 9-10.
    """
    memories, surprise = [memory], torch.zeros_like(memory)
    for t, (key, target) in enumerate(zip(keys, targets, strict=True)):
        leaf = memory.detach().clone().requires_grad_()
        found = leaf @ key
        loss = 0.5 * ((found - target) ** 2).sum() if objective == "l2" else -(found @ target)
        (gradient,) = torch.autograd.grad(loss, leaf)
        lr, retention = gates.lr[t].item(), gates.log_retention[t].exp().item()
        share = 0.0 if gates.momentum is None else gates.momentum[t].item()
        surprise = share * surprise - lr * gradient
        transition = torch.diag(torch.full_like(key, retention)) - delta * lr * torch.outer(key, key)
        memories.append(memories[-1] @ transition + surprise)
    return memories


def paper_mlp_memory(
    layers: tuple[torch.Tensor, torch.Tensor],
    keys: torch.Tensor,
    targets: torch.Tensor,
    gates: Gates,
    *,
    objective: str,
    dgd_scope: str,
    is_residual: bool,
    surprise: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A 2-layer MLP memory ([K, F], [F, V]) and its two momenta after 0..C tokens, differentiable in every input.

    The inner gradients are autograd's, with a graph, so that an outer gradient passes through them.
    Source: NL eq. 88-90; each layer decays along its own input, the hidden one at lr / (1 + |hidden|^2).
    """
    leaves = [layer if layer.requires_grad else layer.detach().requires_grad_() for layer in layers]
    first, second = leaves
    before = surprise or (torch.zeros_like(first), torch.zeros_like(second))
    states = [(first, second, *before)]
    for t, (key, target) in enumerate(zip(keys, targets, strict=True)):
        hidden = torch.nn.functional.gelu(first.T @ key)
        found = second.T @ hidden + (key if is_residual else 0)
        loss = ((found - target) ** 2).sum() / 2 if objective == "l2" else -(found @ target)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        rates = (gates.lr[t], gates.lr[t] / (1 + hidden @ hidden))
        deltas = (dgd_scope != "none", dgd_scope == "layer_input")
        share = 0.0 if gates.momentum is None else gates.momentum[t]
        after, momenta = [], []
        for i, inputs in enumerate((key, hidden)):
            momenta.append(share * states[-1][2 + i] - rates[i] * gradients[i])
            memory = states[-1][i]
            forgotten = rates[i] * torch.outer(inputs, inputs @ memory) if deltas[i] else torch.zeros_like(memory)
            after.append(gates.log_retention[t].exp() * memory - forgotten + momenta[i])
        states.append((after[0], after[1], momenta[0], momenta[1]))
    return states

"""The rules as outer optimizers: who steps which parameter, resumption, and that a small network learns."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch.nn import functional

from hope_server.optim import RULE_NAMES, make_rule
from hope_server.optim.adam import Adam
from hope_server.optim.outer import RuleOptimizer, make_optimizer

LRS = {"sgd": 3.0, "momentum": 1.0}
STEPS = 60


def network(seed: int = 0) -> dict[str, torch.Tensor]:
    """A two-layer network with per-head second layers, a lookup and a vector."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (10, 6), "first": (12, 6), "heads": (2, 6, 6), "bias": (12,)}
    return {
        name: (torch.randn(shape, generator=generator, dtype=torch.float64) / 3).requires_grad_()
        for name, shape in shapes.items()
    }


def loss_of(params: dict[str, torch.Tensor]) -> torch.Tensor:
    """How far the network is from a fixed random function of its ten inputs."""
    target = torch.sin(torch.arange(120, dtype=torch.float64)).view(10, 12)
    hidden = torch.tanh(functional.linear(params["embed"], params["first"], params["bias"]))
    out = torch.einsum("thi,hoi->tho", hidden.view(10, 2, 6), params["heads"]).flatten(1)
    return functional.mse_loss(out, target)


def train(optimizer: RuleOptimizer, params: dict[str, torch.Tensor], steps: int) -> list[float]:
    """Losses before each step."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", RULE_NAMES)
def test_the_loss_of_a_small_network_falls(name: str) -> None:
    """Every rule trains as an outer optimizer: to less than two thirds of the loss in sixty steps."""
    params = network()
    losses = train(make_optimizer(name, params, LRS.get(name, 0.02), fallback_scale=0.5), params, STEPS)
    assert losses[-1] < 0.66 * losses[0]


@pytest.mark.parametrize("name", RULE_NAMES)
def test_training_resumes_where_it_stopped(name: str) -> None:
    """Tensors and numbers of the optimizer's state, stored and loaded, continue as if nothing had happened."""
    params = network()
    optimizer = make_optimizer(name, params, 0.02, weight_decay=0.1)
    train(optimizer, params, 9)
    kept = optimizer.state_dict()
    flat = {f"{number}.{key}": tensor for number, state in kept["state"].items() for key, tensor in state.items()}
    stored = {key: tensor.contiguous() for key, tensor in load(save(flat)).items()}
    resumed = {key: tensor.detach().clone().requires_grad_() for key, tensor in params.items()}
    other = make_optimizer(name, resumed, 0.5, weight_decay=0.7)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in stored.items():
        number, _, part = key.partition(".")
        state.setdefault(int(number), {})[part] = tensor
    other.load_state_dict({"state": state, "param_groups": kept["param_groups"]})
    assert train(other, resumed, 9) == train(optimizer, params, 9)
    assert all(torch.equal(resumed[key], params[key]) for key in params)


def test_vectors_and_lookups_fall_back_to_adam_and_the_rest_does_not() -> None:
    """Under Muon, `bias` and `embed` step as Adam would; each head's matrix steps as a matrix of its own."""
    params = network()
    before = {key: tensor.detach().clone() for key, tensor in params.items()}
    optimizer = make_optimizer("muon", params, 0.02, (0.9, 0.99), fallback_scale=0.1)
    train(optimizer, params, 1)
    one, moved = torch.tensor([1]), {key: params[key].detach() - before[key] for key in params}
    for key in ("embed", "bias"):
        rule = Adam(0.02 * 0.1, (0.9, 0.99))
        gradient = params[key].grad
        assert gradient is not None
        expected, _ = rule.update(rule.init(gradient[None]), gradient[None], one)
        torch.testing.assert_close(moved[key], expected[0], rtol=1e-9, atol=1e-15)
    rule = make_rule("muon", 0.02)
    for head in range(2):
        gradient = params["heads"].grad
        assert gradient is not None
        one_head = gradient[head][None]
        expected, _ = rule.update(rule.init(one_head), one_head, one)
        torch.testing.assert_close(moved["heads"][head], expected[0], rtol=1e-9, atol=1e-15)


def test_adamw_is_torchs_on_every_parameter() -> None:
    """With the same decay everywhere but on vectors, the network ends where torch's AdamW brings it."""
    params, theirs = network(), network()
    groups = [
        {"params": [p for p in theirs.values() if p.ndim >= 2]},
        {"params": [p for p in theirs.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.99), weight_decay=0.3)
    for _ in range(10):
        reference.zero_grad()
        loss_of(theirs).backward()
        reference.step()
    train(make_optimizer("adamw", params, 0.02, weight_decay=0.3), params, 10)
    for key in params:
        torch.testing.assert_close(params[key], theirs[key], rtol=1e-9, atol=1e-12)


def test_a_schedule_changes_the_rate() -> None:
    """torch's schedulers act on the group's lr, which every step reads."""
    params = network()
    optimizer = make_optimizer("m3", params, 0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    train(optimizer, params, 1)
    scheduler.step()
    before = {key: tensor.detach().clone() for key, tensor in params.items()}
    train(optimizer, params, 1)
    assert all(torch.equal(params[key], before[key]) for key in params)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    """It is neither moved nor decayed, and keeps no state."""
    params = network()
    optimizer = make_optimizer("adam", {"heads": params["heads"]}, 0.1, weight_decay=0.5)
    before = params["heads"].detach().clone()
    optimizer.step()
    assert torch.equal(params["heads"], before)
    assert not optimizer.state_dict()["state"]


def test_a_closure_is_evaluated_with_gradients() -> None:
    """As torch's own optimizers do: the loss it returns comes back."""
    params = network()
    optimizer = make_optimizer("sgd", params, 0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        return float(loss.detach())

    first = optimizer.step(closure)
    assert first == pytest.approx(float(loss_of(network()).detach()))
    assert closure() < first

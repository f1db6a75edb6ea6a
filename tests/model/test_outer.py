"""The forward pass that training differentiates: what serving computes, with the gradients of what was computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import CONFIG, FAMILIES, FAST, MODEL, family_params

from hope_server.engine.learner import Learner
from hope_server.model.config import HopeConfig
from hope_server.model.hope import HopeModel
from hope_server.model.levels import make_layout
from hope_server.model.outer import InnerOptions, OuterState, detached, forward
from hope_server.model.params import Params
from hope_server.model.state import empty_state

ROWS, LENGTH = 2, 21
# Float64 sums in another order.
CLOSE = {"rtol": 0.0, "atol": 1e-10}
LEVELS = InnerOptions(online_levels=True)
names = pytest.mark.parametrize("name", FAMILIES)
TITANS = tuple(name for name, config in FAMILIES.items() if config.titans is not None)


def built(config: HopeConfig) -> tuple[HopeModel, Params]:
    """A model that trains: its slow weights are leaves, and its online levels begin somewhere."""
    params = family_params(config)
    layouts = {spec.name: make_layout(spec, config.model) for spec in config.levels if spec.schedule == "online"}
    generator = torch.Generator().manual_seed(9)
    starts = {
        name: 0.1 * torch.randn(layout.num_weights, generator=generator, dtype=torch.float64)
        for name, layout in layouts.items()
    }
    params = replace(params, levels=starts)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.named().items()}
    params = params.replaced(leaves)
    return HopeModel(config, torch.float64, params, is_guarded=False), params


def plain(name: str) -> HopeConfig:
    """A family without levels, in chunks of 5 tokens."""
    return replace(FAMILIES[name], levels=(), chunk_size=5)


def with_levels(name: str = "retrofit") -> HopeConfig:
    """A family with two online levels, one of which gathers two chunks."""
    slower = replace(FAST, name="slower", blocks=(1, 2), update_period=16, rule="momentum", kind="residual", lr=0.1)
    return replace(FAMILIES[name], levels=(replace(FAST, rule="sgd", lr=0.2), slower))


def drawn_tokens(length: int = LENGTH, rows: int = ROWS) -> torch.Tensor:
    """Tokens [B, T]."""
    return torch.randint(0, MODEL.vocab_size, (rows, length), generator=torch.Generator().manual_seed(6))


def loss_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def gradients(loss: torch.Tensor, params: Params) -> dict[str, torch.Tensor]:
    """Of every slow weight by name; zeros where the loss does not depend on it."""
    leaves = params.named()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Name by name."""
    for name, wanted in expected.items():
        torch.testing.assert_close(actual[name], wanted, rtol=1e-8, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")


@names
def test_training_computes_what_serving_does(name: str) -> None:
    """Logits of every token are those of reading token by token, and the memories end the same."""
    model, params = built(plain(name))
    tokens = drawn_tokens()
    logits, end = forward(model, params, tokens, InnerOptions())
    state = empty_state(model.memory, ROWS, torch.float64)
    for t in range(LENGTH):
        served, state = model.prefill(params, state, tokens[:, t : t + 1])
        torch.testing.assert_close(logits[:, t].detach(), served, **CLOSE)
    for block, titans in end.past.titans.items():
        for key, tensor in titans.memories.items():
            torch.testing.assert_close(tensor.detach(), state.titans[block].memories[key].detach(), **CLOSE)


@names
def test_going_on_from_a_state_is_reading_at_once(name: str) -> None:
    """In pieces of any length, with the given state left as it is; memories carry gradients on, attention does not."""
    model, params = built(plain(name))
    tokens = drawn_tokens()
    whole, _ = forward(model, params, tokens, InnerOptions())
    first, state = forward(model, params, tokens[:, :7], InnerOptions())
    kept = {
        f"{i}.{key}": tensor.clone() for i, part in state.past.titans.items() for key, tensor in part.tensors().items()
    }
    position = state.past.window.positions.clone()
    second, _ = forward(model, params, tokens[:, 7:], InnerOptions(), state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, **CLOSE)
    now = {f"{i}.{key}": tensor for i, part in state.past.titans.items() for key, tensor in part.tensors().items()}
    assert all(torch.equal(now[key], tensor) for key, tensor in kept.items())
    assert torch.equal(state.past.window.positions, position)
    if not model.config.attention_blocks:
        assert_same_gradients(
            gradients(loss_of(torch.cat([first, second], dim=1), tokens), params),
            gradients(loss_of(whole, tokens), params),
        )


@pytest.mark.parametrize("name", TITANS)
def test_truncation_changes_gradients_only(name: str) -> None:
    """Cut every two chunks: the same logits, and the gradients of pieces whose states were detached in between."""
    model, params = built(plain(name))
    tokens = drawn_tokens()
    whole, _ = forward(model, params, tokens, InnerOptions())
    cut, _ = forward(model, params, tokens, InnerOptions(truncate_chunks=2))
    torch.testing.assert_close(cut, whole, **CLOSE)
    pieces: list[torch.Tensor] = []
    state: OuterState | None = None
    for start in range(0, LENGTH, 10):
        logits, state = forward(
            model, params, tokens[:, start : start + 10], InnerOptions(), None if state is None else detached(state)
        )
        pieces.append(logits)
    full = gradients(loss_of(whole, tokens), params)
    found = gradients(loss_of(cut, tokens), params)
    assert_same_gradients(found, gradients(loss_of(torch.cat(pieces, dim=1), tokens), params))
    differs = [key for key in full if "titans" in key and not torch.allclose(full[key], found[key], rtol=1e-6)]
    assert differs


@names
def test_checkpointing_changes_nothing(name: str) -> None:
    """Activations computed again in the backward pass give the same gradients."""
    model, params = built(plain(name))
    tokens = drawn_tokens()
    expected, _ = forward(model, params, tokens, InnerOptions())
    actual, _ = forward(model, params, tokens, InnerOptions(checkpoint=True))
    assert torch.equal(actual, expected)
    assert_same_gradients(gradients(loss_of(actual, tokens), params), gradients(loss_of(expected, tokens), params))


@pytest.mark.parametrize("name", ["hope", "titans", "delta", "retrofit"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """Through the whole network and every write, in directions drawn for each slow weight."""
    model, params = built(plain(name))
    tokens = drawn_tokens(13)
    logits, _ = forward(model, params, tokens, InnerOptions())
    found = gradients(loss_of(logits, tokens), params)
    check_directions(model.config, params, tokens, InnerOptions(), found)


def check_directions(
    config: HopeConfig, params: Params, tokens: torch.Tensor, inner: InnerOptions, found: dict[str, torch.Tensor]
) -> None:
    """Compare slopes of the loss along one random direction of every slow weight in `found`."""
    named = params.named()
    generator = torch.Generator().manual_seed(8)
    for name in found:
        leaf = named[name]
        direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        losses = []
        for step in (1e-5, -1e-5):
            moved = params.replaced(named | {name: (leaf + step * direction).detach()})
            model = HopeModel(config, torch.float64, moved, is_guarded=False)
            logits, _ = forward(model, moved, tokens, inner)
            losses.append(float(loss_of(logits, tokens).detach()))
        slope = (losses[0] - losses[1]) / 2e-5
        # Rounding of the loss, about 1e-15, over the step; and the third derivative times its square.
        assert slope == pytest.approx(float((found[name] * direction).sum()), rel=1e-4, abs=1e-8), name


# -- online levels ---------------------------------------------------------------------------------------------------


def test_levels_are_written_as_the_server_writes_them() -> None:
    """Chunk by chunk, every token teaching: logits, level weights and what gathers are the learner's."""
    model, params = built(with_levels())
    tokens = drawn_tokens(45)
    logits, end = forward(model, params, tokens, LEVELS)
    state = empty_state(model.memory, ROWS, torch.float64)
    learner = Learner(model)
    frozen = params.replaced({name: tensor.detach() for name, tensor in params.named().items()})
    for start in range(0, 40, 8):
        chunk = tokens[:, start : start + 8]
        outcome = learner.write_chunk(frozen, state, chunk, torch.ones_like(chunk, dtype=torch.bool))
        torch.testing.assert_close(logits[:, start + 7].detach(), outcome.logits, **CLOSE)
    for name, trace in end.levels.items():
        torch.testing.assert_close(trace.weights.detach(), state.levels[name].weights, **CLOSE)
        assert trace.num_steps == int(state.levels[name].num_writes[0]) > 0
    gathered = end.levels["slower"].accumulator.detach()
    torch.testing.assert_close(gathered, state.levels["slower"].accumulator, **CLOSE)
    assert bool(gathered.any())
    served, state = model.prefill(frozen, state, tokens[:, 40:])
    torch.testing.assert_close(logits[:, -1].detach(), served, **CLOSE)


def test_gradients_pass_through_the_writes_of_levels() -> None:
    """Second-order: in every slow weight, learned starts of levels included, the slope of the loss is the gradient.

    Without attention, whose window carries no gradient from one chunk to the next.
    """
    config = with_levels("hope")
    model, params = built(config)
    tokens = drawn_tokens(34)
    logits, _ = forward(model, params, tokens, LEVELS)
    found = gradients(loss_of(logits, tokens), params)
    some = ("embed", "levels", "blocks.0.titans", "blocks.3.gate_up")
    chosen = {name: gradient for name, gradient in found.items() if name.startswith(some)}
    check_directions(config, params, tokens, LEVELS, chosen)


def test_checkpointing_changes_no_gradient_through_the_writes_of_levels() -> None:
    """Blocks computed again in the backward pass of the backward pass."""
    model, params = built(with_levels())
    tokens = drawn_tokens(20)
    found = []
    for is_checkpointed in (False, True):
        logits, _ = forward(model, params, tokens, replace(LEVELS, checkpoint=is_checkpointed))
        found.append(gradients(loss_of(logits, tokens), params))
    assert_same_gradients(found[1], found[0])


def test_first_order_keeps_values_and_drops_second_derivatives() -> None:
    """The same logits; other gradients, which still reach the levels' learned starts."""
    model, params = built(with_levels())
    tokens = drawn_tokens(34)
    second, _ = forward(model, params, tokens, LEVELS)
    first, _ = forward(model, params, tokens, replace(LEVELS, first_order=True))
    torch.testing.assert_close(first, second, **CLOSE)
    found, full = gradients(loss_of(first, tokens), params), gradients(loss_of(second, tokens), params)
    assert bool(found["levels.fast"].any())
    assert not torch.allclose(found["levels.fast"], full["levels.fast"], rtol=1e-6)


def test_levels_are_written_without_outer_gradients_too() -> None:
    """Under no_grad the values are the same and nothing is kept for a backward pass."""
    model, params = built(with_levels())
    tokens = drawn_tokens(34)
    expected, _ = forward(model, params, tokens, LEVELS)
    with torch.no_grad():
        logits, state = forward(model, params, tokens, LEVELS)
    torch.testing.assert_close(logits, expected.detach(), **CLOSE)
    assert not logits.requires_grad
    assert not any(trace.weights.requires_grad for trace in state.levels.values())


def test_levels_that_are_not_written_act_from_their_learned_starts() -> None:
    """Read without writes, they change the logits as they do in a served session that has not learned yet."""
    model, params = built(with_levels())
    tokens = drawn_tokens()
    logits, _ = forward(model, params, tokens, InnerOptions())
    served, _ = model.prefill(params, empty_state(model.memory, ROWS, torch.float64), tokens)
    torch.testing.assert_close(logits[:, -1].detach(), served, **CLOSE)
    active = torch.ones(ROWS, dtype=torch.bool)
    state = empty_state(model.memory, ROWS, torch.float64)
    for t in range(3):
        decoded, state = model.decode(params, state, tokens[:, t], active)
        torch.testing.assert_close(logits[:, t].detach(), decoded, **CLOSE)
    without = replace(params, levels={name: torch.zeros_like(start) for name, start in params.levels.items()})
    bare, _ = forward(HopeModel(model.config, torch.float64, without), without, tokens, InnerOptions())
    assert float((bare - logits).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("shape", [(3,), (2, 0), (1, 2, 3)])
def test_tokens_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Rows of at least one token."""
    model, params = built(CONFIG)
    with pytest.raises(ValueError, match="expected tokens"):
        forward(model, params, torch.zeros(shape, dtype=torch.long), InnerOptions())


def test_levels_cannot_be_written_from_inside_a_chunk() -> None:
    """A call that ended inside a chunk cannot be gone on from where levels are written."""
    model, params = built(with_levels())
    _, state = forward(model, params, drawn_tokens(5), LEVELS)
    with pytest.raises(ValueError, match="whole chunks of 8 tokens"):
        forward(model, params, drawn_tokens(5), LEVELS, state)

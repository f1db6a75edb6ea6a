"""Key statistics are measured on the keys that the blocks' output matrices see, each window by itself."""

from __future__ import annotations

from dataclasses import replace

import torch
from plain_llama import norm
from toys import CONFIG, make_params

from hope_server.model.hope import HopeModel
from hope_server.model.levels import mlp_keys
from hope_server.training.key_statistics import FIRST_WEIGHT, measure, stretches

TOKENS = torch.tensor([[5, 9, 20, 7, 8], [40, 41, 42, 43, 44]])


def keys_of(block: int) -> torch.Tensor:
    """The inner activations [2, 5, F] of a block, with the model computed up to it and its attention apart."""
    model, params = HopeModel(CONFIG, torch.float64), make_params()
    past = model.empty_past(2, torch.float64)
    sight, hidden = model.sight(past.window, 5), params.embed[TOKENS]
    none: list[list[dict[str, torch.Tensor]]] = [[] for _ in params.blocks]
    hidden, _ = model.run_blocks(params, hidden, past, none, sight, range(block))
    silent = params.blocks[block]
    # Without its MLP a block adds what it attends to alone.
    mixed, _ = model.run_block(replace(silent, down=torch.zeros_like(silent.down)), block, hidden, past, [], sight)
    return mlp_keys(norm(mixed), silent)


def test_the_sums_are_those_of_the_keys_with_more_weight_on_first_tokens() -> None:
    """Of every block that is asked for, over all windows and tokens; a window does not see the one before."""
    reader = measure(CONFIG, make_params(), [TOKENS[:1], TOKENS[1:]], [0, 2])
    assert reader.num_tokens == 10
    for block in (0, 2):
        keys = keys_of(block)
        weights = torch.ones(5, dtype=torch.float64)
        weights[0] = FIRST_WEIGHT
        expected = torch.einsum("btf,btg,t->fg", keys, keys, weights)
        torch.testing.assert_close(reader.sums[block], expected)


def test_stretches_lie_evenly_over_a_text() -> None:
    """Each has the size asked for, in order, from the middle of its share."""
    found = stretches("".join(chr(n) for n in range(1000)), 4, 10)
    assert [ord(text[0]) for text in found] == [121, 363, 606, 848]
    assert {len(text) for text in found} == {10}

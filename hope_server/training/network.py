"""The network as the outer loop sees it: slow weights to train, and a forward pass that is differentiable in them.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from hope_server.model.config import HopeConfig
from hope_server.model.hope import HopeModel
from hope_server.model.outer import InnerOptions, detached, forward
from hope_server.model.params import Params, random_params

__all__ = ["HopeNetwork", "Network"]


class Network(Protocol):
    """A model whose slow weights are the leaves that training writes."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The slow weights by name, each a leaf with requires_grad, in the same order in every process."""
        ...

    def run(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Read tokens [B, T] behind `state` (None: nothing yet); return logits [B, T, V] and the state.

        Differentiable in the slow weights through every inner update.
        """
        ...

    def detached(self, state: Any) -> Any:
        """Return the state without its history, to go on from."""
        ...


class HopeNetwork:
    """A HOPE model of any family with freshly drawn weights, trained through its own writes."""

    def __init__(self, config: HopeConfig, seed: int, inner: InnerOptions, device: torch.device) -> None:
        self._inner = inner
        self._device = device
        drawn = random_params(config, seed)
        leaves = {name: tensor.detach().to(device).requires_grad_() for name, tensor in drawn.named().items()}
        self._params = drawn.replaced(leaves)
        self._model = HopeModel(config, params=self._params, is_guarded=False)
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._device

    @property
    def params(self) -> Params:
        """The slow weights as the model takes them; the leaves of `tensors`."""
        return self._params

    def tensors(self) -> dict[str, Tensor]:
        """The slow weights by the names of `Params.named`."""
        return self._params.named()

    def run(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """See Network."""
        return forward(self._model, self._params, tokens, self._inner, state)

    def detached(self, state: Any) -> Any:
        """See Network."""
        return detached(state)

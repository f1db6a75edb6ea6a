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
from hope_server.model.params import Params
from hope_server.model.state import empty_state

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
    """A HOPE model of any family, trained or measured through its own writes.

    is_guarded: refuse memory writes that explode, as the server does; training wants to see them. is_compiled: see
    TitansLayer; raises ValueError where a level's write is itself differentiated, which what is compiled cannot do.
    """

    def __init__(
        self,
        config: HopeConfig,
        params: Params,
        inner: InnerOptions,
        device: torch.device | str = "cpu",
        *,
        is_guarded: bool = False,
        is_compiled: bool = False,
    ) -> None:
        writes = inner.online_levels and any(level.schedule == "online" for level in config.levels)
        if is_compiled and writes and not inner.first_order:
            raise ValueError(
                "compiled chunks have no second derivative, which online levels need; compile without them"
            )
        self._inner = inner
        self._device = torch.device(device)
        leaves = {name: tensor.detach().clone().to(device).requires_grad_() for name, tensor in params.named().items()}
        self._params = params.replaced(leaves)
        self._model = HopeModel(config, params.dtype, self._params, is_guarded=is_guarded, is_compiled=is_compiled)
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

    @property
    def state_bytes(self) -> int:
        """Bytes of one row's fast state, whatever it has read."""
        state = empty_state(self._model.memory, 1, self._params.dtype)
        return sum(tensor.nbytes for tensor in state.tensors().values())

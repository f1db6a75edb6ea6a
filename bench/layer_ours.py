"""Our self-modifying layer, and the gate: what is timed equals a token-by-token recurrence in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hope_kernels import mlp_memory
from hope_kernels.dgd_memory import Gates
from hope_kernels.dgd_memory import reference as matrix_reference
from hope_kernels.mlp_memory import reference as mlp_reference
from hope_kernels.products import fast_products
from layer_case import HEAD_DIM, Case, Faults, Side, changed, cuts, difference, serve

from hope_server.model.config import TitansSpec
from hope_server.model.memories import MatrixMemories, MlpMemories, Weights
from hope_server.model.titans import TitansLayer
from hope_server.model.titans_params import TitansParams, random_titans

EPS = 1e-5


class Ours(Side):
    """The layer as it serves, its runtime guard on; every memory that the paper names."""

    def open(self, case: Case) -> None:
        self._case = case
        is_whole = case.num_memories == 5
        spec = TitansSpec(
            (0,),
            case.num_heads,
            HEAD_DIM,
            memory="mlp" if case.memory == "mlp" else "matrix",
            hidden_size=HEAD_DIM,
            adaptive=("k", "v", "lr", "retention") if is_whole else (),
            self_targets=is_whole,
            has_momentum=case.has_momentum,
        )
        self._exact = random_titans(spec, case.width, torch.Generator().manual_seed(0))
        if case.has_momentum:
            # Fresh heads are running sums, whose memories outgrow the guard on noise: refused writes are not timed.
            self._exact.rate_bias[-case.num_heads :] = -2.0
        self._params = _cast(self._exact, torch.float32)
        self._layer = TitansLayer(spec, case.chunk_size, EPS)
        self._x = case.inputs()

    def run(self) -> None:
        with fast_products(self._case.num_tokens):
            self._out(self._x)

    def gate(self) -> float:
        """Relative error against float64, every token written by the reference of the operators."""
        layer = TitansLayer(self._layer.spec, self._case.chunk_size, EPS)
        layer.memories = _TokenMatrices(layer.spec) if self._case.memory == "matrix" else _TokenMlps(layer.spec)
        exact, _ = layer.run(self._exact, self._x.double(), layer.empty_state(self._exact.initial, len(self._x)), 0)
        return difference(self._out(self._x), exact)

    def faults(self) -> Faults:
        whole = self._out(self._x)
        other_rows = difference(self._out(changed(self._x))[:1], whole[:1])
        return Faults(other_rows, *(difference(self._in_pieces(cut), whole) for cut in cuts(self._case)))

    def _in_pieces(self, cut: int) -> torch.Tensor:
        state = self._layer.empty_state(self._params.initial, len(self._x))
        first, state = self._layer.run(self._params, self._x[:, :cut], state, 0)
        second, _ = self._layer.run(self._params, self._x[:, cut:], state, cut % self._case.chunk_size)
        return torch.cat([first, second], 1)

    def _out(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self._layer.run(self._params, x, self._layer.empty_state(self._params.initial, len(x)), 0)
        return out


@dataclass(frozen=True)
class _Written:
    """What token-by-token writes leave."""

    weights: Weights
    surprises: Weights

    def read(self, queries: torch.Tensor, start: int) -> torch.Tensor:
        raise RuntimeError("only layers that read at the chunk's start are timed")

    def final(self) -> tuple[Weights, Weights]:
        return self.weights, self.surprises


class _TokenMatrices(MatrixMemories):
    """Matrix memories written token by token."""

    def write(
        self, weights: Weights, surprise: Weights, keys: torch.Tensor, values: torch.Tensor, gates: Gates
    ) -> _Written:
        matrix = weights["weights"]
        residuals = self._residuals(matrix, keys, values)
        states, surprises = matrix_reference.write_tokens(
            matrix, keys, residuals, gates, float(self._spec.dgd_scope != "none"), surprise.get("weights")
        )
        return _Written({"weights": states[-1]}, {"weights": surprises[-1]} if surprises else {})


class _TokenMlps(MlpMemories):
    """MLP memories written token by token, every gradient autograd's, of the loss that the reference states."""

    def write(
        self, weights: Weights, surprise: Weights, keys: torch.Tensor, values: torch.Tensor, gates: Gates
    ) -> _Written:
        after: Weights = {}
        for prefix in ("", "rate_") if self._rates else ("",):
            first, second = weights[f"{prefix}first"], weights[f"{prefix}second"]
            targets = values[..., None, :, :].expand(*first.shape[:-2], -1, -1)
            if self._spec.self_targets:
                targets = mlp_memory.predict(first, second, targets, is_residual=not prefix)
            written = _written(first, second, keys, targets, gates, is_residual=not prefix)
            after[f"{prefix}first"], after[f"{prefix}second"] = written
        return _Written(after, {})


def _written(
    first: torch.Tensor,
    second: torch.Tensor,
    keys: torch.Tensor,
    targets: torch.Tensor,
    gates: Gates,
    *,
    is_residual: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both layers [B, H, n, ...] after the tokens, one after another."""

    def loss(one: torch.Tensor, two: torch.Tensor, key: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return mlp_reference.loss(one, two, key, target, "l2", is_residual)

    gradient = torch.func.grad(loss, argnums=(0, 1))
    for _ in range(first.dim() - 2):
        gradient = torch.func.vmap(gradient)
    layers = [first, second]
    for t in range(keys.shape[-2]):
        key = keys[..., None, t, :].expand(*first.shape[:-1])
        hidden = torch.nn.functional.gelu((key[..., None, :] @ first)[..., 0, :])
        lr, retention = (rate[..., t, None, None, None] for rate in (gates.lr, gates.log_retention.exp()))
        rates = (lr, lr / (1 + hidden.square().sum(-1)[..., None, None]))
        gradients = gradient(first, second, key, targets[..., t, :])
        for i, inputs in enumerate((key, hidden)):
            forgotten = inputs[..., :, None] * (inputs[..., None, :] @ layers[i])
            layers[i] = retention * layers[i] - rates[i] * (forgotten + gradients[i])
    return layers[0], layers[1]


def _cast(params: TitansParams, dtype: torch.dtype) -> TitansParams:
    return params.replaced({name: tensor.to(dtype) for name, tensor in params.named().items()})


if __name__ == "__main__":
    serve(Ours())

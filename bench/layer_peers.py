"""Other people's memory layers, as their own pages show them. Runs in .peers: nothing of ours but `layer_case`.

python bench/layer_peers.py titans-pytorch | nested-learning
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from layer_case import HEAD_DIM, NUM_HEADS, WIDTH, Case, Faults, Side, changed, cuts, difference, serve


class TitansPytorch(Side):
    """titans-pytorch's NeuralMemory: one memory a head, its rates those of a chunk.

    Case form "renewed": gradients at the chunk's start, as ours; else, its default, at the start of the whole input.
    """

    def open(self, case: Case) -> None:
        from titans_pytorch import MemoryMLP, NeuralMemory

        torch.manual_seed(0)
        depth = 2 if case.memory == "mlp" else 1
        self._layer = NeuralMemory(
            dim=case.width,
            heads=case.num_heads,
            dim_head=HEAD_DIM,
            chunk_size=case.chunk_size,
            batch_size=case.chunk_size if case.form == "renewed" else None,
            momentum=case.has_momentum,
            model=MemoryMLP(HEAD_DIM, depth=depth, expansion_factor=1.0),
        ).eval()
        self._case = case
        self._x = case.inputs()

    def run(self) -> None:
        self._layer(self._x)

    def faults(self) -> Faults:
        whole = self._layer(self._x)[0]
        between, inside = cuts(self._case)
        try:
            split_inside = difference(self._in_pieces(inside), whole)
        except RuntimeError as exc:
            print(f"titans-pytorch, cut inside a chunk: {exc}", file=sys.stderr)
            split_inside = None
        other_rows = difference(self._layer(changed(self._x))[0][:1], whole[:1])
        return Faults(other_rows, difference(self._in_pieces(between), whole), split_inside)

    def _in_pieces(self, cut: int) -> torch.Tensor:
        first, state = self._layer(self._x[:, :cut])
        second, _ = self._layer(self._x[:, cut:], state=state)
        return torch.cat([first, second], 1)


class NestedLearning(Side):
    """nested-learning's self-modifying layer: MLP memories without heads.

    Case form "wide": memories of the whole width; else each head is a row of its own, of memories of the size of ours.
    """

    def open(self, case: Case) -> None:
        from nested_learning.titan.self_modifying import SelfModifyingTitans, SelfModifyingTitansConfig

        torch.manual_seed(0)
        is_wide = case.form == "wide"
        width = WIDTH if is_wide else HEAD_DIM
        config = SelfModifyingTitansConfig(width, chunk_size_other=case.chunk_size, chunk_size_memory=case.chunk_size)
        self._layer = SelfModifyingTitans(config).eval()
        self._case = case
        self._x = case.inputs(width, case.num_rows * (1 if is_wide else NUM_HEADS))

    def run(self) -> None:
        self._start(self._x)

    def faults(self) -> Faults:
        whole = self._start(self._x)[0]
        pieces = []
        for cut in cuts(self._case):
            first, state = self._start(self._x[:, :cut])
            second, _ = self._layer.forward_with_updates(self._x[:, cut:], state)
            pieces.append(difference(torch.cat([first, second], 1), whole))
        return Faults(self._other_rows(), *pieces)

    def _other_rows(self) -> float:
        """The first row's output after the module's own update pass over the batch, with other content beside it.

        A few tokens: of more, its fresh memories keep nothing at all.
        """
        start = {name: tensor.clone() for name, tensor in self._layer.state_dict().items()}
        outputs = []
        for batch in (self._x, changed(self._x)):
            self._layer.load_state_dict(start)
            self._layer.apply_updates_inplace(batch[:, :4])
            outputs.append(self._layer(self._x[:1]))
        self._layer.load_state_dict(start)
        return difference(outputs[1], outputs[0])

    def _start(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        result: tuple[torch.Tensor, Any] = self._layer.forward_with_updates(x, self._layer.init_fast_state())
        return result


SIDES = {"titans-pytorch": TitansPytorch, "nested-learning": NestedLearning}

if __name__ == "__main__":
    serve(SIDES[sys.argv[1]]())

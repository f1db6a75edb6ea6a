"""A network that is listened to: what the MLPs of chosen blocks say, as inner activations, while it reads.

Shapes: B windows at once, T tokens of a window, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from hope_server.model.config import HopeConfig, ModelConfig, WindowSpec
from hope_server.model.hope import HopeModel
from hope_server.model.levels import BlockMemory, mlp_keys
from hope_server.model.linear import linear
from hope_server.model.params import BlockParams, Params
from hope_server.model.recognition import GeneralKeys

__all__ = ["KeyReader", "read_general_keys"]

Hear = Callable[[int, torch.Tensor], None]


class KeyReader(HopeModel):
    """Calls `hear` with each of the blocks, and its keys [B, T, F], as it reads."""

    def __init__(
        self, config: HopeConfig, blocks: Sequence[int], hear: Hear, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(config, dtype)
        self._blocks, self._hear = frozenset(blocks), hear
        self._block = 0

    @torch.no_grad()
    def take(self, params: Params, tokens: torch.Tensor) -> None:
        """Read windows [B, T] that begin anew, as far as the last block that is asked for."""
        past = self.empty_past(len(tokens), params.dtype)
        sight, hidden = self.sight(past.window, tokens.shape[1]), params.embed[tokens]
        for block in range(max(self._blocks) + 1):
            self._block = block
            hidden, _ = self.run_block(params.blocks[block], block, hidden, past, [], sight)

    def _finish(
        self, hidden: torch.Tensor, block: BlockParams, mixed: torch.Tensor, memories: list[BlockMemory]
    ) -> torch.Tensor:
        if self._block in self._blocks:
            self._hear(self._block, mlp_keys(self._norm(hidden + mixed, block.mlp_norm), block))
        return super()._finish(hidden, block, mixed, memories)


def read_general_keys(
    model: ModelConfig, params: Params, texts: Iterable[Sequence[int]], blocks: Sequence[int], *, skip: int = 4
) -> GeneralKeys:
    """Let the slow weights read each text by itself, and keep what the blocks say but at its first `skip` tokens.

    They are nowhere near what stands in the middle of a text: all later tokens attend to them.
    """
    heard: dict[int, list[torch.Tensor]] = {block: [] for block in blocks}
    texts = [text for text in texts if len(text) > skip]
    window = WindowSpec(max(map(len, texts)), num_sinks=0, precision="model")
    reader = KeyReader(
        HopeConfig(model, window, chunk_size=1),
        blocks,
        lambda block, keys: heard[block].append(keys[0, skip:]),
        params.dtype,
    )
    for text in texts:
        reader.take(params, torch.tensor([list(text)]))
    keys = {block: torch.cat(parts) for block, parts in heard.items()}
    return GeneralKeys(keys, {block: linear(of, params.blocks[block].down).norm(dim=-1) for block, of in keys.items()})

"""Our own model as the reference: whole turns at once, each behind an emptied attention window.

Attention sees its own turn only, as in vLLM. Memories, the unfinished chunk and the convolution's tail go on from turn
to turn: a turn's tokens stand where the session is, its attention positions begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from hope_server.model.config import HopeConfig
from hope_server.model.hope import HopeModel
from hope_server.model.params import Params
from hope_server.model.state import Past
from hope_server.model.titans_state import TitansState


@dataclass
class Session:
    """What a session carries: states by block, and tokens read. is_on: False leaves the memories out of all it says."""

    config: HopeConfig
    params: Params
    is_on: bool = True
    num_tokens: int = 0
    titans: dict[int, TitansState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._model = HopeModel(self.config, torch.float32, self.params)
        self.titans = self._model.empty_past(1, torch.float32).titans
        if not self.is_on:
            closed = []
            for block in self.params.blocks:
                titans = block.titans
                closed.append(
                    block if titans is None else replace(block, titans=replace(titans, branch=torch.zeros(1)))
                )
            self.params = replace(self.params, blocks=tuple(closed))

    def forget(self) -> None:
        """Make it a session that has seen nothing."""
        self.titans, self.num_tokens = self._model.empty_past(1, torch.float32).titans, 0

    @torch.no_grad()
    def turn(self, prompt: Sequence[int], reply: Sequence[int]) -> torch.Tensor:
        """Read a turn, reply's last token included; returns log-probabilities [T, V] after each of its tokens."""
        model, config = self._model, self.config
        tokens = torch.tensor([[*prompt, *reply]])
        empty = model.empty_past(1, torch.float32).window
        sight = model.sight(empty, tokens.shape[1])
        # Where the chunk stands is the session's, what attention sees is the turn's.
        window = replace(empty, positions=torch.tensor([self.num_tokens % config.chunk_size]))
        past = Past(window, self.titans)
        hidden = self.params.embed[tokens]
        blocks = range(len(self.params.blocks))
        memories: list[list[object]] = [[] for _ in blocks]
        hidden, read = model.run_blocks(self.params, hidden, past, memories, sight, blocks)
        for block in self.titans:
            after = read[block].titans
            assert after is not None
            self.titans[block] = after
        self.num_tokens += tokens.shape[1]
        return model.logits(self.params, hidden)[0].log_softmax(-1)

    def largest_difference(self, prompt: Sequence[int], reply: Sequence[int], logprobs: Sequence[float]) -> float:
        """Read a turn; how far log-probabilities of its reply's tokens are from those of this model, at most."""
        expected = self.turn(prompt, reply)[len(prompt) - 1 : -1]
        said = expected.gather(1, torch.tensor(reply)[:, None])[:, 0]
        return float((said - torch.tensor(logprobs)).abs().max())

"""A served adapter: it is part of the model, so that sessions go on beside it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from taking import chat_request, end_of, take, text_of
from toys import SERVED, make_params, toy_settings, write_trained

from hope_server.engine.assembly import build_engine
from hope_server.engine.engine import Engine
from hope_server.errors import CheckpointError, StateIncompatible
from hope_server.model.adapter import Adapter, random_adapter, save_adapter
from hope_server.model.checkpoint import resolve_model, weights_fingerprint

REPLY_TOKENS = 16


def write_adapter(folder: Path, base: str) -> str:
    """Write an adapter that changes every matrix; returns its path."""
    generator = torch.Generator().manual_seed(0)
    drawn = random_adapter(make_params(torch.float32), base, 2, 0)
    pairs = {name: (torch.randn(up.shape, generator=generator), down) for name, (up, down) in drawn.pairs.items()}
    save_adapter(folder / "a.safetensors", Adapter(pairs, base))
    return str(folder / "a.safetensors")


async def _reply(engine: Engine, text: str = "Mira keeps the violin.") -> tuple[str, int]:
    """A turn's reply, and the number of the session's turns after it."""
    await engine.start()
    try:
        events = await take(engine.chat(chat_request(text, max_tokens=REPLY_TOKENS)))
    finally:
        await engine.stop()
    receipt = end_of(events).receipt
    assert receipt is not None
    return text_of(events), receipt.turn


@pytest.mark.anyio
async def test_sessions_go_on_beside_their_adapter_alone(tmp_path: Path) -> None:
    """Another adapter, or none, is another model; a file of another network's is refused when the server starts."""
    folder = write_trained(tmp_path / "toy", SERVED, make_params(torch.float32))
    path = write_adapter(tmp_path, weights_fingerprint(resolve_model(str(folder), tmp_path / "cache")))

    def engine(adapter: str, store: str = "s.db") -> Engine:
        changes = {"model": str(folder), "cache_dir": tmp_path / "cache", "adapter": adapter, "window": 320}
        return build_engine(toy_settings(tmp_path / store, **changes))

    first, turn = await _reply(engine(path))
    assert turn == 1
    assert (await _reply(engine(path), "In the barn."))[1] == 2
    for other in ("off", "default"):
        with pytest.raises(StateIncompatible):
            await _reply(engine(other), "Since May.")
    plain, turn = await _reply(engine("off", "other.db"))
    assert turn == 1 and plain != first
    strange = write_adapter(tmp_path, "0" * 64)
    with pytest.raises(CheckpointError, match="another network"):
        engine(strange)

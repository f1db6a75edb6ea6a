"""What a server hands back: memory in objects that only hold each other."""

from __future__ import annotations

import gc
import weakref

from hope_server.engine.heap import give_back


class Ring:
    """Holds itself."""

    def __init__(self) -> None:
        self.own = self


def test_rings_are_freed() -> None:
    """An error and the frames that it passed hold each other; with a state in them they are large."""
    gc.disable()
    try:
        left = weakref.ref(Ring())
        assert left() is not None
        give_back()
        assert left() is None
    finally:
        gc.enable()

"""The slot pool: whose row a turn gets, and what stays warm."""

from __future__ import annotations

import pytest
import torch
from toys import CONFIG

from hope_server.engine.session_log import SessionLog
from hope_server.engine.slots import Resident, SlotPool
from hope_server.engine.turn import SessionKey
from hope_server.model.state import make_memory


def pool(num_slots: int = 3) -> SlotPool:
    """An empty pool."""
    return SlotPool(make_memory(CONFIG, torch.float64), num_slots, torch.float64)


def resident(name: str) -> Resident:
    """A session as committed."""
    return Resident(SessionKey("t", name), "v1", SessionLog(), {}, 0)


def warm(slots: SlotPool, *names: str) -> dict[str, int]:
    """Let these sessions end a turn each, one after the other, all running at once; returns their slots."""
    taken = {name: slots.take() for name in names}
    for name, slot in taken.items():
        slots.settle(slot, resident(name))
    return taken


def test_every_slot_is_given_out_once_and_then_there_is_no_room() -> None:
    """As many turns run as there are slots; one more is a mistake of the caller's."""
    slots = pool()
    assert sorted(slots.take() for _ in range(3)) == [0, 1, 2]
    assert (slots.has_room, slots.num_busy) == (False, 3)
    with pytest.raises(RuntimeError, match="no slot is free"):
        slots.take()


def test_a_settled_session_is_found_again_in_its_slot() -> None:
    """A session stays warm where its turn ended, under its own key only."""
    slots = pool()
    taken = warm(slots, "ada", "bob")
    assert {name: slots.find(SessionKey("t", name)) for name in ("ada", "bob", "eve")} == taken | {"eve": None}
    assert slots.find(SessionKey("other", "ada")) is None
    assert slots.num_busy == 0


def test_occupying_a_resident_makes_its_slot_busy_and_no_longer_a_cache() -> None:
    """While a turn changes the row, nobody may take it for the committed state."""
    slots = pool()
    slot = warm(slots, "ada")["ada"]
    assert slots.occupy(slot).key.session_id == "ada"
    assert slots.find(SessionKey("t", "ada")) is None
    assert slots.num_busy == 1
    with pytest.raises(RuntimeError, match=f"slot {slot} holds no idle session"):
        slots.occupy(slot)


def test_empty_slots_go_before_the_longest_idle_session() -> None:
    """A warm session is evicted only when there is no empty slot, and then the one idle for longest."""
    slots = pool()
    taken = warm(slots, "ada", "bob")
    free = ({0, 1, 2} - set(taken.values())).pop()
    assert slots.take() == free
    slots.settle(slots.occupy(taken["ada"]) and taken["ada"], resident("ada"))
    assert slots.take() == taken["bob"]
    assert slots.find(SessionKey("t", "bob")) is None
    assert slots.find(SessionKey("t", "ada")) == taken["ada"]


@pytest.mark.parametrize("order", ["abc", "bca", "cab", "cba"])
def test_sessions_are_evicted_in_the_order_of_their_last_turns(order: str) -> None:
    """Not where a session lies but how long it has been idle decides."""
    slots = pool()
    taken = warm(slots, *"abc")
    for name in order:
        slots.settle(taken[name], slots.occupy(taken[name]))
    assert slots.take() == taken[order[0]]


def test_the_slot_to_keep_is_taken_only_when_there_is_no_other() -> None:
    """A reader that copies a resident leaves it warm while it can."""
    slots = pool(2)
    slot = warm(slots, "ada")["ada"]
    assert slots.take(keep=slot) == 1 - slot
    assert slots.take(keep=slot) == slot
    with pytest.raises(RuntimeError, match="no slot is free"):
        slots.take(keep=slot)


def test_a_free_slot_near_the_busy_ones_is_preferred() -> None:
    """Turns that decode together sit together, so that one batch has few gaps."""
    slots = pool(5)
    for _ in range(3):
        slots.take()
    slots.settle(0, None)
    assert slots.take() == 0
    slots.settle(1, None)
    slots.settle(0, None)
    assert slots.take() in (1, 3)


def test_a_session_is_warm_in_one_slot_only() -> None:
    """Settling a newer commit elsewhere forgets the older cache."""
    slots = pool()
    old = warm(slots, "ada")["ada"]
    new = slots.take(keep=old)
    slots.settle(new, resident("ada"))
    assert slots.find(SessionKey("t", "ada")) == new
    assert slots.residents[old] is None


def test_forgetting_drops_the_cache_and_nothing_else() -> None:
    """After a session was deleted, its state is served from nowhere; running turns keep their slots."""
    slots = pool()
    taken = warm(slots, "ada", "bob")
    slots.occupy(taken["bob"])
    slots.forget(SessionKey("t", "ada"))
    slots.forget(SessionKey("t", "bob"))
    assert slots.find(SessionKey("t", "ada")) is None
    assert slots.num_busy == 1


def test_a_turn_that_leaves_nothing_frees_its_slot() -> None:
    """A dropped turn's row is nobody's."""
    slots = pool(1)
    slots.settle(slots.take(), None)
    assert (slots.has_room, slots.residents) == (True, [None])


def test_a_row_is_a_view_of_the_batch() -> None:
    """What a turn writes into its row is what a batched decode sees."""
    slots = pool()
    slots.row(1).levels["fast"].weights.fill_(7.0)
    assert bool((slots.state.levels["fast"].weights[1] == 7.0).all())
    assert not bool((slots.state.levels["fast"].weights[[0, 2]] == 7.0).any())


def test_a_resident_takes_the_name_that_the_store_gave_its_state() -> None:
    """Only the idle cache of that session and of that very state is renamed."""
    slots = pool()
    taken = warm(slots, "ada", "bob")
    ada = SessionKey("t", "ada")
    slots.rename(ada, "another", "v2")
    assert slots.residents[taken["ada"]].version == "v1"
    slots.rename(ada, "v1", "v2")
    assert [slots.residents[taken[name]].version for name in ("ada", "bob")] == ["v2", "v1"]
    slots.occupy(taken["ada"])
    slots.rename(ada, "v2", "v3")
    assert slots.find(ada) is None

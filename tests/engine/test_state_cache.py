"""Host memory behind the slots: the newest states by session and version, within a size."""

from __future__ import annotations

from hope_memory.snapshot import Array, Level, Snapshot
from hypothesis import given
from hypothesis import strategies as st

from hope_server.engine.state_cache import StateCache
from hope_server.engine.turn import SessionKey

ROOM = 1_000_000


def key(name: str) -> SessionKey:
    """A session of one tenant."""
    return SessionKey("t", name)


def snapshot(num_bytes: int) -> Snapshot:
    """A state of about that size."""
    return Snapshot("toy", {}, {"slow": Level({"w": Array("uint8", (num_bytes,), bytes(num_bytes))})})


def test_a_version_is_found_and_no_other() -> None:
    """An older or a newer version is not what is kept, and neither is another session's."""
    cache, state = StateCache(ROOM), snapshot(10)
    cache.keep(key("a"), "v1", state)
    assert cache.find(key("a"), "v1") is state
    assert cache.find(key("a"), "v2") is None
    assert cache.find(key("b"), "v1") is None


def test_a_new_version_takes_the_place_of_the_old() -> None:
    """One state a session: the newest."""
    cache, newer = StateCache(ROOM), snapshot(20)
    cache.keep(key("a"), "v1", snapshot(10))
    cache.keep(key("a"), "v2", newer)
    assert (len(cache), cache.find(key("a"), "v1"), cache.find(key("a"), "v2")) == (1, None, newer)


def test_the_least_recently_used_goes_first() -> None:
    """Being found is being used."""
    cache = StateCache(ROOM)
    for name in "abc":
        cache.keep(key(name), "v", snapshot(300_000))
    assert cache.find(key("a"), "v") is not None
    cache.keep(key("d"), "v", snapshot(300_000))
    assert [name for name in "abcd" if cache.find(key(name), "v")] == ["a", "c", "d"]


def test_a_state_larger_than_all_room_drops_its_own_older_version_only() -> None:
    """Others stay; what is kept of the session itself is out of date."""
    cache = StateCache(ROOM)
    for name in "ab":
        cache.keep(key(name), "v1", snapshot(10))
    cache.keep(key("a"), "v2", snapshot(ROOM))
    assert (cache.find(key("a"), "v1"), cache.find(key("a"), "v2")) == (None, None)
    assert cache.find(key("b"), "v1") is not None


def test_nothing_is_kept_without_room() -> None:
    """0 bytes switch it off."""
    cache = StateCache(0)
    cache.keep(key("a"), "v1", snapshot(1))
    assert (len(cache), cache.num_bytes) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 400_000), st.booleans()), max_size=30))
def test_bytes_are_those_of_what_is_kept_and_never_above_the_room(steps: list[tuple[str, int, bool]]) -> None:
    """Whatever is kept and forgotten in whatever order; an empty cache holds no bytes."""
    cache = StateCache(ROOM)
    for name, size, forgets in steps:
        if forgets:
            cache.forget(key(name))
        else:
            cache.keep(key(name), "v", snapshot(size))
        assert cache.num_bytes <= ROOM
    held = sum(size.num_bytes for name in "abcde" if (size := cache.find(key(name), "v")) is not None)
    assert held <= cache.num_bytes <= held + len(cache) * 10_000
    for name in "abcde":
        cache.forget(key(name))
    assert (len(cache), cache.num_bytes) == (0, 0)

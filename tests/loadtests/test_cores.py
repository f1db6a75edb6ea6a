"""Cores that went to what is no engine."""

from __future__ import annotations

import sys
import threading
import time
from os import getpid

import pytest

from loadtests.cores import CoreTimes, cores_of_others, read_core_times


def test_a_servers_busiest_thread_is_its_engine() -> None:
    """Ten seconds: the machine was busy for 15, two engines for 6 and 4 of these."""
    first = CoreTimes(0.0, 100.0, {(1, 1): 50.0, (1, 2): 10.0, (2, 3): 1.0})
    last = CoreTimes(10.0, 115.0, {(1, 1): 51.0, (1, 2): 16.0, (2, 3): 2.0, (2, 4): 4.0})

    assert cores_of_others(first, last) == pytest.approx(0.5)


def test_where_nobody_looked_nobody_took_anything() -> None:
    """Without a /proc, or with no time between two looks."""
    seen = CoreTimes(1.0, 2.0, {})

    assert cores_of_others(None, seen) == cores_of_others(seen, None) == cores_of_others(seen, seen) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_time_of_threads_is_read() -> None:
    """One of this process works for a fifth of a second: it is found, and the machine was busy at least as long."""
    has_worked, may_end = threading.Event(), threading.Event()

    def work() -> None:
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        has_worked.set()
        may_end.wait()

    thread = threading.Thread(target=work)
    first = read_core_times([getpid()])
    thread.start()
    has_worked.wait()
    last = read_core_times([getpid()])
    may_end.set()
    thread.join()

    assert first is not None and last is not None and thread.native_id is not None
    assert last.threads[getpid(), thread.native_id] >= 0.15
    assert last.machine - first.machine >= 0.15


def test_a_process_that_ended_has_no_threads() -> None:
    """It is left out, and nothing fails."""
    seen = read_core_times([2**22 + 1])

    assert seen is None or seen.threads == {}

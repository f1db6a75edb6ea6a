"""Runs of the bench: what is measured once, kept, left out and told."""

from __future__ import annotations

import contextlib
import json
import math
import socket
from pathlib import Path
from typing import ClassVar

import pytest
from hope_client import ConnectionFailed

from hope_server.errors import StartupError
from hope_server.evaluation import learning_baselines, learning_bench
from hope_server.evaluation.learning_baselines import BASELINES, Rooms
from hope_server.evaluation.learning_bench import LearningOptions, run_key, run_learning
from hope_server.evaluation.learning_room import alone
from hope_server.evaluation.learning_trials import Sizes
from hope_server.model.config import ModelConfig
from hope_server.model.presets import choose_levels


class FakeRoom:
    """A room without a server; keeps what was done with it."""

    made: ClassVar[list[FakeRoom]] = []

    def __init__(self, folder, say, *, settings=None, elsewhere=None, server=None):
        self.folder, self.settings, self.elsewhere = folder, settings, elsewhere
        self.done: list[str] = []
        FakeRoom.made.append(self)

    def __getattr__(self, name):
        return lambda *args: self.done.append(" ".join([name, *map(str, args)]))

    def watched(self):
        return contextlib.nullcontext()


@pytest.fixture
def runs(monkeypatch):
    """Parts that count how often they run, in place of the real ones, and rooms without servers."""
    FakeRoom.made = []
    ran: list[str] = []

    def part(name):
        def measure(trial):
            ran.append(f"{name} {trial.seed}")
            if name == "many" and trial.seed == 1 and "fail" in ran:
                raise StartupError("the server ended with code -9: killed")
            return {"rank_accuracy": 0.5 + trial.seed / 4}

        return measure

    monkeypatch.setattr(learning_bench, "PARTS", {name: part(name) for name in ("recall", "many", "delay")})
    monkeypatch.setattr(learning_bench, "Classroom", FakeRoom)
    monkeypatch.setattr(learning_baselines, "Classroom", FakeRoom)
    return ran


def make_options(folder: Path, **changes) -> LearningOptions:
    values = {
        "seeds": (0, 1),
        "parts": ("recall", "many"),
        "baselines": (),
        "sizes": Sizes(),
        "out": folder / "out",
        "work": folder / "work",
        "cache_dir": folder / "cache",
    }
    return LearningOptions(**(values | changes))


def test_finished_parts_are_not_run_again(tmp_path, runs):
    """A second run gives the same values and runs nothing; --fresh runs all."""
    said: list[str] = []
    found = run_learning(make_options(tmp_path), said.append)
    assert runs == ["recall 0", "many 0", "recall 1", "many 1"]
    assert found.parts["many"] == {0: {"rank_accuracy": 0.5}, 1: {"rank_accuracy": 0.75}}
    assert run_learning(make_options(tmp_path), said.append).parts == found.parts
    assert len(runs) == 4 and said[-1] == "seed 1 · many: rank_accuracy 0.75 (kept)"
    run_learning(make_options(tmp_path, is_fresh=True), said.append)
    assert len(runs) == 8


def test_a_run_that_failed_goes_on_where_it_stopped(tmp_path, runs):
    """The store stays after a failure and goes when all is done."""
    runs.append("fail")
    with pytest.raises(StartupError, match="ended with code -9"):
        run_learning(make_options(tmp_path), lambda _: None)
    assert FakeRoom.made[-1].done == ["end 0-chat", "close"]
    del runs[:]
    run_learning(make_options(tmp_path), lambda _: None)
    assert runs == ["many 1"]
    assert FakeRoom.made[-1].done[-1] == "remove"


def test_two_runs_of_the_same_do_not_meet(tmp_path, runs):
    """The second one says what to do; after the first one's end it may run."""
    options = make_options(tmp_path)
    folder = options.work / run_key(options)
    with alone(folder), pytest.raises(StartupError, match="another run uses"):
        run_learning(options, lambda _: None)
    assert runs == []
    run_learning(options, lambda _: None)
    assert len(runs) == 4


def test_stores_that_no_run_can_go_on_with_are_deleted(tmp_path, runs):
    """Those of a run that is under way are not touched."""
    options = make_options(tmp_path)
    left, busy = options.work / "left" / "room", options.work / "busy" / "room"
    for room in (left, busy):
        room.mkdir(parents=True)
    with alone(busy.parent):
        run_learning(options, lambda _: None)
    assert (left.exists(), busy.exists()) == (False, True)


def test_other_settings_and_other_contents_of_their_files_are_other_runs(tmp_path, monkeypatch):
    """What is kept belongs to the settings it was measured with; where it listens does not matter."""
    options = make_options(tmp_path)
    levels = tmp_path / "levels.yaml"
    levels.write_text("[]")
    keys = [run_key(options)]
    monkeypatch.setenv("HOPE_PORT", "9")
    assert run_key(options) == keys[0]
    monkeypatch.setenv("HOPE_LEVELS", str(levels))
    keys.append(run_key(options))
    levels.write_text("[{}]")
    keys.append(run_key(options))
    keys.append(run_key(make_options(tmp_path, sizes=Sizes.quick())))
    assert len(set(keys)) == 4


def test_a_part_without_its_text_is_left_out_and_named(tmp_path, runs, monkeypatch):
    """Nothing is made up for what cannot be had."""
    monkeypatch.setenv("PATH", str(tmp_path))
    found = run_learning(make_options(tmp_path, parts=("recall", "delay")), lambda _: None)
    assert set(found.parts) == {"recall"}
    (line,) = found.missing
    assert line.startswith("corpus 'moby_dick' is fetched with npm, which is not installed")


def test_of_anothers_server_nothing_is_kept(tmp_path, runs):
    """It may be another one tomorrow; every run measures it anew, in sessions with a name of their own."""
    options = make_options(tmp_path, url="http://127.0.0.1:1", seeds=(0,))
    run_learning(options, lambda _: None)
    run_learning(options, lambda _: None)
    assert runs == ["recall 0", "many 0"] * 2
    first, second = (room.elsewhere.prefix for room in FakeRoom.made)
    assert first != second and FakeRoom.made[0].done[0] == "reach"


def test_a_server_that_nobody_answers_for_fails_before_anything_is_measured(tmp_path, free_port):
    """The client's own error comes through."""
    with pytest.raises(ConnectionFailed):
        run_learning(make_options(tmp_path, url=f"http://127.0.0.1:{free_port}"), lambda _: None)


@pytest.fixture
def free_port():
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_baseline_that_cannot_be_run_is_named_and_the_others_run(tmp_path, runs, monkeypatch):
    """Its reason is told once, not once a seed."""

    def fail(seed, rooms):
        raise StartupError("no such package")

    monkeypatch.setitem(BASELINES, "no_memory", fail)
    monkeypatch.setitem(BASELINES, "in_prompt", lambda seed, rooms: {"rank_accuracy": 0.25, "exact": math.nan})
    said: list[str] = []
    found = run_learning(make_options(tmp_path, parts=(), baselines=("no_memory", "in_prompt")), said.append)
    assert found.missing == ["baseline no_memory: no such package"]
    assert {seed: values["rank_accuracy"] for seed, values in found.baselines["in_prompt"].items()} == {
        0: 0.25,
        1: 0.25,
    }


def test_servers_of_baselines_run_one_at_a_time(tmp_path, monkeypatch):
    """The next one ends the last one; the same one is used again."""
    FakeRoom.made = []
    monkeypatch.setattr(learning_baselines, "Classroom", FakeRoom)
    rooms = Rooms(make_options(tmp_path), tmp_path / "rooms", lambda _: None)
    plain = rooms.plain()
    assert rooms.plain() is plain and plain.settings == {"HOPE_WINDOW": "4096"}
    online = rooms.sgd()
    assert plain.done == ["remove"] and Path(online.settings["HOPE_LEVELS"]).is_file()
    rooms.close()
    assert online.done == ["remove"]


def test_the_online_level_is_one_that_a_server_takes(tmp_path):
    """Its file is read by the server's own reader, for the default model's 30 blocks."""
    path = tmp_path / "sgd.json"
    path.write_text(json.dumps([learning_baselines.SGD_LEVEL]))
    model = ModelConfig("m", 300, 576, 1536, 30, 9, 3, 64, 1e5, 1e-5, 8192, True)
    (level,) = choose_levels(str(path), model, 256)
    assert (level.rule, level.schedule, level.kind) == ("sgd", "online", "dense")

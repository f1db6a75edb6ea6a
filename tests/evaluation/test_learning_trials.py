"""The parts of the bench against a real server with a toy model: what they measure, keep and leave alone."""

from __future__ import annotations

import math

import pytest
from toy_server import project_environ

from hope_server.errors import StartupError
from hope_server.evaluation.learning_room import Address, Classroom, read_values, write_values
from hope_server.evaluation.learning_texts import Choice, Window
from hope_server.evaluation.learning_trials import PARTS, Sizes, Trial
from hope_server.evaluation.own_server import OwnServer

SIZES = Sizes(facts=4, fewer=2, many=3, free=1, delays=(64, 128), windows=1, choices=1, lesson=1, timed=1)
SETTINGS = {**project_environ(), "HOPE_PASSES_LEARN": "2"}
TOY = ("-m", "tests.chaos.server")


def make_room(folder, said=None):
    """A room whose server serves a toy."""
    say = (lambda _: None) if said is None else said.append
    return Classroom(folder, say, server=OwnServer(folder, SETTINGS, command=TOY))


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """A seed on a toy server."""
    room = make_room(tmp_path_factory.mktemp("room"))
    yield Trial(
        3,
        room,
        SIZES,
        reading="The whale swam on through the night. " * 40,
        windows=(Window("a", "It was", " a dark night."), Window("b", "So", " it goes.")),
        choices=(Choice("piqa", "Question: which?\nAnswer:", ("this", "that"), 0),),
    )
    room.close()


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("recall", {"rank_accuracy", "logprob", "exact", "state_bytes", "snapshot_bytes", "teach_seconds"}),
        ("paraphrase", {"rank_accuracy", "logprob", "exact"}),
        ("false_memory", {"rise", "before", "after"}),
        ("update", {"updated", "others"}),
        ("damage", {"mean", "a", "b"}),
        ("choices", {"mean", "piqa", "piqa_before"}),
        ("delay", {"before", "after_64", "kept_64", "after_128", "kept_128", "tokens_read"}),
        ("lessons", {"first_then", "first", "all"}),
        ("many", {"rank_accuracy", "logprob", "exact", "seconds", "tokens_per_second"}),
    ],
)
def test_a_part_measures_over_http_what_it_says(trial, part, names):
    """Every figure is there, and the session that was told in a chat is as it was."""
    session, _ = trial.chat()
    version = session.info().version
    values = PARTS[part](trial)
    assert set(values) == names
    shares = [
        value for name, value in values.items() if name.startswith(("rank", "exact", "updated", "first", "after"))
    ]
    assert all(0 <= value <= 1 for value in shares if not math.isnan(value))
    assert session.info().version == version


def test_reading_goes_on_until_the_delay_is_reached(trial):
    """The tokens that were read are counted by the server, never guessed from characters."""
    assert PARTS["delay"](trial)["tokens_read"] >= 128


def test_costs_are_times_of_turns_and_of_a_single_pass(trial):
    """Each is measured, and no fork stays."""
    values = PARTS["cost"](trial)
    assert set(values) == {
        "learn_seconds_per_turn",
        "added_latency_seconds",
        "one_pass_tokens_per_second",
        "one_pass",
    }
    assert values["learn_seconds_per_turn"] > 0 and values["one_pass_tokens_per_second"] > 0


def test_every_telling_is_asked_for_and_forgotten(trial):
    """A list and prose by `learn`, few facts also in a chat; the headline's own telling is not done twice."""
    values = PARTS["tellings"](trial)
    starts = {name.removesuffix("_rank_accuracy") for name in values if name.endswith("_rank_accuracy")}
    assert starts == {"list_2", "prose_2", "chat_2", "list_4", "prose_4"}
    kept = {path.name for path in trial.room.folder.glob("taught-*.json")}
    assert kept == {"taught-3-chat.json"}


def test_a_taught_session_is_found_again_and_a_teaching_that_was_cut_off_is_done_anew(tmp_path):
    """What a teaching gave is kept with the store; without it the session is made anew."""
    taught = []

    def teach(session):
        taught.append(session.learn("The barn is red.", passes=1).tokens_learned)
        return {"tokens": float(taught[-1])}

    room = make_room(tmp_path)
    first, values = room.taught("a", teach)
    version = first.version
    room.close()
    room = make_room(tmp_path)
    try:
        again, kept = room.taught("a", teach)
        assert (again.info().version, kept, len(taught)) == (version, values, 1)
        (tmp_path / "taught-a.json").unlink()
        anew, _ = room.taught("a", teach)
        assert len(taught) == 2 and anew.info().turn == 1
        with room.copy(anew, "b") as copy:
            copy.learn("It is blue now.", passes=1)
        assert anew.info().version == anew.version
        assert {info.id for info in room.sessions()} == {"bench-a"}
    finally:
        room.remove()
    assert not tmp_path.exists()


def test_on_anothers_server_nothing_of_ours_stays(trial, tmp_path):
    """Sessions have names of their own there, and are deleted at the end, also those of a teaching that failed."""
    trial.room.untaught()
    before = {info.id for info in trial.room.sessions()}
    address = Address(trial.room.server.url, None, "mine")

    def teach(session):
        session.learn("The barn is red.", passes=1)
        raise ValueError("cut off")

    room = Classroom(tmp_path / "room", lambda _: None, elsewhere=address)
    room.untaught()
    with pytest.raises(ValueError, match="cut off"):
        room.taught("a", teach)
    assert {info.id for info in room.sessions()} - before == {"mine-untaught", "mine-a"}
    room.close()
    assert {info.id for info in trial.room.sessions()} == before


def test_a_server_that_dies_is_told_with_its_end_and_not_as_a_broken_connection(tmp_path):
    """The process that ended is what a person must know of."""
    room = make_room(tmp_path)
    session = room.untaught()
    room.server.kill()
    with pytest.raises(StartupError, match="the server ended with code -9"), room.watched():
        session.info()
    room.close()


def test_values_are_kept_whole_or_not_at_all(tmp_path):
    """NaN comes back as NaN; a damaged file is none."""
    path = tmp_path / "deep" / "values.json"
    write_values(path, {"a": 1.5, "b": math.nan})
    found = read_values(path)
    assert found["a"] == 1.5 and math.isnan(found["b"])
    path.write_text('{"a": ')
    assert read_values(path) is None
    assert read_values(tmp_path / "none.json") is None
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="choose another --work"):
        write_values(tmp_path / "file" / "values.json", {})

"""Settings: where values come from, and what stops the start."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hope_server.engine.stores import build_store, vault_of
from hope_server.errors import SettingsError
from hope_server.settings import Option, Settings


def test_defaults(monkeypatch, tmp_path):
    """Without flags and variables the documented defaults hold, with the home folder filled in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.load(environ={})
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8000, "smollm2-135m-instruct")
    assert settings.store == f"{tmp_path}/.local/share/hope/sessions.db"
    assert settings.cache_dir == tmp_path / ".cache" / "hope"
    assert settings.api_keys == ()
    assert (settings.max_learn_bytes, settings.max_body_bytes) == (16 * 2**20, 2 * 2**20)
    assert (settings.passes_user, settings.passes_assistant, settings.passes_learn) == (8, 0, 8)
    assert (settings.consolidation, settings.consolidation_block, settings.consolidation_delay) == ("auto", 256, 128)


def test_flags_win_over_variables():
    """A flag overrides its variable, and a variable its default."""
    environ = {"HOPE_PORT": "9000", "HOPE_WINDOW": "1024", "PATH": "/bin"}
    settings = Settings.load({"port": "9001"}, environ)
    assert (settings.port, settings.window) == (9001, 1024)


def test_environment_of_the_process(monkeypatch):
    """Without a mapping the process's own environment is read."""
    monkeypatch.setenv("HOPE_DRAIN_SECONDS", "2.5")
    assert Settings.load().drain_seconds == 2.5


def test_keys_are_split():
    """Keys come as one comma-separated text; spaces and empty ones are dropped."""
    assert Settings.load(environ={"HOPE_API_KEYS": " a1, b2,,"}).api_keys == ("a1", "b2")


def test_unknown_variable_stops_the_start():
    """A misspelt variable is an error that suggests the right name and lists all of them."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ={"HOPE_API_KEY": "sk-1"})
    message = caught.value.message
    assert message.startswith("unknown setting HOPE_API_KEY; did you mean HOPE_API_KEYS?")
    assert all(f"HOPE_{name.upper()}" in message for name in Settings.model_fields)
    assert "sk-1" not in message


def test_variables_of_the_operators_are_not_unknown():
    """What decides how operators compute is read where they are."""
    assert Settings.load({}, {"HOPE_NATIVE": "0", "HOPE_CXX": "g++", "HOPE_HALF": "0"}) == Settings.load({}, {})


def test_unknown_flag_stops_the_start():
    """The same holds for flags."""
    with pytest.raises(SettingsError, match=r"unknown setting --prot; did you mean --port\? valid names: --host, "):
        Settings.load({"prot": "1"}, {})


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("port", "abc"),
        ("port", "65536"),
        ("port", "-1"),
        ("port", ""),
        ("host", ""),
        ("num_slots", "0"),
        ("num_slots", "1.5"),
        ("max_queued_turns_per_session", "-1"),
        ("passes_user", "1001"),
        ("max_body_bytes", "10"),
        ("drain_seconds", "nan"),
        ("drain_seconds", "inf"),
        ("drain_seconds", "-1"),
        ("consolidation", "sometimes"),
        ("log_level", "loud"),
        ("num_threads", "-1"),
        ("durability", "always"),
        ("durability_unmet", "ignore"),
        ("on_rollback", "reseed"),
        ("session_ttl_seconds", "-1"),
        ("store_timeout_seconds", "0"),
    ],
)
def test_unparsable_value_stops_the_start(field, text):
    """A value that cannot be is an error that names where it was given, the value, and what the field means."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ={f"HOPE_{field.upper()}": text})
    message = caught.value.message
    assert message.startswith(f"HOPE_{field.upper()} is {text!r}: ")
    assert Settings.model_fields[field].description in message
    assert "\n" not in message


def test_every_fault_is_reported_at_once():
    """Two wrong values make one line that names both."""
    with pytest.raises(SettingsError, match=r"HOPE_PROT.*--num-slots"):
        Settings.load({"num_slots": "x"}, {"HOPE_PROT": "1"})


def test_secrets_are_not_repeated():
    """A bad key is refused without being shown, and keys are left out of the object's text."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ={"HOPE_API_KEYS": "good,SECRET key"})
    assert "SECRET" not in caught.value.message
    assert "good" not in repr(Settings(api_keys=("good",)))


def test_frozen():
    """Settings do not change once read."""
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_options_describe_every_field():
    """The command line gets one flag per field, in order, with help, value type and default."""
    options = list(Settings.options())
    assert [option.field for option in options] == list(Settings.model_fields)
    assert options[1] == Option("--port", "port", "TCP port to listen on, 0 picks a free port", int, 8000)
    found = {option.flag: option for option in options}
    assert found["--drain-seconds"].type is float
    assert found["--log-level"].type is str
    assert found["--log-level"].help.endswith("(debug, info, warning, error)")
    units = (
        "bytes",
        "tokens",
        "turns",
        "seconds",
        "threads",
        "sessions",
        "versions",
        "times",
        "port",
        "requests",
        "connections",
    )
    for option in options:
        if option.type is not str:
            assert any(unit in option.help for unit in units), option.flag


def test_options_round_trip():
    """Every default, written as text, is a value that its flag takes."""
    defaults = Settings()
    texts = {
        option.field: ",".join(option.default) if isinstance(option.default, tuple) else str(option.default)
        for option in Settings.options()
    }
    assert Settings.load(texts, {}) == defaults


@pytest.mark.parametrize("text", ["none", "async", "commit", "fsync", "replicated:1", "replicated:99"])
def test_durabilities(text):
    """Each level, and numbers of replicas from 1 to 99."""
    assert Settings.load({"durability": text}, {}).durability == text


def test_an_address_of_keys_is_not_repeated():
    """A key store's URL can hold a password, as the store's can."""
    with pytest.raises(SettingsError) as caught:
        build_store(Settings(store="redis://:SECRET@h/0", key_store="redis://:SECRET@h/0"))
    assert "SECRET" not in caught.value.message
    assert "must not be the session store" in caught.value.message


def test_keys_are_where_the_settings_say(tmp_path):
    """A file and a key store of their own, or beside the store; each on its own."""
    store = str(tmp_path / "s.db")
    beside = vault_of(build_store(Settings(store=store)))
    assert (beside.key_file, beside.key_store.path) == (tmp_path / "s.key", tmp_path / "s.keys.db")
    apart = vault_of(build_store(Settings(store=store, key_file=str(tmp_path / "k"), key_store=str(tmp_path / "d"))))
    assert (apart.key_file, apart.key_store.path) == (tmp_path / "k", tmp_path / "d")
    mixed = vault_of(build_store(Settings(store=store, key_file=str(tmp_path / "k"))))
    assert (mixed.key_file, mixed.key_store.path) == (tmp_path / "k", tmp_path / "s.keys.db")


def test_a_life_of_sessions_needs_a_store_that_has_it():
    """A SQLite file keeps sessions until they are deleted, and says so at the start."""
    with pytest.raises(SettingsError, match="needs a Redis"):
        build_store(Settings(store="s.db", session_ttl_seconds=60))
    store = build_store(Settings(store="redis://h/0", session_ttl_seconds=60, store_prefix="x:"))
    assert (store.options.session_ttl_seconds, store.options.prefix) == (60, "x:")

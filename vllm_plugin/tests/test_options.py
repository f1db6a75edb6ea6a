"""What is checked before an engine starts: vLLM's version, options of sessions, and words of refusals."""

from __future__ import annotations

import json

import pytest
from hope_vllm.errors import ShardMissing, TurnUnsupported, UnsupportedVllm
from hope_vllm.names import CONNECTOR, SCHEDULER
from hope_vllm.options import read_options
from hope_vllm.refusals import read_reason, reason_text
from hope_vllm.serve import main, server_words
from hope_vllm.versions import check_vllm

from hope_server.errors import (
    HopeError,
    InvalidRequest,
    MemoryEvicted,
    SettingsError,
    StateCorrupt,
    StateIncompatible,
    StoreUnavailable,
)
from hope_server.settings import SESSION_OPTIONS, VLLM_OPTIONS


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu", "0.32.10.post1"])
def test_a_vllm_of_the_tested_range_is_taken(version: str) -> None:
    """Patch releases and local builds of it, too."""
    check_vllm(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0", "0.32.0rc1", "0.32", "dev", ""])
def test_another_vllm_is_refused_with_the_reason(version: str) -> None:
    """Older, newer, unfinished and unknown ones: the message has what there is and what is needed."""
    with pytest.raises(UnsupportedVllm, match=r"needs vLLM 0\.32\.x.*this is") as caught:
        check_vllm(version)

    assert caught.value.found == version


def test_options_are_fields_of_settings() -> None:
    """Each option is known to the service's settings, and a given one is taken."""
    settings = read_options({"store": "x.db", "durability": "fsync", "keep_versions": 3}, {})

    assert (settings.store, settings.durability, settings.keep_versions) == ("x.db", "fsync", 3)
    assert all(hasattr(settings, name) for name in SESSION_OPTIONS)


def test_options_may_come_by_the_environment() -> None:
    """A store's URL can hold a password, so it need not be on a command line; what is given counts more."""
    environ = {VLLM_OPTIONS: '{"store": "redis://:secret@host/0", "keep_versions": 3}', "HOPE_DURABILITY": "fsync"}

    settings = read_options({"keep_versions": 5}, environ)

    assert (settings.store, settings.keep_versions, settings.durability) == ("redis://:secret@host/0", 5, "commit")


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_options_that_are_no_object_are_refused(text: str) -> None:
    """The value is not repeated, as it can hold a password."""
    with pytest.raises(SettingsError, match="is no JSON object"):
        read_options({}, {VLLM_OPTIONS: text})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stroe": "x"}, "unknown stroe"),
        ({"num_slots": 4}, "unknown num_slots"),
        ({"keep_versions": "many"}, "keep_versions cannot have such a value"),
        ({"durability": "none"}, "ends a reply before its turn is kept"),
        ({"durability": "async"}, "ends a reply before its turn is kept"),
        ({"durability": "twice"}, "durability cannot have such a value"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(given: dict[str, object], words: str) -> None:
    """Unknown names, other engines' options, bad values, and durabilities that do not wait for the commit."""
    with pytest.raises(SettingsError, match=words):
        read_options(given)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("no"), 400),
        (TurnUnsupported("no"), 400),
        (StateIncompatible("no"), 409),
        (MemoryEvicted("ada"), 410),
        (ShardMissing(1, 2), 500),
        (StateCorrupt("no"), 500),
        (StoreUnavailable("no"), 503),
    ],
    ids=lambda value: getattr(value, "code", str(value)),
)
def test_a_refusal_reaches_the_server_whole(error: HopeError, status: int) -> None:
    """Status, code and sentence go through the one field of a reply that can carry them."""
    reason = read_reason(reason_text(error))

    assert reason is not None and tuple(reason) == (status, error.code, str(error))


@pytest.mark.parametrize("stop_reason", [None, 7, "\n", "hope-", "some text"])
def test_other_reasons_are_left_alone(stop_reason: object) -> None:
    """Stop tokens and stop strings are no refusals."""
    assert read_reason(stop_reason) is None


def test_the_server_is_set_up_for_sessions() -> None:
    """The scheduler, the connector and what must be off are there; what the operator adds comes behind, and counts."""
    words = server_words("folder", ["--port", "1", "--no-enforce-eager"])
    own = server_words("folder", ["--kv-transfer-config", "{}"])

    assert words[:4] == ["--model", "folder", "--scheduler-cls", SCHEDULER]
    assert {"--no-async-scheduling", "--no-enable-prefix-caching"} <= set(words)
    assert json.loads(words[words.index("--kv-transfer-config") + 1])["kv_connector"] == CONNECTOR
    assert words[-3:] == ["--port", "1", "--no-enforce-eager"]
    assert own.count("--kv-transfer-config") == 1


def test_a_server_without_a_folder_or_with_bad_options_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how it is called, or what is wrong, before a model is loaded."""
    assert main(["--port", "1"]) == 2 and "FOLDER" in capsys.readouterr().err
    monkeypatch.setenv(VLLM_OPTIONS, '{"durability": "none"}')
    assert main(["folder"]) == 1 and "commit, fsync or replicated:N" in capsys.readouterr().err

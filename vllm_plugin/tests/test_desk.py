"""Sessions of a store without an engine: listed, gone back, deleted, carried as files to another number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hope_vllm.codec import StateCodec
from hope_vllm.hope_config import model_fingerprint, read_config
from hope_vllm.keeper import Keeper, Start
from hope_vllm.options import read_options
from hope_vllm.sessions import main
from test_codec import random_state, shards_of
from test_hope_config import of
from toy_models import write_toy

from hope_server.model.config import HopeConfig
from hope_server.model.params import Params


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Options of the sessions' store, by the variable."""
    found: dict[str, object] = {"store": str(tmp_path / "sessions.db"), "host_cache_bytes": 0}
    monkeypatch.setenv("HOPE_VLLM_OPTIONS", json.dumps(found))
    return found


def codec_of(folder: Path) -> StateCodec:
    """The codec of the model in a folder."""
    config = of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return StateCodec(read_config(config), model_fingerprint(config))


def teach(folder: Path, options: dict[str, object], *lengths: int, num_ranks: int = 1) -> list[str]:
    """Commit states of the session `ada` after so many tokens; returns their versions."""
    keeper = Keeper(read_options(options), codec_of(folder))
    keeper.open()
    versions = []
    for num_tokens in lengths:
        start = keeper.load("ada").result()
        shards = shards_of(random_state(num_tokens), num_ranks)
        versions.append(keeper.commit("ada", start, shards, num_tokens - start.num_tokens).result().info.version)
    keeper.close()
    return versions


def look(folder: Path, options: dict[str, object], name: str) -> Start:
    """What an engine would go on from."""
    keeper = Keeper(read_options(options), codec_of(folder))
    keeper.open()
    try:
        return keeper.load(name).result()
    finally:
        keeper.close()


@pytest.mark.parametrize("num_ranks", [None, 1, 4])
def test_a_session_is_carried_to_another_number_of_ranks(
    toy_folder: Path,
    options: dict[str, object],
    tmp_path: Path,
    num_ranks: int | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exported from two ranks, imported under another name for as many as asked: the same state bit for bit."""
    teach(toy_folder, options, 21, num_ranks=2)
    ranks = [] if num_ranks is None else ["--ranks", str(num_ranks)]

    assert main([str(toy_folder), "export", "ada", str(tmp_path / "ada.hope"), *ranks]) == 0
    assert main([str(toy_folder), "import", "bo", str(tmp_path / "ada.hope")]) == 0
    assert main([str(toy_folder), "list"]) == 0

    start = look(toy_folder, options, "bo")
    assert start.state is not None and start.num_tokens == 21
    assert set(start.state.info["state_bytes"]) == {f"rank.{rank}" for rank in range(num_ranks or 2)}
    for block, tensors in random_state(21).blocks.items():
        assert all(torch.equal(start.state.blocks[block][name], tensor) for name, tensor in tensors.items())
    assert "bo" in capsys.readouterr().out


def test_going_back_and_deleting(
    toy_folder: Path, options: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    """A kept version becomes the newest; a deleted session begins anew only because it was deleted."""
    first, second = teach(toy_folder, options, 5, 9)
    assert main([str(toy_folder), "versions", "ada"]) == 0
    assert capsys.readouterr().out.split("\n")[0].startswith(second)

    assert main([str(toy_folder), "rollback", "ada", first]) == 0
    assert look(toy_folder, options, "ada").num_tokens == 5
    assert main([str(toy_folder), "delete", "ada"]) == 0
    assert look(toy_folder, options, "ada").state is None


def test_what_cannot_be_carried_is_refused(
    toy: tuple[HopeConfig, Params],
    toy_folder: Path,
    options: dict[str, object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A name that is taken, ranks that cannot share the heads, a damaged file, another model, no such session."""
    teach(toy_folder, options, 5)
    file, other = tmp_path / "ada.hope", write_toy(tmp_path / "other", *toy, "toy-9")
    assert main([str(toy_folder), "export", "ada", str(file)]) == 0
    damaged = tmp_path / "damaged.hope"
    damaged.write_bytes(file.read_bytes()[:-1] + b"x")
    commands = (
        ([str(toy_folder), "import", "ada", str(file)], "exists already"),
        ([str(toy_folder), "import", "bo", str(file), "--ranks", "3"], "3 ranks cannot share 4 memory heads"),
        ([str(toy_folder), "import", "bo", str(damaged)], "not a whole, unaltered export"),
        ([str(other), "import", "bo", str(file)], "another model or version"),
        ([str(other), "export", "ada", str(file)], "another model"),
        ([str(toy_folder), "export", "nobody", str(file)], "no session"),
    )
    for command, words in commands:
        assert main(command) == 1
        assert words in capsys.readouterr().err

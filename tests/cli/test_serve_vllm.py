"""`hope serve --engine vllm`: what it refuses, what it writes, and the process that it becomes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from toys import MODEL, tokenizer_source

from hope_server.cli import main
from hope_server.cli.serve_vllm import environment
from hope_server.model.base_import import BaseModel
from hope_server.model.families import family_config, retrofitted
from hope_server.model.model_cache import install_model
from hope_server.model.params import fuse_params, random_weights
from hope_server.settings import Settings


class Became(Exception):
    """The process would be another from here on."""


@pytest.fixture
def became(monkeypatch):
    """Have an exec raise what it was asked for."""

    def execve(path, words, environ):
        raise Became(path, words, environ)

    monkeypatch.setattr("os.execve", execve)


def folder_of(target: Path, **titans) -> Path:
    """A toy in the cache's layout, with a Titans branch where any of its fields are given."""
    base = fuse_params(MODEL, random_weights(MODEL, 0))
    config = family_config("retrofit", MODEL, titans=titans)
    params = retrofitted(base, config, 0)
    hope = {key: value for key, value in asdict(config).items() if key != "model"}
    model = BaseModel(MODEL, tokenizer_source(), {name: tensor.clone() for name, tensor in params.named().items()})
    install_model(model, "toy", target, lambda stage, fraction: None, hope)
    return target


def test_the_process_becomes_vllms_server(became, tmp_path):
    """The model is written as vLLM reads it; options of sessions go by a variable, the rest on the command line."""
    folder = folder_of(tmp_path / "toy", blocks=(0,))
    flags = ["--model", str(folder), "--cache-dir", str(tmp_path / "cache"), "--store", str(tmp_path / "s.db")]
    with pytest.raises(Became) as caught:
        main(["serve", "--engine", "vllm", "--vllm-python", sys.executable, "--port", "8123", *flags])

    path, words, environ = caught.value.args
    exported = Path(words[3])
    assert path == sys.executable and words[1:3] == ["-m", "hope_vllm.serve"]
    assert words[4:] == ["--host", "127.0.0.1", "--port", "8123", "--dtype", "float32", "--served-model-name", "toy"]
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["HopeForCausalLM"] and config["hope"]["titans"]["blocks"] == [0]
    assert exported.is_relative_to(tmp_path / "cache" / "vllm")
    assert json.loads(environ["HOPE_VLLM_OPTIONS"])["store"] == str(tmp_path / "s.db")


def test_our_settings_do_not_reach_vllm_twice(monkeypatch):
    """Variables that are settings go; those of the operators stay; a store's password is on no command line."""
    settings = Settings(store="redis://:secret@host/0", num_threads=1)

    given = {"HOPE_STORE": "x", "HOPE_CACHE_DIR": "y", "HOPE_NATIVE": "0", "PATH": "/bin", "GOMP_SPINCOUNT": "7"}
    found = environment(settings, {**given, "OMP_WAIT_POLICY": "PASSIVE"})

    assert found["HOPE_NATIVE"] == "0" and found["PATH"] == "/bin"
    # What this process has set for its own threads is not vLLM's, what the operator chose is.
    assert "OMP_WAIT_POLICY" not in found and found["GOMP_SPINCOUNT"] == "7"
    assert "HOPE_STORE" not in found and json.loads(found["HOPE_VLLM_OPTIONS"])["store"] == "redis://:secret@host/0"
    assert found["VLLM_CPU_OMP_THREADS_BIND"].isdigit()


@pytest.mark.parametrize(
    ("flags", "exit_code", "message"),
    [
        (["--window", "64"], 2, "--engine vllm does not know window"),
        (["--levels", "off", "--passes-user", "1"], 2, "does not know levels, passes_user"),
        (["--api-keys", "k"], 2, "does not know api_keys"),
        (["--vllm-python", "no/such/python"], 1, "no/such/python is no program that can be run"),
        ([], 1, "vLLM and hope-vllm are not in this environment"),
    ],
    ids=["window", "several", "keys", "interpreter", "no plugin"],
)
def test_what_would_be_ignored_is_refused(became, failure_line, flags, exit_code, message):
    """A setting that vLLM does not know ends the start, as does an environment without the plugin."""
    assert main(["serve", "--engine", "vllm", *flags]) == exit_code
    assert message in failure_line()


def test_a_model_whose_sessions_could_not_learn_is_refused(became, failure_line, tmp_path):
    """A network without Titans branches, and one whose levels only our own engine writes."""
    plain = folder_of(tmp_path / "plain")
    flags = ["--vllm-python", sys.executable, "--cache-dir", str(tmp_path / "cache")]

    assert main(["serve", "--engine", "vllm", "--model", str(plain), *flags]) == 1
    assert "has no Titans branches" in failure_line()


def test_titans_in_place_of_attention_are_refused(tmp_path):
    """Such a model has no place in a Llama; the message names what would have."""
    from hope_server.errors import CheckpointError
    from hope_server.model.hf_export import check_exportable

    with pytest.raises(CheckpointError, match="beside attention"):
        check_exportable(family_config("hope", replace(MODEL, name="hope")))

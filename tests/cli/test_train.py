"""`hope train`: from a recipe to a trained model, with a real network of toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hope_server.cli import main
from hope_server.model.model_cache import is_complete

RECIPE = {
    "name": "toy",
    "model": {
        "family": "hope",
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 32,
        "chunk_size": 4,
        "window": 8,
    },
    "data": [{"task": "pairs", "arguments": {"num_pairs": 2, "num_tokens": 16}}],
    "optimizer": {"lr": 1e-2, "warmup": 1},
    "steps": 4,
    "rows": 2,
    "length": 16,
    "eval_every": 2,
    "eval_rows": 2,
    "checkpoint_every": 2,
}
TEXT = {
    "tokenizer": {"vocab_size": 400, "corpora": [], "dialogues": 2},
    "data": [{"task": "dialogues", "arguments": {"corpora": [], "probe_distances": [16], "probe_facts": 1}}],
    "length": 48,
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe file; runs go beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOPE_CACHE_DIR", str(tmp_path / "cache"))
    return write(tmp_path)


def write(folder: Path, **changes: object) -> Path:
    """Write the toy recipe with changes."""
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


def test_a_recipe_is_trained_for_each_seed(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each run has a folder with metrics and checkpoints; the result is one JSON line a run."""
    write(tmp_path, seeds=[0, 1])
    assert main(["train", str(recipe), "--threads", "1", "--device", "cpu", "--json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["recipe"], each["seed"], each["model"]) for each in results] == [("toy", 0, None), ("toy", 1, None)]
    assert all(each["metrics"]["step"] == 4 and each["num_params"] > 1000 for each in results)
    for seed in (0, 1):
        names = {path.name for path in (tmp_path / "runs" / "toy" / f"seed-{seed}").iterdir()}
        assert {"metrics.jsonl", "step-00000002", "step-00000004"} <= names


def test_a_language_model_is_exported_and_a_second_run_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder can be served; training into a finished run again needs --resume, which finds nothing left to do."""
    write(tmp_path, **TEXT)
    assert main(["train", str(recipe), "--threads", "1", "--device", "cpu", "--out", "out", "--dtype", "bfloat16"]) == 0
    model = tmp_path / "out" / "toy" / "seed-0" / "model"
    assert f"hope serve --model {Path('out') / 'toy' / 'seed-0' / 'model'}" in capsys.readouterr().out
    assert is_complete(model)
    weights = load_file(model / "model.safetensors")
    trained = load_file(model.parent / "step-00000004" / "weights.safetensors")
    assert all(torch.equal(weights[name], tensor.bfloat16()) for name, tensor in trained.items())
    again = ["train", str(recipe), "--threads", "1", "--device", "cpu", "--out", "out"]
    assert main(again) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert main([*again, "--resume"]) == 0
    exported = load_file(model / "model.safetensors")
    assert all(torch.equal(exported[name], tensor.half()) for name, tensor in trained.items())


def test_an_interrupted_run_is_told_how_to_go_on(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends with its own exit code, and says that the run was saved."""
    from hope_server.training.loop import Trainer

    step = Trainer._step

    def step_and_stop(trainer: Trainer) -> dict[str, float]:
        trainer.stop()
        return step(trainer)

    monkeypatch.setattr(Trainer, "_step", step_and_stop)
    assert main(["train", str(recipe), "--threads", "1", "--device", "cpu"]) == 130
    assert "stopped and saved; go on with --resume" in capsys.readouterr().err
    monkeypatch.setattr(Trainer, "_step", step)
    assert main(["train", str(recipe), "--threads", "1", "--device", "cpu", "--resume"]) == 0
    lines = [json.loads(line) for line in Path("runs/toy/seed-0/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_without_a_recipe_the_known_ones_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """One name a line."""
    assert main(["train"]) == 0
    assert "hope-nano" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "neither a known name"),
        (["toy.yaml", "--seed", "-1"], "--seed is -1; it must be 0 to"),
        (["toy.yaml", "--device", "abacus"], "--device 'abacus' is unknown; use cpu or cuda"),
        (["toy.yaml", "--device", "mps"], "--device 'mps' is not there; use cpu"),
        (["toy.yaml", "--threads", "-2"], "--threads is -2"),
        (["toy.yaml", "--resume"], "has no checkpoint to resume from"),
    ],
)
def test_wrong_arguments_are_one_line_with_exit_code_2(
    recipe: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained."""
    assert main(["train", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("hope: ")
    assert message in said


def test_a_loss_that_is_not_finite_fails_with_its_step(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate that blows the weights up ends the run with exit code 1 and the step, and the good checkpoint stays."""
    write(tmp_path, optimizer={"name": "sgd", "lr": 1e30, "warmup": 0, "clip": 0.0}, checkpoint_every=1, eval_every=0)
    assert main(["train", str(recipe), "--threads", "1", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "is not finite at step" in said
    assert "last good checkpoint is" in said

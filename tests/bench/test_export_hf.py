"""A model that is exported is the same model to transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from baseline import load_baseline
from export_hf import export
from toys import MODEL, tokenizer_source
from transformers import AutoTokenizer, LlamaForCausalLM

from hope_server.model.base_import import BaseModel
from hope_server.model.checkpoint import load_config, load_params
from hope_server.model.model_cache import install_model
from hope_server.model.params import random_weights


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def converted(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A toy as the server's cache holds it."""
    config = replace(MODEL, tie_embeddings=request.param)
    model = BaseModel(config, tokenizer_source(), random_weights(config, 0, torch.float32))
    install_model(model, "toy", tmp_path / "converted", lambda stage, fraction: None)
    return tmp_path / "converted"


def test_an_exported_model_computes_the_same(converted: Path, tmp_path: Path) -> None:
    """transformers reads the folder and finds the very logits of our tensors, tied or not."""
    exported = export(converted, tmp_path / "hf")
    theirs_model = LlamaForCausalLM.from_pretrained(exported, dtype=torch.float32).train(False)
    ours = load_baseline(load_config(converted), load_params(converted, torch.float32))
    ids = torch.tensor([[1, 2, 3, 200, 5, 77]])

    with torch.no_grad():
        # Our queries, keys and values are one matrix, which is multiplied in another order.
        assert torch.allclose(theirs_model(ids).logits, ours(ids).logits, atol=1e-5)
    assert AutoTokenizer.from_pretrained(exported)("violin")["input_ids"] == [
        ord(letter) - ord("!") for letter in "violin"
    ]


def test_an_export_is_made_once(converted: Path, tmp_path: Path) -> None:
    """The same weights in the same type are not written again; in another type they are."""
    exported = export(converted, tmp_path / "hf")
    weights = exported / "model.safetensors"
    before = weights.stat()
    assert export(converted, exported) == exported and weights.stat().st_mtime_ns == before.st_mtime_ns

    export(converted, exported, "bfloat16")

    assert weights.stat().st_size < before.st_size


def test_another_type_is_refused(converted: Path, tmp_path: Path) -> None:
    """A type of weights that is not known ends before anything is written."""
    with pytest.raises(ValueError, match="float8"):
        export(converted, tmp_path / "hf", "float8")

    assert not (tmp_path / "hf").exists()

"""Measures of a served model: answers in long rows, perplexity by position, and memories that are frozen."""

from __future__ import annotations

import math

import pytest
import torch
from stub_evaluation import TableNetwork, stub_options

from hope_server.evaluation.families import INNER, family_config, state_bytes
from hope_server.evaluation.fit import NetworkSpec
from hope_server.evaluation.registry import make_suite
from hope_server.evaluation.runner import run_suite
from hope_server.evaluation.served import CONDITIONS, ServedSuite, dialogue_suite, perplexities, share_right
from hope_server.evaluation.served_model import frozen
from hope_server.model.params import random_params
from hope_server.training.batch import Batch
from hope_server.training.bpe import train_tokenizer
from hope_server.training.chat_codec import ChatCodec
from hope_server.training.dialogues import dialogue_texts
from hope_server.training.export import export_model
from hope_server.training.network import HopeNetwork


def _next_is_one_more(vocab_size: int) -> TableNetwork:
    network = TableNetwork(vocab_size)
    with torch.no_grad():
        network.tensors()["last"].copy_(10 * torch.eye(vocab_size).roll(1, dims=1))
        network.tensors()["before"].zero_()
    return network


def test_an_answer_is_right_when_all_its_tokens_are():
    """Answers are runs of scored positions; one wrong token spoils its answer alone, in any segment of a long row."""
    tokens = (torch.arange(700) % 11)[None].repeat(2, 1)
    targets = (tokens + 1) % 11
    weights = torch.zeros(2, 700)
    for start, stop in ((10, 13), (255, 258), (600, 601), (690, 700)):
        weights[:, start:stop] = 1.0
    network = _next_is_one_more(11)
    assert share_right(network, [Batch(tokens, targets, weights)]) == 100.0
    targets[1, 256] = 0 if targets[1, 256] else 1
    assert share_right(network, [Batch(tokens, targets, weights)]) == 87.5
    assert math.isnan(share_right(network, [Batch(tokens, targets, torch.zeros(2, 700))]))


def test_perplexity_is_taken_by_position():
    """A network that has no idea has the vocabulary's size, and one that knows has 1, at every position."""
    windows = (torch.arange(601) % 11)[None]
    unsure = perplexities(TableNetwork(11), windows)
    assert list(unsure) == ["1-16", "17-32", "33-64", "65-128", "129-256", "257-512", "513-600"]
    assert all(value == pytest.approx(11, rel=0.02) for value in unsure.values())
    assert all(value < 1.01 for value in perplexities(_next_is_one_more(11), windows).values())


@pytest.fixture(params=["chunk_start", "current"])
def networks(request) -> dict[str, HopeNetwork]:
    """One tiny hope network, its memories writing and frozen, read as at the chunk's start or after each write."""
    hope = (("reads", request.param), ("has_momentum", True))
    spec = NetworkSpec(hidden_size=16, num_layers=1, num_heads=2, mlp_size=16, chunk_size=4, hope=hope)
    config = family_config("hope", spec, 20)
    params = random_params(config, 0)
    still = frozen(config, params)
    return {CONDITIONS[0]: HopeNetwork(config, params, INNER), CONDITIONS[1]: HopeNetwork(config, still, INNER)}


def test_frozen_memories_are_the_initial_ones_whatever_was_read(networks):
    """The frozen memories never move, to the bit; what is read before the first write is what writing ones give."""
    tokens = torch.randint(20, (2, 15), generator=torch.Generator().manual_seed(0))
    (on, state), (still, frozen_state) = (networks[name].run(tokens) for name in CONDITIONS)
    titans = networks[CONDITIONS[0]].config.titans
    assert titans is not None
    unwritten = 4 if titans.reads == "chunk_start" else 0
    assert torch.allclose(on[:, :unwritten], still[:, :unwritten], atol=1e-6)
    assert not torch.allclose(on[:, unwritten:], still[:, unwritten:], atol=1e-6)
    layer = networks[CONDITIONS[1]].params.blocks[0].titans
    assert layer is not None
    initial = layer.initial
    for name, tensor in frozen_state.past.titans[0].memories.items():
        assert torch.equal(tensor, initial[name].expand_as(tensor))
        assert not torch.equal(state.past.titans[0].memories[name], tensor)


@pytest.mark.parametrize("name", CONDITIONS)
def test_reading_in_pieces_changes_nothing(networks, name):
    """A row read in odd pieces gives the logits of the whole row."""
    tokens = torch.randint(20, (2, 23), generator=torch.Generator().manual_seed(1))
    whole, _ = networks[name].run(tokens)
    parts, state = [], None
    for piece in tokens.split([3, 1, 9, 10], dim=1):
        logits, state = networks[name].run(piece, state)
        parts.append(logits)
    # float32: products of other shapes are summed in another order.
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


def test_both_conditions_are_measured_with_each_seed(tmp_path):
    """The suite measures the same rows with memories writing and frozen; other weights are other cells."""
    loaded = []

    def load(name: str, is_frozen: bool, device: str) -> tuple[TableNetwork, str]:
        loaded.append((name, is_frozen))
        return TableNetwork(5, seed=len(name)), "{}"

    def measure(network: TableNetwork, tokenizer_json: str, seed: int) -> dict[str, float]:
        return {"64": float(seed)}

    def suite(model: str) -> ServedSuite:
        return ServedSuite("dialogue", "T", "A.", "%", "facts", model, "digest", measure, load=load)

    options = stub_options(tmp_path)
    cells = suite("nano").plan(options, [])
    assert [(cell.column, cell.seed) for cell in cells] == [(name, seed) for name in CONDITIONS for seed in (0, 1)]
    outcomes = [suite("nano").run(cell, options) for cell in cells]
    assert loaded == [("nano", False)] + [("nano", False)] * 2 + [("nano", True)] * 2
    assert [outcome.values["64"] for outcome in outcomes] == [0.0, 1.0, 0.0, 1.0]
    assert suite("nano").plan(options, outcomes) == []
    assert suite("other").plan(options, [])[0].file_name() != cells[0].file_name()


def test_distances_of_a_dialogue_can_be_chosen(tmp_path):
    """Impossible distances are refused with the valid ones."""
    with pytest.raises(ValueError, match="dialogue: a length of 0 is not possible; valid are 1 to 1,048,576"):
        dialogue_suite(stub_options(tmp_path, task="dialogue", lengths=(0,)))


def test_an_exported_model_is_measured_by_name_of_its_folder(tmp_path, monkeypatch):
    """A dialogue with a model as training exports it: both conditions, every distance, and the state's bytes."""
    monkeypatch.setenv("HOPE_CACHE_DIR", str(tmp_path / "cache"))
    tokenizer_json = train_tokenizer(dialogue_texts([], 1), 300)
    spec = NetworkSpec(hidden_size=16, num_layers=1, num_heads=2, mlp_size=16, chunk_size=16)
    config = family_config("hope", spec, ChatCodec(tokenizer_json).vocab_size)
    export_model(config, random_params(config, 0).named(), tokenizer_json, tmp_path / "tiny")
    options = stub_options(
        tmp_path, task="dialogue", model=str(tmp_path / "tiny"), is_quick=True, lengths=(1, 60), is_fresh=True
    )
    report, paths = run_suite(make_suite(options), options, lambda line: None)
    assert [outcome.column for outcome in report.outcomes] == list(CONDITIONS)
    for outcome in report.outcomes:
        assert list(outcome.values) == ["1", "60"]
        assert all(0 <= value <= 100 for value in outcome.values.values())
        assert outcome.facts["state bytes"] == state_bytes(config)
    assert "\n|  | 60 | " in paths[0].read_text()

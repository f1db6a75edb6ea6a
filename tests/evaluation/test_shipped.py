"""The weights that quick runs measure: of the trainings that the catalogue describes now, every family of a part."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from stub_evaluation import stub_options

from hope_server.evaluation.registry import make_suite
from hope_server.evaluation.weights import FOLDER, fill, load_weights, weights_path

SHIPPED = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


@pytest.mark.parametrize("task", SHIPPED)
def test_shipped_weights_are_of_the_catalogue(task, tmp_path):
    """Each file fits the network of its part and family, trained with the settings of today's catalogue."""
    options = stub_options(tmp_path, task=task, seeds=(0,))
    suite = make_suite(options)
    cells = {weights_path(FOLDER, task, cell.part, cell.column): cell for cell in suite.plan(options, [])}
    found = set((FOLDER / task).iterdir())
    parts = {cells[path].part for path in found}
    assert found == {path for path, cell in cells.items() if cell.part in parts}
    for path in sorted(found):
        shipped, cell = load_weights(path), cells[path]
        assert shipped.facts["seed"] == 0
        for name in ("network", "fit", "lengths"):
            assert shipped.facts["settings"][name] == json.loads(json.dumps(cell.settings[name]))
        part = next(part for part in suite.all_parts if part.name == cell.part)
        spec = replace(part.network, is_compiled=False)
        network = suite.build(cell.column, spec, part.task.vocab_size, 0, "cpu")
        readout = [name for name in shipped.tensors if name.startswith("readout.")]
        wanted = network.tensors() | {name: torch.empty_like(shipped.tensors[name]) for name in readout}
        fill(wanted, shipped, path.stem)

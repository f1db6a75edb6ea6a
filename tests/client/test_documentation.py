"""The examples of the documentation run, in order, against a real server with a toy model, and print what they show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy_server import project_environ

ROOT = Path(__file__).resolve().parents[2]
SHOWN_URL = "http://127.0.0.1:8000"
BORDER = "---- next example ----"


def examples(page: Path) -> list[str]:
    """Return the page's Python blocks."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("page", "fewest"), [("docs/SDK.md", 20), ("clients/README.md", 1)])
def test_every_example_prints_what_it_shows(page, fewest, toy_url, tmp_path):
    """One block after the other, as a reader types them in; only the address is another."""
    blocks = examples(ROOT / page)
    assert len(blocks) >= fewest
    program = tmp_path / "program.py"
    code = f'\nprint("\\n{BORDER}")\n'.join(blocks).replace(SHOWN_URL, toy_url)
    program.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        env=project_environ(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"\n{BORDER}\n")
    assert len(printed) == len(blocks)
    for block, lines in zip(blocks, printed, strict=True):
        shown = re.findall(r"^ *#> (.*)$", block, re.MULTILINE)
        if shown:
            assert lines.splitlines() == shown, block

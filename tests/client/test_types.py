"""Programs that use the client type-check, and both clients have the same verbs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from hope_client import AsyncHopeClient, AsyncReplyStream, AsyncSession, HopeClient, ReplyStream, Session

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(__file__).with_name("typed_sample.py")
PACKAGE = ROOT / "clients" / "hope_client"


def _checked(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT / "clients", capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_mypy_accepts_the_package_and_a_program_of_every_verb(version, tmp_path):
    """Strictly, from the oldest Python that the client takes."""
    options = ["--strict", "--python-version", version, "--cache-dir", str(tmp_path)]
    _checked(sys.executable, "-m", "mypy", "--config-file=", *options, str(PACKAGE), str(SAMPLE))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_pyright_accepts_the_package_and_a_program_of_every_verb(version):
    """As it comes, from the oldest Python that the client takes."""
    options = ["--pythonpath", sys.executable, "--pythonversion", version]
    _checked(sys.executable, "-m", "pyright", *options, str(PACKAGE), str(SAMPLE))


@pytest.mark.parametrize(
    ("plain", "awaited"), [(HopeClient, AsyncHopeClient), (Session, AsyncSession), (ReplyStream, AsyncReplyStream)]
)
def test_both_clients_have_the_same_verbs_with_the_same_parameters(plain, awaited):
    """Name by name, kind and default of each parameter included; those of the constructors differ on purpose."""

    def verbs(kind: type) -> dict[str, list[tuple[str, object, object]]]:
        public = {name: each for name, each in inspect.getmembers(kind, callable) if not name.startswith("_")}
        return {
            name: [(each.name, each.kind, each.default) for each in inspect.signature(method).parameters.values()]
            for name, method in public.items()
        }

    assert verbs(plain) == verbs(awaited)


def test_the_sample_uses_every_verb():
    """So that the type checkers see all of them."""
    text = SAMPLE.read_text(encoding="utf-8")
    for kind in (HopeClient, Session):
        names = [name for name in vars(kind) if not name.startswith("_") and name != "close"]
        assert [name for name in names if f".{name}" not in text] == []

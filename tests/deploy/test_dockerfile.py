"""The Dockerfile: what it copies is there, what it sets exists, and what it makes can be run without rights."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from hope_kernels import native

from hope_server.settings import Settings
from tests.deploy.conftest import Instruction

FINAL_STAGES = ("runtime-cuda", "runtime-cpu")


def environment(dockerfile: list[Instruction]) -> dict[str, str]:
    """What containers of both images have in their environment."""
    pairs = [
        pair for step in dockerfile if (step.stage, step.word) == ("runtime", "ENV") for pair in shlex.split(step.text)
    ]
    return dict(pair.split("=", 1) for pair in pairs)


def copied(dockerfile: list[Instruction]) -> list[str]:
    """The paths that are copied out of the repository."""
    steps = [step.text.split() for step in dockerfile if step.word == "COPY" and "--from=" not in step.text]
    return [word.rstrip("/") for words in steps for word in words[:-1] if not word.startswith("--")]


def test_what_is_copied_exists(repository: Path, dockerfile: list[Instruction]) -> None:
    """Every path of the repository that the Dockerfile copies is there."""
    paths = copied(dockerfile)

    assert "hope_server" in paths and [path for path in paths if not (repository / path).exists()] == []


def test_only_what_is_copied_gets_into_a_build(repository: Path, dockerfile: list[Instruction]) -> None:
    """.dockerignore leaves everything out and lets in exactly what the Dockerfile copies."""
    lines = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]

    assert rules[0] == "*"
    assert sorted(let_in) == sorted(copied(dockerfile))


def test_every_package_of_the_project_is_copied(repository: Path, dockerfile: list[Instruction]) -> None:
    """What pyproject.toml makes into a distribution is in the image: no package is forgotten."""
    include = re.search(
        r"^include = \[(.*)\]", (repository / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert include is not None
    packages = re.findall(r'"(\w+)\*"', include[1])

    assert packages and {path.split("/")[-1] for path in copied(dockerfile)} >= {*packages, "clients"}


def test_the_settings_of_the_image_are_valid(dockerfile: list[Instruction]) -> None:
    """A server takes every HOPE_ variable that the image sets, and listens where the image says."""
    environ = environment(dockerfile)
    settings = Settings.load(environ=environ)

    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert [step.text for step in dockerfile if step.word == "EXPOSE"] == [environ["HOPE_PORT"]]


def test_what_the_image_serves_is_what_was_baked(dockerfile: list[Instruction]) -> None:
    """The model and the operators are copied to where the settings look for them."""
    environ = environment(dockerfile)

    for stage in FINAL_STAGES:
        targets = [step.text.split()[-1] for step in dockerfile if (step.stage, step.word) == (stage, "COPY")]
        assert {environ["HOPE_MODEL"], environ["HOPE_CACHE_DIR"], "/srv/hope/venv"} == set(targets)


def test_sessions_are_kept_in_a_volume(dockerfile: list[Instruction]) -> None:
    """The store of a container without further settings is in a volume that belongs to its user."""
    volumes = [path for step in dockerfile if step.word == "VOLUME" for path in json.loads(step.text)]
    made = " ".join(step.text for step in dockerfile if step.stage == "runtime" and step.word == "RUN")

    assert str(Path(environment(dockerfile)["HOPE_STORE"]).parent) in volumes
    assert re.search(rf"install --directory --owner 10001 --group 10001 --mode 0700 .*{re.escape(volumes[0])}\b", made)


@pytest.mark.parametrize("stage", FINAL_STAGES)
def test_images_run_as_a_numbered_user_without_rights(dockerfile: list[Instruction], stage: str) -> None:
    """The last word on the user of an image is a number, and not root's."""
    users = [step.text for step in dockerfile if (step.stage, step.word) == (stage, "USER")]

    assert users[-1:] == ["10001:10001"]


def test_the_cpu_image_is_the_default(dockerfile: list[Instruction]) -> None:
    """A build without a target makes the image for CPUs."""
    assert dockerfile[-1].stage == "runtime-cpu"


def test_signals_reach_the_server(dockerfile: list[Instruction]) -> None:
    """The server is started without a shell, and stopped with the signal that it drains on."""
    words = {step.word: step.text for step in dockerfile if step.stage == "runtime"}

    assert json.loads(words["ENTRYPOINT"]) == ["hope"] and json.loads(words["CMD"]) == ["serve"]
    assert words["STOPSIGNAL"] == "SIGTERM"


def test_the_health_check_asks_what_needs_no_key(repository: Path, dockerfile: list[Instruction]) -> None:
    """The image's health check runs the script that is copied there, on a path that is open on every server."""
    check = next(step.text for step in dockerfile if step.word == "HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    script = next(
        step.text.split() for step in dockerfile if step.text.split()[-1] == command[1] and step.word == "COPY"
    )

    assert command == ["python", "/srv/hope/health.py", "/health"]
    assert (repository / script[-2]).is_file() and "--chmod=0644" in script


def test_images_are_pinned(dockerfile: list[Instruction]) -> None:
    """Every stage starts from an image with a version, or from another stage."""
    stages = {step.stage for step in dockerfile}
    base = next(step.text for step in dockerfile if step.word == "ARG" and step.stage == "")

    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+-slim-\w+", base)
    assert {step.text.split(" AS ")[0] for step in dockerfile if step.word == "FROM"} <= {"${PYTHON_IMAGE}", *stages}


def test_locked_packages_are_installed_as_everywhere(repository: Path, dockerfile: list[Instruction]) -> None:
    """What is locked is installed by its hashes and nothing else comes along, as in scripts/setup.sh."""
    flags = "--no-deps --require-hashes"
    runs = [step.text for step in dockerfile if step.word == "RUN" and "requirements/runtime.txt" in step.text]

    assert len(runs) == 1 and flags in runs[0]
    assert flags in (repository / "scripts/setup.sh").read_text(encoding="utf-8")


def test_operators_are_found_without_a_compiler(
    dockerfile: list[Instruction], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the build compiled is found in an image that has no compiler but what the operators link to."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOPE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("HOPE_CXX", raising=False)
    baked = tmp_path / "operators" / native.file_name("AVX2")
    baked.parent.mkdir()
    baked.touch()
    installed = [step.text for step in dockerfile if "apt-get install" in step.text and step.stage == "runtime"]

    assert native._built("AVX2") == baked
    with pytest.raises(native.BuildError, match="no C\\+\\+ compiler"):
        native._built("AVX512")
    assert len(installed) == 1 and "libgomp1" in installed[0].split() and "g++" not in installed[0].split()

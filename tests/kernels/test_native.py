"""The compiled operators: built once, chosen by processor, left out with one line in the log where they cannot be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hope_kernels import native


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No library is remembered from another test, nor by other tests from these."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_without_a_compiler_torch_computes_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A compiler that is not there is named once, however often the library is asked for."""
    monkeypatch.setenv("HOPE_CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING, "hope_kernels"):
        assert native.library() is None
        assert native.library() is None
    assert [record.message for record in caplog.records] == [
        "native_operators_missing reason='no C++ compiler found (no-such-compiler)' fallback=torch"
    ]


def test_a_compiler_that_fails_is_a_fallback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """What the compiler said is in the line; nothing half-made stays behind."""
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("HOPE_CXX", str(broken))
    monkeypatch.setenv("HOPE_CACHE_DIR", str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING, "hope_kernels"):
        assert native.library() is None
    assert "out of order" in caplog.text
    assert list((tmp_path / "cache" / "operators").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_fallback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A file where the folder should be is named in the line."""
    (tmp_path / "operators").write_text("a file")
    monkeypatch.setenv("HOPE_CACHE_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING, "hope_kernels"):
        if native.library() is not None:
            pytest.fail("a library was loaded from a folder that cannot be")
    assert "fallback=torch" in caplog.text


def test_the_operators_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What was asked for is no warning."""
    monkeypatch.setenv("HOPE_NATIVE", "0")
    assert native.library() is None
    assert not caplog.records


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_what_was_compiled_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second process finds the file of the first and needs no compiler run."""
    monkeypatch.setenv("HOPE_CACHE_DIR", str(tmp_path))
    assert native.library() is not None
    (kept,) = (tmp_path / "operators").iterdir()
    native.library.cache_clear()
    monkeypatch.setattr(native, "compile_library", lambda *_: pytest.fail("compiled again"))
    assert native.library() is not None
    assert list((tmp_path / "operators").iterdir()) == [kept]

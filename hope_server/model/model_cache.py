"""Writes a converted model into the cache so that a folder with its final name is always complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from hope_server.errors import CheckpointError
from hope_server.model.base_import import BaseModel, Progress

FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.json"
TEMPLATE_FILE, FINGERPRINT_FILE = "chat_template.jinja", "fingerprint.json"

_SCRATCH_PREFIX, _ABANDONED_SECONDS = ".hope-converting-", 6 * 3600.0


def install_model(
    model: BaseModel, source: str, target: Path, progress: Progress, hope: Mapping[str, object] | None = None
) -> None:
    """Write `model` as the converted folder `target`, all or nothing; a converter that was faster wins.

    source: name of the file or folder that the model was read from. hope: HopeConfig of a trained HOPE model, without
    its `model`, as plain values; None for a base network.
    Raises CheckpointError when the folder cannot be written.
    """
    with _explained(target.parent, _num_bytes(model)):
        _install(model, source, target, progress, hope)


def is_complete(folder: Path) -> bool:
    """Return whether `folder` is a converted model whose files have the sizes they were written with."""
    try:
        sizes = json.loads((folder / FINGERPRINT_FILE).read_text(encoding="utf-8"))["sizes"]
        return WEIGHTS_FILE in sizes and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _num_bytes(model: BaseModel) -> int:
    return sum(tensor.nbytes for tensor in model.tensors.values()) + len(model.tokenizer.tokenizer_json)


@contextmanager
def _explained(cache_dir: Path, num_bytes: int) -> Iterator[None]:
    """Turn the faults of writing the cache into one line about `cache_dir`."""
    advice = "free some space or choose another place with HOPE_CACHE_DIR"
    full = f"the cache {cache_dir} has no room for the {num_bytes / 1e6:,.0f} MB of the converted model; {advice}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(cache_dir).free < num_bytes * 1.02:
            raise CheckpointError(full)
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointError(full) from exc
        raise CheckpointError(
            f"the cache {cache_dir} cannot be written ({exc.strerror}); choose another place with HOPE_CACHE_DIR"
        ) from exc
    except SafetensorError as exc:
        raise CheckpointError(f"the converted model could not be written to {cache_dir} ({exc}); {advice}") from exc


def _install(
    model: BaseModel, source: str, target: Path, progress: Progress, hope: Mapping[str, object] | None
) -> None:
    """Write the converted folder beside `target` and rename it there; a converter that was faster wins."""
    _remove_abandoned(target.parent)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=target.parent))
    damaged = scratch.with_name(f"{scratch.name}-damaged")
    try:
        _write_folder(model, source, scratch, progress, hope)
        if not is_complete(target):
            with suppress(FileNotFoundError):
                os.rename(target, damaged)
        try:
            os.rename(scratch, target)
        except OSError:
            if not is_complete(target):
                raise
        sync_path(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)


def _write_folder(
    model: BaseModel, source: str, folder: Path, progress: Progress, hope: Mapping[str, object] | None
) -> None:
    progress("writing the converted model", 0.0)
    tokenizer = model.tokenizer
    config = {
        **asdict(model.config),
        "eos_token_ids": list(tokenizer.eos_token_ids),
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "format": FORMAT,
        "source": source,
        **({} if hope is None else {"hope": dict(hope)}),
    }
    texts = {CONFIG_FILE: json.dumps(config, indent=1) + "\n", TOKENIZER_FILE: tokenizer.tokenizer_json}
    if tokenizer.chat_template is not None:
        texts[TEMPLATE_FILE] = tokenizer.chat_template
    save_file(model.tensors, folder / WEIGHTS_FILE)
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8"))
    progress("writing the converted model", 0.5)
    names = [*texts, WEIGHTS_FILE]
    receipt = {
        "sha256": _fingerprint(model, folder, hope),
        "sizes": {name: (folder / name).stat().st_size for name in names},
    }
    (folder / FINGERPRINT_FILE).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    for name in (*names, FINGERPRINT_FILE):
        sync_path(folder / name)
    sync_path(folder)
    progress("writing the converted model", 1.0)


def _fingerprint(model: BaseModel, folder: Path, hope: Mapping[str, object] | None) -> str:
    digest = hashlib.sha256()
    for part in (WEIGHTS_FILE, TOKENIZER_FILE):
        with (folder / part).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    facts = [getattr(model.config, field.name) for field in fields(model.config) if field.name != "name"]
    facts += [model.tokenizer.chat_template, model.tokenizer.eos_token_ids, model.tokenizer.bos_token_id]
    facts += [] if hope is None else [dict(hope)]
    digest.update(json.dumps([FORMAT, *facts]).encode())
    return digest.hexdigest()


def sync_path(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(cache_dir: Path) -> None:
    # A converter that was killed leaves its scratch folder; nobody converts for hours.
    for path in cache_dir.glob(f"{_SCRATCH_PREFIX}*"):
        if path.is_dir() and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)

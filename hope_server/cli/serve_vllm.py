"""`hope serve --engine vllm`: writes the model as vLLM reads it, and becomes vLLM's server with the plugin."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from hope_server import COMPUTE_ENVIRONMENT
from hope_server.cli.console import say
from hope_server.errors import CheckpointError, SettingsError, StartupError
from hope_server.settings import SESSION_OPTIONS, VLLM_OPTIONS, Settings

_REACHES = ("engine", "vllm_python", "host", "port", "model", "cache_dir", "dtype", "num_threads", "log_level")
_PLUGIN = "hope_vllm"
_ADVICE = "`make setup-vllm` makes an environment; then --vllm-python .vllm-plugin/bin/python"


def run_vllm(settings: Settings) -> NoReturn:
    """Become vLLM's server. Raises SettingsError, CheckpointError, StartupError."""
    check_reach(settings)
    python = _python(settings)
    folder = _exported(settings)
    words = command(settings, python, folder)
    say(f"hope: {settings.model} is in {folder} for vLLM; starting {' '.join(words[1:])}")
    sys.stdout.flush()
    os.execve(python, words, environment(settings, os.environ))


def check_reach(settings: Settings) -> None:
    """Raise SettingsError for what was set and would be ignored: vLLM has its own of most, and of some nothing."""
    fields = Settings.model_fields
    ignored = sorted(
        name
        for name in fields
        if name not in (*_REACHES, *SESSION_OPTIONS) and getattr(settings, name) != fields[name].get_default()
    )
    if ignored:
        raise SettingsError(
            f"--engine vllm does not know {', '.join(ignored)}; leave them out, or serve with our own engine"
        )


def command(settings: Settings, python: str, folder: Path) -> list[str]:
    """The command that serves an exported model."""
    words = [python, "-m", f"{_PLUGIN}.serve", str(folder), "--host", settings.host, "--port", str(settings.port)]
    return [*words, "--dtype", settings.dtype, "--served-model-name", Path(settings.model).name]


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of vLLM's processes: those of this one, without our settings, which go in one of their own."""
    # What this process has set for itself alone, on import, is not for another engine.
    kept = {
        name: text for name, text in environ.items() if not _is_setting(name) and COMPUTE_ENVIRONMENT.get(name) != text
    }
    options = {name: getattr(settings, name) for name in SESSION_OPTIONS}
    kept[VLLM_OPTIONS] = json.dumps(options)
    kept["VLLM_LOGGING_LEVEL"] = settings.log_level.upper()
    if settings.num_threads:
        cores = sorted(os.sched_getaffinity(0))[: settings.num_threads]
        kept["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    return kept


def _is_setting(name: str) -> bool:
    return name.startswith("HOPE_") and name.removeprefix("HOPE_").lower() in Settings.model_fields


def _python(settings: Settings) -> str:
    if settings.vllm_python:
        if not os.access(settings.vllm_python, os.X_OK):
            raise StartupError(f"--vllm-python {settings.vllm_python} is no program that can be run; {_ADVICE}")
        return settings.vllm_python
    if importlib.util.find_spec(_PLUGIN) is None:
        raise StartupError(f"--engine vllm: vLLM and hope-vllm are not in this environment; {_ADVICE}")
    return sys.executable


def _exported(settings: Settings) -> Path:
    """The model's folder as vLLM reads it; written once into the cache."""
    # Imported late: torch takes seconds, and settings are checked before.
    from hope_server.model.checkpoint import load_hope, resolve_model, weights_fingerprint
    from hope_server.model.hf_export import export

    source = resolve_model(settings.model, settings.cache_dir)
    hope = load_hope(source)
    if hope is None or hope.titans is None:
        raise CheckpointError(
            f"--engine vllm: {settings.model} has no Titans branches, so its sessions could not learn there; levels of "
            "the Continuum Memory System are written by our own engine only (docs/adr/0017)"
        )
    target = settings.cache_dir / "vllm" / f"{source.name}-{weights_fingerprint(source)[:12]}-{settings.dtype}"
    return export(source, target, settings.dtype)

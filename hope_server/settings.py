"""What the service does, in one frozen object read once from flags, environment and defaults.

What a model *is* comes from its checkpoint and cannot be set here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hope_server.errors import SettingsError

__all__ = ["DURABILITY_RULE", "SESSION_OPTIONS", "VLLM_OPTIONS", "Option", "Settings", "is_durability"]

DURABILITY_RULE = "use none, async, commit, replicated:N (1 to 99 replicas) or fsync"
"""What an answer can wait for: nothing; a commit within a second; a commit; N replicas that have it; the disk."""

SESSION_OPTIONS = (
    "store",
    "key_file",
    "key_store",
    "store_timeout_seconds",
    "store_connections",
    "store_prefix",
    "store_eviction",
    "session_ttl_seconds",
    "keep_versions",
    "max_snapshot_bytes",
    "durability",
    "durability_unmet",
    "on_rollback",
    "host_cache_bytes",
    "max_queued_turns_per_session",
)
"""What reaches sessions whichever engine computes them."""
VLLM_OPTIONS = "HOPE_VLLM_OPTIONS"
"""The variable that hands SESSION_OPTIONS to vLLM's processes, as JSON: a store's URL can hold a password, and vLLM
writes its command line into its log."""

_PREFIX = "HOPE_"
# What the operators of `hope_kernels` read themselves, as they serve others than this server too.
_OF_OPERATORS = ("HOPE_NATIVE", "HOPE_CXX", "HOPE_HALF")
_MIB = 2**20
# Their values can hold secrets (keys, a password inside a store URL), so no message repeats them.
_SECRET_FIELDS = frozenset({"api_keys", "key_store", "store"})
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?|\*")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_DURABILITY = re.compile(r"none|async|commit|fsync|replicated:[1-9][0-9]?")

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Bytes = Annotated[int, Field(ge=1024, le=2**40)]
Passes = Annotated[int, Field(ge=0, le=1000)]
Limit = Annotated[int, Field(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


def is_durability(text: str) -> bool:
    """Return whether `text` names a durability."""
    return _DURABILITY.fullmatch(text) is not None


def _check_durability(text: str) -> str:
    if not is_durability(text):
        raise ValueError(DURABILITY_RULE)
    return text


def _split(value: object) -> object:
    return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value


def _check_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    if not all(key.isascii() and key.isprintable() and " " not in key and key for key in keys):
        raise ValueError("every key must be printable ASCII without spaces")
    return keys


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    if not all(_ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError("every origin must be like https://app.example.org, without a path, or * alone")
    if "*" in origins and len(origins) > 1:
        raise ValueError("* already means every origin; list none beside it")
    return tuple(origin.lower() for origin in origins)


def _check_hosts(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(_HOST_NAME.fullmatch(name) for name in names):
        raise ValueError("every name must be like chat.example.org, without a port")
    return tuple(name.lower() for name in names)


def _expand_user(value: str) -> str:
    return os.path.expanduser(value) if value.startswith("~") else value


class Option(NamedTuple):
    """One command-line flag: `flag` as typed, `field` of Settings, `help`, value `type` and `default` as documented."""

    flag: str
    field: str
    help: str
    type: type
    default: Any


class Settings(BaseModel):
    """Everything an operator can choose; see each field's description for its unit.

    Build it with `Settings.load`; the constructor raises pydantic's own error and is meant for tests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    host: Annotated[str, Field(min_length=1, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="TCP port to listen on, 0 picks a free port")] = 8000
    model: Annotated[
        str, AfterValidator(_expand_user), Field(min_length=1, description="model name, or path of a folder or .gguf")
    ] = "smollm2-135m-instruct"
    engine: Annotated[
        Literal["hope", "vllm"],
        Field(description="who computes: our own engine, or vLLM with the plugin hope-vllm (docs/adr/0017)"),
    ] = "hope"
    vllm_python: Annotated[
        str,
        AfterValidator(_expand_user),
        Field(description="interpreter that has vLLM and hope-vllm; empty: the one that runs this"),
    ] = ""
    store: Annotated[
        str, AfterValidator(_expand_user), Field(min_length=1, description="path or URL of the session store")
    ] = "~/.local/share/hope/sessions.db"
    key_file: Annotated[
        str,
        AfterValidator(_expand_user),
        Field(description="file of the keys that wrap sessions' own keys; empty: beside the store, made if missing"),
    ] = ""
    key_store: Annotated[
        str,
        AfterValidator(_expand_user),
        Field(description="path or redis:// URL where sessions' wrapped keys are kept; empty: a file beside the store"),
    ] = ""
    store_timeout_seconds: Annotated[
        float, Field(gt=0, le=60, description="seconds that a store on the network gets for one operation")
    ] = 2.0
    store_connections: Annotated[
        Count, Field(description="connections to a store on the network that turns share at most")
    ] = 32
    store_prefix: Annotated[
        str, Field(min_length=1, max_length=64, description="what the names of all keys in a Redis store begin with")
    ] = "hope:"
    store_eviction: Annotated[
        Literal["refuse", "allow"],
        Field(description="whether to use a Redis that drops sessions when its memory is full"),
    ] = "refuse"
    session_ttl_seconds: Annotated[
        float, Field(ge=0, le=10**9, description="seconds after its last turn at which a session is dropped, 0: never")
    ] = 0.0
    durability: Annotated[
        str,
        AfterValidator(_check_durability),
        Field(description="what a turn's answer waits for: none, async, commit, replicated:N or fsync"),
    ] = "commit"
    durability_unmet: Annotated[
        Literal["fail", "degrade"],
        Field(description="fail answers 503 where the durability was not confirmed, degrade tells it in the receipt"),
    ] = "fail"
    on_rollback: Annotated[
        Literal["fail", "adopt_store"],
        Field(description="fail refuses turns after the store went back in time until told, adopt_store refuses one"),
    ] = "fail"
    cache_dir: Annotated[Path, AfterValidator(Path.expanduser), Field(description="folder for converted models")] = (
        Path("~/.cache/hope")
    )
    api_keys: Annotated[
        tuple[str, ...],
        BeforeValidator(_split),
        AfterValidator(_check_keys),
        Field(
            repr=False, description="comma-separated API keys, each a tenant of its own; empty leaves the server open"
        ),
    ] = ()
    api_key_file: Annotated[
        str,
        AfterValidator(_expand_user),
        Field(description="file of the API keys that `hope keys` makes; naming one closes the server to all others"),
    ] = ""
    requests_per_minute: Annotated[Limit, Field(description="requests that one API key may make a minute, 0: any")] = 0
    tokens_per_minute: Annotated[
        Limit, Field(description="tokens that one API key may have read, written and learned a minute, 0: any")
    ] = 0
    max_sessions: Annotated[Limit, Field(description="sessions that one API key may keep, 0: any number")] = 0
    max_stored_bytes: Annotated[
        Limit, Field(description="bytes that the sessions of one API key may take together, 0: any number")
    ] = 0
    max_open_requests: Annotated[
        Limit, Field(description="requests of one API key that may be open at once, 0: any number")
    ] = 128
    max_connections: Annotated[Count, Field(description="connections held open at once")] = 1000
    max_connections_per_address: Annotated[Count, Field(description="connections that one address may hold open")] = 512
    request_timeout_seconds: Annotated[
        Seconds, Field(description="seconds in which a request's head must come; its body gets 1 more per 16 KiB")
    ] = 8.0
    write_timeout_seconds: Annotated[
        Seconds, Field(description="seconds after which a client that does not read its answer is dropped")
    ] = 30.0
    keep_alive_seconds: Annotated[Seconds, Field(description="seconds that a connection may idle between requests")] = (
        30.0
    )
    cors_origins: Annotated[
        tuple[str, ...],
        BeforeValidator(_split),
        AfterValidator(_check_origins),
        Field(description="comma-separated origins whose web pages may call the server, * for all; empty: none"),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        BeforeValidator(_split),
        AfterValidator(_check_hosts),
        Field(description="comma-separated public names by which a server without keys may be called"),
    ] = ()
    num_slots: Annotated[Count, Field(description="sessions held ready in memory at once")] = 8
    host_cache_bytes: Annotated[
        Limit, Field(description="bytes of newest session states kept in host memory behind the slots, 0: none")
    ] = 256 * _MIB
    max_open_bytes: Annotated[
        Bytes, Field(description="memory that the texts of open requests may take together before new ones get 503")
    ] = 256 * _MIB
    max_waiting_turns: Annotated[Count, Field(description="turns that may wait before new ones get 429")] = 64
    max_queued_turns_per_session: Annotated[
        Passes, Field(description="turns that may wait behind one session's running turn before new ones get 409")
    ] = 4
    max_prompt_tokens: Annotated[Count, Field(description="longest prompt of one request, in tokens")] = 32768
    max_learn_bytes: Annotated[Bytes, Field(description="largest body of a learn request, in bytes")] = 16 * _MIB
    max_body_bytes: Annotated[Bytes, Field(description="largest body of any other request, in bytes")] = 2 * _MIB
    keep_versions: Annotated[Count, Field(description="newest versions kept of each session")] = 8
    max_snapshot_bytes: Annotated[Bytes, Field(description="largest stored state of one session, in bytes")] = 64 * _MIB
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        Field(description="what the slow matrices of attention and MLPs are kept and multiplied in"),
    ] = "float32"
    num_threads: Annotated[int, Field(ge=0, le=4096, description="compute threads, 0 takes every core")] = 0
    levels: Annotated[
        str,
        AfterValidator(_expand_user),
        Field(min_length=1, description="memory levels: default, off, or a YAML/JSON path"),
    ] = "default"
    adapter: Annotated[
        str,
        AfterValidator(_expand_user),
        Field(
            min_length=1, description="changes of the slow weights: default (the model's own, if any), off, or a path"
        ),
    ] = "default"
    window: Annotated[Count, Field(description="attention window, in tokens")] = 512
    max_completion_tokens: Annotated[
        Count, Field(description="longest reply in tokens; a request that asks for more gets this many")
    ] = 4096
    max_passes: Annotated[
        Passes, Field(description="times that a request may have its text rehearsed; one that asks for more gets these")
    ] = 1000
    passes_user: Annotated[Passes, Field(description="times automatic consolidation rehearses the user's text")] = 8
    passes_assistant: Annotated[
        Passes, Field(description="times automatic consolidation rehearses the model's own text")
    ] = 0
    passes_learn: Annotated[
        Passes, Field(description="times learn and an explicit consolidate rehearse their text")
    ] = 8
    consolidation: Annotated[
        Literal["auto", "explicit"],
        Field(description="auto rehearses each completed block, explicit waits for a learn or consolidate request"),
    ] = "auto"
    consolidation_block: Annotated[Count, Field(description="tokens in a block that is consolidated at once")] = 256
    consolidation_delay: Annotated[
        int, Field(ge=0, le=2**31 - 1, description="tokens after a block's end at which its consolidation takes effect")
    ] = 128
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="least severe log line that is written")
    ] = "info"
    drain_seconds: Annotated[
        float, Field(ge=0, le=3600, description="seconds that running turns get to finish at shutdown")
    ] = 10.0

    @classmethod
    def load(cls, overrides: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
        """Return the settings of this process: `overrides` (field name to text) over HOPE_* variables over defaults.

        `environ` None reads the process environment.
        Raises SettingsError with one line that names every unknown or unparsable value and lists the valid names.
        """
        values: dict[str, str] = {}
        origins: dict[str, str] = {}
        faults: list[str] = []
        fields = cls.model_fields
        for name, text in (os.environ if environ is None else environ).items():
            if not name.startswith(_PREFIX) or name in _OF_OPERATORS:
                continue
            field = name.removeprefix(_PREFIX).lower()
            if field not in fields or name != name.upper():
                faults.append(_unknown(name, [_PREFIX + each.upper() for each in fields]))
                continue
            values[field], origins[field] = text, name
        for field, text in (overrides or {}).items():
            if field not in fields:
                faults.append(_unknown(_flag(field), [_flag(each) for each in fields]))
                continue
            values[field], origins[field] = text, _flag(field)
        try:
            settings = cls.model_validate(values)
        except ValidationError as exc:
            faults += [_fault(origins, str(error["loc"][0]), error["msg"], values) for error in exc.errors()]
        if faults:
            raise SettingsError("; ".join(faults))
        return settings

    @classmethod
    def options(cls) -> Iterator[Option]:
        """Yield one Option per field in order; the command line builds its flags from them and gives text to `load`."""
        for name, info in cls.model_fields.items():
            choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
            text = info.description or ""
            if choices:
                text = f"{text} ({', '.join(choices)})"
            kind = int if info.annotation is int else float if info.annotation is float else str
            yield Option(_flag(name), name, text, kind, info.default)


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _unknown(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name.upper() if name.startswith(_PREFIX) else name, valid, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown setting {name}; {hint}valid names: {', '.join(valid)}"


def _fault(origins: Mapping[str, str], field: str, reason: str, values: Mapping[str, str]) -> str:
    shown = "is not valid" if field in _SECRET_FIELDS else f"is {values.get(field, '')!r}"
    described = Settings.model_fields[field].description
    return f"{origins.get(field, field)} {shown}: {reason.removeprefix('Value error, ')} ({field}: {described})"

"""What this plugin adds to the service's tree of errors (`hope_server.errors`), whose codes and sentences it keeps.

HopeError
├── StartupError          startup_error
│   ├── UnsupportedVllm   unsupported_vllm       another vLLM than those this plugin was tested with: `found`
│   └── UnsupportedSetup  unsupported_setup      an option of vLLM that would lose or mix memories
├── InvalidRequest        invalid_request
│   └── TurnUnsupported   turn_unsupported       the request asks for what no session can have here
└── StateCorrupt          state_corrupt
    └── ShardMissing      shard_missing          a stored state lacks a rank's heads: `rank`, `num_ranks`
"""

from __future__ import annotations

from hope_server.errors import InvalidRequest, StartupError, StateCorrupt


class UnsupportedVllm(StartupError):
    """The installed vLLM is not one that this plugin was tested with."""

    code = "unsupported_vllm"

    def __init__(self, found: str, supported: str) -> None:
        super().__init__(
            f"hope-vllm needs vLLM {supported}, this is {found}; install one of those, or leave the plugin out by "
            "naming others in VLLM_PLUGINS"
        )
        self.found = found


class UnsupportedSetup(StartupError):
    """vLLM is set up in a way in which memories would be lost or mixed."""

    code = "unsupported_setup"


class TurnUnsupported(InvalidRequest):
    """The request asks for what a turn of a session cannot have in this engine."""

    code = "turn_unsupported"


class ShardMissing(StateCorrupt):
    """A stored state lacks the heads of a tensor-parallel rank."""

    code = "shard_missing"

    def __init__(self, rank: int, num_ranks: int) -> None:
        super().__init__(
            f"the stored state lacks shard {rank} of {num_ranks}; roll the session back to a version that has it"
        )
        self.rank = rank
        self.num_ranks = num_ranks

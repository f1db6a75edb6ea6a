"""The scheduler's side of the connector: which turns may begin, from which state, and what becomes of them."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

from hope_memory.protocol import MAX_ID_BYTES
from hope_memory.snapshot import check_name
from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig, MambaSpec
from vllm.v1.request import Request, RequestStatus

from hope_server.errors import CheckpointError, HopeError, InvalidRequest, StateCorrupt
from hope_server.telemetry import JsonFormatter, log_event
from hope_vllm.answers import Answer, Ask
from hope_vllm.codec import StateCodec
from hope_vllm.errors import TurnUnsupported
from hope_vllm.hope_config import model_fingerprint, read_config
from hope_vllm.keeper import Keeper
from hope_vllm.messages import Copies, Load, Save, StepOrders
from hope_vllm.options import read_options
from hope_vllm.setup import check_setup
from hope_vllm.turns import Phase, Turn, TurnBook

MODES = ("write", "read")
_SEVERAL = re.compile(r"\d+_|.*-beam-\d+-[0-9a-z]+$")
"""How vLLM names the requests that it makes of one with `n` > 1 or of a beam search."""
_KEPT = {RequestStatus.FINISHED_STOPPED: "stop", RequestStatus.FINISHED_LENGTH_CAPPED: "length"}


class SchedulerSide:
    """Knows sessions and turns, no tensors of the device."""

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        """Raises StartupError where vLLM is set up so that memories would be lost, or the store cannot be used."""
        check_setup(vllm_config)
        _log_events()
        assert vllm_config.kv_transfer_config is not None, "without it there is no connector"
        settings = read_options(vllm_config.kv_transfer_config.kv_connector_extra_config)
        hf_config = vllm_config.model_config.hf_config
        codec = StateCodec(read_config(hf_config), model_fingerprint(hf_config))
        self._num_ranks = vllm_config.parallel_config.tensor_parallel_size
        self._max_tokens = vllm_config.model_config.max_model_len
        self._groups = {
            name: index
            for index, group in enumerate(kv_cache_config.kv_cache_groups)
            if isinstance(group.kv_cache_spec, MambaSpec)
            for name in group.layer_names
        }
        if not self._groups:
            raise CheckpointError("vLLM gave no layer a page for memories; is this a model with Titans branches?")
        self.durability = settings.durability
        self._keeper = Keeper(settings, codec)
        self._keeper.open()
        self.turns = TurnBook(self._keeper, settings.max_queued_turns_per_session)
        self._orders = StepOrders()
        self._absorbing: dict[str, Request] = {}

    # -- what vLLM asks -----------------------------------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """Take in a request that has a session; its state is fetched from now on."""
        session_id, mode, key = _session_of(request)
        if session_id is None:
            return
        try:
            self._check(request, session_id, mode)
            ask = None if key is None else Ask.of(key, request.prompt_token_ids, repr(request.sampling_params))
        except HopeError as exc:
            self.turns.refuse(request.request_id, exc)
            return
        # One place is left for the last token, which is read when the reply is over.
        request.max_tokens = min(request.max_tokens, self._max_tokens - 1 - request.num_prompt_tokens)
        self.turns.begin(request.request_id, session_id, learns=mode == "write", ask=ask)

    def may_begin(self, request: Request) -> bool:
        """Whether a request's state is here; asked again and again, and again after a preemption."""
        turn = self.turns.find(request.request_id)
        return turn is None or self.turns.is_ready(turn)

    def place(self, request: Request, block_ids: tuple[list[int], ...]) -> None:
        """Note the pages of a request that begins, or begins anew after it was preempted."""
        turn = self.turns.find(request.request_id)
        if turn is None or request.num_computed_tokens:
            return
        turn.slots = {name: block_ids[group][0] for name, group in self._groups.items()}
        if turn.start.state is not None:
            self._orders.loads.append(Load(turn.request_id, turn.slots, turn.start.state))

    def orders(self, num_scheduled: dict[str, int]) -> StepOrders:
        """What the ranks do around a step that reads so many tokens of each request."""
        for request_id, request in self._absorbing.items():
            turn, new = self.turns.find(request_id), num_scheduled.get(request_id, 0)
            if turn is not None and new and request.num_computed_tokens + new == request.num_tokens:
                turn.num_read = request.num_tokens
                self._orders.saves.append(Save(request_id, turn.slots))
        orders, self._orders = self._orders, StepOrders()
        return orders

    def finish(self, request: Request) -> None:
        """A request is over: what was read whole is going to be committed, everything else is let go."""
        turn = self.turns.find(request.request_id)
        absorbed = self._absorbing.pop(request.request_id, None)
        if turn is None:
            return
        if absorbed is not None and request.status in _KEPT:
            turn.phase = Phase.SAVING
            turn.answer = Answer(tuple(request.output_token_ids), _KEPT[request.status], request.stop_reason)
        else:
            self.turns.end(turn)

    def take(self, copies: Copies | None) -> None:
        """Commit what the ranks copied of turns that are over."""
        shards = {} if copies is None else copies.shards
        for request_id in shards:
            turn = self.turns.find(request_id)
            if turn is None or turn.phase is not Phase.SAVING:
                continue
            found = shards[request_id]
            if len(found) == self._num_ranks:
                self.turns.commit(turn, [found[rank] for rank in range(self._num_ranks)])

    def fail_uncopied(self, turn: Turn) -> None:
        """Have a turn end with an error whose ranks did not all say what they made of it."""
        self.turns.fail(turn, StateCorrupt("a rank did not hand over its part of the session; nothing was kept"))

    def close(self) -> None:
        """Finish commits and close the store."""
        self._keeper.close()

    # -- what the scheduler asks --------------------------------------------------------------------------------------

    def must_absorb(self, request: Request) -> bool:
        """Whether a request that has just sampled its last token has that token read, too."""
        turn = self.turns.find(request.request_id)
        return turn is not None and turn.learns and turn.phase is Phase.READY

    def absorb(self, request: Request) -> None:
        """Have a request's last token read; remembers why the request stopped."""
        turn = self.turns.find(request.request_id)
        assert turn is not None, "must_absorb"
        turn.phase, turn.outcome = Phase.ABSORBING, (request.status, request.stop_reason)
        self._absorbing[request.request_id] = request

    def log_refusal(self, error: HopeError) -> None:
        """Tell the operator of a turn that ended with an error; never what was said in it, nor in which session."""
        log_event("turn_refused", {"code": error.code}, logging.WARNING)

    # -- private ------------------------------------------------------------------------------------------------------

    def _check(self, request: Request, session_id: str, mode: str) -> None:
        """Raise InvalidRequest for what a turn cannot have."""
        try:
            check_name("session name", session_id, MAX_ID_BYTES)
        except ValueError as exc:
            raise InvalidRequest(str(exc)) from exc
        if mode not in MODES:
            raise InvalidRequest(f"hope_memory is {mode!r}; use one of {', '.join(MODES)}, or leave the session out")
        params = request.sampling_params
        if params is None or request.prompt_token_ids is None or request.mm_features:
            raise TurnUnsupported("a session reads and writes tokens; leave the session out of other requests")
        if request.resumable:
            raise TurnUnsupported("a prompt that is still growing cannot be a turn; send it whole")
        if request.lora_request is not None:
            raise TurnUnsupported("a session is bound to the model alone; leave the adapter out")
        if (params.extra_args or {}).get("hope_request") is not None and params.logprobs is not None:
            raise TurnUnsupported("log-probabilities are not kept with an answer; leave them out, or hope_request")
        if params.stop:
            raise TurnUnsupported(
                "`stop` strings are found outside the engine, which cannot tell them from a client that went away; "
                "use `stop_token_ids`"
            )
        if _SEVERAL.match(request.request_id):
            raise TurnUnsupported("a turn has one reply; ask for n = 1 and no beam search")
        if request.num_prompt_tokens + 2 > self._max_tokens:
            raise TurnUnsupported(
                f"the prompt has {request.num_prompt_tokens:,} tokens, a turn's limit is {self._max_tokens - 2:,}"
            )


def _log_events() -> None:
    """Have our own events written as JSON lines beside vLLM's log, which knows nothing of them."""
    logger = logging.getLogger("hope")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter())
        logger.addHandler(handler)
        logger.propagate = False


def _session_of(request: Request) -> tuple[str | None, str, str | None]:
    """A request's session, if any, its mode, and the request's own name, if any.

    `session_id` as vLLM knows it; offline, where there are no headers, `kv_transfer_params` has it.
    """
    params = request.sampling_params
    extra: dict[str, Any] = (params.extra_args or {}) if params is not None else {}
    given: dict[str, Any] = request.kv_transfer_params or {}
    session_id, key = request.session_id or given.get("session_id"), extra.get("hope_request")
    mode = str(extra.get("hope_memory", "write"))
    return (None if session_id is None else str(session_id)), mode, (None if key is None else str(key))

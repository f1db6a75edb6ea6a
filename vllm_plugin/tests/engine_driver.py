"""The process behind `engine_process`: an engine of vLLM, stepped by hand, that answers lines of JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from hope_vllm.keeper import TENANT, Keeper
from hope_vllm.names import CONNECTOR, SCHEDULER
from hope_vllm.sessions import cut_shards

from hope_server.engine.turn import SessionKey
from hope_server.errors import HopeError

DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "enable_prefix_caching": False,
    "max_model_len": 512,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 4,
    "scheduler_cls": SCHEDULER,
    "async_scheduling": False,
}


class Driver:
    """One engine and what it is asked."""

    def __init__(self, command: dict[str, Any]) -> None:
        from vllm import LLM

        _slow_down(command["slow"])
        self._options = {"store": command["store"], **command["session_options"]}
        transfer = {"kv_connector": CONNECTOR, "kv_role": "kv_both", "kv_connector_extra_config": self._options}
        options = {**DEFAULTS, "kv_transfer_config": transfer, **command["options"]}
        llm = LLM(command["folder"], **{name: value for name, value in options.items() if value is not None})
        self._engine = llm.llm_engine
        self._num_asked = self.num_preemptions = 0
        core = getattr(self._engine.engine_core, "engine_core", None)
        if core is not None:
            self._count_preemptions(core.scheduler)

    def ask(self, asks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer requests that come at once."""
        names = {self._add(ask): index for index, ask in enumerate(asks)}
        replies: list[dict[str, Any]] = [
            {"finish": None, "stop_reason": None, "tokens": [], "logprobs": [], "receipt": None, "order": -1}
            | {"version_in_store": None}
            for _ in asks
        ]
        order = 0
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                index = names[output.request_id]
                found, ask = output.outputs[0], asks[index]
                reply = replies[index]
                reply["tokens"] = list(found.token_ids)
                tops = found.logprobs or []
                reply["logprobs"] = [top[token].logprob for top, token in zip(tops, found.token_ids, strict=False)]
                if output.finished:
                    reply |= {"finish": found.finish_reason, "stop_reason": found.stop_reason, "order": order}
                    reply["receipt"] = output.kv_transfer_params
                    if ask["session"] is not None:
                        reply["version_in_store"] = self._look(ask["session"])
                    order += 1
                elif ask["abort_after"] is not None and len(found.token_ids) >= ask["abort_after"]:
                    self._engine.abort_request([output.request_id])
                elif ask["intrude_after"] is not None and len(found.token_ids) >= ask["intrude_after"]:
                    ask["intrude_after"] = None
                    self._intrude(ask["session"])
        return replies

    def _add(self, ask: dict[str, Any]) -> str:
        from vllm import SamplingParams

        name, self._num_asked = f"ask-{self._num_asked}", self._num_asked + 1
        params = SamplingParams(
            max_tokens=ask["max_tokens"],
            temperature=ask["temperature"],
            **{"ignore_eos": True, "logprobs": 0, "detokenize": False, **ask["extra"]},
            extra_args={"hope_memory": ask["mode"], **ask["args"]},
        )
        self._engine.add_request(name, {"prompt_token_ids": ask["prompt"]}, params, session_id=ask["session"])
        return name

    def _look(self, session: str) -> str | None:
        """The version that the store has now; None without any.

        Through the engine's own connection: a second one to the same SQLite file would, on opening, drop this process's
        locks on it, and another process's engine may be there.
        """
        keeper = self._keeper()
        try:
            record = keeper._run(keeper._book.get(SessionKey(TENANT, session))).result()
        except (HopeError, ValueError):
            return None
        return None if record.head is None else record.head.version

    def _intrude(self, session: str) -> None:
        """Commit to a session beside the turn that runs, as another engine would."""
        keeper = self._keeper()
        start = keeper.load(session).result()
        assert start.state is not None, "only a session that has learned is intruded upon"
        shards = cut_shards(keeper._codec.config, start.state, 1)
        keeper.commit(session, start, shards, 0).result()

    def _keeper(self) -> Keeper:
        keeper = self._engine.engine_core.engine_core.scheduler.connector.sessions._keeper
        assert isinstance(keeper, Keeper)
        return keeper

    def _count_preemptions(self, scheduler: Any) -> None:
        preempt = scheduler._preempt_request

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.num_preemptions += 1
            return preempt(*args, **kwargs)

        scheduler._preempt_request = counted


def _slow_down(seconds: dict[str, float]) -> None:
    """Have loads and commits of some sessions take so long, as a far or busy store would."""
    load, commit = Keeper._load, Keeper._commit

    async def slow_load(keeper: Keeper, key: Any, *rest: Any) -> Any:
        await asyncio.sleep(seconds.get(key.session_id, 0.0))
        return await load(keeper, key, *rest)

    async def slow_commit(keeper: Keeper, key: Any, *rest: Any) -> Any:
        await asyncio.sleep(seconds.get(key.session_id, 0.0))
        return await commit(keeper, key, *rest)

    Keeper._load, Keeper._commit = slow_load, slow_commit


def tell(message: dict[str, Any]) -> None:
    """Write one line that the other side looks for."""
    print(json.dumps({"driver": message}), flush=True)


def main() -> int:
    """Answer until standard input ends."""
    try:
        driver = Driver(json.loads(sys.argv[1]))
    except Exception as exc:  # noqa: BLE001 - the other side raises it again
        tell({"error": _said(exc)})
        return 1
    tell({"ready": True})
    for line in sys.stdin:
        message = json.loads(line)
        if "asks" in message:
            tell({"replies": driver.ask(message["asks"])})
        else:
            tell({"preemptions": driver.num_preemptions})
    return 0


def _said(error: BaseException | None) -> str:
    """The error's words and those of what it came from."""
    parts = []
    while error is not None:
        parts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())

"""The process behind `engine_process`: an engine of vLLM, stepped by hand, that answers lines of JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from hope_vllm.codec import StateCodec
from hope_vllm.hope_config import model_fingerprint, read_config
from hope_vllm.keeper import Keeper
from hope_vllm.names import CONNECTOR, SCHEDULER
from hope_vllm.options import read_options

from hope_server.engine.stores import build_store

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
        self._hf_config = llm.model_config.hf_config
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
        """The version that a reader of the store finds now."""
        import asyncio

        from hope_memory import SessionId, StoreError

        async def look() -> str | None:
            store = build_store(read_options(self._options))
            await store.open()
            try:
                head = (await store.get(SessionId("default", session))).head
                return None if head is None else head.version
            except (StoreError, ValueError):
                return None
            finally:
                await store.close()

        return asyncio.run(look())

    def _intrude(self, session: str) -> None:
        """Commit to a session as another engine would."""
        codec = StateCodec(read_config(self._hf_config), model_fingerprint(self._hf_config))
        keeper = Keeper(read_options(self._options), codec)
        keeper.open()
        start = keeper.load(session).result()
        from hope_vllm.codec import Shard

        blocks = {} if start.state is None else start.state.blocks
        assert start.state is not None, "only a session that has learned is intruded upon"
        pending = start.num_tokens % codec.config.chunk_size
        keeper.commit(session, start, [Shard(blocks, pending)], 0).result()
        keeper.close()

    def _count_preemptions(self, scheduler: Any) -> None:
        preempt = scheduler._preempt_request

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.num_preemptions += 1
            return preempt(*args, **kwargs)

        scheduler._preempt_request = counted


def _slow_down(seconds: dict[str, float]) -> None:
    """Have loads and commits of some sessions take so long, as a far or busy store would."""
    import asyncio

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

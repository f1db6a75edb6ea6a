"""vLLM's scheduler with what sessions need: a turn's last token is read, and its reply ends when the turn is kept.

Everything else is vLLM's own. A reply's last token goes out with its last event, which waits for the commit; a turn
whose state cannot be used, or whose commit fails, ends with an error and the reason.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from hope_server.errors import HopeError
from hope_vllm.connector import HopeConnector
from hope_vllm.errors import UnsupportedSetup
from hope_vllm.refusals import reason_text
from hope_vllm.scheduler_side import SchedulerSide
from hope_vllm.setup import MISSING_CONNECTOR
from hope_vllm.turns import Phase, Turn

WAIT_SECONDS = 0.002
"""What a step with nothing to compute waits for the store at most; a request that comes meanwhile waits as long."""


class HopeScheduler(Scheduler):
    """Schedules turns and plain requests alike."""

    _late: list[tuple[int, EngineCoreOutput]]
    """Replies' last events that wait to be sent, with their client."""

    @property
    def _sessions(self) -> SchedulerSide:
        if not isinstance(self.connector, HopeConnector):
            raise UnsupportedSetup(MISSING_CONNECTOR)
        return self.connector.sessions

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """As vLLM's, after ending what cannot begin, and what was answered before."""
        turns = self._sessions.turns
        if turns.is_waiting and not self._has_work():
            # Else the engine would ask for it again and again, on the core on which it is being made.
            turns.wait(WAIT_SECONDS)
        self._refuse()
        self._answer_again()
        return super().schedule(throttle_prefills)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, EngineCoreOutputs]:
        """As vLLM's; what a reply ends with is held back until its turn is kept."""
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        for client, found in outputs.items():
            found.outputs = [output for output in found.outputs if not self._hold(client, output)]
        for turn, outcome in self._sessions.turns.take_settled():
            self._late_outputs.append(self._last_event(turn, outcome))
        for client, output in self._late_outputs:
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(output)
        self._late_outputs.clear()
        return outputs

    def _build_kv_connector_meta(self, connector: Any, scheduler_output: Any) -> Any:
        orders = super()._build_kv_connector_meta(connector, scheduler_output)
        # Else vLLM would fill the pages behind the step.
        scheduler_output.has_sync_kv_loads = scheduler_output.has_sync_kv_loads or bool(orders.loads)
        return orders

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        turn = self._sessions.turns.find(request.request_id)
        if turn is not None and turn.phase is Phase.ABSORBING and turn.outcome is not None:
            # The last token was read; what was sampled behind it is nobody's.
            request.status, request.stop_reason = turn.outcome
            return [], True
        tokens, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if stopped and self._sessions.must_absorb(request):
            self._sessions.absorb(request)
            request.status, request.stop_reason = RequestStatus.RUNNING, None
            return tokens, False
        return tokens, stopped

    def _hold(self, client: int, output: EngineCoreOutput) -> bool:
        """Whether an output is kept back: a turn's last token and its last event, which go out as one."""
        turn = self._sessions.turns.find(output.request_id)
        if turn is None:
            return False
        if turn.phase is Phase.ABSORBING and turn.held is None:
            turn.held = (client, output)
            return True
        if turn.phase not in (Phase.SAVING, Phase.COMMITTING) or output.finish_reason is None:
            return False
        if turn.phase is Phase.SAVING:
            self._sessions.fail_uncopied(turn)
        _, last = turn.held
        last.finish_reason, last.stop_reason = output.finish_reason, output.stop_reason
        last.events = [*(last.events or []), *(output.events or [])] or None
        last.spec_decode_metrics = output.spec_decode_metrics
        return True

    def _last_event(self, turn: Turn, outcome: Any) -> tuple[int, EngineCoreOutput]:
        """What a turn's reply ends with, now that it is known what became of it."""
        client, output = turn.held
        if isinstance(outcome, HopeError):
            self._sessions.log_refusal(outcome)
            output.finish_reason, output.stop_reason = FinishReason.ERROR, reason_text(outcome)
        else:
            output.kv_transfer_params = {
                "session_id": turn.session_id,
                "version": outcome.info.version,
                "durability": outcome.info.durability,
                "num_tokens": turn.start.num_tokens + turn.num_read,
            }
        return client, output

    def _has_work(self) -> bool:
        """Whether any request could be computed now, and is not waiting for its state."""
        if self.running:
            return True
        return any(self._sessions.may_begin(request) for request in self.requests.values() if not request.is_finished())

    def _refuse(self) -> None:
        for refusal in self._sessions.turns.take_refusals():
            output = self._end_early(refusal.request_id, RequestStatus.FINISHED_ERROR)
            if output is not None:
                self._sessions.log_refusal(refusal.error)
                output.finish_reason, output.stop_reason = FinishReason.ERROR, reason_text(refusal.error)

    def _answer_again(self) -> None:
        for turn in self._sessions.turns.take_answered():
            answer = turn.start.answer
            output = self._end_early(turn.request_id, RequestStatus.FINISHED_STOPPED)
            if output is not None:
                output.new_token_ids, output.stop_reason = list(answer.tokens), answer.stop_reason
                output.finish_reason = FinishReason.STOP if answer.finish == "stop" else FinishReason.LENGTH
                output.kv_transfer_params = {
                    "session_id": turn.session_id,
                    "version": answer.version,
                    "replayed": True,
                }

    def _end_early(self, request_id: str, status: RequestStatus) -> EngineCoreOutput | None:
        """End a request that nothing was computed of; its only event, to be filled in. None where it is gone."""
        request = self.requests.get(request_id)
        if request is None or request.is_finished():
            return None
        self.finish_requests(request_id, status)
        output = EngineCoreOutput(
            request_id=request_id,
            new_token_ids=[],
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
        self._late_outputs.append((request.client_index, output))
        return output

    @property
    def _late_outputs(self) -> list[tuple[int, EngineCoreOutput]]:
        if "_late" not in self.__dict__:
            self._late = []
        return self._late

"""What the service tells of itself: logs, metrics and traces; none ever carries a prompt, an output or a weight."""

from hope_server.telemetry.ledger import STAGES, Stage, StageTime, TurnLedger, current_ledger, turn_ledger
from hope_server.telemetry.logs import JsonFormatter, configure_logging, log_event, log_failure, request_id
from hope_server.telemetry.metrics import Metrics
from hope_server.telemetry.tracing import RequestTrace, Tracing, open_tracing, request_trace
from hope_server.telemetry.turn_meter import TokenAccount, TurnMeter, token_account

__all__ = [
    "STAGES",
    "JsonFormatter",
    "Metrics",
    "RequestTrace",
    "Stage",
    "StageTime",
    "TokenAccount",
    "Tracing",
    "TurnLedger",
    "TurnMeter",
    "configure_logging",
    "current_ledger",
    "log_event",
    "log_failure",
    "open_tracing",
    "request_id",
    "request_trace",
    "token_account",
    "turn_ledger",
]

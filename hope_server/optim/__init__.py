"""Update rules as pure functions: gradient and state in, step and state out."""

from hope_server.optim.registry import RULE_NAMES, make_rule
from hope_server.optim.rules import State, UpdateRule

__all__ = ["RULE_NAMES", "State", "UpdateRule", "make_rule"]

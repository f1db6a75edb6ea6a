"""Update rules as pure functions: gradient and state in, step and state out."""

from hope_server.optim.rules import Moments, step

__all__ = ["Moments", "step"]

"""What a load run does: the numbers that the driver, every Locust process and the checks share, as one JSON object."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from loadtests.shapes import SHAPES

ENVIRONMENT = "LOADTEST_PLAN"
"""The variable that tells a Locust process where its plan lies."""

END_FILE = "end"
"""A file of the run's folder that ends the load early by being there: Locust leaves workers behind on SIGTERM."""

SCENARIOS = {
    "chat": "a turn, a pause to think, the next turn, in sessions of the user's own",
    "many": "a turn in one of many more sessions than slots, without a pause",
    "hot": "all users of the scenario in two sessions",
    "learn": "a long document in pieces, then a question about it",
    "disconnect": "leaves in mid-stream, then sends the request again",
    "retry": "sends a request again that was answered, or the same one twice at once",
    "edit": "sends its whole conversation, and now and then changes an earlier message",
    "fork": "forks a session, goes on in both, deletes old forks",
    "tenants": "asks for sessions of another tenant, which must not be there",
    "look": "takes a turn, then asks without teaching: the answer must come from the version just made",
}
DEFAULT_SCENARIOS = "chat=8,many=8,hot=4,learn=1,disconnect=6,retry=4,edit=4,fork=2,tenants=3,look=2"


@dataclass(frozen=True, slots=True)
class Plan:
    """A load run.

    folder: of the ledgers. keys: API keys, each a tenant of its own; none: the server is open.
    scenarios: weight by name. users: at once, at most; sessions: about how many they have together.
    think_seconds: mean pause of users that think. document_tokens, piece_tokens: of a document that is fed, and of one
    request of it. learn_passes: 0 is the server's own choice. silence_seconds: how long a client waits for the next
    byte. processes: of Locust, that make the requests. prefix: of session names, so that a run does not meet those of
    earlier ones on the same server.
    """

    url: str
    folder: str
    keys: tuple[str, ...] = ()
    scenarios: tuple[tuple[str, float], ...] = ()
    shape: str = "steady"
    users: int = 40
    seconds: float = 300.0
    seed: int = 1
    sessions: int = 200
    max_tokens: int = 24
    think_seconds: float = 3.0
    document_tokens: int = 100_000
    piece_tokens: int = 1_000
    learn_passes: int = 1
    silence_seconds: float = 120.0
    processes: int = 1
    prefix: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of its range."""
        if self.shape not in SHAPES:
            raise ValueError(f"shape {self.shape!r} is unknown; choose one of {', '.join(SHAPES)}")
        for name in ("users", "seconds", "sessions", "max_tokens", "document_tokens", "piece_tokens", "processes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.think_seconds < 0 or self.learn_passes < 0:
            raise ValueError("think_seconds and learn_passes must be 0 or more")

    @property
    def sessions_each(self) -> int:
        """Sessions of one user."""
        return max(1, round(self.sessions / self.users))

    def to_json(self) -> str:
        """The plan as text, keys included."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote. Raises ValueError for fields that are none of a plan."""
        found = json.loads(text)
        unknown = set(found) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"a plan has no {', '.join(sorted(unknown))}")
        scenarios = tuple((str(name), float(weight)) for name, weight in found.pop("scenarios", ()))
        return replace(cls(**(found | {"keys": tuple(found.get("keys", ()))})), scenarios=scenarios)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Plan:
        """Read the plan that the driver wrote for this process. Raises RuntimeError where there is none."""
        path = environment.get(ENVIRONMENT)
        if not path:
            raise RuntimeError(f"{ENVIRONMENT} names no plan; start load tests with python -m loadtests.run")
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def parse_scenarios(text: str) -> tuple[tuple[str, float], ...]:
    """Read `chat=3,hot`, a weight of 1 where none is given. Raises ValueError that lists the names."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = part.partition("=")
        if name not in SCENARIOS:
            raise ValueError(f"scenario {name!r} is unknown; choose of {', '.join(SCENARIOS)}")
        try:
            found[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"the weight of scenario {name} is {weight!r}; give a number") from None
        if not 0 < found[name] < float("inf"):
            raise ValueError(f"the weight of scenario {name} is {weight}; give a number above 0")
    if not found:
        raise ValueError(f"no scenario is named; choose of {', '.join(SCENARIOS)}")
    return tuple(found.items())

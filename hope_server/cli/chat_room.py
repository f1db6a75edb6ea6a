"""The conversation at a terminal: reads lines, takes turns, and obeys the commands that begin with a slash."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hope_client import ConnectionFailed, HopeClient, HopeError, Session

from hope_server.cli.console import CommandError, learn_progress, print_json, printable, remark, say, stderr_console
from hope_server.cli.versions import whole_version
from hope_server.cli.words import learn_line, learn_object, megabytes, short, when


class _Told(NamedTuple):
    """What a command has to say: for programs, and for people."""

    data: dict[str, Any]
    lines: tuple[str, ...]


class _Left(Exception):
    """The person is done."""


class ChatRoom:
    """A conversation that starts in `session`.

    take_turn: has one message answered in a session. read_file: returns the text of a file, or raises CommandError.
    is_json: everything that is said is one JSON object a line.
    """

    def __init__(
        self,
        client: HopeClient,
        session: Session,
        take_turn: Callable[[Session, str], None],
        read_file: Callable[[str], str],
        *,
        is_json: bool,
    ) -> None:
        self._client = client
        self._session = session
        self._take_turn = take_turn
        self._read_file = read_file
        self._is_json = is_json
        self._unfinished: dict[bytes, str] = {}
        self._commands: dict[str, tuple[Callable[[str], _Told], str, str]] = {
            "learn": (self._learn, "FILE", "study a text file now"),
            "fork": (self._fork, "[NAME]", "go on in a copy; this session stays as it is"),
            "forget": (self._forget, "", "delete this session with all it learned (asks first)"),
            "versions": (self._versions, "", "list the versions that are kept"),
            "rollback": (self._rollback, "V", "go back to a version (its first letters do) or a snapshot"),
            "snapshot": (self._snapshot, "TAG", "keep the newest version under a name"),
            "freeze": (self._freeze, "", "answer without learning"),
            "unfreeze": (self._unfreeze, "", "learn again"),
            "memory": (self._memory, "", "show the memory, level by level"),
            "help": (self._help, "", "show this"),
            "quit": (self._quit, "", "end; so does Ctrl-D"),
        }

    def converse(self) -> None:
        """Take turns until the person ends it. Raises ConnectionFailed where the server is gone."""
        if not self._is_json:
            say("type a message and Enter; /help lists commands, Ctrl-C stops an answer, Ctrl-D ends")
        with _line_history(self._commands):
            for text in self._typed_lines():
                known = self._session.version
                try:
                    if text.startswith("/") and not text.startswith("//"):
                        self._obey(text[1:])
                    else:
                        self._take_turn(self._session, text.removeprefix("/"))
                except _Left:
                    return
                except KeyboardInterrupt:
                    self._tell(self._after_interrupt(known))
                except ConnectionFailed:
                    raise
                except (HopeError, CommandError) as exc:
                    self._tell_failure(exc)

    def _obey(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        found = self._commands.get(name)
        if found is None:
            raise CommandError(f"there is no command /{name}; /help lists them, // says a message that begins with /")
        run, parameter, _ = found
        argument = argument.strip()
        is_optional = parameter.startswith("[")
        if bool(argument) != bool(parameter) and not (is_optional and not argument):
            raise CommandError(f"write it like: /{name} {parameter}".rstrip())
        self._tell(run(argument))

    # -- commands ---

    def _learn(self, name: str) -> _Told:
        text = self._read_file(name)
        digest = hashlib.blake2b(f"{self._session.id}\n{text}".encode("utf-8", "surrogatepass")).digest()
        # The same file once more goes on where an interrupted call was; after a complete one it is studied anew.
        key = self._unfinished.setdefault(digest, secrets.token_hex(16))
        with learn_progress(stderr_console(), is_shown=not self._is_json) as report:
            result = self._session.learn(text, None, report, key)
        del self._unfinished[digest]
        return _Told(learn_object(result), (f"  [{learn_line(result)}]",))

    def _fork(self, name: str) -> _Told:
        before = self._session
        self._session = before.fork(name or None)
        line = f"now in {self._session.id}, a copy; back with: hope chat --session {before.id}"
        return _Told({"forked_from": before.id}, (line,))

    def _forget(self, _: str) -> _Told:
        asked = f"delete session {self._session.id} with all it learned? (yes/no) "
        if self._ask(asked).strip().lower() not in ("y", "yes"):
            return _Told({"deleted": False}, ("nothing deleted",))
        name = self._session.id
        self._session.delete()
        self._session = self._client.session(name)
        return _Told({"deleted": True}, (f"deleted; {name} is a new session that knows nothing",))

    def _versions(self, _: str) -> _Told:
        found, tags = self._session.versions(), self._session.info().tags
        lines = []
        for each in found:
            named = "".join(f", snapshot {tag}" for tag, version in tags.items() if version == each.version)
            lines.append(f"  {short(each.version)}  {when(each.created)}  turn {each.turn}{named}")
        return _Told({"versions": [dataclasses.asdict(each) for each in found]}, tuple(lines) or ("  none yet",))

    def _rollback(self, start: str) -> _Told:
        version = whole_version(self._session, start)
        info = self._session.rollback(version)
        return _Told(
            {"rolled_back_to": version, "version": info.version},
            (f"as it was at {short(version)}; this is version {short(info.version)}",),
        )

    def _snapshot(self, tag: str) -> _Told:
        info = self._session.snapshot(tag)
        return _Told(
            {"tag": tag, "version": info.tags.get(tag)}, (f"version {short(info.tags.get(tag))} is {tag} now",)
        )

    def _freeze(self, _: str) -> _Told:
        self._session.freeze()
        return _Told({"frozen": True}, ("frozen: answers are not learned until /unfreeze",))

    def _unfreeze(self, _: str) -> _Told:
        self._session.unfreeze()
        return _Told({"frozen": False}, ("learning again",))

    def _memory(self, _: str) -> _Told:
        found = self._session.memory()
        lines = []
        for name, level in found.levels.items():
            norm = "" if level.norm is None else f", norm {level.norm:.3g}"
            lines.append(f"  {name}: written {level.num_writes:,} times, {megabytes(level.num_bytes)}{norm}")
        return _Told(dataclasses.asdict(found), tuple(lines) or ("  nothing learned yet",))

    def _help(self, _: str) -> _Told:
        rows = [(f"/{name} {parameter}".rstrip(), text) for name, (_, parameter, text) in self._commands.items()]
        return _Told({"commands": dict(rows)}, tuple(f"  {usage:<16} {text}" for usage, text in rows))

    def _quit(self, _: str) -> _Told:
        raise _Left

    # -- talking to the person ---

    def _after_interrupt(self, known: str | None) -> _Told:
        """Say what became of a turn that Ctrl-C stopped: it may have been complete already."""
        try:
            found = self._session.info().version
        except HopeError as exc:
            return _Told({"stopped": True}, (f"stopped; what became of the turn is not known: {exc.message}",))
        data = {"stopped": True, "version": found}
        if found == known:
            return _Told(data, ("stopped; the session is as it was, nothing of this turn was kept",))
        return _Told(data, (f"stopped; what was learned until then is kept as version {short(found)}",))

    def _tell(self, told: _Told) -> None:
        if self._is_json:
            print_json({"session_id": self._session.id, **told.data})
            return
        for line in told.lines:
            remark(line)

    def _tell_failure(self, exc: HopeError | CommandError) -> None:
        if self._is_json:
            code = exc.code if isinstance(exc, HopeError) else "command_error"
            print_json({"session_id": self._session.id, "error": {"code": code, "message": exc.message}})
        else:
            say(f"hope: {exc.message}")

    def _ask(self, prompt: str) -> str:
        # Nothing but results may be on a stdout that a program reads.
        if self._is_json or not sys.stdout.isatty():
            print(printable(prompt), end="", file=sys.stderr, flush=True)
            return input()
        return input(prompt)

    def _typed_lines(self) -> Iterator[str]:
        while True:
            try:
                text = self._ask("> ").strip()
            except EOFError:
                say("")
                return
            except KeyboardInterrupt:
                say("")
                continue
            if text:
                yield text


@contextlib.contextmanager
def _line_history(commands: dict[str, Any]) -> Iterator[None]:
    """Let the terminal recall the lines of this conversation and complete commands, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    words = [f"/{name}" for name in commands]

    def complete(text: str, state: int) -> str | None:
        fitting = [word for word in words if word.startswith(text)] if text.startswith("/") else []
        return fitting[state] if state < len(fitting) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        # What was said here is no business of what asks for a line next, and is written nowhere.
        readline.set_completer(None)
        readline.clear_history()

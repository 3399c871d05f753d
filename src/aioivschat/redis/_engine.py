"""The way to the engine: one Valkey or Redis, spoken to through scripts and notifications.

The engine is a help, not a need. A call that gets no answer in time, or an answer that means "not
now", raises :class:`EngineAway` and nothing else; after two in a row the breaker opens and every
further call fails at once. While it is open a probe in the background looks for the engine, and
closes the breaker when it both answers in time and takes a write.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aioivschat.errors import InvalidConfiguration, require

TIMEOUT = 0.05
"""Seconds that a caller waits for the engine at most."""

_PATIENCE = 1.0
"""Seconds that a command may take when nobody waits for it any more. Cut off earlier, it would
take its connection with it, and over a slow network no connection would ever come to be."""

_TURNS = 5
"""Turns of the event loop more, for an answer that came while this process was too busy to look:
it is read in one, understood in the next, and handed over in a third."""

_FAILURES = 2
"""Failures in a row, each of a call that began after the one before had failed, that open the
breaker: one may be a lost packet, a stale connection, or a moment in which this host was busy."""

_PROBE_EVERY = 0.25, 0.75
"""Seconds between probes, at random: a fleet must not come back all in one moment."""

_AT_ONCE = 4
"""Calls under way at most, each on a connection of its own: a rush must not take its own crowding
for an engine that is slow. Over 10 ms of network, 4 make 400 calls a second."""


class EngineState(StrEnum):
    """How the engine is doing, as seen from here."""

    CONNECTING = "connecting"  # nothing is known yet, for a second or so
    SHARED = "shared"
    AWAY = "away"


class EngineAway(Exception):
    """The engine cannot be used now.

    Args:
        reason: the name of an error's class, such as ``TimeoutError`` or ``OutOfMemoryError``.
        sent: whether the script may have run all the same.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


@dataclass(frozen=True, slots=True, init=False)
class Script:
    """A Lua script; all its keys share a hash slot.

    Args:
        source: its text.
    """

    source: str
    sha: str

    def __init__(self, source: str) -> None:
        object.__setattr__(self, "source", source)
        # The engine's own name for it, no protection of anything.
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", sha)


_PROBE = Script("return redis.call('SET', KEYS[1], 1, 'PX', 1000)")


class Engine:
    """Runs scripts on the engine, listens to it, and knows whether it is there.

    Args:
        address: a URL (see :func:`connect`), or an asyncio client of redis-py or valkey-py, which
            stays its owner's to close.
        on_state: called with every new state and the reason for it, the name of an error's
            class; empty when the engine is back.
        rng: where the jitter of the probes comes from.
        timeout: seconds that a caller waits for it at most.
        namespace: whose keys the first probe may write.

    Raises:
        InvalidConfiguration: the URL is none that :func:`connect` knows.
    """

    def __init__(
        self,
        address: Any,
        on_state: Callable[[EngineState, str], None] | None = None,
        rng: random.Random | None = None,
        *,
        timeout: float = TIMEOUT,
        namespace: str = "aioivschat",
    ) -> None:
        self._timeout = timeout
        self._own = isinstance(address, str)
        try:
            self._client = connect(address) if isinstance(address, str) else address
        finally:
            del address  # out of tracebacks that show locals: it may hold a password
        self._rng = rng or random.Random()  # noqa: S311 (no secret)
        self._state = EngineState.CONNECTING
        self._on_state = [on_state] if on_state is not None else []
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._failures = 0
        self._failed_at = 0.0
        self._reason = "Connecting"
        self._first_wait_over = 0.0
        self._known = asyncio.Event()
        # Probed where the last failure was: in a cluster other nodes may be well.
        self._probed = f"{{{namespace}}}:probe"
        self._probing: asyncio.Task[None] | None = None
        self._channels: dict[str, tuple[Callable[[bytes], None], Callable[[], None]]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __repr__(self) -> str:
        if not hasattr(self, "_state"):  # a traceback of its making may show it
            return "<Engine, not made>"
        return f"<Engine {self._state}>"

    @property
    def state(self) -> EngineState:
        """How the engine is doing."""
        return self._state

    def watch(self, on_state: Callable[[EngineState, str], None]) -> None:
        """Have one more callback told of every change, as ``on_state`` of the constructor is."""
        self._on_state.append(on_state)

    async def open(self) -> None:
        """Begin to connect, and wait for as long as for an answer until it shows how it is."""
        if self._state is EngineState.CONNECTING and not self._closed:
            loop = asyncio.get_running_loop()
            if self._probing is None:
                self._first_wait_over = loop.time() + self._timeout
            self._probe_from_now_on()
            if loop.time() < self._first_wait_over:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._first_wait_over):
                        await self._known.wait()

    async def call(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[bytes | str | int] = (),
        *,
        urgent: bool = False,
    ) -> Any:
        """Run a script in one round trip; in two where the engine has forgotten it.

        Args:
            script: what to run.
            keys: its keys, at least one; all in one hash slot.
            args: its arguments.
            urgent: whether it goes before all that wait for their turn; of such calls there is
                one at a time.

        Returns:
            What it returned; text as bytes.

        Raises:
            EngineAway: at once while the breaker is open, after 50 ms at most otherwise.
        """
        if self._state is not EngineState.SHARED:
            await self.open()
            self._check_there()
        async with nullcontext() if urgent else self._room:
            # It may have gone away while this call waited for its turn.
            self._check_there()
            began = asyncio.get_running_loop().time()
            try:
                answer = await self._run(self._timeout, script, keys, args)
            except Exception as error:
                # A user's own client may raise anything; whatever it is, it is no answer.
                self._failed(error, keys[0], began)
                # An answer says that it did not run; silence says nothing.
                answered = any(kind.__name__ == "ResponseError" for kind in type(error).__mro__)
                raise EngineAway(type(error).__name__, sent=not answered) from None
            self._failures = 0
            return answer

    def listen(
        self, channel: str, heard: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """Hear what is published on a channel, for as long as the engine is used.

        Args:
            channel: its name.
            heard: called with each message.
            missed: called whenever listening begins, the first time included: what was
                published before may not have been heard.
        """
        self._channels[channel] = heard, missed
        if self._listening is not None:
            self._listening.cancel()
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def aclose(self) -> None:
        """Stop listening and probing, and close the client if it is not the user's."""
        self._closed = True
        tasks = [task for task in (self._probing, self._listening, *self._late) if task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._own:
            await _close(self._client)

    # One call.

    async def _run(self, seconds: float, script: Script, keys: Sequence[str], args: Any) -> Any:
        try:
            return await self._within(
                seconds, self._client.evalsha(script.sha, len(keys), *keys, *args)
            )
        except Exception as error:
            # redis-py and valkey-py each have one of that name.
            if type(error).__name__ != "NoScriptError":
                raise
        return await self._within(
            seconds, self._client.eval(script.source, len(keys), *keys, *args)
        )

    async def _within(self, seconds: float, work: Awaitable[Any]) -> Any:
        """Wait for an answer so long, and let the work go on without us for a while after that."""
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        self._late.add(task)
        task.add_done_callback(self._forget)
        try:
            await asyncio.wait((task,), timeout=seconds)
            for _ in range(_TURNS):
                if not task.done():
                    await asyncio.sleep(0)
        finally:
            if not task.done():
                loop.call_later(_PATIENCE, task.cancel)
        if not task.done():
            raise TimeoutError
        return task.result()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._late.discard(task)
        # Asking for the exception tells asyncio that it was not overlooked.
        if not task.cancelled():
            task.exception()

    # The breaker.

    def _check_there(self) -> None:
        if self._state is not EngineState.SHARED:
            raise EngineAway(self._reason, sent=False)

    def _failed(self, error: Exception, key: str, began: float) -> None:
        if not self._failures or began >= self._failed_at:
            self._failures += 1
            self._failed_at = asyncio.get_running_loop().time()
        self._probed = f"{key}:probe"
        if self._state is EngineState.SHARED and self._failures >= _FAILURES:
            self._become(EngineState.AWAY, type(error).__name__)
            if not self._closed:
                self._probe_from_now_on()

    def _become(self, state: EngineState, reason: str = "") -> None:
        self._state, self._reason = state, reason
        self._known.set()
        self._failures = 0
        for told in self._on_state:
            told(state, reason)

    def _probe_from_now_on(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        """Look for the engine until it is there, and quick."""
        while True:
            try:
                # Connecting takes its time; what follows shows how far away the engine is.
                await self._connect()
                await self._run(self._timeout, _PROBE, (self._probed,), ())
            except Exception as error:
                if self._state is EngineState.CONNECTING:
                    self._become(EngineState.AWAY, type(error).__name__)
            else:
                self._become(EngineState.SHARED)
                return
            await self._disconnect()
            await asyncio.sleep(self._rng.uniform(*_PROBE_EVERY))

    async def _connect(self) -> None:
        """Open every connection that calls may need."""
        # A cluster's client sends what comes before it knows the slots to any node, and after a few
        # answers of "moved" it drops all connections, whoever uses them.
        await self._within(_PATIENCE, self._client.initialize())
        probes = (self._run(_PATIENCE, _PROBE, (self._probed,), ()) for _ in range(_AT_ONCE + 1))
        for outcome in await asyncio.gather(*probes, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _disconnect(self) -> None:
        """Drop idle connections: a new one may find the successor of a server that failed."""
        pool = getattr(self._client, "connection_pool", None)
        if pool is not None:  # a cluster's client looks for successors by itself
            try:
                await self._within(self._timeout, pool.disconnect(inuse_connections=False))
            except Exception:
                return

    # Notifications.

    async def _listen(self) -> None:
        while True:
            try:
                async with _pubsub(self._client) as pubsub:
                    await pubsub.subscribe(*self._channels)
                    while True:
                        self._hear(await pubsub.get_message(timeout=None))
            except Exception:
                # The breaker tells of an engine that is away; here it only means silence.
                await asyncio.sleep(self._rng.uniform(*_PROBE_EVERY))

    def _hear(self, message: Any) -> None:
        if message is None:
            return
        channel = message["channel"]
        heard, missed = self._channels[channel.decode() if isinstance(channel, bytes) else channel]
        if message["type"] == "message":
            heard(message["data"])
        elif message["type"] == "subscribe":
            # Also when the client has reconnected without a word.
            missed()


def connect(url: str) -> Any:
    """Return an asyncio client of redis-py for a URL.

    ======================================  ===================================================
    ``redis://user:password@host:6379/0``   a single server; ``rediss://`` with TLS
    ``redis+cluster://host:port,host:port`` a cluster; ``rediss+cluster://`` with TLS
    ``redis+sentinel://host:port/name/0``   the master of that name, by its sentinels;
                                            ``rediss+sentinel://`` with TLS
    ``unix:///path``                        a socket of this host
    ======================================  ===================================================

    ``valkey`` may stand for ``redis``. What follows a ``?`` are options of redis-py's client.

    Raises:
        InvalidConfiguration: the URL is none of these.
        ImportError: redis-py is not installed.
    """
    try:
        return _connected(url)
    except InvalidConfiguration as error:
        wrong = error
    except (TypeError, ValueError) as error:
        wrong = InvalidConfiguration(
            "RedisTier", "a URL with a port and options that redis-py knows", type(error).__name__
        )
    finally:
        del url
    # Raised out here, without context: the frames within, redis-py's too, hold the password.
    raise wrong.with_traceback(None)


def _connected(url: str) -> Any:
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    split = urlsplit(url)
    scheme, _, topology = split.scheme.replace("valkey", "redis", 1).partition("+")
    known = {"redis": ("", "cluster", "sentinel"), "rediss": ("", "cluster", "sentinel")}
    fits = topology in known.get(scheme, ("",) if scheme == "unix" else ())
    require(fits, "RedisTier", "a redis://, rediss:// or unix:// URL", split.scheme)
    # Retrying is the breaker's business.
    options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_timeout": None}
    if not topology:
        plain = url.replace(split.scheme, scheme, 1)
        return Redis.from_url(plain, **options)
    credentials, _, hosts = split.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    options |= dict(parse_qsl(split.query))
    options |= {"username": unquote(user) or None, "password": unquote(password) or None}
    if scheme == "rediss":
        options["ssl"] = True
    nodes = [(node.hostname or "", node.port) for node in map(urlsplit, _each("//", hosts))]
    if topology == "cluster":
        from redis.asyncio.cluster import ClusterNode

        startup = [ClusterNode(host, port or 6379) for host, port in nodes]
        return RedisCluster(startup_nodes=startup, **options)
    name, _, db = split.path.strip("/").partition("/")
    sentinels: Any = importlib.import_module("redis.asyncio.sentinel")  # it has no types
    addresses = [(host, port or 26379) for host, port in nodes]
    return sentinels.Sentinel(addresses, **options).master_for(name, db=int(db or 0))


def _each(scheme: str, hosts: str) -> list[str]:
    return [scheme + host for host in hosts.split(",")]


async def _close(client: Any) -> None:
    await client.aclose()
    pool = getattr(client, "connection_pool", None)
    manager = getattr(pool, "sentinel_manager", None)
    for sentinel in manager.sentinels if manager is not None else ():
        await sentinel.aclose()


def _pubsub(client: Any) -> Any:
    if hasattr(client, "pubsub"):
        return client.pubsub()
    # Clusters pass messages on to all nodes, so any one will do; some clients do not know.
    library = importlib.import_module(type(client).__module__.partition(".")[0] + ".asyncio")
    plain = getattr(library, "Redis", None) or library.Valkey
    node = client.get_random_node()
    pool = library.ConnectionPool(connection_class=node.connection_class, **node.connection_kwargs)
    return plain(connection_pool=pool).pubsub()

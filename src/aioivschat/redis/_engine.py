"""How the engine is asked: scripts of one Valkey or Redis, behind a breaker.

A call that gets no answer in time, or an answer that means "not now", raises :class:`EngineAway`
and nothing else. After two failures in a row the breaker opens and every further call fails at
once. While the breaker is open a probe runs in the background; it closes the breaker when the
engine answers in time and takes a write. The client may fail as well: redis-py before 7.4 drops
a node with its connection, the last one of a cluster too. So after two probes without an answer the
third is made with a new client, which takes the place of the old one if it is answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aioivschat._contexts import start_task, time_limit
from aioivschat._secrets import Hidden
from aioivschat.redis._commands import COMMAND_TIMEOUT_SECONDS, Commands, is_a, is_answer
from aioivschat.redis._connecting import (
    MAX_CONCURRENT_CALLS,
    check_connections,
    close_client,
    connect,
    ping_by_new_connection,
)
from aioivschat.redis._diagnosis import Diagnosis, check_version
from aioivschat.redis._subscription import Subscription

_log = logging.getLogger("aioivschat")

CALL_TIMEOUT_SECONDS = 0.05
"""Seconds that a caller waits for the engine at most."""

_FAILURES_TO_OPEN = 2
"""Failures in a row that open the breaker. Calls that overlap count as one failure, and one may be
a lost packet, a stale connection, or a moment in which this host was busy."""

_PROBE_INTERVAL_SECONDS = 0.25, 0.75
"""Bounds of the random time between two probes: a fleet must not come back in one moment."""

_LONGEST_PAUSE_SECONDS = 3.0
"""Seconds at most before the first probe. They double with each return that did not last."""

_LASTING_SECONDS = 10.0
"""Seconds after which a return has lasted."""

_PROBES_OF_A_CLIENT = 2
"""Probes in a row without an answer, after which the client itself may be what fails."""

_BEYOND_HELP = (
    "no answer to the client that RedisTier was given, but to a new connection: if that goes on, "
    "the client is beyond help. Make client and tier anew, or give RedisTier a URL: of that it "
    "makes new clients by itself"
)


class EngineState(StrEnum):
    """Whether the engine can be used, as seen from this process."""

    CONNECTING = "connecting"  # not known yet; for about a second at most
    SHARED = "shared"
    AWAY = "away"


class EngineAway(Exception):
    """The engine cannot be used now.

    Args:
        reason: the name of an error's class, such as ``TimeoutError`` or ``OutOfMemoryError``.
        may_have_run: whether the script may have run all the same.
    """

    def __init__(self, reason: str, *, may_have_run: bool) -> None:
        super().__init__(reason)
        self.may_have_run = may_have_run


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
        # The engine's cache of scripts is keyed by SHA-1; nothing is protected by it.
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", sha)


RUN_ON = """
-- Runs a command on a key; what somebody else has put there, of another type, is deleted first.
local function run_on(key, command, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if string.find(answer.err, 'WRONGTYPE') then redis.call('DEL', key) end
  return redis.call(command, key, ...)
end
"""
"""What scripts begin with that read what others have written."""

# KEYS: a name that nothing else uses. ARGV: none. RETURNS: nothing of use.
_PROBE = Script("local probe_key = KEYS[1] return redis.call('SET', probe_key, 1, 'PX', 1000)")


_Call = tuple[Script, Sequence[str], Sequence[bytes | str | int]]
"""A script with its keys and arguments."""


class Engine:
    """Runs scripts on the engine, receives its messages, and knows whether it can be used.

    Args:
        address: a URL (see :func:`connect`), or an asyncio client of redis-py or valkey-py, which
            is not closed with the engine.
        on_state: called with every new state and the reason for it: the name of an error's
            class, or an empty text when the engine can be used.
        rng: where the jitter of the probes comes from.
        timeout: seconds that a caller waits for the engine at most.
        namespace: whose keys the first probe may write.

    Attributes:
        timeout: seconds that a caller waits for the engine at most.
        rejected: values of the engine that were outside their limits, and were not used.

    Raises:
        InvalidConfiguration: :func:`connect` does not know such a URL, or the client may open
            fewer connections than are needed.
    """

    def __init__(
        self,
        address: Any,
        on_state: Callable[[EngineState, str], None] | None = None,
        rng: random.Random | None = None,
        *,
        timeout: float = CALL_TIMEOUT_SECONDS,
        namespace: str = "aioivschat",
    ) -> None:
        self.timeout = timeout
        self._url = Hidden((address,)) if isinstance(address, str) else None
        try:
            self._client = connect(address) if isinstance(address, str) else address
            check_connections(self._client)
        finally:
            del address  # out of tracebacks that show locals: it may hold a password
        self._rng = rng or random.SystemRandom()  # a fork shares no state of it
        self._state = EngineState.CONNECTING
        self._state_known = asyncio.Event()
        self._state_callbacks = [on_state] if on_state is not None else []
        self._away_reason = "Connecting"
        # Until then, calls wait for the state to become known.
        self._first_call_deadline = -math.inf
        self._concurrency = asyncio.Semaphore(MAX_CONCURRENT_CALLS)
        self._failures = Counter[Script]()  # in a row
        self._last_failure_at = -math.inf
        self._shared_since = -math.inf
        self._short_returns = 0  # in a row
        # Run on other keys, beside those of the last failure: in a cluster, other nodes may be
        # well, and one script may be refused where another is not.
        self._probed: _Call = _PROBE, (f"{{{namespace}}}",), ()
        self.rejected = 0
        self._probe_task: asyncio.Task[None] | None = None
        self._diagnosis = Diagnosis()
        self._version_known = False
        self._subscriptions: list[Subscription] = []
        self._commands = Commands()
        self._background: set[asyncio.Task[None]] = set()  # closes what was replaced
        self._closed = False

    def __repr__(self) -> str:
        if not hasattr(self, "_state"):  # shown by a traceback of its constructor
            return "<Engine, not made>"
        return f"<Engine {self._state}>"

    @property
    def state(self) -> EngineState:
        """Whether the engine can be used."""
        return self._state

    def add_state_callback(self, on_state: Callable[[EngineState, str], None]) -> None:
        """Have one more callback called with every new state, as ``on_state`` is."""
        self._state_callbacks.append(on_state)

    async def open(self) -> None:
        """Begin to connect; wait until the state is known, but no longer than a call may take."""
        if self._state is EngineState.CONNECTING and not self._closed:
            loop = asyncio.get_running_loop()
            if self._probe_task is None:
                self._first_call_deadline = loop.time() + self.timeout
            self._start_probing()
            if loop.time() < self._first_call_deadline:
                with suppress(TimeoutError):
                    async with time_limit(self._first_call_deadline - loop.time()):
                        await self._state_known.wait()

    async def run_script(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[bytes | str | int] = (),
        *,
        urgent: bool = False,
    ) -> Any:
        """Run a script in one round trip; in two if the engine does not have it cached.

        Args:
            script: what to run.
            keys: its keys, at least one; all in one hash slot.
            args: its arguments.
            urgent: whether it goes ahead of the calls that wait for a connection; only one urgent
                call may be under way at a time.

        Returns:
            What the script returned; text as bytes.

        Raises:
            EngineAway: at once while the breaker is open; otherwise after the timeout at most.
        """
        if self._state is not EngineState.SHARED:
            await self.open()
            self._check_shared()
        async with nullcontext() if urgent else self._concurrency:
            # The breaker may have opened while this call waited for a connection.
            self._check_shared()
            started = asyncio.get_running_loop().time()
            try:
                answer = await self._eval(self.timeout, (script, keys, args))
            except Exception as error:
                # A user's own client may raise anything; any error means that there is no answer.
                self._count_failure(error, (script, keys, args), started)
                may_have_run = not is_answer(error)
                raise EngineAway(type(error).__name__, may_have_run=may_have_run) from None
            self._failures.pop(script, None)
            return answer

    def listen(
        self,
        channel: str,
        on_message: Callable[[bytes], None],
        on_subscribed: Callable[[], None],
    ) -> Subscription:
        """Receive what is published on a channel, until the engine is closed.

        See :class:`Subscription`.
        """
        subscription = Subscription(
            lambda: self._client, channel, on_message, on_subscribed, self._rng
        )
        self._subscriptions.append(subscription)
        return subscription

    async def aclose(self) -> None:
        """Stop listening and probing, and close the client if it is not the user's own."""
        self._closed = True
        # First what may replace the client: then nothing subscribes again.
        if self._probe_task is not None:
            self._probe_task.cancel()
            await asyncio.wait((self._probe_task,))
        if self._background:
            await asyncio.wait(self._background)
        for subscription in self._subscriptions:
            await subscription.aclose()
        await self._close_client(self._client)

    # One call.

    async def _eval(self, seconds: float, call: _Call, client: Any = None) -> Any:
        script, keys, args = call
        try:
            by = self._client if client is None else client
            sent = by.evalsha(script.sha, len(keys), *keys, *args)
            return await self._commands.wait(seconds, by, sent)
        except Exception as error:
            if not is_a(error, "NoScriptError"):
                raise
        if self._closed:  # a command would open a connection that nobody closes
            raise ConnectionAbortedError
        by = self._client if client is None else client  # it may have been replaced meanwhile
        sent = by.eval(script.source, len(keys), *keys, *args)
        return await self._commands.wait(seconds, by, sent)

    # The breaker.

    def _check_shared(self) -> None:
        if self._state is not EngineState.SHARED:
            raise EngineAway(self._away_reason, may_have_run=False)

    def _count_failure(self, error: Exception, call: _Call, started: float) -> None:
        script, now = call[0], asyncio.get_running_loop().time()
        if not self._failures[script] or started >= self._last_failure_at:
            self._failures[script] += 1
            self._last_failure_at = now
        self._probed = call
        if self._state is EngineState.SHARED and self._failures[script] >= _FAILURES_TO_OPEN:
            lasted = now - self._shared_since >= _LASTING_SECONDS
            self._short_returns = 0 if lasted else self._short_returns + 1
            self._change_state(EngineState.AWAY, type(error).__name__)
            if not self._closed:
                self._start_probing()

    def _change_state(self, state: EngineState, reason: str = "") -> None:
        self._state, self._away_reason = state, reason
        self._state_known.set()
        self._failures.clear()
        for on_state in self._state_callbacks:
            on_state(state, reason)

    def _start_probing(self) -> None:
        if self._probe_task is None or self._probe_task.done():
            self._probe_task = start_task(self._probe_until_shared())

    async def _probe_until_shared(self) -> None:
        if self._short_returns > 1:
            shortest = _PROBE_INTERVAL_SECONDS[0] * 2.0 ** min(self._short_returns, 9)
            pause = min(_LONGEST_PAUSE_SECONDS, shortest)
            await asyncio.sleep(pause * self._rng.uniform(0.75, 1.0))
        unanswered, warned = 0, False  # probes in a row; the operator, of the client
        while True:
            client = self._client
            try:
                if unanswered >= _PROBES_OF_A_CLIENT:
                    unanswered = 0
                    if self._url is not None:
                        client = connect(self._url.at(0))
                    elif not warned:
                        warned = await self._warn_if_beyond_help()
                await self._probe(client)
            except Exception as error:
                unanswered = 0 if is_answer(error) else unanswered + 1
                if self._state is EngineState.CONNECTING:
                    self._change_state(EngineState.AWAY, type(error).__name__)
                await self._diagnosis.tell(error, self._client)
            else:
                self._diagnosis.forget()
                if client is not self._client:
                    client, self._client = self._client, client
                    for subscription in self._subscriptions:
                        self._start_in_background(subscription.subscribe_anew())
                self._shared_since = asyncio.get_running_loop().time()
                self._change_state(EngineState.SHARED)
                return
            finally:
                if client is not self._client:  # the one that was not answered
                    self._start_in_background(self._close_client(client))
            await self._drop_idle_connections()
            await asyncio.sleep(self._rng.uniform(*_PROBE_INTERVAL_SECONDS))

    async def _probe(self, client: Any) -> None:
        """Open as many connections as calls need at most, with one for an urgent call; measure."""
        # A cluster's client that does not know the hash slots yet asks any node, and after a few
        # answers of "moved" it closes all connections, those in use too.
        seconds = max(COMMAND_TIMEOUT_SECONDS, self.timeout)
        await self._commands.wait(seconds, client, client.initialize())
        script, keys, args = self._probed
        probe_keys = [f"{key}:probe" for key in keys]
        writes = (
            self._eval(seconds, (_PROBE, probe_keys[:1], ()), client)
            for _ in range(MAX_CONCURRENT_CALLS + 1)
        )
        for outcome in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        if not self._version_known:
            info: object = None
            with suppress(Exception):  # some users, and some hosted services, may not ask
                info = await self._commands.wait(self.timeout, client, client.info("server"))
            check_version(info)
            self._version_known = True
        # Connecting may be slow; this measures the engine's distance alone.
        await self._eval(self.timeout, (script, probe_keys, args), client)

    async def _warn_if_beyond_help(self) -> bool:
        """Say what to do if a new connection is answered and the user's own client is not."""
        try:
            async with time_limit(COMMAND_TIMEOUT_SECONDS):
                await ping_by_new_connection(self._client)
        except Exception as error:
            # The engine itself is out of reach; any other failure is one of the client.
            if is_a(error, "ConnectionError", "OSError", "TimeoutError"):
                return False
        _log.warning(_BEYOND_HELP)
        return True

    async def _drop_idle_connections(self) -> None:
        """Close idle connections: a new one may reach the successor of a failed server."""
        pool = getattr(self._client, "connection_pool", None)
        if pool is not None:  # a cluster's client looks for successors by itself
            with suppress(Exception):
                await self._commands.wait(
                    self.timeout, self._client, pool.disconnect(inuse_connections=False)
                )

    # Closing.

    def _start_in_background(self, work: Awaitable[None]) -> None:
        task = start_task(work, self._background.discard)
        self._background.add(task)

    async def _close_client(self, client: Any) -> None:
        """Close a client that is not the user's own."""
        await self._commands.cancel(client)
        if self._url is not None:
            await close_client(client)

"""How an invalidation reaches every process of a fleet.

It is stored as a fence in the engine, for whatever is claimed or published there; sent as a message
to those that listen, for what they hold themselves; and logged, for those that miss the message.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import Any

from aioivschat._clock import Clock
from aioivschat._contexts import start_task
from aioivschat.redis._engine import RUN_ON, EngineAway, Script
from aioivschat.redis._token_store import TokenStore, as_bytes, microseconds

_FENCE_SECONDS = 900.0
"""Seconds that an invalidation is remembered: a token's life, and the longest queue before it."""

_CLOSING_SECONDS = 0.1
"""Seconds that closing waits for the engine to take pending invalidations."""

_LOG_OVERLAP_SECONDS = 1.0
"""Seconds before the last message received from which the log is read: messages that were published
then may have been lost with the connection."""

_RETRY_SECONDS = 0.5
"""Seconds until the engine is asked again after it was away."""

_MAX_PENDING = 65_536
"""Invalidations kept for an engine that is away."""

# KEYS     fence_key, log_key
# ARGV     kept_seconds  how long both are kept
#          message       sealed
#          channel       where it is published
# RETURNS  nothing
_INVALIDATE = Script(f"""{RUN_ON}
local fence_key, log_key = KEYS[1], KEYS[2]
local kept_seconds, message, channel = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('SET', fence_key, now, 'EX', kept_seconds)
run_on(log_key, 'ZADD', now, message)
redis.call('ZREMRANGEBYSCORE', log_key, '-inf', now - kept_seconds * 1000000)
redis.call('EXPIRE', log_key, kept_seconds)
redis.call('PUBLISH', channel, 'fence:' .. message)
""")

# KEYS     log_key
# ARGV     age           microseconds to look back
# RETURNS  now, {sealed messages}
_READ_LOG = Script(f"""{RUN_ON}
local log_key, age = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local since = string.format('%.0f', now - age)
return {{now, run_on(log_key, 'ZRANGEBYSCORE', since, '+inf')}}
""")


class FleetInvalidations:
    """Sends this process's invalidations to the fleet, and applies those of other processes."""

    def __init__(
        self,
        store: TokenStore,
        clock: Clock,
        on_invalidated: Callable[[str | None, str | None], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._on_invalidated = on_invalidated
        self._pending: dict[str, bytes] = {}  # messages by the keys of their fences
        self._complete_until = clock.monotonic()  # all invalidations until then are known here
        self._gaps = 0  # subscriptions since the log was last read: each may have missed messages
        self._tasks: set[asyncio.Task[None]] = set()

    @cached_property
    def _origin(self) -> str:
        # At its first use, as the service may have been made before a fork.
        return secrets.token_hex(8)

    @property
    def pending(self) -> int:
        """How many invalidations the engine does not know yet."""
        return len(self._pending)

    def send(self, room: str | None, user: str | None) -> None:
        """Invalidate a room, a user, or a user in a room, however long the engine is away."""
        message = json.dumps((self._origin, room, user)).encode()
        is_first = not self._pending
        if len(self._pending) >= _MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        self._pending[self._store.fence_key(room, user)] = self._store.seal_message(message)
        # Last: the task may run at once, and ends when nothing is pending.
        if is_first:
            self._start_task(self._send_pending())

    def note_message(self) -> None:
        """Note that a message of any kind has arrived: the subscription works."""
        if not self._gaps:
            self._complete_until = self._clock.monotonic()

    def apply(self, sealed: bytes) -> None:
        """Apply an invalidation of another process."""
        plain = self._store.open_message(sealed)
        if plain is not None:
            origin, room, user = json.loads(plain)
            if origin != self._origin:
                self._on_invalidated(room, user)

    def catch_up(self) -> None:
        """Apply the invalidations of the time without a subscription."""
        self._gaps += 1
        if self._gaps == 1:
            self._start_task(self._apply_log())

    async def aclose(self) -> None:
        """Wait a moment for pending invalidations, then give up."""
        tasks = tuple(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSING_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(start_task(work, self._tasks.discard))

    async def _send_pending(self) -> None:
        store = self._store
        while self._pending:
            fence_key, message = next(iter(self._pending.items()))
            arguments = (int(_FENCE_SECONDS), message, store.channel)
            try:
                await store.engine.run_script(_INVALIDATE, [fence_key, store.log_key], arguments)
            except EngineAway:
                await self._clock.sleep(_RETRY_SECONDS)
                continue
            # Unless `send` replaced it meanwhile: then the new one is still to be sent.
            if self._pending.get(fence_key) is message:
                del self._pending[fence_key]

    async def _apply_log(self) -> None:
        store = self._store
        while gaps := self._gaps:
            now = self._clock.monotonic()
            age = min(now - self._complete_until, _FENCE_SECONDS) + _LOG_OVERLAP_SECONDS
            try:
                engine_now, messages = await store.engine.run_script(
                    _READ_LOG, [store.log_key], [microseconds(age)]
                )
            except EngineAway:
                # A subscription may begin again before the breaker closes.
                await self._clock.sleep(_RETRY_SECONDS)
                continue
            store.learn_engine_time(engine_now)
            for sealed in messages:
                self.apply(as_bytes(sealed))
            if gaps == self._gaps:
                self._gaps, self._complete_until = 0, now

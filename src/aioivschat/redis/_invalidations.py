"""How an invalidation reaches every process of a fleet.

It is stored as a fence in the engine, for whatever is claimed or published there; sent as a message
to those that listen, for what they hold themselves; and logged, for those that miss the message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import Any

from aioivschat._contexts import start_task
from aioivschat.redis._engine import EngineAway, Script
from aioivschat.redis._fleet_time import KEPT_SECONDS
from aioivschat.redis._subscription import name_refused_right
from aioivschat.redis._token_store import READ_NUMBER, TokenStore, as_bytes, microseconds

_log = logging.getLogger("aioivschat")

_CLOSING_SECONDS = 0.1
"""Seconds that closing waits for the engine to take pending invalidations."""

_LOG_OVERLAP_SECONDS = 1.0
"""Seconds before this process began from which it reads the log at first."""

_RETRY_SECONDS = 0.5
"""Seconds until the engine is asked again after it was away."""

_MAX_PENDING = 65_536
"""Invalidations kept for an engine that is away."""

_MAX_REMEMBERED = 1_024
"""Messages remembered, so that none is applied twice: as a message, and as found in the log."""

# KEYS     fence_key, log_key, clock_key
# ARGV     message       sealed
#          channel       where it is published
# RETURNS  why it was not published; empty if it was
_INVALIDATE = Script(f"""{READ_NUMBER}
local fence_key, log_key, clock_key = unpack(KEYS)
local message, channel = ARGV[1], ARGV[2]
local SECOND, DAY, KEPT_SECONDS = 1000000, 86400000000, {KEPT_SECONDS}
local now = read_clock(clock_key)
redis.call('SET', fence_key, string.format('%.0f', now), 'EX', KEPT_SECONDS)
-- A number of a day ahead is somebody else's: no clock that was lost had gone so far.
run_on(log_key, 'ZREMRANGEBYSCORE', string.format('%.0f', now + DAY), '+inf')
local newest = read_newest_number(log_key)
local number = math.max(now, newest + 1)
redis.call('ZADD', log_key, string.format('%.0f', number), message)
local oldest = string.format('%.0f', now - KEPT_SECONDS * SECOND)
redis.call('ZREMRANGEBYSCORE', log_key, '-inf', oldest)
redis.call('EXPIRE', log_key, KEPT_SECONDS)
-- Not to be heard is no reason to forget it: others find its number.
local text = string.format('fence:%.0f %.0f ', newest, number) .. message
local answer = redis.pcall('PUBLISH', channel, text)
return type(answer) == 'table' and answer.err or ''
""")

# KEYS     log_key, clock_key
# ARGV     known         number of the newest invalidation applied so far; -1: none
#          age           microseconds to look back in that case
#          since         when that was by the fleet's time, as far as the caller knows
# RETURNS  now, newest, number of the last one that is returned, {sealed messages}
_READ_LOG = Script(f"""{READ_NUMBER}
local log_key, clock_key = unpack(KEYS)
local known, age, began = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local MOST = 1000  -- at once
local now = read_clock(clock_key)
local newest = read_newest_number(log_key)
local since = '-inf'  -- the log began anew
if known < 0 then
  -- The engine's clock may have been set ahead since then.
  since = string.format('%.0f', math.min(now - age, began > 0 and began or now))
elseif known <= newest then
  since = string.format('(%.0f', known)
end
local found = run_on(log_key, 'ZRANGEBYSCORE', since, '+inf', 'WITHSCORES', 'LIMIT', 0, MOST)
local messages, last = {{}}, newest
for index = 1, #found, 2 do messages[#messages + 1] = found[index] end
if #messages == MOST then last = math.min(tonumber(found[#found]), newest) end
return {{now, newest, last, messages}}
""")


class FleetInvalidations:
    """Sends this process's invalidations to the fleet, and applies those of other processes."""

    def __init__(
        self,
        store: TokenStore,
        on_invalidated: Callable[[str | None, str | None], None],
    ) -> None:
        self._store = store
        self._clock = store.clock
        self._on_invalidated = on_invalidated
        self._pending: dict[str, bytes] = {}  # messages by the keys of their fences
        self._applied: int | None = None  # the newest's number; None: the log was not read yet
        self._began_at = store.clock.monotonic()
        self._remembered: dict[bytes, None] = {}  # messages applied of late
        self._is_behind = self._is_reading = False
        self._told_unpublished = False
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

    def note_newest(self, number: int) -> None:
        """Take note of the number of the newest invalidation; read the log if it is not known."""
        if number != self._applied:
            self._is_behind = True
            if not self._is_reading:
                # Before the task is made: it may run at once.
                self._is_reading = True
                self._start_task(self._apply_log())

    def note_beat(self, text: bytes) -> None:
        """Take note of the number that a beat carries."""
        if (number := _parse_number(text)) is not None:
            self.note_newest(number)

    def apply_message(self, text: bytes) -> None:
        """Apply an invalidation that was heard: number of the one before, its own, sealed."""
        previous, _, rest = text.partition(b" ")
        number, _, sealed = rest.partition(b" ")
        # What does not open was published by anybody, and its numbers mean nothing.
        if self._apply(sealed) and (newest := _parse_number(number)) is not None:
            if self._applied == _parse_number(previous) and not self._is_reading:
                self._applied = newest
            else:
                self.note_newest(newest)

    def _apply(self, sealed: bytes) -> bool:
        if sealed in self._remembered:
            return True
        plain = self._store.open_message(sealed)
        if plain is None:
            return False
        if len(self._remembered) >= _MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[sealed] = None
        origin, room, user = json.loads(plain)
        if origin != self._origin:
            self._on_invalidated(room, user)
        return True

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
            arguments = message, store.channel
            try:
                keys = fence_key, store.log_key, store.clock_key
                refusal = await store.engine.run_script(_INVALIDATE, keys, arguments)
            except EngineAway:
                await self._clock.sleep(_RETRY_SECONDS)
                continue
            if refusal and not self._told_unpublished:
                self._told_unpublished = True
                right = name_refused_right(as_bytes(refusal).decode(errors="replace"), "PUBLISH")
                _log.warning("invalidations are not published (%s): others find them later", right)
            # Unless `send` replaced it meanwhile: then the new one is still to be sent.
            if self._pending.get(fence_key) is message:
                del self._pending[fence_key]

    async def _apply_log(self) -> None:
        store = self._store
        try:
            while self._is_behind:
                self._is_behind = False
                known = -1 if self._applied is None else self._applied
                age = min(self._clock.monotonic() - self._began_at, KEPT_SECONDS)
                age += _LOG_OVERLAP_SECONDS
                keys = store.log_key, store.clock_key
                asked = self._clock.monotonic()
                arguments = known, microseconds(age), store.fleet_time_ago(age)
                try:
                    answer = await store.engine.run_script(_READ_LOG, keys, arguments)
                except EngineAway:
                    # A subscription may begin again before the breaker closes.
                    self._is_behind = True
                    await self._clock.sleep(_RETRY_SECONDS)
                    continue
                fleet_now, newest, self._applied, messages = answer
                store.learn_fleet_time(fleet_now, asked)
                self._is_behind = self._is_behind or self._applied != newest
                for sealed in messages:
                    self._apply(as_bytes(sealed))
        finally:
            self._is_reading = False


def _parse_number(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) < 20 else None

"""The fleet's tokens: stock, attempts, flights and invalidations.

All keys lie in one hash slot, so that every script may look at all it needs: the namespace is the
slot's tag. For one flight there are six names, each under every sealing key:

======== ======= ===========================================================================
letter   type    holds
======== ======= ===========================================================================
``a``    string  an attempt's token
``l``    hash    the lease of who mints it: ``owner``, and ``awaited`` once others wait for it
``s``    list    tokens of the same identity that nobody was given
``f``    string  when a user in a room was invalidated; the same for a room, and for a user
======== ======= ===========================================================================

``<namespace>:log`` is a sorted set of all recent invalidations, for whoever missed one. A token is
stored as ``<born>|<end>|<sealed>``. All times are the engine's own, in microseconds. The end is
sealed too, so that nobody who may write to the engine can lengthen a life.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

from aioivschat._clock import Clock
from aioivschat._models import Attempt, ChatToken, Identity, SharingKey
from aioivschat._service.fleet import Busy, Fenced, Held
from aioivschat.redis._engine import Engine, EngineAway, Script
from aioivschat.redis._sealing import Sealer

_FENCES_KEPT = 900.0
"""Seconds that an invalidation is remembered: a token's life, and the longest queue before it."""

_LAST_WORD = 0.1
"""Seconds that closing waits for the engine to be told of invalidations."""

_POLL = 0.25, 2.0
"""Seconds after which a follower asks again unasked, at first and at last; half of it is jitter."""

_OVERLAP = 1.0
"""Seconds before the last message heard for which invalidations are asked for again: what was
published then may have been lost with the connection."""

_RETRY = 0.5
"""Seconds between attempts to tell the engine of an invalidation that it missed."""

_MAX_UNTOLD = 65_536
"""Invalidations kept for an engine that is away."""

_LOG_NAME = "invalidation"  # what the messages of the log are sealed for

_PRELUDE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local A, L, S, F, STRIDE = 0, 1, 2, 3, 6
local MOST = 60000000 -- a token's life

local fenced = 0
for at = 1, #KEYS, STRIDE do
  for _, when in ipairs(redis.call('MGET', KEYS[at+F], KEYS[at+F+1], KEYS[at+F+2])) do
    fenced = math.max(fenced, tonumber(when or 0) or 0)
  end
end

-- What is left of a token's life; none if it is of no more use, 0 if it is no token at all.
local function left(value, margin)
  local born, ending = string.match(value, '^(%d+)|(%d+)|')
  if not born then return 0 end
  if tonumber(born) < fenced or ending - now < margin then return nil end
  return math.min(ending - now, MOST)
end

local function token(margin)
  for at = 1, #KEYS, STRIDE do
    local value = redis.call('GET', KEYS[at+A])
    local life = value and left(value, margin)
    if life then return {'held', at, value, life} end
    if value then redis.call('DEL', KEYS[at+A]) end
  end
end

local function others_lease(owner)
  for at = 1, #KEYS, STRIDE do
    local holder = redis.call('HGET', KEYS[at+L], 'owner')
    if holder and holder ~= owner then
      redis.call('HSET', KEYS[at+L], 'awaited', 1)
      return {'busy', redis.call('PTTL', KEYS[at+L])}
    end
  end
end

local function release(owner, channel)
  for at = 1, #KEYS, STRIDE do
    local lease = redis.call('HMGET', KEYS[at+L], 'owner', 'awaited')
    if lease[1] == owner then
      redis.call('DEL', KEYS[at+L])
      if lease[2] then redis.call('PUBLISH', channel, 'landed:' .. KEYS[at+L]) end
    end
  end
end

local function stored(life, born, sealed)
  return string.format('%.0f|%.0f|%s', born, now + life, sealed)
end
"""

# The owner is a number nobody else has, and it is compared where the write happens: what comes
# from somebody whose lease ran out finds another owner there, and does nothing.
_CLAIM = Script(
    _PRELUDE
    + """
local owner, lease, margin = ARGV[1], ARGV[2], tonumber(ARGV[3])
if owner ~= '' then
  local taken = token(margin) or others_lease(owner)
  if taken then return {now, unpack(taken)} end
  redis.call('HSET', KEYS[1+L], 'owner', owner)
  redis.call('PEXPIRE', KEYS[1+L], lease)
end
for at = 1, #KEYS, STRIDE do
  local value = redis.call('LPOP', KEYS[at+S])
  while value do
    local life = left(value, margin)
    if life then return {now, 'stock', at, value, life} end
    value = redis.call('LPOP', KEYS[at+S])
  end
end
return {now, 'none'}
"""
)

_PUBLISH = Script(
    _PRELUDE
    + """
local owner, channel, sealed = ARGV[1], ARGV[2], ARGV[3]
local life, born, margin = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local taken = token(margin) or others_lease(owner)
if taken then
  release(owner, channel)
  return {now, unpack(taken)}
end
local fresh = born >= fenced
if fresh then
  redis.call('SET', KEYS[1+A], stored(life, born, sealed), 'PX', math.floor(life / 1000))
end
release(owner, channel)
return {now, fresh and 'none' or 'fenced'}
"""
)

_RELEASE = Script(_PRELUDE + "release(ARGV[1], ARGV[2])")

_STOCK = Script(
    _PRELUDE
    + """
local sealed, life, born = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if born >= fenced then
  redis.call('RPUSH', KEYS[1+S], stored(life, born, sealed))
  local lasting = math.max(redis.call('PTTL', KEYS[1+S]), math.floor(life / 1000))
  redis.call('PEXPIRE', KEYS[1+S], lasting)
end
"""
)

_DISCARD = Script(
    """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
)

_INVALIDATE = Script(
    """
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('SET', KEYS[1], now, 'EX', ARGV[1])
redis.call('ZADD', KEYS[2], now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[1] * 1000000)
redis.call('EXPIRE', KEYS[2], ARGV[1])
redis.call('PUBLISH', ARGV[3], 'fence:' .. ARGV[2])
"""
)

_MISSED = Script(
    """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local since = string.format('%.0f', now - ARGV[1])
return {now, redis.call('ZRANGEBYSCORE', KEYS[1], since, '+inf')}
"""
)


class RedisTokens:
    """The tokens of a fleet, sealed, on an engine.

    Args:
        engine: the engine.
        sealer: what makes names and seals values.
        namespace: who shares what; a fleet has one.
        clock: where the time comes from.
        min_remaining: seconds that a token must have left to be of use.
        invalidated: called with room and user when another process invalidated.
    """

    def __init__(
        self,
        engine: Engine,
        sealer: Sealer,
        namespace: str,
        clock: Clock,
        min_remaining: float,
        invalidated: Callable[[str | None, str | None], None],
    ) -> None:
        self.engine = engine
        self.sealer = sealer
        self.clock = clock
        self.margin = _microseconds(min_remaining)
        self.channel = f"{namespace}:events"
        self.rejected = 0
        self._slot = f"{{{namespace}}}:"
        self._invalidated = invalidated
        self._origin = secrets.token_hex(8)
        self._in_sync_at = clock.monotonic()
        self._offset: int | None = None  # of the engine's clock from ours, in microseconds
        self._gaps = 0  # in what was heard, since it was last made up for
        self._untold: dict[str, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._patient: set[asyncio.Task[None]] = set()  # those that outlast an absence
        self._followers: dict[str, set[asyncio.Event]] = {}
        engine.listen(self.channel, self._heard, self._missed)

    def flight(self, identity: Identity, key: SharingKey | None) -> RedisFlight:
        """Begin a flight."""
        return RedisFlight(self, identity, key)

    def stock(
        self,
        identity: Identity,
        token: ChatToken,
        life: float,
        age: float,
        refused: Callable[[], object],
    ) -> None:
        """Let any process claim a token that nobody was given."""

        async def give() -> None:
            try:
                await self.engine.run_script(_STOCK, names, arguments)
            except EngineAway as away:
                # What may have been stored may be claimed: it is lost rather than given twice.
                if not away.may_have_run:
                    refused()

        names = self.names(identity, None)
        sealed = self.seal(names[_STOCK_AT], token, life)
        arguments = (sealed, _microseconds(life), self.born(age))
        self.start(give())

    def invalidate(self, room: str | None, user: str | None) -> None:
        """Let every process forget the tokens of a room, of a user, or of a user in a room."""
        message = json.dumps((self._origin, room, user)).encode()
        is_first = not self._untold
        if len(self._untold) >= _MAX_UNTOLD:
            del self._untold[next(iter(self._untold))]
        self._untold[self._names("f", room, user)[0]] = self.sealer.seal(_LOG_NAME, message)
        # Last: the task may run at once, and ends when it finds nothing to tell.
        if is_first:
            self._start_patient(self._tell())

    async def settled(self) -> None:
        """Wait until everything that was given has arrived, or failed to."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """End it, after a last attempt to tell everything."""
        await self.settled()
        patient = tuple(self._patient)
        if patient:
            await asyncio.wait(patient, timeout=_LAST_WORD)
            for task in patient:
                task.cancel()
            await asyncio.wait(patient)

    # For flights.

    def names(self, identity: Identity, key: SharingKey | None) -> list[str]:
        """Return the keys of the scripts: six for each sealing key."""
        room, user, capabilities, attributes, minutes = identity
        what = room, user, sorted(capabilities), attributes, minutes
        attempt = (what, key.key) if isinstance(key, Attempt) else (what,)
        columns = (
            self._names("a", *attempt),
            self._names("l", *attempt),
            self._names("s", *what),
            self._names("f", room, user),
            self._names("f", room, None),
            self._names("f", None, user),
        )
        return [name for row in zip(*columns, strict=True) for name in row]

    def seal(self, name: str, token: ChatToken, life: float) -> bytes:
        """Seal a token for its name, with its end."""
        expires = token.token_expires.isoformat(), token.session_expires.isoformat()
        end = self.born(-life)
        return self.sealer.seal(name, json.dumps((token.token, *expires, end)).encode())

    def unseal(self, name: str, value: bytes, life: float, reused: bool, now: int) -> Held | None:
        """Return the token of a stored value, or count it as rejected.

        Args:
            name: where it was stored.
            value: what was stored.
            life: seconds that it lives by what is written beside it, which anybody may have.
            reused: whether it is an attempt's.
            now: the engine's time.
        """
        plain = self.sealer.open(name, value.rpartition(b"|")[2])
        if plain is not None:
            token, token_expires, session_expires, end = json.loads(plain)
            if end:  # or else nobody knew the engine's time
                life = min(life, (end - now) / 1e6)
            if life >= self.margin / 1e6:
                parse = datetime.fromisoformat
                found = ChatToken(token, parse(token_expires), parse(session_expires), reused)
                return Held(found, life)
        self.rejected += 1
        return None

    def learn(self, engine_now: int) -> None:
        """Take note of an engine's time that has just come.

        It came a little later than it was, so a moment that is told to the engine by it is a
        little too early: what began before an invalidation never looks as if it began after.
        """
        self._offset = int(engine_now) - _microseconds(self.clock.monotonic())

    def born(self, age: float) -> int:
        """Return by the engine's clock when something began, so many seconds ago."""
        if self._offset is None:
            return 0  # before every invalidation
        return self._offset + _microseconds(self.clock.monotonic() - age)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that only :meth:`settled` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_patient(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._patient.add(task)
        task.add_done_callback(self._patient.discard)

    def follow(self, leases: list[str], landed: asyncio.Event) -> None:
        """Set an event whenever one of the leases is given back."""
        for lease in leases:
            self._followers.setdefault(lease, set()).add(landed)

    def unfollow(self, leases: list[str], landed: asyncio.Event) -> None:
        """Undo :meth:`follow`."""
        for lease in leases:
            followers = self._followers.get(lease, set())
            followers.discard(landed)
            if not followers:
                self._followers.pop(lease, None)

    def _names(self, letter: str, *parts: object) -> list[str]:
        return [f"{self._slot}{letter}:{name}" for name in self.sealer.names(letter, *parts)]

    # Messages.

    def _heard(self, message: bytes) -> None:
        if not self._gaps:
            self._in_sync_at = self.clock.monotonic()
        kind, _, text = _raw(message).partition(b":")
        if kind == b"landed":
            for landed in self._followers.get(text.decode(errors="replace"), ()):
                landed.set()
        elif kind == b"fence":
            self._obey(text)

    def _obey(self, sealed: bytes) -> None:
        plain = self.sealer.open(_LOG_NAME, sealed)
        if plain is None:
            self.rejected += 1
            return
        origin, room, user = json.loads(plain)
        if origin != self._origin:
            self._invalidated(room, user)

    def _missed(self) -> None:
        """Ask for the invalidations of the time without a connection."""
        for followers in self._followers.values():
            for landed in followers:
                landed.set()
        self._gaps += 1
        if self._gaps == 1:
            self._start_patient(self._catch_up())

    async def _catch_up(self) -> None:
        while gaps := self._gaps:
            now = self.clock.monotonic()
            since = _microseconds(min(now - self._in_sync_at, _FENCES_KEPT) + _OVERLAP)
            try:
                answer = await self.engine.run_script(_MISSED, [f"{self._slot}log"], [since])
            except EngineAway:
                # Notifications may be back before the breaker closes.
                await self.clock.sleep(_RETRY)
                continue
            self.learn(answer[0])
            for sealed in answer[1]:
                self._obey(_raw(sealed))
            if gaps == self._gaps:
                self._gaps, self._in_sync_at = 0, now

    async def _tell(self) -> None:
        """Tell the engine of invalidations, however long it is away."""
        while self._untold:
            fence, sealed = next(iter(self._untold.items()))
            arguments = (int(_FENCES_KEPT), sealed, self.channel)
            try:
                await self.engine.run_script(_INVALIDATE, [fence, f"{self._slot}log"], arguments)
            except EngineAway:
                await self.clock.sleep(_RETRY)
                continue
            # The same may have been invalidated again meanwhile.
            if self._untold.get(fence) is sealed:
                del self._untold[fence]


_ATTEMPT_AT, _LEASE_AT, _STOCK_AT, _STRIDE = 0, 1, 2, 6


class RedisFlight:
    """One flight as the fleet sees it.

    Args:
        tokens: whose flight it is.
        identity: what is asked for.
        key: what callers agree on when they share the token; ``None``: nobody does.
    """

    def __init__(self, tokens: RedisTokens, identity: Identity, key: SharingKey | None) -> None:
        self._tokens = tokens
        self._names = tokens.names(identity, key)
        self._leases = self._names[_LEASE_AT::_STRIDE]
        self._owner = secrets.token_hex(8) if key is not None else ""
        self._leased = False
        self._landed = asyncio.Event()
        self._following = False
        self._polls = 0
        self._lease_left = 0.0

    async def claim(self, lease: float) -> Held | Busy | None:
        """Ask for the attempt's token, for one from the stock, or else for the right to mint."""
        tokens = self._tokens
        if self._owner and not self._following:
            # Before the question, or a landing right after it would go unheard.
            self._following = True
            tokens.follow(self._leases, self._landed)
        # Even a trip that fails may have taken it.
        self._leased = bool(self._owner)
        answer = await self._ask(_CLAIM, self._owner, int(lease * 1000), tokens.margin)
        taken = isinstance(answer, Busy) or (isinstance(answer, Held) and answer.token.reused)
        self._leased = self._leased and not taken
        assert not isinstance(answer, Fenced)  # noqa: S101 (only what is published is)
        return answer

    async def landed(self) -> None:
        """Wait until the one who is at it has landed, or until it is time to ask again."""
        first, last = _POLL
        limit = min(last, first * 2**self._polls)
        self._polls += 1
        # Right after the lease ends, followers come one by one; the first of them takes it.
        limit = min(limit, self._lease_left + first) * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._landed.wait()
        self._landed.clear()

    async def publish(
        self, token: ChatToken, life: float, age: float
    ) -> Held | Busy | Fenced | None:
        """Make a token the attempt's, for every process."""
        tokens = self._tokens
        answer = await self._ask(
            _PUBLISH,
            self._owner,
            tokens.channel,
            tokens.seal(self._names[_ATTEMPT_AT], token, life),
            _microseconds(life),
            tokens.born(age),
            tokens.margin,
        )
        self._leased = False
        return answer

    def close(self) -> None:
        """End it, giving back a right to mint that was not used."""
        tokens = self._tokens
        if self._following:
            tokens.unfollow(self._leases, self._landed)
            self._following = False
        if self._leased:
            self._leased = False
            tokens.start(self._release())

    async def _release(self) -> None:
        # Failing that, it runs out.
        with contextlib.suppress(EngineAway):
            await self._tokens.engine.run_script(
                _RELEASE, self._names, (self._owner, self._tokens.channel)
            )

    async def _ask(
        self, script: Script, *arguments: bytes | str | int
    ) -> Held | Busy | Fenced | None:
        """Ask, and once more whenever what was found is no token; such a value is gone then."""
        tokens = self._tokens
        while True:
            try:
                now, kind, *found = await tokens.engine.run_script(script, self._names, arguments)
            except EngineAway:
                return None
            tokens.learn(now)
            match _raw(kind):
                case b"none":
                    return None
                case b"fenced":
                    return Fenced()
                case b"busy":
                    self._lease_left = max(0.0, found[0] / 1000)
                    return Busy()
            first, value, life = found[0] - 1, _raw(found[1]), found[2] / 1e6
            stocked = _raw(kind) == b"stock"
            name = self._names[first + (_STOCK_AT if stocked else _ATTEMPT_AT)]
            held = tokens.unseal(name, value, life, not stocked, int(now))
            if held is not None:
                return held
            if not stocked:
                with contextlib.suppress(EngineAway):
                    await tokens.engine.run_script(_DISCARD, [name], [value])


def _microseconds(seconds: float) -> int:
    return max(0, int(seconds * 1e6))


def _raw(value: bytes | str) -> bytes:
    """Return an answer as it was: the user's own client may decode."""
    return value.encode() if isinstance(value, str) else value

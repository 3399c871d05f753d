"""How the fleet's tokens lie in the engine: under which keys, in which form, by which time.

All keys share a hash slot, by the tag ``{namespace}``, so that a script may read all it needs.

======== ======= ===========================================================================
letter   type    holds
======== ======= ===========================================================================
``a``    string  the token of an attempt (or of an identity, for plain calls)
``l``    hash    the lease for it: ``owner``, the end of it as ``until``, and ``awaited`` once
                 another member waits
``s``    list    stock of an identity
``f``    string  a fence: when a user in a room, a room, or a user was invalidated last
======== ======= ===========================================================================

``{namespace}:log`` is a sorted set of all recent invalidations, for members that missed a message.
Each has a number that none before it had: its time, or one more than the newest.
``{namespace}:clock`` is what the fleet's time is told by.

A token is stored as ``<begun>|<end>|<sealed>``: when its flight began and when its life ends, in
microseconds of the fleet's time. The end is sealed too, so that nobody who can write to the
engine can lengthen a life.
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from aioivschat._clock import Clock
from aioivschat._models import Attempt, ChatToken, Identity, SharingKey
from aioivschat._service.fleet import Held
from aioivschat.redis._engine import Engine
from aioivschat.redis._fleet_time import FLEET_TIME, KEPT_SECONDS
from aioivschat.redis._sealing import Sealer

_MESSAGE_NAME = "invalidation"  # the name that all messages are sealed for

_LEAP_MICROSECONDS = 100_000
"""By how much the fleet's time gains on our clock if the engine's was set ahead, and no answer was
only faster than the one before."""


class KeyRow(NamedTuple):
    """The keys of one flight under one sealing key, in the order that :data:`PRELUDE` reads."""

    attempt: str
    lease: str
    stock: str
    user_in_room_fence: str
    room_fence: str
    user_fence: str


READ_NUMBER = f"""{FLEET_TIME}
-- Returns the number of the newest invalidation; 0 without any.
local function read_newest_number(log_key)
  local newest = run_on(log_key, 'ZREVRANGE', 0, 0, 'WITHSCORES')[2]
  return math.min(math.max(tonumber(newest or 0) or 0, 0), 2 ^ 53)
end
"""
"""What scripts begin with that tell a process whether it has missed an invalidation."""

PRELUDE = f"""{READ_NUMBER}
-- KEYS are the clock's, the log of invalidations, and rows as KeyRow has them, one for each sealing
-- key; the first row is of the key that seals.
local now, newest = read_clock(KEYS[1]), read_newest_number(KEYS[2])
local rows = {{}}
for first = 3, #KEYS, 6 do
  local attempt, lease, stock, user_in_room_fence, room_fence, user_fence =
    unpack(KEYS, first, first + 5)
  rows[#rows + 1] = {{attempt = attempt, lease = lease, stock = stock,
                      fences = {{user_in_room_fence, room_fence, user_fence}}}}
end
local own_row = rows[1]

local LONGEST_LIFE, LONGEST_LEASE = 60000000, {KEPT_SECONDS}000000

-- Fences of a later time, whose clock was lost or which somebody else has written, are of now.
local fenced_at = 0
for _, row in ipairs(rows) do
  for index, moment in ipairs(redis.call('MGET', unpack(row.fences))) do
    moment = tonumber(moment or 0) or 0
    if moment > now then
      moment = now
      redis.call('SET', row.fences[index], string.format('%.0f', now), 'EX', {KEPT_SECONDS})
    end
    fenced_at = math.max(fenced_at, moment)
  end
end

-- Returns nil for a token that is fenced, has less life left than the margin, or is of a later time
-- (its clock was lost); 0 for a value that is no token, so that the caller gets it and counts it as
-- rejected.
local function life_left(value, margin)
  local begun, ending = string.match(value, '^(%d+)|(%d+)|')
  if not begun then return 0 end
  begun = tonumber(begun)
  if begun < fenced_at or begun > now or ending - now < margin then return nil end
  return math.min(ending - now, LONGEST_LIFE)
end

local function find_attempts_token(margin)
  for index, row in ipairs(rows) do
    local value = run_on(row.attempt, 'GET')
    local life = value and life_left(value, margin)
    if life then return {{'held', index, value, life}} end
    if value then redis.call('DEL', row.attempt) end
  end
end

local function find_lease_of_another(owner)
  for _, row in ipairs(rows) do
    local holder, ending = unpack(run_on(row.lease, 'HMGET', 'owner', 'until'))
    local left = within(ending, now, now + LONGEST_LEASE, now) - now
    if holder and holder ~= owner and left > 0 then
      redis.call('HSET', row.lease, 'awaited', 1)
      return {{'busy', math.ceil(left / 1000)}}
    end
  end
end

-- A lease that ran out may have another owner by now: then nothing happens.
local function release_lease(owner, channel)
  for _, row in ipairs(rows) do
    local holder, awaited = unpack(run_on(row.lease, 'HMGET', 'owner', 'awaited'))
    if holder == owner then
      redis.call('DEL', row.lease)
      if awaited then redis.pcall('PUBLISH', channel, 'landed:' .. row.lease) end
    end
  end
end

local function encode(life, begun, sealed)
  return string.format('%.0f|%.0f|%s', begun, now + life, sealed)
end
"""
"""What the scripts that read or write tokens begin with."""


class TokenStore:
    """Names and seals what one process stores, and opens what others have stored.

    Attributes:
        margin: microseconds that a token must have left to be of use.
        rejected: how many values and messages were found that could not be opened.
    """

    def __init__(
        self, engine: Engine, sealer: Sealer, namespace: str, clock: Clock, min_remaining: float
    ) -> None:
        self.engine = engine
        self.channel = f"{namespace}:events"
        self.log_key = f"{{{namespace}}}:log"
        self.clock_key = f"{{{namespace}}}:clock"
        self.margin = microseconds(min_remaining)
        self.rejected = 0
        self._sealer = sealer
        self._tag = f"{{{namespace}}}"
        self.clock = clock
        # Of the fleet's time from our clock, in microseconds: now, and before it leapt ahead.
        self._clock_offset: int | None = None
        self._earlier_offset, self._leapt_at = 0, -math.inf

    def key_rows(self, identity: Identity, key: SharingKey | None) -> list[KeyRow]:
        """Return the keys of a flight, a row for each sealing key."""
        room, user, capabilities, attributes, minutes = identity.members()
        what = room, user, sorted(capabilities), attributes, minutes
        attempt = (what, key.key) if isinstance(key, Attempt) else (what,)
        columns = (
            self._make_names("a", *attempt),
            self._make_names("l", *attempt),
            self._make_names("s", *what),
            self._make_names("f", room, user),
            self._make_names("f", room, None),
            self._make_names("f", None, user),
        )
        return [KeyRow(*row) for row in zip(*columns, strict=True)]

    def script_keys(self, rows: list[KeyRow]) -> list[str]:
        """Return the keys of a script that begins with :data:`PRELUDE`."""
        return [self.clock_key, self.log_key, *chain(*rows)]

    def fence_key(self, room: str | None, user: str | None) -> str:
        """Return the key of the fence of a room, of a user, or of a user in a room."""
        return self._make_names("f", room, user)[0]

    def _make_names(self, letter: str, *parts: object) -> list[str]:
        return [f"{self._tag}:{letter}:{name}" for name in self._sealer.names(letter, *parts)]

    def seal_token(self, name: str, token: ChatToken, life: float) -> bytes:
        """Seal a token for the key that it will be stored under, with the end of its life."""
        expires = token.token_expires.isoformat(), token.session_expires.isoformat()
        end = self.fleet_time_ago(-life)
        return self._sealer.seal(name, json.dumps((token.token, *expires, end)).encode())

    def open_token(
        self, name: str, value: bytes, life: float, reused: bool, now: int
    ) -> Held | None:
        """Return the token of a stored value, or count the value as rejected.

        Args:
            name: the key it was stored under.
            value: what was stored.
            life: seconds that it lives by its unsealed end, which others may have forged.
            reused: whether it is an attempt's.
            now: the fleet's time, in microseconds.
        """
        plain = self._sealer.open(name, value.rpartition(b"|")[2])
        if plain is not None:
            token, token_expires, session_expires, end = json.loads(plain)
            if end:  # 0 if whoever stored it did not know the fleet's time
                life = min(life, (end - now) / 1e6)
            if life >= self.margin / 1e6:
                parse = datetime.fromisoformat
                found = ChatToken(token, parse(token_expires), parse(session_expires), reused)
                return Held(found, life)
        self.rejected += 1
        return None

    def seal_message(self, message: bytes) -> bytes:
        """Seal a message about an invalidation."""
        return self._sealer.seal(_MESSAGE_NAME, message)

    def open_message(self, sealed: bytes) -> bytes | None:
        """Return a message about an invalidation; ``None`` if it is none, which is counted."""
        message = self._sealer.open(_MESSAGE_NAME, sealed)
        self.rejected += message is None
        return message

    def learn_fleet_time(self, fleet_now: int, asked: float) -> None:
        """Take note of the fleet's time from an answer that has just come.

        The answer was under way for a moment, so :meth:`fleet_time_ago` is a little early: what
        began before an invalidation never seems to have begun after it. As early as what a quicker
        answer has told, where both may be true.

        Args:
            fleet_now: the fleet's time, in microseconds.
            asked: when the question was sent, in monotonic seconds.
        """
        offset = int(fleet_now) - microseconds(self.clock.monotonic())
        latest = int(fleet_now) - microseconds(asked)
        if self._clock_offset is not None and offset <= self._clock_offset <= latest:
            return
        if self._clock_offset is not None and offset > self._clock_offset + _LEAP_MICROSECONDS:
            self._earlier_offset, self._leapt_at = self._clock_offset, self.clock.monotonic()
        self._clock_offset = offset

    def fleet_time_ago(self, seconds: float) -> int:
        """Return the fleet's time some seconds ago, in microseconds; 0 if it is not known yet."""
        if self._clock_offset is None:
            return 0  # before every invalidation
        moment, offset = self.clock.monotonic() - seconds, self._clock_offset
        if moment < self._leapt_at:
            offset = min(offset, self._earlier_offset)
        return offset + microseconds(moment)


def microseconds(seconds: float) -> int:
    """Return whole microseconds, 0 at least."""
    return max(0, int(seconds * 1e6))


def as_bytes(value: bytes | str) -> bytes:
    """Return a part of an answer as it was sent: a user's own client may decode its answers."""
    return value.encode() if isinstance(value, str) else value

"""How the fleet's tokens lie in the engine: under which keys, in which form, on whose clock.

All keys share a hash slot, by the tag ``{namespace}``, so that a script may read all it needs.

======== ======= ===========================================================================
letter   type    holds
======== ======= ===========================================================================
``a``    string  the token of an attempt (or of an identity, for plain calls)
``l``    hash    the lease for it: ``owner``, and ``awaited`` once another member waits
``s``    list    stock of an identity
``f``    string  a fence: when a user in a room, a room, or a user was invalidated last
======== ======= ===========================================================================

``{namespace}:log`` is a sorted set of all recent invalidations, for members that missed a message.
Each has a number that none before it had: its time, or one more than the newest, as the clock may
go back.

A token is stored as ``<begun>|<end>|<sealed>``: when its flight began and when its life ends, in
microseconds of the engine's clock. The end is sealed too, so that nobody who can write to the
engine can lengthen a life.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import NamedTuple

from aioivschat._clock import Clock
from aioivschat._models import Attempt, ChatToken, Identity, SharingKey
from aioivschat._service.fleet import Held
from aioivschat.redis._engine import RUN_ON, Engine
from aioivschat.redis._sealing import Sealer

_MESSAGE_NAME = "invalidation"  # the name that all messages are sealed for


class KeyRow(NamedTuple):
    """The keys of one flight under one sealing key, in the order that :data:`PRELUDE` reads."""

    attempt: str
    lease: str
    stock: str
    user_in_room_fence: str
    room_fence: str
    user_fence: str


READ_NUMBER = f"""{RUN_ON}
-- Returns the number of the newest invalidation; 0 without any.
local function read_newest_number(log_key)
  local newest = run_on(log_key, 'ZREVRANGE', 0, 0, 'WITHSCORES')[2]
  return math.min(math.max(tonumber(newest or 0) or 0, 0), 2 ^ 53)
end
"""
"""What scripts begin with that tell a process whether it has missed an invalidation."""

PRELUDE = f"""{READ_NUMBER}
-- KEYS are the log of invalidations, and rows as KeyRow has them, one for each sealing key; the
-- first row is of the key that seals.
local newest = read_newest_number(KEYS[1])
local rows = {{}}
for first = 2, #KEYS, 6 do
  local attempt, lease, stock, user_in_room_fence, room_fence, user_fence =
    unpack(KEYS, first, first + 5)
  rows[#rows + 1] = {{attempt = attempt, lease = lease, stock = stock,
                      fences = {{user_in_room_fence, room_fence, user_fence}}}}
end
local own_row = rows[1]

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local LONGEST_LIFE = 60000000

local fenced_at = 0
for _, row in ipairs(rows) do
  for _, moment in ipairs(redis.call('MGET', unpack(row.fences))) do
    fenced_at = math.max(fenced_at, tonumber(moment or 0) or 0)
  end
end

-- Returns nil for a token that is fenced, has less life left than the margin, or is of a later time
-- (by the clock of the server before a failover); 0 for a value that is no token, so that
-- the caller gets it and counts it as rejected.
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
    local holder = run_on(row.lease, 'HGET', 'owner')
    if holder and holder ~= owner then
      redis.call('HSET', row.lease, 'awaited', 1)
      return {{'busy', redis.call('PTTL', row.lease)}}
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
        self.margin = microseconds(min_remaining)
        self.rejected = 0
        self._sealer = sealer
        self._tag = f"{{{namespace}}}"
        self._clock = clock
        self._clock_offset: int | None = None  # of the engine's clock from ours, in microseconds

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

    def fence_key(self, room: str | None, user: str | None) -> str:
        """Return the key of the fence of a room, of a user, or of a user in a room."""
        return self._make_names("f", room, user)[0]

    def _make_names(self, letter: str, *parts: object) -> list[str]:
        return [f"{self._tag}:{letter}:{name}" for name in self._sealer.names(letter, *parts)]

    def seal_token(self, name: str, token: ChatToken, life: float) -> bytes:
        """Seal a token for the key that it will be stored under, with the end of its life."""
        expires = token.token_expires.isoformat(), token.session_expires.isoformat()
        end = self.engine_time_ago(-life)
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
            now: the engine's time, in microseconds.
        """
        plain = self._sealer.open(name, value.rpartition(b"|")[2])
        if plain is not None:
            token, token_expires, session_expires, end = json.loads(plain)
            if end:  # 0 if whoever stored it did not know the engine's time
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

    def learn_engine_time(self, engine_now: int) -> None:
        """Take note of the engine's time, in microseconds, from an answer that has just come.

        The answer was under way for a moment, so :meth:`engine_time_ago` is a little early: what
        began before an invalidation never seems to have begun after it.
        """
        self._clock_offset = int(engine_now) - microseconds(self._clock.monotonic())

    def engine_time_ago(self, seconds: float) -> int:
        """Return the engine's time some seconds ago, in microseconds; 0 if it is not known yet."""
        if self._clock_offset is None:
            return 0  # before every invalidation
        return self._clock_offset + microseconds(self._clock.monotonic() - seconds)


def microseconds(seconds: float) -> int:
    """Return whole microseconds, 0 at least."""
    return max(0, int(seconds * 1e6))


def as_bytes(value: bytes | str) -> bytes:
    """Return a part of an answer as it was sent: a user's own client may decode its answers."""
    return value.encode() if isinstance(value, str) else value

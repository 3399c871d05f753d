"""The fleet's tokens: attempts, leases and stock.

A member that needs a token claims it: the attempt's token if there is one, else a token in stock,
else a lease, the right to mint. While one member has the lease, the others wait: for the message
that its flight has landed, or until it is time to claim again. Who has minted publishes the token,
which ends the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from aioivschat._clock import Clock
from aioivschat._contexts import start_task, time_limit
from aioivschat._models import ChatToken, Identity, SharingKey
from aioivschat._service.fleet import Busy, Fenced, Held
from aioivschat.redis._channel import FleetChannel
from aioivschat.redis._engine import RUN_ON, Engine, EngineAway, Script
from aioivschat.redis._invalidations import FleetInvalidations
from aioivschat.redis._sealing import Sealer
from aioivschat.redis._token_store import PRELUDE, TokenStore, as_bytes, microseconds

_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.25, 2.0
"""Seconds after which a member that waits for another's flight claims again without a message; at
first and at most. Half of it is jitter."""

_LONGEST_LIFE_SECONDS = 60.0
"""Seconds that a token lives, so that this process may hold it after its last flight."""

# The owner of a lease is a number that nobody else has. The scripts compare it where they write, so
# that a member whose lease ran out changes nothing of its successor's.

# KEYS     clock_key, log_key, rows: see PRELUDE
# ARGV     owner           of the lease; empty: the token is for nobody else, so none is needed
#          lease_ms        how long the lease holds
#          margin          microseconds that a token must have left
# RETURNS  now, newest, and
#          'held', row, value, life    the attempt's token
#          'busy', lease_ms            another member has the lease
#          'stock', row, value, life   a token that is the caller's alone
#          'none'                      the caller is to mint
_CLAIM = Script(f"""{PRELUDE}
local owner, margin = ARGV[1], tonumber(ARGV[3])
local lease = math.min(ARGV[2] * 1000, LONGEST_LEASE)
if owner ~= '' then
  local taken = find_attempts_token(margin) or find_lease_of_another(owner)
  if taken then return {{now, newest, unpack(taken)}} end
  redis.call('HSET', own_row.lease, 'owner', owner, 'until', string.format('%.0f', now + lease))
  redis.call('PEXPIRE', own_row.lease, math.floor(lease / 1000))
end
for index, row in ipairs(rows) do
  local value = run_on(row.stock, 'LPOP')
  while value do
    local life = life_left(value, margin)
    if life then return {{now, newest, 'stock', index, value, life}} end
    value = run_on(row.stock, 'LPOP')
  end
end
return {{now, newest, 'none'}}
""")

# KEYS     clock_key, log_key, rows: see PRELUDE
# ARGV     owner           of the lease
#          channel         where those that wait are told
#          sealed          the token
#          life            microseconds that it still lives
#          begun           when its flight began, by the fleet's time
#          margin          microseconds that a token must have left
# RETURNS  now, newest, and
#          'held', row, value, life    the attempt has a token already
#          'busy', lease_ms            another member has the lease
#          'fenced'                    invalidated since `begun`, so not stored
#          'none'                      stored
_PUBLISH = Script(f"""{PRELUDE}
local owner, channel, sealed = ARGV[1], ARGV[2], ARGV[3]
local life, begun, margin = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local taken = find_attempts_token(margin) or find_lease_of_another(owner)
if taken then
  release_lease(owner, channel)
  return {{now, newest, unpack(taken)}}
end
local valid = begun >= fenced_at
if valid then
  redis.call('SET', own_row.attempt, encode(life, begun, sealed), 'PX', math.floor(life / 1000))
end
release_lease(owner, channel)
return {{now, newest, valid and 'none' or 'fenced'}}
""")

# KEYS     clock_key, log_key, rows: see PRELUDE
# ARGV     owner, channel  as for _PUBLISH
# RETURNS  nothing
_RELEASE = Script(f"""{PRELUDE}
local owner, channel = ARGV[1], ARGV[2]
release_lease(owner, channel)
""")

# KEYS     clock_key, log_key, rows: see PRELUDE
# ARGV     sealed, life, begun  as for _PUBLISH
# RETURNS  nothing
_STOCK = Script(f"""{PRELUDE}
local sealed, life, begun = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if begun >= fenced_at then
  run_on(own_row.stock, 'RPUSH', encode(life, begun, sealed))
  local lasting = math.max(redis.call('PTTL', own_row.stock), math.floor(life / 1000))
  redis.call('PEXPIRE', own_row.stock, lasting)
end
""")

# KEYS     attempt
# ARGV     value           deleted if it is still there
# RETURNS  nothing
_DISCARD = Script(f"""{RUN_ON}
local attempt, value = KEYS[1], ARGV[1]
if run_on(attempt, 'GET') == value then redis.call('DEL', attempt) end
""")


class RedisTokens:
    """The tokens of a fleet, as one of its processes sees them."""

    def __init__(
        self,
        engine: Engine,
        sealer: Sealer,
        namespace: str,
        clock: Clock,
        min_remaining: float,
        on_invalidated: Callable[[str | None, str | None], None],
        on_hearing: Callable[[str], None],
    ) -> None:
        self.store = TokenStore(engine, sealer, namespace, clock, min_remaining)
        self._invalidations = FleetInvalidations(self.store, on_invalidated)
        self._used_at = -math.inf
        self._channel = FleetChannel(
            self.store,
            self._invalidations,
            on_message=self._dispatch_message,
            on_gap=self._wake_all_that_wait,
            on_hearing=on_hearing,
            in_use=lambda: clock.monotonic() - self._used_at < _LONGEST_LIFE_SECONDS,
        )
        self._landing_events: dict[str, set[asyncio.Event]] = {}  # by the keys of leases
        self._tasks: set[asyncio.Task[None]] = set()

    def start_listening(self) -> None:
        """Begin to receive the messages of other members, on the running event loop."""
        self._channel.open()

    @property
    def rejected(self) -> int:
        """How many values were found that could not be opened."""
        return self.store.rejected + self.store.engine.rejected

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
        self.note_use()
        store = self.store
        rows = store.key_rows(identity, None)
        sealed = store.seal_token(rows[0].stock, token, life)
        arguments = (sealed, microseconds(life), store.fleet_time_ago(age))

        async def push_token() -> None:
            try:
                await store.engine.run_script(_STOCK, store.script_keys(rows), arguments)
            except EngineAway as away:
                # The script may have run: do not keep the token here as well.
                if not away.may_have_run:
                    refused()

        self.start_task(push_token())

    def invalidate(self, room: str | None, user: str | None) -> None:
        """Let every process forget the tokens of a room, of a user, or of a user in a room."""
        self._invalidations.send(room, user)

    async def settled(self) -> None:
        """Wait until every token and lease that was to go to the engine has gone, or failed to."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Send what is to go to the engine, but do not wait for an engine that is away."""
        await self.settled()
        await self._channel.aclose()
        await self._invalidations.aclose()

    # For flights.

    def note_newest(self, number: int) -> None:
        """Take note of the number of the newest invalidation, from an answer of the engine."""
        self._invalidations.note_newest(number)

    def note_use(self) -> None:
        """Note that this process may hold a token from now on."""
        self._used_at = self.store.clock.monotonic()

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that only :meth:`settled` waits for."""
        self._tasks.add(start_task(work, self._tasks.discard))

    def watch_leases(self, leases: list[str], landed: asyncio.Event) -> None:
        """Set an event whenever one of the leases ends with a message."""
        for lease in leases:
            self._landing_events.setdefault(lease, set()).add(landed)

    def unwatch_leases(self, leases: list[str], landed: asyncio.Event) -> None:
        """Undo :meth:`watch_leases`."""
        for lease in leases:
            events = self._landing_events.get(lease, set())
            events.discard(landed)
            if not events:
                self._landing_events.pop(lease, None)

    # Messages.

    def _dispatch_message(self, kind: bytes, text: bytes) -> None:
        match kind:
            case b"landed":
                for landed in self._landing_events.get(text.decode(errors="replace"), ()):
                    landed.set()
            case b"fence":
                self._invalidations.apply_message(text)
            case b"alive":
                self._invalidations.note_beat(text)

    def _wake_all_that_wait(self) -> None:
        """Act as if every message about a flight had been missed that may have been."""
        for events in self._landing_events.values():
            for landed in events:
                landed.set()


class RedisFlight:
    """One flight as the fleet sees it."""

    def __init__(self, tokens: RedisTokens, identity: Identity, key: SharingKey | None) -> None:
        self._tokens = tokens
        self._store = tokens.store
        self._rows = self._store.key_rows(identity, key)
        self._keys = self._store.script_keys(self._rows)
        self._leases = [row.lease for row in self._rows]
        self._owner = secrets.token_hex(8) if key is not None else ""
        self._may_have_lease = False
        self._landed = asyncio.Event()
        self._watching = False
        self._polls = 0
        self._lease_left_seconds = 0.0  # of another member's

    async def claim(self, lease: float) -> Held | Busy | None:
        """Ask for the attempt's token, for one from the stock, or else for the right to mint."""
        if self._owner and not self._watching:
            # Before the claim: a flight that lands right after it publishes only one message.
            self._watching = True
            self._tokens.watch_leases(self._leases, self._landed)
        # Before the claim: without an answer, the engine may have given the lease all the same.
        self._may_have_lease = bool(self._owner)
        answer = await self._ask_engine(_CLAIM, self._owner, int(lease * 1000), self._store.margin)
        if isinstance(answer, Busy) or (isinstance(answer, Held) and answer.token.reused):
            self._may_have_lease = False
        assert not isinstance(answer, Fenced)  # noqa: S101 (only _PUBLISH returns it)
        return answer

    async def landed(self) -> None:
        """Wait until the flight of another member has landed, or until it is time to ask again."""
        limit = min(_LAST_POLL_SECONDS, _FIRST_POLL_SECONDS * 2**self._polls)
        self._polls += 1
        # Soon after a lease ran out, those that wait claim one after the other; the first gets it.
        limit = min(limit, self._lease_left_seconds + _FIRST_POLL_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with time_limit(limit * random.uniform(0.5, 1.0)):  # noqa: S311 (jitter)
                await self._landed.wait()
        self._landed.clear()

    async def publish(
        self, token: ChatToken, life: float, age: float
    ) -> Held | Busy | Fenced | None:
        """Make a token the attempt's, for every process."""
        store = self._store
        answer = await self._ask_engine(
            _PUBLISH,
            self._owner,
            store.channel,
            store.seal_token(self._rows[0].attempt, token, life),
            microseconds(life),
            store.fleet_time_ago(age),
            store.margin,
        )
        self._may_have_lease = False
        return answer

    def close(self) -> None:
        """End the flight, giving back a lease that was not used."""
        self._tokens.note_use()
        if self._watching:
            self._tokens.unwatch_leases(self._leases, self._landed)
            self._watching = False
        if self._may_have_lease:
            self._may_have_lease = False
            self._tokens.start_task(self._release_lease())

    async def _release_lease(self) -> None:
        with contextlib.suppress(EngineAway):  # then the lease runs out
            arguments = self._owner, self._store.channel
            await self._store.engine.run_script(_RELEASE, self._keys, arguments)

    async def _ask_engine(
        self, script: Script, *arguments: bytes | str | int
    ) -> Held | Busy | Fenced | None:
        """Run a claim or a publication, again after each value found that cannot be opened."""
        store = self._store
        while True:
            asked = store.clock.monotonic()
            try:
                answer = await store.engine.run_script(script, self._keys, arguments)
            except EngineAway:
                return None
            now, newest, kind, *found = answer
            store.learn_fleet_time(now, asked)
            self._tokens.note_newest(newest)
            match as_bytes(kind):
                case b"none":
                    return None
                case b"fenced":
                    return Fenced()
                case b"busy":
                    self._lease_left_seconds = max(0.0, found[0] / 1000)
                    return Busy()
            row, value, life = self._rows[found[0] - 1], as_bytes(found[1]), found[2] / 1e6
            is_stock = as_bytes(kind) == b"stock"
            name = row.stock if is_stock else row.attempt
            held = store.open_token(name, value, life, not is_stock, int(now))
            if held is not None:
                return held
            if not is_stock:  # a token in stock was taken out by the claim
                with contextlib.suppress(EngineAway):
                    await store.engine.run_script(_DISCARD, [name], [value])

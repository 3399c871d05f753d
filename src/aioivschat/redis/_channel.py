"""Whether this process hears the fleet's messages: proved every few seconds by what it hears.

A process that heard nothing for a while publishes a beat, which all others hear too. One that does
not hear its own is deaf: it asks for invalidations instead, until it hears something again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from aioivschat._contexts import start_task, time_limit
from aioivschat.redis._commands import let_loop_catch_up
from aioivschat.redis._engine import EngineAway, EngineState, Script
from aioivschat.redis._invalidations import FleetInvalidations
from aioivschat.redis._subscription import SILENCE_SECONDS, Subscription, name_refused_right
from aioivschat.redis._token_store import READ_NUMBER, TokenStore, as_bytes

_BEAT_SECONDS = 2.0, 3.0
"""Bounds of the random time without a message after which a process beats. The first of a fleet
that does is heard by all, so the beats do not grow with its number."""

_ECHO_SECONDS = 0.75
"""Seconds within which a beat is heard; also between two questions of a process that is deaf."""

# KEYS     log_key
# ARGV     channel
# RETURNS  the newest invalidation's number, why the beat was not published; empty if it was
_BEAT = Script(f"""{READ_NUMBER}
local log_key, channel = KEYS[1], ARGV[1]
local newest = read_newest_number(log_key)
local answer = redis.pcall('PUBLISH', channel, string.format('alive:%.0f', newest))
return {{newest, type(answer) == 'table' and answer.err or ''}}
""")


class FleetChannel:
    """The channel of a fleet, as one of its processes hears it.

    Args:
        store: whose engine and channel.
        invalidations: told the number of the newest invalidation.
        on_message: called with kind and text of each message.
        on_gap: called when messages may have been missed.
        on_hearing: called when this process hears the channel, with an empty text, and when it
            does not, with the reason.
        in_use: whether this process may hold tokens.
        rng: where the jitter comes from.
    """

    def __init__(
        self,
        store: TokenStore,
        invalidations: FleetInvalidations,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_gap: Callable[[], None],
        on_hearing: Callable[[str], None],
        in_use: Callable[[], bool],
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._invalidations = invalidations
        self._on_message = on_message
        self._on_gap = on_gap
        self._on_hearing = on_hearing
        self._in_use = in_use
        self._rng = rng or random.SystemRandom()  # a fork shares no state of it
        self._subscription: Subscription | None = None
        self._watch_task: asyncio.Task[None] | None = None
        self._hears: bool | None = None  # None: not known since the engine came, or came back
        self._quiet_since = 0.0  # the last message, or the engine's coming
        self._asked_at = 0.0
        self._heard = False  # since the last beat
        self._is_due = False  # a beat, at once
        self._wake = asyncio.Event()  # set with each of the two

    def open(self) -> None:
        """Begin to listen, on the running event loop."""
        self._quiet_since = asyncio.get_running_loop().time()
        engine = self._store.engine
        engine.add_state_callback(self._follow_engine)
        self._subscription = engine.listen(
            self._store.channel, self._dispatch_message, self._make_up_for_gap
        )
        self._watch_task = start_task(self._watch())

    async def aclose(self) -> None:
        """Beat no more; the engine ends the subscription."""
        if self._watch_task is not None:
            self._watch_task.cancel()
            await asyncio.wait((self._watch_task,))

    def _follow_engine(self, state: EngineState, _reason: str) -> None:
        self._hears, self._quiet_since = None, asyncio.get_running_loop().time()
        if state is EngineState.SHARED and self._subscription is not None:
            self._subscription.retry_now()
            self._beat_now()

    def _beat_now(self) -> None:
        self._is_due = True
        self._wake.set()

    def _make_up_for_gap(self) -> None:
        self._on_gap()
        self._beat_now()

    def _dispatch_message(self, message: bytes) -> None:
        self._quiet_since = asyncio.get_running_loop().time()
        if not self._heard:
            self._heard = True
            self._wake.set()
        if not self._hears and self._is_shared:
            self._hears = True
            self._on_hearing("")
        kind, _, text = as_bytes(message).partition(b":")
        self._on_message(kind, text)

    @property
    def _is_shared(self) -> bool:
        return self._store.engine.state is EngineState.SHARED

    async def _watch(self) -> None:
        while True:
            await self._wait_until_due()
            self._asked_at = asyncio.get_running_loop().time()
            self._heard = self._is_due = False
            try:
                newest, refusal = await self._store.engine.run_script(
                    _BEAT, [self._store.log_key], [self._store.channel]
                )
            except EngineAway:
                continue
            self._invalidations.note_newest(newest)
            if not await self._wait_for_echo() and self._is_shared:
                self._judge_silence(as_bytes(refusal).decode(errors="replace"))

    async def _wait_until_due(self) -> None:
        now = asyncio.get_running_loop().time
        patience = self._rng.uniform(*_BEAT_SECONDS)
        while not self._is_due:
            pause = None
            if self._is_shared:
                due = self._asked_at + _ECHO_SECONDS
                if self._hears:
                    due = max(due, self._quiet_since + patience)
                elif self._hears is not None and not self._in_use():
                    due = self._asked_at + patience
                if due <= now():
                    return
                # A process that is deaf may come into use meanwhile.
                pause = due - now() if self._hears else _ECHO_SECONDS
            await self._wait(pause)

    async def _wait_for_echo(self) -> bool:
        """Wait until something is heard, or until it is time for another beat."""
        end = asyncio.get_running_loop().time() + _ECHO_SECONDS
        while not (self._heard or self._is_due):
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await self._wait(left)
        await let_loop_catch_up(lambda: self._heard)
        return self._heard or self._is_due

    async def _wait(self, seconds: float | None) -> None:
        self._wake.clear()
        with suppress(TimeoutError):
            async with time_limit(seconds):
                await self._wake.wait()

    def _judge_silence(self, refusal: str) -> None:
        """Decide what it means that nothing was heard after a beat."""
        assert self._subscription is not None  # noqa: S101 (opened before the task)
        quiet = asyncio.get_running_loop().time() - self._quiet_since
        # A beat that was not published proves nothing: another process may be about to beat.
        is_deaf = self._subscription.is_refused or (self._hears and not refusal)
        if self._hears is False or not (is_deaf or quiet >= SILENCE_SECONDS):
            return
        self._hears = False
        if refusal and not self._subscription.is_refused:
            problem = name_refused_right(refusal, "PUBLISH")
        else:
            problem = self._subscription.problem or "silence"
        self._on_hearing(problem)

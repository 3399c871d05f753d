"""A real server in virtual time that goes away and comes back, and engines that use it.

What a process does about it is the library's own: its breaker, its probes, its limiter. Only what
goes over a socket is replaced: a script is run at once, by a blocking client, as no virtual time
passes while the server works.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

import redis

from aioivschat.redis import RedisTier
from aioivschat.redis._engine import Engine, Script
from support.engine import EngineServer

_NOW_KEY, _MESSAGES_KEY = "virtual:now", "virtual:messages"

_EPOCH = 1_000_000_000.0
"""Seconds that the engine's clock shows when virtual time is 0."""

_ROUND_TRIP_SECONDS = 0.001

FAULTS = ("killed", "stopped", "emptied", "failed over", "full", "locked")
"""What :func:`break_engine` knows. A pause of clients is like a stop."""


class Condition(Enum):
    """How the server is."""

    WELL = auto()
    DEAD = auto()  # connections are refused
    STOPPED = auto()  # scripts run when it goes on, as after SIGCONT or the end of CLIENT PAUSE
    REFUSING = auto()  # every script is answered by an error, as when the memory is full
    LOCKED = auto()  # the password is wrong


class VirtualServer:
    """A server as all processes of a fleet see it.

    Args:
        server: runs the scripts.
        seed: of all that is random.

    Attributes:
        ahead: seconds by which its clock is before that of the fleet's hosts.
    """

    def __init__(self, server: EngineServer, seed: int = 0) -> None:
        self.client = server.client()
        self.rng = random.Random(seed)
        self.ahead = 0.0
        self.listeners: list[VirtualEngine] = []
        self._condition = Condition.WELL
        self._stopped: list[Callable[[], None]] = []
        self._replica: dict[bytes, bytes] = {}

    @property
    def condition(self) -> Condition:
        """How it is."""
        return self._condition

    @condition.setter
    def condition(self, condition: Condition) -> None:
        was, self._condition = self._condition, condition
        stopped, self._stopped = self._stopped, []
        if condition is Condition.WELL:
            for run in stopped:
                run()
        # A server that was killed or is another one has none of the connections of before.
        if was is Condition.DEAD and condition is Condition.WELL:
            for listener in self.listeners:
                listener.subscribe()

    def lose_all(self) -> None:
        """Restart empty."""
        self.client.flushall()

    def replicate(self) -> None:
        """Copy all to the replica, to whose clock the times to live go over as moments."""
        self._replica = {key: self.client.dump(key) for key in self.client.keys("*")}

    def fail_over(self, ahead: float) -> None:
        """Let the replica take over: what was written since it got a copy is lost."""
        self.ahead = ahead
        self.client.flushall()
        for key, value in self._replica.items():
            self.client.restore(key, 900_000, value)

    def submit(self, script: Script, keys: Sequence[str], args: Any) -> asyncio.Future[Any]:
        """Run a script now, or when the server goes on."""
        answer = asyncio.get_running_loop().create_future()

        def run() -> None:
            outcome = self._run(script, keys, args)
            if not answer.done():
                answer.set_result(outcome)

        if self._condition is Condition.STOPPED:
            self._stopped.append(run)
        else:
            run()
        return answer

    def _run(self, script: Script, keys: Sequence[str], args: Any) -> Any:
        now = _EPOCH + asyncio.get_running_loop().time() + self.ahead
        source = script.source.replace(
            "redis.call('TIME')", f"{{0, redis.call('GET', '{_NOW_KEY}')}}"
        )
        source = re.sub(
            r"redis\.p?call\('PUBLISH',", f"redis.call('RPUSH', '{_MESSAGES_KEY}',", source
        )
        self.client.set(_NOW_KEY, round(now * 1e6))
        answer = self.client.eval(source, len(keys), *keys, *args)
        messages = self.client.lrange(_MESSAGES_KEY, 0, -1)
        self.client.delete(_MESSAGES_KEY)
        for channel, message in zip(messages[::2], messages[1::2], strict=True):
            for listener in self.listeners:
                listener.hear(channel.decode(), message)
        return answer


class VirtualEngine(Engine):
    """A process's engine, with a network that is not there."""

    def __init__(self, server: VirtualServer, on_state: Any = None) -> None:
        super().__init__(server.client, on_state, server.rng)
        self._server = server
        self._heard: dict[str, tuple[Callable[[bytes], None], Callable[[], None]]] = {}

    def listen(
        self,
        channel: str,
        on_message: Callable[[bytes], None],
        on_subscribed: Callable[[], None],
    ) -> Any:
        """Receive what is published on a channel."""
        self._heard[channel] = on_message, on_subscribed
        self._server.listeners.append(self)
        asyncio.get_running_loop().call_soon(self.subscribe)
        return _VirtualSubscription()

    def hear(self, channel: str, message: bytes) -> None:
        """Receive a message soon."""
        if channel in self._heard and not self._closed:
            loop = asyncio.get_running_loop()
            loop.call_later(_ROUND_TRIP_SECONDS, self._heard[channel][0], message)

    def subscribe(self) -> None:
        """Let each channel's subscription begin anew, after a lost connection."""
        for _, on_subscribed in self._heard.values():
            if not self._closed:
                on_subscribed()

    async def aclose(self) -> None:
        """Stop listening."""
        if self in self._server.listeners:
            self._server.listeners.remove(self)
        await super().aclose()

    async def _eval(self, seconds: float, call: Any, client: Any = None) -> Any:
        server = self._server
        await asyncio.sleep(_ROUND_TRIP_SECONDS / 2 * server.rng.uniform(1, 1.1))
        match server.condition:
            case Condition.DEAD:
                raise redis.ConnectionError
            case Condition.REFUSING:
                raise redis.OutOfMemoryError
            case Condition.LOCKED:
                raise redis.AuthenticationError
        answer = await asyncio.wait_for(server.submit(*call), seconds)
        await asyncio.sleep(_ROUND_TRIP_SECONDS / 2 * server.rng.uniform(1, 1.1))
        return answer

    async def _probe(self, client: Any) -> None:
        script, keys, args = self._probed
        await self._eval(self.timeout, (script, [f"{key}:probe" for key in keys], args))

    async def _drop_idle_connections(self) -> None:
        pass


class _VirtualSubscription:
    """A subscription as its channel sees it: it begins anew when the server does."""

    problem, is_refused = "", False

    def retry_now(self) -> None:
        """It has begun."""


class VirtualTier(RedisTier):
    """A tier on a virtual server."""

    def __init__(self, server: VirtualServer, **options: Any) -> None:
        super().__init__(server.client, **options)
        self._engine = VirtualEngine(server, self._engine_changed)


async def break_engine(server: VirtualServer, fault: str, seconds: float) -> None:
    """Let the server be away in one way for some seconds, and come back."""
    rng = server.rng
    match fault:
        case "killed":
            server.condition = Condition.DEAD
            server.lose_all()
        case "stopped":
            server.condition = Condition.STOPPED
        case "emptied":
            server.lose_all()
        case "failed over":
            server.replicate()
            await asyncio.sleep(rng.uniform(0, 0.1))
            server.condition = Condition.DEAD
            server.fail_over(server.ahead + rng.choice((-3_600.0, -5.0, -0.2, 0.0, 0.3, 5.0)))
        case "full":
            server.condition = Condition.REFUSING
        case "locked":
            server.condition = Condition.LOCKED
    await asyncio.sleep(0.0 if fault == "emptied" else seconds)
    server.condition = Condition.WELL

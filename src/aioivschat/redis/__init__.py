"""The shared tier for fleets: one quota, one stock and one token for each attempt.

The 200 tokens a second belong to an account and region, not to a process. Processes that share a
Valkey or Redis pace themselves as one::

    tier = RedisTier("rediss://user:password@engine:6379/0", keys=[key])
    async with AsyncTokenService(shared=tier) as tokens:
        ...

While the engine is away, each process goes on by itself with its part of the quota. The tier needs
the extra ``[redis]``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from aioivschat._clock import Clock
from aioivschat._events import Observers, SharedChanged, SharedState
from aioivschat._service.fair_queue import Connections
from aioivschat._service.limiter import Limiter
from aioivschat._service.pace import Quota
from aioivschat.errors import require, require_number
from aioivschat.redis._engine import CALL_TIMEOUT_SECONDS, Engine, EngineState
from aioivschat.redis._limiter import SharedLimiter
from aioivschat.redis._sealing import Sealer
from aioivschat.redis._tokens import RedisTokens

__all__ = ["RedisTier"]

_log = logging.getLogger("aioivschat")

_NO_KEY = "no sealing key"


class RedisTier:
    """What the processes of a fleet share through a Valkey or Redis.

    Make one for each service: ``AsyncTokenService(shared=RedisTier(…))``.

    Args:
        engine: where it is: ``redis://user:password@host:port/db``, ``rediss://`` with TLS,
            ``redis+cluster://host:port,host:port``, ``redis+sentinel://host:port/name/db``,
            ``unix:///path``, each with options of redis-py after a ``?``; or an asyncio client of
            redis-py or valkey-py for 6 connections or more, which stays yours to close.
        keys: of 32 random bytes each. The first one seals what is stored, all of them open it.
            Without a key no token is stored, and the fleet shares its quota only. To change a
            key, add the new one at the end in every process, then move it to the front in every
            process, then drop the old one; twice a year is often enough.
        namespace: who shares; the same for the whole fleet, another for each other fleet on the
            same engine. 1 to 64 characters, no braces.
        members: processes that share the quota, for as long as the engine has not told. ``None``:
            not known, so each takes the whole of it until then.
        timeout: seconds that a call waits for the engine at most, above 0.

    Raises:
        InvalidConfiguration: an option cannot work.
        ImportError: the extra is not installed.
    """

    def __init__(
        self,
        engine: Any,
        *,
        keys: Sequence[bytes] = (),
        namespace: str = "aioivschat",
        members: int | None = None,
        timeout: float = CALL_TIMEOUT_SECONDS,
    ) -> None:
        try:
            fits = 1 <= len(namespace) <= 64 and not set(namespace) & set("{}")
            limit = "1 to 64 characters without braces"
            require(fits, "RedisTier.namespace", limit, "other text")
            if members is not None:
                require_number("RedisTier.members", members, least=1, whole=True)
            require_number("RedisTier.timeout", timeout, above=0, unit=" s")
            self._sealer = Sealer(keys) if keys else None
            self._engine = Engine(
                engine, self._engine_changed, timeout=timeout, namespace=namespace
            )
        finally:
            del keys, engine  # out of tracebacks that show locals
        self._namespace = namespace
        self._members = members
        self._may_be_many = members is None  # of whom neither option nor engine has told
        self._limiters: list[SharedLimiter] = []
        self._tokens: RedisTokens | None = None
        self._clock: Clock | None = None
        self._observers = Observers()
        self._told: SharedState | None = None

    def __repr__(self) -> str:
        if not hasattr(self, "_namespace"):  # a traceback of its making may show it
            return "<RedisTier, not made>"
        return f"<RedisTier {self._namespace!r}, {self._engine.state}>"

    def bind(
        self,
        clock: Clock,
        min_remaining: float,
        invalidated: Callable[[str | None, str | None], None],
        observers: Observers,
    ) -> RedisTokens | None:
        """Serve one service; called when it is made. See ``_service/fleet.py``, ``SharedTier``."""
        require(self._clock is None, "shared", "a tier of this service alone", "one in use")
        self._clock, self._observers = clock, observers
        if self._sealer is not None:
            self._tokens = RedisTokens(
                self._engine,
                self._sealer,
                self._namespace,
                clock,
                min_remaining,
                invalidated,
                self._hearing_changed,
            )
        return self._tokens

    def open(self) -> None:
        """Begin to listen, on the running event loop; called when the service is first used."""
        if self._tokens is None:
            _log.warning("%s: the fleet shares its quota, and not its tokens", _NO_KEY)
        else:
            self._tokens.start_listening()

    def limiter(
        self,
        account: str,
        region: str,
        quota: Quota,
        on_learnt: Callable[[float, int], None],
        connections: Connections,
    ) -> Limiter:
        """Return a limiter that shares the quota of an account and region."""
        assert self._clock is not None, "the service binds the tier first"  # noqa: S101 (its own)
        # Nothing of the sealing keys is in the name: changing them must not split the quota.
        name = f"{self._namespace}:{account}:{region}"
        limiter = SharedLimiter(
            self._engine,
            name,
            quota,
            self._clock,
            on_learnt,
            connections=connections,
            members=self._members or 1,
        )
        self._limiters.append(limiter)
        return limiter

    async def aclose(self) -> None:
        """Leave the fleet; a client of the user's own stays open."""
        if self._tokens is not None:
            await self._tokens.aclose()
        for limiter in self._limiters:
            await limiter.aclose()
        await self._engine.aclose()

    def _engine_changed(self, state: EngineState, reason: str) -> None:
        if self._may_be_many and state is EngineState.AWAY:
            _log.warning("the engine is away, and members= not given: each takes the whole quota")
        self._may_be_many = False  # it was said, or the engine tells
        if state is EngineState.AWAY:
            self._tell(SharedState.LOCAL, reason)
        elif self._sealer is None:
            self._tell(SharedState.QUOTA_ONLY, _NO_KEY)
        # Else `_hearing_changed` tells, once a message was heard or ought to have been.

    def _hearing_changed(self, problem: str) -> None:
        if problem:
            _log.warning("no message of the fleet is heard (%s): invalidations are polled", problem)
            self._tell(SharedState.POLLING, problem)
        else:
            self._tell(SharedState.SHARED, "connected")

    def _tell(self, state: SharedState, reason: str) -> None:
        if state is not self._told:
            self._told = state
            self._observers.tell(SharedChanged(state, reason))

"""``AsyncTokenService``: the one place where the parts meet.

A call goes straight down, once: validate, cache or stock, single flight and admission here, and
from there on in ``_minting``: limiter, client, retry, parse and check, cache, the caller.
"""

from __future__ import annotations

import asyncio
import os
import random
import warnings
from asyncio import get_running_loop
from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from functools import partial
from typing import Any, Self

from aioivschat._aws.clients import ClientPool, PoolPolicy
from aioivschat._clock import Clock
from aioivschat._events import (
    ClientOpened,
    Delivered,
    Invalidated,
    Joined,
    NotPrepared,
    Observer,
    Observers,
    RateChanged,
    SharedChanged,
    SharedState,
    Source,
)
from aioivschat._models import (
    KEY_MAX_CHARACTERS,
    SESSION_DEFAULT_MINUTES,
    Attempt,
    ChatToken,
    Priority,
    RoomArn,
    SharingKey,
    TokenRequest,
    unchecked_identity,
)
from aioivschat._service.cache import CachePolicy, TokenCache
from aioivschat._service.fences import Fences
from aioivschat._service.fleet import SharedTier
from aioivschat._service.limiter import Limiter, LocalLimiter, Quota
from aioivschat._service.minting import NEVER, Mint, Minter
from aioivschat._service.prewarming import Prewarmed, Prewarmer
from aioivschat._service.retry import Retrier, RetryPolicy
from aioivschat._service.singleflight import FlightStopped
from aioivschat._service.stock import StockSweeper, TokenStock
from aioivschat.errors import (
    ChatTokenError,
    DeadlineExceeded,
    Exceptions,
    InvalidRequest,
    ServiceClosed,
    WrongLoop,
)


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the service was made, and the state of the moment.

    Args:
        requests: requests sent to AWS.
        minted: tokens that AWS gave.
        throttled: requests that AWS throttled.
        failed: requests that failed otherwise.
        cached: calls served with a token that was handed out before.
        stock: calls served with a token that nobody had been given.
        joined: calls that joined a flight under way.
        shed: calls refused at once, as they could not be served in time.
        shared: tokens that came from the fleet instead of from AWS.
        rejected: values of the fleet that could not be opened, and were not used.
        stocked: tokens that went into the stock.
        expired_unused: stocked tokens that were dropped before anybody was given them.
        flights: flights under way.
        waiting: reservations that wait for a permit.
        tokens_held: delivered tokens held.
        stock_held: undelivered tokens held.
    """

    requests: int
    minted: int
    throttled: int
    failed: int
    cached: int
    stock: int
    joined: int
    shed: int
    shared: int
    rejected: int
    stocked: int
    expired_unused: int
    flights: int
    waiting: int
    tokens_held: int
    stock_held: int


_NOWHERE = object()


class _State(Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class AsyncTokenService:
    """Issues IVS Chat tokens at the pace that AWS allows.

    Make one per process and event loop, and keep it: ``async with AsyncTokenService() as tokens``.

    Args:
        session: an ``aiobotocore.session.AioSession``, an ``aioboto3.Session``, or ``None``, which
            finds credentials, profile and configuration as boto3 does.
        endpoint_url: where requests go instead of to AWS; HTTPS, or HTTP on this host.
        quota: what AWS allows an account and region; or a mapping from (account, region) for
            accounts that differ, where :class:`Quota` with its defaults holds for the rest.
        retry: how often and how patiently failed requests are sent again.
        cache: how many tokens are kept, and the least life they are handed out with.
        pool: the connections to AWS.
        shared: what several processes share, such as :class:`aioivschat.redis.RedisTier`; made for
            this service alone.
        observers: told what happens; see :class:`Observer`.
        clock: where the time comes from.
        rng: where the jitter comes from.

    Raises:
        InvalidConfiguration: if an option cannot work.
    """

    exceptions = Exceptions
    """Error classes under boto3's names: ``except tokens.exceptions.ResourceNotFoundException``."""

    def __init__(
        self,
        *,
        session: Any = None,
        endpoint_url: str | None = None,
        quota: Quota | Mapping[tuple[str, str], Quota] = Quota(),  # noqa: B008 (frozen)
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        cache: CachePolicy = CachePolicy(),  # noqa: B008 (frozen)
        pool: PoolPolicy = PoolPolicy(),  # noqa: B008 (frozen)
        shared: SharedTier | None = None,
        observers: Iterable[Observer] = (),
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._state = _State.CLOSED  # until everything below has worked
        self._clock = clock or Clock()
        self._observers = Observers(observers)
        self._quota = quota
        self._min_remaining = cache.min_remaining
        self._fences = Fences()
        self._cache = TokenCache(cache, self._clock, self._fences)
        self._stock = TokenStock(cache, self._cache)
        self._stock_sweeper = StockSweeper(self._stock, self._clock, self._observers)
        self._limiters: dict[tuple[str, str], Limiter] = {}
        try:
            self._pool = ClientPool(
                session,
                endpoint_url,
                pool,
                self._clock,
                self._client_opened,
                # No method of ours: a client that outlives the service must not hold it.
                partial(_tell_not_prepared, self._observers),
            )
        finally:
            del endpoint_url  # out of tracebacks that show locals: it may hold a password
        self._minter = Minter(
            self._pool,
            self._cache,
            self._stock,
            self._fences,
            Retrier(retry, self._clock, rng or random.Random()),  # noqa: S311 (no secret)
            self._clock,
            self._observers,
            on_stocked=self._stock_sweeper.schedule_sweep,
        )
        self._flights = self._minter.flights
        self._counters = self._minter.counters
        self._shared = shared
        self._prewarmer = Prewarmer(
            self._minter,
            self._pool,
            self._stock,
            self._fences,
            self._clock,
            cache.min_remaining,
            pool.max_connections,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._home: object = _NOWHERE  # the loop, while the service is open
        self._closing: asyncio.Task[None] | None = None
        self._state = _State.OPEN

    async def __aenter__(self) -> Self:
        self._check_usable()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._state is not _State.CLOSED and self._loop is not None and len(self._pool):
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        if not hasattr(self, "_flights"):  # a traceback of its making may show it
            return "<AsyncTokenService, not made>"
        return (
            f"<AsyncTokenService {self._state.value}, {len(self._flights)} flights, "
            f"{self._waiting} waiting, {len(self._cache)} tokens, "
            f"{len(self._stock)} in stock>"
        )

    async def create_chat_token(
        self,
        *,
        roomIdentifier: str,  # noqa: N803 (boto3's name)
        userId: str,  # noqa: N803 (boto3's name)
        capabilities: Iterable[str] = (),
        sessionDurationInMinutes: int = SESSION_DEFAULT_MINUTES,  # noqa: N803 (boto3's name)
        attributes: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        fresh: bool = False,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> dict[str, Any]:
        """Issue a token: the call of the boto3 ``ivschat`` client, name for name.

        The plain call shares an unexpired token among equal calls. A token connects once, so a
        second connection needs ``fresh=True`` or an ``idempotency_key`` of its own.

        Args:
            roomIdentifier: ARN of the room, 1 to 128 characters.
            userId: the user's id in the application, 1 to 128 characters.
            capabilities: any of ``SEND_MESSAGE``, ``DELETE_MESSAGE``, ``DISCONNECT_USER``.
            sessionDurationInMinutes: 1 to 180 minutes.
            attributes: text to text, at most 1,024 bytes of UTF-8 over all keys and values.
            idempotency_key: as for :meth:`issue`.
            fresh: as for :meth:`issue`.
            timeout: as for :meth:`issue`.
            priority: as for :meth:`issue`.

        Returns:
            ``token``, ``tokenExpirationTime`` and ``sessionExpirationTime``, as boto3 gives them;
            the dict is the caller's own.

        Raises:
            ChatTokenError: as :meth:`issue` does.
        """
        try:
            # What is asked most often, and by the shortest way: a token that is held already.
            entry = None
            if idempotency_key is None and not fresh and self._home is get_running_loop():
                try:
                    identity = unchecked_identity(
                        roomIdentifier, userId, capabilities, attributes, sessionDurationInMinutes
                    )
                    if identity is not None:
                        entry = self._cache.get(identity)
                except TypeError:
                    pass  # the checks below tell what is wrong with them
            if entry is not None:
                if self._observers:
                    self._observers.tell(Delivered(roomIdentifier, Source.CACHE, 0.0))
                return entry.reply()
            request = TokenRequest(
                roomIdentifier, userId, capabilities, attributes, sessionDurationInMinutes
            )
            key = self._enter(request, idempotency_key, fresh)
        finally:
            # A traceback that shows locals must not show these.
            identity = None
            del roomIdentifier, userId, capabilities, attributes, sessionDurationInMinutes
            del idempotency_key
        token = self._ready(request, key)
        if token is None:
            token = await self._wait(timeout, request, key, priority)
        return token.reply()

    async def issue(
        self,
        request: TokenRequest,
        *,
        idempotency_key: str | None = None,
        fresh: bool = False,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> ChatToken:
        """Issue a token.

        Args:
            request: who wants to enter which room, and what they may do there.
            idempotency_key: names one logical connection attempt, 1 to 255 characters: only calls
                with an equal request *and* key share a token, so that a retried HTTP request gets
                the same one again and another tab gets its own.
            fresh: whether the token must be one that nobody has been handed; excludes a key.
            timeout: seconds, above 0, for everything: waiting, connecting, retries. A call that
                cannot make it is refused at once. ``None``: as long as it takes.
            priority: who goes first when calls wait for the quota.

        Returns:
            A token with at least ``CachePolicy.min_remaining`` seconds to live.

        Raises:
            InvalidRequest: an argument breaks a limit; nothing was sent.
            Overloaded: the wait would be longer than ``timeout``, or too many wait already.
            DeadlineExceeded: ``timeout`` ran out.
            AwsError: AWS refused; the subclass says why.
            ConnectionFailed: AWS could not be reached, after all retries.
            MalformedResponse: AWS answered without a usable token, after all retries.
            ServiceClosed: the service is closing or closed.
            WrongLoop: the service was opened on another event loop or in another process.
            botocore.exceptions.BotoCoreError: nothing could be sent, for lack of credentials say.
        """
        # As in `create_chat_token`.
        if idempotency_key is None and not fresh and self._home is get_running_loop():
            entry = self._cache.get(request.identity)
            if entry is not None:
                if self._observers:
                    self._observers.tell(Delivered(request.room, Source.CACHE, 0.0))
                again = entry.token
                return again if again.reused else entry.hand_out()
        try:
            key = self._enter(request, idempotency_key, fresh)
        finally:
            del idempotency_key  # out of tracebacks that show locals
        token = self._ready(request, key)
        if token is None:
            token = await self._wait(timeout, request, key, priority)
        return token

    def ready(
        self, request: TokenRequest, *, idempotency_key: str | None = None, fresh: bool = False
    ) -> ChatToken | None:
        """Issue a token that is there already, or none: what :meth:`issue` does without waiting.

        In a fleet, it is one that this process has; the engine is not asked.

        Args:
            request: as for :meth:`issue`.
            idempotency_key: as for :meth:`issue`.
            fresh: as for :meth:`issue`.

        Returns:
            A token as :meth:`issue` gives it; ``None`` if one would have to be minted.

        Raises:
            InvalidRequest: an argument breaks a limit.
            ServiceClosed: the service is closing or closed.
            WrongLoop: the service was opened on another event loop or in another process.
        """
        try:
            key = self._enter(request, idempotency_key, fresh)
        finally:
            del idempotency_key  # out of tracebacks that show locals
        return self._ready(request, key)

    async def prewarm(
        self,
        requests: Iterable[TokenRequest] | AsyncIterable[TokenRequest],
        *,
        doors: float | None = None,
        budget: float = 1.0,
    ) -> Prewarmed:
        """Mint tokens ahead of the doors; each goes to exactly one later call.

        Live calls go first: these requests wait at :attr:`Priority.BACKGROUND`, a tenth of a
        second's worth at most, and leave a fifth of the connections free. A call that comes for one
        of them while it is under way takes it over, and one that comes before its turn takes its
        place. In a fleet, any process may claim the tokens; let one of them prewarm.

        Args:
            requests: one token is minted for each, also for equal ones, in this order. As a token
                lives for a minute, no more than 12,000 of a region are alive at once.
            doors: seconds from now, above 0, until the tokens are needed. Minting begins as late
                as it can for all to be there then, and at the earliest when what is minted lives
                to be handed out until a second after the doors; with the defaults that is 54 s
                before them. It ends when they open: what has not had its turn by then is left out.
                ``None``: now, and all of them.
            budget: share of the quota that may be spent on it, above 0 and at most 1. A crowd that
                comes meanwhile finds the rest unspent.

        Returns:
            How many tokens came, what failed, and what was not minted for which reason.

        Raises:
            InvalidRequest: ``doors`` or ``budget`` is out of its range.
            ServiceClosed: the service is closing or closed.
            WrongLoop: the service was opened on another event loop or in another process.
        """
        self._check_usable()
        prewarmed = await self._prewarmer.run(requests, self._limiter, doors, budget)
        if self._minter.tokens is not None:
            await self._minter.tokens.settled()
        self._check_usable()
        return prewarmed

    def invalidate(self, *, room: str | None = None, user: str | None = None) -> None:
        """Forget every cached and stocked token of a user, of a room, or of a user in a room.

        In a fleet every process does, within a tenth of a second; while the engine is away, as
        soon as it is back.

        Flights under way go on for those who wait for them already, and for nobody else: what
        they bring is not kept. To ban somebody, stop issuing to them first, then call this, then
        disconnect them; nothing can revoke a token that was handed out.

        Args:
            room: the room's ARN.
            user: the user's id.

        Raises:
            InvalidRequest: neither was given, or the room is not a room's ARN.
            ServiceClosed, WrongLoop: in a fleet, as for :meth:`issue`.
        """
        try:
            if room is None and user is None:
                raise InvalidRequest("invalidate", "given a room, a user or both", "neither")
            if room is not None:
                RoomArn.parse(room)
            self._forget(room, user)
            if self._shared is not None:
                self._check_usable()
                if self._minter.tokens is not None:
                    self._minter.tokens.invalidate(room, user)
        finally:
            del room, user  # out of tracebacks that show locals

    def estimate(self, room: str, *, priority: Priority = Priority.NORMAL) -> float:
        """Return the seconds that a new call for a room would wait for its turn now.

        Args:
            room: the room's ARN; calls wait together by its account and region.
            priority: the priority of the call.

        Raises:
            InvalidRequest: the room is not a room's ARN.
        """
        try:
            return self._limiter(RoomArn.parse(room)).predicted_wait(priority, room)
        finally:
            del room  # out of tracebacks that show locals: it may be anything

    def stats(self) -> Stats:
        """Return the counters and the state of the moment."""
        return Stats(
            **asdict(self._counters),
            cached=self._cache.hits,
            rejected=self._minter.tokens.rejected if self._minter.tokens is not None else 0,
            expired_unused=self._stock.expired_unused,
            flights=len(self._flights),
            waiting=self._waiting,
            tokens_held=len(self._cache),
            stock_held=len(self._stock),
        )

    async def aclose(self, *, grace: float = 5.0) -> None:
        """Refuse new calls, let requests that were sent come home, and close the clients.

        Calls that still wait for their turn fail with :class:`ServiceClosed` at once. Closing
        twice is fine.

        Args:
            grace: seconds that requests under way may take.

        Raises:
            WrongLoop: the service was opened on another event loop or in another process.
        """
        if self._state is _State.CLOSED:
            return
        if self._loop is None:  # it was never used
            self._state = _State.CLOSED
            return
        self._check_home()
        if self._closing is None:
            self._state = _State.CLOSING
            self._home = _NOWHERE
            self._minter.closing = True
            self._prewarmer.stop()
            self._closing = asyncio.create_task(self._close(grace))
        # Whoever is cancelled while closing leaves the closing to go on.
        await asyncio.shield(self._closing)

    # What a call needs from top to bottom.

    def _enter(
        self, request: TokenRequest, idempotency_key: str | None, fresh: bool
    ) -> SharingKey | None:
        """Return what calls must agree on to share a token; ``None``: they never do."""
        try:
            # Whatever is not the loop of an open service is looked at more closely.
            if self._home is not get_running_loop():
                self._check_usable()
            if idempotency_key is None:
                return None if fresh else request.identity
            if fresh:
                raise InvalidRequest("idempotency_key", "left out when fresh is true", "both")
            is_text = isinstance(idempotency_key, str)
            if not is_text or not 1 <= len(idempotency_key) <= KEY_MAX_CHARACTERS:
                limit = f"1 to {KEY_MAX_CHARACTERS} characters"
                raise InvalidRequest("idempotency_key", limit, "other")
            return Attempt((request.identity, idempotency_key))
        finally:
            del idempotency_key  # out of tracebacks that show locals

    def _ready(self, request: TokenRequest, key: SharingKey | None) -> ChatToken | None:
        """Return a token that is there already."""
        entry = self._cache.get(key) if key is not None else None
        if entry is None:
            return self._from_stock(request, key)
        if self._observers:
            self._observers.tell(Delivered(request.room, Source.CACHE, 0.0))
        return entry.hand_out()

    def _from_stock(self, request: TokenRequest, key: SharingKey | None) -> ChatToken | None:
        entry = self._stock.take(request.identity)
        if entry is None:
            return None
        self._counters.stock += 1
        if key is not None:
            self._cache.put(key, entry)
        if self._observers:
            self._observers.tell(Delivered(request.room, Source.STOCK, 0.0))
        return entry.hand_out()

    def _wait(
        self,
        timeout: float | None,
        request: TokenRequest,
        key: SharingKey | None,
        priority: Priority,
    ) -> Awaitable[ChatToken]:
        if timeout is None:
            return self._wait_for_token(request, key, NEVER, priority)
        return self._wait_within(timeout, request, key, priority)

    async def _wait_within(
        self, timeout: float, request: TokenRequest, key: SharingKey | None, priority: Priority
    ) -> ChatToken:
        if not timeout > 0:
            raise InvalidRequest("timeout", "above 0 s, or None", f"{timeout}")
        deadline = self._clock.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                return await self._wait_for_token(request, key, deadline, priority)
        except TimeoutError as error:
            if isinstance(error, ChatTokenError):
                raise
        raise DeadlineExceeded(timeout)

    async def _wait_for_token(
        self, request: TokenRequest, key: SharingKey | None, deadline: float, priority: Priority
    ) -> ChatToken:
        started = self._clock.monotonic()
        arn = RoomArn.parse(request.room)
        while True:
            flight = self._flights.find(key) if key is not None else None
            # A permit is worth nothing until there is a client to use it.
            if not self._pool.is_open(arn.region) or (flight is not None and flight.leaving):
                await self._pool.open(arn.region)
                if flight is not None and flight.leaving:
                    await flight.ended()
                # Either may have taken a while.
                self._check_usable()
                token = self._ready(request, key)
                if token is not None:
                    return token
                continue
            flight = self._board(flight, request, arn, key, deadline, priority)
            try:
                token = await self._flights.join(flight, self._minter.hand_out)
            except FlightStopped:
                raise ServiceClosed from None
            # None: the host slept between the answer and now, and the token died of it.
            if token is not None:
                if self._observers:
                    waited = self._clock.monotonic() - started
                    self._observers.tell(Delivered(request.room, flight.source, waited))
                return token
            # It may be closing by now, and would not wait for a flight that starts after that.
            self._check_usable()

    def _board(
        self,
        flight: Mint | None,
        request: TokenRequest,
        arn: RoomArn,
        key: SharingKey | None,
        deadline: float,
        priority: Priority,
    ) -> Mint:
        """Find a place on the flight of the key, on one of prewarming's, or on a new one."""
        if flight is not None and self._fences.is_fenced(flight.generation, request.identity):
            flight = None
        if flight is not None:
            self._minter.admit(request, flight.reservation.expected, deadline)
            self._counters.joined += 1
            if self._observers:
                self._observers.tell(Joined(request.room))
            flight.welcome(priority, deadline)
            return flight
        limiter = self._limiter(arn)
        flight = self._prewarmer.take_over(request.identity)
        if flight is None:
            # A token of the fleet needs no permit, so there the question comes first.
            admit = self._minter.tokens is None
            if admit:
                self._minter.admit_new(request, limiter, priority, deadline)
            flight = self._minter.new_flight(request, limiter, priority, deadline, reserve=admit)
            self._prewarmer.make_way(request.identity, limiter)
        else:
            flight.welcome(priority, deadline)
        if self._minter.tokens is not None:
            flight.shared = self._minter.tokens.flight(request.identity, key)
        if key is not None:
            self._flights.share(flight, key)
        return flight

    def _changed(self, state: SharedState, reason: str) -> None:
        if self._observers:
            self._observers.tell(SharedChanged(state, reason))

    def _forget(self, room: str | None, user: str | None) -> None:
        self._fences.add(room, user)
        if self._observers:
            self._observers.tell(Invalidated(room, user is not None))

    # The house.

    def _limiter(self, arn: RoomArn) -> Limiter:
        place = arn.account, arn.region
        limiter = self._limiters.get(place)
        if limiter is None:
            quota = self._quota if isinstance(self._quota, Quota) else self._quota.get(place)
            quota = quota or Quota()

            def changed(rate: float) -> None:
                self._observers.tell(RateChanged(*place, rate))

            if self._shared is None:
                limiter = LocalLimiter(quota, self._clock, changed)
            else:
                self._check_usable()  # the tier is opened with the service
                limiter = self._shared.limiter(*place, quota, changed)
            self._limiters[place] = limiter
        return limiter

    @property
    def _waiting(self) -> int:
        return sum(limiter.waiting for limiter in self._limiters.values())

    def _client_opened(self, region: str, seconds: float) -> None:
        if self._observers:
            self._observers.tell(ClientOpened(region, seconds))

    def _check_usable(self) -> None:
        if self._state is not _State.OPEN:
            raise ServiceClosed
        self._check_home()
        self._home = self._loop

    def _check_home(self) -> None:
        if self._loop is None:
            if self._shared is not None:
                self._shared.open(self._clock, self._min_remaining, self._forget, self._changed)
                self._minter.tokens = self._shared.tokens
            self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        elif self._pid != os.getpid():
            raise WrongLoop("process")
        elif self._loop is not asyncio.get_running_loop():
            raise WrongLoop("event loop")

    async def _close(self, grace: float) -> None:
        for flight in self._flights:
            if not flight.committed:
                flight.stop()
        try:
            async with asyncio.timeout(grace):
                for flight in self._flights:
                    await flight.ended()
        except TimeoutError:
            for flight in self._flights:
                flight.stop()
            for flight in self._flights:
                await flight.ended()
        self._stock_sweeper.close()
        await self._pool.aclose()
        if self._shared is not None:
            await self._shared.aclose()
        self._cache.clear()
        self._stock.clear()
        self._state = _State.CLOSED


def _tell_not_prepared(observers: Observers, region: str, reason: str) -> None:
    observers.tell(NotPrepared(region, reason))

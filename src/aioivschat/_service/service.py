"""``AsyncTokenService``: the one place where the parts meet.

A call goes straight down: the service checks its arguments, `issuing` looks for a token that is
there or for a flight that brings one, `minting` waits for a permit and sends the request.
"""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Self

from aioivschat._aws.clients import ClientPool, PoolPolicy
from aioivschat._clock import Clock
from aioivschat._contexts import start_task
from aioivschat._events import Observer, Observers
from aioivschat._models import (
    SESSION_DEFAULT_MINUTES,
    ChatToken,
    Priority,
    RoomArn,
    TokenRequest,
    checked_priority,
    plain,
    unchecked_identity,
)
from aioivschat._service.admission import Admission
from aioivschat._service.cache import CachePolicy, TokenCache
from aioivschat._service.fences import Fences, checked_names
from aioivschat._service.fleet import OneProcess, SharedTier
from aioivschat._service.fleet_minting import FleetMinter
from aioivschat._service.issuing import Issuer, sharing_key
from aioivschat._service.lifecycle import Lifecycle, State
from aioivschat._service.limiters import Limiters
from aioivschat._service.minting import Minter
from aioivschat._service.pace import Quota
from aioivschat._service.pending import PendingRequests
from aioivschat._service.prewarming import Prewarmed, Prewarmer
from aioivschat._service.retry import Retrier, RetryPolicy
from aioivschat._service.signing_in import SignIns
from aioivschat._service.stats import Counters, Stats
from aioivschat._service.stock import StockSweeper, TokenStock
from aioivschat.errors import Exceptions, Interrupted


class AsyncTokenService:
    """Issues IVS Chat tokens at the pace that AWS allows.

    Make one per process and event loop, and keep it: ``async with AsyncTokenService() as tokens``.

    Args:
        session: an ``aiobotocore.session.AioSession``, an ``aioboto3.Session``, or ``None``, which
            finds credentials, profile and configuration as boto3 does.
        endpoint_url: where requests go instead of to AWS; HTTPS, or HTTP on this host.
        allow_http: the name of another host that may be asked by HTTP, or several names: of an
            emulator in a network of containers, say. Everybody on the way reads the tokens.
        quota: what AWS allows an account and region; or a mapping from (account, region) for
            accounts that differ, where :class:`Quota` with its defaults holds for the rest.
        retry: how often and how patiently failed requests are sent again.
        cache: how many tokens are kept, and the least life they are handed out with.
        pool: the connections to AWS.
        shared: what several processes share, such as :class:`aioivschat.redis.RedisTier`; made for
            this service alone.
        observers: told what happens; see :class:`Observer`.
        clock, rng: where the time and the jitter come from.

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
        allow_http: str | Iterable[str] | None = None,
        quota: Quota | Mapping[tuple[str, str], Quota] = Quota(),  # noqa: B008 (frozen)
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        cache: CachePolicy = CachePolicy(),  # noqa: B008 (frozen)
        pool: PoolPolicy = PoolPolicy(),  # noqa: B008 (frozen)
        shared: SharedTier | None = None,
        observers: Iterable[Observer] = (),
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        clock = clock or Clock()
        self._observers = Observers(observers)
        self._tier = shared or OneProcess(clock)
        self._fences = Fences(self._observers)
        self._counters = Counters()
        self._limiters = Limiters(quota, self._tier, self._observers, clock, pool.max_connections)
        self._cache = TokenCache(cache, clock, self._fences)
        self._stock = TokenStock(cache, self._cache)
        self._stock_sweeper = StockSweeper(self._stock, clock, self._observers)
        try:
            self._pool = ClientPool(session, endpoint_url, pool, clock, self._observers, allow_http)
        finally:
            del endpoint_url  # out of tracebacks that show locals: it may hold a password
        tokens = self._tier.bind(clock, cache.min_remaining, self._fences.add, self._observers)
        lifecycle = Lifecycle(on_first_use=self._tier.open)
        admission = Admission(clock, self._counters, self._observers)
        retrier = Retrier(retry, clock, rng or random.SystemRandom())  # a fork shares no state
        self._sign_ins = SignIns(self._pool, retrier, lifecycle, clock)
        make_minter = Minter if tokens is None else partial(FleetMinter, tokens=tokens)
        self._minter = make_minter(
            lifecycle=lifecycle,
            pool=self._pool,
            sign_ins=self._sign_ins,
            cache=self._cache,
            stock=self._stock,
            fences=self._fences,
            admission=admission,
            retrier=retrier,
            counters=self._counters,
            clock=clock,
            observers=self._observers,
            on_stocked=self._stock_sweeper.schedule_sweep,
        )
        self._pending = PendingRequests(self._fences)
        self._issuer = Issuer(
            lifecycle=lifecycle,
            limiters=self._limiters,
            sign_ins=self._sign_ins,
            cache=self._cache,
            stock=self._stock,
            fences=self._fences,
            admission=admission,
            minter=self._minter,
            pending=self._pending,
            counters=self._counters,
            clock=clock,
            observers=self._observers,
        )
        self._prewarmer = Prewarmer(
            limiters=self._limiters,
            minter=self._minter,
            pending=self._pending,
            sign_ins=self._sign_ins,
            stock=self._stock,
            clock=clock,
            min_remaining=cache.min_remaining,
            max_connections=pool.max_connections,
        )
        self._closing: asyncio.Task[None] | None = None
        self._lifecycle = lifecycle  # last: without it, the service has not been made

    async def __aenter__(self) -> Self:
        self._lifecycle.check_open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        is_open = hasattr(self, "_lifecycle") and self._lifecycle.state is not State.CLOSED
        if is_open and self._lifecycle.is_used and len(self._pool):
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        if not hasattr(self, "_lifecycle"):  # a traceback of its making may show it
            return "<AsyncTokenService, not made>"
        return (
            f"<AsyncTokenService {self._lifecycle.state.value}, "
            f"{len(self._minter.flights)} flights, {self._limiters.waiting} waiting, "
            f"{len(self._cache)} tokens, {len(self._stock)} in stock>"
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
            idempotency_key, fresh, timeout, priority: as for :meth:`issue`.

        Returns:
            ``token``, ``tokenExpirationTime`` and ``sessionExpirationTime``, as boto3 gives them;
            the dict is the caller's own.

        Raises:
            ChatTokenError: as :meth:`issue` does.
        """
        entry = None
        try:
            # The most frequent call takes a short way: for a token that was delivered.
            is_plain = idempotency_key is None and not fresh and priority.__class__ is Priority
            if is_plain and self._lifecycle.loop_while_open is asyncio.get_running_loop():
                try:
                    identity = unchecked_identity(
                        roomIdentifier, userId, capabilities, attributes, sessionDurationInMinutes
                    )
                    if identity is not None:
                        entry = self._issuer.find_delivered(identity)
                except TypeError:
                    pass  # `TokenRequest`, below, says what is wrong with them
            if entry is not None:
                return entry.reply()
            issuing = self.issue(
                TokenRequest(
                    roomIdentifier, userId, capabilities, attributes, sessionDurationInMinutes
                ),
                idempotency_key=idempotency_key,
                fresh=fresh,
                timeout=timeout,
                priority=priority,
            )
        finally:
            # A traceback that shows locals must not show these.
            identity = None
            del roomIdentifier, userId, capabilities, attributes, sessionDurationInMinutes
            del idempotency_key
        return (await issuing).reply()

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
                cannot be served by then is refused at once. ``None``: as long as it takes.
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
            CredentialsFailed: nothing could be sent.
            WrongLoop: the service was opened on another event loop or in another process.
        """
        # The most frequent call takes a short way: for a token that was delivered.
        is_plain = idempotency_key is None and not fresh and priority.__class__ is Priority
        is_plain = is_plain and request.__class__ is TokenRequest
        if is_plain and self._lifecycle.loop_while_open is asyncio.get_running_loop():
            entry = self._issuer.find_delivered(request.identity)
            if entry is not None:
                token = entry.token
                return token if token.reused else entry.hand_out()
        try:
            self._lifecycle.check_open()
            key, priority = sharing_key(request, idempotency_key, fresh), checked_priority(priority)
        finally:
            del idempotency_key  # out of tracebacks that show locals
        available = self._issuer.take_available(request, key)
        if available is not None:
            return available
        return await self._issuer.wait_for_token(request, key, priority, timeout)

    def ready(
        self, request: TokenRequest, *, idempotency_key: str | None = None, fresh: bool = False
    ) -> ChatToken | None:
        """Issue a token that is there already, or none: what :meth:`issue` does without waiting.

        Args:
            request, idempotency_key, fresh: as for :meth:`issue`.

        Returns:
            A token as :meth:`issue` gives it; ``None`` if this process has none to give.

        Raises:
            InvalidRequest: an argument breaks a limit.
            ServiceClosed: the service is closing or closed.
            WrongLoop: the service was opened on another event loop, thread or process.
        """
        try:
            self._lifecycle.check_open()
            key = sharing_key(request, idempotency_key, fresh)
        finally:
            del idempotency_key  # out of tracebacks that show locals
        return self._issuer.take_available(request, key)

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
                before them. It ends when they open, whatever AWS does: what has not had its turn
                by then is left out. ``None``: now, and all of them.
            budget: share of the quota that may be spent on it, above 0 and at most 1. A crowd that
                comes meanwhile finds the rest unspent.

        Returns:
            How many tokens came, what failed, and what was not minted for which reason.

        Raises:
            InvalidRequest: ``doors`` or ``budget`` is out of its range.
            ServiceClosed: the service is closing or closed.
            WrongLoop: the service was opened on another event loop or in another process.
        """
        self._lifecycle.check_open()
        prewarmed = await self._prewarmer.run(requests, doors, budget)
        await self._minter.settle()
        self._lifecycle.check_open()
        return prewarmed

    def invalidate(self, *, room: str | None = None, user: str | None = None) -> None:
        """Forget every cached and stocked token of a user, of a room, or of a user in a room.

        In a fleet every process forgets them, within a tenth of a second; while the engine is
        away, as soon as it is back.

        Flights under way go on, but only for those who wait for them already: their tokens are not
        kept. To ban somebody, stop issuing to them first, then call this, then disconnect them;
        nothing can revoke a token that was handed out. Any thread may call this: it holds for all
        that the service is asked afterwards.

        Args:
            room: the room's ARN.
            user: the user's id.

        Raises:
            InvalidRequest: neither was given, or one breaks a limit.
            ServiceClosed: in a fleet, the service is closing or closed.
            WrongLoop: its event loop is closed, of another process or, in a fleet, not known yet.
        """
        try:
            self._lifecycle.run_on_loop(self._minter.invalidate, *checked_names(room, user))
        finally:
            del room, user  # out of tracebacks that show locals

    def estimate(self, room: str, *, priority: Priority = Priority.NORMAL) -> float:
        """Return the seconds that a new call for a room would wait for its turn now.

        Args:
            room: the room's ARN; calls wait together by its account and region.
            priority: the priority of the call.

        Raises:
            InvalidRequest: the room is not a room's ARN.
            WrongLoop: the service's event loop runs in another thread or process.
        """
        try:
            self._lifecycle.check_thread()
            limiter = self._limiters.get_or_make(RoomArn.parse(room))
            return limiter.predicted_wait(checked_priority(priority), plain(room))
        finally:
            del room  # out of tracebacks that show locals: it may be anything

    def stats(self) -> Stats:
        """Return the counters and the state of the moment; any thread may ask."""
        return Stats(
            **asdict(self._counters),
            cached=self._cache.hits,
            rejected=self._minter.rejected,
            expired_unused=self._stock.expired_unused,
            flights=len(self._minter.flights),
            waiting=self._limiters.waiting,
            tokens_held=len(self._cache),
            stock_held=len(self._stock),
            learnt=self._limiters.learnt,
        )

    async def aclose(self, *, grace: float = 5.0) -> None:
        """Refuse new calls, wait for answers to requests that were sent, and close the clients.

        Calls that still wait for their turn fail with :class:`ServiceClosed` at once. Closing
        twice is fine.

        Args:
            grace: seconds that requests under way may take.

        Raises:
            Interrupted: somebody outside cancelled the closing; close again.
            WrongLoop: the service was opened on another event loop or in another process.
        """
        lifecycle = self._lifecycle
        if not lifecycle.is_used:
            lifecycle.end()
        if lifecycle.state is State.CLOSED:
            return
        lifecycle.check_loop()
        if self._closing is None or self._closing.done():  # the last one was cancelled, or failed
            lifecycle.begin_closing()
            self._prewarmer.stop()
            self._pool.begin_closing()
            self._closing = start_task(self._close(grace))
        # The task goes on if this caller is cancelled.
        await asyncio.wait((closing := self._closing,))
        if closing.cancelled():
            raise Interrupted("closing the service")
        closing.result()

    async def _close(self, grace: float) -> None:
        await self._sign_ins.aclose()
        await self._minter.land_flights(grace)
        self._stock_sweeper.close()
        await self._pool.aclose()
        await self._tier.aclose()
        self._cache.clear()
        self._stock.clear()
        self._lifecycle.end()

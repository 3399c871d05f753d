"""Runs a program: the real service on an upstream in memory, watched after every turn of the loop.

All invariants are checked here; each is stated by the message of its failure.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine
from dataclasses import asdict, replace
from random import Random
from typing import Any

from botocore.exceptions import EndpointConnectionError

from aioivschat import (
    AccessDenied,
    AsyncTokenService,
    CachePolicy,
    ConnectionFailed,
    DeadlineExceeded,
    Delivered,
    MalformedResponse,
    Overloaded,
    PendingVerification,
    PoolPolicy,
    Quota,
    RetryPolicy,
    ServerFault,
    ServiceClosed,
    Source,
    Stats,
    Throttled,
    ValidationFailed,
)
from aioivschat._models import TOKEN_LIFE_SECONDS, Identity, RoomArn
from aioivschat._service.minting import TokenFlight
from aioivschat.emulator._faults import Fault, FaultKind
from aioivschat.emulator._model import Emulator
from aioivschat.planning._virtual_time import EPOCH
from search.simulation.books import (
    ROUNDING,
    Bucket,
    Call,
    CountedLimiter,
    CountingTier,
    Token,
    Window,
    who,
)
from search.simulation.loop import ShuffledLoop
from search.simulation.programs import (
    ROOMS,
    USERS,
    Advance,
    Busy,
    Cancel,
    Close,
    Fail,
    Invalidate,
    Issue,
    Prewarm,
    Program,
    Ready,
    Recover,
    Reload,
    SlowDown,
    Step,
    StepWall,
    Suspend,
    Turn,
    Unreachable,
)
from search.simulation.upstream import Fate, Sent, Upstream
from support.virtual import VirtualClock

_LONG = 2_000.0
"""Virtual seconds after which a call that has not ended never will: the slowest pace that a
program's calls can be left at takes a tenth of it for all of them."""

_REFUSALS: dict[type[Exception], set[FaultKind]] = {
    AccessDenied: {FaultKind.ACCESS_DENIED, FaultKind.BAD_SIGNATURE},
    PendingVerification: {FaultKind.PENDING_VERIFICATION},
    ValidationFailed: {FaultKind.ECHO_USER},
}
"""Errors that callers may see only if one of these faults was injected."""

_FAILURES: dict[type[Exception], Fate] = {
    Throttled: Fate.THROTTLED,
    ServerFault: Fate.FAILED,
    ConnectionFailed: Fate.NO_ANSWER,
    MalformedResponse: Fate.ANSWERED,
}
"""Errors that callers may see only if a request had this fate."""


class Broken(AssertionError):
    """Something that must hold does not."""


class World:
    """Runs one program.

    Args:
        program: what happens.
        loop: on which loop.
        rng: all chance but the loop's.

    Attributes:
        trace: what happened, in order; the same each time.
        reached: situations that a search should reach, and how often each occurred.
    """

    def __init__(self, program: Program, loop: ShuffledLoop, rng: Random) -> None:
        self.program = program
        self.trace: list[tuple[object, ...]] = []
        self.reached: Counter[str] = Counter()
        self._loop = loop
        self._clock = VirtualClock()
        self._suspended = 0.0
        self._busy = 0.0
        self._invalidations: list[tuple[str | None, str | None]] = []
        self._calls: list[Call] = []
        self._prewarming: list[tuple[Prewarm, asyncio.Task[None]]] = []
        self._closing: list[asyncio.Task[None]] = []
        self._closed = False
        self._grace = 0.0
        self._tokens: dict[str, Token] = {}
        self._handed_out = 0
        self._raised: list[BaseException] = []
        self._left: dict[asyncio.Task[None], float] = {}  # when they ended
        self._complaints: list[str] = []  # raised there they would only fail a request
        self._told: Counter[type[object]] = Counter()
        self._injected: set[FaultKind] = set()
        self._unreachable = False
        self._fenced: list[object] = []
        setting = program.setting
        self._model = Emulator(
            # On clocks of its own, which steps of the host's clocks leave alone.
            clock=lambda: EPOCH + loop.time() + self._suspended,
            monotonic=lambda: loop.time() + self._suspended,
            uniform=rng.random,
            quota=setting.quota,
            latency=setting.latency,
            jitter=setting.jitter,
            token_life=setting.token_life,
            clock_skew=setting.clock_skew,
            date_header=setting.date_header,
        )
        self._upstream = Upstream(
            self._model, self._clock, setting.read_timeout, setting.opening, self._on_send
        )
        quota = Quota(setting.rate, setting.burst, setting.max_waiting)
        self._limiters: dict[tuple[str, str], CountedLimiter] = {}
        for room in ROOMS:
            arn = RoomArn.parse(room)
            key = arn.account, arn.region
            if key not in self._limiters:
                self._limiters[key] = CountedLimiter(quota, self._clock, self._on_learnt)
        self.service = AsyncTokenService(
            shared=CountingTier(self._limiters),
            session=self._upstream.session(),
            endpoint_url="http://127.0.0.1",
            quota=quota,
            retry=RetryPolicy(setting.max_attempts, 0.1, setting.max_delay),
            cache=CachePolicy(setting.max_tokens, setting.max_stock, setting.min_remaining),
            pool=PoolPolicy(setting.max_connections, prepared=False),
            observers=[self._on_event],
            clock=self._clock,
            rng=rng,
        )
        self._quotas = {
            place: Window(setting.rate)
            if setting.burst is None
            else Bucket(setting.rate, setting.burst)
            for place in self._limiters
        }
        self._take_over = self.service._pending.take_over
        self.service._pending.take_over = self._watched_take_over  # type: ignore[method-assign]
        loop.after_turn = self._check

    async def run(self) -> None:
        """Run the program and all calls that it has begun to their end."""
        for step in self.program.steps:
            self._note("step", step)
            await self._perform(step)
        await self._end()

    # What happens.

    async def _perform(self, step: Step) -> None:
        loop, model, service = self._loop, self._model, self.service
        match step:
            case Issue():
                for _ in range(step.callers):
                    call = self._new_call(step)
                    call.task = self._start(self._issue(call))
            case Ready():
                self._ready(self._new_call(step))
            case Prewarm():
                self._prewarming.append((step, self._start(self._prewarm(step))))
            case Cancel():
                self._cancel(step.caller)
            case Reload():
                await self._reload(step.caller)
            case Turn():
                await asyncio.sleep(0)
            case Advance():
                await asyncio.sleep(step.seconds)
            case Busy():
                loop.stall(step.seconds)
                self._busy += step.seconds
            case Suspend():
                self._suspended += step.seconds
                self._clock.step += step.seconds
            case StepWall():
                self._clock.step += step.seconds
            case Fail():
                model.fail_next(Fault(step.kind, step.times, step.retry_after))
                self._injected.add(step.kind)
            case Recover():
                model.clear_faults()
            case Unreachable():
                self._upstream.unreachable += step.times
                self._unreachable = True
            case SlowDown():
                model.configure(latency=step.seconds)
            case Invalidate():
                room = None if step.room is None else ROOMS[step.room]
                user = None if step.user is None else USERS[step.user]
                self._invalidations.append((room, user))
                self._fenced += [
                    flight
                    for flight in service._minter.flights
                    if room in (None, flight.call.request.room)
                    and user in (None, flight.call.request.user)
                ]
                self.reached["flight invalidated"] += len(self._fenced)
                service.invalidate(room=room, user=user)
            case Close():
                if len(service._minter.flights):
                    self.reached["closed with flights under way"] += 1
                self._closing.append(self._start(self._close(step.grace)))
                await asyncio.sleep(0)

    def _cancel(self, caller: int) -> None:
        waiting = [call for call in self._calls if call.task and not call.task.done()]
        tasks = [task for _, task in self._prewarming if not task.done()]
        tasks += [call.task for call in waiting if call.task]
        if not tasks:
            return
        task = tasks[-1 - caller % len(tasks)]
        task.cancel()
        for call in waiting:
            call.cancelled |= call.task is task
        self.reached["caller cancelled"] += 1

    async def _reload(self, caller: int) -> None:
        waiting = [call for call in self._calls if call.task and not call.task.done()]
        if not waiting:
            return
        chosen = waiting[-1 - caller % len(waiting)]
        for call in waiting:
            if call.attempt == chosen.attempt and call.task is not None:
                call.cancelled = call.task.cancel()
        assert isinstance(chosen.step, Issue)
        await self._perform(replace(chosen.step, callers=1))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        task.add_done_callback(lambda task: self._left.update({task: self._loop.time()}))
        return task

    def _new_call(self, step: Issue | Ready) -> Call:
        request = step.who.request()
        number, began = len(self._calls), self._loop.time()
        call = Call(number, step, request, began, self._busy, len(self._invalidations))
        self._calls.append(call)
        return call

    async def _issue(self, call: Call) -> None:
        step, request, service = call.step, call.request, self.service
        assert isinstance(step, Issue)
        options: dict[str, Any] = {
            "idempotency_key": step.how if step.how.startswith("key") else None,
            "fresh": step.how == "fresh",
            "timeout": step.timeout,
            "priority": step.priority,
        }
        # The task may begin to run later than it was made.
        call.began, call.busy = self._loop.time(), self._busy
        call.invalidations = len(self._invalidations)
        closed = self._closed
        try:
            if step.boto3:
                members = request.as_members()
                reply = await service.create_chat_token(**members, **options)
                text, reused = reply["token"], None
            else:
                token = await service.issue(request, **options)
                text, reused = token.token, token.reused
        except asyncio.CancelledError:
            self._ended(call, "cancelled")
            if not call.cancelled:
                raise Broken("a caller whom nobody cancelled sees CancelledError") from None
        except Exception as error:
            self._ended(call, type(error).__name__)
            self._check_error(call, error)
        else:
            self._ended(call, "token")
            self._check_token(call, text, reused)
            if closed:
                raise Broken("a closed service hands out a token")

    def _ready(self, call: Call) -> None:
        how = call.step.how
        try:
            token = self.service.ready(
                call.request,
                idempotency_key=how if how.startswith("key") else None,
                fresh=how == "fresh",
            )
        except ServiceClosed as error:
            self._ended(call, "ServiceClosed")
            self._check_error(call, error)
            return
        self._ended(call, "token" if token else "nothing")
        if token is not None:
            self._check_token(call, token.token, token.reused)

    async def _prewarm(self, step: Prewarm) -> None:
        requests = [each.request() for each in step.who]
        try:
            done = await self.service.prewarm(requests, doors=step.doors, budget=step.budget)
        except ServiceClosed:
            if not self._closed:
                raise Broken("an open service says that it is closed") from None
            return
        failed = sum(done.failed.values())
        if done.minted + failed + done.served + done.left_out != len(requests):
            raise Broken(f"prewarming counts {len(requests)} requests as {done}")
        self.reached["prewarmed"] += done.minted
        self.reached["prewarming failed"] += failed
        self.reached["prewarming made way"] += done.served
        self.reached["prewarming left out"] += done.left_out
        self._note("prewarmed", done.minted, failed, done.served, done.left_out)

    async def _close(self, grace: float) -> None:
        began, busy = self._loop.time(), self._busy
        if not self._closed:
            self._closed, self._grace = True, grace
        await self.service.aclose(grace=grace)
        took = self._loop.time() - began - (self._busy - busy)
        if took > self._grace + ROUNDING:
            raise Broken(f"closing with a grace of {self._grace} s takes {took} s")

    async def _end(self) -> None:
        """Wait until all calls have ended, and check that nothing is left."""
        self._model.clear_faults()
        self._upstream.unreachable = 0
        tasks = [call.task for call in self._calls if call.task is not None]
        tasks += [task for _, task in self._prewarming] + self._closing
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=_LONG)
            if pending:
                raise Broken(f"{len(pending)} of {len(tasks)} calls never end")
        for task in tasks:
            if not task.cancelled():
                task.result()
        for call in self._calls:
            if call.cancelled and call.outcome not in (None, "cancelled"):
                raise Broken(f"a cancelled caller sees {call.outcome}")
        await asyncio.sleep(_LONG)
        self._check_rest()
        await self.service.aclose()
        if len(asyncio.all_tasks()) != 1:
            raise Broken("a closed service has tasks")
        stats = self.service.stats()
        if stats.tokens_held or stats.stock_held:
            raise Broken("a closed service has tokens")
        self._note("end", *asdict(stats).values())

    # What must hold.

    def _check(self) -> None:
        """Check what holds between any two turns of the loop."""
        if complaints := self._complaints or self._loop.complaints:
            raise Broken(complaints[0])
        flights = list(self.service._minter.flights)
        keys = [
            flight.key
            for flight in flights
            if flight.key is not None and flight not in self._fenced and not flight.done
        ]
        if len(keys) != len(set(keys)):
            raise Broken("two live flights for one key")
        if any(flight.leaving for flight in flights):
            self.reached["flight being cancelled"] += 1
        most = self.program.setting.max_attempts
        if any(flight.sent > most for flight in flights):
            raise Broken("more is tried for one token than may be")
        sent = self._upstream.sent
        # All counts of the model would take a tenth of a program's time.
        received, stats = self._model._tally["requests"], self.service._counters
        if not stats.requests == received == len(sent):
            raise Broken(f"{stats.requests} requests are counted, {len(sent)} were sent")
        spent = sum([limiter.spent for limiter in self._limiters.values()])
        if spent != len(sent):
            raise Broken(f"{spent} permits were used, {len(sent)} requests sent")
        fates = self._upstream.fates
        open_ = len(sent) - sum(fates.values())
        settled = stats.minted + stats.throttled + stats.failed
        if settled + open_ + fates[Fate.CUT] != len(sent):
            raise Broken(f"of {len(sent)} requests {open_} are open, and {settled} are counted")
        if stats.throttled != fates[Fate.THROTTLED] or stats.minted > fates[Fate.ANSWERED]:
            raise Broken(f"{stats} does not tell of {fates}")
        if self._told[Delivered] != self._handed_out:
            raise Broken(f"{self._told[Delivered]} are told of, {self._handed_out} handed out")
        setting, cache, stock = self.program.setting, self.service._cache, self.service._stock
        told = self.reached[f"from {Source.CACHE}"], self.reached[f"from {Source.STOCK}"]
        if told != (cache.hits, stats.stock):
            raise Broken(f"{cache.hits} hits, {stats.stock} from stock, told of {told}")
        if len(cache) > setting.max_tokens or len(stock) > setting.max_stock:
            raise Broken("more tokens are held than may be")

    def _on_send(self, sent: Sent) -> None:
        self._note("sent", sent.region, sent.who[0], sent.who[1])
        sent.invalidations = len(self._invalidations)
        wanted = [
            task for call in self._calls if (task := call.task) and sent.who == who(call.request)
        ]
        for step, task in self._prewarming:
            if sent.who in [who(each.request()) for each in step.who]:
                wanted.append(task)
        # A caller who leaves at this very moment may be too late to prevent the request.
        if all(self._left.get(task, math.inf) < self._loop.time() for task in wanted):
            self._complaints.append("a request is sent for nobody")
        arn = RoomArn.parse(sent.who[0])
        if arn.region != sent.region:
            self._complaints.append("a request goes to another region than its room's")
        if not self._quotas[arn.account, arn.region].admits(sent):
            self._complaints.append("more requests in a second than the quota allows")

    def _check_token(self, call: Call, text: str, reused: bool | None) -> None:
        """Check a token at the moment at which it is handed out."""
        sent = self._upstream.tokens.get(text)
        if sent is None:
            raise Broken("a token is handed out that never came")
        self._note("token", call.number, sent.number)
        if sent.who != who(call.request):
            raise Broken("a token is handed out for another identity")
        for room, user in self._invalidations[sent.invalidations : call.invalidations]:
            if room in (None, sent.who[0]) and user in (None, sent.who[1]):
                raise Broken("a token is handed out that was invalidated before it was asked for")
        token = self._tokens.setdefault(text, Token(call.attempt))
        if token.attempt != call.attempt:
            raise Broken("a token is handed out to two attempts")
        if reused is not None and reused != (token.times > 0):
            raise Broken(f"a token handed out {token.times} times before says reused={reused}")
        token.times += 1
        self._handed_out += 1
        self.reached[f"{call.step.how.partition('-')[0]} token"] += 1
        setting = self.program.setting
        life = setting.token_life
        if life < TOKEN_LIFE_SECONDS:
            # The service knows a shorter life only by the Date header, which has whole seconds.
            life = life + 1 if setting.date_header == "normal" else TOKEN_LIFE_SECONDS
        life -= setting.min_remaining
        if self._clock.monotonic() - sent.at > life + ROUNDING:
            raise Broken("a token is handed out too late by the monotonic clock")
        if self._clock.wall() - sent.at_wall > life + ROUNDING:
            raise Broken("a token is handed out too late by the wall clock")

    def _check_error(self, call: Call, error: Exception) -> None:
        """Check that a failure is a documented one, and that there is a reason for it."""
        if any(error is other for other in self._raised):
            raise Broken("two callers see one exception object")
        self._raised.append(error)
        self.reached[type(error).__name__] += 1
        step = call.step
        explained = False
        match error:
            case ServiceClosed():
                explained = self._closed
            case Overloaded():
                explained = math.isfinite(error.retry_after) and error.retry_after >= 0
            case DeadlineExceeded():
                assert isinstance(step, Issue)
                waited = self._loop.time() - call.began
                explained = step.timeout is not None and waited >= step.timeout - ROUNDING
            case EndpointConnectionError():
                explained = self._unreachable
            case _:
                for kind, causes in _REFUSALS.items():
                    explained |= isinstance(error, kind) and bool(causes & self._injected)
                for kind, fate in _FAILURES.items():
                    explained |= isinstance(error, kind) and bool(self._upstream.fates[fate])
        if not explained:
            raise Broken(f"for no reason: {error!r}")

    def _ended(self, call: Call, outcome: str) -> None:
        call.outcome = outcome
        self._note("ended", call.number, outcome)
        timeout = call.step.timeout if isinstance(call.step, Issue) else 0.0
        took = self._loop.time() - call.began - (self._busy - call.busy)
        if timeout is not None and took > timeout + ROUNDING:
            raise Broken(f"a call with a timeout of {timeout} s takes {took} s")

    def _check_rest(self) -> None:
        """Check what holds once everything has ended."""
        stats = self.service.stats()
        if stats.flights or stats.waiting:
            raise Broken(f"at rest: {stats}")
        if not self._closed:
            self._check_stock(stats)
        if len(asyncio.all_tasks()) != 1:
            raise Broken("at rest there are tasks")
        if self._loop.timers():
            raise Broken("at rest there are timers")
        for limiter in self._limiters.values():
            if unspent := limiter._pace._unspent:
                raise Broken(f"at rest {unspent} permits are reserved")

    def _check_stock(self, stats: Stats) -> None:
        """Check that no token was lost: all were handed out, or went into the stock."""
        if stats.stocked != stats.stock + stats.expired_unused + stats.stock_held:
            raise Broken(f"at rest the stock does not add up: {stats}")
        lost = stats.minted - (len(self._tokens) - stats.stock) - stats.stocked
        # Tokens that were invalidated in flight, or expired as time jumped, go to nobody.
        harmless = self._invalidations or any(
            isinstance(step, Busy | Suspend | StepWall) for step in self.program.steps
        )
        self.reached["died or was invalidated on its way"] += lost
        if lost < 0 or (lost and not harmless):
            raise Broken(f"{lost} tokens are lost: {stats}")

    # The books.

    def _on_event(self, event: object) -> None:
        self._told[type(event)] += 1
        self.reached[type(event).__name__] += 1
        source = getattr(event, "source", None)
        if source is not None:
            self.reached[f"from {source}"] += 1

    def _watched_take_over(self, identity: Identity, deadline: float) -> TokenFlight | None:
        flight = self._take_over(identity, deadline)
        self.reached["flight of prewarming taken over"] += flight is not None
        return flight

    def _on_learnt(self, rate: float, burst: int) -> None:
        slower = rate < 0.9 * self.program.setting.rate
        self.reached["rate changed" if slower else "burst learnt"] += 1

    def _note(self, *what: object) -> None:
        self.trace.append((round(self._loop.time(), 6), *what))


def run(program: Program) -> World:
    """Run a program on a loop of its own.

    Raises:
        Broken: something that must hold does not.
    """
    loop = ShuffledLoop(Random(program.seed))
    world = loop.run_until_complete(_world(program, loop))
    try:
        loop.run_until_complete(world.run())
    finally:
        loop.give_up()
        # After a failure the pool is not closed, and would warn of that in a later test.
        world.service._pool._calls.clear()
    return world


async def _world(program: Program, loop: ShuffledLoop) -> World:
    # Its clock is that of the running loop.
    return World(program, loop, Random(program.seed + 1))

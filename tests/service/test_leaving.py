"""A permit counts when its request leaves, and no more are under way than there are connections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.awsrequest import AioAWSResponse

from aioivschat import PoolPolicy, Priority, Quota, RetryPolicy, TokenRequest
from aioivschat._service.fair_queue import Connections
from aioivschat._service.limiter import LocalLimiter
from aioivschat.emulator import QuotaShape
from support.raw_servers import BODY, certificate, tls
from support.services import ROOM, OpenService, local_session, until
from support.talking_server import talking_server
from support.virtual import VirtualClock, virtual_time


def connections(most: int) -> Connections:
    """Return the connections to a region."""
    return Connections(VirtualClock(), most)


@dataclass
class Upstream:
    """AWS and the connections to it, in virtual time.

    Args:
        limiter: of its callers.
        latency: seconds that an answer takes now.
        connect: returns the seconds that a connection takes to open now.

    Attributes:
        arrivals: when requests came.
        waits: how long each call waited until its request left, and how long that was said to be.
        idle: connections that wait to be used again.
    """

    limiter: LocalLimiter
    latency: float = 0.02
    connect: Callable[[], float] = lambda: 0.0
    arrivals: list[float] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    idle: int = 0

    async def call(self) -> None:
        """Send one request."""
        clock = VirtualClock()
        called, reservation = clock.monotonic(), self.limiter.reserve()
        await reservation.granted()
        if self.idle:
            self.idle -= 1
        else:
            await asyncio.sleep(self.connect())
        await reservation.spend()
        self.arrivals.append(clock.monotonic())
        self.waits.append((clock.monotonic() - called, max(0.0, reservation.expected - called)))
        await asyncio.sleep(self.latency)
        self.idle += 1
        reservation.release()

    def most_in_a_second(self) -> int:
        """Return how many came in the worst sliding second."""
        times, first, most = self.arrivals, 0, 0
        for last, time in enumerate(times):
            while times[first] <= time - 1.0:
                first += 1
            most = max(most, last - first + 1)
        return most

    def throttled_by(self, shape: str) -> int:
        """Return how many a quota of this shape does not admit."""
        meter = QuotaShape.parse(shape).meter()
        return sum(not meter.admit(time) for time in self.arrivals)


def upstream(quota: Quota = Quota(), **options: Any) -> Upstream:  # noqa: B008 (frozen)
    """Return one with as many connections as a service has."""
    limiter = LocalLimiter(quota, VirtualClock(), None, connections(100))
    return Upstream(limiter, **options)


@pytest.mark.fault(31)
@pytest.mark.parametrize("latency", [0.001, 0.02, 0.2, 0.4])
@pytest.mark.parametrize("connect", [0.0, 0.1])
@virtual_time
async def test_no_second_sees_more_than_the_quota_however_slow_connections_are(
    latency: float, connect: float
) -> None:
    """From cold, 1,000 at once: as fast as the quota allows, and not one throttled."""
    aws = upstream(latency=latency, connect=lambda: connect)
    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(aws.call() for _ in range(1_000)))
    took = asyncio.get_running_loop().time() - started
    assert 1_000 == len(aws.arrivals)
    assert aws.most_in_a_second() <= 200
    assert 0 == aws.throttled_by("bucket:200:20") == aws.throttled_by("fixed:200")
    assert took <= 1_000 / 198 + connect + latency + 0.02


@pytest.mark.fault(31)
@virtual_time
async def test_connections_that_open_late_and_together_are_no_flood() -> None:
    """The network is away for 2.5 s: what was granted meanwhile leaves at the pace of the quota."""
    loop, rng = asyncio.get_running_loop(), random.Random(1)
    back = loop.time() + 2.5
    aws = upstream(connect=lambda: max(back - loop.time(), 0.0) + rng.uniform(0, 0.01))
    await asyncio.gather(*(aws.call() for _ in range(1_000)))
    assert aws.most_in_a_second() <= 200
    assert 0 == aws.throttled_by("bucket:200:20")


@pytest.mark.fault(31)
@pytest.mark.parametrize("quota", [Quota(), Quota(burst=200)], ids=["window", "bucket"])
@virtual_time
async def test_a_slow_spell_is_not_followed_by_a_flood(quota: Quota) -> None:
    """150 calls a second, answers that take 2 s for 6 s: who waits for a connection has no permit,
    and estimates know of it."""
    aws = upstream(quota)
    loop = asyncio.get_running_loop()
    start = loop.time()
    calls = []
    for number in range(150 * 16):
        now = loop.time() - start
        aws.latency = 2.0 if 2.0 <= now < 8.0 else 0.02
        calls.append(asyncio.create_task(aws.call()))
        await asyncio.sleep(max(0.0, (number + 1) / 150 - now))
    await asyncio.gather(*calls)
    assert aws.most_in_a_second() <= (200 if quota.burst is None else 400)
    assert 0 == aws.throttled_by("bucket:200:200")
    # Those who wait for long were told so, though for none of them too short by half.
    late = [(waited, said) for waited, said in aws.waits if waited > 1.0]
    assert len(late) > 100
    slow_begins = [said for waited, said in late if said < waited / 2]
    # But for those who came before the first slow answer could be seen to be slow.
    assert len(slow_begins) < 150


@pytest.mark.fault(31)
@virtual_time
async def test_the_wait_for_a_connection_is_foreseen() -> None:
    """With two connections of half a second each, four calls a second are what can be."""
    limiter = LocalLimiter(Quota(), VirtualClock(), None, connections(2))
    aws = Upstream(limiter, latency=0.5)
    await asyncio.gather(*(aws.call() for _ in range(100)))
    assert 2 == aws.idle
    calls = [asyncio.create_task(aws.call()) for _ in range(20)]
    await asyncio.sleep(0.25)
    assert 18 == limiter.waiting
    foreseen = limiter.predicted_wait()
    calls.append(asyncio.create_task(aws.call()))
    await asyncio.gather(*calls)
    assert foreseen == pytest.approx(aws.waits[-1][0], abs=0.5)
    assert 0.0 == limiter.predicted_wait()


@virtual_time
async def test_a_connection_that_is_free_goes_to_the_most_urgent() -> None:
    """Priorities hold for connections as for permits, and who leaves gives both back."""
    limiter = LocalLimiter(Quota(), VirtualClock(), None, connections(1))
    first = limiter.reserve()
    await first.granted()
    order: list[str] = []

    async def wait(name: str, priority: Priority) -> None:
        reservation = limiter.reserve(priority)
        await reservation.granted()
        order.append(name)
        reservation.release()  # it has not left

    tasks = [
        asyncio.create_task(wait("later", Priority.BACKGROUND)),
        asyncio.create_task(wait("sooner", Priority.HIGH)),
    ]
    await asyncio.sleep(1.0)
    assert [] == order
    first.release()
    await asyncio.gather(*tasks)
    assert ["sooner", "later"] == order
    assert (0, 0.0) == (limiter.waiting, limiter.predicted_wait())


@pytest.mark.fault(31)
@virtual_time
async def test_accounts_of_a_region_share_its_connections_in_turns() -> None:
    """No limiter grants what another has; each is told of the others, and none is forgotten."""
    shared = connections(2)
    limiters = [LocalLimiter(Quota(), VirtualClock(), None, shared) for _ in range(3)]
    aws = [Upstream(limiter, latency=0.5) for limiter in limiters]
    await asyncio.gather(*(each.call() for each in aws for _ in range(10)))
    crowds = [asyncio.create_task(each.call()) for each in aws[:2] for _ in range(20)]
    await asyncio.sleep(0.25)
    assert [0.0, 2] == [shared.free, sum(20 - limiter.waiting for limiter in limiters[:2])]
    # The newcomer of another account waits for one turn of each; that of these, for all.
    assert limiters[2].predicted_wait() == pytest.approx(0.75)
    newcomer = asyncio.create_task(aws[2].call())
    await asyncio.sleep(0)
    foreseen = limiters[0].predicted_wait()
    last = asyncio.create_task(aws[0].call())
    await asyncio.gather(newcomer, last, *crowds)
    assert aws[2].waits[-1][0] <= 1.0
    assert foreseen == pytest.approx(aws[0].waits[-1][0], abs=0.6)
    assert (2.0, 0, 0.0) == (shared.free, limiters[0].waiting, limiters[0].predicted_wait())


@virtual_time
async def test_the_first_answers_tell_how_long_the_rest_waits() -> None:
    """From cold, as soon as one round of answers is there."""
    limiter = LocalLimiter(Quota(), VirtualClock(), None, connections(2))
    aws = Upstream(limiter, latency=0.5)
    calls = [asyncio.create_task(aws.call()) for _ in range(20)]
    await asyncio.sleep(0.51)
    foreseen = limiter.predicted_wait()
    started = asyncio.get_running_loop().time()
    calls.append(asyncio.create_task(aws.call()))
    await asyncio.gather(*calls)
    assert foreseen == pytest.approx(aws.arrivals[-1] - started, abs=0.6)


@pytest.mark.fault(31)
@virtual_time
async def test_connections_that_do_not_open_are_in_the_wait_for_one() -> None:
    """Those that failed to open held their place as long as others: estimates know."""
    limiter = LocalLimiter(Quota(), VirtualClock(), None, connections(10))

    async def fail() -> None:
        reservation = limiter.reserve()
        await reservation.granted()
        await asyncio.sleep(3.0)
        reservation.release()

    tasks = [asyncio.create_task(fail()) for _ in range(50)]
    await asyncio.sleep(3.1)
    assert 30 == limiter.waiting
    assert limiter.predicted_wait() == pytest.approx(9.0, abs=1.0)
    await asyncio.gather(*tasks)


@virtual_time
async def test_memory_is_bounded_whatever_the_rate() -> None:
    """Of permits that were spent only those within the window are remembered."""
    for rate in (1e9, 1e19, 1e300):
        limiter = LocalLimiter(Quota(rate=rate), VirtualClock())
        for _ in range(5):
            for _ in range(100):
                reservation = limiter.reserve()
                await reservation.granted()
                await reservation.spend()
                reservation.release()
            await asyncio.sleep(2.0)
        assert len(limiter._pace._recent) <= 101


@pytest.mark.fault(31)
@pytest.mark.parametrize("prepared", [True, False], ids=["direct", "general"])
async def test_what_has_no_connection_yet_has_spent_nothing(
    open_service: OpenService, prepared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While TLS handshakes hang no request counts; once they are over all are sent, and count."""
    file = certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    go_on, connected, ended = asyncio.Event(), 0, 0
    writers: list[asyncio.StreamWriter] = []

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
        target.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected, ended
        connected += 1
        await go_on.wait()
        port = int(server.url.rpartition(":")[2])
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, there_writer))
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))
        ended += 1

    with talking_server(tls(file)) as server:
        front = await asyncio.start_server(relay, "127.0.0.1", 0)
        url = f"https://127.0.0.1:{front.sockets[0].getsockname()[1]}"
        async with open_service(endpoint_url=url, pool=PoolPolicy(prepared=prepared)) as tokens:
            requests = [TokenRequest(ROOM, f"u{number}") for number in range(8)]
            calls = [asyncio.create_task(tokens.issue(request)) for request in requests]
            await until(lambda: connected == 8)
            assert (0, 8) == (tokens.stats().requests, tokens.stats().flights)
            go_on.set()
            await asyncio.gather(*calls)
            assert 8 == server.requests == tokens.stats().requests
        front.close()
        for writer in writers:
            writer.transport.abort()
        await until(lambda: ended == connected)


@pytest.mark.fault(31)
@pytest.mark.parametrize("status", [200, 429])
async def test_what_a_listener_answers_keeps_the_pace(
    open_service: OpenService, status: int
) -> None:
    """Over no connection of ours: by a recorder of answers, a mock, or a client of its own.

    A known bucket of one: a throttled request does not get its permit back.
    """

    class Answer(AioAWSResponse):
        async def _content_prop(self) -> bytes:
            return BODY

    headers: Any = {"x-amzn-requestid": "r", "x-amzn-errortype": "ThrottlingException"}
    session = local_session()
    session.register(
        "before-send.ivschat",
        lambda request, **_: Answer(request.url, status, headers, None),
    )
    tokens = open_service(
        session=session, quota=Quota(rate=0.01, burst=1), retry=RetryPolicy(max_attempts=1)
    )
    calls = [asyncio.create_task(tokens.issue(TokenRequest(ROOM, f"u{n}"))) for n in range(3)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert (1, 2) == (tokens.stats().requests, tokens.stats().waiting)
    assert tokens.estimate(ROOM) > 100.0
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)

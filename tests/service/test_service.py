"""The service's calls, against both local servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aioivschat import (
    AsyncTokenService,
    CachePolicy,
    Capability,
    ChatToken,
    InvalidRequest,
    Learnt,
    PoolPolicy,
    Priority,
    Quota,
    ResourceNotFound,
    ServiceClosed,
    TokenRequest,
)
from aioivschat.emulator import (
    Answer,
    Drop,
    Emulator,
    Fault,
    FaultKind,
    Hang,
    Request,
    ThreadedEmulatorServer,
)
from aioivschat.emulator.moto_backend import MotoServer
from aioivschat.planning._virtual_time import CreateChatToken, in_process_session
from support.services import ROOM, UNLIMITED, OpenService, Server, local_session, outcomes, until
from support.virtual import VirtualClock, virtual_time


@pytest.fixture(params=["emulator", "moto"])
def server(
    request: pytest.FixtureRequest, ivschat_emulator: ThreadedEmulatorServer
) -> Iterator[Server]:
    """Each of the two local servers."""
    if request.param == "emulator":
        yield ivschat_emulator
    else:
        with MotoServer() as moto:
            yield moto


def _service(server: Server, **options: Any) -> AsyncTokenService:
    options.setdefault("quota", UNLIMITED)
    return AsyncTokenService(session=local_session(), endpoint_url=server.url, **options)


async def test_the_boto3_call_gives_the_boto3_reply(server: Server) -> None:
    """Same keywords, same three members, aware datetimes."""
    async with _service(server) as tokens:
        reply = await tokens.create_chat_token(
            roomIdentifier=ROOM,
            userId="alice",
            capabilities=["SEND_MESSAGE"],
            attributes={"displayName": "Alice"},
            sessionDurationInMinutes=60,
        )
    assert {"token", "tokenExpirationTime", "sessionExpirationTime"} == set(reply)
    now = datetime.now(UTC)
    assert 50 < (reply["tokenExpirationTime"] - now).total_seconds() <= 60
    assert 3590 < (reply["sessionExpirationTime"] - now).total_seconds() <= 3600
    grant = server.emulator.redeem(reply["token"])
    assert ("alice", {"displayName": "Alice"}) == (grant.user_id, dict(grant.attributes))
    assert {"SEND_MESSAGE"} == set(grant.capabilities)


async def test_an_equal_plain_call_gets_the_same_token_marked_reused(server: Server) -> None:
    """Unexpired tokens are cached by identity, in whatever order its parts are given."""
    async with _service(server) as tokens:
        first = await tokens.issue(TokenRequest(ROOM, "u", ["SEND_MESSAGE", "DELETE_MESSAGE"]))
        again = await tokens.issue(TokenRequest(ROOM, "u", ["DELETE_MESSAGE", "SEND_MESSAGE"]))
        other = await tokens.issue(TokenRequest(ROOM, "u", ["SEND_MESSAGE"]))
    assert (False, True, False) == (first.reused, again.reused, other.reused)
    assert first.token == again.token != other.token
    assert 2 == server.emulator.counts().requests


async def test_a_missing_room_is_caught_as_boto3_users_catch_it(server: Server) -> None:
    """By the importable class, by the service's and by a client's of the same session."""
    server.emulator.configure(any_room=False)
    session = local_session()
    service = AsyncTokenService(session=session, endpoint_url=server.url)
    async with (
        session.create_client("ivschat", region_name="us-east-1") as client,
        service as tokens,
    ):
        for kind in (
            ResourceNotFound,
            tokens.exceptions.ResourceNotFoundException,
            client.exceptions.ResourceNotFoundException,
            client.exceptions.ClientError,
        ):
            with pytest.raises(kind) as caught:
                await tokens.issue(TokenRequest(ROOM, "u"))
            error = caught.value
            assert isinstance(error, ResourceNotFound)
            assert ("ResourceNotFoundException", 404) == (error.code, error.status)
            assert error.request_id
            assert "ROOM" == error.response["resourceType"]


async def test_a_thousand_equal_calls_make_one_request(server: Server) -> None:
    """Concurrent identical calls share one upstream call, also the very first ones."""
    async with _service(server) as tokens:
        request = TokenRequest(ROOM, "u")
        got = await asyncio.gather(*(tokens.issue(request) for _ in range(1000)))
        assert 999 == tokens.stats().joined
    assert 1 == len({token.token for token in got})
    assert 1 == sum(not token.reused for token in got)
    assert 1 == server.emulator.counts().requests


async def test_calls_share_a_token_only_with_an_equal_idempotency_key(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """One logical connection attempt gets one token, and nobody else gets it."""
    tokens = open_service()
    request = TokenRequest(ROOM, "u")

    async def issue(key: str | None) -> ChatToken:
        return await tokens.issue(request, idempotency_key=key)

    together = await asyncio.gather(*(issue(key) for key in ("a", "a", "b", None)))
    later = [await issue(key) for key in ("a", "b", None)]
    values = [token.token for token in together]
    assert values[0] == values[1]
    assert 3 == len(set(values))
    assert [values[0], values[2], values[3]] == [token.token for token in later]
    assert all(token.reused for token in later)
    assert 3 == ivschat_emulator.emulator.counts().requests


@pytest.mark.fault(5)
async def test_fresh_calls_get_tokens_nobody_was_handed(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """100 concurrent ones for one identity: 100 upstream calls, 100 distinct tokens."""
    tokens = open_service()
    request = TokenRequest(ROOM, "u")
    got = await asyncio.gather(*(tokens.issue(request, fresh=True) for _ in range(100)))
    assert 100 == len({token.token for token in got})
    assert not any(token.reused for token in got)
    assert 100 == ivschat_emulator.emulator.counts().requests
    # Nor does a plain call share with them.
    assert (await tokens.issue(request)).token not in {token.token for token in got}


async def test_prewarmed_tokens_go_to_one_attempt_each(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """Two in stock serve two fresh calls without a request; the third needs one."""
    tokens = open_service()
    request = TokenRequest(ROOM, "u")
    result = await tokens.prewarm([request, request])
    assert (2, {}) == (result.minted, result.failed)
    assert 2 == tokens.stats().stock_held
    got = [await tokens.issue(request, fresh=True) for _ in range(2)]
    assert 2 == ivschat_emulator.emulator.counts().requests
    got.append(await tokens.issue(request, fresh=True))
    assert 3 == ivschat_emulator.emulator.counts().requests
    assert 3 == len({token.token for token in got})
    assert not any(token.reused for token in got)


async def test_a_prewarmed_token_serves_a_keyed_attempt_and_its_retry(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """Stock goes to the attempt for good."""
    tokens = open_service()
    request = TokenRequest(ROOM, "u")
    await tokens.prewarm([request])
    first = await tokens.issue(request, idempotency_key="k")
    again = await tokens.issue(request, idempotency_key="k")
    assert (False, True) == (first.reused, again.reused)
    assert first.token == again.token
    assert 1 == ivschat_emulator.emulator.counts().requests


async def test_prewarm_takes_an_async_iterable_and_counts_failures(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """A failure is named by its class and stops nobody else."""
    tokens = open_service()
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.ACCESS_DENIED))

    async def requests() -> Any:
        for number in range(3):
            yield TokenRequest(ROOM, f"u{number}")

    result = await tokens.prewarm(requests())
    assert (2, {"AccessDenied": 1}) == (result.minted, result.failed)


async def test_a_call_takes_over_a_prewarming_flight(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """Who comes while their token is being minted ahead needs no second request."""
    ivschat_emulator.emulator.configure(latency=0.2)
    tokens = open_service()
    request = TokenRequest(ROOM, "u")
    prewarm = asyncio.create_task(tokens.prewarm([request]))
    await until(lambda: tokens.stats().requests == 1)
    keyed = [tokens.issue(request, idempotency_key="k") for _ in range(2)]
    got = await asyncio.gather(*keyed, tokens.issue(request, fresh=True))
    assert 1 == (await prewarm).minted
    assert got[0].token == got[1].token != got[2].token
    assert 0 == tokens.stats().stock_held
    assert 2 == ivschat_emulator.emulator.counts().requests


ONE_BY_ONE = PoolPolicy(max_connections=1)
"""Requests arrive in the order in which they are sent, however busy the machine is."""


class Diary(Emulator):
    """An emulator that writes down who it was asked for, in the order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.users: list[str] = []

    def respond(self, request: Request) -> Answer | Drop | Hang:
        """Answer a request."""
        self.users.append(json.loads(request.body)["userId"])
        return super().respond(request)


@pytest.fixture
def diary() -> Iterator[tuple[Diary, str]]:
    """A diary, and the URL of its server."""
    emulator = Diary()
    with ThreadedEmulatorServer(emulator) as server:
        yield emulator, server.url


async def test_more_urgent_calls_go_first(
    diary: tuple[Diary, str], open_service: OpenService
) -> None:
    """Moderators before viewers, first come first served within each."""
    emulator, url = diary
    tokens = open_service(endpoint_url=url, quota=Quota(rate=5.0, burst=1), pool=ONE_BY_ONE)

    async def issue(user: str, priority: Priority) -> None:
        await tokens.issue(TokenRequest(ROOM, user), priority=priority)

    await asyncio.gather(
        issue("first", Priority.NORMAL),
        issue("viewer 1", Priority.NORMAL),
        issue("viewer 2", Priority.NORMAL),
        issue("stock", Priority.BACKGROUND),
        issue("moderator", Priority.HIGH),
    )
    assert ["first", "moderator", "viewer 1", "viewer 2", "stock"] == emulator.users


@virtual_time
async def test_an_urgent_call_speeds_up_the_flight_it_joins() -> None:
    """A flight for a normal and an urgent caller is sent before an earlier normal one."""
    clock, users = VirtualClock(), []

    async def create_chat_token(*, userId: str, **_: Any) -> dict[str, Any]:  # noqa: N803 (boto3's)
        users.append(userId)
        now = datetime.fromtimestamp(clock.wall(), UTC)
        return {
            "token": "virtual",
            "tokenExpirationTime": now + timedelta(minutes=1),
            "sessionExpirationTime": now + timedelta(hours=1),
        }

    async def open_client(_: str) -> CreateChatToken:
        return create_chat_token

    async with AsyncTokenService(
        session=in_process_session(open_client),
        endpoint_url="http://127.0.0.1",
        quota=Quota(rate=20.0, burst=1),
        pool=PoolPolicy(prepared=False),
        clock=clock,
    ) as tokens:

        async def issue(user: str, priority: Priority) -> None:
            await tokens.issue(TokenRequest(ROOM, user), priority=priority)

        await issue("opens the client", Priority.NORMAL)
        await clock.sleep(1.0)
        await asyncio.gather(
            issue("first", Priority.NORMAL),
            issue("a", Priority.NORMAL),
            issue("b", Priority.NORMAL),
            issue("b", Priority.HIGH),
        )
    assert ["opens the client", "first", "b", "a"] == users


class _Odd(str):
    """Text with a hash of its own."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7


@pytest.mark.parametrize(
    "forget",
    [
        {"user": "u"},
        {"room": ROOM},
        {"room": ROOM, "user": "u"},
        {"user": _Odd("u")},
        {"room": _Odd(ROOM)},
        {"room": _Odd(ROOM), "user": _Odd("u")},
    ],
    ids=str,
)
async def test_invalidate_forgets_cached_and_stocked_tokens(
    open_service: OpenService, forget: dict[str, str]
) -> None:
    """By user, by room, by user in a room; others keep theirs."""
    tokens = open_service()
    request, stranger = TokenRequest(ROOM, "u"), TokenRequest(ROOM[:-1] + "x", "other")
    old = [await tokens.issue(request), await tokens.issue(request, idempotency_key="k")]
    kept = await tokens.issue(stranger)
    await tokens.prewarm([request])
    tokens.invalidate(**forget)
    new = [await tokens.issue(request), await tokens.issue(request, idempotency_key="k")]
    assert not any(token.reused for token in new)
    assert not {token.token for token in old} & {token.token for token in new}
    assert kept.token == (await tokens.issue(stranger)).token


async def test_invalidate_fences_a_flight_under_way(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """Those who waited get its token; it is not kept, and nobody else joins."""
    ivschat_emulator.emulator.configure(latency=0.2)
    tokens = open_service()
    request = TokenRequest(ROOM, "u")
    before = asyncio.create_task(tokens.issue(request))
    await until(lambda: tokens.stats().requests == 1)
    tokens.invalidate(user="u")
    after = await tokens.issue(request)
    assert (await before).token != after.token
    assert after.token == (await tokens.issue(request)).token


@pytest.mark.parametrize("stays", [True, False], ids=["delivered", "stock"])
async def test_what_an_invalidated_flight_brings_is_not_kept(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService, stays: bool
) -> None:
    """Whoever asks after it has landed gets another token, be its caller there or gone."""
    ivschat_emulator.emulator.configure(latency=0.2)
    tokens = open_service()
    request = TokenRequest(ROOM, "u")
    before = asyncio.create_task(tokens.issue(request))
    await until(lambda: tokens.stats().requests == 1)
    tokens.invalidate(user="u")
    if not stays:
        before.cancel()
    await until(lambda: tokens.stats().flights == 0)
    after = await tokens.issue(request)
    assert not after.reused
    assert 2 == ivschat_emulator.emulator.counts().requests
    (told,) = await outcomes(before)
    assert isinstance(told, ChatToken if stays else asyncio.CancelledError)


async def test_invalidate_needs_a_room_or_a_user(open_service: OpenService) -> None:
    """Nothing given, or a room that is none, is a clear error."""
    tokens = open_service()
    with pytest.raises(InvalidRequest, match="a room, a user or both"):
        tokens.invalidate()
    with pytest.raises(InvalidRequest, match="roomIdentifier"):
        tokens.invalidate(room="lobby")


async def test_estimate_tells_the_wait_of_a_new_call(open_service: OpenService) -> None:
    """Nobody waiting: none; ten permits behind: ten intervals. By account and region."""
    tokens = open_service(quota=Quota(rate=10.0, burst=1))
    assert 0.0 == tokens.estimate(ROOM)
    calls = [
        asyncio.create_task(tokens.issue(TokenRequest(ROOM, f"u{number}"), timeout=30.0))
        for number in range(11)
    ]
    await until(lambda: tokens.stats().waiting == 10)
    assert 0.9 < tokens.estimate(ROOM) <= 1.1
    assert 0.0 <= tokens.estimate(ROOM, priority=Priority.HIGH) <= 0.1
    assert 0.0 == tokens.estimate(ROOM.replace("us-east-1", "eu-west-1"))
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_quotas_can_differ_by_account_and_region(open_service: OpenService) -> None:
    """A mapping gives some their own; the default holds for the rest."""
    slow = ROOM.replace("123456789012", "210987654321")
    tokens = open_service(quota={("210987654321", "us-east-1"): Quota(rate=0.001)})
    await tokens.issue(TokenRequest(slow, "u"))
    await tokens.issue(TokenRequest(ROOM, "u"))
    assert tokens.estimate(slow) > 100.0
    assert 0.0 == tokens.estimate(ROOM)


async def test_ready_gives_what_is_there_without_waiting(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """From the cache, from the attempt or from stock; never by a request."""
    tokens = open_service()
    request = TokenRequest(ROOM, "u")
    async with tokens:
        assert None is tokens.ready(request)
        assert None is tokens.ready(request, idempotency_key="k")
        plain = await tokens.issue(request)
        keyed = await tokens.issue(request, idempotency_key="k")
        await tokens.prewarm([request])
        found = [tokens.ready(request), tokens.ready(request, idempotency_key="k")]
        assert [plain.token, keyed.token] == [token and token.token for token in found]
        stocked = tokens.ready(request, fresh=True)
        assert stocked is not None
        assert not stocked.reused
        assert None is tokens.ready(request, fresh=True)
    assert 3 == ivschat_emulator.emulator.counts().requests
    with pytest.raises(ServiceClosed):
        tokens.ready(request)


async def test_a_reply_belongs_to_its_caller(open_service: OpenService) -> None:
    """What one caller does to the dict touches nobody else."""
    tokens = open_service()
    reply = await tokens.create_chat_token(roomIdentifier=ROOM, userId="u")
    token = reply.pop("token")
    assert token == (await tokens.create_chat_token(roomIdentifier=ROOM, userId="u"))["token"]


@pytest.mark.parametrize(
    ("options", "member"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "x" * 256}, "idempotency_key"),
        ({"idempotency_key": "k", "fresh": True}, "idempotency_key"),
    ],
)
async def test_a_bad_option_is_refused_before_any_request(
    ivschat_emulator: ThreadedEmulatorServer,
    open_service: OpenService,
    options: dict[str, Any],
    member: str,
) -> None:
    """The error names the option."""
    tokens = open_service()
    with pytest.raises(InvalidRequest) as caught:
        await tokens.issue(TokenRequest(ROOM, "u"), **options)
    assert member == caught.value.member
    assert 0 == ivschat_emulator.emulator.counts().requests


async def test_a_bad_request_costs_nothing(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """It is refused with the member's name, and no connection is opened."""
    tokens = open_service()
    with pytest.raises(InvalidRequest) as caught:
        await tokens.create_chat_token(roomIdentifier=ROOM, userId="u", capabilities=["ROOT"])
    assert "capabilities" == caught.value.member
    assert 0 == ivschat_emulator.emulator.counts().connections


async def test_the_caches_stay_within_their_limits(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """Old tokens make room for new ones, delivered and stocked alike."""
    tokens = open_service(cache=CachePolicy(max_tokens=10, max_stock=5))
    for number in range(30):
        await tokens.issue(TokenRequest(ROOM, f"u{number}"))
    await tokens.prewarm([TokenRequest(ROOM, f"stock{number}") for number in range(12)])
    stats = tokens.stats()
    assert (10, 5, 7) == (stats.tokens_held, stats.stock_held, stats.expired_unused)
    assert 0 == stats.flights


@pytest.mark.fault(63)
async def test_the_stats_tell_what_was_learnt_of_each_quota(open_service: OpenService) -> None:
    """Of each account and region that was used: rate, burst and what is known of the shape."""
    bucket = Quota(rate=100.0, burst=50)
    tokens = open_service(quota={("123456789012", "us-east-1"): bucket})
    assert () == tokens.stats().learnt
    await tokens.issue(TokenRequest(ROOM, "u"))
    assert (Learnt("123456789012", "us-east-1", 100.0, 45, "bucket"),) == tokens.stats().learnt
    await tokens.issue(TokenRequest(ROOM.replace("us-east-1", "eu-west-1"), "u"))
    _, elsewhere = tokens.stats().learnt
    assert ("eu-west-1", 10, "unknown") == (elsewhere.region, elsewhere.burst, elsewhere.shape)
    assert 198.0 == pytest.approx(elsewhere.rate)


async def test_rooms_of_two_regions_use_two_clients(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """The region comes from the room's ARN; the emulator knows a room in its own region only."""
    ivschat_emulator.emulator.configure(any_room=False)
    rooms = [
        ivschat_emulator.emulator.create_room(region=region)["arn"]
        for region in ("us-east-1", "eu-central-1")
    ]
    tokens = open_service()
    for room in rooms:
        await tokens.issue(TokenRequest(room, "u", {Capability.SEND_MESSAGE}))
    assert 2 == ivschat_emulator.emulator.counts().minted

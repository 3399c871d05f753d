"""No token, user, attribute, key or credential shows up on any surface, on any path.

Each path runs once, with canaries for secrets and ears on every surface; what was heard is then
judged surface by surface, so that a failure names both.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiobotocore.credentials import AioRefreshableCredentials
from aiobotocore.session import AioSession
from aiohttp import web
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response

import aioivschat.aiohttp
import aioivschat.starlette
from aioivschat import (
    AsyncTokenService,
    CachePolicy,
    ChatToken,
    ChatTokenError,
    Delivered,
    InvalidConfiguration,
    InvalidRequest,
    LoggingObserver,
    Observer,
    PoolPolicy,
    Priority,
    Quota,
    RetryPolicy,
    Source,
    TokenRequest,
)
from aioivschat._models import Reply
from aioivschat.aiohttp import Ask, EndpointPolicy, Share
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.onboarding import onboard, outcome_as_json, read_attendees
from aioivschat.redis import RedisTier
from aioivschat.redis.check import check
from support.canary import (
    CANARIES,
    KEY,
    NAME,
    PASSWORD,
    SEALING,
    SECRET,
    SESSION,
    SURFACES,
    TOKEN,
    USER,
    Ears,
    SingingEmulator,
    forms,
    heard_in,
    old_set_aside,
)
from support.commands import SOON, Command
from support.endpoint_servers import Client, running, running_asgi
from support.engine import EngineServer
from support.fault_proxy import HOLE, End, FaultProxy, Toxics
from support.raw_servers import http, raw_server
from support.services import ROOM, UNLIMITED, bare_session, outcomes, until

pytestmark = pytest.mark.fault(30)

REQUEST = TokenRequest(ROOM, USER, ["SEND_MESSAGE"], {"displayName": NAME})
MEMBERS: dict[str, Any] = {
    "roomIdentifier": ROOM,
    "userId": USER,
    "capabilities": ["SEND_MESSAGE"],
    "attributes": {"displayName": NAME},
}
TWICE = RetryPolicy(max_attempts=2, base_delay=0.001, max_delay=0.001)

IN_PROCESS = ("logs", "log records", "reprs", "pickles", "tasks")
SERVED = (*IN_PROCESS, "events")
FAILED = (*SERVED, "errors", "pickled errors", "tracebacks", "walked locals")

Path_ = Callable[["Stage"], Awaitable[None]]
PATHS: dict[str, tuple[Path_, tuple[str, ...]]] = {}
"""Each path, and the surfaces that must not be silent on it."""


def path(*surfaces: str, **each: Any) -> Callable[[Any], Any]:
    """Register a path; with an argument, one for each of its values."""

    def register(run: Any) -> Any:
        name = run.__name__.replace("_", " ")
        if not each:
            PATHS[name] = run, surfaces
        for argument, values in each.items():
            for value in values:
                PATHS[f"{name}, {value}"] = partial(run, **{argument: value}), surfaces
        return run

    return register


class Stage:
    """Where a path is played: an emulator that sings, services, and ears.

    Attributes:
        ears: what listens.
        emulator: the server.
        folder: an empty folder.
    """

    def __init__(self, ears: Ears, emulator: ThreadedEmulatorServer, folder: Path) -> None:
        self.ears = ears
        self.emulator = emulator
        self.folder = folder

    def make(self, **options: Any) -> AsyncTokenService:
        """Make a service with canaries for credentials, watched in every way it can be."""
        options.setdefault("session", bare_session("canary-id", SECRET, SESSION))
        options.setdefault("endpoint_url", self.emulator.url)
        options.setdefault("quota", UNLIMITED)
        options.setdefault("retry", TWICE)
        observers: list[Observer] = [self.ears.event, LoggingObserver()]
        return AsyncTokenService(observers=observers, **options)

    def fail(self, *faults: Fault) -> None:
        """Let the next requests fail."""
        self.emulator.emulator.fail_next(*faults)

    async def calls(self, service: AsyncTokenService, **options: Any) -> list[Any]:
        """Ask in each way at once, look at everything meanwhile, and show what comes."""
        calls = [
            asyncio.create_task(each)
            for each in (
                service.issue(REQUEST, **options),
                service.issue(REQUEST, **options),
                service.issue(REQUEST, fresh=True, **options),
                service.issue(REQUEST, idempotency_key=KEY, priority=Priority.HIGH, **options),
                service.create_chat_token(**MEMBERS, **options),
                service.create_chat_token(**MEMBERS, idempotency_key=KEY, **options),
            )
        ]
        await asyncio.sleep(0.01)
        self.ears.look_around()
        got = await outcomes(*calls)
        self.ears.show(*calls)
        self.show(*got)
        return got

    def show(self, *got: Any) -> None:
        """Show what calls gave."""
        for each in got:
            if isinstance(each, BaseException):
                self.ears.error(each)
            else:
                self.ears.show(each)


# Success.


@path(*SERVED, way=["prepared", "general", "listened to"])
async def success(stage: Stage, way: str) -> None:
    """New, cached, joined, of an attempt, from stock; and all that may be asked beside it."""
    session: Any = bare_session("canary-id", SECRET, SESSION)
    if way == "listened to":
        session.register("before-call.ivschat", lambda **_: None)
    ears = stage.ears
    async with stage.make(session=session, pool=PoolPolicy(prepared=way != "general")) as service:
        for _ in range(2):
            for got in await stage.calls(service):
                assert isinstance(got, ChatToken | Reply), got
        await service.issue(REQUEST, idempotency_key=KEY)
        ears.show(service.ready(REQUEST, idempotency_key=KEY), service.ready(REQUEST))
        ears.show(await service.prewarm([REQUEST] * 2, doors=1.2, budget=0.5))
        ears.show(await service.issue(REQUEST, fresh=True))
        ears.show(service, service.stats(), service.estimate(ROOM), REQUEST, REQUEST.identity)
        ears.look_around()
        service.invalidate(user=USER, room=ROOM)
        service.invalidate(user=USER)


@path(*IN_PROCESS)
async def credentials_from_the_environment(stage: Stage) -> None:
    """As boto3 finds them."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in zip(names, ("canary-id", SECRET, SESSION), strict=True):
            environment.setenv(name, value)
        async with stage.make(session=None) as service:
            stage.show(
                *await outcomes(service.issue(REQUEST), service.create_chat_token(**MEMBERS))
            )
            stage.ears.look_around()


# What AWS refuses or spoils.

FAULTS = [kind.value for kind in FaultKind if kind is not FaultKind.BLACK_HOLE]


async def _failing(stage: Stage, kind: str, prepared: bool) -> None:
    async with stage.make(pool=PoolPolicy(prepared=prepared)) as service:
        await service.issue(TokenRequest(ROOM, "first"))
        stage.fail(Fault(FaultKind(kind), times=None))
        for got in await stage.calls(service, timeout=30.0):
            assert (kind == "slow") != isinstance(got, ChatTokenError)
        stage.show(await service.prewarm([REQUEST]))


@path(*FAILED, kind=[kind for kind in FAULTS if kind != "slow"])
async def failure(stage: Stage, kind: str) -> None:
    """Whatever goes wrong, in whichever call."""
    await _failing(stage, kind, prepared=True)


@path(*FAILED, kind=[kind for kind in FAULTS if kind != "slow"])
async def failure_of_the_general_way(stage: Stage, kind: str) -> None:
    """The same where aiobotocore builds each request."""
    await _failing(stage, kind, prepared=False)


@path(*SERVED)
async def an_answer_that_is_late(stage: Stage) -> None:
    """And good."""
    await _failing(stage, "slow", prepared=True)


_AS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "JSON": lambda secret: json.dumps(secret)[1:-1],
    "URL": lambda secret: quote(secret, safe=""),
    "form": lambda secret: quote(secret).replace("%20", "+"),
    "base64": lambda secret: b64encode(secret.encode()).decode(),
    "hex": lambda secret: secret.encode().hex(),
    "shouted": str.upper,
}


@path(*FAILED, spelling=_AS)
async def an_error_that_repeats_the_request(stage: Stage, spelling: str) -> None:
    """Whatever its status and code, and however it spells what it repeats."""
    said = f"not {_AS[spelling](USER)} with {_AS[spelling](NAME)}"
    for status, code in (
        (403, "AccessDeniedException"),
        (400, "ValidationException"),
        (403, "InvalidSignatureException"),
        (404, "ResourceNotFoundException"),
        (409, "ConflictException"),
        (429, "ThrottlingException"),
        (500, "InternalServerException"),
    )[: 7 if spelling == "plain" else 2]:
        body = json.dumps(
            {"message": said, "resourceId": said, "resourceType": said, "reason": said}
        ).encode()
        answer = http(body, f"x-amzn-errortype: {code}", status=f"{status} Refused")
        async with raw_server(answer) as server, stage.make(endpoint_url=server.url) as service:
            await stage.calls(service)


@path(*FAILED, answer=["html", "headers", "json"])
async def nonsense_that_repeats_the_request(stage: Stage, answer: str) -> None:
    """As a proxy may do it, with success or without."""
    said = f"{USER} {NAME}".encode()
    odd = {
        "html": http(b"<html>" + said, status="502 Bad Gateway"),
        "headers": b"HTTP/1.1 200 " + said + b"\r\n" + said + b"\r\n\r\n",
        "json": http(json.dumps({"token": 5, USER: NAME, "tokenExpirationTime": USER}).encode()),
    }[answer]
    async with raw_server(odd) as server, stage.make(endpoint_url=server.url) as service:
        await stage.calls(service)


# The way there.


@path(*FAILED, end=[end.value for end in End])
async def an_answer_cut_off(stage: Stage, end: str) -> None:
    """In the middle of its token."""

    async def cut_off(prepared: bool) -> None:
        pool = PoolPolicy(connect_timeout=0.3, read_timeout=0.3, prepared=prepared)
        async with (
            FaultProxy(stage.emulator.url) as proxy,
            stage.make(endpoint_url=proxy.url, pool=pool) as service,
        ):
            await service.issue(TokenRequest(ROOM, "first"))
            proxy.down = Toxics(limit=400, end=End(end))
            for got in await stage.calls(service):
                assert isinstance(got, ChatTokenError)

    await asyncio.gather(cut_off(prepared=True), cut_off(prepared=False))


@path(*FAILED)
async def nobody_listens(stage: Stage) -> None:
    """A refused connection."""
    async with stage.make(endpoint_url="http://127.0.0.1:9") as service:
        await stage.calls(service)


@path(*FAILED)
async def no_time(stage: Stage) -> None:
    """Deadlines that run out, calls that are shed, a timeout of the caller's."""
    async with (
        FaultProxy(stage.emulator.url) as proxy,
        stage.make(endpoint_url=proxy.url, quota=Quota(rate=1.0, max_waiting=2)) as service,
    ):
        await service.issue(TokenRequest(ROOM, "first"))
        proxy.up = HOLE
        await stage.calls(service, timeout=0.05)
        await stage.calls(service, timeout=1.2)
        crowd = (service.issue(REQUEST, fresh=True) for _ in range(6))
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                stage.show(*await outcomes(*crowd))
        stage.show(*await outcomes(service.issue(REQUEST, timeout=0.01)))
        await service.aclose(grace=0.0)


# Credentials.


@path(*IN_PROCESS, "errors", "tracebacks")
async def no_credentials(stage: Stage) -> None:
    """Nothing can be sent."""
    nothing = (None, None, None, None)
    names = {"profile": nothing, "config_file": nothing, "credentials_file": nothing}
    with pytest.MonkeyPatch.context() as environment:
        for name in [*os.environ]:
            if name.startswith("AWS_"):
                environment.delenv(name)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        async with stage.make(session=AioSession(names)) as service:
            for got in await stage.calls(service):
                assert isinstance(got, Exception)


@path(*IN_PROCESS, "errors", "tracebacks", renewal=["expired", "failing"])
async def credentials_that_are_renewed(stage: Stage, renewal: str) -> None:
    """To others that have expired too, or not at all."""

    def metadata() -> dict[str, Any]:
        expiry = datetime.now(UTC) - timedelta(seconds=1)
        keys = {"access_key": "canary-id", "secret_key": SECRET, "token": SESSION}
        return {**keys, "expiry_time": expiry.isoformat()}

    async def renew() -> dict[str, Any]:
        if renewal == "failing":
            raise OSError("no answer")
        return metadata()

    session: Any = bare_session()
    session._credentials = AioRefreshableCredentials.create_from_metadata(
        metadata(), refresh_using=renew, method="test"
    )
    async with stage.make(session=session) as service:
        for got in await stage.calls(service):
            assert isinstance(got, Exception)


# What is wrong with the call.

BROKEN: dict[str, dict[str, Any]] = {
    "a long user": {"userId": USER * 20},
    "a user of surrogates": {"userId": f"{USER}\ud800"},
    "a user of bytes": {"userId": USER.encode()},
    "long attributes": {"attributes": {NAME: "x" * 2000}},
    "attributes that are no text": {"attributes": {NAME: 5}},
    "attributes of bytes": {"attributes": {"x": NAME.encode()}},
    "attributes of surrogates": {"attributes": {"x": f"{NAME}\ud800"}},
    "a list of attributes": {"attributes": [NAME]},
    "another capability": {"capabilities": ["ROOT"]},
    "a user as capability": {"capabilities": [USER]},
    "capabilities as text": {"capabilities": USER},
    "a user as room": {"roomIdentifier": USER},
    "a user in a room": {"roomIdentifier": f"arn:aws:ivschat:us-east-1:1:room/{USER}"},
    "a duration": {"sessionDurationInMinutes": 999},
    "a user as duration": {"sessionDurationInMinutes": USER},
    "a long key": {"idempotency_key": KEY * 100},
    "an empty key": {"idempotency_key": ""},
    "a key of bytes": {"idempotency_key": KEY.encode()},
    "fresh and a key": {"fresh": True},
    "no time": {"timeout": 0.0},
}
_WITH_A_KEY = MEMBERS | {"idempotency_key": KEY}
_ARGUMENTS = {
    "roomIdentifier": "room",
    "userId": "user",
    "capabilities": "capabilities",
    "attributes": "attributes",
    "sessionDurationInMinutes": "session_minutes",
}


@path("errors", "pickled errors", "tracebacks", broken=BROKEN)
async def a_refusal(stage: Stage, broken: str) -> None:
    """A bad argument is described, not quoted, in each call that takes it."""
    members = _WITH_A_KEY | BROKEN[broken]
    options = {name: members[name] for name in members if name not in _ARGUMENTS}
    async with stage.make() as service:
        with pytest.raises(InvalidRequest) as caught:
            await service.create_chat_token(**members)
        stage.show(caught.value)
        with pytest.raises(InvalidRequest) as caught:
            request = TokenRequest(
                **{name: members[old] for old, name in _ARGUMENTS.items() if old in members}
            )
            await service.issue(request, **options)
        stage.show(caught.value)
        if "timeout" not in options:
            with pytest.raises(InvalidRequest) as caught:
                service.ready(
                    TokenRequest(
                        **{name: members[old] for old, name in _ARGUMENTS.items() if old in members}
                    ),
                    **options,
                )
            stage.show(caught.value)


@path("errors", "tracebacks")
async def a_bad_option(stage: Stage) -> None:
    """An address or a key that cannot work, whichever option is looked at first."""
    address = f"redis://someone:{quote(PASSWORD)}@engine:6379/0"
    attempts: list[Callable[[], object]] = [
        lambda: stage.make(endpoint_url=f"http://someone:{PASSWORD}@example.com"),
        lambda: RedisTier(address.replace("redis", "http", 1), keys=[SEALING]),
        lambda: RedisTier(address, keys=[SEALING[:-1]]),
        lambda: RedisTier(address, keys=SEALING),  # type: ignore[arg-type]  # a likely mistake
        lambda: RedisTier(address, keys=[SEALING], namespace="{"),
        lambda: RedisTier(address, keys=[SEALING], members=0),
        lambda: RedisTier(address, keys=[SEALING], timeout=0.0),
        lambda: RedisTier(address.replace("6379", "port"), keys=[SEALING]),
        lambda: RedisTier(f"{address}?unknown=1", keys=[SEALING], namespace=""),
        lambda: RedisTier(address.replace("redis:", "redis+cluster:"), timeout=-1),
        lambda: RedisTier(f"redis+sentinel://x:{PASSWORD}@a:x/name/db", keys=[SEALING]),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidConfiguration) as caught:
            attempt()
        stage.show(caught.value)
    for wrong in ("http", "redis+other"):
        with pytest.raises(InvalidConfiguration) as caught:
            async for _ in check(address.replace("redis", wrong, 1)):
                pass
        stage.show(caught.value)
    async with stage.make() as service:
        for user, room in ((USER, USER), (None, None)):
            with pytest.raises(InvalidRequest) as refused:
                service.invalidate(user=user, room=room)
            stage.show(refused.value)
        with pytest.raises(InvalidRequest) as refused:
            service.estimate(USER)
        stage.show(refused.value)


# Who leaves, and what is closed.


@path(*IN_PROCESS, "errors")
async def callers_that_leave(stage: Stage) -> None:
    """Cancelled in the queue, under way, and while others stay."""
    async with stage.make(quota=Quota(rate=1.0)) as service:
        stage.fail(Fault(FaultKind.SLOW, times=None, latency=0.2))
        sent = asyncio.create_task(service.issue(REQUEST, idempotency_key=KEY))
        await until(lambda: service.stats().requests == 1)
        joined = asyncio.create_task(service.create_chat_token(**_WITH_A_KEY))
        queued = asyncio.create_task(service.create_chat_token(**MEMBERS, fresh=True))
        await until(lambda: service.stats().waiting == 1)
        stage.ears.look_around()
        for leaving in (joined, queued, sent):
            leaving.cancel("of no interest")
        stage.show(*await outcomes(joined, queued, sent))
        await until(lambda: not service.stats().flights)
        stage.show(await service.issue(REQUEST, fresh=True))


@path(*FAILED, grace=[0.0, 5.0])
async def closing_under_load(stage: Stage, grace: float) -> None:
    """Calls that wait, calls under way, and calls that come later."""
    service = stage.make(quota=Quota(rate=5.0))
    fault = Fault(FaultKind.SLOW, times=None, latency=0.3 if grace else 60.0)
    async with service:
        await service.issue(TokenRequest(ROOM, "first"))
        stage.fail(fault)
        calls = [
            asyncio.create_task(each)
            for each in (
                *(service.issue(REQUEST, fresh=True) for _ in range(20)),
                service.create_chat_token(**_WITH_A_KEY),
                service.prewarm([REQUEST]),
            )
        ]
        await until(lambda: service.stats().requests >= 2)
        stage.ears.look_around()
        await service.aclose(grace=grace)
        stage.show(*await outcomes(*calls))
        later = (service.issue(REQUEST), service.create_chat_token(**_WITH_A_KEY))
        stage.show(*await outcomes(*later), service)
    stage.emulator.emulator.clear_faults()


@path(*IN_PROCESS, "hooks")
async def a_service_that_is_dropped(stage: Stage) -> None:
    """Never closed; what Python and aiohttp say of it."""
    service: Any = stage.make()
    await service.issue(REQUEST, idempotency_key=KEY)
    await service.create_chat_token(**MEMBERS)
    stage.ears.look_around()
    del service


@path("errors", "tracebacks")
async def another_loop(stage: Stage) -> None:
    """A service that belongs elsewhere."""
    async with stage.make() as service:
        await service.issue(REQUEST)

        def elsewhere() -> None:
            calls: list[Any] = [service.issue(REQUEST), service.create_chat_token(**_WITH_A_KEY)]
            for call in calls:
                with pytest.raises(ChatTokenError) as caught:
                    asyncio.run(call)
                stage.show(caught.value)

        await asyncio.to_thread(elsewhere)


@path(*IN_PROCESS)
async def an_observer_that_fails(stage: Stage) -> None:
    """With a message that is none of ours."""

    def observer(event: object) -> None:
        raise LookupError(f"{USER} {TOKEN}")

    service = AsyncTokenService(
        session=bare_session("canary-id", SECRET, SESSION),
        endpoint_url=stage.emulator.url,
        observers=[observer],
    )
    async with service:
        stage.show(await service.issue(REQUEST), await service.issue(REQUEST))
        stage.ears.look_around()


# Many at once.

ATTENDEES = f"""\
room,user,capabilities,attributes
{ROOM},{USER},SEND_MESSAGE,"{{""displayName"":""{NAME}""}}"
{ROOM},{USER},,
{ROOM},{USER} 2,{NAME},
{ROOM},{USER} 3,,"{{""{NAME}"":5}}"
{ROOM},{USER} 4,,{NAME}
{ROOM},{USER} 5,,"{{""{NAME}"
{ROOM},{USER} 6
{USER},{USER} 7,,
{ROOM},{USER * 20},,
{ROOM},"{USER} 8,,
{ROOM},{USER} 9\0,,
{ROOM},{USER} 10,,
"""


@path(*FAILED)
async def bulk(stage: Stage) -> None:
    """A list with every kind of row, while AWS throttles, refuses and breaks off."""
    async with stage.make() as service:
        kinds = (FaultKind.THROTTLE_HTML, FaultKind.ECHO_USER, FaultKind.TRUNCATE, FaultKind.RESET)
        for kind in (None, *kinds):
            if kind is not None:
                stage.fail(Fault(kind, times=None))
            rows = [
                *read_attendees(io.BytesIO(ATTENDEES.encode())),
                *read_attendees(io.BytesIO(f"{USER},{NAME}\n".encode())),
                *read_attendees(io.BytesIO(f'{{"user":"{USER}","{NAME}":1}}\n'.encode())),
            ]
            stage.ears.show(*rows)
            async for outcome in onboard(service, rows, timeout=30.0):
                stage.ears.show(outcome)
                if outcome.error is not None:
                    stage.ears.error(outcome.error)
                    # What it is for is told; what it repeats of AWS is not.
                    members = json.loads(outcome_as_json(outcome))
                    stage.ears.note("errors", members["error"])
            stage.emulator.emulator.clear_faults()
        with pytest.raises(InvalidConfiguration) as caught:
            onboard(service, [REQUEST], in_flight=0)
        stage.show(caught.value)
        jobs = onboard(service, (REQUEST for _ in range(9)))
        await anext(jobs)
        stage.ears.look_around()
        await jobs.aclose()
    with pytest.raises(ChatTokenError) as closed:
        async for _ in onboard(service, [REQUEST]):
            pass
    stage.show(closed.value)


_AS_DEVELOPERS = ("-X", "dev")
_Process = Command | subprocess.Popen[bytes]


def _start(arguments: Sequence[str], afresh: bool, **options: Any) -> _Process:
    options |= dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    if not afresh:
        return Command(arguments, python=_AS_DEVELOPERS, **options)
    command = [sys.executable, *_AS_DEVELOPERS, "-m", "aioivschat", *arguments]
    process: subprocess.Popen[bytes] = subprocess.Popen(command, **options)
    return process


async def _run(
    stage: Stage, *arguments: str, stdin: str = "", afresh: bool = False
) -> tuple[int, str]:
    """Run a command; show what it writes for people, and return what it writes for machines.

    Args:
        stage: where.
        arguments: those of the command.
        stdin: its input.
        afresh: as a process of its own from the beginning, which takes longer.
    """
    process = _start(
        arguments,
        afresh,
        cwd=stage.folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ACCESS_KEY_ID": "canary-id",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": SESSION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(stage.folder),
        },
    )
    if "canary" not in " ".join(arguments):  # else it is the caller who types it
        stage.ears.note("command line", _command_line(process.pid))
    written, told = await asyncio.to_thread(process.communicate, stdin.encode(), timeout=SOON)
    stage.ears.note("output", told)
    status = process.returncode
    assert status is not None
    return status, written.decode()


def _command_line(process: int) -> bytes:
    """Return the command line of a process, once it has one: it has none before it begins."""
    for _ in range(1_000):
        found = Path(f"/proc/{process}/cmdline").read_bytes()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("the process did not begin")


@path("output", "files", "command line")
async def the_command_for_many(stage: Stage) -> None:
    """What it says, its checkpoint, its process; to the end, again, interrupted, and failing."""
    file = stage.folder / "attendees.csv"
    file.write_text(ATTENDEES)
    upstream = ("--endpoint-url", stage.emulator.url)
    resume = ("--resume", "checkpoint", "--output", "tokens")
    # It tries for seconds; the others need not wait for it.
    nobody = ("onboard", "-", "--endpoint-url", "http://127.0.0.1:9")
    failing = asyncio.create_task(_run(stage, *nobody, stdin=ATTENDEES))
    status, _ = await _run(stage, "onboard", str(file), *upstream, *resume, afresh=True)
    assert status == 2
    assert TOKEN in (stage.folder / "tokens").read_text()
    stage.ears.note("files", (stage.folder / "checkpoint").read_bytes())
    await _run(stage, "onboard", str(file), *upstream, *resume, "--force")
    file.write_text(ATTENDEES + f"{ROOM},{USER} 11,,\n")
    for arguments in (resume, ("--resume", "checkpoint", "--output", "other")):
        await _run(stage, "onboard", str(file), *upstream, *arguments)
    # A checkpoint whose output is another's, with an attendee where it says a line is.
    (stage.folder / "tokens").write_text(f'{{"line": 1, "user": "{USER}", "token": "{TOKEN}')
    await _run(stage, "onboard", str(file), *upstream, *resume)
    stage.fail(Fault(FaultKind.ECHO_USER, times=None))
    status, written = await _run(stage, "onboard", "-", *upstream, stdin=ATTENDEES)
    assert status == 2
    for line in map(json.loads, written.splitlines()):
        stage.ears.note("output", line["error"])
    stage.emulator.emulator.clear_faults()
    await _run(stage, "onboard", "-", *upstream, stdin=f"{USER},{NAME}\n{USER},{NAME}\n")
    await failing
    for name in (file.name, "checkpoint"):
        stage.ears.note("command line", name)


@path("output")
async def the_commands_for_one(stage: Stage) -> None:
    """What they say of bad arguments, of refusals, and of an engine's address."""
    one = ("issue", "--room", ROOM, "--user", USER, "--endpoint-url", stage.emulator.url)
    status, _ = await _run(stage, *one, "--attribute", f"displayName={NAME}")
    assert status == 0
    stage.fail(Fault(FaultKind.ECHO_USER))
    for arguments in (
        ("--attribute", f"displayName={NAME}"),  # which is refused
        ("--attribute", NAME),
        ("--attribute", f"{NAME}={'x' * 2000}"),
        ("--capability", NAME),
        ("--user", USER * 20),
        ("--room", USER),
    ):
        status, _ = await _run(stage, *one, *arguments)
        assert status != 0
    address = f"redis://someone:{quote(PASSWORD)}@127.0.0.1:9/0"
    for wrong in (address, address.replace("redis", "http"), address.replace(":9", ":port")):
        for shown, typed in ((wrong, ""), ("-", wrong)):
            status, written = await _run(stage, "fleet", "check", shown, stdin=typed)
            stage.ears.note("output", written)
            assert status != 0
    status, written = await _run(stage, "rehearse", "--attendees", "20", "--json", afresh=True)
    assert (0, TOKEN in written) == (status, False)


# The endpoint.


class _Rule:
    """Grants one user one name; or does what it is told to.

    Attributes:
        instead: what it does.
    """

    def __init__(self) -> None:
        self.instead: Callable[[], Any] | None = None

    async def __call__(self, request: Any, ask: Ask) -> TokenRequest | None:
        """Decide."""
        if self.instead is not None:
            granted: TokenRequest | None = self.instead()
            return granted
        return TokenRequest(ROOM, USER, ["SEND_MESSAGE"], {"displayName": NAME})


@asynccontextmanager
async def _endpoint(
    stage: Stage, framework: str, service: AsyncTokenService, policy: EndpointPolicy
) -> AsyncIterator[tuple[_Rule, Client]]:
    """Serve the endpoint, access logs and all, with a collector of errors around it."""
    rule = _Rule()
    if framework == "aiohttp":

        @web.middleware
        async def collect(request: web.Request, handler: Any) -> Any:
            try:
                return await handler(request)
            except BaseException as error:
                stage.ears.error(error)
                raise

        app = web.Application(middlewares=[collect])
        aioivschat.aiohttp.setup(app, authorize=rule, service=service, policy=policy)
        serving = running(app)
    else:

        async def collected(request: Any, error: Exception) -> Any:
            stage.ears.error(error)
            return Response("", 418)

        asgi = Starlette(exception_handlers={HTTPException: collected})
        aioivschat.starlette.setup(asgi, authorize=rule, service=service, policy=policy)
        serving = running_asgi(asgi)
    async with serving as url, aiohttp.ClientSession() as session:
        yield rule, Client(session, f"{url}/chat/token")


@path(*FAILED, "answers", framework=["aiohttp", "starlette"])
async def endpoint(stage: Stage, framework: str) -> None:
    """Grants, refusals, failures; a rule that answers otherwise, or fails; a client that goes."""
    body = {"attributes": {"displayName": NAME}, "userId": USER}
    stated = {"Cookie": f"session={SESSION}", "Authorization": f"Bearer {SECRET}"}
    policy = EndpointPolicy(per_user=Share(tokens=60, seconds=1000.0))
    refusal: type[Exception] = web.HTTPServiceUnavailable
    if framework == "starlette":
        refusal = partial(HTTPException, 503)  # type: ignore[assignment]  # made as a class is
    async with (
        stage.make() as service,
        _endpoint(stage, framework, service, policy) as (rule, client),
    ):

        async def ask(wanted: Any = body, **more: Any) -> int:
            answer = await client.ask(wanted, **{"user": None, "headers": stated, **more})
            if answer.status != 200:
                stage.ears.note("answers", answer.body, dict(answer.headers))
            return answer.status

        assert [200, 200] == [await ask(key=KEY), await ask(key=KEY)]
        assert 200 == await ask()
        for kind in FAULTS:
            stage.fail(Fault(FaultKind(kind), times=2))
            await ask()
            stage.emulator.emulator.clear_faults()
        for broken in (
            {"attributes": {NAME: 5}},
            {"attributes": {NAME: "x" * 2000}},
            {"attributes": {"displayName": f"{NAME}!"}},
            {"room": USER},
            {"userId": NAME},
            {NAME: 1},
            {"capabilities": [NAME]},
            {"userId": USER, "user": USER},
            {"userId": USER * 1000},
        ):
            assert 400 <= await ask(body | broken, key=KEY) < 500
        assert 400 == await ask(key=f"{KEY} {KEY}")
        assert 400 == await ask(raw=f'{{"{NAME}'.encode())

        def answer_otherwise() -> None:
            raise refusal

        def fail() -> None:
            raise KeyError(USER)

        def grant_nonsense() -> TokenRequest:
            return TokenRequest(ROOM, USER, [USER])

        for instead in (answer_otherwise, fail, grant_nonsense, lambda: USER, lambda: None):
            rule.instead = instead
            assert 400 <= await ask(key=f"{KEY}-2")
        rule.instead = None
        while await ask() == 200:
            pass  # until the share is used up
        # Somebody waits, and goes away.
        stage.fail(Fault(FaultKind.BLACK_HOLE, times=None))
        waiting = asyncio.create_task(ask(user=None, key=f"{KEY}-3"))
        await asyncio.sleep(0.1)
        stage.ears.look_around()
        waiting.cancel()
        await outcomes(waiting)
        await asyncio.sleep(0.4)
        await service.aclose(grace=0.0)
        assert 400 <= await ask(key=f"{KEY}-4")
    stage.emulator.emulator.clear_faults()


# A fleet.


@path(*SERVED, "engine")
async def fleet(stage: Stage) -> None:
    """All that a fleet does: the engine there, watched; values spoilt; away, and back."""
    canary_room = TokenRequest(ROOM.rpartition("/")[0] + "/CanaryRoom55", USER)
    ears = stage.ears
    with EngineServer(stage.folder / "engine", requirepass=PASSWORD) as server:
        address = f"redis://:{PASSWORD}@{server.address}"
        tiers = [RedisTier(address, keys=[SEALING], timeout=5.0) for _ in range(2)]
        here, there = (stage.make(shared=tier) for tier in tiers)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**24)
        # Who watches the engine has its password; it is not in what is watched.
        writer.write(f"AUTH {PASSWORD}\r\nMONITOR\r\n".encode())
        async with here, there:
            got: list[Any] = [
                await here.issue(REQUEST, idempotency_key=KEY),
                await there.issue(REQUEST, idempotency_key=KEY),
                await here.create_chat_token(**MEMBERS),
                await there.issue(REQUEST, fresh=True),
                await here.issue(canary_room),
                await here.prewarm([REQUEST] * 2),
                await there.issue(REQUEST, fresh=True),
            ]
            stage.show(*got, *tiers)
            assert got[1].reused
            ears.look_around()
            with server.client() as client:

                def held() -> str:
                    return repr([(name, client.dump(name)) for name in client.scan_iter()])

                assert "canaryroom55" not in held().lower()
                ears.note("engine", held())
                here.invalidate(room=canary_room.room)
                here.invalidate(user=USER)
                await until(lambda: client.zcard("{aioivschat}:log") == 2)
                ears.note("engine", held())
                # Spoilt values are counted, and a new token is made.
                await here.issue(REQUEST, idempotency_key=f"{KEY}-2")
                for name in client.scan_iter("{aioivschat}:a:*"):
                    client.set(name, b"9999999999999999|AAAA", keepttl=True)
                stage.show(await there.issue(REQUEST, idempotency_key=f"{KEY}-2"))
                stage.emulator.emulator.configure(any_room=False)
                stage.show(*await outcomes(there.issue(canary_room, fresh=True)))
                stage.emulator.emulator.configure(any_room=True)
                client.echo("the end")
            seen = await reader.readuntil(b"the end")
            writer.close()
            text = seen.decode("latin-1").lower()
            for command in ("evalsha", "subscribe", "publish", "rpush", "zadd", "lpop"):
                assert command in text  # it was not silent for want of a watcher
            assert "canaryroom55" not in text
            ears.note("engine", seen)
            server.kill()
            away = (
                here.issue(REQUEST, idempotency_key=f"{KEY}-3"),
                there.create_chat_token(**MEMBERS),
                here.prewarm([REQUEST]),
            )
            stage.show(*await outcomes(*away))
            here.invalidate(user=USER)
            ears.look_around()
            server.start()
            await asyncio.sleep(1.0)
            stage.show(await there.issue(REQUEST, idempotency_key=f"{KEY}-4"), here, there)
    stage.show(*tiers)


# The sweep.


@pytest.fixture(scope="module", autouse=True)
def _old() -> Iterator[None]:
    with old_set_aside():
        yield


_played: dict[str, Ears] = {}


def _play(name: str) -> Ears:
    """Play a path, once; a path that fails fails in each of its tests."""
    if name not in _played:
        ears = Ears()
        run, _ = PATHS[name]

        gc.collect()  # what others left is not of this path

        async def play() -> None:
            ears.listen_to_loop()
            with (
                ThreadedEmulatorServer(SingingEmulator()) as emulator,
                tempfile.TemporaryDirectory() as folder,
            ):
                await run(Stage(ears, emulator, Path(folder)))

        with ears.listening():
            asyncio.run(play())
        _played[name] = ears
    return _played[name]


PAIRS = [
    pytest.param(name, surface, id=f"{name}-{surface}")
    for name, (_, loud) in PATHS.items()
    for surface in (*loud, "anything else")
]


@pytest.mark.parametrize(("name", "surface"), PAIRS)
def test_no_canary_sings(name: str, surface: str) -> None:
    """On this path, on this surface."""
    ears = _play(name)
    _, loud = PATHS[name]
    if surface == "anything else":
        for other in SURFACES:
            assert [] == ears.songs(other) or other in loud, other
        return
    assert not ears.silent(surface)
    assert [] == ears.songs(surface)


# What the sweep takes for granted.


@pytest.mark.parametrize(
    ("name", "loggers"),
    [
        ("success, prepared", {"aioivschat", "asyncio", "botocore"}),
        ("success, general", {"aioivschat", "asyncio", "botocore"}),
        ("endpoint, aiohttp", {"aioivschat", "asyncio", "aiohttp"}),
        ("endpoint, starlette", {"aioivschat", "asyncio", "uvicorn"}),
    ],
)
def test_logs_are_heard(name: str, loggers: set[str]) -> None:
    """Those of the libraries below and around; access logs too."""
    assert loggers <= _play(name).loggers


async def test_secrets_are_not_pickled(open_service: Any) -> None:
    """Neither tokens nor what holds a user id, whichever protocol."""
    service = open_service()
    token = await service.issue(REQUEST)
    reply = await service.create_chat_token(**MEMBERS)
    row = next(iter(read_attendees(io.BytesIO(ATTENDEES.encode()))))
    ask = Ask(user=USER)
    for secret in (token, reply, REQUEST, REQUEST.identity, row, ask):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="not pickled"):
                pickle.dumps(secret, protocol)


@pytest.mark.parametrize("secret", CANARIES.values(), ids=CANARIES)
@pytest.mark.parametrize(
    "spell",
    [
        str,
        repr,
        ascii,
        json.dumps,
        quote,
        str.upper,
        lambda text: text.encode().hex().upper(),
        lambda text: b64encode(f"ab{text}cd".encode()).decode(),
        lambda text: b64encode(f"a{text}".encode()).decode(),
        lambda text: b64encode(text.encode()).decode().rstrip("="),
        lambda text: str(text.encode()),
    ],
)
def test_a_canary_is_recognized(spell: Callable[[str], str], secret: str) -> None:
    """However it is spelled, and by its name."""
    (song,) = heard_in(f"before{spell(secret)}after")
    assert song.partition(":")[0] in CANARIES
    assert secret == CANARIES[song.partition(":")[0]]


def test_no_canary_is_heard_where_none_is() -> None:
    """The forms are long enough to be nobody else's."""
    assert min(len(form) for secret in CANARIES.values() for form in forms(secret)) >= 8
    assert [] == heard_in(f"{os.urandom(20_000).hex()} {b64encode(os.urandom(20_000)).decode()}")


class _Leaky:
    """Shows what it should not."""

    def __repr__(self) -> str:
        return f"<{USER}>"


_Leaky.__module__ = "aioivschat.leaky"


def _raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


def _raised_by_a_library() -> Exception:
    """Raise in a frame that is not the tests' own, with a secret in its locals."""
    try:
        json.loads(f'"{NAME}')
    except ValueError as error:
        error.args = ("nothing",)
        vars(error).clear()
        return error
    raise AssertionError


def _noted(error: Exception) -> Exception:
    error.add_note(KEY)
    return error


LEAKS: dict[str, tuple[str, Callable[[Ears], object]]] = {
    "a message": ("logs", lambda ears: logging.getLogger("botocore.auth").debug("%s", SECRET)),
    "an argument": ("log records", lambda ears: logging.debug("%.0s", (USER,))),
    "an extra field": ("log records", lambda ears: logging.debug("x", extra={"user": USER})),
    "a logged error": (
        "errors",
        lambda ears: logging.error("x", exc_info=_raised(KeyError(NAME))),
    ),
    "an event": ("events", lambda ears: ears.event(Delivered(USER, Source.CACHE, 0.0))),
    "a repr": ("reprs", lambda ears: ears.show(_Leaky())),
    "a pickle": ("pickles", lambda ears: ears.show({"user": USER})),
    "an error": ("errors", lambda ears: ears.error(ValueError(TOKEN))),
    "a cause": ("errors", lambda ears: ears.error(_raised(KeyError(), KeyError(USER)))),
    "a note": ("errors", lambda ears: ears.error(_noted(KeyError()))),
    "a group": ("errors", lambda ears: ears.error(ExceptionGroup("x", [KeyError(USER)]))),
    "a pickled error": ("pickled errors", lambda ears: ears.error(ValueError(SESSION))),
    "a frame": ("tracebacks", lambda ears: ears.error(_raised_by_a_library())),
    "a value in a frame": ("walked locals", lambda ears: ears.error(_raised_by_a_library())),
    "a warning": ("hooks", lambda ears: warnings.warn(USER, ResourceWarning, stacklevel=1)),
    "an output": ("output", lambda ears: ears.note("output", PASSWORD.encode())),
    "an engine": ("engine", lambda ears: ears.note("engine", SEALING)),
    "an answer": ("answers", lambda ears: ears.note("answers", KEY)),
    "a file": ("files", lambda ears: ears.note("files", USER)),
    "a command line": ("command line", lambda ears: ears.note("command line", quote(USER))),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_heard(leak: str) -> None:
    """Each surface carries it to the ears; the sweep is not deaf."""
    surface, let_out = LEAKS[leak]
    ears = Ears()
    with ears.listening():
        let_out(ears)
    assert ears.songs(surface)


def test_every_surface_can_be_heard() -> None:
    """Each has its leak above or below."""
    assert set(SURFACES) == {surface for surface, _ in LEAKS.values()} | {"tasks"}


def test_leaks_of_a_loop_are_heard() -> None:
    """A task's name or result, an error that nobody took, one in a thread, one of a finalizer."""
    ears = Ears()

    async def leak() -> None:
        assert not any(map(ears.songs, SURFACES))
        ears.listen_to_loop()
        task = asyncio.create_task(asyncio.sleep(0, USER))
        await task
        ears.look_around()
        assert ears.songs("tasks")
        assert ears.songs("logs")
        kept: list[Any] = [_Leaky()]
        ears.look_around()
        assert ears.songs("reprs")
        kept.clear()

        async def fail() -> None:
            raise KeyError(NAME)

        failing: Any = asyncio.create_task(fail())
        await asyncio.wait((failing,))
        del failing

    with ears.listening():
        asyncio.run(leak())
    assert ears.songs("hooks")

    def fail_in_thread() -> None:
        raise KeyError(KEY)

    ears = Ears()
    with ears.listening():
        thread = threading.Thread(target=fail_in_thread)
        thread.start()
        thread.join()
    assert ears.songs("hooks")


def test_a_command_that_leaks_is_heard(tmp_path: Path) -> None:
    """By what it writes for people, and by its command line."""

    async def leak(ears: Ears) -> None:
        stage = Stage(ears, ThreadedEmulatorServer(), tmp_path)
        # Some of a user's id.
        await _run(stage, "onboard", "no such 7Qd1Hm3z", afresh=True)

    ears = Ears()
    asyncio.run(leak(ears))
    assert ears.songs("output")
    assert ears.songs("command line")


def test_the_emulators_tokens_sing() -> None:
    """Otherwise no token could be recognized."""

    async def token() -> str:
        with ThreadedEmulatorServer(SingingEmulator()) as emulator:
            session = bare_session("canary-id", SECRET, SESSION)
            async with AsyncTokenService(
                session=session, endpoint_url=emulator.url, cache=CachePolicy()
            ) as service:
                return (await service.issue(REQUEST)).token

    assert [f"token: …{TOKEN}"] == [
        song[: len(TOKEN) + 8] for song in heard_in(asyncio.run(token()))
    ]

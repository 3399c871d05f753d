"""The endpoint is as its OpenAPI description says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from aioivschat import AsyncTokenService, Capability, RoomArn, TokenRequest
from aioivschat._endpoint.asks import MEMBERS
from aioivschat._endpoint.exchange import BODY_MAX_BYTES
from aioivschat._models import (
    KEY_MAX_CHARACTERS,
    ROOM_MAX_CHARACTERS,
    SESSION_MAX_MINUTES,
    USER_MAX_CHARACTERS,
)
from aioivschat.aiohttp import Ask, openapi
from aioivschat.emulator import ThreadedEmulatorServer
from support.endpoint_servers import serve_aiohttp
from support.services import ROOM, UNLIMITED, local_session

schema = schemathesis.openapi.from_dict(openapi())


async def _grant_all(request: Any, ask: Ask) -> TokenRequest | None:
    if ask.room is not None and RoomArn.parse(ask.room).region != "us-east-1":
        return None  # the emulator is everywhere, botocore's list of regions is not
    return TokenRequest(
        ask.room or ROOM, ask.user or "alice", list(Capability), ask.attributes, SESSION_MAX_MINUTES
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A running server of the endpoint, whose rule grants whatever is asked."""
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        with ThreadedEmulatorServer() as emulator:
            async with (
                AsyncTokenService(
                    session=local_session(), endpoint_url=emulator.url, quota=UNLIMITED
                ) as service,
                serve_aiohttp(_grant_all, service) as endpoint,
            ):
                started.set_result((endpoint, asyncio.get_running_loop(), stop))
                await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    endpoint, loop, stop = started.result(10)
    yield endpoint.removesuffix("/chat/token")
    loop.call_soon_threadsafe(stop.set)
    thread.join()


@schema.parametrize()
@settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(url: str, case: schemathesis.Case[Any]) -> None:
    """Valid and invalid requests have the responses of the OpenAPI description."""
    case.call_and_validate(base_url=url)


def test_the_description_has_the_limits_of_the_code() -> None:
    """The OpenAPI description has the code's limits and all names of members."""
    description = openapi("/enter")
    assert {"/enter", "/enter-provider.js"} == set(description["paths"])
    operation = description["paths"]["/enter"]["post"]
    schemas = description["components"]["schemas"]
    asks = [each for name, each in schemas.items() if name.startswith("Ask") and name != "Ask"]
    members = {name: limits for ask in asks for name, limits in ask["properties"].items()}
    assert set(MEMBERS) == set(members)
    for name, member in MEMBERS.items():
        if member == "room":
            assert ROOM_MAX_CHARACTERS == members[name]["maxLength"]
        elif member == "user":
            assert USER_MAX_CHARACTERS == members[name]["maxLength"]
        elif member == "session_minutes":
            assert SESSION_MAX_MINUTES == members[name]["maximum"]
    assert sorted(Capability) == sorted(members["capabilities"]["items"]["enum"])
    assert f"{BODY_MAX_BYTES:,} bytes" in operation["requestBody"]["description"]
    key = operation["parameters"][0]
    assert ("Idempotency-Key", KEY_MAX_CHARACTERS) == (key["name"], key["schema"]["maxLength"])

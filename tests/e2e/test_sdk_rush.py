"""Many SDK clients at once, more than the quota serves within anybody's patience."""

from __future__ import annotations

from time import monotonic

import pytest

from aioivschat import Quota
from aioivschat.aiohttp import EndpointPolicy

from .conftest import OpenClients, OpenStage, Show

pytestmark = pytest.mark.e2e

_CLIENTS = 500
_RATE = 50


async def test_everybody_gets_in(stage: OpenStage, clients: OpenClients, show: Show) -> None:
    """500 clients connect against 50 tokens a second: none is told of an error."""
    async with (
        stage(
            service_quota=Quota(rate=_RATE),
            policy=EndpointPolicy(),
            quota=f"bucket:{_RATE}:{_RATE}",
        ) as here,
        clients(here) as people,
    ):
        began = monotonic()
        for number in range(_CLIENTS):
            await people.do("join", f"viewer-{number}")
        last = await people.heard("connect", times=_CLIENTS, within=90)
        counts = here.server.emulator.counts()

        assert _CLIENTS == len({event.user for event in people.of("connect")})
        assert _CLIENTS == counts.chat_open == counts.minted
        for kind in ("noToken", "disconnect"):
            assert [] == people.of(kind)
        show(
            f"{_CLIENTS} clients at {_RATE} a second: all connected after {last.at - began:.1f} s, "
            f"{counts.throttled} requests throttled, 0 errors in the SDK"
        )

"""The SDK is back at once when its connection is lost."""

from __future__ import annotations

from statistics import median
from time import monotonic

import pytest

from .conftest import OpenClients, OpenStage, Show

pytestmark = pytest.mark.e2e

_DROPS = 100


async def test_a_dropped_client_is_back_within_a_second(
    stage: OpenStage, clients: OpenClients, show: Show
) -> None:
    """As soon as it is connected, its connection is cut: 100 times, and 100 times it is back."""
    async with stage() as here, clients(here) as people:
        await people.do("join", "alice")
        await people.heard("connect")
        took: list[float] = []
        for drop in range(1, _DROPS + 1):
            dropped = monotonic()
            assert 1 == here.server.drop_connections("alice")
            back = await people.heard("connect", times=1 + drop)
            took.append(back.at - dropped)
        tokens = {event.details["token"] for event in people.of("token")}
        counts = here.server.emulator.counts()

        assert _DROPS == sum(seconds < 1.0 for seconds in took)
        assert 1 + _DROPS == len(tokens) == counts.minted == counts.chat_opened
        assert [] == people.of("disconnect")
        show(
            f"dropped {_DROPS} times, back within 1 s {sum(each < 1 for each in took)} times: "
            f"median {median(took) * 1000:.0f} ms, longest {max(took) * 1000:.0f} ms"
        )

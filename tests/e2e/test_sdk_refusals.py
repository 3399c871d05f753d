"""Tokens that turn out to be spent: the SDK asks for another, and never in a loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import pytest
from aiohttp import web

from aioivschat.aiohttp import EndpointPolicy, Share
from aioivschat.emulator import ThreadedEmulatorServer

from .conftest import OpenClients, OpenStage, Show

pytestmark = pytest.mark.e2e

SpendFirst = Callable[[float], web.Application]


@pytest.fixture
def spend_first(ivschat_emulator: ThreadedEmulatorServer) -> SpendFirst:
    """Makes an application in which the first so many tokens are spent before they arrive."""

    def application(number: float) -> web.Application:
        served = 0

        @web.middleware
        async def spend(
            request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]
        ) -> web.StreamResponse:
            nonlocal served
            response: web.Response = await handler(request)
            if request.method == "POST" and response.status == 200:
                served += 1
                if served <= number:
                    assert isinstance(response.body, bytes)
                    ivschat_emulator.emulator.redeem(json.loads(response.body)["token"])
            return response

        return web.Application(middlewares=[spend])

    return application


@pytest.mark.parametrize("refusal", ["http", "error"])
async def test_one_spent_token_costs_one_more(
    stage: OpenStage, clients: OpenClients, spend_first: SpendFirst, refusal: str
) -> None:
    """Every call of the provider is an attempt of its own, so the next token is another."""
    async with stage(app=spend_first(1), refusal=refusal) as here, clients(here) as people:
        await people.do("join", "alice")
        await people.heard("token", times=2)
        await people.until(lambda: here.server.emulator.counts().chat_open == 1)
        await people.do("say", "alice", text="here I am")
        await people.heard("message", text="here I am")
        assert (2, 1) == (here.minted, here.refused)
        assert [] == people.of("disconnect")


async def test_a_clean_close_is_left_to_the_application(
    stage: OpenStage, clients: OpenClients, spend_first: SpendFirst
) -> None:
    """The SDK takes it for a good-bye; when the page connects again, it gets a fresh token."""
    async with stage(app=spend_first(1), refusal="close") as here, clients(here) as people:
        await people.do("join", "alice")
        left = await people.heard("disconnect")
        assert {"reason": "serverDisconnect"} == left.details
        assert (1, 1) == (here.minted, here.refused)
        await people.do("connect", "alice")
        await people.heard("connect", times=2)
        await people.do("say", "alice", text="here I am")
        await people.heard("message", text="here I am")
        assert (2, 1) == (here.minted, here.refused)


@pytest.mark.parametrize(
    ("refusal", "reason", "tokens"), [("http", "socketError", 4), ("close", "serverDisconnect", 1)]
)
async def test_the_sdk_gives_up_when_every_token_is_refused(
    stage: OpenStage,
    clients: OpenClients,
    spend_first: SpendFirst,
    refusal: str,
    reason: str,
    tokens: int,
) -> None:
    """After three more attempts, or at once if it is told so in good form."""
    async with (
        stage(app=spend_first(float("inf")), refusal=refusal) as here,
        clients(here) as people,
    ):
        await people.do("join", "alice")
        left = await people.heard("disconnect")
        assert {"reason": reason} == left.details
        assert tokens == here.minted == here.refused
        assert tokens == len({event.details["token"] for event in people.of("token")})


async def test_a_users_share_bounds_what_the_sdk_repeats_for_ever(
    stage: OpenStage, clients: OpenClients, spend_first: SpendFirst, show: Show
) -> None:
    """To an ERROR with code 401 the SDK answers with another connection, without end.

    The endpoint's limit for each user holds it back, and the provider keeps to that.
    """
    seconds = 5.0
    share = Share(tokens=5, seconds=10.0)
    async with (
        stage(
            app=spend_first(float("inf")), refusal="error", policy=EndpointPolicy(per_user=share)
        ) as here,
        clients(here) as people,
    ):
        began = monotonic()
        await people.do("join", "alice")
        await people.heard("token", times=share.tokens)
        await asyncio.sleep(seconds)
        minted, passed = here.minted, monotonic() - began
        show(f"every token refused by a 401 frame: {minted} tokens in {passed:.1f} s")
        assert minted <= share.tokens + 1 + passed * share.tokens / share.seconds

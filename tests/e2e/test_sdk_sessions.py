"""The SDK over several sessions: one token for each, and nothing lost in between."""

from __future__ import annotations

import asyncio
from itertools import pairwise, product

import pytest

from aioivschat.aiohttp import EndpointPolicy
from e2e.stage import Clients, Stage

from .conftest import OpenClients, OpenStage, Show

pytestmark = pytest.mark.e2e

# Both renew 60 s before the end of a session.
_SESSION_MINUTES = 3
_RENEWED_AFTER = 120.0


async def chat_until_renewed(people: Clients, *users: str, times: int) -> None:
    """Let users chat until each has had its connection renewed so often, and have them hush."""
    for user in users:
        await people.do("join", user)
        await people.heard("connect", user)
    for user in users:
        await people.do("chat", user, every=250)
    for user in users:
        await people.heard("token", user, times=1 + times)
    # A little longer: the last connections are to be used as well.
    heard = len(people.of("message"))
    await people.until(lambda: len(people.of("message")) > heard + 20)
    for user in users:
        await people.do("hush", user)
        await people.heard("hushed", user)


async def assert_seamless(people: Clients, here: Stage, *users: str) -> None:
    """Check that nobody noticed anything, and that everybody heard everything once, in order.

    The SDK closes its old connection as soon as the new one is open, and drops what has come over
    the old one and was not read yet: of that a message may be, once for each change.
    """
    for user in users:
        for kind in ("connecting", "connect"):
            assert 1 == len(people.of(kind, user))
    for kind in ("disconnect", "failed", "noToken"):
        assert [] == people.of(kind)
    said = {user: people.of("hushed", user)[-1].details["said"] for user in users}
    for speaker, user in product(users, users):
        texts = [f"{speaker} {number}" for number in range(said[speaker])]
        await people.heard("message", user, text=texts[-1])
        heard = people.of("message", user, **{"from": speaker})
        at = {event.details["text"]: event.at for event in heard}
        assert [text for text in texts if text in at] == [e.details["text"] for e in heard]
        changes = [event.at for event in people.of("token", user)[1:]]
        for number in [number for number, text in enumerate(texts) if text not in at]:
            before, after = (at[f"{speaker} {number + by}"] for by in (-2, 2))
            changes.remove(next(change for change in changes if before <= change <= after))
    assert sum(said.values()) == here.server.emulator.counts().messages


async def test_renewal_loses_no_message(stage: OpenStage, clients: OpenClients, show: Show) -> None:
    """Two clients chat on while each changes its connection five times, in real time.

    Their three minutes last 62 seconds, so that the SDK renews after two.
    """
    async with (
        stage(session_minutes=_SESSION_MINUTES, minute=62 / _SESSION_MINUTES) as here,
        clients(here) as people,
    ):
        await chat_until_renewed(people, "alice", "bob", times=5)
        await assert_seamless(people, here, "alice", "bob")
        counts = here.server.emulator.counts()
        assert (counts.minted, 0) == (counts.chat_opened, counts.chat_refused)
        show(
            f"renewals: {counts.minted - 2}, messages: {counts.messages}, "
            f"heard by both: {len(people.of('message')) // 2}"
        )


async def test_a_session_takes_one_token(
    stage: OpenStage, clients: OpenClients, show: Show
) -> None:
    """A token for each session of three minutes, renewed a minute before its end.

    With AWS's own expiration passed through, the same client in the same time takes a token every
    30 seconds. For both, time runs 30 times faster: the SDK's clock and the emulator's minutes.
    """
    speed = 30.0
    short = {"minute": 60 / speed, "token_life": 60 / speed, "session_minutes": _SESSION_MINUTES}
    raw_policy = EndpointPolicy(per_user=None, raw_expiration=True)
    async with (
        stage(**short) as here,
        stage(**short, policy=raw_policy) as raw_stage,
        clients(here, speed=speed) as people,
        clients(raw_stage, speed=speed) as raw_people,
    ):
        await raw_people.do("join", "raw")
        await raw_people.heard("connect")
        await chat_until_renewed(people, "alice", "bob", times=3)
        await assert_seamless(people, here, "alice", "bob")

        first, *_, last = tokens = people.of("token", "alice")
        raw_tokens = [event for event in raw_people.of("token") if event.at <= last.at]
        counts = here.server.emulator.counts()
        assert (counts.minted, 0) == (counts.chat_opened, counts.chat_refused)
        # Not before it is time, give or take how late each of the two was heard of.
        for one, next_one in pairwise(tokens):
            assert (next_one.at - one.at) * speed > _RENEWED_AFTER - 15
        assert len(raw_tokens) > 2 * len(tokens)

        minutes = (last.at - first.at) * speed / 60
        show(f"sessions of 3 minutes, renewed for {minutes:.1f} minutes: {len(tokens)} tokens")
        show(f"the same with the raw expiration: {len(raw_tokens)} tokens")
        show(f"growth: {(len(raw_tokens) - 1) / (len(tokens) - 1):.1f} times")


async def test_who_leaves_does_not_come_back(stage: OpenStage, clients: OpenClients) -> None:
    """The provider's signal keeps the SDK from it, whose timers survive a lost connection.

    The SDK forgets the timer that it had set for the connection that was cut; when the time for
    that renewal comes, it connects again, though the page has left.
    """
    speed = 30.0
    short = {"minute": 60 / speed, "token_life": 60 / speed, "session_minutes": _SESSION_MINUTES}
    async with stage(**short) as here, clients(here, speed=speed) as people:
        await people.do("join", "alice")
        await people.heard("connect")
        assert 1 == here.server.drop_connections("alice")
        await people.heard("connect", times=2)
        await people.do("leave", "alice")
        await people.heard("disconnect")

        await people.heard("noToken")
        await asyncio.sleep(0.5)
        assert 2 == here.minted == len(people.of("connect"))
        assert 0 == here.server.emulator.counts().chat_open


@pytest.mark.parametrize(
    ("ahead", "session_minutes"),
    [
        pytest.param(2 * 3600.0, 60, id="hours-ahead"),
        pytest.param(-2 * 3600.0, 60, id="hours-behind"),
        pytest.param(-0.2, 1, id="a-little-behind"),
    ],
)
async def test_a_wrong_clock_does_no_harm(
    stage: OpenStage, clients: OpenClients, ahead: float, session_minutes: int
) -> None:
    """The SDK compares the end of the session with the page's clock, whatever that shows.

    If the session seems to be over, or to last a little longer than 60 seconds, it would renew at
    once, and again.
    """
    async with (
        stage(session_minutes=session_minutes) as here,
        clients(here, ahead=ahead) as people,
    ):
        await people.do("join", "alice")
        await people.heard("connect")
        await asyncio.sleep(1.5)
        assert 1 == here.minted

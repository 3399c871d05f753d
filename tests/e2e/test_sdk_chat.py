"""One SDK client connects, sends, receives, deletes, and is disconnected."""

from __future__ import annotations

import pytest

from .conftest import OpenClients, OpenStage

pytestmark = pytest.mark.e2e


async def test_clients_chat_with_tokens_of_the_endpoint(
    stage: OpenStage, clients: OpenClients
) -> None:
    """What one says, the other hears, and sees deleted; who is disconnected stays away."""
    async with stage() as here, clients(here) as people:
        for user in ("alice", "bob"):
            await people.do("join", user)
            await people.heard("connect", user)

        await people.do("say", "alice", text="hello")
        said = await people.heard("message", "bob", text="hello")
        assert "alice" == said.details["from"]

        await people.do("delete", "bob", id=said.details["id"], reason="rude")
        for user in ("alice", "bob"):
            deleted = await people.heard("messageDelete", user)
            assert {"id": said.details["id"], "reason": "rude"} == deleted.details

        await people.do("disconnect", "alice", whom="bob", reason="enough")
        gone = await people.heard("userDisconnect", "alice")
        assert {"whom": "bob", "reason": "enough"} == gone.details
        left = await people.heard("disconnect", "bob")
        assert {"reason": "serverDisconnect"} == left.details

        await people.do("say", "alice", text="anybody?")
        await people.heard("message", "alice", text="anybody?")
        assert [] == people.of("message", "bob", text="anybody?")
        assert [] == people.of("failed")
        assert (2, 0) == (here.minted, here.refused)

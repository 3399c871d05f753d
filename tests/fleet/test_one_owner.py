"""No token goes to two attempts, whatever fails."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest

from aioivschat import AsyncTokenService, ChatToken, TokenRequest
from aioivschat.emulator import Fault, FaultKind, QuotaShape, ThreadedEmulatorServer
from aioivschat.redis import RedisTier
from support.commands import SOON
from support.engine import EngineServer
from support.services import ROOM, SEALING_KEY, OpenService

REQUESTS = [TokenRequest(ROOM, f"user-{number}") for number in range(3)]


@pytest.mark.fault(24)
@pytest.mark.parametrize("seed", range(3))
async def test_a_token_has_one_owner(
    open_service: OpenService,
    ivschat_emulator: ThreadedEmulatorServer,
    tmp_path: Path,
    seed: int,
) -> None:
    """Each token has one owner, though calls of every kind are cancelled at random at four members
    and the engine comes and goes.
    """
    rng = random.Random(seed)
    owners: dict[str, set[object]] = defaultdict(set)
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.SLOW, times=None, latency=0.01))
    ivschat_emulator.emulator.configure(quota=QuotaShape("bucket", 1e6, 1e6))

    async def call(member: AsyncTokenService, number: int) -> None:
        request = rng.choice(REQUESTS)
        kind = rng.choice(["fresh", "attempt", "attempt", "prewarm"])
        attempt = f"attempt-{number // 6}"
        try:
            async with asyncio.timeout(rng.choice([0.005, 0.02, 0.05, 5.0])):
                if kind == "prewarm":
                    await member.prewarm([request] * 2)
                    return
                key = attempt if kind == "attempt" else None
                token: ChatToken = await member.issue(
                    request, idempotency_key=key, fresh=key is None
                )
        except TimeoutError:
            return
        owner: object = (request.user, attempt) if key else number
        owners[token.token].add(owner)

    with EngineServer(tmp_path) as server:
        members = [open_service(shared=RedisTier(server.url, keys=[SEALING_KEY])) for _ in range(4)]

        async def trouble() -> None:
            for _ in range(2):
                await asyncio.sleep(0.4)
                server.kill()
                await asyncio.sleep(0.2)
                await asyncio.to_thread(server.start)
                await asyncio.sleep(0.4)
                with server.stopped():
                    await asyncio.sleep(0.1)

        async def share() -> None:
            """Begin once the members are seen to share: a busy machine may keep them apart."""
            for attempt in itertools.count():
                key = f"shared-{attempt}"
                for member in members[:2]:
                    await member.issue(REQUESTS[0], idempotency_key=key)
                if members[1].stats().shared:
                    return

        await asyncio.wait_for(share(), SOON)
        troubling = asyncio.create_task(trouble())
        calls: set[asyncio.Task[None]] = set()
        number = 0
        while not troubling.done():
            # On a busy machine calls end more slowly than they are made.
            for _ in range(min(4, 200 - len(calls))):
                task = asyncio.create_task(call(rng.choice(members), number))
                calls.add(task)
                task.add_done_callback(calls.discard)
                number += 1
            await asyncio.sleep(0.005)
        await troubling
        await asyncio.gather(*calls)
        assert [1] * len(owners) == [len(owner) for owner in owners.values()]
        for member in members:
            with suppress(TimeoutError):
                await member.aclose(grace=1.0)
    assert len(owners) > 50

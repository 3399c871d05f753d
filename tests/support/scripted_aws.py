"""An AWS in this process, for virtual time: a script says what becomes of each request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from aioivschat import AsyncTokenService, PoolPolicy, Quota
from aioivschat.planning._virtual_time import CreateChatToken, in_process_session
from support.virtual import VirtualClock

LATENCY = 0.02

Script = Callable[[int, str], object]
"""It is called with a request's number, from 1, and its user; it returns what to raise or to wait
for, or ``None``: the token comes after the latency."""


class ScriptedAws:
    """Mints as the script says.

    Attributes:
        script: what becomes of the next requests.
        opening_takes: seconds to open a client.
        sent: the moment of each request and its user, in order.
        at_once: by user, the most requests that were under way in one moment.
    """

    def __init__(self, script: Script = lambda number, user: None) -> None:
        self.clock = VirtualClock()
        self.script = script
        self.opening_takes = 0.0
        self.sent: list[tuple[float, str]] = []
        self.at_once: dict[str, int] = {}
        self._under_way: dict[str, int] = {}

    def requests_for(self, user: str) -> int:
        """Return how many requests came for a user."""
        return sum(user == each for _, each in self.sent)

    def service(self, **options: Any) -> AsyncTokenService:
        """Return a service whose clients ask here."""
        options.setdefault("quota", Quota(rate=10_000.0))
        return AsyncTokenService(
            session=in_process_session(self._open_client),
            endpoint_url="http://127.0.0.1",
            pool=PoolPolicy(prepared=False),
            clock=self.clock,
            **options,
        )

    async def _open_client(self, _: str) -> CreateChatToken:
        await asyncio.sleep(self.opening_takes)
        return self._create_chat_token

    async def _create_chat_token(self, *, userId: str, **_: Any) -> Mapping[str, Any]:  # noqa: N803 (boto3's)
        self.sent.append((self.clock.monotonic(), userId))
        number = len(self.sent)
        self._under_way[userId] = self._under_way.get(userId, 0) + 1
        self.at_once[userId] = max(self.at_once.get(userId, 0), self._under_way[userId])
        try:
            outcome = self.script(number, userId)
            await (outcome if isinstance(outcome, Awaitable) else asyncio.sleep(LATENCY))
            if isinstance(outcome, Exception):
                raise outcome
        finally:
            self._under_way[userId] -= 1
        now = datetime.fromtimestamp(self.clock.wall(), UTC)
        return {
            "token": f"token-{number}",
            "tokenExpirationTime": now + timedelta(seconds=60),
            "sessionExpirationTime": now + timedelta(hours=1),
        }


def throttle(retry_after: object = None, status: int = 429) -> ClientError:
    """Return the refusal of a request, and when to come back."""
    code = "ThrottlingException" if status == 429 else "InternalServerException"
    headers = {} if retry_after is None else {"retry-after": f"{retry_after}"}
    metadata: Any = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "CreateChatToken")

"""A cache and a stock on virtual time, for the tests of what keeps tokens."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType
from typing import Any, cast

from aioivschat import CachePolicy, ChatToken, TokenRequest
from aioivschat._models import Attempt, Identity
from aioivschat._service.cache import Entry, TokenCache
from aioivschat._service.fences import Fences
from aioivschat._service.stock import TokenStock
from support.virtual import VirtualClock, VirtualLoop

ROOM = "arn:aws:ivschat:eu-west-1:123456789012:room/a"
OTHER_ROOM = "arn:aws:ivschat:eu-west-1:123456789012:room/b"
MAX_CALLS = 200
"""More calls than any single operation makes, and far fewer than a mass of entries would cost."""

_FAR_FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


def identity_of(user: str = "u", room: str = ROOM) -> Identity:
    """Return the identity of a user's request."""
    return TokenRequest(room, user).identity


U = identity_of()
"""Whose the tokens are where the test says nothing else."""


def attempt(key: object = "key") -> Attempt:
    """Return an attempt of user U."""
    return Attempt((U, str(key)))


def pass_time(seconds: float) -> None:
    """Let virtual time pass while nothing else happens."""
    cast("VirtualLoop", asyncio.get_running_loop()).stall(seconds)


def count_calls(operation: Callable[[], object]) -> int:
    """Count the function calls, Python's and C's, that an operation makes."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    # Garbage of other tests has finalizers, whose calls are none of the operation's.
    gc.disable()
    sys.setprofile(count)
    try:
        operation()
    finally:
        sys.setprofile(before)
        gc.enable()
    return calls


class TokenStore:
    """A cache and a stock, their clock, and tokens numbered in the order of their making.

    Args:
        options: of the policy.
    """

    def __init__(self, **options: Any) -> None:
        policy = CachePolicy(**options)
        self.clock = VirtualClock()
        self.fences = Fences()
        self.cache = TokenCache(policy, self.clock, self.fences)
        self.stock = TokenStock(policy, self.cache)
        self._made = 0

    def entry(
        self, identity: Identity = U, *, life: float = 60.0, generation: int | None = None
    ) -> Entry:
        """Make an entry whose request begins now."""
        self._made += 1
        return Entry(
            identity,
            ChatToken(f"token-{self._made}", _FAR_FUTURE, _FAR_FUTURE),
            self.clock.monotonic() + life,
            self.clock.wall() + life,
            self.fences.generation if generation is None else generation,
        )

"""When a failed request is sent again, and when not: the only place that retries."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from aioivschat._clock import Clock
from aioivschat._contexts import run_detached
from aioivschat.errors import (
    ChatTokenError,
    ConnectionFailed,
    MalformedResponse,
    ServerFault,
    Throttled,
    require_number,
)

T = TypeVar("T")

RETRIED = (Throttled, ServerFault, ConnectionFailed, MalformedResponse)
"""Failures of a request that may pass; everything else would fail the same way again."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a failed request is sent again.

    The delay before request ``n + 1`` is random between 0 and
    ``min(max_delay, base_delay * 2 ** (n - 1))`` ("full jitter"), and at least what the server's
    ``Retry-After`` asks for, of which no more than 10 s are believed.

    Args:
        max_attempts: requests sent for one token at most, the first included; at least 1. Twelve
            carry every call through the second that processes sharing a quota need to
            find their shares.
        base_delay: seconds, more than 0.
        max_delay: seconds, at least ``base_delay``.

    Raises:
        InvalidConfiguration: if a number is out of its range.
    """

    max_attempts: int = 12
    base_delay: float = 0.1
    max_delay: float = 1.0

    def __post_init__(self) -> None:
        require_number("RetryPolicy.max_attempts", self.max_attempts, least=1, whole=True)
        require_number("RetryPolicy.base_delay", self.base_delay, above=0, unit=" s")
        shortest = self.base_delay
        require_number("RetryPolicy.max_delay", self.max_delay, least=shortest, unit=" s")

    def longest_delay(self, number: int) -> float:
        """Return the most seconds between the failed request of a number and the next."""
        # A larger exponent could overflow, and the maximum holds long before.
        return min(self.max_delay, self.base_delay * 2.0 ** min(number - 1, 30))


class Retrier:
    """Sends requests until one succeeds or no further one makes sense."""

    def __init__(self, policy: RetryPolicy, clock: Clock, rng: random.Random) -> None:
        self._policy = policy
        self._clock = clock
        self._wait = _FullJitter(policy, rng)

    async def run(
        self,
        send: Callable[[int], Awaitable[T]],
        *,
        failed: Exception | None = None,
        retried: tuple[type[ChatTokenError], ...] = RETRIED,
        worthwhile: Callable[[float], bool],
        before_sleep: Callable[[int, float], None] = lambda number, delay: None,
    ) -> T:
        """Send until a request succeeds.

        Args:
            send: sends the request of a number, from 1, and returns what came of it.
            failed: how the first request failed, if the caller has sent it already. Nearly all
                succeed, and setting up retries costs more than all else that is done for a token.
            retried: failures after which it is sent again, if they may pass.
            worthwhile: called before each sleep with its seconds; returns whether anybody would
                still want the result afterwards.
            before_sleep: called with the number of the failed request and the seconds until the
                next.

        Returns:
            What ``send`` returned.

        Raises:
            Exception: the last request's failure.
        """
        clock = self._clock
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, retried) and error.may_pass
            ),
            stop=tenacity.stop_after_attempt(self._policy.max_attempts)
            | _StopUnlessWorthwhile(worthwhile),
            wait=self._wait,
            sleep=lambda seconds: run_detached(clock.sleep(seconds)),
            before_sleep=lambda state: before_sleep(state.attempt_number, state.upcoming_sleep),
            reraise=True,
        )
        async for request in retrying:
            with request:
                number = request.retry_state.attempt_number
                if number == 1 and failed is not None:
                    raise failed
                return await send(number)
        raise AssertionError("tenacity either returns or raises")

    def longest_delay(self, number: int) -> float:
        """Return the most seconds between the failed try of a number and the next."""
        return self._policy.longest_delay(number)


class _FullJitter(wait_base):
    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        delay = self._rng.uniform(0, self._policy.longest_delay(retry_state.attempt_number))
        failure = retry_state.outcome.exception() if retry_state.outcome else None
        asked = failure.retry_after if isinstance(failure, Throttled | ServerFault) else None
        return max(delay, asked or 0.0)


class _StopUnlessWorthwhile(stop_base):
    def __init__(self, worthwhile: Callable[[float], bool]) -> None:
        self._worthwhile = worthwhile

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return not self._worthwhile(retry_state.upcoming_sleep)

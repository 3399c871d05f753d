"""Retries: as often and as patiently as the policy says, and none that cannot help."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioivschat import (
    AccessDenied,
    AwsError,
    ConnectionFailed,
    InvalidConfiguration,
    MalformedResponse,
    PendingVerification,
    ResourceNotFound,
    RetryPolicy,
    ServerFault,
    Throttled,
    ValidationFailed,
)
from aioivschat._service.retry import Retrier
from support.virtual import VirtualClock, virtual_time

thorough = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def throttled(retry_after: float | None = None) -> Throttled:
    """Make the error of a throttled request."""
    error = Throttled({"Error": {"Code": "ThrottlingException"}})
    error.retry_after = retry_after
    return error


class Run:
    """A run of a retrier whose requests fail as given, and a record of what it did.

    Args:
        failures: of the first requests; a :class:`Lasting` one at the end fails all later ones.
        policy: of the retrier.
    """

    def __init__(self, *failures: BaseException, policy: RetryPolicy | None = None) -> None:
        self.failures = failures
        self.policy = policy or RetryPolicy()
        self.sent: list[int] = []
        self.delays: list[float] = []
        self.asked: list[float] = []
        self.told: list[tuple[int, float]] = []

    async def go(self, *, seed: int = 1, patience: float = float("inf")) -> str:
        """Run until success or the end; no delay longer than the patience is worthwhile."""
        run = self

        class Clock(VirtualClock):
            async def sleep(self, seconds: float) -> None:
                run.delays.append(seconds)
                await asyncio.sleep(seconds)

        async def send(number: int) -> str:
            self.sent.append(number)
            if number <= len(self.failures) or (
                self.failures and isinstance(self.failures[-1], Lasting)
            ):
                raise self.failures[min(number, len(self.failures)) - 1]
            return "token"

        def worthwhile(delay: float) -> bool:
            self.asked.append(delay)
            return delay <= patience

        def before_sleep(number: int, delay: float) -> None:
            self.told.append((number, delay))

        retrier = Retrier(self.policy, Clock(), random.Random(seed))
        return await retrier.run(send, worthwhile=worthwhile, before_sleep=before_sleep)


class Lasting(ConnectionFailed):
    """A failure that ends all later requests too."""


@virtual_time
async def test_a_first_success_is_returned_at_once() -> None:
    """One request is sent, with no sleep and no callback."""
    run = Run()
    assert "token" == await run.go()
    assert ([1], [], [], []) == (run.sent, run.delays, run.asked, run.told)


@virtual_time
async def test_failures_that_may_pass_are_tried_again() -> None:
    """Throttling, AWS's own faults, lost connections and unusable answers are retried."""
    run = Run(
        throttled(),
        ServerFault({"ResponseMetadata": {"HTTPStatusCode": 503}}),
        ConnectionFailed("ServerDisconnectedError"),
        MalformedResponse("no token"),
    )
    assert "token" == await run.go()
    assert [1, 2, 3, 4, 5] == run.sent


@pytest.mark.fault(14)
@pytest.mark.parametrize(
    "error",
    [
        AccessDenied({"Error": {"Code": "AccessDeniedException"}}),
        PendingVerification({}),
        ResourceNotFound({}),
        ValidationFailed({}),
        AwsError({}),
        ValueError("a mistake in this library"),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
@virtual_time
async def test_failures_that_would_come_again_are_raised_at_once(error: BaseException) -> None:
    """The same object is raised after one request, without a sleep or a chain of errors."""
    run = Run(error)
    with pytest.raises(type(error)) as caught:
        await run.go()
    assert error is caught.value
    assert ([1], [], [], []) == (run.sent, run.delays, run.asked, run.told)
    assert (None, None) == (error.__cause__, error.__context__)


@pytest.mark.fault(9)
@pytest.mark.parametrize("most", [1, 2, 12])
@virtual_time
async def test_a_lasting_failure_is_tried_exactly_as_often_as_allowed(most: int) -> None:
    """`max_attempts` requests are sent, with a sleep between each two."""
    run = Run(Lasting("Refused"), policy=RetryPolicy(max_attempts=most))
    with pytest.raises(Lasting):
        await run.go()
    assert list(range(1, most + 1)) == run.sent
    assert most - 1 == len(run.delays)


@virtual_time
async def test_the_last_failure_is_raised_as_it_is() -> None:
    """The last error is neither wrapped nor chained to the earlier ones."""
    first, last = throttled(), ConnectionFailed("Refused")
    run = Run(first, last, policy=RetryPolicy(max_attempts=2))
    with pytest.raises(ConnectionFailed) as caught:
        await run.go()
    assert last is caught.value
    assert (None, None) == (last.__cause__, last.__context__)


@thorough
@given(
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.floats(0.001, 10),
    st.floats(1, 1000),
)
@virtual_time
async def test_delays_are_random_between_nothing_and_the_doubled_maximum(
    seed: int, most: int, base: float, factor: float
) -> None:
    """The seed alone decides them (full jitter); both callbacks get the delay that is slept."""
    policy = RetryPolicy(max_attempts=most, base_delay=base, max_delay=base * factor)
    run = Run(Lasting("Refused"), policy=policy)
    with pytest.raises(Lasting):
        await run.go(seed=seed)
    again = Run(Lasting("Refused"), policy=policy)
    with pytest.raises(Lasting):
        await again.go(seed=seed)
    assert run.delays == again.delays
    for number, delay in enumerate(run.delays, start=1):
        assert 0 <= delay <= min(policy.max_delay, base * 2.0 ** (number - 1))
    assert list(enumerate(run.delays, start=1)) == run.told
    # Whether to go on may also be asked after the last request, for a sleep that never comes.
    assert run.delays == run.asked[: most - 1]


@virtual_time
async def test_delays_use_the_whole_range() -> None:
    """They spread, so that callers whose requests failed together do not return together."""
    policy = RetryPolicy(max_attempts=2, base_delay=1.0, max_delay=1.0)
    delays = []
    for seed in range(400):
        run = Run(throttled(), policy=policy)
        await run.go(seed=seed)
        delays += run.delays
    quarters = [sum(n / 4 <= delay < (n + 1) / 4 for delay in delays) for n in range(4)]
    assert 400 == sum(quarters)
    assert all(70 < quarter < 130 for quarter in quarters)


@pytest.mark.fault(11)
@pytest.mark.parametrize("kind", [Throttled, ServerFault])
@pytest.mark.parametrize("asked", [0.0, 0.01, 3.0, 30.0])
@virtual_time
async def test_no_retry_comes_sooner_than_the_server_asked(
    kind: type[Throttled | ServerFault], asked: float
) -> None:
    """`Retry-After` is a lower bound, beyond the policy's maximum too."""
    error = kind({"Error": {"Code": "x"}})
    error.retry_after = asked
    for seed in range(50):
        run = Run(error, policy=RetryPolicy(base_delay=0.1, max_delay=1.0))
        await run.go(seed=seed)
        (delay,) = run.delays
        assert asked <= delay <= max(asked, 0.1)


@pytest.mark.fault(11)
@virtual_time
async def test_a_delay_that_is_not_worthwhile_is_not_begun() -> None:
    """The failure is raised at once, also if the server asked for the long delay."""
    error = throttled(30.0)
    run = Run(error)
    loop = asyncio.get_running_loop()
    before = loop.time()
    with pytest.raises(Throttled) as caught:
        await run.go(patience=8.0)
    assert error is caught.value
    assert ([1], [30.0], [], []) == (run.sent, run.asked, run.delays, run.told)
    assert before == loop.time()


@pytest.mark.fault(6)
@virtual_time
async def test_a_cancelled_retry_sends_no_further_request() -> None:
    """It is cancelled in the sleep before the second request."""
    run = Run(Lasting("Refused"), policy=RetryPolicy(base_delay=10.0, max_delay=10.0))
    started = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run.go()
    assert asyncio.get_running_loop().time() - started < 0.05
    sent = list(run.sent)
    await asyncio.sleep(100)
    assert [1] == sent == run.sent


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": -1}, "max_attempts"),
        ({"base_delay": 0.0}, "base_delay"),
        ({"base_delay": -0.1}, "base_delay"),
        ({"base_delay": float("nan")}, "base_delay"),
        ({"max_delay": 0.05}, "max_delay"),
        ({"max_delay": float("nan")}, "max_delay"),
        ({"base_delay": 2.0}, "max_delay"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(options: dict[str, Any], name: str) -> None:
    """The error names the option."""
    with pytest.raises(InvalidConfiguration) as caught:
        RetryPolicy(**options)
    assert f"RetryPolicy.{name}" == caught.value.option


def test_the_bounds_of_a_policy_are_accepted() -> None:
    """One request without a retry and two equal delays are allowed."""
    policy = RetryPolicy(max_attempts=1, base_delay=0.5, max_delay=0.5)
    assert (1, 0.5, 0.5) == (policy.max_attempts, policy.base_delay, policy.max_delay)

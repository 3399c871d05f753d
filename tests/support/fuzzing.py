"""How much is searched with every change; ``nox -s fuzz`` searches on, guided by coverage.

The search is the same each time: a change must not fail for what another one broke, nor be let
through by luck. What is new is found by ``tests/search/fuzz/run.py``, and becomes an example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings

settings.register_profile(
    "bounded",
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
bounded = settings.get_profile("bounded")


@dataclass(frozen=True)
class Target:
    """What ``tests/search/fuzz/run.py`` can search.

    Attributes:
        check: a check of bytes, or a test that hypothesis feeds.
        seeds: inputs to begin with, where hypothesis does not know their shape.
    """

    check: Callable[..., Any]
    seeds: tuple[bytes, ...] = ()

    def __call__(self, data: bytes) -> None:
        """Check one input."""
        hypothesis = getattr(self.check, "hypothesis", None)
        (self.check if hypothesis is None else hypothesis.fuzz_one_input)(data)

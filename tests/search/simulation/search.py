"""Looks for a program that breaks something."""

from __future__ import annotations

import gc
import shlex
from collections import Counter
from collections.abc import Callable

import hypothesis
from hypothesis import HealthCheck, Phase

from search.simulation import programs as language
from search.simulation.programs import Program, programs
from search.simulation.world import run

_AT_A_TIME = 1_000
"""Programs of one run of hypothesis, which keeps all that it has made in memory."""

_VOCABULARY = {name: value for name, value in vars(language).items() if not name.startswith("_")}


class Found(AssertionError):
    """A program that breaks something."""


def search(
    count: int,
    seed: int,
    *,
    as_found: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Counter[str]:
    """Run random programs.

    Args:
        count: how many.
        seed: which ones.
        as_found: whether a program that fails is reported as it was found, without shrinking.
        progress: told now and then how many have run.

    Returns:
        What they reached, and how often.

    Raises:
        Found: one broke something.
    """
    reached: Counter[str] = Counter()
    # Else what is there already is examined again and again, for a tenth of the time.
    gc.freeze()
    try:
        for ran in range(0, count, _AT_A_TIME):
            reached += _batch(ran, min(count, ran + _AT_A_TIME), count, seed, as_found)
            progress(min(count, ran + _AT_A_TIME))
    finally:
        gc.unfreeze()
    return reached


def _batch(ran: int, end: int, count: int, seed: int, as_found: bool) -> Counter[str]:
    reached: Counter[str] = Counter()
    found_after: int | None = None

    @hypothesis.seed(f"{seed}, {ran}")
    @hypothesis.settings(
        max_examples=end - ran,
        deadline=None,
        database=None,
        phases=[Phase.generate] if as_found else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(programs())
    def every(program: Program) -> None:
        nonlocal ran, found_after
        ran += found_after is None
        try:
            reached.update(run(program).reached)
        except Exception as error:
            found_after = found_after or ran
            raise Found(
                f"after {found_after} programs (of {count}, seed {seed}): {error}\n"
                f"python -m search.simulation {shlex.quote(str(program))}"
            ) from error

    every()
    return reached


def read(text: str) -> Program:
    """Return the program that a failure printed."""
    program = eval(text, _VOCABULARY)
    assert isinstance(program, Program)
    return program

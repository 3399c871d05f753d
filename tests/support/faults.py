"""A pytest plugin: ``--faults`` prints ``faults.md``, each line with the tests that hold it.

A test holds a line by ``@pytest.mark.fault(N)``. Nothing is run; it fails if a line has no test, or
if a test holds a line that does not exist.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

import pytest

from support.paths import TESTS

_LINE = re.compile(r"^(\d+)\. (.+(?:\n {3,}.+)*)", flags=re.MULTILINE)

LINES = {
    int(number): " ".join(text.split())
    for number, text in _LINE.findall((TESTS / "project" / "faults.md").read_text())
}
"""What must happen, by number."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--faults",
        action="store_true",
        help="run nothing, print the table of faults with the tests that hold each line, "
        "and fail if one has none",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin the table, if it was asked for."""
    if config.getoption("--faults"):
        config.pluginmanager.register(_Table(), "fault table")


class _Table:
    """Takes note of what holds each line, instead of running it."""

    def __init__(self) -> None:
        # A test and not each of its parameters, in their order.
        self._holders: dict[int, dict[str, None]] = {number: {} for number in LINES}

    @property
    def _wrong(self) -> list[str]:
        held = self._holders.items()
        return [f"line {number} has no test" for number, tests in held if not tests] + [
            f"{test}: there is no line {number}"
            for number, tests in held
            if number not in LINES
            for test in tests
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Come first: what others leave out, for want of a browser say, holds lines too."""
        for item in items:
            for mark in item.iter_markers("fault"):
                for number in mark.args:
                    tests = self._holders.setdefault(number, {})
                    tests[item.nodeid.partition("[")[0]] = None
        items.clear()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """No test is what is wanted; a file that cannot be read is a failure as ever."""
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            fails = bool(self._wrong)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED if fails else pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table, and what is wrong with it."""
        for line in _rendered(self._holders):
            terminalreporter.write_line(line)
        for reason in self._wrong:
            terminalreporter.write_line(reason, red=True)


def _rendered(holders: Mapping[int, Mapping[str, None]]) -> list[str]:
    lines: list[str] = []
    for number, text in LINES.items():
        lines += textwrap.wrap(text, 100, initial_indent=f"{number:2}. ", subsequent_indent=" " * 4)
        lines += [f"      {test}" for test in holders[number]]
    return lines

"""The table of faults: every line has a test that holds it, or ``pytest --faults`` fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.faults import LINES

Table = Callable[..., pytest.RunResult]


@pytest.fixture
def table(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Table:
    """Return what prints the table for a suite whose tests hold these lines, one each."""
    # The project's options are not this suite's.
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini(
        "[pytest]\nmarkers = fault(line): as in the project\n"
        "asyncio_default_fixture_loop_scope = function\n"
    )

    def print_table(*numbers: int, more: str = "") -> pytest.RunResult:
        code = "import pytest\n" + "".join(
            f"@pytest.mark.fault({number})\ndef test_{number}(): raise SystemExit\n"
            for number in numbers
        )
        pytester.makepyfile(test_suite=code + more)
        return pytester.runpytest_inprocess("-p", "support.faults", "--faults", "-m", "not e2e")

    return print_table


def test_the_lines_are_numbered_without_a_gap() -> None:
    """In their order, whole, with the stars."""
    assert list(range(1, len(LINES) + 1)) == list(LINES)
    assert LINES[1].startswith("★ 100 callers of one attempt,")
    assert LINES[1].endswith("99 get the token, the task count returns to its baseline.")
    assert LINES[30].endswith("MONITOR.")


def test_each_line_is_shown_with_the_tests_that_hold_it(table: Table) -> None:
    """A test with parameters once, and one that would not be run too; nothing is run."""
    more = (
        "@pytest.mark.e2e\n@pytest.mark.fault(7)\n@pytest.mark.fault(8)\n"
        "@pytest.mark.parametrize('x', [1, 2])\ndef test_more(x): raise SystemExit\n"
    )
    result = table(*LINES, more=more)
    assert pytest.ExitCode.OK == result.ret
    for number in (7, 8):
        holders = [f"*{number}. *", "* test_suite.py::test_more", f"*{number + 1}. *"]
        result.stdout.fnmatch_lines([holders[0], f"* test_suite.py::test_{number}", *holders[1:]])
    assert 2 == result.stdout.str().count("test_more")


@pytest.mark.parametrize("missing", [1, 17, 30])
def test_a_line_that_no_test_holds_is_a_failure(table: Table, missing: int) -> None:
    """And it is named."""
    result = table(*(set(LINES) - {missing}))
    assert pytest.ExitCode.TESTS_FAILED == result.ret
    result.stdout.fnmatch_lines([f"line {missing} has no test"])
    assert 1 == result.stdout.str().count("has no test")


def test_a_test_that_holds_a_line_of_no_number_is_a_failure(table: Table) -> None:
    """A slip of the pen would leave a line with a test less than it seems."""
    result = table(*LINES, len(LINES) + 1)
    assert pytest.ExitCode.TESTS_FAILED == result.ret
    result.stdout.fnmatch_lines([f"*: there is no line {len(LINES) + 1}"])


def test_a_file_that_cannot_be_read_is_a_failure(table: Table) -> None:
    """Whatever the others hold."""
    assert pytest.ExitCode.INTERRUPTED == table(*LINES, more="raise ValueError\n").ret

"""The table of mutants keeps up with the library; ``nox -s mutants`` tells who finds each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import aioivschat
from search.mutants.table import MUTANTS, Mutant
from support.paths import TESTS

pytestmark = pytest.mark.once

PACKAGE = Path(aioivschat.__file__).parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_made(mutant: Mutant, tmp_path: Path) -> None:
    """Its text is there once, and what comes of it is a module."""
    copy = tmp_path / mutant.file
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(PACKAGE / mutant.file, copy)
    mutant.put_into(tmp_path)
    assert (PACKAGE / mutant.file).read_text() != copy.read_text()
    compile(copy.read_text(), mutant.file, "exec")


def test_a_mutant_whose_text_has_changed_is_told(tmp_path: Path) -> None:
    """A fault that is not there would be found by nobody, and one at two places is two."""
    mutant = Mutant("typo", "module.py", old="colour", new="color", why="")
    for text in ("", "colour colour"):
        (tmp_path / mutant.file).write_text(text)
        with pytest.raises(LookupError, match="typo"):
            mutant.put_into(tmp_path)


def test_a_name_is_of_one_mutant() -> None:
    """The command line takes names."""
    names = [mutant.name for mutant in MUTANTS]
    assert sorted(set(names)) == sorted(names)


def test_who_finds_a_mutant_exists() -> None:
    """A file of tests that was renamed would find none, and neither would nobody."""
    files = {mutant.tests for mutant in MUTANTS if mutant.tests is not None}
    assert [] == sorted(file for file in files if not (TESTS / file).exists())
    assert all(mutant.simulated or mutant.tests for mutant in MUTANTS)

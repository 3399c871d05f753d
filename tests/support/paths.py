"""Where the parts of the project are."""

from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent

"""The floor plan: folders by role, each importing only from those below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

import aioivschat

pytestmark = pytest.mark.once

FLOORS = (
    ("errors", "_clock", "_contexts", "_secrets", "_models", "_events"),
    ("_aws",),
    ("_service",),
    ("__init__",),
    ("onboarding", "planning", "_endpoint", "redis", "emulator"),
    ("aiohttp", "starlette"),
    ("demo",),
    ("cli",),
    ("__main__", "_pyinstaller"),
)
"""What stands beside what, from the ground up. Neighbours on a floor do not import each other."""

GROUND = FLOORS[0]
"""The ground floor from bottom to top: there, neighbours may import those before them."""

ORDERED = {
    "_endpoint": ("exchange", "problems", "asks", "rate_limits", "browser", "endpoint"),
    "_aws": (
        "redaction",
        "errors",
        "internals",
        "endpoints",
        "http_session",
        "credentials",
        "signing",
        "interception",
        "requests",
        "clients",
    ),
    "_service": (
        "pace",
        "fair_queue",
        "limiter",
        "retry",
        "singleflight",
        "fences",
        "cache",
        "stock",
        "fleet",
        "limiters",
        "lifecycle",
        "stats",
        "admission",
        "refusals",
        "signing_in",
        "minting",
        "fleet_minting",
        "pending",
        "issuing",
        "prewarming",
        "service",
    ),
}
"""Folders whose modules have an order too: each imports only from those before it."""

# Who alone may import what.
SOLE_IMPORTERS = {
    "tenacity": {"_service/retry.py"},
    "aiobotocore": {"_aws", "planning"},
    "redis": {"redis"},
    "cryptography": {"redis"},
}

MAX_LINES = 450
"""Of a module; the emulator's may be longer."""

MAX_ENTRIES = 20
"""In the package, the endpoint's doors for web frameworks aside."""

ROOT = Path(str(resources.files(aioivschat)))
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

_FLOOR_OF = {unit: number for number, units in enumerate(FLOORS) for unit in units}


def _unit(path: str) -> str:
    """Return the entry of the package that a file belongs to."""
    return path.split("/")[0].removesuffix(".py")


def _imports(path: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                package = ["aioivschat", *path.split("/")[:-1]]
                base = package[: len(package) - node.level + 1]
                yield ".".join([*base, node.module or ""])
            elif node.module == "aioivschat":
                yield from (f"aioivschat.{alias.name}" for alias in node.names)
            elif node.module:
                yield node.module


def _own_imports(path: str) -> Iterator[tuple[str, str]]:
    """Return each of the package's own modules that a module imports: its entry and the rest."""
    for module in _imports(path):
        parts = module.split(".")
        if parts[0] == "aioivschat":
            unit = parts[1] if len(parts) > 1 and parts[1] in _FLOOR_OF else "__init__"
            yield unit, ".".join(parts[2:3])


@pytest.mark.parametrize("path", MODULES)
def test_a_module_imports_from_the_floors_below_only(path: str) -> None:
    """A folder's own modules aside; on the ground floor there is an order."""
    own = _unit(path)
    for unit, _ in _own_imports(path):
        if unit in GROUND and own in GROUND:
            assert GROUND.index(unit) < GROUND.index(own), f"{path} imports {unit}"
        elif unit != own:
            assert _FLOOR_OF[unit] < _FLOOR_OF[own], f"{path} imports {unit}"


@pytest.mark.parametrize(
    ("folder", "name"), [(folder, name) for folder, order in ORDERED.items() for name in order]
)
def test_a_module_imports_from_those_before_it_only(folder: str, name: str) -> None:
    """In the folders that have an order."""
    order = ORDERED[folder]
    for unit, module in _own_imports(f"{folder}/{name}.py"):
        if unit == folder:
            assert order.index(module) < order.index(name), f"{name} imports {module}"


@pytest.mark.parametrize("path", MODULES)
def test_foreign_libraries_have_one_importer(path: str) -> None:
    """aiobotocore is spoken to in one place, and so is tenacity."""
    own = _unit(path)
    if own in ("emulator", "cli", "demo", "onboarding"):
        return
    for module in _imports(path):
        sole = SOLE_IMPORTERS.get(module.split(".")[0], {own})
        assert own in sole or path in sole, f"{path} imports {module}"


def test_every_module_has_a_place() -> None:
    """A new module needs a place in the order, and one that has gone leaves none behind."""
    assert sorted(_FLOOR_OF) == sorted({_unit(path) for path in MODULES})
    for folder, order in ORDERED.items():
        there = [Path(path).stem for path in MODULES if path.startswith(f"{folder}/")]
        assert sorted([*order, "__init__"]) == sorted(there)


def test_the_package_can_be_taken_in_at_a_glance() -> None:
    """Few entries in the package, and no module too long to read at once."""
    entries = {_unit(path) for path in MODULES} - {"aiohttp", "starlette"} | {"py.typed"}
    assert len(entries) <= MAX_ENTRIES
    for path in MODULES:
        lines = (ROOT / path).read_text().count("\n")
        assert lines <= MAX_LINES or _unit(path) == "emulator", path

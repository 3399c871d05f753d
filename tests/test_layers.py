"""A module imports only from the layers below its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

import aioivschat

LAYERS = {
    "errors": 0,
    "_clock": 0,
    "_models": 1,
    "_virtual": 1,
    "_events": 1,
    "_cache": 2,
    "_singleflight": 2,
    "_limiter": 2,
    "_shared": 2,
    "_retry": 2,
    "_prepared": 2,
    "_clients": 2,
    "_minting": 3,
    "_prewarming": 3,
    "_service": 3,
    "__init__": 3,
    "onboarding": 4,
    "_attendees": 4,
    "_doors": 4,
    "planning": 4,
    "_endpoint": 4,
    "aiohttp": 4,
    "starlette": 4,
    "redis": 4,
    "emulator": 4,
    "_demo": 5,
    "cli": 5,
    "__main__": 6,
}

# Neighbours in one layer that are one thing in several files: the clients and their requests, the
# service with its flights and what it mints ahead, bulk and the files it reads, the endpoint and
# its web frameworks, a command and its module; and what a fleet shares is made of the limiter's
# words.
FRIENDS = {
    ("_clients", "_prepared"),
    ("_service", "_minting"),
    ("_service", "_prewarming"),
    ("_prewarming", "_minting"),
    ("_shared", "_limiter"),
    ("onboarding", "_attendees"),
    ("planning", "_doors"),
    ("aiohttp", "_endpoint"),
    ("starlette", "_endpoint"),
    ("cli", "_demo"),
}

# Who alone may import what.
SOLE_IMPORTERS = {
    "tenacity": {"_retry"},
    "aiobotocore": {"_clients", "_prepared", "_virtual"},
    "redis": {"redis"},
    "cryptography": {"redis"},
}

ROOT = Path(str(resources.files(aioivschat)))
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def _unit(path: str) -> str:
    """Return the layer's module that a file belongs to; a package counts as one."""
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


def _layer_of(module: str) -> tuple[str, int]:
    parts = module.split(".")
    unit = parts[1] if len(parts) > 1 and parts[1] in LAYERS else "__init__"
    return unit, LAYERS[unit]


@pytest.mark.parametrize("path", MODULES)
def test_a_module_imports_from_below_only(path: str) -> None:
    """And neighbours in a layer do not import each other, the lowest two apart."""
    own = _unit(path)
    for module in _imports(path):
        if module.split(".")[0] != "aioivschat":
            continue
        unit, layer = _layer_of(module)
        if unit == own or (own, unit) in FRIENDS or own == "__init__":
            continue
        assert layer < LAYERS[own] or layer == LAYERS[own] <= 1, f"{path} imports {module}"


@pytest.mark.parametrize("path", MODULES)
def test_foreign_libraries_have_one_importer(path: str) -> None:
    """aiobotocore is spoken to in one place, and so is tenacity."""
    own = _unit(path)
    if own in ("emulator", "cli", "_demo", "onboarding", "planning"):
        return
    for module in _imports(path):
        sole = SOLE_IMPORTERS.get(module.split(".")[0], {own})
        assert own in sole, f"{path} imports {module}"


def test_every_module_has_a_layer() -> None:
    """A new module needs a place in the order."""
    assert sorted(LAYERS) == sorted({_unit(path) for path in MODULES})

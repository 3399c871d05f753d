"""What ``import aioivschat`` gives."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module, resources

import pytest

import aioivschat
import aioivschat.emulator
import aioivschat.redis


def _python(code: str) -> tuple[int, str]:
    """Run code in a process of its own, and return its exit status and what went wrong."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    return result.returncode, result.stderr


def _names_for_type_checkers() -> dict[str, str]:
    """Return each name that the package imports for type checkers, and its module."""
    tree = ast.parse((resources.files(aioivschat) / "__init__.py").read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def test_the_exported_names_are_sorted_and_complete() -> None:
    """``__all__`` lists what type checkers see, and ``dir`` shows it."""
    assert sorted(_names_for_type_checkers()) == aioivschat.__all__
    assert set(aioivschat.__all__) <= set(dir(aioivschat))
    # The emulator loads its servers when they are asked for.
    assert sorted(aioivschat.emulator.__all__) == aioivschat.emulator.__all__
    assert sorted(aioivschat.redis.__all__) == aioivschat.redis.__all__


@pytest.mark.parametrize(("name", "module"), _names_for_type_checkers().items())
def test_a_name_is_what_type_checkers_take_it_for(name: str, module: str) -> None:
    """It is looked for at its first use, and found in the module that they know it from."""
    vars(aioivschat).pop(name, None)
    assert getattr(import_module(module), name) is getattr(aioivschat, name)


def test_a_name_that_is_not_exported_is_not_found() -> None:
    """Neither one that exists nowhere, nor one that modules keep to themselves."""
    for name in ("Typo", "TOKEN_LIFE_SECONDS", "asyncio"):
        assert not hasattr(aioivschat, name)
        assert name not in dir(aioivschat)


@pytest.mark.parametrize(
    "statement",
    [
        "import aioivschat; aioivschat.AsyncTokenService",
        "import aioivschat; aioivschat.errors.Throttled",
        "from aioivschat import errors; errors.Throttled",
        "from aioivschat import *; AsyncTokenService, Throttled",
    ],
)
def test_a_name_is_there_however_it_is_asked_for(statement: str) -> None:
    """In a process that has loaded nothing yet."""
    assert (0, "") == _python(statement)


@pytest.mark.parametrize(
    ("statement", "does_without"),
    [
        ("import aioivschat", {"asyncio", "botocore", "aiobotocore", "aiohttp", "tenacity"}),
        ("import aioivschat.emulator", {"botocore", "aiobotocore", "aiohttp", "tenacity"}),
        ("from aioivschat import TokenRequest", {"aiobotocore", "aiohttp", "tenacity"}),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement: str, does_without: set[str]) -> None:
    """An HTTP client waits until something needs one."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        f"found = {does_without} & (set(sys.modules) - before)\n"
        "assert not found, found"
    )
    assert (0, "") == _python(code)


def test_every_exported_name_is_documented() -> None:
    """Each has a docstring of its own."""
    for package in (aioivschat, aioivschat.emulator, aioivschat.redis):
        for name in package.__all__:
            value = getattr(package, name)
            assert value.__doc__ or name == "Event", name


def test_the_types_are_shipped() -> None:
    """Type checkers look for this file."""
    assert resources.files(aioivschat).joinpath("py.typed").is_file()


def test_the_core_imports_no_extra() -> None:
    """Neither the library nor its pytest plugin needs more than the core's dependencies."""
    code = (
        "import sys\n"
        "import aioivschat.emulator\n"
        "from aioivschat import *\n"
        "extras = {'aioboto3', 'cryptography', 'moto', 'redis', 'rich', 'werkzeug'}\n"
        "found = extras & set(sys.modules)\n"
        "assert not found, found"
    )
    assert (0, "") == _python(code)


def test_importing_configures_nothing() -> None:
    """No handler, no filter and no level of logging changes by the import."""
    code = (
        "import logging\n"
        "from aioivschat import *\n"
        "loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]\n"
        "ours = [one for one in loggers if one.name.startswith(('aioivschat', 'botocore'))]\n"
        "touched = [one for one in ours if one.filters or one.level]\n"
        "assert not touched, touched"
    )
    assert (0, "") == _python(code)

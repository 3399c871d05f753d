"""What ``import aioivschat`` gives."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from types import ModuleType

import aioivschat
import aioivschat.emulator


def test_the_exported_names_are_sorted_and_complete() -> None:
    """``__all__`` lists what the package defines, and no module of its own."""
    public = [
        name
        for name, value in vars(aioivschat).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    ]
    assert sorted(public) == aioivschat.__all__
    # The emulator loads its servers when they are asked for.
    assert sorted(aioivschat.emulator.__all__) == aioivschat.emulator.__all__


def test_every_exported_name_is_documented() -> None:
    """Each has a docstring of its own."""
    for package in (aioivschat, aioivschat.emulator):
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
        "import aioivschat, aioivschat.emulator\n"
        "extras = {'aioboto3', 'moto', 'rich', 'werkzeug'}\n"
        "found = extras & set(sys.modules)\n"
        "assert not found, found"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (0, "") == (result.returncode, result.stderr)


def test_importing_configures_nothing() -> None:
    """No handler, no filter and no level of logging changes by the import."""
    code = (
        "import logging\n"
        "import aioivschat\n"
        "loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]\n"
        "ours = [one for one in loggers if one.name.startswith(('aioivschat', 'botocore'))]\n"
        "touched = [one for one in ours if one.filters or one.level]\n"
        "assert not touched, touched"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (0, "") == (result.returncode, result.stderr)

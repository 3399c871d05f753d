"""pytest fixtures: a local IVS Chat for a test suite, whatever its async plugin is.

pytest loads this module in every run of a project that has the library installed: only the fixtures
import more than pytest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from aioivschat._secrets import Unpickled

if TYPE_CHECKING:
    from .moto_backend import MotoServer
    from .server import ThreadedEmulatorServer

_REMOVED_VARIABLES = (
    *("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_CREDENTIAL_EXPIRATION"),
    "REQUESTS_CA_BUNDLE",
)
"""What botocore reads besides the variables of its table."""


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Explain a failed comparison of what holds a secret by reprs: pytest would walk a reply."""
    if isinstance(left, Unpickled) or isinstance(right, Unpickled):
        return [f"{left!r} {op} {right!r}"]
    return None


@pytest.fixture(scope="session")
def _ivschat_server() -> Iterator[ThreadedEmulatorServer]:
    yield from _run_emulator()


@pytest.fixture
def ivschat_emulator(_ivschat_server: ThreadedEmulatorServer) -> ThreadedEmulatorServer:
    """A running emulator, reset for each test and without open connections.

    Its ``url`` is the endpoint, its ``emulator`` the model; chat clients connect to its
    ``edge_url``. One server serves the whole session.
    """
    _ivschat_server.reset_connections()
    _ivschat_server.emulator.reset()
    return _ivschat_server


@pytest.fixture
def ivschat_room(ivschat_emulator: ThreadedEmulatorServer) -> str:
    """The ARN of a room that exists on the emulator, in us-east-1."""
    return _create_room(ivschat_emulator)


@pytest.fixture
def ivschat_env(ivschat_emulator: ThreadedEmulatorServer) -> Iterator[None]:
    """Environment variables that lead unmodified code to the emulator, in us-east-1.

    Nothing else of the user's AWS configuration holds, and no proxy stands before the emulator.
    """
    with _environment(ivschat_emulator.url):
        yield


@pytest.fixture(scope="session")
def ivschat_session_emulator() -> Iterator[ThreadedEmulatorServer]:
    """An emulator for what lasts longer than a test: a server of its own, which nothing resets.

    For services and clients of a class, a module or the session, and for tests of Hypothesis. To
    begin anew, call its ``emulator.reset()``.
    """
    yield from _run_emulator()


@pytest.fixture(scope="session")
def ivschat_session_room(ivschat_session_emulator: ThreadedEmulatorServer) -> str:
    """The ARN of a room that exists on the session's emulator, in us-east-1."""
    return _create_room(ivschat_session_emulator)


@pytest.fixture(scope="session")
def ivschat_session_env(ivschat_session_emulator: ThreadedEmulatorServer) -> Iterator[None]:
    """The variables of ``ivschat_env`` for the session's emulator, until the session ends."""
    with _environment(ivschat_session_emulator.url):
        yield


@pytest.fixture
def ivschat_moto() -> Iterator[MotoServer]:
    """A running moto server with IVS Chat: its ``url`` is the endpoint, ``emulator`` the model.

    Raises:
        ImportError: moto is missing; the extra ``[moto]`` brings it.
    """
    yield from _run_moto()


@pytest.fixture(scope="session")
def ivschat_session_moto() -> Iterator[MotoServer]:
    """The same as ``ivschat_moto``, for the whole session; nothing resets it."""
    yield from _run_moto()


def _run_emulator() -> Iterator[ThreadedEmulatorServer]:
    from .server import ThreadedEmulatorServer

    with ThreadedEmulatorServer() as server:
        yield server


def _run_moto() -> Iterator[MotoServer]:
    from .moto_backend import MotoServer

    with MotoServer() as server:
        yield server


def _create_room(server: ThreadedEmulatorServer) -> str:
    arn: str = server.emulator.create_room()["arn"]
    return arn


@contextmanager
def _environment(url: str) -> Iterator[None]:
    from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES

    # Not the fixture `monkeypatch`, which lives for one test.
    with pytest.MonkeyPatch.context() as environment:
        for _, names, _, _ in BOTOCORE_DEFAUT_SESSION_VARIABLES.values():
            for name in [names] if isinstance(names, str) else names or ():
                environment.delenv(name, raising=False)
        for name in _REMOVED_VARIABLES:
            environment.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            environment.setenv(name, os.devnull)
        direct = [os.environ[name] for name in ("no_proxy", "NO_PROXY") if name in os.environ]
        for name in ("no_proxy", "NO_PROXY"):
            environment.setenv(name, "*" if "*" in direct else ",".join([*direct, "127.0.0.1"]))
        environment.setenv("AWS_ENDPOINT_URL_IVSCHAT", url)
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield

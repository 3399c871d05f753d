"""IVS Chat for moto: the emulator as one of its backends. Needs the extra ``[moto]``.

moto has no plugins. It finds the backend of a service named in a request's credential scope by a
table of patterns, ``moto.backend_index.backend_url_patterns``, and loads it as the attribute
``<service>_backends`` of the module ``moto.<service>``. `install` makes this module that one.
"""

from __future__ import annotations

import importlib
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any, Self

from ._model import OPERATIONS, Emulator
from ._sigv4 import DEFAULT_ACCESS_KEYS, SignatureVerifier
from ._wire import Answer, Hang, Outcome, Request, region_of


def _import_moto(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is missing: IVS Chat in moto needs the extra, aioivschat[moto]"
        ) from error


_backend_index = _import_moto("moto.backend_index")
_base_backend = _import_moto("moto.core.base_backend")

_URL_BASE = r"https?://ivschat\.(.+)\.amazonaws\.com"
# The credentials that moto's decorators put into the environment.
_MOTO_ACCESS_KEYS = {"FOOBARKEY": "FOOBARSECRET"}

_emulator = Emulator()
_verifier = SignatureVerifier()


def install(
    emulator: Emulator | None = None, *, access_keys: Mapping[str, str] | None = None
) -> Emulator:
    """Put IVS Chat into moto; a second call only changes the emulator.

    Afterwards every ``moto.server.ThreadedMotoServer``, and ``mock_aws`` for clients that are not
    async, serves the operations of the emulator, signatures checked. moto's reset resets the
    emulator too.

    Connections are not counted. Within ``mock_aws`` there are none: a reset or a black hole raises
    `NotImplementedError`. For a chat edge, run an `EmulatorServer` of the same emulator.

    Args:
        emulator: the model to serve; None for the one in place.
        access_keys: secret access keys by access key id; None for ``testing``/``testing`` and the
            placeholder that moto sets.

    Returns:
        The emulator that moto serves from now on.
    """
    global _emulator, _verifier
    _emulator = emulator or _emulator
    _verifier = SignatureVerifier(
        {**DEFAULT_ACCESS_KEYS, **_MOTO_ACCESS_KEYS} if access_keys is None else access_keys
    )
    sys.modules["moto.ivschat"] = sys.modules[__name__]
    patterns = _backend_index.backend_url_patterns
    if not any(service == "ivschat" for service, _ in patterns):
        patterns.append(("ivschat", re.compile(_URL_BASE)))
    return _emulator


class MotoServer:
    """moto's threaded server with IVS Chat in it: ``with MotoServer() as server:``.

    Args:
        emulator: the model to serve; None for a new one.
        host: the address to listen on.
        port: the port to listen on; 0 for one that is free.

    Attributes:
        emulator: the model.

    Raises:
        ImportError: on entering, moto's server or what it needs is missing.
    """

    def __init__(
        self, emulator: Emulator | None = None, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.emulator = emulator or Emulator()
        self._host = host
        self._port = port
        self._server: Any = None

    @property
    def url(self) -> str:
        """The endpoint's URL, for every service of moto.

        Raises:
            RuntimeError: the server is not running.
        """
        if self._server is None:
            raise RuntimeError("the moto server is not running")
        host, port = self._server.get_host_and_port()
        return f"http://{host}:{port}"

    def __enter__(self) -> Self:
        moto_server = _import_moto("moto.server")
        self._replaced = _emulator
        install(self.emulator)
        server = moto_server.ThreadedMotoServer(self._host, self._port, verbose=False)
        server.start()
        self._server = server
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._server = None
        install(self._replaced)  # one that serves a whole session may have been there before


def _handle_request(request: Any, url: str, headers: Mapping[str, str]) -> tuple[int, Any, bytes]:
    # moto takes status, headers and body of the answer.
    body = request.get_data()
    lower_case = {name.lower(): value for name, value in headers.items()}
    with _emulator.flights:
        denial = _verifier.find_denial(request.method, url, lower_case, body, _emulator.now())
        operation = request.path[1:] if request.method == "POST" else ""
        region = region_of(lower_case.get("authorization"))
        outcome = _emulator.respond(Request(operation, body, region, denial=denial))
        connection = request.environ.get("werkzeug.socket")
        if connection is not None:
            _send_outcome(connection, outcome)
        elif not isinstance(outcome, Answer):
            raise NotImplementedError("without a connection, none can be reset or left unanswered")
    if not isinstance(outcome, Answer):
        # moto needs an answer; it is not sent, as the connection is closed.
        return 204, {}, b""
    return outcome.status, dict(outcome.headers), outcome.body


def _send_outcome(connection: socket.socket, outcome: Outcome) -> None:
    """Send an outcome over the socket: WSGI must answer, and adds a Date of its own.

    Closes the connection for writing, so that WSGI's answer is not sent. A reset ends in order,
    without an answer: werkzeug keeps the socket open.
    """
    if isinstance(outcome, Hang):
        # The client sends no more: this returns once the client closes the connection.
        connection.recv(1)
    else:
        time.sleep(outcome.delay)
    if isinstance(outcome, Answer):
        connection.sendall(outcome.to_bytes())
    with suppress(OSError):  # the client may have closed it already
        connection.shutdown(socket.SHUT_WR)


# mypy does not know the base class: moto is imported by name.
class _IvsChatBackend(_base_backend.BaseBackend):  # type: ignore[misc,name-defined]  # untyped
    """The service's URLs and reset, for moto."""

    @property
    def _url_module(self) -> SimpleNamespace:
        paths: dict[str, Callable[..., Any]] = {
            f"{{0}}/{name}$": _handle_request for name in OPERATIONS
        }
        return SimpleNamespace(url_bases=[_URL_BASE], url_paths=paths)

    def reset(self) -> None:
        _emulator.reset()


ivschat_backends = _base_backend.BackendDict(_IvsChatBackend, "ivschat")

"""A local Amazon IVS Chat, control plane and chat edge, for tests, demos and benchmarks.

`Emulator` is the model, without I/O; `EmulatorServer` and `ThreadedEmulatorServer` serve it over
HTTP and WebSockets, and ``python -m aioivschat.emulator`` does so as a process. moto serves the
control plane of the same model with `aioivschat.emulator.moto_backend`, which needs the extra
``[moto]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._chat import Chat, Close, Connection
from ._faults import Fault, FaultKind
from ._model import Counts, Emulator
from ._quota import QuotaShape
from ._settings import Settings
from ._tokens import Grant, TokenError, TokenExpired, TokenSpent, TokenUnknown
from ._wire import Answer, Drop, Hang, Request, ServiceError

if TYPE_CHECKING:
    from .server import EmulatorServer, ThreadedEmulatorServer

__all__ = [
    "Answer",
    "Chat",
    "Close",
    "Connection",
    "Counts",
    "Drop",
    "Emulator",
    "EmulatorServer",
    "Fault",
    "FaultKind",
    "Grant",
    "Hang",
    "QuotaShape",
    "Request",
    "ServiceError",
    "Settings",
    "ThreadedEmulatorServer",
    "TokenError",
    "TokenExpired",
    "TokenSpent",
    "TokenUnknown",
]


def __getattr__(name: str) -> Any:
    # pytest imports this package with the plugin in every run: aiohttp waits until it is needed.
    if name in ("EmulatorServer", "ThreadedEmulatorServer"):
        from . import server

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

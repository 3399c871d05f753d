"""A local Amazon IVS Chat control plane, for tests, demos and benchmarks.

`Emulator` is the model, without I/O; `EmulatorServer` and `ThreadedEmulatorServer` serve it over
HTTP. The same model is served by moto with `aioivschat.emulator.moto_backend`, which needs the
extra ``[moto]``, and as a process with ``python -m aioivschat.emulator``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

"""Amazon IVS Chat tokens for live events, from asyncio."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aioivschat._aws.clients import PoolPolicy
    from aioivschat._clock import Clock
    from aioivschat._events import (
        AttemptFailed,
        ClientOpened,
        Delivered,
        Event,
        ExpiredUnused,
        Invalidated,
        Joined,
        LoggingObserver,
        Minted,
        NotPrepared,
        Observer,
        Prepared,
        RateChanged,
        Retrying,
        SharedChanged,
        SharedState,
        Shed,
        Source,
        Stocked,
    )
    from aioivschat._models import Capability, ChatToken, Priority, RoomArn, TokenRequest
    from aioivschat._service.cache import CachePolicy
    from aioivschat._service.fleet import SharedTier
    from aioivschat._service.limiter import Limiter, LocalLimiter, Reservation
    from aioivschat._service.pace import Learnt, Quota
    from aioivschat._service.prewarming import Prewarmed
    from aioivschat._service.retry import RetryPolicy
    from aioivschat._service.service import AsyncTokenService
    from aioivschat._service.stats import Stats
    from aioivschat.errors import (
        AccessDenied,
        AwsError,
        ChatTokenError,
        ConnectionFailed,
        CredentialsFailed,
        DeadlineExceeded,
        Interrupted,
        InvalidConfiguration,
        InvalidRequest,
        MalformedResponse,
        Overloaded,
        PendingVerification,
        ResourceNotFound,
        ServerFault,
        ServiceClosed,
        Throttled,
        ValidationFailed,
        WrongLoop,
    )

__all__ = [
    "AccessDenied",
    "AsyncTokenService",
    "AttemptFailed",
    "AwsError",
    "CachePolicy",
    "Capability",
    "ChatToken",
    "ChatTokenError",
    "ClientOpened",
    "Clock",
    "ConnectionFailed",
    "CredentialsFailed",
    "DeadlineExceeded",
    "Delivered",
    "Event",
    "ExpiredUnused",
    "Interrupted",
    "InvalidConfiguration",
    "InvalidRequest",
    "Invalidated",
    "Joined",
    "Learnt",
    "Limiter",
    "LocalLimiter",
    "LoggingObserver",
    "MalformedResponse",
    "Minted",
    "NotPrepared",
    "Observer",
    "Overloaded",
    "PendingVerification",
    "PoolPolicy",
    "Prepared",
    "Prewarmed",
    "Priority",
    "Quota",
    "RateChanged",
    "Reservation",
    "ResourceNotFound",
    "RetryPolicy",
    "Retrying",
    "RoomArn",
    "ServerFault",
    "ServiceClosed",
    "SharedChanged",
    "SharedState",
    "SharedTier",
    "Shed",
    "Source",
    "Stats",
    "Stocked",
    "Throttled",
    "TokenRequest",
    "ValidationFailed",
    "WrongLoop",
]

_MODULES = (
    "errors",
    "_clock",
    "_models",
    "_events",
    "_service.cache",
    "_service.pace",
    "_service.limiter",
    "_service.fleet",
    "_service.retry",
    "_aws.clients",
    "_service.prewarming",
    "_service.service",
)
"""Where names are looked for: each module imports only from those before it, the heaviest last."""

if not TYPE_CHECKING:  # a type checker takes a module with __getattr__ to have every name

    def __getattr__(name):
        # A name is loaded at its first use: the command, the emulator and its pytest plugin import
        # this package too, and should not load an HTTP client.
        if name == "errors":
            return import_module(f"{__name__}.errors")
        if name in __all__:
            for module in _MODULES:
                names = vars(import_module(f"{__name__}.{module}"))
                if name in names:
                    return globals().setdefault(name, names[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})

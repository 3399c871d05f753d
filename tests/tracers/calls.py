"""Makes calls, by bare aiobotocore or by the library, while a tracer is put on and taken off.

It prints as JSON what the tracer saw, what the library's observers were told, and whose context was
kept alive after the call. The arguments are those of `main`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict
from weakref import ReferenceType, ref

from tracers.adapters import TRACERS

REGION = "us-east-1"
ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/AbCdEfGhIjKl"

# A tracer is seen by all calls that begin 100 ms after it was put on.
_NOTICED = 0.15

_Call = Callable[[str], Awaitable[object]]
_Caller = Callable[[str], AbstractContextManager[object]]


class _Value:
    """What a caller has in its context."""


_value: ContextVar[_Value] = ContextVar("value")
_values: dict[str, ReferenceType[_Value]] = {}
"""A reference to that of each call."""


@asynccontextmanager
async def _open_bare(url: str, _: list[str]) -> AsyncIterator[_Call]:
    from aiobotocore.session import AioSession

    async with AioSession().create_client(
        "ivschat", region_name=REGION, endpoint_url=url
    ) as client:

        async def call(user: str) -> object:
            return await client.create_chat_token(
                roomIdentifier=ROOM, userId=user, sessionDurationInMinutes=60
            )

        yield call


@asynccontextmanager
async def _open_library(url: str, told: list[str]) -> AsyncIterator[_Call]:
    from aioivschat import AsyncTokenService, Event, NotPrepared, Prepared, Quota, TokenRequest

    def note(event: Event) -> None:
        if isinstance(event, NotPrepared | Prepared):
            told.append(repr(event))

    async with AsyncTokenService(
        endpoint_url=url, quota=Quota(rate=1_000_000.0), observers=[note]
    ) as tokens:
        yield lambda user: tokens.issue(TokenRequest(ROOM, user))


async def _make_call(call: _Call, caller: _Caller, name: str, user: str) -> None:
    """Make a call in a span of its caller's."""
    _value.set(_Value())
    _values[name] = ref(_value.get())
    with caller(name):
        await call(user)


async def _make_calls(call: _Call, caller: _Caller, phase: str) -> None:
    """Make three calls one after the other, and three at once."""
    calls = [_make_call(call, caller, name, name) for name in (f"{phase}-{n}" for n in range(6))]
    for each in calls[:3]:
        # X-Ray's tasks share what the one that starts them had of a segment that has ended.
        await asyncio.create_task(each)
    await asyncio.gather(*calls[3:])


async def main(name: str, way: str, when: str, removable: str, url: str) -> None:
    """Make calls, two of the library's for the same user, and print what came of them.

    Args:
        name: of the tracer.
        way: ``bare`` or ``library``.
        when: it is put on: before the ``import`` of what makes the calls, before its ``opening``,
            or when it is ``open`` and has made calls.
        removable: whether it is taken off again: ``yes`` or ``no``.
        url: of the server.
    """
    tracer = TRACERS[name]()
    told: list[str] = []
    if when == "import":
        assert not {"aioivschat", "aiobotocore", "aiohttp"} & sys.modules.keys()
        tracer.put_on()
    if way == "library":
        import aioivschat._aws.clients  # noqa: F401 (the tracer comes after it)
    else:
        import aiobotocore.session  # noqa: F401 (the same)
    if when == "opening":
        tracer.put_on()
    async with (_open_library if way == "library" else _open_bare)(url, told) as call:
        if when == "open":
            await _make_calls(call, nullcontext, "before")
            tracer.put_on()
            await asyncio.sleep(_NOTICED)
        await _make_calls(call, tracer.caller, "traced")
        if way == "library":
            names = ("together-0", "together-1")
            await asyncio.gather(
                *(_make_call(call, tracer.caller, name, "together") for name in names)
            )
        if removable == "yes":
            tracer.take_off()
            await asyncio.sleep(_NOTICED)
            await _make_calls(call, tracer.caller, "after")
        await asyncio.sleep(0)  # in the turn that ends a task, the loop still holds its context
        gc.collect()
        kept = [user for user, value in _values.items() if value() is not None]
    spans = [asdict(span) for span in tracer.spans()]
    print(json.dumps({"spans": spans, "told": told, "kept": kept}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

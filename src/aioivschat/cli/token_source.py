"""Where a command's tokens come from: AWS, an endpoint, or an emulator of its own."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

from aiobotocore.session import AioSession
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES

from aioivschat._service.cache import CachePolicy
from aioivschat._service.pace import Quota
from aioivschat._service.service import AsyncTokenService
from aioivschat.cli.process import say


def check_token_source(options: argparse.Namespace) -> None:
    """End the process, as the parser does, if the options contradict each other."""
    if options.profile and not (options.aws or options.endpoint_url):
        options.parser.error("--profile needs --aws or --endpoint-url")
    if options.allow_http and not (options.aws or options.endpoint_url):
        options.parser.error("--allow-http needs --aws or --endpoint-url")
    if options.aws and options.endpoint_url:
        options.parser.error("--aws and --endpoint-url exclude each other")


@asynccontextmanager
async def open_service(
    options: argparse.Namespace,
    *,
    cache: CachePolicy = CachePolicy(),  # noqa: B008 (frozen)
    latency: float = 0.0,  # seconds before the emulator answers
) -> AsyncIterator[AsyncTokenService]:
    """Open the service on AWS, an endpoint or an emulator of the command's own."""
    with ExitStack() as stack:
        if options.aws or options.endpoint_url:
            session, url = AioSession(profile=options.profile), options.endpoint_url
        else:
            session = session_without_configuration()
            url = stack.enter_context(_run_emulator(options.rate, options.burst, latency))
        quota = Quota(rate=options.rate, burst=options.burst, learnt=options.learnt)
        async with AsyncTokenService(
            session=session,
            endpoint_url=url,
            allow_http=options.allow_http,
            quota=quota,
            cache=cache,
        ) as tokens:
            yield tokens


def session_without_configuration() -> AioSession:
    """Make a session for the emulator that neither reads nor sends the user's configuration."""
    variables = {
        name: (None, None, None if name.endswith("_file") else default, convert)
        for name, (_, _, default, convert) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items()
    }
    session = AioSession(variables)
    session.set_credentials("testing", "testing")
    return session


@contextmanager
def _run_emulator(rate: float, burst: int | None, latency: float) -> Iterator[str]:
    # Imported here, as a command that asks AWS needs no web server.
    from aioivschat.emulator import Emulator, QuotaShape, ThreadedEmulatorServer

    shape = QuotaShape("bucket", rate, burst or max(1.0, rate))
    # In a thread of its own it answers while the service's loop is busy, as AWS does.
    with ThreadedEmulatorServer(Emulator(quota=shape, latency=latency)) as server:
        say(
            "aioivschat: these tokens are from the local emulator and do not connect to AWS "
            "(see --aws)"
        )
        yield server.url

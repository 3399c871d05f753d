"""The token endpoint's rate for attempts that have their token, beside handlers that do nothing.

One aiohttp application in a process of its own serves all contestants; ``wrk`` loads one after the
other from outside, with the same request. Ratios are to the handler that answers JSON without
looking at the request, pair by pair.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

import aioivschat.aiohttp
import harness
from aioivschat import AsyncTokenService, TokenRequest
from aioivschat.emulator import ThreadedEmulatorServer

EMPTY = "empty handler"
PATHS = {EMPTY: "/empty", "reads JSON": "/reads", "token endpoint": "/chat/token"}
LIMITS = {"token endpoint": (harness.Limit("of empty", at_least=0.8),)}

LOAD = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Idempotency-Key"] = "attempt-1"
wrk.body = '{"capabilities":["SEND_MESSAGE"]}'
"""


async def empty(request: web.Request) -> web.Response:
    """Answer without looking."""
    return web.json_response({"token": "x"})


async def reads(request: web.Request) -> web.Response:
    """Answer after reading the body, as any endpoint must."""
    await request.json()
    return web.json_response({"token": "x"})


def serve() -> None:
    """Serve all contestants until the process is ended; print the URL first."""
    grant = TokenRequest(harness.ROOM, "viewer", ["SEND_MESSAGE"], {"displayName": "Viewer"})

    async def authorize(request: web.Request, ask: aioivschat.aiohttp.Ask) -> TokenRequest:
        return grant

    app = web.Application()
    app.router.add_post(PATHS[EMPTY], empty)
    app.router.add_post(PATHS["reads JSON"], reads)
    with ThreadedEmulatorServer() as emulator:

        async def opened(app: web.Application) -> AsyncIterator[None]:
            yield
            await service.aclose()

        service = AsyncTokenService(session=harness.session(), endpoint_url=emulator.url)
        # One user stands for all of them: a share of its own would soon be used up.
        policy = aioivschat.aiohttp.EndpointPolicy(per_user=None)
        aioivschat.aiohttp.setup(app, authorize=authorize, service=service, policy=policy)
        app.cleanup_ctx.append(opened)
        web.run_app(app, host="127.0.0.1", port=0, access_log=None, print=_tell_url)


def _tell_url(banner: str) -> None:
    found = re.search(r"http://\S+", banner)
    if found:
        print(json.dumps({"url": found[0]}), flush=True)


@contextmanager
def server() -> Iterator[str]:
    """Run the application in a process of its own."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"].rstrip("/")
        finally:
            process.terminate()


def rate(url: str, script: Path, seconds: int, connections: int) -> float:
    """Load one path and return the answers a second, all of them good."""
    load = [f"-c{connections}", f"-d{seconds}", "-t1", "-s", str(script), url]
    out = subprocess.run(["wrk", *load], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(f"not all answers were good:\n{out}")
    found = re.search(r"Requests/sec:\s*([\d.]+)", out)
    assert found is not None
    return float(found[1])


def main() -> int:
    """Run what the command line asks for."""
    parser = harness.arguments(__doc__, repeats=15)
    add = parser.add_argument
    add("--seconds", type=int, default=1, help="of each load (default: %(default)s)")
    add("--connections", type=int, default=16, help="default: %(default)s")
    add("--serve", action="store_true", help="only serve, and print the URL")
    options = harness.parsed(parser)
    if options.serve:
        serve()
        return 0
    if shutil.which("wrk") is None:
        parser.error("wrk is missing: install the package of that name")
    runs: dict[str, list[float]] = {name: [] for name in PATHS}
    with server() as url, tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "load.lua"
        script.write_text(LOAD)
        for path in PATHS.values():
            rate(url + path, script, options.seconds, options.connections)
        for name in harness.rounds(PATHS, options.repeats):
            runs[name].append(rate(url + PATHS[name], script, options.seconds, options.connections))
    rows = [
        harness.Row.of(
            {"contestant": name},
            [
                {"answers a second": own, "of empty": own / base}
                for own, base in zip(runs[name], runs[EMPTY], strict=True)
            ],
            LIMITS.get(name, ()),
        )
        for name in PATHS
    ]
    return harness.report(options, rows)


if __name__ == "__main__":
    sys.exit(main())

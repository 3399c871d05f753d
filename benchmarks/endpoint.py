"""The token endpoint's rate for attempts whose token is cached, beside handlers that do nothing.

One aiohttp application in a process of its own serves all contestants; ``wrk`` loads them in turns
with the same request. Ratios are to the handler that answers JSON and does not read the request, in
the same round.
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

LOAD_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Idempotency-Key"] = "attempt-1"
wrk.body = '{"capabilities":["SEND_MESSAGE"]}'
"""


async def answer_at_once(request: web.Request) -> web.Response:
    """Answer without reading the request."""
    return web.json_response({"token": "x"})


async def answer_after_reading(request: web.Request) -> web.Response:
    """Answer after reading the body, as every endpoint must."""
    await request.json()
    return web.json_response({"token": "x"})


def serve() -> None:
    """Serve all contestants until the process ends; print the URL first."""
    grant = TokenRequest(harness.ROOM, "viewer", ["SEND_MESSAGE"], {"displayName": "Viewer"})

    async def authorize(request: web.Request, ask: aioivschat.aiohttp.Ask) -> TokenRequest:
        return grant

    app = web.Application()
    app.router.add_post(PATHS[EMPTY], answer_at_once)
    app.router.add_post(PATHS["reads JSON"], answer_after_reading)
    with ThreadedEmulatorServer() as emulator:

        async def opened(app: web.Application) -> AsyncIterator[None]:
            yield
            await service.aclose()

        service = AsyncTokenService(session=harness.make_session(), endpoint_url=emulator.url)
        # No rate limit per user: a single user makes all requests.
        policy = aioivschat.aiohttp.EndpointPolicy(per_user=None)
        aioivschat.aiohttp.setup(app, authorize=authorize, service=service, policy=policy)
        app.cleanup_ctx.append(opened)
        web.run_app(app, host="127.0.0.1", port=0, access_log=None, print=_print_url)


def _print_url(banner: str) -> None:
    found = re.search(r"http://\S+", banner)
    if found:
        print(json.dumps({"url": found[0]}), flush=True)


@contextmanager
def run_application() -> Iterator[str]:
    """Run the application in a process of its own."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"].rstrip("/")
        finally:
            process.terminate()


def measure_rate(url: str, script: Path, seconds: int, connections: int) -> float:
    """Load one path, and return the answers a second.

    Raises:
        RuntimeError: not all answers were good.
    """
    load = [f"-c{connections}", f"-d{seconds}", "-t1", "-s", str(script), url]
    out = subprocess.run(["wrk", *load], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(f"not all answers were good:\n{out}")
    found = re.search(r"Requests/sec:\s*([\d.]+)", out)
    assert found is not None
    return float(found[1])


def main() -> int:
    """Run the benchmark as the command line says."""
    parser = harness.make_parser(__doc__, repeats=15)
    add = parser.add_argument
    add("--seconds", type=int, default=1, help="of each load (default: %(default)s)")
    add("--connections", type=int, default=16, help="default: %(default)s")
    add("--serve", action="store_true", help="only serve, and print the URL")
    options = harness.parse_options(parser)
    if options.serve:
        serve()
        return 0
    if shutil.which("wrk") is None:
        parser.error("wrk is missing: install the package of that name")
    runs: dict[str, list[float]] = {name: [] for name in PATHS}
    with run_application() as url, tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "load.lua"
        script.write_text(LOAD_SCRIPT)
        for path in PATHS.values():
            measure_rate(url + path, script, options.seconds, options.connections)
        for name in harness.take_turns(PATHS, options.repeats):
            runs[name].append(
                measure_rate(url + PATHS[name], script, options.seconds, options.connections)
            )
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

"""An STS on 127.0.0.1 that refuses as it is told, and the profile of a role that needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

_CONFIG = """\
[profile base]
aws_access_key_id = testing
aws_secret_access_key = testing
[profile app]
role_arn = arn:aws:iam::123456789012:role/app
source_profile = base
region = us-east-1
"""

_GRANT = """\
<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<Credentials><AccessKeyId>testing</AccessKeyId><SecretAccessKey>testing</SecretAccessKey>
<SessionToken>session token</SessionToken><Expiration>{end}</Expiration></Credentials>
<AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/app/s</Arn><AssumedRoleId>A:s</AssumedRoleId>
</AssumedRoleUser></AssumeRoleResult></AssumeRoleResponse>"""

_REFUSAL = """\
<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>
<RequestId>r</RequestId></ErrorResponse>"""


@dataclass
class Sts:
    """Grants and refuses the role.

    Attributes:
        refusals: status, code and message of the next answers; the last of them stays.
        life: seconds that the credentials it grants have left.
        latency: seconds before it answers.
        asked: when each request came, by the event loop's clock.
    """

    refusals: list[tuple[int, str, str]] = field(default_factory=list)
    life: float = 3600.0
    latency: float = 0.0
    asked: list[float] = field(default_factory=list)
    url: str = ""

    def refuse(self, code: str, *, status: int = 400, message: str = "No.", times: int = 0) -> None:
        """Refuse so many requests; without a number, all that come until :meth:`grant`."""
        self.refusals = [(status, code, message)] * (times or 1_000_000)

    def grant(self) -> None:
        """Refuse no more."""
        self.refusals = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].split()[0])
                await reader.readexactly(length)
                self.asked.append(asyncio.get_running_loop().time())
                await asyncio.sleep(self.latency)
                status, text = 200, self._grant()
                if self.refusals:
                    status, code, message = self.refusals.pop()
                    text = _REFUSAL.format(code=code, message=message)
                body = text.encode()
                line = f"HTTP/1.1 {status} X\r\nContent-Type: text/xml\r\n"
                writer.write(f"{line}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _grant(self) -> str:
        end = datetime.now(UTC) + timedelta(seconds=self.life)
        return _GRANT.format(end=end.strftime("%Y-%m-%dT%H:%M:%SZ"))


@asynccontextmanager
async def role_by_sts(monkeypatch: pytest.MonkeyPatch, folder: Path) -> AsyncIterator[Sts]:
    """Have sessions take their credentials of a role that an STS grants."""
    sts = Sts()
    server = await asyncio.start_server(sts.serve, "127.0.0.1", 0)
    sts.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = folder / "config"
    config.write_text(_CONFIG)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_PROFILE", "app")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    try:
        yield sts
    finally:
        server.close()

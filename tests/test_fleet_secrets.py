"""Whoever watches the engine sees neither token, user, room, attribute nor idempotency key."""

from __future__ import annotations

import logging
import socket
from base64 import b64encode

import pytest

from aioivschat import TokenRequest
from aioivschat.emulator import ThreadedEmulatorServer
from conftest import ROOM, SEALING_KEY, OpenService, outcomes, until
from engine import EngineServer

USER = "canary-user-7Qd1"
NAME = "canary-name-Zx93"
KEY = "canary-key-0Pw2"
CANARY_ROOM = ROOM.rpartition("/")[0] + "/CanaryRoom55"
REQUEST = TokenRequest(CANARY_ROOM, USER, ["SEND_MESSAGE"], {"displayName": NAME})


@pytest.mark.fault(30)
async def test_monitor_shows_nothing(
    open_member: OpenService,
    engine_server: EngineServer,
    ivschat_emulator: ThreadedEmulatorServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every command of everything that a fleet does, all that the engine holds, and every log."""
    caplog.set_level(logging.DEBUG)
    here, there = open_member(), open_member()
    with socket.create_connection(("127.0.0.1", engine_server.port)) as monitor:
        monitor.sendall(b"MONITOR\r\n")
        tokens = [
            await here.issue(REQUEST, idempotency_key=KEY),
            await there.issue(REQUEST, idempotency_key=KEY),
            await here.issue(REQUEST),
            await there.issue(REQUEST, fresh=True),
        ]
        await here.prewarm([REQUEST] * 2)
        tokens.append(await there.issue(REQUEST, fresh=True))
        with engine_server.client() as client:
            held = repr([(name, client.dump(name)) for name in client.scan_iter()])
            for invalidated in ({"room": CANARY_ROOM}, {"user": USER}):
                here.invalidate(**invalidated)
            await until(lambda: client.zcard("{aioivschat}:log") == 2)
            held += repr([(name, client.dump(name)) for name in client.scan_iter()])
            client.echo("the end")
        ivschat_emulator.emulator.configure(any_room=False)
        await outcomes(there.issue(REQUEST))
        seen = b""
        monitor.settimeout(10.0)
        while b"the end" not in seen:
            seen += monitor.recv(1 << 20)
    text = (seen.decode("latin-1") + held + caplog.text).lower()
    # It was not silent for want of a watcher.
    for command in ("evalsha", "subscribe", "publish", "rpush", "zadd", "lpop"):
        assert command in text
    secrets = [USER, NAME, KEY, "CanaryRoom55", SEALING_KEY.decode()]
    secrets += [token.token for token in tokens]
    for secret in secrets:
        assert secret.lower() not in text
        assert b64encode(secret.encode()).decode().rstrip("=").lower()[:-1] not in text

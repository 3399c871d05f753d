"""What the servers do to a connection below HTTP."""

from __future__ import annotations

import asyncio
import socket
import struct

# To linger for no time makes the kernel send a reset instead of an orderly end.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.WriteTransport) -> None:
    """End a connection at once, with a reset; what was not sent yet is lost."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()

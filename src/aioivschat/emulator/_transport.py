"""Resets a TCP connection."""

from __future__ import annotations

import asyncio
import socket
import struct

# SO_LINGER, on, for 0 seconds: closing makes the kernel send a reset instead of an orderly end.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset_transport(transport: asyncio.WriteTransport) -> None:
    """Close a connection at once with a reset; what was not sent yet is lost."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()

"""How sentinels are asked for their master: with which login, for how long, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool

CREDENTIALS = ("sentinel_username", "sentinel_password")
"""The options of a URL that are for the sentinels alone."""

_TIMEOUT_SECONDS = 0.3
"""Seconds that a sentinel may take to connect or to answer, if the URL does not say. Two that say
nothing leave time, of the second that a command may take, to ask a third."""

_Login = tuple[str | None, str | None]


def logins(options: Mapping[str, Any], given: Mapping[str, str]) -> list[_Login]:
    """Return the users and passwords to try at a sentinel, in their order.

    Args:
        options: for connections to the master.
        given: those of :data:`CREDENTIALS` that the URL has, perhaps empty.
    """
    user, password = options.get("username"), options.get("password")
    own = given.get(CREDENTIALS[0], user) or None, given.get(CREDENTIALS[1], password) or None
    tried = [own]
    if CREDENTIALS[0] not in given:
        tried.append((None, own[1]))  # most sentinels have a password and no users
    if not given:
        tried.append((None, None))  # or neither, whatever their master has
    return list(dict.fromkeys(tried))


class _Failure(exceptions.ConnectionError):
    """What redis-py notes of a sentinel that failed, before it asks the next one."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._text = f"{type(error).__name__}: {error}"

    def __repr__(self) -> str:
        return self._text


class Sentinel:
    """What redis-py uses of a client of one sentinel, with several logins to try.

    Args:
        host: where it is.
        port: its port.
        tried: users and passwords.
        options: for all connections to sentinels.
    """

    def __init__(
        self, host: str, port: int, tried: Sequence[_Login], options: Mapping[str, Any]
    ) -> None:
        shared: dict[str, Any] = {"socket_connect_timeout": _TIMEOUT_SECONDS, **options}
        shared["socket_timeout"] = shared.get("socket_timeout") or _TIMEOUT_SECONDS
        shared.pop("db", None)  # a sentinel has none
        pools = [
            ConnectionPool(
                **{**shared, "host": host, "port": port, "username": user, "password": password}
            )
            for user, password in tried
        ]
        self.connection_pool = pools[0]
        self._clients: list[Any] = [Redis.from_pool(pool) for pool in pools]

    def __repr__(self) -> str:
        return "sentinel"

    async def sentinel_masters(self) -> Any:
        """Return the state of the masters that it watches."""
        failure: Exception | None = None
        for client in tuple(self._clients):
            try:
                masters = await client.sentinel_masters()
            except Exception as error:
                failure = failure or error
                if isinstance(error, exceptions.AuthenticationError):
                    continue
                break
            self._clients.sort(key=lambda each: each is not client)  # the first one next time
            return masters
        assert failure is not None  # noqa: S101 (there is a client)
        raise _Failure(failure) from None

    async def aclose(self) -> None:
        """Close its connections."""
        for client in self._clients:
            await client.aclose()

"""Fences: remembered invalidations, so that nobody has to search for the tokens they concern."""

from __future__ import annotations

from typing import Any

from aioivschat._events import Invalidated, Observers
from aioivschat._models import Identity, TokenRequest
from aioivschat._secrets import Hidden, Unpickled
from aioivschat.errors import InvalidRequest

_MAX_FENCES = 65_536
"""Fences kept one by one. With one more, every request that began earlier counts as fenced."""

_ANY_ROOM = "arn:aws:ivschat:us-east-1:000000000000:room/any"


class Fences(Unpickled):
    """Tells which requests began before an invalidation of their room or user.

    To invalidate takes the same short time whatever is held: a fence is added, and tokens are
    checked against it when they are asked for.

    Attributes:
        generation: the number of invalidations so far; each request keeps that of its start.
    """

    def __init__(self, observers: Observers = Observers()) -> None:  # noqa: B008 (immutable)
        self._observers = observers
        self.generation = 0
        self._oldest_unfenced = 0
        # Fences do not expire: a flight may queue for longer than a token lives.
        self._generations: dict[tuple[Any, ...], int] = {}

    def add(self, room: str | None, user: str | None) -> None:
        """Invalidate what began before: of a room, of a user, or of a user in a room.

        Observers are told.
        """
        self.generation += 1
        if len(self._generations) >= _MAX_FENCES:
            self._generations.clear()
            self._oldest_unfenced = self.generation
        self._generations[Hidden((room, user))] = self.generation
        self._observers.tell(Invalidated(room, user is not None))

    def is_fenced(self, generation: int, identity: Identity) -> bool:
        """Tell whether a request was invalidated after it began.

        Args:
            generation: at the request's start.
            identity: of the request.
        """
        if generation == self.generation:
            return False
        if generation < self._oldest_unfenced:
            return True
        room, user = identity.at(0), identity.at(1)
        return any(
            self._generations.get(fence, 0) > generation
            for fence in ((room, user), (room, None), (None, user))
        )


def checked_names(room: str | None, user: str | None) -> tuple[str | None, str | None]:
    """Return the names of what is invalidated as plain text.

    Raises:
        InvalidRequest: neither was given, or one breaks the limit of a request's member.
    """
    try:
        if room is None and user is None:
            raise InvalidRequest("invalidate", "given a room, a user or both", "neither")
        request = TokenRequest(_ANY_ROOM if room is None else room, "-" if user is None else user)
        return room and request.room, user and request.user
    finally:
        del room, user  # out of tracebacks that show locals

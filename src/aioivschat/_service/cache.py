"""Tokens that were delivered, kept for repeated calls.

Synchronous, bounded, without I/O and without a timer. All tokens live equally long, so the order
of insertion is the order of expiry: each insertion sweeps a little at the old end, and no single
call clears up after a mass of entries.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from aioivschat._clock import Clock
from aioivschat._models import (
    TOKEN_LIFE_SECONDS,
    Attempt,
    ChatToken,
    Identity,
    Reply,
    SharingKey,
)
from aioivschat._secrets import hides
from aioivschat._service.fences import Fences
from aioivschat.errors import require_number

SWEPT_PER_INSERTION = 2
"""Old entries checked per insertion: more than are inserted, so that the sweep catches up."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How many tokens are kept, and how fresh a token must be to be handed out.

    Args:
        max_tokens: tokens kept after they were handed out, for repeated calls. More than 12,000
            (200 a second for 60 s) cannot be alive per account and region.
        max_stock: tokens kept that nobody has been given yet; at least 1.
        min_remaining: seconds of life that every token has left when it is handed out; 0 or
            more, less than the 60 s that a token lives.

    Raises:
        InvalidConfiguration: if a number is out of its range.
    """

    max_tokens: int = 12_000
    max_stock: int = 12_000
    min_remaining: float = 5.0

    def __post_init__(self) -> None:
        require_number("CachePolicy.max_tokens", self.max_tokens, least=1, whole=True)
        require_number("CachePolicy.max_stock", self.max_stock, least=1, whole=True)
        life, remaining = TOKEN_LIFE_SECONDS, self.min_remaining
        require_number("CachePolicy.min_remaining", remaining, least=0, below=life, unit=" s")


@hides("_reply")
@dataclass(slots=True, eq=False, repr=False)
class Entry:
    """A token with its two deadlines, in seconds: the earlier one ends its life.

    Attributes:
        key: under which it was delivered; before that, its identity.
        generation: of the fences, at the start of the token's request.
        handed_out: whether somebody was given this token.
    """

    key: SharingKey
    token: ChatToken
    monotonic_end: float
    wall_end: float
    generation: int
    handed_out: bool = False
    _reply: dict[str, Any] | None = None

    @property
    def identity(self) -> Identity:
        """What its request asked for."""
        return self.key.identity if isinstance(self.key, Attempt) else self.key

    def hand_out(self) -> ChatToken:
        """Give the token to a caller; every later caller sees it as reused."""
        # Most tokens are asked for once: the copy that says "reused" is made for the second caller.
        if self.handed_out and not self.token.reused:
            self.token = self.token.as_reused()
        self.handed_out = True
        return self.token

    def reply(self) -> Reply:
        """Give the token as boto3's reply; the dict is the caller's own."""
        # Copying a reply costs half of making one.
        if self._reply is None:
            self._reply = dict(self.hand_out().reply())
        return Reply(self._reply)


class TokenCache:
    """Delivered tokens, each by the key that callers agree on when they share it.

    Attributes:
        hits: how often a delivered token was given again.
    """

    def __init__(self, policy: CachePolicy, clock: Clock, fences: Fences) -> None:
        self._max_tokens = policy.max_tokens
        self._margin = policy.min_remaining
        self._monotonic = clock.monotonic
        self._wall = clock.wall
        self._fences = fences
        # One dictionary: it is laid out anew when it is full, which for 12,000 tokens stops the
        # event loop for half a millisecond.
        self._entries: dict[tuple[Any, ...], Entry] = {}
        # In the order of expiry. An entry that was replaced or removed stays here until its turn.
        self._order: deque[Entry] = deque()
        self.hits = 0

    def __len__(self) -> int:
        """Return how many are held, expired ones that await their sweep included."""
        return len(self._entries)

    def get(self, key: tuple[Any, ...]) -> Entry | None:
        """Return the delivered token of a key, if it may still be handed out.

        Args:
            key: a :data:`SharingKey`, or a tuple that equals one.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        # `is_usable`, written out: its calls would make a hit a third slower.
        if (
            entry.monotonic_end - self._monotonic() >= self._margin
            and entry.wall_end - self._wall() >= self._margin
            and (
                entry.generation == self._fences.generation
                or not self._fences.is_fenced(entry.generation, entry.identity)
            )
        ):
            self.hits += 1
            return entry
        del self._entries[key]
        return None

    def put(self, key: SharingKey, entry: Entry) -> None:
        """Keep a token that is being handed out, in place of the oldest one if there are too many.

        Args:
            key: under which repeated calls find it.
            entry: the token.
        """
        self._sweep()
        entry.key = key
        self._entries[key] = entry
        self._order.append(entry)
        if len(self._order) > self._max_tokens:
            self._drop_oldest()

    def remove(self, entry: Entry) -> None:
        """Forget a token, unless another one has taken its place."""
        if self._is_held(entry):
            del self._entries[entry.key]

    def is_usable(self, entry: Entry) -> bool:
        """Tell whether a token has the least remaining life and was not invalidated."""
        return self.is_alive(entry) and not self._fences.is_fenced(entry.generation, entry.identity)

    def is_alive(self, entry: Entry) -> bool:
        """Tell whether a token has the least remaining life by both clocks."""
        return (
            entry.monotonic_end - self._monotonic() >= self._margin
            and entry.wall_end - self._wall() >= self._margin
        )

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._order.clear()

    def _sweep(self) -> None:
        order = self._order
        for _ in range(min(SWEPT_PER_INSERTION, len(order))):
            if self._is_held(order[0]) and self.is_alive(order[0]):
                return
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self.remove(self._order.popleft())

    def _is_held(self, entry: Entry) -> bool:
        return self._entries.get(entry.key) is entry

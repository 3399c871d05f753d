"""The tokens that the emulator minted, each of which opens one connection.

Source: IVS Chat user guide, "Authenticate and authorize chat clients": a token is valid for one
minute, and can be used only once to establish a connection.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

# Three bytes make four characters: a token is 300 characters long.
_TOKEN_RANDOM_BYTES = 225
# At the published quota at most 12,000 tokens of an account and region can be alive.
_TOKENS_KEPT = 100_000


class TokenError(Exception):
    """A token cannot be redeemed."""


class TokenUnknown(TokenError):
    """The token was never minted, or is no longer remembered."""


class TokenSpent(TokenError):
    """The token was redeemed before."""


class TokenExpired(TokenError):
    """The token's minute, or the session that it is for, is over."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token entitles its bearer to.

    Args:
        room: the room's ARN.
        user_id: the bearer's user id; sensitive.
        capabilities: what the bearer may do beyond viewing.
        attributes: the bearer's attributes, which the room sees with every message; sensitive.
        token_expires: when the token can no longer be redeemed, in wall seconds of the emulator.
        session_expires: when a session opened with it ends, in wall seconds of the emulator.
    """

    room: str
    user_id: str = field(repr=False)
    capabilities: frozenset[str]
    attributes: Mapping[str, str] = field(repr=False)
    token_expires: float
    session_expires: float


class Tokens:
    """The last 100,000 tokens minted, spent ones included."""

    def __init__(self) -> None:
        self._grants: OrderedDict[str, Grant | None] = OrderedDict()

    def mint(self, grant: Grant) -> str:
        """Return a new token for a grant: 300 random characters, safe in a URL and a header."""
        token = secrets.token_urlsafe(_TOKEN_RANDOM_BYTES)
        self._grants[token] = grant
        if len(self._grants) > _TOKENS_KEPT:
            self._grants.popitem(last=False)
        return token

    def redeem(self, token: str, now: float) -> Grant:
        """Spend a token, or raise `TokenError`; an expired token stays unspent."""
        if token not in self._grants:
            raise TokenUnknown("no such token")
        grant = self._grants[token]
        if grant is None:
            raise TokenSpent("the token was used before")
        if now >= min(grant.token_expires, grant.session_expires):
            raise TokenExpired("the token has expired")
        self._grants[token] = None
        return grant

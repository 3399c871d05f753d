"""What the engine sees: sealed values, under names that are keyed hashes.

Values are sealed by AES-256-GCM with the name that they are stored under as associated data: a
value moved to another name does not open. Both keys are derived from one that the user gives.
"""

from __future__ import annotations

import hmac
import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aioivschat._secrets import Hidden
from aioivschat.errors import InvalidConfiguration

KEY_BYTES = 32
_NONCE_BYTES = 12  # as GCM recommends
_ID_BYTES = 4
_NAME_BYTES = 16  # enough that names do not collide, and short


class SealingKey:
    """One key, and what is derived from it.

    Args:
        secret: 32 random bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self.id = _derived(secret, b"id")[:_ID_BYTES]
        self.cipher = AESGCM(_derived(secret, b"seal"))
        self._name_secret = Hidden((_derived(secret, b"name"),))

    def name(self, parts: bytes) -> str:
        """Return the keyed hash of some parts."""
        digest = hmac.digest(self._name_secret.at(0), parts, "sha256")
        return urlsafe_b64encode(digest[:_NAME_BYTES]).rstrip(b"=").decode()


class Sealer:
    """Seals with the first of several keys and opens with any: keys can be changed while it runs.

    Args:
        secrets: 32 random bytes each, at least one. A new key is first added at the end in every
            process, then moved to the front in every process; then the old one can go.

    Raises:
        InvalidConfiguration: there is no key, or one is not of 32 bytes.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        fits = bool(secrets) and all(
            isinstance(secret, bytes) and len(secret) == KEY_BYTES for secret in secrets
        )
        if not fits:
            del secrets  # out of tracebacks that show locals
            raise InvalidConfiguration("RedisTier.keys", "of 32 bytes each", "another form")
        self._keys = [SealingKey(secret) for secret in secrets]
        self._by_id = {key.id: key for key in self._keys}

    def names(self, *parts: object) -> list[str]:
        """Return the name of something under every key: written under the first, read under all."""
        # JSON differs for different parts, where joined text may be equal.
        text = json.dumps(parts).encode()
        return [key.name(text) for key in self._keys]

    def seal(self, name: str, plain: bytes) -> bytes:
        """Seal a value for the name that it will be stored under; the result is ASCII."""
        key, nonce = self._keys[0], os.urandom(_NONCE_BYTES)
        sealed = key.cipher.encrypt(nonce, plain, name.encode())
        # As text: a client that decodes its answers fails on other bytes.
        return urlsafe_b64encode(key.id + nonce + sealed)

    def open(self, name: str, sealed: bytes) -> bytes | None:
        """Return the value found under a name; ``None`` if it was not sealed for that name."""
        try:
            raw = urlsafe_b64decode(sealed)
            nonce_end = _ID_BYTES + _NONCE_BYTES
            cipher = self._by_id[raw[:_ID_BYTES]].cipher
            return cipher.decrypt(raw[_ID_BYTES:nonce_end], raw[nonce_end:], name.encode())
        except (ValueError, KeyError, InvalidTag):
            return None


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return hmac.digest(secret, b"aioivschat " + purpose, "sha256")

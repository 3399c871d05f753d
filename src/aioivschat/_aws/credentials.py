"""The credentials that a client signs with."""

from __future__ import annotations

from typing import Any

from botocore import UNSIGNED
from botocore.exceptions import NoCredentialsError
from botocore.handlers import disable_signing

from aioivschat._aws.internals import credentials_of, listeners_of, needs_renewal


class ClientCredentials:
    """The credentials of an open client.

    Args:
        client: of aiobotocore's, or a stand-in for one, which needs none.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        # Whether they say truly if they are at hand.
        self._can_tell = True
        try:
            credentials_of(client)
        except AttributeError:
            self._can_tell = False

    def are_at_hand(self) -> bool:
        """Tell whether a request can be signed without asking anybody for credentials."""
        if not self._can_tell:
            return True
        held = credentials_of(self._client)
        return not (needs_renewal(held) if held else self._is_signed())

    async def renew(self) -> None:
        """Ask for credentials.

        Raises:
            Exception: as aiobotocore does.
        """
        if self.are_at_hand():
            return
        held = credentials_of(self._client)
        if held is None:
            raise NoCredentialsError
        await held.get_frozen_credentials()
        # Some live no longer than the time before their end in which they are renewed: aiobotocore
        # renews those for each request.
        self._can_tell = not needs_renewal(held)

    def _is_signed(self) -> bool:
        # Whoever else listens to this may choose not to, as `disable_signing` does.
        listeners = listeners_of(self._client, "choose-signer.ivschat.CreateChatToken")
        is_default = all(
            getattr(each, "__module__", "") == "botocore.handlers" and each is not disable_signing
            for each in listeners
        )
        return is_default and self._client.meta.config.signature_version is not UNSIGNED

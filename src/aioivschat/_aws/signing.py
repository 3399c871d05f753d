"""Signs requests that differ from one of botocore's in body, time, id and session token alone.

The signature is Signature Version 4 ("Create a signed AWS API request"). What varies in a request
is left open in its canonical form, which botocore makes once; so the rest need not be made again.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from aioivschat._aws.internals import CannotPrepare
from aioivschat._secrets import Unpickled

DATE, TOKEN, INVOCATION = "x-amz-date", "x-amz-security-token", "amz-sdk-invocation-id"
"""Headers that differ from request to request."""

_AUTHORIZATION_FORM = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/(?P<service>[^/]+)"
    r"/aws4_request, SignedHeaders=(?P<signed>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)


_CLOCK_CODES = {
    "AuthFailure",
    "InvalidSignatureException",
    "RequestExpired",
    "RequestInTheFuture",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
"""Errors that a wrong time of signing may cause, as AWS's SDKs know them."""

_TOLERATED_SECONDS = 240.0
"""AWS accepts a time that is five minutes off; nearer than this, the clock is not the cause."""

_log = logging.getLogger("aioivschat")


class SigningForm(Unpickled):
    """How a request of botocore's was signed.

    Args:
        request: as botocore is about to send it.

    Raises:
        CannotPrepare: it is signed in another way, or not at all.
    """

    def __init__(self, request: Any) -> None:
        sent = header_texts(request)
        authorization = _AUTHORIZATION_FORM.fullmatch(sent.get("authorization", ""))
        if authorization is None:
            raise CannotPrepare("another kind of signature")
        self._access_key = authorization["key"]
        self._token = sent.get(TOKEN, "")
        self._region, self._service = authorization["region"], authorization["service"]
        self._signed = authorization["signed"]
        signer = SigV4Auth(ReadOnlyCredentials("", "", None), self._service, self._region)
        signed = {name: sent[name] for name in self._signed.split(";") if name in sent}
        copy = AWSRequest(request.method, request.url, signed, request.body)
        *lines, _ = signer.canonical_request(copy).replace("%", "%%").split("\n")
        varying = {name: f"{name}:%({name})s" for name in (DATE, TOKEN, INVOCATION)}
        open_lines = (varying.get(line.partition(":")[0], line) for line in lines)
        self._canonical = "\n".join([*open_lines, "%(body)s"])
        self._key_origin: tuple[str, str] = ("", "")
        self._key = b""

    def is_of(self, credentials: Any) -> bool:
        """Tell whether the request was signed with these credentials."""
        # botocore sends no header for an empty session token.
        own = (self._access_key, self._token)
        return own == (credentials.access_key, credentials.token or "")

    def fits(self, credentials: Any) -> bool:
        """Tell whether the form can be used with credentials: a session token adds a header."""
        return bool(self._token) == bool(credentials.token)

    def sign(self, body: bytes, credentials: Any, date: str, invocation: str) -> str:
        """Return the header ``Authorization``.

        Args:
            body: of the request.
            credentials: frozen ones, that fit.
            date: the header ``X-Amz-Date``.
            invocation: the header ``amz-sdk-invocation-id``.
        """
        day = date[:8]
        canonical = self._canonical % {
            DATE: date,
            TOKEN: " ".join((credentials.token or "").split()),
            INVOCATION: invocation,
            "body": sha256(body).hexdigest(),
        }
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        key = self._derive_key(credentials.secret_key, day)
        return (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={self._signed}, "
            f"Signature={hmac.digest(key, text.encode(), 'sha256').hex()}"
        )

    def _derive_key(self, secret: str, day: str) -> bytes:
        # AWS derives one for each day from the secret key.
        if self._key_origin != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, self._service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key, self._key_origin = key, (secret, day)
        return self._key


class SigningClock:
    """The time by which requests are signed: this host's, corrected where AWS refuses it.

    Attributes:
        offset: seconds that AWS's clock is ahead, once a refusal has shown that they matter.
    """

    def __init__(self, region: str) -> None:
        self._region = region
        self.offset = 0.0

    def now(self) -> float:
        """Return seconds since the epoch."""
        return time.time() + self.offset

    def learn(self, code: str, answered: datetime | None, used: float) -> bool:
        """Learn from a refusal; return whether the same request may succeed now.

        Args:
            code: of the error.
            answered: the answer's ``Date``, if it has one.
            used: the offset by which the request was signed.
        """
        if answered is None or code not in _CLOCK_CODES or not 2000 < answered.year < 2200:
            return False
        offset = answered.timestamp() - time.time()
        if abs(offset - used) < _TOLERATED_SECONDS:
            return False
        if abs(offset - self.offset) >= _TOLERATED_SECONDS:
            self.offset = offset
            side = "behind" if offset > 0 else "ahead of"
            _log.warning(
                "the clock of this host is %.0f s %s AWS's (%s): requests are signed by AWS's time",
                abs(offset),
                side,
                self._region,
            )
        return True

    def sign_again(self, request: Any, form: SigningForm, credentials: Any) -> None:
        """Sign a request of botocore's by the corrected time, if that is not the host's."""
        if self.offset:
            date = signing_date(self.now())
            invocation = header_texts(request).get(INVOCATION, "")
            request.headers["X-Amz-Date"] = date
            request.headers["Authorization"] = form.sign(
                request.body, credentials, date, invocation
            )


def header_texts(request: Any) -> dict[str, str]:
    """Return the headers of a request of botocore's, by their names in lower case."""
    headers: Mapping[str, str | bytes] = request.headers
    return {
        name.lower(): value.decode() if isinstance(value, bytes) else value
        for name, value in headers.items()
    }


def signing_date(moment: float) -> str:
    """Return the header ``X-Amz-Date`` of a moment, in seconds since the epoch."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment))

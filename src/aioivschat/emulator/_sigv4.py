"""Checks SigV4 signatures: computes them again with botocore's own signer, and compares."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from botocore.auth import SIGV4_TIMESTAMP, UNSIGNED_PAYLOAD, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

from ._wire import ServiceError

DEFAULT_ACCESS_KEYS: Mapping[str, str] = {"testing": "testing"}
_SERVICE = "ivschat"
# IAM user guide, "Signing AWS API requests": within five minutes.
_CLOCK_TOLERANCE_SECONDS = 300.0
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 +Credential=([^, /]*)/([^, /]*)/([^, /]*)/([^, /]*)/[^, /]*, *"
    r"SignedHeaders=([^, ]+), *Signature=([0-9a-f]{64})"
)


class _Signer(SigV4Auth):
    """Signs the headers that the request names as signed."""

    def __init__(self, credentials: Credentials, region: str, signed: HTTPHeaders) -> None:
        super().__init__(credentials, _SERVICE, region)
        self._signed = signed

    def headers_to_sign(self, request: AWSRequest) -> Any:
        return self._signed


class SignatureVerifier:
    """Finds requests that were not signed with a known access key.

    A session token is accepted if it is among the signed headers.

    Args:
        access_keys: secret access keys by access key id; None for ``testing``/``testing``.
    """

    def __init__(self, access_keys: Mapping[str, str] | None = None) -> None:
        self._access_keys = dict(DEFAULT_ACCESS_KEYS if access_keys is None else access_keys)

    def find_denial(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, now: float
    ) -> ServiceError | None:
        """Return the error that AWS would answer with, None for a good signature.

        ``url`` is whole, as the client sent it; the names of ``headers`` are in lower case; ``now``
        is in wall seconds by the service's clock.
        """
        authorization = headers.get("authorization")
        if not authorization:
            return ServiceError(
                403, "MissingAuthenticationTokenException", "Missing Authentication Token"
            )
        match = _AUTHORIZATION.fullmatch(authorization.strip())
        if match is None:
            return ServiceError(
                403, "IncompleteSignatureException", "Authorization header is incomplete"
            )
        access_key, date, region, service, signed_names, signature = match.groups()
        names = signed_names.split(";")
        timestamp = headers.get("x-amz-date", "")

        if service != _SERVICE:
            return _signature_error(
                f"Credential should be scoped to correct service: '{_SERVICE}'."
            )
        if access_key not in self._access_keys:
            return ServiceError(
                403,
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            )
        if (problem := _find_time_problem(timestamp, now)) is not None:
            return _signature_error(problem)
        if not timestamp.startswith(date):
            return _signature_error(
                "Date in Credential scope does not match the date of the request."
            )
        # A header that is not signed could have been changed on the way.
        required = {"host"} | {name for name in headers if name.startswith("x-amz-")}
        if not required.issubset(names):
            return _signature_error("'Host' and all 'X-Amz-' headers must be signed.")
        payload_hash = headers.get("x-amz-content-sha256", UNSIGNED_PAYLOAD)
        if payload_hash not in (UNSIGNED_PAYLOAD, hashlib.sha256(body).hexdigest()):
            return _signature_error("X-Amz-Content-SHA256 does not match the body.")

        signed = HTTPHeaders()
        for name in names:
            signed[name] = headers.get(name, "")
        signer = _Signer(Credentials(access_key, self._access_keys[access_key]), region, signed)
        request = AWSRequest(method=method, url=url, headers=dict(headers), data=body)
        request.context["timestamp"] = timestamp
        to_sign = signer.string_to_sign(request, signer.canonical_request(request))
        if hmac.compare_digest(signature, signer.signature(to_sign, request)):
            return None
        return _signature_error(
            "The request signature we calculated does not match the signature you provided."
        )


def _find_time_problem(timestamp: str, now: float) -> str | None:
    try:
        signed_at = datetime.strptime(timestamp, SIGV4_TIMESTAMP).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return "X-Amz-Date must be in ISO 8601 basic format."
    current = datetime.fromtimestamp(now, UTC).strftime(SIGV4_TIMESTAMP)
    if signed_at < now - _CLOCK_TOLERANCE_SECONDS:
        return f"Signature expired: {timestamp} is now earlier than {current} less 5 min."
    if signed_at > now + _CLOCK_TOLERANCE_SECONDS:
        return f"Signature not yet current: {timestamp} is still later than {current} plus 5 min."
    return None


def _signature_error(message: str) -> ServiceError:
    return ServiceError(403, "InvalidSignatureException", message)

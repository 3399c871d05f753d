"""An environment in which everything that botocore may read is wrong."""

from __future__ import annotations

from pathlib import Path

from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def hostile_environment(folder: Path) -> dict[str, str]:
    """Return variables that no request to AWS would survive.

    Args:
        folder: takes a file of configuration that cannot be parsed.
    """
    (folder / "garbage").write_text("[default\ngarbage")
    names = [
        name
        for _, names, _, _ in BOTOCORE_DEFAUT_SESSION_VARIABLES.values()
        for name in ([names] if isinstance(names, str) else names or ())
    ]
    return {
        **dict.fromkeys(names, "nonsense"),
        **dict.fromkeys((*PROXIES, *map(str.lower, PROXIES)), "http://127.0.0.1:9"),
        "AWS_CONFIG_FILE": str(folder / "garbage"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "garbage"),
        "AWS_CREDENTIAL_EXPIRATION": "nonsense",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "REQUESTS_CA_BUNDLE": str(folder / "missing"),
    }

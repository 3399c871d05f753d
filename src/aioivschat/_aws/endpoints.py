"""Which endpoints are allowed, and which settings of the shell hold for one: proxies, TLS files."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aioivschat._aws.internals import credentials_of, proxy_for
from aioivschat.errors import InvalidConfiguration, require

_HOST_FORM = re.compile(r"[a-z0-9._-]+|[0-9a-f:]+")  # a name, or an address

_IDENTITY_FILE = "AWS_WEB_IDENTITY_TOKEN_FILE"
_VARIABLES = (
    "AWS_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    _IDENTITY_FILE,
)


def parse_http_hosts(allow_http: str | Iterable[str] | None) -> frozenset[str]:
    """Return the hosts that may be asked in the clear.

    Raises:
        InvalidConfiguration: one is not the name of a host.
    """
    hosts: Any = () if allow_http is None else allow_http
    if isinstance(hosts, str) or not isinstance(hosts, Iterable):
        hosts = [hosts]
    names = [host.lower() if isinstance(host, str) else "" for host in hosts]
    for name in names:
        limit = "the name of a host, without scheme and port, or several"
        require(bool(_HOST_FORM.fullmatch(name)), "allow_http", limit, "something else")
    return frozenset(names)


def check_endpoint(option: str, url: str, http_hosts: frozenset[str]) -> str:
    """Return the URL of an endpoint: HTTPS, or HTTP on this host or on one that was named.

    Raises:
        InvalidConfiguration: it is another.
    """
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    except (AttributeError, ValueError):  # no text, or no URL at all
        scheme, host = "", ""
    if scheme == "https" or (scheme == "http" and (_is_this_host(host) or host in http_hosts)):
        return url
    del url  # out of tracebacks that show locals: it may hold a password
    limit = "an HTTPS URL, or an HTTP one on this host or on one that allow_http= names"
    raise InvalidConfiguration(option, limit, f"{scheme}://{host}" if scheme else "something else")


def is_direct(url: str) -> bool:
    """Tell whether no proxy may stand before an endpoint: it is on this host, or in the clear."""
    return is_in_the_clear(url) or _is_this_host(urlsplit(url).hostname or "")


def is_in_the_clear(url: str) -> bool:
    """Tell whether an endpoint does without TLS, and so without its files."""
    return urlsplit(url).scheme == "http"


def _is_this_host(host: str) -> bool:
    host = host.removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_files(session: Any, client: Any) -> None:
    """Read the files that a client's requests will need, for TLS and for credentials.

    Raises:
        InvalidConfiguration: one cannot be used; the error names the setting.
    """
    config, url = client.meta.config, client.meta.endpoint_url
    with_tls = not is_in_the_clear(url)
    of_proxy = (proxy_for(client, url) and config.proxies_config) or {}
    bundle = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    authorities = {"ca_bundle": with_tls and bundle, **of_proxy}
    for setting in ("ca_bundle", "proxy_ca_bundle"):
        if path := authorities.get(setting):
            with naming_setting(setting, path):
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    others = {"client_cert": with_tls and config.client_cert, **of_proxy}
    if getattr(credentials_of(client), "method", None) == "assume-role-with-web-identity":
        configured = session.get_scoped_config().get("web_identity_token_file")
        others["web_identity_token_file"] = os.environ.get(_IDENTITY_FILE) or configured
    for setting in ("client_cert", "proxy_client_cert", "web_identity_token_file"):
        paths = others.get(setting) or ()
        for path in (paths,) if isinstance(paths, str) else paths:
            with naming_setting(setting, path):  # no more: OpenSSL might ask for a password
                Path(path).open("rb").close()


@contextmanager
def naming_setting(setting: str, path: str | None = None) -> Iterator[None]:
    """Turn what the system says of a file into an error that names the setting.

    Args:
        setting: its name, unless a variable of the environment has the path.
        path: the file; ``None``: the one that the system names, if it does.

    Raises:
        InvalidConfiguration: the file cannot be used.
        OSError: what is no matter of a file.
    """
    try:
        yield
    except OSError as error:  # ssl.SSLError too, of what is no certificate
        found = path or error.filename
        if not isinstance(found, str):
            raise
        reason = getattr(error, "reason", None) or error.strerror
    else:
        return
    named = (each for each in _VARIABLES if os.environ.get(each) == found)
    raise InvalidConfiguration(
        next(named, setting), "a file that can be used", f"{found} ({reason})"
    )

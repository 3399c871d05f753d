"""What is used of aiobotocore beyond what it documents; HttpSession overrides one method more."""

from __future__ import annotations

from copy import copy
from typing import Any

import aiohttp
from aiobotocore.config import AioConfig
from botocore import configprovider


class CannotPrepare(Exception):
    """Requests of a client cannot be made without aiobotocore; the message says why."""


def credentials_of(client: Any) -> Any:
    """Return what holds the client's credentials; ``None``: it does not sign."""
    return client._request_signer._credentials


def needs_renewal(credentials: Any) -> bool:
    """Tell whether credentials are renewed before they sign anything more.

    False for those that do not tell, as they never change.
    """
    if not hasattr(credentials, "refresh_needed"):
        return False
    needed: bool = credentials.refresh_needed(credentials._mandatory_refresh_timeout)
    return needed


def known_regions(session: Any) -> set[str]:
    """Return all regions of AWS that a session's botocore knows."""
    data = session.get_component("data_loader").load_data("partitions")
    return {region for each in data["partitions"] for region in each["regions"]}


def http_session_of(client: Any) -> Any:
    """Return the HTTP session that the client sends through."""
    return client._endpoint.http_session


def emitter_of(client: Any) -> Any:
    """Return what tells the client's listeners of its events."""
    return client.meta.events._emitter


def listeners_of(client: Any, event: str) -> list[Any]:
    """Return who listens to an event of the client's, by any name for it."""
    listeners: list[Any] = emitter_of(client)._handlers.prefix_search(event)
    return listeners


def listening_of(client: Any) -> object:
    """Return an object that is replaced whenever a listener of the client's comes or goes."""
    return emitter_of(client)._lookup_cache


def limits_of(http_session: Any) -> aiohttp.ClientTimeout:
    """Return the seconds that a request of an HTTP session may take."""
    limits: aiohttp.ClientTimeout = http_session._timeout
    return limits


def proxy_for(client: Any, url: str) -> str | None:
    """Return the URL of the proxy that the client uses for a URL, if there is one."""
    proxy: str | None = http_session_of(client)._proxy_config.proxy_url_for(url)
    return proxy


def configured_endpoint(session: Any) -> str | None:
    """Return the URL that a session's clients have from the environment or a profile, if any."""
    try:
        default = session.get_default_client_config()
        ignored = getattr(default, "ignore_configured_endpoint_urls", None)
        if ignored is None:
            ignored = session.get_config_variable("ignore_configured_endpoint_urls")
        if ignored:
            return None
        provider = configprovider.ConfiguredEndpointProvider(
            session.full_config, session.get_scoped_config(), "ivschat"
        )
        url: str | None = provider.provide()
    except Exception:  # of a later version; or it cannot be read, which creating a client tells
        return None
    return url


def keep_http_session(config: Any) -> AioConfig:
    """Have a configuration keep its HTTP session when a session's default is merged with it.

    Newer versions of aiobotocore do that by themselves.
    """
    config._user_provided_options["http_session_cls"] = config.http_session_cls
    kept: AioConfig = config
    return kept


def mergeable(session: Any) -> Any:
    """Return a session whose default configuration can be merged with one of aiobotocore's.

    That is the session itself, or a copy: botocore's own ``Config`` takes none of its options.
    """
    default = session.get_default_client_config()
    if default is None or isinstance(default, AioConfig):
        return session
    copied = copy(session)
    copied.set_default_client_config(AioConfig(**default._user_provided_options))
    return copied


def user_agent_of(session: Any, config: Any) -> str | None:
    """Return the user agent of a session's clients; ``None``: it is not known beforehand."""
    try:
        default = session.get_default_client_config()
        merged = default.merge(config) if default else config
        if merged.user_agent or session.get_config_variable("user_agent_appid"):
            return None
        # Extras of session and configuration are added to it in any case.
        merged = merged.merge(type(merged)(user_agent_extra=None))
        composer = session.get_component("user_agent_creator")
        composer.set_session_config(session.user_agent_name, session.user_agent_version, None)
        composed: str = composer.with_client_config(merged).to_string()
    except Exception:  # of a later version, say
        return None
    return composed


def describe(error: Exception) -> str:
    """Say why requests cannot be prepared, where something here was not as expected."""
    if isinstance(error, CannotPrepare):
        return str(error)
    if isinstance(error, AttributeError):
        return f"no {error.name}"
    return f"aiobotocore is not as expected ({type(error).__name__})"

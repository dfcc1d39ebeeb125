"""The gateway as an OAuth 2.1 resource server: its metadata and challenges.

RFC 9728, and 2026-07-28 basic/authorization, "Authorization Server Discovery". The `resource` is copied from the config
verbatim: clients compare it character by character, so it must not be normalized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from gateway.config.access import ResourceServer

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"


def metadata_path(settings: ResourceServer) -> str:
    """Return the path of the metadata (RFC 9728, 3.1): the well-known one, then the resource's."""
    return WELL_KNOWN + urlsplit(settings.resource).path.rstrip("/")


def metadata_url(settings: ResourceServer) -> str:
    """Return the URL of the metadata."""
    parts = urlsplit(settings.resource)
    return f"{parts.scheme}://{parts.netloc}{metadata_path(settings)}"


def metadata(settings: ResourceServer) -> bytes:
    """Return the metadata document (RFC 9728, 2)."""
    document: dict[str, object] = {
        "resource": settings.resource,
        "authorization_servers": [settings.issuer],
        "bearer_methods_supported": ["header"],
    }
    if settings.scopes:
        document["scopes_supported"] = list(settings.scopes)
    return msgspec.json.encode(document)


def challenge(settings: ResourceServer, error: str = "") -> str:
    """Return the `WWW-Authenticate` header: error, required scopes, metadata URL.

    RFC 6750, 3; RFC 9728, 5.1.
    """
    parts = [f'error="{error}"'] if error else []
    if settings.scopes:
        parts.append(f'scope="{" ".join(settings.scopes)}"')
    parts.append(f'resource_metadata="{metadata_url(settings)}"')
    return "Bearer " + ", ".join(parts)

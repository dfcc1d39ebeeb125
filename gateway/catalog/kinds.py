"""The kinds of things that servers list, and how each is spelled on the wire."""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """One list method: its result's member, the member that identifies an item, and the feature it belongs to."""

    TOOLS = ("tools/list", "tools", "name", "tools")
    PROMPTS = ("prompts/list", "prompts", "name", "prompts")
    RESOURCES = ("resources/list", "resources", "uri", "resources")
    TEMPLATES = ("resources/templates/list", "resourceTemplates", "uriTemplate", "resources")

    def __init__(self, list_method: str, member: str, key: str, feature: str) -> None:
        self.list_method = list_method
        self.member = member
        self.key = key
        self.feature = feature

    @property
    def namespaced(self) -> bool:
        """Whether items get public names; resources keep their URIs, which are their identity."""
        return self.key == "name"


BY_METHOD = {kind.list_method: kind for kind in Kind}
OWNER_KIND = {
    "tools/call": Kind.TOOLS,
    "prompts/get": Kind.PROMPTS,
    "resources/read": Kind.RESOURCES,
    "resources/subscribe": Kind.RESOURCES,
    "resources/unsubscribe": Kind.RESOURCES,
}
"""Routed methods and the kind of thing whose name they carry."""
FEATURES = ("tools", "prompts", "resources")

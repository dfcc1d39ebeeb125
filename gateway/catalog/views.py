"""The views of a config, as snapshots take them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.calls import Scope
from gateway.catalog.parts import Naming
from gateway.catalog.scopes import NamedView

if TYPE_CHECKING:
    from gateway.config.model import Config


def make_views(config: Config) -> dict[str, NamedView]:
    """Every view by its name."""
    settings = config.gateway
    return {
        name: NamedView(
            Scope(
                servers=view.servers,
                tools=view.tools.include,
                excluded_tools=view.tools.exclude,
                prompts=view.prompts,
                resources=view.resources,
            ),
            Naming(view.separator or settings.separator, view.max_name_length or settings.max_name_length),
        )
        for name, view in config.views.items()
    }

"""What a config says of views: parts of the gateway with an endpoint and names of their own; the section `views`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from gateway.config.model import NameLength, Separator  # noqa: TC001 - annotations are read when it runs
from gateway.config.offered_model import ALL, Globs

_OWN = " A tool's name is its public one outside views, or 'SERVER.' and the server's own."


def _says(description: str) -> Meta:
    return Meta(description=description)


class ViewTools(Struct, frozen=True):
    """Which tools a view shows; JSON `tools`."""

    include: Annotated[Globs, _says("Show only tools that fit one of these." + _OWN)] = ALL
    exclude: Annotated[Globs, _says("Show no tools that fit one of these, even if they are included.")] = ()


class ViewConfig(Struct, frozen=True):
    """One view."""

    servers: Annotated[Globs, _says("Show only servers whose names fit one of these.")] = ALL
    tools: Annotated[ViewTools, _says("Which of their tools; a list is what is included.")] = ViewTools()
    prompts: Annotated[Globs, _says("Which of their prompts, by the same kinds of names.")] = ALL
    resources: Annotated[bool, _says("Whether their resources are there too.")] = True
    separator: Annotated[
        Separator | None, _says("Stands between namespace and name; left out: as everywhere ('gateway.separator').")
    ] = None
    max_name_length: Annotated[
        NameLength | None, _says("Longer names are shortened, with a hash; also spelled 'maxNameLength'.")
    ] = None

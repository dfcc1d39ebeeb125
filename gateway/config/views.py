"""The section `views`: parts of the gateway with their own endpoints."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from msgspec import Struct

from gateway.config.fields import ALL, STRINGS, NameLength, Separator, doc, read_by
from gateway.config.findings import Findings, Scope, is_list, is_object, kind, shown
from gateway.config.offered import GlobList, read_globs
from gateway.config.scalars import read_section, read_struct

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gateway.config.findings import Entry

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_OWN = " A tool's name is its public name outside views, or 'SERVER.' and its own name."


class ViewTools(Struct, frozen=True):
    """The selection of a view's tools; JSON `tools`."""

    include: Annotated[GlobList, doc("Show only tools that match one of these." + _OWN)] = ALL
    exclude: Annotated[GlobList, doc("Hide tools that match one of these, even if they are included.")] = ()


class ViewConfig(Struct, frozen=True):
    """One view."""

    servers: Annotated[GlobList, doc("Show only servers whose names match one of these.")] = ALL
    tools: Annotated[ViewToolsField, doc("Which of their tools; a list means 'include'.")] = ViewTools()
    prompts: Annotated[GlobList, doc("Which of their prompts, by the same names.")] = ALL
    resources: Annotated[bool, doc("Whether their resources are included.")] = True
    separator: Annotated[Separator | None, doc("Separator of namespace and name; default: 'gateway.separator'.")] = None
    max_name_length: Annotated[
        NameLength | None,
        doc("Longer names are shortened, with a hash; also spelled 'maxNameLength'.", aliases=("maxNameLength",)),
    ] = None


def read_views(
    raw: object, findings: Findings, environ: Mapping[str, str], servers: Collection[str]
) -> dict[str, ViewConfig]:
    """Read the section; `servers` are the names in the same file."""
    if raw is None:
        return {}
    if not is_object(raw):
        findings.problems.append(f"views: must be an object of views by name, not {kind(raw)}")
        return {}
    views: dict[str, ViewConfig] = {}
    for name, value in raw.items():
        scope = Scope(findings, f"view {shown(name)}", environ)
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            scope.refuse("a name is 1 to 64 letters, digits, '_' and '-', since it is part of a URL")
        else:
            if not is_object(value):
                scope.refuse(f'must be an object like {{"servers": ["..."]}}, not {kind(value)}')
                continue
            views[name] = view = ViewConfig(**read_section(scope, ViewConfig, value))
            for glob in view.servers:
                if not any(fnmatchcase(server, glob) for server in servers):
                    scope.warn("servers", f"has {shown(glob)}, which matches no server")
    return views


def _read_tools(scope: Scope, entry: Entry) -> ViewTools:
    if is_list(entry.value):
        return ViewTools(include=read_globs(scope, entry))
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object with 'include' and 'exclude', or a list of globs, not"
                      f" {kind(entry.value)}")  # fmt: skip
        return ViewTools()
    return ViewTools(**read_struct(scope, ViewTools, entry, f"{entry.label}."))


ViewToolsField = Annotated[ViewTools, read_by(_read_tools, STRINGS)]

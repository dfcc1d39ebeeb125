"""What a config says of what is offered: a server's `tools`. Structs, as in `gateway.config.model`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

from msgspec import Meta, Struct, field

Globs = Annotated[tuple[str, ...], Meta(title="a list of globs")]
ToolName = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,128}\Z", title="1 to 128 letters, digits, '_', '-' and '.'")
]

ALL = ("*",)


def _says(description: str) -> Meta:
    return Meta(description=description)


class ToolOverride(Struct, frozen=True):
    """How one tool is offered; what is left out is as the server says it."""

    name: Annotated[ToolName | None, _says("The name after the namespace, instead of the server's own.")] = None
    title: Annotated[str | None, _says("The title that people see.")] = None
    description: Annotated[str | None, _says("The description that models read.")] = None
    input_schema: Annotated[
        dict[str, Any] | None,
        Meta(title="a JSON Schema of type 'object'"),
        _says("What the arguments look like; also spelled 'inputSchema'. The server checks them by its own."),
    ] = None
    enabled: Annotated[bool, _says("false: the tool is not offered.")] = True


class ToolChoice(Struct, frozen=True):
    """Which tools of a server are offered, and how; JSON `tools`. Globs are held against the server's own names."""

    include: Annotated[Globs, _says("Offer only tools that fit one of these.")] = ALL
    exclude: Annotated[Globs, _says("Offer no tools that fit one of these, even if they are included.")] = ()
    overrides: Annotated[
        dict[str, ToolOverride],
        Meta(title="an object of tools by their own names"),
        _says("Other names, titles, descriptions and schemas."),
    ] = field(default_factory=dict[str, ToolOverride])

    @property
    def excludes(self) -> bool:
        """Whether a tool of the server may be kept from all callers."""
        return (
            self.include != ALL
            or bool(self.exclude)
            or not all(override.enabled for override in self.overrides.values())
        )

    def offers(self, own: str) -> bool:
        """Whether a tool is offered."""
        override = self.overrides.get(own)
        if override is not None and not override.enabled:
            return False
        return any(fnmatchcase(own, glob) for glob in self.include) and not any(
            fnmatchcase(own, glob) for glob in self.exclude
        )

    def own_of(self, local: str) -> str:
        """The server's own name of a tool that is offered as `local`, as far as the config can tell."""
        return next((own for own, override in self.overrides.items() if override.name == local), local)


ALL_TOOLS = ToolChoice()

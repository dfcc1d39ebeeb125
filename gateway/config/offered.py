"""The selection of a server's tools: `tools`, and other programs' spellings for parts of it.

A bare list means `include`. `includeTools`, `enabledTools` and similar keys are read as `include`, `excludeTools`,
`disabledTools` and similar ones as `exclude`, since a tool hidden in another client should remain hidden here.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct, field

from gateway.config.fields import ALL, STRINGS, Globs, doc, read_by
from gateway.config.findings import Entry, is_list, is_object, kind, shown
from gateway.config.scalars import read_struct

if TYPE_CHECKING:
    from gateway.config.findings import Scope

INCLUDING = frozenset({
    "includeTools",
    "enabledTools",
    "allowedTools",
    "include_tools",
    "enabled_tools",
    "allowed_tools",
})
EXCLUDING = frozenset({"excludeTools", "disabledTools", "exclude_tools", "disabled_tools"})
ToolName = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,128}\Z", title="1 to 128 letters, digits, '_', '-' and '.'")
]


class ToolOverride(Struct, frozen=True):
    """Overrides for one tool; the server's values are the defaults."""

    name: Annotated[
        ToolName | None, doc("The name after the namespace, instead of the server's own.", aliases=("rename",))
    ] = None
    title: Annotated[str | None, doc("The title shown to users.")] = None
    description: Annotated[str | None, doc("The description that models read.")] = None
    input_schema: Annotated[
        InputSchema,
        doc(
            "The schema of the arguments; also spelled 'inputSchema'. The server still validates against its own.",
            aliases=("inputSchema", "parameters"),
        ),
    ] = None
    enabled: Annotated[bool, doc("false: the tool is not offered.")] = True


class ToolChoice(Struct, frozen=True):
    """Selection and overrides of a server's tools; JSON `tools`. Globs match the server's own names."""

    include: Annotated[GlobList, doc("Offer only tools that match one of these.")] = ALL
    exclude: Annotated[GlobList, doc("Exclude tools that match one of these, even if they are included.")] = ()
    overrides: Annotated[
        Overrides,
        doc("Other names, titles, descriptions and schemas."),
    ] = field(default_factory=dict[str, ToolOverride])

    @property
    def excludes(self) -> bool:
        """Whether any tool of the server may be excluded."""
        return (
            self.include != ALL
            or bool(self.exclude)
            or not all(override.enabled for override in self.overrides.values())
        )

    def offers(self, own: str) -> bool:
        """Return whether a tool is offered."""
        override = self.overrides.get(own)
        if override is not None and not override.enabled:
            return False
        return any(fnmatchcase(own, glob) for glob in self.include) and not any(
            fnmatchcase(own, glob) for glob in self.exclude
        )

    def own_of(self, local: str) -> str:
        """Return the own name of a tool offered as `local`, as far as configured."""
        return next((own for own, override in self.overrides.items() if override.name == local), local)


def gather_tools(raw: dict[object, object]) -> dict[object, object]:
    """Return a server's object with other programs' spellings merged into `tools`."""
    foreign = [key for key in raw if isinstance(key, str) and key in INCLUDING | EXCLUDING]
    tools = raw.get("tools")
    if is_list(tools):
        tools = {"include": list(tools)}
    if not foreign or not (tools is None or is_object(tools)):
        return raw if tools is raw.get("tools") else {**raw, "tools": tools}
    gathered: dict[object, object] = dict(tools or {})
    for key in foreign:
        member = "include" if key in INCLUDING else "exclude"
        said = raw[key]
        if said is None:
            continue
        if member in gathered and is_list(said) and is_list(present := gathered[member]):
            said = [one for one in said if one in present] if member == "include" else [*present, *said]
        gathered[member] = said
    return {**{key: value for key, value in raw.items() if key not in foreign}, "tools": gathered}


def read_tools(scope: Scope, entry: Entry) -> ToolChoice:
    """Read `tools`."""
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object with 'include', 'exclude', 'overrides', or a list of globs, not"
                      f" {kind(entry.value)}")  # fmt: skip
        return ALL_TOOLS
    return ToolChoice(**read_struct(scope, ToolChoice, entry, f"{entry.label}."))


def read_globs(scope: Scope, entry: Entry) -> tuple[str, ...]:
    """Read a list of globs; a single string is a list of one."""
    globs = [entry.value] if isinstance(entry.value, str) else entry.value
    if not is_list(globs) or not all(isinstance(glob, str) and glob for glob in globs):
        scope.problem(entry.label, f"must be a list of globs such as 'get_*', not {kind(entry.value)}")
        return ()
    return tuple(str(glob) for glob in globs)


def _read_overrides(scope: Scope, entry: Entry) -> dict[str, ToolOverride]:
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object of tools by their own names, not {kind(entry.value)}")
        return {}
    raw = entry.raw if is_object(entry.raw) else {}
    overrides: dict[str, ToolOverride] = {}
    takers: dict[str, str] = {}
    for own, value in entry.value.items():
        label = f"{entry.label}.{own}"
        given = Entry(label, value, raw.get(own))
        if isinstance(value, str):
            given = Entry(label, {"name": value}, {"name": given.raw})
        if isinstance(value, bool):
            override = ToolOverride(enabled=value)
        elif is_object(given.value):
            override = ToolOverride(**read_struct(scope, ToolOverride, given, f"{label}."))
        else:
            scope.problem(label, f"must be an object, a new name, or false, not {kind(value)}")
            override = ToolOverride()
        overrides[str(own)] = override
        if override.name is not None and takers.setdefault(override.name, str(own)) != own:
            scope.problem(f"{label}.name", f"is also the name of {shown(takers[override.name])}; keep one")
    return overrides


def _read_schema(scope: Scope, entry: Entry) -> dict[str, Any] | None:
    if not is_object(entry.value) or entry.value.get("type", "object") != "object":
        scope.problem(entry.label, "must be a JSON Schema of type 'object'")
        return None
    return {"type": "object", **{str(key): value for key, value in entry.value.items()}}


ToolsField = Annotated[ToolChoice, read_by(read_tools, STRINGS)]
GlobList = Annotated[Globs, read_by(read_globs)]
InputSchema = Annotated[dict[str, Any] | None, Meta(title="a JSON Schema of type 'object'"), read_by(_read_schema)]
Overrides = Annotated[
    dict[str, ToolOverride],
    Meta(title="an object of tools by their own names"),
    read_by(
        _read_overrides,
        {"type": "object", "additionalProperties": {"anyOf": [{"$ref": "#/$defs/ToolOverride"}, {"type": "string"}]}},
    ),
]

ALL_TOOLS = ToolChoice()

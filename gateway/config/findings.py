"""What a look at a config finds: problems, which stop it, and warnings, which do not.

`Findings` gathers the lines of one whole config; a `Scope` speaks about one owner in it, a server or the
`gateway` section. A line is always one line, and no value of a variable, of `env`, of `headers`, of an
argument or of an address ever stands in it: only names, types, and what the file says in plain words. Where a reader
repeats a value that was substituted, `Findings.check` puts back how the file spells it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeGuard

from msgspec import Struct, field

from gateway.errors import ConfigError
from gateway.masking import Masker, is_maskable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
_LONGEST_SHOWN = 80  # characters of a name that a line repeats
_KINDS: dict[type, str] = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    type(None): "null",
}


class Line(str):  # noqa: FURB189 - to everybody else it is text, also in what is sent
    """A line about one field, which knows where it is: whose field, and its path in there as the file spells it."""

    __slots__ = ("label", "owner")

    owner: str
    label: str

    @classmethod
    def about(cls, owner: str, label: str, text: str) -> Line:
        """Make one; an empty label is the owner as a whole."""
        line = cls(f"{owner}: field {shown(label)} {text}" if label else f"{owner}: {text}")
        line.owner, line.label = owner, label
        return line

    def with_text(self, text: str) -> Line:
        """The same about the same field, in other words."""
        line = Line(text)
        line.owner, line.label = self.owner, self.label
        return line


class FileSource(Protocol):
    """What a config takes from elsewhere; see `gateway.config.files`."""

    def __call__(self, name: str) -> str:
        """Return the text of a file. Raises ValueError."""
        ...

    def run(self, command: str) -> str:
        """Return what a command prints. Raises ValueError."""
        ...


class SyntaxProblem(str):  # noqa: FURB189 - as `Line`
    """A problem with the text of a config itself, with its place; line and column count from 1."""

    __slots__ = ("column", "line")

    line: int
    column: int

    @classmethod
    def at(cls, line: int, column: int, text: str) -> SyntaxProblem:
        """Make one."""
        problem = cls(text)
        problem.line, problem.column = line, column
        return problem


class Findings(Struct):
    """The lines found so far, in the order in which they were found."""

    problems: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    secrets: dict[str, str] = field(default_factory=dict[str, str])
    """What was substituted anywhere in the config, with the spelling that stands there for it."""

    def check(self) -> None:
        """Mask what was substituted, then raise ConfigError with every problem and warning if there is a problem."""
        masker = Masker(self.secrets)
        self.problems[:] = [_masked(line, masker) for line in self.problems]
        self.warnings[:] = [_masked(line, masker) for line in self.warnings]
        if self.problems:
            raise ConfigError(self.problems, self.warnings)


class Scope(Struct):
    """Where a reader is: whose fields it reads, with which variables, and where its findings go.

    `lenient` is set for a disabled server: that its variables are not set is then worth a warning only.
    """

    findings: Findings
    owner: str
    environ: Mapping[str, str]
    home: str | None = None
    lenient: bool = False
    files: FileSource | None = None
    """Reads the small files that a config names; see `gateway.config.files`."""
    secrets: dict[str, str] = field(default_factory=dict[str, str])
    """What variables and files gave, which is never shown, with the spelling that stands in the config for it."""

    def note_secret(self, value: str, spelling: str) -> None:
        """Note a value that was substituted."""
        if is_maskable(value.strip()):
            self.secrets.setdefault(value, spelling)
            self.findings.secrets.setdefault(value, spelling)

    def problem(self, label: str, text: str) -> None:
        """Note what is wrong with one field; `text` continues the sentence."""
        self.findings.problems.append(Line.about(self.owner, label, text))

    def refuse(self, text: str) -> None:
        """Note what is wrong with the owner as a whole; `text` continues the sentence."""
        self.findings.problems.append(Line.about(self.owner, "", text))

    def warn(self, label: str, text: str) -> None:
        """Note what is odd about one field; `text` continues the sentence."""
        self.findings.warnings.append(Line.about(self.owner, label, text))


def _masked(line: str, masker: Masker) -> str:
    text = masker.mask(line)
    if text == line:
        return line
    return line.with_text(text) if isinstance(line, Line) else text


class Entry(Struct, frozen=True):
    """One value on its way in: the key as the file spells it, and the value before and after substitution."""

    label: str
    value: object
    raw: object

    @property
    def from_variable(self) -> bool:
        """Whether the value is text with a variable in it, so that it must not be shown."""
        return isinstance(self.raw, str) and "${" in self.raw

    @property
    def quoted(self) -> str:
        """The value for a line, of a field that carries no secrets; hidden if it came out of a variable."""
        if not isinstance(self.value, str):
            return kind(self.value)
        return "what the variable holds" if self.from_variable else shown(self.value)


def kind(value: object) -> str:
    """What a value is in the words of JSON: 'a string', 'an object'."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def shown(text: object) -> str:
    """Return a name in quotes, in one line and not too long."""
    if not isinstance(text, str):
        return kind(text)
    return repr(text) if len(text) <= _LONGEST_SHOWN else repr(text[:_LONGEST_SHOWN]) + "..."


def is_object(value: object) -> TypeGuard[dict[object, object]]:
    """Whether the value is a JSON object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    """Whether the value is a JSON list."""
    return isinstance(value, list | tuple)


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or nothing when no known key is near."""
    import difflib  # only files with a slip in them pay for it

    plain = {_plain(name): name for name in known}
    near = difflib.get_close_matches(_plain(key[:_LONGEST_SHOWN]), plain, n=1, cutoff=0.7)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def edit_distance(one: str, other: str) -> int:
    """How many letters must be added, removed, replaced or swapped with their neighbour (Damerau-Levenshtein)."""
    far = len(one) + len(other)
    rows = [[far] * (len(other) + 2), [far, *range(len(other) + 1)]]
    last_row: dict[str, int] = {}
    for i, letter in enumerate(one, 1):
        row, match = [far, i], 0
        for j, opposite in enumerate(other, 1):
            k, before = last_row.get(opposite, 0), match
            if letter == opposite:
                match = j
            swapped = rows[k][before] + (i - k - 1) + 1 + (j - before - 1)
            replaced = rows[-1][j] + (letter != opposite)
            row.append(min(replaced, row[-1] + 1, rows[-1][j + 1] + 1, swapped))
        rows.append(row)
        last_row[letter] = i
    return rows[-1][-1]


def _plain(key: str) -> str:
    return key.replace("_", "").replace("-", "").lower()

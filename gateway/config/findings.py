"""Findings in a config: problems, which reject it, and warnings, which do not.

`Findings` collects the lines of a whole config; a `Scope` reports about one owner in it, a server or the `gateway`
section. A finding is always one line and never contains a value of a variable, of `env`, of `headers`, of an argument
or of a URL: only names, types, and plain text of the file. If a reader quotes a substituted value, `Findings.check`
restores the file's spelling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeGuard

from msgspec import Struct, field

from gateway.errors import ConfigError
from gateway.masking import Masker, is_maskable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
_LONGEST_SHOWN = 80  # maximum length of a quoted name
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


class Line(str):  # noqa: FURB189 - it is encoded and used as plain text
    """A line about one field, with its owner and its path as in the file."""

    __slots__ = ("label", "owner")

    owner: str
    label: str

    @classmethod
    def about(cls, owner: str, label: str, text: str) -> Line:
        """Create a line; an empty label is the owner as a whole."""
        line = cls(f"{owner}: field {shown(label)} {text}" if label else f"{owner}: {text}")
        line.owner, line.label = owner, label
        return line

    def with_text(self, text: str) -> Line:
        """Return the line with another text about the same field."""
        line = Line(text)
        line.owner, line.label = self.owner, self.label
        return line


class FileSource(Protocol):
    """Source of a config's external values; see `gateway.config.files`."""

    def __call__(self, name: str) -> str:
        """Return the text of a file. Raises ValueError."""
        ...

    def run(self, command: str) -> str:
        """Return a command's output. Raises ValueError."""
        ...


class SyntaxProblem(str):  # noqa: FURB189 - as `Line`
    """A syntax problem with its place; line and column count from 1."""

    __slots__ = ("column", "line")

    line: int
    column: int

    @classmethod
    def at(cls, line: int, column: int, text: str) -> SyntaxProblem:
        """Create a problem at a place."""
        problem = cls(text)
        problem.line, problem.column = line, column
        return problem


class Findings(Struct):
    """The lines found so far, in the order in which they were found."""

    problems: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    secrets: dict[str, str] = field(default_factory=dict[str, str])
    """The substituted values of the config, each with its spelling in the file."""

    def check(self) -> None:
        """Mask substituted values, then raise ConfigError with all findings if there is a problem."""
        masker = Masker(self.secrets)
        self.problems[:] = [_masked(line, masker) for line in self.problems]
        self.warnings[:] = [_masked(line, masker) for line in self.warnings]
        if self.problems:
            raise ConfigError(self.problems, self.warnings)


class Scope(Struct):
    """The context of a reader: the owner of the fields, the variables, and the findings.

    `lenient` is set for a disabled server: unset variables are then only warnings, and no command runs.
    """

    findings: Findings
    owner: str
    environ: Mapping[str, str]
    home: str | None = None
    lenient: bool = False
    unresolved: int = 0
    """The number of strings of a disabled server that stay as they are written."""
    files: FileSource | None = None
    """Reads the small files that a config names; see `gateway.config.files`."""
    secrets: dict[str, str] = field(default_factory=dict[str, str])
    """Values from variables and files, never shown, each with its spelling in the config."""

    def note_secret(self, value: str, spelling: str) -> None:
        """Record a substituted value."""
        if is_maskable(value.strip()):
            self.secrets.setdefault(value, spelling)
            self.findings.secrets.setdefault(value, spelling)

    def problem(self, label: str, text: str) -> None:
        """Report a problem with one field; `text` continues the sentence."""
        self.findings.problems.append(Line.about(self.owner, label, text))

    def refuse(self, text: str) -> None:
        """Report a problem with the owner as a whole; `text` continues the sentence."""
        self.findings.problems.append(Line.about(self.owner, "", text))

    def warn(self, label: str, text: str) -> None:
        """Report a warning about one field; `text` continues the sentence."""
        self.findings.warnings.append(Line.about(self.owner, label, text))


def _masked(line: str, masker: Masker) -> str:
    text = masker.mask(line)
    if text == line:
        return line
    return line.with_text(text) if isinstance(line, Line) else text


class Entry(Struct, frozen=True):
    """One value being read: its key in the file, the value before and after substitution."""

    label: str
    value: object
    raw: object

    @property
    def from_variable(self) -> bool:
        """Whether the value contains a variable and so must not be shown."""
        return isinstance(self.raw, str) and "${" in self.raw

    @property
    def quoted(self) -> str:
        """The value to show, of a field without secrets; hidden if from a variable."""
        if not isinstance(self.value, str):
            return kind(self.value)
        return "the variable's value" if self.from_variable else shown(self.value)


def kind(value: object) -> str:
    """Return a value's JSON type in words: 'a string', 'an object'."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def shown(text: object) -> str:
    """Return a name in quotes, on one line and truncated."""
    if not isinstance(text, str):
        return kind(text)
    return repr(text) if len(text) <= _LONGEST_SHOWN else repr(text[:_LONGEST_SHOWN]) + "..."


def is_object(value: object) -> TypeGuard[dict[object, object]]:
    """Return whether the value is a JSON object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    """Return whether the value is a JSON list."""
    return isinstance(value, list | tuple)


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or nothing if no known key is similar."""
    import difflib  # needed only by files with a typo

    plain = {_plain(name): name for name in known}
    near = difflib.get_close_matches(_plain(key[:_LONGEST_SHOWN]), plain, n=1, cutoff=0.7)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def edit_distance(one: str, other: str) -> int:
    """Return the Damerau-Levenshtein distance."""
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

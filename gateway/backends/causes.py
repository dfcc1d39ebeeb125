"""The line of a program's output that names the cause of its failure.

Imported only when a child has failed: compiling these patterns takes as long as importing twenty modules.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gateway.backends.stderr import SHOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

_ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_GROUP: Final = re.compile(r"^ *[|+] ?")
"""The prefix of each line of a Python exception group."""
_FRAME: Final = re.compile(r"(?:Exception Group )?Traceback \(most recent|\s*File \".*\", line \d+")
"""Lines of Python that precede an exception, the first line without indentation, whatever its name."""
_NOISE: Final = re.compile(
    r"""
    [\s~^|+\-=*.\d]*$                                           # marks below code, rulers
    | [\s\[\](){},;]+$                                          # brackets of a printed object
    | \s+at\s | \s+\w+:\s(?:'.*'|-?\d+|\[.*\]),?$              # frames and properties of a JavaScript error
    | Node\.js\sv\d | Bun\sv\d | Require\sstack:$ | -\s/ | Emitted\s'error'\sevent | \(Use\s`node\s
    | During\shandling\sof\s | The\sabove\sexception\swas\s
    | npm\s(?:error|ERR!)\s*$ | npm\s(?:error|ERR!)\sA\scomplete\slog\s | npm\s(?:notice|warn|WARN)\s
    | npm\s(?:error|ERR!)\s(?:code|errno|syscall|path|dest|file|cwd|signal|command)\s
    | (?:Installed|Resolved|Prepared|Audited|Uninstalled)\s\d+\spackage | (?:Download|Build)(?:ing|ed)\s
    | \s*hint:\s | \s*note:\s | \s*For\s(?:more|further)\sinformation | (?:Run|See)\s'.*--help' | [Uu]sage:\s
    | goroutine\s\d+\s\[ | exit\sstatus\s\d+$ | Stack\sbacktrace:$
    """,
    re.VERBOSE,
)
_NPM: Final = re.compile(r"npm (?:error|ERR!) ")
_EXCEPTION: Final = re.compile(
    r"(?:Uncaught )?(?:Exception in thread \"[^\"]*\" )?(?:[\w$]+\.)*[\w$]*"
    r"(?:Error|Exception|Exit|Interrupt|Rejection)(?: \[\w+\])?(?::|$)"
)
_STATEMENT: Final = re.compile(
    r"\s*\u00d7 |(?:[\w./-]+: )?(?:fatal )?error(?:\[\w+\])?:|docker: |Error response from |panic: ",
    re.IGNORECASE,
)
_CAUSE: Final = re.compile(r"\s*(?:\[cause\]: |cause: |Caused by: |╰─▶ )")
_WEAK: Final = re.compile(
    r"\b(?:error|fatal|critical|panic|failed|failure|cannot|can't|could not|unable|denied|refused|missing|required"
    r"|invalid|unknown|no such|no module|not (?:found|set|installed|supported|valid))\b",
    re.IGNORECASE,
)
_CONTINUATION_LINES: Final = 2
"""Lines shown after the first one of an exception or cause, such as the fields that a validation misses."""


def informative(lines: Sequence[str]) -> str:
    """Return the cause of a failure, on one line, from a program's last lines.

    That is the last exception or error statement (of npm's errors the first) with its causes; else the last line with a
    word like "failed"; else the last line that is not decoration. The rules consider only the form of the lines, and
    cover Python, Node, npm, npx, uv, uvx, docker, Java, Deno and Bun.
    """
    found: list[str] = []  # the statement and its causes, each with its further lines
    further, sign = 0, " "
    is_trace = was_traced = False
    telling: list[str] = []
    for line in (_GROUP.sub("", _ANSI.sub("", line)).rstrip() for line in lines):
        if _FRAME.match(line):
            further, is_trace = 0, True
            continue
        if not line or (is_trace and line[0].isspace()) or _NOISE.match(line):
            further = 0
            continue
        telling.append(line.strip())
        if found and _CAUSE.match(line):
            found.append(line.strip())
            further, sign = _CONTINUATION_LINES, " "  # some programs wrap them
        elif is_trace or _EXCEPTION.match(line):
            found = [line.strip()]
            further, sign = _CONTINUATION_LINES if is_trace else 0, "; "
            was_traced = is_trace
        elif _STATEMENT.match(line):
            further = 0
            if not was_traced:  # else it most likely only reports that something failed
                found = [line.strip()]
        elif _NPM.match(line):
            found = found or [line.strip()]
        elif further:
            found[-1] += sign + line.strip()
            further -= 1
        is_trace = False
    if not found:
        weak = [line for line in telling if _WEAK.search(line)]
        found = (weak or telling or [line.strip() for line in lines if line.strip()] or [""])[-1:]
    return "; ".join(part.removesuffix(":") for part in found)[:SHOWN]

"""Count the listed words in the project's prose: the vocabulary ratchet of `bin/check`.

Prose is what people read: comments, docstrings and other strings of the Python files, the words of test names, and the
Markdown pages without their code blocks and tables of generated figures. `bin/words.txt` has the list. The count per
10,000 words, and the number of waivers (comments that silence a checker), may only fall.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("gateway", "mcp_gateway", "bin", "tests", "benchmarks", "docs", "deploy")
CEILING = 0.5
"""Listed words per 10,000 words of prose."""
WAIVERS = 217
"""Comments that silence a checker."""

WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
WAIVER = re.compile(r"#\s*(noqa|type: ignore|pyright: ignore|ruff: ignore|pragma: no cover)")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`\n]*`")
TEST_NAME = re.compile(r"^\s*(?:async )?def test_(\w+)", re.MULTILINE)


def read_list() -> re.Pattern[str]:
    """Compile `words.txt` into one pattern."""
    lines = (ROOT / "bin" / "words.txt").read_text(encoding="utf-8").splitlines()
    return re.compile(rf"\b(?:{'|'.join(line for line in lines if line and line[0] != '#')})\b", re.IGNORECASE)


def files_with_prose() -> Iterator[Path]:
    """Yield the Python files and Markdown pages of the project."""
    yield from sorted(ROOT.glob("*.md"))
    for folder in FOLDERS:
        yield from sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".md"})


def prose_of_python(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, prose) for the comments, strings and test names of a module."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        # A string without a blank is a key or a path, not a sentence.
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            yield token.start[0], INLINE.sub("", token.string)
    for match in TEST_NAME.finditer(text):
        yield text.count("\n", 0, match.start(1)) + 1, match[1].replace("_", " ")


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, prose) of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from prose_of_python(text)
    else:
        yield 1, INLINE.sub("", FENCE.sub(lambda match: "\n" * match[0].count("\n"), text))


def places(prose: Iterable[tuple[int, str]], listed: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, word) for each listed word."""
    for line, text in prose:
        for match in listed.finditer(text):
            yield line + text.count("\n", 0, match.start()), match[0].lower()


def main() -> int:
    """Print the figures; return 1 where one exceeds its ceiling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", action="store_true", help="list each listed word with its file and line")
    parser.add_argument("--files", action="store_true", help="list the files by their number of listed words")
    options = parser.parse_args()
    listed = read_list()
    words = waivers = 0
    files: Counter[str] = Counter()
    for path in files_with_prose():
        name = str(path.relative_to(ROOT))
        prose = list(prose_of(path))
        words += sum(len(WORD.findall(text)) for _line, text in prose)
        if path.suffix == ".py":
            waivers += sum(1 for _line, text in prose if WAIVER.match(text))
        for line, word in places(prose, listed):
            files[name] += 1
            if options.where:
                print(f"{name}:{line}: {word}")
    if options.files:
        print(*(f"{number:5} {name}" for name, number in files.most_common()), sep="\n")
    found = sum(files.values())
    rate = round(10_000 * found / max(1, words), 1)
    print(f"{found} listed words in {words} words of prose: {rate:g} per 10,000 (ceiling {CEILING:g})")
    print(f"{waivers} waivers (ceiling {WAIVERS})")
    return 1 if rate > CEILING or waivers > WAIVERS else 0


if __name__ == "__main__":
    sys.exit(main())
